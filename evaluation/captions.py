"""Captions of a split, each once: what samples are asked by, and what images are compared with."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..collectives import broadcast_from_main, gather_merged, own_share
from ..data.image_source import ImageSource
from ..data.images import BrokenImage
from ..generators.conditions import TextCondition
from ..progress import progress_bar
from .settings import EvaluationSettings


@dataclass(frozen=True)
class Captions:
    """Different captions in the order of their text, whatever the order of the images.

    Attributes:
        texts: Captions, each once.
        labels: Class of each: that of most of its images, the smallest of equally many; -1 is none.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def kept(self, keep: Callable[[str], bool]) -> "Captions":
        """Those captions for which a function is true."""
        rows = [row for row, text in enumerate(self.texts) if keep(text)]
        return Captions(
            tuple(self.texts[row] for row in rows), tuple(self.labels[row] for row in rows)
        )

    def choose(self, count: int, seed: int) -> list[int]:
        """Numbers of `count` captions in random order; each comes once before any comes twice.

        Args:
            count: Number of captions to choose.
            seed: Seed of the order.
        """
        rng = torch.Generator().manual_seed(seed)
        rounds = [torch.randperm(len(self), generator=rng) for _ in range(-(-count // len(self)))]
        return [int(number) for number in torch.cat(rounds)[:count]]

    def digest(self, *, with_labels: bool = False) -> str:
        """Hash of the captions, and of their classes if they matter: 8 hexadecimal digits."""
        return text_digest([*self.texts, *(self.labels if with_labels else ())])


NO_CAPTIONS = Captions((), ())


class _Table:
    """How often each caption has each class."""

    def __init__(self) -> None:
        self.classes: dict[str, Counter[int]] = {}

    def add(self, caption: str | None, label: int | None) -> None:
        """Add an image; one without a caption does not count."""
        if caption and caption.strip():
            classes = self.classes.setdefault(caption.strip(), Counter())
            classes[-1 if label is None else label] += 1

    def merge(self, other: "_Table") -> None:
        """Add the images of another process."""
        for caption, classes in other.classes.items():
            self.classes.setdefault(caption, Counter()).update(classes)


def read_captions(source: ImageSource, settings: EvaluationSettings) -> Captions:
    """The captions of all images of a source that can be read; every process gets all of them.

    Args:
        source: Source of the images.
        settings: Settings of the evaluation: the processes that share the work, progress.
    """
    own = own_share(len(source), settings.processes)
    silent = not settings.progress or settings.rank > 0

    def read() -> _Table:
        table, title = _Table(), f"{source.split} captions"
        with progress_bar(len(own), "image", title=title, silent=silent) as bar:
            for index in own:
                try:
                    sample = source.read(index)
                except BrokenImage:
                    continue  # a measurement names the images of its reference that are broken
                finally:
                    bar.update()
                table.add(sample.caption, sample.label)
        return table

    table = gather_merged(read, settings.processes)
    classes = {} if table is None else table.classes
    found = {text: min(counts, key=lambda n: (-counts[n], n)) for text, counts in classes.items()}
    texts = sorted(found)
    captions = Captions(tuple(texts), tuple(found[text] for text in texts))
    return broadcast_from_main(captions, settings.processes)


def readable_captions(captions: Captions, text: TextCondition) -> tuple[Captions, list[str]]:
    """Captions that a generator reads as a whole, and a sentence about the others, if any.

    Args:
        captions: Captions to choose from.
        text: Reader of text of the generator.
    """
    encoder, known = text.encoder, set(text.readable(captions.texts))
    found = captions.kept(known.__contains__)
    if len(found) == len(captions):
        return found, []
    unknown = sum(encoder.count(caption) == 0 for caption in captions.texts)
    long, reasons = len(captions) - len(found) - unknown, []
    if unknown:
        reasons.append(f"{unknown:,} without a word that its text encoder '{encoder.name}' knows")
    if long:
        reasons.append(f"{long:,} of more than {encoder.max_length:,} {encoder.unit}")
    return found, [
        f"The generator cannot read {len(captions) - len(found):,} of {len(captions):,} captions, "
        f"and was not asked for them: {' and '.join(reasons)}."
    ]


def text_digest(values: list[str | int]) -> str:
    """Hash of texts and numbers in their order: 8 hexadecimal digits."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]
