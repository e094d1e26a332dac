"""Originals and their reconstructions: what is measured of them, batch by batch."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.image_source import DataError, ImageSource
from ..data.images import to_uint8
from ..metrics.image import ReconstructionMeter
from ..metrics.image_hash import ImageHash
from ..metrics.perceptual import PerceptualDistance
from ..metrics.presets import MIN_IMAGES, Preset
from ..metrics.protocol import Protocol
from ..metrics.token_statistics import TokenStatistics
from ..tokens.tokens import Tokens, TokenSpec
from .calibration import Calibration
from .image_set import ImageSet, Networks, distances
from .image_table import ImageTable


@dataclass(frozen=True, kw_only=True, eq=False)
class Measures:
    """Metrics to measure of reconstructions, besides the errors of pixels, which always are.

    Attributes:
        distance: Perceptual distance of each pair; None: none.
        networks: Networks of the distances between the two sets; None: no such distances.
        spec: Spec of the tokens, for the statistics of their codes; None: no such statistics.
        bank: Largest number of images whose features are kept for the metrics of pairs.
    """

    distance: PerceptualDistance | None = None
    networks: Networks | None = None
    spec: TokenSpec | None = None
    bank: int = 0


class Reconstructed:
    """Originals and their reconstructions: everything that is measured of them.

    Args:
        measures: Metrics to measure.

    Attributes:
        originals: Statistics of the set of originals, or None.
        images: Statistics of the set of reconstructions, or None.
        tokens: Statistics of the tokens, or None.
        meter: Errors of the pixels.
        table: Values of each image; None before the first batch.
        broken: Reason by id of each image that could not be read.
        seconds: Time that encoding and decoding took, in seconds.
    """

    def __init__(self, measures: Measures) -> None:
        networks, distance = measures.networks, measures.distance
        self.originals, self.images = (
            None if networks is None else ImageSet(networks, most=measures.bank) for _ in range(2)
        )
        self.tokens = None if measures.spec is None else TokenStatistics(measures.spec)
        self.meter = ReconstructionMeter()
        self.table: ImageTable | None = None
        self.perceptual = "" if distance is None else distance.id.partition("#")[0]
        self.classifier = "" if networks is None else networks.classifier_id.partition("#")[0]
        self.broken: dict[str, str] = {}
        self.seconds = 0.0
        self._pixels = ImageHash()  # of the originals, where they are in no `ImageSet`

    def __len__(self) -> int:
        return int(self.meter.num_images)

    @property
    def reference_hash(self) -> str:
        """Hash of the pixels of all originals: 16 hexadecimal digits."""
        if self.originals is not None:
            return self.originals.identity(with_labels=False)
        return self._pixels.hexdigest()[:16]

    def add(
        self, batch: dict[str, Any], pixels: Tensor, tokens: Tokens, measures: Measures
    ) -> None:
        """Measure a batch.

        Args:
            batch: Originals, a batch of `eval_batches`.
            pixels: Reconstructions, uint8 (B, 3, H, W), on the device of the networks.
            tokens: Tokens of the images.
            measures: Metrics to measure, those that the constructor was given.

        Raises:
            ValueError: If a feature is not finite.
        """
        originals = to_uint8(batch["images"]).to(pixels.device)
        numbers, labels = batch["numbers"], batch["labels"]
        agreement: dict[str, Tensor] = {}
        if measures.networks is None or self.originals is None or self.images is None:
            self._pixels.update(originals)
        else:
            before, after = measures.networks.look(originals), measures.networks.look(pixels)
            keys = self.originals.update(before, originals, numbers, labels)
            self.images.update(after, pixels, numbers, labels, keys=keys)
            if before.logits is not None and after.logits is not None:
                same = before.logits.argmax(1) == after.logits.argmax(1)
                agreement[f"class_agreement@{self.classifier}"] = same
        if self.tokens is not None:
            self.tokens.update(tokens)
        values = self.meter.update(originals, pixels)
        if measures.distance is not None:
            values |= {self.perceptual: measures.distance(originals, pixels)}
        values |= agreement
        if self.table is None:
            self.table = ImageTable(tuple(values))
        self.table.update(values, numbers, labels)

    def merge(self, other: "Reconstructed") -> None:
        """Add the share that another process measured."""
        for mine, theirs in ((self.originals, other.originals), (self.images, other.images)):
            if mine is not None and theirs is not None:
                mine.merge(theirs)
        if self.tokens is not None and other.tokens is not None:
            self.tokens.merge(other.tokens)
        self.meter.merge(other.meter)
        if self.table is None:
            self.table = other.table
        elif other.table is not None:
            self.table.merge(other.table)
        self._pixels.merge(other._pixels)
        self.broken |= other.broken
        self.seconds = max(self.seconds, other.seconds)

    def check_readable(self, source: ImageSource, num: int) -> None:
        """Refuse fewer images than every metric can be computed on.

        Args:
            source: Source of the originals.
            num: Number of images that were to be read.

        Raises:
            DataError: With the number of images that could be read.
        """
        if len(self) < MIN_IMAGES:
            raise DataError(
                f"{source.name} ({source.split}): {len(self)} of {num} images could be read, "
                f"expected at least {MIN_IMAGES}"
            )

    def protocol(
        self, source: ImageSource, preset: Preset, resolution: int, measures: Measures
    ) -> Protocol:
        """The protocol of the numbers, on the main process, which has all images.

        Args:
            source: Source of the originals.
            preset: Rules of the protocol.
            resolution: Side of the images in pixels.
            measures: Metrics that were measured.
        """
        networks, distance = measures.networks, measures.distance
        return preset.bind(
            task="reconstructions",
            resolution=resolution,
            features="none" if networks is None else networks.extractor.id,
            feature_resize="none" if networks is None else networks.extractor.resize_rule,
            classifier="none" if networks is None else networks.classifier_id,
            perceptual="none" if distance is None else distance.id,
            reference=f"originals of {source.name} ({source.split})",
            reference_hash=self.reference_hash,
            reference_images=len(self),
            num_samples=len(self),
            class_balance="none",
        )

    def metrics(
        self,
        protocol: Protocol,
        *,
        calibration: Calibration | None,
        seed: int,
        device: str | torch.device = "cpu",
    ) -> dict[str, float]:
        """Every metric by name: of the two sets, of the pairs of images, of the tokens.

        Args:
            protocol: Protocol of the numbers.
            calibration: What noise gets, which decides on the metrics of pairs; None only where
                the distances of the two sets are not measured.
            seed: Seed of the subsets of KID.
            device: Device to compare features on.
        """
        values: dict[str, float] = {}
        if self.images is not None and self.originals is not None:
            assert calibration is not None, "metrics of pairs are calibrated"
            values, _ = distances(self.images, self.originals, protocol, seed=seed, device=device)
            values = calibration.kept(values)
        values |= self.pair_metrics()
        return values | ({} if self.tokens is None else self.tokens.compute())

    def pair_metrics(self) -> dict[str, float]:
        """Metrics of the pairs of images: those of `ReconstructionMeter`, then all others."""
        pixels = {name: v for name, v in self.meter.compute().items() if name != "num_images"}
        means = {} if self.table is None else self.table.means()
        return pixels | {name: means[name] for name in means if name not in pixels}
