"""The page of the demo: one HTML file with its pictures inside, which opens without a network."""

import io
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .._version import __version__
from ..evaluation.report.page import png_uri, render_page
from ..files import atomic_file
from ..generators.base import Generator
from ..tokenizers.base import Tokenizer
from .shipped import Drawn, Encoded, Inpainted
from .tuning import Tuned

_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Shown:
    """What the page shows of the shipped models.

    Args:
        generator: Generator with its tokenizer.
        words: Pictures by words.
        classes: Pictures by classes.
        encoded: A picture as tokens.
        picture: What that picture is.
        edited: A picture with a part drawn anew.
        seconds: Seconds that all of it took, loading of the models included.
    """

    generator: Generator
    words: list[Drawn]
    classes: list[Drawn]
    encoded: Encoded
    picture: str
    edited: Inpainted
    seconds: float


def write_page(path: Path, shown: Shown, *, status: str, tuned: Tuned | None = None) -> None:
    """Write the page; a reader sees the old one or the new one.

    Args:
        path: HTML file.
        shown: What the shipped models did.
        status: What is told of the fine-tuning while there is none.
        tuned: The fine-tuning.

    Raises:
        SaveError: If it cannot be written.
    """
    sections = [("words", "words")] * bool(shown.words) + [("classes", "classes")] * bool(
        shown.classes
    )
    sections += [("bits", "bits"), ("edit", "a part drawn anew"), ("tuning", "fine-tuning")]
    generator, edited = shown.generator, shown.edited
    text = render_page(
        "demo.html",
        folder=_TEMPLATES,
        sections=sections,
        seconds=f"{shown.seconds:.0f}",
        generator=_model(generator),
        tokenizer=_model(generator.tokenizer),
        words=_rows(shown.words),
        classes=_rows(shown.classes),
        encoded=_encoded(shown.encoded, shown.picture),
        edited={
            "original": _picture(edited.original),
            "hidden": _picture(edited.hidden),
            "pictures": [_picture(one) for one in edited.pictures],
            "name": edited.name,
        },
        status=status,
        tuned=None if tuned is None else _tuned(tuned),
        commands=_commands(generator),
        version=__version__,
        machine=_machine(),
    )
    with atomic_file(path) as file:
        file.write_text(text, encoding="utf-8")


def _tuned(tuned: Tuned) -> dict[str, Any]:
    before, after, written = tuned.before, tuned.after, tuned.written
    seconds = sum(taken for _, taken in tuned.stages)
    used = f"{written.train:,}"
    if written.train < written.there - written.broken:
        used += f" of {written.there:,}"
    about = (
        f"In {seconds / 60:.1f} minutes, starting from the shipped models, with {used} pictures of "
        f"{tuned.name}. None of the held-out pictures was trained on: all {written.val} that "
        f"were kept apart come back with {before.decibels:.2f} dB before and "
        f"{after.decibels:.2f} dB after."
    )
    if written.broken:
        about += f" {written.broken} pictures could not be read."
    names = [[("", "", [{"data": "", "name": name} for name in tuned.names])]] * any(tuned.names)
    samples = [
        ("before", "shipped models", _pictures(before.samples)),
        ("after", "tuned models", _pictures(after.samples)),
    ]
    return {
        "about": about,
        "reconstructions": [
            ("original", "", _pictures(tuned.originals)),
            ("before", f"{before.decibels:.2f} dB", _pictures(before.reconstructions)),
            ("after", f"{after.decibels:.2f} dB", _pictures(after.reconstructions)),
        ],
        "samples": [*samples, *(row for rows in names for row in rows)],
        "stages": [
            (name, f"{taken:.1f}") for name, taken in [*tuned.stages, ("all of it", seconds)]
        ],
        "how": f"The tokenizer saw {tuned.seen[0]:,} pictures, augmented ones counted each time. "
        "The pictures were then encoded with the tuned tokenizer, and the generator saw "
        f"{tuned.seen[1]:,} of these codes, repetitions counted. PSNR: mean over pictures.",
    }


def _encoded(encoded: Encoded, about: str) -> dict[str, Any]:
    rows, columns = encoded.shape
    tokens = encoded.weights[0]
    return {
        "original": _picture(encoded.original),
        "tokens": _picture(encoded.tokens),
        "decoded": _picture(tokens.picture),
        "bits_text": f"{encoded.bits:,}",
        "count": f"{rows} by {columns}",
        "about": about,
        "rows": [
            (w.name, f"{encoded.bits if w is tokens else 8 * w.num_bytes:,}", f"{w.num_bytes:,}",
             "exact" if w.decibels >= 100 else f"{w.decibels:.1f}")
            for w in encoded.weights
        ],
    }  # fmt: skip


def _commands(generator: Generator) -> str:
    """Commands that go on from here."""
    how = '--prompt "red apple"' if generator.reads_text else "--num 16"
    return "\n".join(
        [
            f"tessella sample --generator {generator.origin} {how} --out runs/samples",
            "make demo DEMO='--data path/to/your/pictures --minutes 6'",
        ]
    )


def _model(model: Generator | Tokenizer) -> dict[str, str]:
    parameters = model.num_parameters()["total"]
    return {"name": str(model.origin), "about": f"{parameters / 1e6:.1f} million weights"}


def _rows(drawn: Sequence[Drawn]) -> list[dict[str, Any]]:
    return [{"name": one.name, "pictures": _pictures(one.pictures)} for one in drawn]


def _pictures(images: Sequence[Image.Image]) -> list[dict[str, Any]]:
    return [_picture(image) for image in images]


def _picture(image: Image.Image) -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return {"data": png_uri(file.getvalue()), "width": image.width, "height": image.height}


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _machine() -> str:
    count = f"{cores()} core" + "s" * (cores() != 1)
    return f"{platform.system()} {platform.machine()}, {count}, torch {torch.__version__}"
