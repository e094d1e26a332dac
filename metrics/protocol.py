"""Measurement protocols: everything besides the model that a metric value depends on.

Published FIDs differ by how floats become 8 bits, how images are resized, which port of the network
computes the features, what the images are compared with and how many there are. A `Protocol` holds
all of these; its `id` is stored with every `MetricValue`, and comparing values of different ids is
an error. `presets.py` defines the protocols by name.
"""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import torch
from torch import Tensor

from ..data.images import to_uint8
from ..data.transforms import ResizeRule

Task = Literal["samples", "reconstructions"]
Rounding = Literal["round", "truncate"]
ClassBalance = Literal["reference", "equal", "uniform", "none"]
Conditions = Literal["labels", "captions", "both"]
Better = Literal["lower", "higher", "none"]

GUIDANCE = "uncond + scale * (cond - uncond); 1 = off"
SEEDS = "image i of repetition r has seed BASE + r * num_samples + i, on any process"
AS_GIVEN = "as given"
"""Value of protocol fields that are unknown because another program made the images."""
LATER = {"conditions": "labels", "alignment": "none"}
"""Fields that came later, and the values with which they are no part of the id: what was measured
before there were captions has the id that it had."""


class ProtocolError(ValueError):
    """Raised for a measurement that the requested protocol does not allow."""


class ProtocolMismatch(ProtocolError):
    """Raised for a comparison of values of different metrics or protocols."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Complete description of how a set of images was measured.

    Attributes:
        name: Name of the preset.
        task: `samples` of a generator, or `reconstructions` of a tokenizer.
        resolution: Side of the images in pixels.
        resize: Rule by which real images were resized (`data.transforms.fit`).
        crop: Crop after resizing.
        rounding: Rule by which floats in [-1, 1] became 8-bit pixels (`to_pixels`).
        features: Feature network of the distances and the hash of its weights, `NAME#HASH`.
        feature_resize: Resizing inside that network, in words.
        classifier: Network of the class score and its hash, or `none`.
        perceptual: Perceptual distance and the hash of its weights, or `none`.
        reference: Data set and split that the images were compared with, in words. Not part of the
            id, since the same folder may have many names; `reference_hash` is part of it.
        reference_hash: Hash of the pixels of the reference images (`ImageHash`) and, where the
            class balance is that of the reference, of their labels: first 16 hexadecimal digits.
        reference_images: Number of reference images.
        num_samples: Number of images measured, per repetition.
        class_balance: Labels of samples: proportions of the `reference`, `equal` numbers of each
            class, drawn `uniform`ly at random, those of the images of the `captions`, or `none`;
            for given images `as given` with a hash of their numbers per class.
        sample_bank: Largest number of samples in the metrics that compare all pairs (KID,
            precision, recall, density, coverage): the first samples.
        reference_bank: Largest number of reference images in those metrics: the images with the
            smallest digests. For reconstructions, the reconstructions of the same originals.
        kid_subsets: Number of random subsets of KID.
        kid_subset_size: Number of images of a subset.
        pr_neighbours: Number k of neighbours for precision and recall.
        dc_neighbours: Number k of neighbours for density and coverage.
        guidance: Convention of guidance scales.
        seeds: Rule of seeds.
        version: Version of the meaning of these fields.
        conditions: What samples were asked by: `labels`, if there are any (see `class_balance`), or
            `captions` or `labels and captions` of the reference with the number of different
            captions and a hash of them; for given images with captions `as given` with a hash.
        alignment: Network and vectors of the alignment of images and captions with their hashes,
            and numbers and hash of what it learned from and chooses among; `none`: it was not
            measured.
    """

    name: str
    task: Task
    resolution: int
    resize: ResizeRule
    crop: str
    rounding: str
    features: str
    feature_resize: str
    classifier: str
    perceptual: str
    reference: str
    reference_hash: str
    reference_images: int
    num_samples: int
    class_balance: str
    sample_bank: int
    reference_bank: int
    kid_subsets: int
    kid_subset_size: int
    pr_neighbours: int = 3
    dc_neighbours: int = 5
    guidance: str = GUIDANCE
    seeds: str = SEEDS
    version: int = 1
    conditions: str = LATER["conditions"]
    alignment: str = LATER["alignment"]

    @property
    def id(self) -> str:
        """Name of the preset and 8 digits of a hash of the fields, e.g. `bundled-1a2b3c4d`."""
        fields = dataclasses.asdict(self)
        del fields["reference"]
        for name, unused in LATER.items():
            if fields[name] == unused:
                del fields[name]
        text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def smaller_side(self) -> int:
        """Number of images on the smaller side of the comparison."""
        return min(self.num_samples, self.reference_images)

    def to_dict(self) -> dict[str, Any]:
        """Id and all fields, for JSON."""
        return {"id": self.id} | dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Protocol":
        """Protocol from the dict that `to_dict` returned.

        Raises:
            ProtocolError: If a field is missing or unknown, or the id is not that of the fields.
        """
        if not isinstance(stored, dict):
            raise ProtocolError(f"not a protocol: expected a mapping, found {stored!r}")
        fields = {name: value for name, value in stored.items() if name != "id"}
        try:
            protocol = cls(**fields)
            found = protocol.id
        except TypeError as error:
            raise ProtocolError(f"not a protocol: {str(error).split('__init__() ')[-1]}") from None
        if stored.get("id") != found:
            raise ProtocolError(
                f"the protocol's fields were changed: their id is {protocol.id}, "
                f"found {stored.get('id')}"
            )
        return protocol


@dataclass(frozen=True, kw_only=True)
class MetricValue:
    """A measured value together with the id of its protocol.

    Subtraction, `<` and `<=` work only between values of one metric and one protocol.

    Attributes:
        metric: Name of the metric, e.g. `FID`.
        values: Values, one per repetition.
        protocol: Id of the protocol.
        better: Direction in which values are better.
        about: Description in one line.
        group: Kind of metric: distribution, alignment, pixels, perception, codes, memorisation or
            speed.
    """

    metric: str
    values: tuple[float, ...]
    protocol: str
    better: Better = "none"
    about: str = ""
    group: str = "distribution"

    @property
    def mean(self) -> float:
        """Mean over repetitions."""
        return sum(self.values) / len(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over repetitions (divided by n - 1); None for a single value."""
        if len(self.values) < 2:
            return None
        mean = self.mean
        return math.sqrt(sum((v - mean) ** 2 for v in self.values) / (len(self.values) - 1))

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"{self.metric}: expected at least one value, found none")

    def __sub__(self, other: "MetricValue") -> float:
        self.require_comparable(other)
        return self.mean - other.mean

    def __lt__(self, other: "MetricValue") -> bool:
        self.require_comparable(other)
        return self.mean < other.mean

    def __le__(self, other: "MetricValue") -> bool:
        self.require_comparable(other)
        return self.mean <= other.mean

    def require_comparable(self, other: "MetricValue") -> None:
        """Refuse a value of another metric or protocol.

        Raises:
            ProtocolMismatch: With both metrics and protocols.
        """
        if not isinstance(other, MetricValue):
            raise ProtocolMismatch(
                f"not comparable: {self.metric} under {self.protocol} and {other!r}, which is no "
                "MetricValue"
            )
        if (self.metric, self.protocol) != (other.metric, other.protocol):
            raise ProtocolMismatch(
                f"not comparable: {self.metric} under {self.protocol} "
                f"and {other.metric} under {other.protocol}"
            )

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" ± {self.spread:.2g}"
        return f"{self.metric} {self.mean:.5g}{spread} ({self.protocol})"

    def to_dict(self) -> dict[str, Any]:
        """All attributes with mean and spread, for a report."""
        return {
            "mean": self.mean,
            "spread": self.spread,
            "values": list(self.values),
            "unit": "",
            "better": self.better,
            "protocol": self.protocol,
            "about": self.about,
            "group": self.group,
        }


def differing_fields(a: Protocol, b: Protocol) -> dict[str, tuple[Any, Any]]:
    """Fields in which two protocols differ, with both values."""
    left, right = dataclasses.asdict(a), dataclasses.asdict(b)
    return {name: (left[name], right[name]) for name in left if left[name] != right[name]}


def to_pixels(images: Tensor, rounding: Rounding) -> Tensor:
    """Convert floats in [-1, 1] to 8-bit pixels by the rounding rule of a protocol.

    `round` is the rule of this package, round(127.5 (x + 1)); `truncate` drops the fraction
    instead, as many published evaluations do, which darkens images by half a pixel value.

    Args:
        images: Float images of any shape; values outside [-1, 1] saturate.
        rounding: Rounding rule.

    Returns:
        uint8 pixels, same shape and device.

    Raises:
        ValueError: If the dtype is not float, or a value is not finite.
    """
    match rounding:
        case "round":
            return to_uint8(images)
        case "truncate":
            to_uint8(images)  # for its checks of dtype and values
            return images.detach().float().add(1).mul_(127.5).clamp_(0, 255).to(torch.uint8)
        case _:
            assert_never(rounding)


def as_floats(pixels: Tensor) -> Tensor:
    """Convert 8-bit pixels to floats in [-1, 1]; `to_uint8` inverts this exactly."""
    return pixels.float().div_(127.5).sub_(1)
