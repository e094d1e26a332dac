"""What travels between the steps of a measurement of samples, in the order of the steps.

`Rules` are resolved, a `Reference` is opened under them, each `SampleBatch` that is drawn fills the
banks of a `DrawnSet`. `bind_protocol` gives the protocol that the numbers of such a set have. The
steps themselves are in `samples.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.image_source import ImageSource
from ..metrics.duplicates import DuplicateFinder
from ..metrics.frechet import FrechetStatistics
from ..metrics.protocol import ClassBalance, Protocol
from ..metrics.token_statistics import TokenStatistics
from ..tokens.tokens import Tokens
from .calibration import Calibration
from .image_set import ImageSet, Networks
from .settings import EvaluationSettings


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Rules of a measurement of samples, known before any image is looked at.

    Attributes:
        settings: Settings of the evaluation; `settings.preset` is the protocol asked for.
        resolution: Side of the samples in pixels.
        num_classes: Number of classes that labels of samples come from; 0: samples have no labels.
        label_rule: Rule that gives every sample its label.
        drawn: True if this program draws the samples, False if they were made elsewhere.
    """

    settings: EvaluationSettings
    resolution: int
    num_classes: int
    label_rule: ClassBalance
    drawn: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """Real images that samples are compared with, as the networks of the protocol see them.

    Attributes:
        source: Source of the reference images.
        networks: Networks that look at reference, floor and samples alike.
        images: Statistics of the reference; complete on the main process only, the others have its
            number of images of each class.
        class_counts: Number of reference images of each class, int64 (num_classes,).
        num: Number of samples per repetition.
        validation: Source of the floor: real images that the samples' model was not trained on;
            None: no floor was asked for.
        floor: Statistics of the validation images, or None.
        calibration: What noise and real images get in the metrics of pairs; None on the processes
            that do not have the whole reference.
        notes: Sentences for the report, e.g. why there is no floor.
    """

    source: ImageSource
    networks: Networks
    images: ImageSet
    class_counts: Tensor
    num: int
    validation: ImageSource | None
    floor: ImageSet | None
    calibration: Calibration | None
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class SampleBatch:
    """Some samples of a set.

    Attributes:
        pixels: 8-bit images, uint8 (B, 3, H, W), on any device.
        numbers: Places of the images in their set, int64 (B,).
        labels: Classes, int64 (B,); -1 is none.
        tokens: Tokens that the images were decoded from, or None.
    """

    pixels: Tensor
    numbers: Tensor
    labels: Tensor
    tokens: Tokens | None = None


class DrawnSet:
    """Banks that a set of samples fills batch by batch, so that it is never in memory as a whole.

    Args:
        images: Empty statistics of what the networks see.
        tokens: Empty statistics of the tokens, or None.
        num_first: Number of samples, the first ones, whose features also fill `first`: a Fréchet
            distance that compares with that of a floor of this size.
        num_kept: Number of samples, the first ones, whose pixels are kept.

    Attributes:
        twins: Finder of near copies among the samples.
        kept: Pixels, uint8 (3, H, W), and label of each kept sample, by its number.
        seconds: Time that drawing took, without the measuring, in seconds.
    """

    def __init__(
        self, images: ImageSet, tokens: TokenStatistics | None, *, num_first: int, num_kept: int
    ) -> None:
        self.images, self.tokens, self.twins = images, tokens, DuplicateFinder()
        pooled = images.pooled
        self.first = FrechetStatistics(pooled.num_features, extractor_id=pooled.extractor_id)
        self.num_first, self.num_kept = num_first, num_kept
        self.kept: dict[int, tuple[Tensor, int]] = {}
        self.seconds = 0.0

    def add(self, batch: SampleBatch, networks: Networks) -> None:
        """Show a batch to the networks and add what they see to all banks."""
        seen, pixels = networks.look(batch.pixels), batch.pixels.cpu()
        self.images.update(seen, pixels, batch.numbers, batch.labels, keys=batch.numbers)
        self.twins.update(pixels, batch.numbers)
        self.first.update(seen.pooled.cpu()[batch.numbers < self.num_first])
        if self.tokens is not None and batch.tokens is not None:
            self.tokens.update(batch.tokens)
        for row, number in enumerate(batch.numbers.tolist()):
            if number < self.num_kept:
                self.kept[number] = pixels[row].clone(), int(batch.labels[row])

    def merge(self, other: "DrawnSet") -> None:
        """Add the share of the set that another process drew."""
        self.images.merge(other.images)
        self.twins.merge(other.twins)
        self.first.merge(other.first)
        if self.tokens is not None and other.tokens is not None:
            self.tokens.merge(other.tokens)
        self.kept |= other.kept
        self.seconds = max(self.seconds, other.seconds)

    def pictures(self, count: int) -> tuple[Tensor, list[int]]:
        """Pixels of at most `count` first samples, uint8 (n, 3, H, W), and their labels."""
        rows = [self.kept[number] for number in sorted(self.kept)[:count]]
        return torch.stack([pixels for pixels, _ in rows]), [label for _, label in rows]


def bind_protocol(
    rules: Rules, reference: Reference, num_samples: int, *, balance: str | None = None
) -> Protocol:
    """The protocol of a set of samples, on the main process, which has the whole reference.

    Args:
        rules: Rules of the measurement.
        reference: Real images that the set is compared with.
        num_samples: Number of images in the set.
        balance: Distribution of the labels in words; None: that of the label rule.
    """
    if balance is None:
        balance = rules.label_rule
        if balance not in ("reference", "none"):
            balance = f"{balance} over {rules.num_classes} classes"
    with_labels = rules.label_rule == "reference"
    return rules.settings.preset.bind(
        task="samples",
        resolution=rules.resolution,
        features=reference.networks.extractor.id,
        feature_resize=reference.networks.extractor.resize_rule,
        classifier=reference.networks.classifier_id,
        perceptual="none",
        reference=f"{reference.source.name} ({reference.source.split})",
        reference_hash=reference.images.identity(with_labels=with_labels),
        reference_images=len(reference.images),
        num_samples=num_samples,
        class_balance=balance,
        drawn=rules.drawn,
    )


def same_classes(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    """Whether two lists of class names fit; lists without names, or of mere numbers, always do."""
    numbered = any(list(names) == [str(i) for i in range(len(names))] for names in (ours, theirs))
    return numbered or tuple(ours) == tuple(theirs)


def few_names(names: Sequence[str]) -> str:
    """The first four names, for a message."""
    return ", ".join(names[:4]) + (" ..." if len(names) > 4 else "") or "none"
