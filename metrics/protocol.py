"""What a number depends on besides the model, as one hashed value.

FIDs in this field differ by how floats become 8 bits, how images are resized, which port of the
network looked at them, what they were compared with and how many there were. A `Protocol` holds
all of it; its `id` goes with every `MetricValue`, and values of different ids refuse to be
compared. `presets.py` has the protocols by name.
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
Better = Literal["lower", "higher", "none"]

GUIDANCE = "uncond + scale * (cond - uncond); 1 = off"
SEEDS = "image i of repetition r has seed BASE + r * num_samples + i, on any process"
AS_GIVEN = "as given"
"""What nobody here decided: how images came about that another program made."""


class ProtocolError(ValueError):
    """What cannot be measured under the protocol asked for."""


class ProtocolMismatch(ProtocolError):
    """Two numbers that were not measured alike."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a set of images was measured, complete.

    Attributes:
        name: The preset.
        task: `samples` of a generator, or `reconstructions` of a tokenizer.
        resolution: Side of the images in pixels.
        resize: How real images came to it (`data.transforms.fit`).
        crop: What was cut after resizing.
        rounding: How floats in [-1, 1] became 8 bits (`to_pixels`).
        features: Network of the distances and the hash of its weights, `NAME#HASH`.
        feature_resize: What that network does to image sizes, in words.
        classifier: Network of the class score and its hash, or `none`.
        perceptual: Perceptual distance and the hash of its weights, or `none`.
        reference: What it was compared with, in words: data set and split. Not part of the id,
            since folders have many names: `reference_hash` is.
        reference_hash: Of the pixels of those images (`ImageHash`) and, where the balance is that
            of the reference, of their labels: first 16 hexadecimal digits.
        reference_images: How many there were.
        num_samples: Images measured, per repetition.
        class_balance: Labels of samples: proportions of the `reference`, `equal` numbers of each
            class, drawn `uniform`ly at random, or `none`; of images that were there, `as given`
            with a hash of their numbers per class.
        sample_bank: Most samples in the metrics that need every pair (KID, precision, recall,
            density, coverage): the first ones.
        reference_bank: Most reference images there: those with the smallest digests. Of
            reconstructions, those of the same originals.
        kid_subsets: Subsets of KID.
        kid_subset_size: Images of a subset.
        pr_neighbours: k of precision and recall.
        dc_neighbours: k of density and coverage.
        guidance: The convention of guidance scales.
        seeds: The rule of seeds.
        version: Of the meaning of these fields.
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

    @property
    def id(self) -> str:
        """The preset's name and 8 digits of a hash of the fields, e.g. `bundled-1a2b3c4d`."""
        fields = dataclasses.asdict(self)
        del fields["reference"]
        text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def to_dict(self) -> dict[str, Any]:
        """The id and every field, for JSON."""
        return {"id": self.id} | dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Protocol":
        """What `to_dict` gave.

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
    """A measured number that knows how it was measured.

    Subtraction and `<` work between values of one metric and one protocol only.

    Attributes:
        metric: Name, e.g. `FID`.
        values: One per repetition.
        protocol: Id of the protocol.
        better: Which direction is.
        about: What it is, in a line.
        group: Kind of metric: distribution, pixels, perception, codes, memorisation or speed.
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
        """Standard deviation over repetitions (n - 1); None if there is one."""
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
            ProtocolMismatch: With both.
        """
        if not isinstance(other, MetricValue):
            raise ProtocolMismatch(f"{self.metric} under {self.protocol} and a bare {other!r}")
        if (self.metric, self.protocol) != (other.metric, other.protocol):
            raise ProtocolMismatch(
                f"not comparable: {self.metric} under {self.protocol} "
                f"and {other.metric} under {other.protocol}"
            )

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" ± {self.spread:.2g}"
        return f"{self.metric} {self.mean:.5g}{spread} ({self.protocol})"

    def to_dict(self) -> dict[str, Any]:
        """Everything, for a report."""
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
    """Floats in [-1, 1] to 8-bit pixels by the protocol's rule.

    `round` is the project's own, round(127.5 (x + 1)); `truncate` drops the fraction instead, as
    many published evaluations do, and is darker by half a level.

    Args:
        images: Any shape; values outside saturate.
        rounding: Which.

    Returns:
        uint8, same shape and device.

    Raises:
        ValueError: If the dtype is not float, or a value is not finite.
    """
    match rounding:
        case "round":
            return to_uint8(images)
        case "truncate":
            to_uint8(images)  # refuses what cannot be rounded either
            return images.detach().float().add(1).mul_(127.5).clamp_(0, 255).to(torch.uint8)
        case _:
            assert_never(rounding)


def as_floats(pixels: Tensor) -> Tensor:
    """8-bit pixels to floats in [-1, 1]; `to_uint8` gives them back exactly."""
    return pixels.float().div_(127.5).sub_(1)
