"""Presets: the rules of named protocols, and the measurements that they refuse."""

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
    LATER,
    SEEDS,
    ClassBalance,
    Protocol,
    ProtocolError,
    Rounding,
    Task,
)

MIN_IMAGES = 6
"""Smallest number of images on which every metric can be computed."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The rules of a named protocol, before the data are known.

    Attributes:
        name: Name of the preset on the command line.
        about: Description in one line.
        resize: Rule by which real images are resized (`data.transforms.fit`).
        crop: Crop after resizing.
        rounding: Rule by which floats in [-1, 1] become 8-bit pixels (`to_pixels`).
        class_balance: Rule for the labels of samples.
        reference_split: Split that samples are compared with; reconstructions are always compared
            with their originals.
        features: Name of the feature network of the distances.
        classifier: Name of the network of the class score.
        perceptual: Name of the perceptual distance.
        resolution: The only resolution allowed, in pixels; None: that of the model.
        num_samples: The only number of images allowed; None: any, by default that of the reference.
        data: The only data set allowed; None: any.
        sample_bank: Largest number of samples in the metrics that compare all pairs.
        reference_bank: Largest number of reference images in those metrics.
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
        """Number of images to measure.

        Args:
            num: Number asked for; None: that of the preset, or all available images.
            available: Number of images of the reference, or of images to be reconstructed.
            task: Whether samples or reconstructions are measured.

        Raises:
            ProtocolError: If the preset fixes another number, or there are too few images.
        """
        fixed = self.num_samples
        if fixed is not None and num is not None and num != fixed:
            free = ", ".join(p.name for p in PRESETS.values() if p.num_samples is None)
            raise ProtocolError(
                f"protocol {self.name} measures {fixed:,} images, asked for {num:,}: that would "
                f"be another protocol; the protocols of any number are: {free}"
            )
        wanted = fixed or (available if num is None else num)
        if wanted < MIN_IMAGES:
            raise ProtocolError(
                f"protocol {self.name}: too few images, found {wanted}, expected at least "
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

        Args:
            count: Number of reference images.

        Raises:
            ProtocolError: With the number found and the smallest one allowed.
        """
        if count < MIN_IMAGES:
            raise ProtocolError(
                f"protocol {self.name}: too few reference images, found {count}, expected at least "
                f"{MIN_IMAGES}"
            )

    def check_resolution(self, resolution: int) -> None:
        """Refuse a model of another resolution than the preset's.

        Args:
            resolution: Side of the images of the model in pixels.

        Raises:
            ProtocolError: With both resolutions.
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
        conditions: str = LATER["conditions"],
        alignment: str = LATER["alignment"],
        drawn: bool = True,
    ) -> Protocol:
        """Protocol of a measurement; the arguments are the attributes of `Protocol`.

        For images that were not `drawn` by this package, rounding, guidance and seeds are unknown
        and set to `as given`.
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
            conditions=conditions,
            alignment=alignment,
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
    """Preset by name.

    Raises:
        ProtocolError: If there is no such preset; suggests a similar name.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(PRESETS)}"
        raise ProtocolError(f"protocol {name!r}: unknown; {hint}")
    return PRESETS[name]


def balanced_labels(counts: Tensor, num: int, seed: int) -> list[int]:
    """Labels in the proportions of a histogram, largest remainders first, in shuffled order.

    Args:
        counts: Number of images of each class, int64, shape (num_classes,), not all 0.
        num: Number of labels to return.
        seed: Seed of the order.
    """
    shares = counts * num
    whole = shares // counts.sum()
    remainders = shares - whole * counts.sum()
    missing = num - int(whole.sum())
    whole[remainders.argsort(descending=True, stable=True)[:missing]] += 1
    labels = torch.arange(len(counts)).repeat_interleave(whole)
    order = torch.randperm(num, generator=torch.Generator().manual_seed(seed))
    return [int(label) for label in labels[order]]


def choose_labels(
    balance: ClassBalance, counts: Tensor, num: int, seed: int, *, name: str
) -> list[int]:
    """Label of every sample under a rule of class balance; -1 is no label.

    Args:
        balance: Rule of class balance.
        counts: Number of reference images of each class, int64, shape (num_classes,).
        num: Number of samples.
        seed: Seed of the order, and of the draw under `uniform`.
        name: Name of the protocol for error messages.

    Raises:
        ProtocolError: If the classes cannot be balanced by this rule.
    """
    classes = len(counts)
    match balance:
        case "none":
            return [-1] * num
        case "uniform":
            if not classes:
                raise ProtocolError(f"protocol {name}: there are no classes to draw from")
            rng = torch.Generator().manual_seed(seed)
            return [int(label) for label in torch.randint(classes, (num,), generator=rng)]
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
