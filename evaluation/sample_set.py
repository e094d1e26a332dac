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
from ..metrics.protocol import AS_GIVEN, LATER, ClassBalance, Conditions, Protocol
from ..metrics.token_statistics import TokenStatistics
from ..tokens.tokens import Tokens
from .alignment import Alignment, CaptionedImages
from .calibration import Calibration
from .captions import NO_CAPTIONS, Captions, text_digest
from .image_set import ImageSet, Networks
from .settings import EvaluationSettings


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Rules of a measurement of samples, known before any image is looked at.

    Attributes:
        settings: Settings of the evaluation; `settings.preset` is the protocol asked for.
        resolution: Side of the samples in pixels.
        num_classes: Number of classes that labels of samples come from; 0: samples have no labels.
        label_rule: Rule that gives every sample its label, where labels alone are asked for.
        drawn: True if this program draws the samples, False if they were made elsewhere.
        conditions: What samples are asked by.
        given_captions: Captions of samples that were made elsewhere, as far as they have any.
    """

    settings: EvaluationSettings
    resolution: int
    num_classes: int
    label_rule: ClassBalance
    drawn: bool
    conditions: Conditions = "labels"
    given_captions: tuple[str, ...] = ()

    @property
    def captioned(self) -> bool:
        """Whether samples have captions."""
        return self.conditions != "labels" or any(self.given_captions)


@dataclass(frozen=True, kw_only=True, eq=False)
class Texts:
    """Captions of a reference.

    Attributes:
        captions: All of them.
        asked: Those that samples are asked by.
        alignment: How images and captions are compared; None: they are not.
    """

    captions: Captions = NO_CAPTIONS
    asked: Captions = NO_CAPTIONS
    alignment: Alignment | None = None


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
        texts: Captions of the reference, where samples have captions.
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
    texts: Texts
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class SampleBatch:
    """Some samples of a set.

    Attributes:
        pixels: 8-bit images, uint8 (B, 3, H, W), on any device.
        numbers: Places of the images in their set, int64 (B,).
        labels: Classes, int64 (B,); -1 is none.
        captions: Captions, B of them; an empty one is none.
        tokens: Tokens that the images were decoded from, or None.
    """

    pixels: Tensor
    numbers: Tensor
    labels: Tensor
    captions: Sequence[str]
    tokens: Tokens | None = None


class DrawnSet:
    """Banks that a set of samples fills batch by batch, so that it is never in memory as a whole.

    Args:
        images: Empty statistics of what the networks see.
        tokens: Empty statistics of the tokens, or None.
        num_first: Number of samples, the first ones, whose features also fill `first`: a Fréchet
            distance that compares with that of a floor of this size.
        num_kept: Number of samples, the first ones, whose pixels are kept.
        alignment: How images and captions are compared; None: they are not.

    Attributes:
        twins: Finder of near copies among the samples.
        captioned: What the network of the alignment sees of samples with captions, or None.
        kept: Pixels, uint8 (3, H, W), label and caption of each kept sample, by its number.
        seconds: Time that drawing took, without the measuring, in seconds.
    """

    def __init__(
        self,
        images: ImageSet,
        tokens: TokenStatistics | None,
        *,
        num_first: int,
        num_kept: int,
        alignment: Alignment | None = None,
    ) -> None:
        self.images, self.tokens, self.twins = images, tokens, DuplicateFinder()
        pooled = images.pooled
        self.first = FrechetStatistics(pooled.num_features, extractor_id=pooled.extractor_id)
        self.num_first, self.num_kept = num_first, num_kept
        self.captioned = None if alignment is None else CaptionedImages(alignment.extractor)
        self.kept: dict[int, tuple[Tensor, int, str]] = {}
        self.seconds = 0.0

    def add(self, batch: SampleBatch, reference: Reference) -> None:
        """Show a batch to the networks of a reference and add what they see to all banks."""
        networks, alignment = reference.networks, reference.texts.alignment
        seen, pixels = networks.look(batch.pixels), batch.pixels.cpu()
        if self.captioned is not None and alignment is not None:
            features = alignment.look(batch.pixels, seen, networks)
            self.captioned.update(features.cpu(), batch.numbers, batch.captions)
        self.images.update(seen, pixels, batch.numbers, batch.labels, keys=batch.numbers)
        self.twins.update(pixels, batch.numbers)
        self.first.update(seen.pooled.cpu()[batch.numbers < self.num_first])
        if self.tokens is not None and batch.tokens is not None:
            self.tokens.update(batch.tokens)
        for row, number in enumerate(batch.numbers.tolist()):
            if number < self.num_kept:
                caption = batch.captions[row]
                self.kept[number] = pixels[row].clone(), int(batch.labels[row]), caption

    def merge(self, other: "DrawnSet") -> None:
        """Add the share of the set that another process drew."""
        self.images.merge(other.images)
        self.twins.merge(other.twins)
        self.first.merge(other.first)
        if self.tokens is not None and other.tokens is not None:
            self.tokens.merge(other.tokens)
        if self.captioned is not None and other.captioned is not None:
            self.captioned.merge(other.captioned)
        self.kept |= other.kept
        self.seconds = max(self.seconds, other.seconds)

    def pictures(self, count: int) -> tuple[Tensor, list[int], list[str]]:
        """Pixels of at most `count` first samples, uint8 (n, 3, H, W), labels and captions."""
        rows = [self.kept[number] for number in sorted(self.kept)[:count]]
        pixels, labels, captions = zip(*rows, strict=True)
        return torch.stack(pixels), list(labels), list(captions)


def bind_protocol(
    rules: Rules,
    reference: Reference,
    num_samples: int,
    *,
    balance: str | None = None,
    real: bool = False,
) -> Protocol:
    """The protocol of a set of samples, on the main process, which has the whole reference.

    Args:
        rules: Rules of the measurement.
        reference: Real images that the set is compared with.
        num_samples: Number of images in the set.
        balance: Distribution of the labels in words; None: that of the label rule, or of captions.
        real: Whether the set is of real images, which nobody asked for.
    """
    both, conditions = rules.conditions == "both", LATER["conditions"]
    if rules.conditions != "labels" and not real:
        kind = "labels and captions" if both else "captions"
        digest = reference.texts.asked.digest(with_labels=both)
        conditions = f"{len(reference.texts.asked):,} {kind} of the reference, #{digest}"
    elif rules.captioned and reference.texts.alignment is not None and not real:
        conditions = f"{AS_GIVEN}, #{text_digest(sorted(rules.given_captions))}"
    if balance is None:
        balance = "captions" if both else rules.label_rule
        if balance not in ("reference", "none", "captions"):
            balance = f"{balance} over {rules.num_classes} classes"
    with_labels, alignment = rules.label_rule == "reference", reference.texts.alignment
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
        conditions=conditions,
        alignment=LATER["alignment"] if alignment is None else alignment.rule,
        drawn=rules.drawn,
    )


def same_classes(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    """Whether two lists of class names fit; lists without names, or of mere numbers, always do."""
    numbered = any(list(names) == [str(i) for i in range(len(names))] for names in (ours, theirs))
    return numbered or tuple(ours) == tuple(theirs)


def few_names(names: Sequence[str]) -> str:
    """The first four names, for a message."""
    return ", ".join(names[:4]) + (" ..." if len(names) > 4 else "") or "none"
