"""Protocols by name, before there are data: the rules, and what they refuse."""

import difflib
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from ..data.transforms import ResizeRule
from .kid import DEFAULT_SUBSET_SIZE, DEFAULT_SUBSETS
from .protocol import (
    AS_GIVEN,
    GUIDANCE,
    SEEDS,
    ClassBalance,
    Protocol,
    ProtocolError,
    Rounding,
    Task,
)

MIN_IMAGES = 6
"""Fewest images that every metric can be computed on."""


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
        sample_bank: See `Protocol`.
        reference_bank: See `Protocol`.
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
    sample_bank: int = 50_000
    reference_bank: int = 10_000

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
        wanted = fixed or (available if num is None else num)
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

    def check_reference(self, count: int) -> None:
        """Refuse a reference that is too small.

        Raises:
            ProtocolError: With both numbers.
        """
        if count < MIN_IMAGES:
            raise ProtocolError(
                f"protocol {self.name}: a reference of {count} images is too small, expected at "
                f"least {MIN_IMAGES}"
            )

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
        class_balance: str | None = None,
        drawn: bool = True,
    ) -> Protocol:
        """The protocol of a measurement; arguments as the attributes of `Protocol`.

        Nothing is known of how images that were not `drawn` here came about: rounding, guidance
        and seeds are then as given.
        """
        smaller = min(num_samples, reference_images, self.sample_bank, self.reference_bank)
        return Protocol(
            name=self.name,
            task=task,
            resolution=resolution,
            resize=self.resize,
            crop=self.crop,
            rounding=self.rounding if drawn else AS_GIVEN,
            guidance=GUIDANCE if drawn else AS_GIVEN,
            seeds=SEEDS if drawn else AS_GIVEN,
            features=features,
            feature_resize=feature_resize,
            classifier=classifier,
            perceptual=perceptual,
            reference=reference,
            reference_hash=reference_hash,
            reference_images=reference_images,
            num_samples=num_samples,
            class_balance=class_balance or self.class_balance,
            sample_bank=self.sample_bank,
            reference_bank=self.reference_bank,
            kid_subsets=DEFAULT_SUBSETS,
            kid_subset_size=min(DEFAULT_SUBSET_SIZE, smaller),
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
            reference_bank=50_000,
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
            if not classes:
                raise ProtocolError(f"protocol {name}: there are no classes to draw from")
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
