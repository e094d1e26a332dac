"""Growth of the memory of one process over many sampling calls and many encodings.

    python benchmarks/memory_slope.py [--calls 300] [--warm-up 60] [--work sample]

Each `sample` call draws two pictures with a bundled generator into a folder, each `encode` call
writes a token store of eight bundled images, each `edit` call draws a box of a photograph anew;
the folders are removed at once. The resident memory is read after every call, and its slope is the
least-squares line through the calls after the warm-up, in MB (10^6 bytes) for 100 calls. The
command fails if a slope is larger than `--most`.
"""

import gc
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from tessella.checkpoints import load_generator
from tessella.codec.encode import encode_source
from tessella.data.sources import open_source
from tessella.sample.folder import sample_to_folder
from tessella.sample.pictures import draw_edit


def resident() -> float:
    """Resident memory of this process in MB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def slope(work: Callable[[int], Any], calls: int, warm_up: int) -> tuple[float, float, float]:
    """MB for 100 calls after the warm-up, and MB at its end and at the end."""
    found = []
    for number in range(calls):
        work(number)
        found.append(resident())
    late = np.array(found[warm_up:])
    return float(100 * np.polyfit(np.arange(len(late)), late, 1)[0]), float(late[0]), found[-1]


@click.command()
@click.option("--calls", type=click.IntRange(min=3), default=300, show_default=True)
@click.option("--warm-up", type=click.IntRange(min=0), default=60, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--most", type=float, default=1.0, show_default=True, help="MB for 100 calls.")
@click.option(
    "--work",
    "names",
    type=click.Choice(["sample", "encode", "edit"]),
    multiple=True,
    default=["sample", "encode", "edit"],
    help="What to call; may be given several times [all].",
)
@click.option("--generator", "path", default="bundled:maskbit-emoji-64", show_default=True)
def main(
    calls: int, warm_up: int, threads: int, most: float, names: tuple[str, ...], path: str
) -> None:
    """Print the slopes."""
    torch.set_num_threads(threads)
    generator, source = load_generator(path), open_source("bundled:emoji", "val")
    photograph = Image.effect_noise((300, 200), 60).convert("RGB")

    def sample(number: int, out: Path) -> None:
        given: dict[str, Any] = {"labels": [-1, -1], "seeds": [2 * number, 2 * number + 1]}
        sample_to_folder(generator, out, **given, progress=False)

    def encode(number: int, out: Path) -> None:
        encode_source(generator.tokenizer, source, out, limit=8, progress=False)

    def edit(number: int, out: Path) -> None:
        draw_edit(generator, photograph, box=(90, 60, 180, 120), seed=number)

    failed = False
    print(f"torch {torch.__version__}, {threads} threads, {calls} calls, warm-up {warm_up}")
    for work in (work for work in (sample, encode, edit) if work.__name__ in names):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"

            def call(number: int, work: Any = work, out: Path = out) -> None:
                work(number, out)
                shutil.rmtree(out, ignore_errors=True)

            rate, first, last = slope(call, calls, warm_up)
        failed = failed or rate > most
        print(f"{work.__name__:7} {rate:+6.2f} MB for 100 calls ({first:.1f} to {last:.1f} MB)")
    if failed:
        raise click.ClickException(f"a slope is above {most} MB for 100 calls")


if __name__ == "__main__":
    main()
