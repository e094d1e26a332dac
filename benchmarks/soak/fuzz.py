"""Fuzzing: one changed file for each case, read to the end in a process with limits.

A case is a number: with the seed it fixes the kind of file, the file and the change, so that any
case can be run again. What must not happen: a traceback, a hang, much memory, or, for files with a
checksum, a result that differs from that of the unchanged files without an error.
"""

import collections
import dataclasses
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import process
from .mutations import mutations_of
from .subjects import SUBJECTS, make

LONGEST, MOST_MEGABYTES = 20.0, 2048.0
"""Seconds and megabytes that a case may take."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """A case that must not be.

    Args:
        case: Number of the case.
        room: Room of the package that read the file.
        what: traceback, hang, memory, signal or silent.
        about: Kind of file, name of the file and of the change, and the last line of the output.
    """

    case: int
    room: str
    what: str
    about: str


class Fuzz:
    """Cases of one seed.

    Args:
        folder: Folder for the valid files and the copies, which is filled.
        seed: Seed of all cases.
        only: Kinds of files; empty: all.
    """

    def __init__(self, folder: Path, seed: int, only: tuple[str, ...] = ()) -> None:
        self.folder, self.seed, self.kinds = folder, seed, only or tuple(SUBJECTS)
        self.counts: collections.Counter[str] = collections.Counter()
        self.findings: list[Finding] = []
        self._valid = folder / "valid"
        self._outputs: dict[str, str] = {}
        made = process.run(lambda: make(self._valid), folder / "make.txt", limit=300)
        if made.status:
            raise RuntimeError(f"the valid files could not be made:\n{made.output}")

    def run(self, cases: Iterator[int], until: float = float("inf")) -> None:
        """Run cases until a time of `time.monotonic`."""
        for case in cases:
            if time.monotonic() > until:
                return
            self.run_case(case)

    def run_case(self, case: int) -> process.Ended:
        """Run one case; its folder is kept if something was found."""
        rng = np.random.default_rng([self.seed, case])
        kind = self.kinds[case % len(self.kinds)]
        subject = SUBJECTS[kind]
        name = subject.files[int(rng.integers(len(subject.files)))]
        mutations = mutations_of(name)
        mutation = mutations[int(rng.integers(len(mutations)))]
        whole = self._expected(kind)
        place = self.folder / f"case-{case}"
        shutil.copytree(self._valid, place)
        before = (place / name).read_bytes()
        after = mutation(before, rng)
        (place / name).write_bytes(after)
        ended = process.run(lambda: subject.read(place), self._log(case), limit=LONGEST)
        what = self._judge(ended, before != after and subject.checked, whole, place)
        told = "error" if ended.status == 1 and what is None else what or "accepted"
        self.counts[told] += 1
        if what is None:
            shutil.rmtree(place)
            self._log(case).unlink()
        else:
            last = (ended.output.strip().splitlines() or [""])[-1][:300]
            about = f"{kind}, {name}, {mutation.__name__}: {last}"
            self.findings.append(Finding(case, subject.room, what, about))
            print(f"case {case}: {what} in {subject.room}: {about}", file=sys.stderr, flush=True)
        return ended

    def _judge(
        self, ended: process.Ended, must_differ: bool, whole: str, place: Path
    ) -> str | None:
        """What was wrong about a case; None if nothing was."""
        if ended.stopped:
            return "hang"
        if ended.megabytes > MOST_MEGABYTES or "MemoryError" in ended.output:
            return "memory"
        if "Traceback (most recent call last)" in ended.output:
            return "traceback"
        if ended.status not in (0, 1):
            return "signal"
        same = _plain(ended.output, place) == whole
        return "silent" if ended.status == 0 and must_differ and not same else None

    def _expected(self, kind: str) -> str:
        """What a reader prints of the unchanged files."""
        if kind not in self._outputs:
            place = self.folder / "whole"
            shutil.copytree(self._valid, place)
            log = self.folder / "whole.txt"
            ended = process.run(lambda: SUBJECTS[kind].read(place), log, limit=LONGEST)
            if ended.status:
                raise RuntimeError(f"{kind}: unchanged files are refused:\n{ended.output}")
            self._outputs[kind] = _plain(ended.output, place)
            shutil.rmtree(place)
        return self._outputs[kind]

    def _log(self, case: int) -> Path:
        return self.folder / f"case-{case}.txt"

    def summary(self) -> dict[str, Any]:
        """Counts of how cases ended, and the findings."""
        found = [dataclasses.asdict(finding) for finding in self.findings]
        return {"seed": self.seed, "cases": self.counts.total(), **self.counts, "findings": found}


def _plain(output: str, place: Path) -> str:
    """Output without the name of the copy."""
    return output.replace(str(place), "")
