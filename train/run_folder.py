"""Folder of a training run: config, log, pictures, checkpoints, each written atomically.

config.yaml            the resolved config
log.jsonl              one JSON object per line: steps, measurements, alarms
curves.png             curves of the log
previews/ samples/     pictures of a tokenizer's or a generator's run
store/                 the training set as tokens, if the run of a generator wrote it
checkpoints/step_N/    weights, optimizers and counters; the newest few
tokenizer/ generator/  the finished model
.tessella.json         the run's id, which its checkpoints and its model have as well

Checkpoints and models with another id, or none, are never loaded, replaced or removed.
"""

import contextlib
import fcntl
import io
import json
import os
import pickle
import re
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..config import read_yaml, to_yaml
from ..files import (
    MARKER,
    SaveError,
    atomic_file,
    atomic_folder,
    check_replaceable,
    read_marker,
    remove_folder,
    some_of,
    write_marker,
)
from ..manifest import check_sums, write_sums
from ..unfinished import open_lock, sweep
from .run_log import forget_after, read_log

_NAMES = (
    "config.yaml",
    "log.jsonl",
    "curves.png",
    "previews",
    "samples",
    "store",
    "checkpoints",
    "tokenizer",
    "generator",
    MARKER,
)
"""Names that a run writes in its folder."""


class RunError(ValueError):
    """A run folder that cannot be started or resumed."""


class RunFolder:
    """Folder of a new or resumed run.

    Args:
        path: Path of the folder.
        config: Resolved config dataclass of the run.
        resume: Whether to continue from the newest checkpoint; if not, a folder with a run is
            refused.
        writes: Whether this process writes (only the main process does).
        model: Name of the folder for the finished model, `tokenizer` or `generator`; "": none.

    Raises:
        RunError: Without `resume`, if the folder holds a run or a file of a name that a run writes.
            With `resume`, if it holds no run, or checkpoints or a model of another run.

    Attributes:
        before: Config of the run that is resumed, as plain values; {}: it is a new one.
    """

    def __init__(
        self, path: Path, config: Any, *, resume: bool, writes: bool, model: str = ""
    ) -> None:
        self.path, self.writes = path, writes
        marker = check_kind(path)
        self.id = str(marker.get("run") or uuid.uuid4().hex)
        started = (path / "config.yaml").exists()
        if resume and not started:
            raise RunError(
                f"{path}: nothing to resume, since it has no config.yaml; start without --resume"
            )
        if started and not resume:
            raise RunError(
                f"{path}: holds a run already; add --resume to continue it, or choose another --out"
            )
        there = [name for name in _NAMES if os.path.lexists(path / name)]
        if there and not resume:
            raise RunError(
                f"{path}: holds what a run would write, but no run: {', '.join(there)}; choose "
                "another --out, or move these away"
                + " (a store can be read with data.store)"
                * ("store" in there)
            )
        # Version 0.5 wrote no markers; checkpoints of its runs are loaded, but never removed.
        adopted = marker.get("adopted") if marker else self._unmarked()
        self._adopted = set(adopted if isinstance(adopted, list) else [])
        if resume:
            self._check_owner(model)
        # Read before the main process writes it anew.
        self.before = read_yaml(path / "config.yaml") if resume else {}
        self._config = config

    def _unmarked(self) -> list[str]:
        """Names of checkpoints without a marker, as version 0.5 wrote them."""
        return [
            folder.name
            for folder in _steps(self.path)
            if read_marker(folder) is None
            and all((folder / name).is_file() for name in ("checksums.json", "state.pt"))
        ]

    def _check_owner(self, model: str) -> None:
        """Refuse, before training, checkpoints or a model that this run may not replace.

        Raises:
            RunError: If a checkpoint or the model belongs to another run.
        """
        if links := [name for name in _NAMES if (self.path / name).is_symlink()]:
            raise RunError(
                f"{self.path}: {some_of(links)}: a run writes no symbolic links; put the files "
                "themselves there, or move the links away"
            )
        ours = self.checkpoints()
        if others := [f"checkpoints/{p.name}" for p in _steps(self.path) if p not in ours]:
            raise RunError(
                f"{self.path}: not checkpoints of this run: {some_of(others)}; move them away"
            )
        try:
            if model:
                facts = {"run": self.id}
                check_replaceable(self.path / model, model, overwrite=True, facts=facts)
        except FileExistsError as error:
            raise RunError(str(error)) from None

    def begin(self) -> None:
        """Lock the folder; call it after every process has opened it.

        A new run writes its config; a resumed one keeps what stands there until `write_config`.

        Raises:
            RunError: If another process writes to the run, e.g. one still saving after Ctrl-C.
            SaveError: If writing fails.
        """
        if not self.writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open_lock(self.path / ".lock")
        except OSError as error:
            raise SaveError(f"cannot write {self.path / '.lock'}: {error.strerror}") from None
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held until the process ends
        except OSError:
            raise RunError(
                f"{self.path}: another process is writing to this run; wait until it has ended"
            ) from None
        for place in ("", "checkpoints", "previews", "samples"):
            sweep(self.path / place)
        if not self.before:
            self.write_config()
        if read_marker(self.path) is None:
            write_marker(self.path, "run", {}, run=self.id, adopted=sorted(self._adopted))

    def write_config(self) -> None:
        """Write the config of the run.

        Raises:
            SaveError: If writing fails.
        """
        if self.writes:
            with atomic_file(self.path / "config.yaml") as temporary:
                temporary.write_text(to_yaml(self._config), encoding="utf-8")

    @property
    def log_path(self) -> Path:
        """Path of the log, with one JSON object per line."""
        return self.path / "log.jsonl"

    def log(self, record: dict[str, Any]) -> None:
        """Append a record to the log.

        Raises:
            SaveError: If writing fails.
        """
        if not self.writes:
            return
        try:
            with self.log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as error:
            raise SaveError(f"cannot write {self.log_path}: {error.strerror}") from error

    def read_log(self) -> list[dict[str, Any]]:
        """All records of the log; a last line that a crash cut short is left out."""
        return read_log(self.log_path)

    def forget_after(self, step: int, *, keep: str = "") -> list[str]:
        """Remove log records of steps after `step`, which a resumed run will write again.

        Args:
            step: Optimizer steps done.
            keep: Records with this key stay, whatever their step; "": none.

        Returns:
            Lines to tell the user, about records that were damaged.
        """
        return forget_after(self.log_path, step, keep=keep) if self.writes else []

    def checkpoints(self) -> list[Path]:
        """Checkpoint folders of this run, oldest first."""
        return [
            folder
            for folder in _steps(self.path)
            if folder.name in self._adopted or self._is_own(folder)
        ]

    def _is_own(self, folder: Path) -> bool:
        marker = read_marker(folder) or {}
        return (marker.get("kind"), marker.get("run")) == ("checkpoint", self.id)

    def save_checkpoint(
        self, step: int, weights: dict[str, dict[str, Tensor]], state: dict[str, Any], *, keep: int
    ) -> None:
        """Write `checkpoints/step_N`, and remove all but the newest `keep` that this run wrote.

        Args:
            step: Number of steps done.
            weights: Module states by name, each written to a safetensors file.
            state: Optimizer states and counters: tensors, numbers, strings, lists, dicts.
            keep: Number of checkpoints to keep.

        Raises:
            FileExistsError: If the name is taken by something that this run did not write.
            SaveError: If writing fails; earlier checkpoints stay.
        """
        if not self.writes:
            return
        target, facts = self.path / "checkpoints" / f"step_{step}", {"run": self.id}
        with atomic_folder(target, kind="checkpoint", overwrite=True, facts=facts) as folder:
            for name, tensors in weights.items():
                whole = {key: t.detach().cpu().contiguous() for key, t in tensors.items()}
                save_file(whole, folder / f"{name}.safetensors")
            # Via a buffer: on a full disk torch.save raises a RuntimeError without the reason.
            buffer = io.BytesIO()
            torch.save({"step": step, **state}, buffer)
            (folder / "state.pt").write_bytes(buffer.getbuffer())
            write_sums(folder)
        for old in self.checkpoints()[:-keep]:
            if old.name not in self._adopted:
                with contextlib.suppress(FileExistsError):  # keep it if it has other files as well
                    remove_folder(old, "checkpoint", facts)

    def load_checkpoint(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """Weights and state of the newest checkpoint; None if there is none yet.

        Raises:
            RunError: If one of its files is missing, truncated or changed; the message names the
                file and the folder to delete in order to continue from the checkpoint before.
        """
        found = self.checkpoints()
        if not found:
            return None
        folder = found[-1]
        try:
            check_sums(folder, error=RunError)
            weights = {p.stem: load_file(p) for p in folder.glob("*.safetensors")}
            state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        except (OSError, ValueError, SafetensorError, RuntimeError, pickle.PickleError) as error:
            raise RunError(
                f"checkpoint {folder} cannot be used ({error}); delete that folder to continue "
                f"from the one before, of which there are {len(found) - 1}"
            ) from None
        return weights, state


def check_kind(path: Path) -> dict[str, Any]:
    """Marker of a run folder; {} if it has none.

    Raises:
        RunError: If the folder holds something else than a run.
    """
    marker = read_marker(path) or {}
    if marker and marker["kind"] != "run":
        raise RunError(f"{path}: holds a {marker['kind']}, not a run; choose another --out")
    return marker


def _steps(run: Path) -> list[Path]:
    """Paths in a run that have the name of a checkpoint, oldest first."""
    found = (run / "checkpoints").glob("step_*")
    steps = [path for path in found if re.fullmatch(r"step_[0-9]+", path.name)]
    return sorted(steps, key=lambda path: int(path.name[5:]))
