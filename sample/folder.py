"""Samples as files: PNGs, a labelled grid, the tokens, and one JSON line per image.

Processes that were launched together share the work; every image depends on its own seed alone, so
their number does not change the images.
"""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..collectives import broadcast_from_main
from ..data.images import image_grid, read_image, to_pil
from ..files import atomic_folder, check_replaceable
from ..generators.base import Generator
from ..progress import progress_bar
from ..tokens.tokens import Tokens
from .generate import Precision, generate_batches
from .request import Request
from .sampler import Sampling
from .samplers import choose_sampling, with_steps

if TYPE_CHECKING:
    from accelerate import PartialState  # slow to import, and one process does without

RECORDS = "images.jsonl"
MAX_LABELS = 100_000
_GRID_IMAGES, _GRID_COLUMNS = 64, 16


def sample_to_folder(
    generator: Generator,
    out: Path,
    *,
    labels: list[int],
    seeds: list[int],
    sampling: Sampling | None = None,
    batch_size: int = 16,
    precision: Precision = "auto",
    compile: bool = False,
    overwrite: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
    progress: bool = True,
    name: str = "",
    processes: "PartialState | None" = None,
) -> dict[str, Any]:
    """Draw, decode and write one picture per label and seed.

    Args:
        generator: Generator in eval mode, as `load_generator` returns it.
        out: Folder to create, with `000000.png` and so on, `grid.png` (the first 64 images),
            `images.jsonl` and `tokens.safetensors`.
        labels: Class of each image, -1 for none.
        seeds: Seed of each image.
        sampling: Settings of the sampler; None: the generator's own.
        batch_size: Number of images drawn at once, per process.
        precision: Precision of the network, as in `generate`.
        compile: Whether to run the network through torch.compile, as in `generate`.
        overwrite: Whether to replace existing samples that tessella wrote.
        inputs: Files and folders that are being read, which are never replaced.
        progress: Whether to show a progress bar on stderr.
        name: Name of the generator in the files, e.g. its path.
        processes: Processes that share the work, from `join_processes`; None: this one alone.

    Returns:
        On the main process `folder`, `images`, `bits_per_image`, `images_per_second` and
        `sampling`; empty on the others.

    Raises:
        ValueError: If labels, seeds or settings do not fit the generator.
        FileExistsError: If `out` exists and must stay; see `files.check_replaceable`.
        SaveError: If writing fails; nothing is left behind.
    """
    sampling = with_steps(generator, choose_sampling(generator, sampling, {}))
    if not labels or len(labels) != len(seeds):
        raise ValueError(
            f"expected a label and a seed per image, found {len(labels)} and {len(seeds)}"
        )
    request = Request.make(generator, labels, seeds=seeds)
    # Checked here by every process, so that none waits for a main process that has failed.
    check_replaceable(out, "samples", overwrite=overwrite, inputs=inputs)
    rank, world = (processes.process_index, processes.num_processes) if processes else (0, 1)
    share = -(-len(request) // world)
    own = range(rank * share, min((rank + 1) * share, len(request)))
    batches = generate_batches(
        generator,
        request[own.start : own.stop],
        sampling,
        batch_size=batch_size,
        precision=precision,
        compile=compile,
    )
    packed, number = [], own.start
    started = time.perf_counter()
    with (
        _shared_folder(out, processes, overwrite, inputs) as folder,
        progress_bar(len(own), "image", silent=not progress or rank > 0) as bar,
    ):
        for tokens in batches:
            for image in generator.tokenizer.decode(tokens).cpu():
                to_pil(image).save(folder / file_of(number))
                number += 1
            packed.append(tokens.pack().cpu())
            bar.update(len(tokens))
        seconds = time.perf_counter() - started
        parts = [packed]
        if processes is not None:
            from accelerate.utils import gather_object

            parts = gather_object([packed])
        if rank == 0:
            everything = torch.cat([rows for part in parts for rows in part])
            Tokens.unpack(everything, generator.spec).save(folder / "tokens.safetensors")
            _describe(folder, generator, labels, seeds, sampling, name)
    if rank > 0:
        return {}
    return {
        "folder": str(out),
        "images": len(labels),
        "bits_per_image": generator.spec.bits_per_image,
        "images_per_second": len(labels) / seconds,
        "sampling": dataclasses.asdict(sampling),
    }


def file_of(number: int) -> str:
    """File name of the picture of an image number."""
    return f"{number:06d}.png"


def class_name(generator: Generator, label: int) -> str:
    """Title of a picture with this label: the class name, its number, or `any`."""
    if not 0 <= label < generator.num_classes:
        return "any"
    return generator.classes[label] if generator.classes else str(label)


def _describe(
    folder: Path,
    generator: Generator,
    labels: list[int],
    seeds: list[int],
    sampling: Sampling,
    name: str,
) -> None:
    """Write the grid and the JSON lines of a folder that has all its pictures."""
    shown = range(min(len(labels), _GRID_IMAGES))
    names = [class_name(generator, label) for label in labels]
    pictures = [read_image(folder / file_of(i)) for i in shown]
    kinds = min(len(set(labels)), _GRID_COLUMNS)  # labels in turn: equal ones share a column
    columns = min(kinds * max(1, 8 // kinds), len(shown))
    image_grid(pictures, columns, [names[i] for i in shown]).save(folder / "grid.png")
    facts = {
        "generator": name,
        "fingerprint": generator.fingerprint,
        "tokenizer": generator.tokenizer.fingerprint,
        "attention": generator.attention,
        "sampling": dataclasses.asdict(sampling),
    }
    with (folder / RECORDS).open("w", encoding="utf-8") as lines:
        for i, (label, seed) in enumerate(zip(labels, seeds, strict=True)):
            record = {"file": file_of(i), "seed": seed, "label": label, "class": names[i], **facts}
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def _shared_folder(
    out: Path,
    processes: "PartialState | None",
    overwrite: bool,
    inputs: Sequence[str | os.PathLike[str]],
) -> Iterator[Path]:
    """Yield the main process's temporary folder to all; it is renamed when all have finished."""
    with contextlib.ExitStack() as stack:
        place = [""]
        if processes is None or processes.is_main_process:
            writing = atomic_folder(
                out, kind="samples", overwrite=overwrite, inputs=inputs, flush=False
            )
            place[0] = str(stack.enter_context(writing))
        yield Path(broadcast_from_main(place[0], processes))
        if processes is not None:
            processes.wait_for_everyone()
    if processes is not None:
        processes.wait_for_everyone()
