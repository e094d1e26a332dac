"""The log of a run, `log.jsonl`: one JSON object for each line, with the step that it is of."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from ..documents import read_json_lines, shortened
from ..files import atomic_file


class LogError(ValueError):
    """A log that is no file, or cannot be read."""


def _with_step(record: dict[str, Any]) -> dict[str, Any]:
    if type(record.get("step")) is not int:
        raise ValueError(f"step: expected a whole number, found {shortened(record.get('step'))}")
    return record


_RECORD: Any = Annotated[dict[str, Any], AfterValidator(_with_step)]
"""What every record is; what was measured stands beside the step."""


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records of a log; lines that are none, such as one cut by a crash, are left out.

    Raises:
        LogError: If there is something else than a file of that name, or it cannot be read.
    """
    return [record for record in _records(path) if isinstance(record, dict)]


def forget_after(path: Path, step: int, *, keep: str = "") -> list[str]:
    """Remove the records of steps after `step`, and lines that are no record.

    Args:
        path: The log.
        step: Optimizer steps done.
        keep: Records with this key stay, whatever their step; "": none.

    Returns:
        What was wrong with lines that are no record. A line that a crash cut, which is the last
        one, is no fault: a resumed run writes it again.

    Raises:
        LogError: If there is something else than a file of that name, or it cannot be read.
        SaveError: If writing fails.
    """
    found = _records(path)
    kept = [r for r in found if isinstance(r, dict) and (r["step"] <= step or keep in r)]
    faults = [str(r) for r in found if isinstance(r, ValueError)]
    if found and isinstance(found[-1], ValueError) and not path.read_bytes().endswith(b"\n"):
        faults.pop()
    if path.exists():
        with atomic_file(path) as temporary:
            lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in kept]
            temporary.write_text("".join(lines), encoding="utf-8")
    return [f"{fault}; the line is left out" for fault in faults]


def _records(path: Path) -> list[dict[str, Any] | ValueError]:
    """The record of each line, or what is wrong with it."""
    try:
        return list(read_json_lines(path, _RECORD, error=LogError, non_finite=True))
    except FileNotFoundError:
        return []
