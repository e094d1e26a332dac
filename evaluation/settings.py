"""Settings of every evaluation, and the check of its output folder."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState

from ..files import SaveError, check_replaceable
from ..metrics.presets import Preset
from ..metrics.protocol import ProtocolError


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Settings of an evaluation.

    Attributes:
        preset: Rules of the protocol.
        data: Name of the data set, as the user gave it.
        num: Number of images per repetition; None: the preset's.
        repeats: Number of repetitions, each with other seeds.
        seed: Base of all seeds, at least 0.
        batch_size: Number of images at once, per process.
        features: Name of another feature network than the preset's, which makes another protocol;
            None: the preset's.
        device: Device of all networks.
        progress: Show progress bars on stderr.
        processes: Processes that share the work; None: this one alone.
        cache: Read and write cached statistics of reference images.
        command: Command line, for the report.
    """

    preset: Preset
    data: str
    num: int | None = None
    repeats: int = 3
    seed: int = 0
    batch_size: int = 32
    features: str | None = None
    device: str | torch.device = "cpu"
    progress: bool = True
    processes: PartialState | None = None
    cache: bool = True
    command: str = ""

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.batch_size < 1 or self.seed < 0:
            found = f"{self.repeats=}, {self.batch_size=}, {self.seed=}".replace("self.", "")
            raise ValueError(f"expected repeats and batch_size >= 1 and seed >= 0, found {found}")
        if self.num is not None and (not isinstance(self.num, int) or self.num < 1):
            raise ValueError(f"num: expected a whole number >= 1, found {self.num}")
        if self.preset.data not in (None, self.data):
            raise ProtocolError(
                f"protocol {self.preset.name} is that of {self.preset.data}, found {self.data}; "
                f"for other data take val-paired, adm-256 or torch-fidelity"
            )

    @property
    def rank(self) -> int:
        """Number of this process, 0 on the main one."""
        return 0 if self.processes is None else self.processes.process_index


def check_out(out: Path, *, overwrite: bool, inputs: Sequence[str | os.PathLike[str]] = ()) -> None:
    """Refuse a place where no report can be written, before any work is done.

    Raises:
        FileExistsError: If it exists and must stay; see `files.check_replaceable`.
        SaveError: If nothing can be written there.
    """
    check_replaceable(out, "report", overwrite=overwrite, inputs=inputs)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        os.rmdir(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise SaveError(f"cannot write {out}: {error.strerror}") from None
