"""A soak of files: fuzzing of everything that is read, and kills of everything that writes.

    python -m tessella.benchmarks.soak.soak [--minutes M] [--seed S] [--cases N] [--kills N]
                                            [--case N] [--kind KIND] [--target TARGET]

Half of the minutes goes to each. A finding is printed with the number of its case, and its files
stay in --out; `--seed S --case N` runs that case again. The exit status is 1 if there are findings.
"""

import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import click
import torch

from tessella.benchmarks.soak.fuzz import Fuzz
from tessella.benchmarks.soak.kills import TARGETS, Kills
from tessella.benchmarks.soak.subjects import SUBJECTS


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0), help="Minutes of all [no limit].")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of all cases.")
@click.option("--cases", type=int, default=1_000_000, help="Most cases of fuzzing.")
@click.option("--kills", type=int, default=1_000_000, help="Most kills.")
@click.option("--case", type=int, help="Only this case of fuzzing, with its output.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(tuple(SUBJECTS)))
@click.option("--target", "targets", multiple=True, type=click.Choice(tuple(TARGETS)))
@click.option("--out", type=click.Path(path_type=Path), help="Folder for files [a temporary one].")
def soak(
    minutes: float | None,
    seed: int,
    cases: int,
    kills: int,
    case: int | None,
    kinds: tuple[str, ...],
    targets: tuple[str, ...],
    out: Path | None,
) -> None:
    """Fuzz every reader and kill every writer; print a summary as JSON."""
    if minutes is None and case is None and max(cases, kills) >= 1_000_000:
        raise click.UsageError("expected a limit: --minutes, or --cases and --kills")
    torch.set_num_threads(1)
    folder = out or Path(tempfile.mkdtemp(prefix="tessella-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TESSELLA_CACHE"] = str(folder / "cache")
    os.environ |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    start, found = time.monotonic(), {}
    share = float("inf") if minutes is None else minutes * 30
    if case is not None or cases:
        fuzz = Fuzz(folder, seed, kinds)
        if case is not None:
            click.echo(fuzz.run_case(case).output)
        else:
            fuzz.run(iter(range(cases)), start + share)
        found["fuzz"] = fuzz.summary()
    if case is None and kills:
        test = Kills(folder, seed, targets)
        test.run(kills, time.monotonic() + share)
        found["kills"] = test.summary()
    click.echo(json.dumps(found, indent=1))
    findings = list(itertools.chain(*(part["findings"] for part in found.values())))
    if not findings and out is None:
        shutil.rmtree(folder)
    elif findings:
        click.echo(f"{len(findings)} findings; files in {folder}", err=True)
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    soak()
