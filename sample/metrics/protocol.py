"""What a number depends on besides the model, as one hashed value.

FIDs in this field differ by how floats become 8 bits, how images are resized, which port of the
network looked at them, what they were compared with and how many there were. A `Protocol` holds
all of it; its `id` goes with every `MetricValue`, and values of different ids refuse to be
compared. A preset is a protocol without the facts of the data: `PRESETS[name]` names the rules,
`Preset.bind` adds what was measured.
"""

import dataclasses
import difflib
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import torch
from torch import Tensor

from ...data.images import to_uint8
from ...data.transforms import ResizeRule

Task = Literal["samples", "reconstructions"]
Rounding = Literal["round", "truncate"]
ClassBalance = Literal["reference", "equal", "uniform", "none"]
Better = Literal["lower", "higher", "none"]

GUIDANCE = "uncond + scale * (cond - uncond); 1 = off"
SEEDS = "image i of repetition r has seed BASE + r * num_samples + i, on any process"
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
MIN_IMAGES = 6
"""Fewest images that every metric can be computed on."""


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
        rounding: How floats in [-1, 1] became 8 bits (`to_levels`).
        features: Network of the distances and the hash of its weights, `NAME#HASH`.
        feature_resize: What that network does to image sizes, in words.
        classifier: Network of the class score and its hash, or `none`.
        perceptual: Perceptual distance and the hash of its weights, or `none`.
        reference: What it was compared with, in words: data set and split. Not part of the id,
            since folders have many names: `reference_hash` is.
        reference_hash: `image_hash` of those images, first 16 hexadecimal digits.
        reference_images: How many there were.
        num_samples: Images measured, per repetition.
        class_balance: Labels of samples: proportions of the `reference`, `equal` numbers of each
            class, drawn `uniform`ly at random, or `none`.
        bank_images: Most images of either side in the metrics that need every pair (KID,
            precision, recall, density, coverage), evenly spaced in order.
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
    rounding: Rounding
    features: str
    feature_resize: str
    classifier: str
    perceptual: str
    reference: str
    reference_hash: str
    reference_images: int
    num_samples: int
    class_balance: ClassBalance
    bank_images: int
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
        fields = {name: value for name, value in stored.items() if name != "id"}
        try:
            protocol = cls(**fields)
        except TypeError as error:
            raise ProtocolError(f"not a protocol: {str(error).split('__init__() ')[-1]}") from None
        if stored.get("id") != protocol.id:
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

    def __sub__(self, other: "MetricValue") -> float:
        self.require_comparable(other)
        return self.mean - other.mean

    def __lt__(self, other: "MetricValue") -> bool:
        self.require_comparable(other)
        return self.mean < other.mean

    def require_comparable(self, other: "MetricValue") -> None:
        """Refuse a value of another metric or protocol.

        Raises:
            ProtocolMismatch: With both.
        """
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


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The rules of a protocol, before there are data.

    Attributes:
        name: How it is asked for.
        about: In a line.
        resize: See `Protocol`; so for all fields of the same names.
        crop: See `Protocol`.
        rounding: See `Protocol`.
        class_balance: See `Protocol`.
        reference_split: What samples are compared with; reconstructions always are with their
            originals.
        features: Name of the network of the distances.
        classifier: Name of the network of the class score.
        perceptual: Name of the perceptual distance.
        resolution: The only one allowed; None: the model's.
        num_samples: The only number allowed; None: as many as the reference has, or any.
        data: The only data set allowed, or None.
        bank_images: See `Protocol`.
    """

    name: str
    about: str
    resize: ResizeRule
    crop: str
    rounding: Rounding
    class_balance: ClassBalance
    reference_split: str
    features: str = "inception_fid"
    classifier: str = "efflite0"
    perceptual: str = "lpips_vgg"
    resolution: int | None = None
    num_samples: int | None = None
    data: str | None = None
    bank_images: int = 10_000

    def check_number(self, num: int | None, available: int, task: Task) -> int:
        """The number of images to measure.

        Args:
            num: Asked for; None: what the preset says.
            available: Images of the reference, or to be reconstructed.
            task: Which of the two.

        Raises:
            ProtocolError: If the preset asks for another number, or there are too few.
        """
        fixed = self.num_samples
        if fixed is not None and num is not None and num != fixed:
            free = ", ".join(p.name for p in PRESETS.values() if p.num_samples is None)
            raise ProtocolError(
                f"protocol {self.name} measures {fixed:,} images, asked for {num:,}: that would "
                f"be another protocol; free in number are: {free}"
            )
        wanted = fixed or num or available
        if wanted < MIN_IMAGES:
            raise ProtocolError(
                f"protocol {self.name}: {wanted} images are too few, expected at least "
                f"{MIN_IMAGES} (density and coverage look at {MIN_IMAGES - 1} neighbours)"
            )
        if task == "reconstructions" and wanted > available:
            raise ProtocolError(
                f"protocol {self.name}: {wanted:,} images to be reconstructed, "
                f"the data have {available:,}"
            )
        return wanted

    def check_resolution(self, resolution: int) -> None:
        """Refuse a model of another resolution than the preset's.

        Raises:
            ProtocolError: With both.
        """
        if self.resolution not in (None, resolution):
            raise ProtocolError(
                f"protocol {self.name} measures images of {self.resolution} pixels, "
                f"found {resolution}"
            )

    def bind(
        self,
        *,
        task: Task,
        resolution: int,
        features: str,
        feature_resize: str,
        classifier: str,
        perceptual: str,
        reference: str,
        reference_hash: str,
        reference_images: int,
        num_samples: int,
        class_balance: ClassBalance | None = None,
    ) -> Protocol:
        """The protocol of a measurement; arguments as the attributes of `Protocol`."""
        smaller = min(num_samples, reference_images, self.bank_images)
        return Protocol(
            name=self.name,
            task=task,
            resolution=resolution,
            resize=self.resize,
            crop=self.crop,
            rounding=self.rounding,
            features=features,
            feature_resize=feature_resize,
            classifier=classifier,
            perceptual=perceptual,
            reference=reference,
            reference_hash=reference_hash,
            reference_images=reference_images,
            num_samples=num_samples,
            class_balance=class_balance or self.class_balance,
            bank_images=self.bank_images,
            kid_subsets=KID_SUBSETS,
            kid_subset_size=min(KID_SUBSET_SIZE, smaller),
        )


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="bundled",
            about="the bundled emoji: samples against the 1,381 training images, in their classes",
            resize="bicubic",
            crop="centre",
            rounding="round",
            class_balance="reference",
            reference_split="train",
            data="bundled:emoji",
        ),
        Preset(
            name="val-paired",
            about="any data, its validation split: reconstructions against their originals",
            resize="bicubic",
            crop="centre",
            rounding="round",
            class_balance="reference",
            reference_split="val",
        ),
        Preset(
            name="adm-256",
            about="50,000 samples at 256 px, truncated to 8 bits, against ADM's reference images",
            resize="adm",
            crop="centre",
            rounding="truncate",
            class_balance="equal",
            reference_split="train",
            classifier="resnet50",
            resolution=256,
            num_samples=50_000,
        ),
        Preset(
            name="torch-fidelity",
            about="50,000 samples with random labels against a data set of the very same size",
            resize="none",
            crop="none",
            rounding="truncate",
            class_balance="uniform",
            reference_split="train",
            num_samples=50_000,
            bank_images=50_000,
        ),
    )
}


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ProtocolError: If there is none; suggests a near one.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(PRESETS)}"
        raise ProtocolError(f"protocol {name!r}: unknown; {hint}")
    return PRESETS[name]


def differing_fields(a: Protocol, b: Protocol) -> dict[str, tuple[Any, Any]]:
    """Fields in which two protocols differ, with both values."""
    left, right = dataclasses.asdict(a), dataclasses.asdict(b)
    return {name: (left[name], right[name]) for name in left if left[name] != right[name]}


def to_levels(images: Tensor, rounding: Rounding) -> Tensor:
    """Floats in [-1, 1] to 8-bit levels by the protocol's rule.

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
            to_uint8(images[:0])  # the same refusal of other types
            values = images.detach().float()
            if wrong := int((~values.isfinite()).sum()):
                raise ValueError(f"images: {wrong} values are not finite, expected [-1, 1]")
            return values.add(1).mul_(127.5).clamp_(0, 255).to(torch.uint8)
        case _:
            assert_never(rounding)


def as_floats(levels: Tensor) -> Tensor:
    """8-bit levels to floats in [-1, 1]; `to_uint8` gives them back exactly."""
    return levels.float().div_(127.5).sub_(1)


class ImageHash:
    """Hash of a set of 8-bit images, whatever their order, names and files."""

    def __init__(self) -> None:
        self._digests: list[bytes] = []

    def update(self, levels: Tensor) -> None:
        """Add images, uint8 (B, 3, H, W)."""
        for image in levels.cpu().contiguous():
            shape = str(tuple(image.shape)).encode()
            self._digests.append(hashlib.sha256(shape + image.numpy().tobytes()).digest())

    def add(self, blob: bytes) -> None:
        """Add anything else that the set consists of."""
        self._digests.append(hashlib.sha256(blob).digest())

    def merge(self, other: "ImageHash") -> None:
        """Add what another object saw."""
        self._digests += other._digests

    @property
    def digests(self) -> Tensor:
        """SHA-256 of every image, uint8 (n, 32), for a file."""
        blob = bytearray(b"".join(self._digests))
        return torch.frombuffer(blob, dtype=torch.uint8).reshape(-1, 32) if blob else _NO_DIGESTS

    def load_digests(self, stored: Tensor) -> None:
        """Take over what `digests` gave.

        Raises:
            ValueError: If the shape is another.
        """
        if stored.dtype != torch.uint8 or stored.ndim != 2 or stored.shape[1] != 32:
            raise ValueError(f"digests: expected uint8 (n, 32), found {tuple(stored.shape)}")
        self._digests = [bytes(row) for row in stored.tolist()]

    def is_part_of(self, other: "ImageHash") -> bool:
        """Whether the other object has seen every image that this one has."""
        return set(self._digests) <= set(other._digests)

    def hexdigest(self) -> str:
        """SHA-256 over the sorted digests of the images, 64 hexadecimal digits."""
        return hashlib.sha256(b"".join(sorted(self._digests))).hexdigest()


_NO_DIGESTS = torch.empty((0, 32), dtype=torch.uint8)


def balanced_labels(counts: Tensor, num: int, seed: int) -> list[int]:
    """Labels in the proportions of a histogram, largest remainders first, in shuffled order.

    Args:
        counts: Images of each class, int64, shape (num_classes,), not all 0.
        num: Labels to make.
        seed: Of the order.
    """
    shares = counts * num
    whole = shares // counts.sum()
    remainders = shares - whole * counts.sum()
    missing = num - int(whole.sum())
    whole[remainders.argsort(descending=True, stable=True)[:missing]] += 1
    labels = torch.arange(len(counts)).repeat_interleave(whole)
    return labels[torch.randperm(num, generator=torch.Generator().manual_seed(seed))].tolist()


def choose_labels(
    balance: ClassBalance, counts: Tensor, num: int, seed: int, *, name: str
) -> list[int]:
    """Label of every sample under a rule of class balance; -1 is none.

    Args:
        balance: The rule.
        counts: Reference images of each class, int64, shape (num_classes,).
        num: Samples.
        seed: Of the order, and of the draw of `uniform`.
        name: The protocol's, for errors.

    Raises:
        ProtocolError: If the classes cannot be balanced so.
    """
    classes = len(counts)
    match balance:
        case "none":
            return [-1] * num
        case "uniform":
            rng = torch.Generator().manual_seed(seed)
            return torch.randint(classes, (num,), generator=rng).tolist()
        case "equal":
            if num % classes:
                below = num - num % classes
                raise ProtocolError(
                    f"protocol {name}: {num:,} samples over {classes} classes are unbalanced; "
                    f"balanced are {below:,} and {below + classes:,}"
                )
            return balanced_labels(torch.ones_like(counts), num, seed)
        case "reference":
            if not int(counts.sum()):
                raise ProtocolError(
                    f"protocol {name}: samples have the class proportions of the reference, "
                    f"but its images have no labels"
                )
            return balanced_labels(counts, num, seed)
        case _:
            assert_never(balance)
