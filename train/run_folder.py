"""A run's folder: config, log, pictures, checkpoints. Everything in it is whole or absent.

config.yaml            the resolved config
log.jsonl              one JSON object a line: steps, measurements, alarms
curves.png             pictures, and with them the folders previews/ or samples/
store/                 the training set as tokens, where a generator's run wrote it
checkpoints/step_N/    weights, optimizers and counters; the newest few
tokenizer/ generator/  the finished model
"""

import fcntl
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..config import read_yaml, to_dict, to_yaml
from ..files import SaveError, atomic_file, atomic_folder, sha256_file

_FREE_TO_CHANGE = (
    "data.num_workers",
    "run.cpu_threads",
    "run.steps",
    "run.log_every",
    "run.preview_every",
    "run.evaluate_every",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "run.trackers",
    "samples",
)
"""Config keys, or sections, that a resumed run may change; others would make it another run."""


class RunError(ValueError):
    """A run folder that cannot be started or resumed."""


class RunFolder:
    """Opens or resumes a run.

    Args:
        path: The folder.
        config: The resolved config dataclass of the run.
        resume: Continue from the newest checkpoint; otherwise a folder with a run is refused.
        writes: Whether this process writes (the main process does).

    Raises:
        RunError: If the folder holds a run and `resume` is False, holds none and it is True, or
            holds one of another config (the differing keys are listed).
    """

    def __init__(self, path: Path, config: Any, *, resume: bool, writes: bool) -> None:
        self.path, self.writes = path, writes
        started = (path / "config.yaml").exists()
        if resume and not started:
            raise RunError(
                f"{path}: nothing to resume, no config.yaml here; start without --resume"
            )
        if started and not resume:
            raise RunError(
                f"{path}: holds a run already; add --resume to continue it, or choose another --out"
            )
        if resume:
            _check_same(read_yaml(path / "config.yaml"), to_dict(config), path)
        self._config = config

    def begin(self) -> None:
        """Take the folder and write the config; after every process has opened it, not before.

        Raises:
            RunError: If another run is writing there, e.g. one that is still saving after Ctrl-C.
            SaveError: If the disk refuses.
        """
        if not self.writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise SaveError(f"cannot write {self.path}: {error.strerror}") from None
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held until the process ends
        except OSError:
            raise RunError(
                f"{self.path}: another process is writing to this run; wait until it has ended"
            ) from None
        with atomic_file(self.path / "config.yaml") as temporary:
            temporary.write_text(to_yaml(self._config), encoding="utf-8")

    @property
    def log_path(self) -> Path:
        """One JSON object a line."""
        return self.path / "log.jsonl"

    def log(self, record: dict[str, Any]) -> None:
        """Append one line.

        Raises:
            SaveError: If the disk refuses.
        """
        if not self.writes:
            return
        try:
            with self.log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as error:
            raise SaveError(f"cannot write {self.log_path}: {error.strerror}") from error

    def read_log(self) -> list[dict[str, Any]]:
        """Every line so far; a last line cut short by a crash is left out."""
        return read_log(self.log_path)

    def forget_after(self, step: int) -> None:
        """Drop log lines of steps after `step`, which a resumed run will write again."""
        if not self.writes or not self.log_path.exists():
            return
        kept = [record for record in self.read_log() if record["step"] <= step]
        with atomic_file(self.log_path) as temporary:
            lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in kept]
            temporary.write_text("".join(lines), encoding="utf-8")

    def checkpoints(self) -> list[Path]:
        """Checkpoint folders, oldest first."""
        return sorted((self.path / "checkpoints").glob("step_*"), key=lambda p: int(p.name[5:]))

    def save_checkpoint(
        self, step: int, weights: dict[str, dict[str, Tensor]], state: dict[str, Any], *, keep: int
    ) -> None:
        """Write `checkpoints/step_N` and drop all but the newest `keep`.

        Args:
            step: Steps done.
            weights: Module states by name, one safetensors file each.
            state: Optimizer states and counters: tensors, numbers, strings, lists, dicts.
            keep: Checkpoints left in the end.

        Raises:
            SaveError: If the disk refuses; earlier checkpoints stay.
        """
        if not self.writes:
            return
        with atomic_folder(self.path / "checkpoints" / f"step_{step}", overwrite=True) as folder:
            for name, tensors in weights.items():
                whole = {key: t.detach().cpu().contiguous() for key, t in tensors.items()}
                save_file(whole, folder / f"{name}.safetensors")
            # Not straight to the file: on a full disk torch.save raises a bare RuntimeError.
            buffer = io.BytesIO()
            torch.save({"step": step, **state}, buffer)
            (folder / "state.pt").write_bytes(buffer.getbuffer())
            sums = {file.name: sha256_file(file) for file in sorted(folder.iterdir())}
            (folder / "checksums.json").write_text(json.dumps(sums, indent=2), encoding="utf-8")
        for old in self.checkpoints()[:-keep]:
            shutil.rmtree(old)

    def load_checkpoint(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """Weights and state of the newest checkpoint, or None if there is none yet.

        Raises:
            RunError: If a file of it is missing, truncated or changed; says which, and to delete
                the folder in order to continue from the one before.
        """
        found = self.checkpoints()
        if not found:
            return None
        folder = found[-1]
        try:
            try:
                sums = json.loads((folder / "checksums.json").read_text(encoding="utf-8"))
            except ValueError:
                raise RunError(f"{folder / 'checksums.json'}: truncated or changed") from None
            for name, expected in sums.items():
                if sha256_file(folder / name) != expected:
                    raise RunError(f"{folder / name}: truncated or changed")
            weights = {p.stem: load_file(p) for p in folder.glob("*.safetensors")}
            state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        except (OSError, ValueError, SafetensorError) as error:
            raise RunError(
                f"checkpoint {folder} cannot be used ({error}); delete that folder to continue "
                f"from the one before, of which there are {len(found) - 1}"
            ) from None
        return weights, state


def check_processes(saved: int, running: int) -> None:
    """Refuse a checkpoint of another number of processes, which would change the batch.

    Raises:
        RunError: With both numbers.
    """
    if saved != running:
        raise RunError(
            f"the checkpoint is of {saved} processes, this run has {running}; "
            f"launch {saved} to resume"
        )


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a `log.jsonl`; a last line cut short by a crash is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def _check_same(old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
    before, now = _flatten(old), _flatten(new)
    changed = sorted(
        key
        for key in before.keys() | now.keys()
        if before.get(key) != now.get(key)
        and not any(key == free or key.startswith(f"{free}.") for free in _FREE_TO_CHANGE)
    )
    if changed:
        pairs = [f"{key}: was {before.get(key)!r}, now {now.get(key)!r}" for key in changed]
        raise RunError(f"{path}: the run there has another config; " + "; ".join(pairs))


def _flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        return {prefix[:-1]: data}
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flatten(value, f"{prefix}{key}.")
    return flat
