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

from .._version import __version__
from ..collectives import broadcast_from_main
from ..data.images import image_grid, read_image, to_pil
from ..files import atomic_folder, check_replaceable
from ..generators.base import Generator
from ..progress import progress_bar
from ..tokens.tokens import Tokens
from .generate import Precision, generate_batches
from .request import Request
from .sample_work import IMAGES, SampleWork, file_of, summary
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
    prompts: list[str] | None = None,
    negative_prompts: list[str] | None = None,
    sampling: Sampling | None = None,
    batch_size: int = 16,
    precision: Precision = "auto",
    compile: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
    progress: bool = True,
    name: str = "",
    processes: "PartialState | None" = None,
) -> dict[str, Any]:
    """Draw, decode and write one picture per label and seed.

    Finished batches are kept in `OUT.unfinished` when the call ends with an error, is interrupted
    or killed; with `resume` the next one goes on from there, to the same files.

    Args:
        generator: Generator in eval mode, as `load_generator` returns it.
        out: Folder to create, with `000000.png` and so on, `grid.png` (the first 64 images),
            `images.jsonl` and `tokens.safetensors`.
        labels: Class of each image, -1 for none.
        seeds: Seed of each image.
        prompts: Text of each image, "" for none; None: no texts.
        negative_prompts: Texts that guidance leads away from; None: away from no condition.
        sampling: Settings of the sampler; None: the generator's own.
        batch_size: Number of images drawn at once, per process.
        precision: Precision of the network, as in `generate`.
        compile: Whether to run the network through torch.compile, as in `generate`.
        resume: Whether to continue what an earlier call left unfinished, if it did.
        overwrite: Whether to replace existing samples that tessella wrote.
        inputs: Files and folders that are being read, which are never replaced.
        progress: Whether to show a progress bar on stderr.
        name: Name of the generator in the files, e.g. its path.
        processes: Processes that share the work, from `join_processes`; None: this one alone.

    Returns:
        On the main process `folder`, `images`, `resumed` (those found finished), `bits_per_image`,
        `images_per_second` and `sampling`; empty on the others.

    Raises:
        ValueError: If labels, seeds or settings do not fit the generator, or what is to be
            continued was begun with others; the message has the differences.
        FileExistsError: If `out` exists and must stay (see `files.check_replaceable`), or an
            unfinished folder does and there is no `resume`.
        SaveError: If writing fails.
    """
    sampling = with_steps(generator, choose_sampling(generator, sampling, {}))
    if not labels or len(labels) != len(seeds):
        raise ValueError(
            f"expected a label and a seed per image, found {len(labels)} and {len(seeds)}"
        )
    request = Request.make(
        generator, labels, seeds=seeds, prompts=prompts, negative_prompts=negative_prompts
    )
    # Checked here by every process, so that none waits for a main process that has failed.
    check_replaceable(out, "samples", overwrite=overwrite, inputs=inputs)
    rank, world = (processes.process_index, processes.num_processes) if processes else (0, 1)
    settings = {
        IMAGES: len(labels),
        "generator": generator.fingerprint,
        "tokenizer": generator.tokenizer.fingerprint,
        "name": name,
        "sampling": dataclasses.asdict(sampling),
        "labels": summary(labels),
        "seeds": summary(seeds),
        "batch size": batch_size,
        "processes": world,
        "precision": precision,
        "compile": compile,
        "attention": generator.attention,
        "device": request.seeds.device.type,
        "tessella": __version__,
        "torch": str(torch.__version__),
    }
    texts = {"prompts": prompts, "negative prompts": negative_prompts}
    settings |= {key: summary(given) for key, given in texts.items() if given is not None}
    if resume and None in settings.values():
        raise ValueError(
            "resume: this generator has no fingerprint, so it may be another one than before; "
            "save it and load it"
        )
    share = -(-len(request) // world)
    own = range(rank * share, min((rank + 1) * share, len(request)))
    parts = [
        range(i, min(i + batch_size, own.stop)) for i in range(own.start, own.stop, batch_size)
    ]
    with _shared_work(out, processes, settings, resume, overwrite) as work:
        found = {part.start: work.read(part.start, len(part)) for part in parts}
        packed = {start: rows for start, rows in found.items() if rows is not None}
        left = [part for part in parts if part.start not in packed]
        num_left = sum(map(len, left))
        started = time.perf_counter()
        silent, before = not progress or rank > 0, len(own) - num_left
        with progress_bar(len(own), "image", initial=before, silent=silent) as bar:
            batches = generate_batches(
                generator,
                request[torch.tensor([i for part in left for i in part], dtype=torch.int64)],
                sampling,
                batch_size=batch_size,
                precision=precision,
                compile=compile,
                advance=bar.update,
            )
            for part, tokens in zip(left, batches, strict=True):
                images = generator.tokenizer.decode(tokens).cpu()
                for number, image in zip(part, images, strict=True):
                    work.save(number, to_pil(image))
                packed[part.start] = tokens.pack().cpu()
                work.add(part.start, len(part), packed[part.start])
        seconds = time.perf_counter() - started
        everything = [(num_left, [packed[part.start] for part in parts])]
        if processes is not None:
            from accelerate.utils import gather_object

            everything = gather_object(everything)
        if rank == 0:
            writing = atomic_folder(
                out, kind="samples", overwrite=overwrite, inputs=inputs, flush=False
            )
            with writing as folder:
                work.give_to(folder, len(labels))
                rows = torch.cat([rows for _, batches in everything for rows in batches])
                Tokens.unpack(rows, generator.spec).save(folder / "tokens.safetensors")
                _describe(folder, generator, request, sampling, name)
    if rank > 0:
        return {}
    drawn = sum(count for count, _ in everything)
    return {
        "folder": str(out),
        "images": len(labels),
        "resumed": len(labels) - drawn,
        "bits_per_image": generator.spec.bits_per_image,
        "images_per_second": drawn / seconds,
        "sampling": dataclasses.asdict(sampling),
    }


def class_name(generator: Generator, label: int) -> str:
    """Title of a picture with this label: the class name, its number, or `any`."""
    if not 0 <= label < generator.num_classes:
        return "any"
    return generator.classes[label] if label < len(generator.classes) else str(label)


def _describe(
    folder: Path,
    generator: Generator,
    request: Request,
    sampling: Sampling,
    name: str,
) -> None:
    """Write the grid and the JSON lines of a folder that has all its pictures."""
    labels = [n if n < generator.num_classes else -1 for n in request.labels.tolist()]
    prompts, against = request.prompts, request.negative_prompts
    shown = range(min(len(labels), _GRID_IMAGES))
    names = [class_name(generator, label) for label in labels]
    pictures = [read_image(folder / file_of(i)) for i in shown]
    kinds = min(len(set(labels)), _GRID_COLUMNS)  # labels in turn: equal ones share a column
    columns = min(kinds * max(1, 8 // kinds), len(shown))
    titles = [(prompts and prompts[i]) or names[i] for i in shown]
    image_grid(pictures, columns, titles).save(folder / "grid.png")
    facts = {
        "generator": name,
        "fingerprint": generator.fingerprint,
        "tokenizer": generator.tokenizer.fingerprint,
        "attention": generator.attention,
        "sampling": dataclasses.asdict(sampling),
    }
    # What UTF-8 does not have, halves of characters in a prompt, is escaped as JSON escapes it.
    with (folder / RECORDS).open("w", encoding="utf-8", errors="backslashreplace") as lines:
        for i, (label, seed) in enumerate(zip(labels, request.seeds.tolist(), strict=True)):
            record = {"file": file_of(i), "seed": seed, "label": label, "class": names[i]}
            record |= {"prompt": prompts[i]} if prompts else {}
            record |= {"negative_prompt": against[i]} if against else {}
            record |= facts
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def _shared_work(
    out: Path,
    processes: "PartialState | None",
    settings: dict[str, Any],
    resume: bool,
    overwrite: bool,
) -> Iterator[SampleWork]:
    """Yield the unfinished folder, which the main process begins and ends, to all processes."""
    work, main = SampleWork(out), processes is None or processes.is_main_process
    failure: Exception | None = None
    if main:
        try:
            work.begin(settings, resume=resume, overwrite=overwrite)
        except Exception as error:
            failure = error
    if broadcast_from_main(None if failure is None else str(failure), processes) is not None:
        raise failure or ValueError("the main process could not begin")
    try:
        yield work
    except BaseException as error:
        if main:
            kept = len(work.pictures())
            work.end(keep=kept > 0)
            if kept:
                error.add_note(
                    f"{kept:,} of {settings[IMAGES]:,} pictures are kept in {work.path}; the same "
                    "again with resume (--resume) continues from there"
                )
        raise
    if main:
        work.end(keep=False)
    if processes is not None:
        processes.wait_for_everyone()
