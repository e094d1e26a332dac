"""Settings of the samplers for `--help`, parsed from their source so that nothing is imported.

The lines of a docstring are read here for `tessella config` too (`config_keys.py`).

Every sampler module ends with `SAMPLER = Sampler(types=..., settings=..., ...)`; the settings are a
dataclass in that module, or in one that it imports, whose docstring has a line for each field.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SAMPLE = Path(__file__).parents[1] / "sample"
"""Folder of the sampler modules."""


@dataclass(frozen=True)
class Setting:
    """One field of a sampler's settings.

    Args:
        name: Name of the field.
        default: Default value, as typed on the command line.
        about: Description of the field in the docstring, with `null` for None as in YAML.
    """

    name: str
    default: str
    about: str


def sampler_settings() -> Iterator[tuple[tuple[str, ...], list[Setting]]]:
    """Yield the types of generators and the settings of every sampler."""
    for path in sorted(SAMPLE.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        call = _sampler_of(tree)
        if call is None:
            continue
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        settings = given["settings"]
        assert isinstance(settings, ast.Name)
        yield tuple(ast.literal_eval(given["types"])), _fields(tree, settings.id)


def _sampler_of(tree: ast.Module) -> ast.Call | None:
    """The call in `SAMPLER = Sampler(...)`."""
    for node in tree.body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "SAMPLER"
            and isinstance(node.value, ast.Call)
        ):
            return node.value
    return None


def _fields(tree: ast.Module, name: str) -> list[Setting]:
    """Fields of a dataclass in a module, or in the module of `SAMPLE` that it is imported from."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            about = argument_lines(ast.get_docstring(node) or "")
            return [
                Setting(
                    field.target.id,
                    yaml_text(ast.literal_eval(field.value)),
                    about.get(field.target.id, "").replace("None:", "null:"),
                )
                for field in node.body
                if isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and field.value is not None
            ]
        if isinstance(node, ast.ImportFrom) and name in (alias.name for alias in node.names):
            other = SAMPLE / f"{node.module}.py"
            return _fields(ast.parse(other.read_text(encoding="utf-8")), name)
    raise AssertionError(f"{name}: no such dataclass")


def yaml_text(value: Any) -> str:
    """A plain value as typed on the command line and in a config."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(yaml_text, value))}]"
    text = str(value)
    return {"None": "null", "True": "true", "False": "false"}.get(text, text)


def argument_lines(docstring: str) -> dict[str, str]:
    """Descriptions by argument in the `Args:` or `Attributes:` section of a cleaned docstring."""
    pattern = r"^(?:Args|Attributes):\n((?:    .*\n?|\n)*)"
    section = re.search(pattern, docstring, flags=re.MULTILINE)
    texts: dict[str, str] = {}
    name = ""
    for line in (section[1] if section else "").splitlines():
        found = re.match(r"    (\w+): (.*)", line)
        if found:
            name = found[1]
            texts[name] = found[2]
        elif line.strip():
            texts[name] += f" {line.strip()}"
    return texts
