"""Pixel metrics of reconstructions: PSNR, PSNR without the white background, SSIM, MSE.

All are computed after the project's one rounding rule, `round(127.5 * (x + 1))` clamped to
0..255, so a number measured on tensors equals the number measured on the saved PNGs. Sums are kept
in float64 and are additive, so batches and processes can be split at will.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ...data.images import to_uint8

PSNR_CAP = 100.0
"""Reported PSNR of identical images, and upper bound of all others, in dB."""
MIN_SSIM_SIDE = 11
"""The SSIM window (Gaussian, sigma 1.5) is 11 pixels wide."""
_WHITE, _PEAK = 255, 255.0


def psnr(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, on uint8 levels.

    Args:
        originals: Float in [-1, 1], shape (B, 3, H, W).
        reconstructions: The same.

    Returns:
        Float64, shape (B,), in [0, 100]; identical images give 100 (`PSNR_CAP`).

    Raises:
        ValueError: If shapes differ or values are not finite.
    """
    squared = _squared_errors(*_level_pair(originals, reconstructions))
    return _decibel(squared.flatten(1).mean(1))


def psnr_non_white(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """PSNR of each image in dB over the pixels whose original is not pure white.

    A white background is reproduced perfectly by nearly any tokenizer and lifts plain PSNR of
    drawings by many dB; this leaves it out.

    Args:
        originals: Float in [-1, 1], shape (B, 3, H, W). White is (255, 255, 255) after rounding.
        reconstructions: The same.

    Returns:
        Float64, shape (B,), at most 100; NaN for an original that is all white.

    Raises:
        ValueError: If shapes differ or values are not finite.
    """
    squared, count = _non_white_sums(*_level_pair(originals, reconstructions))
    return torch.where(count > 0, _decibel(squared / count), torch.nan)


@dataclass(kw_only=True)
class ReconstructionMeter:
    """Dataset-level reconstruction metrics, streaming and mergeable.

    Every field is a plain sum over images, so `merge` of two meters, or the sum of their `state`
    over processes, equals one meter that saw everything.
    """

    num_images: float = 0.0
    psnr_sum: float = 0.0
    ssim_sum: float = 0.0
    mse_sum: float = 0.0
    non_white_squared_error: float = 0.0
    non_white_count: float = 0.0

    @torch.no_grad()
    def update(self, originals: Tensor, reconstructions: Tensor) -> None:
        """Add a batch.

        Args:
            originals: Float in [-1, 1], shape (B, 3, H, W), H, W >= 11 pixels.
            reconstructions: The same.

        Raises:
            ValueError: If shapes differ, values are not finite or images are too small.
        """
        levels = _level_pair(originals, reconstructions)
        if min(originals.shape[2:]) < MIN_SSIM_SIDE:
            found = f"{originals.shape[2]} x {originals.shape[3]}"
            raise ValueError(f"images: SSIM needs sides >= {MIN_SSIM_SIDE} pixels, found {found}")
        mse = _squared_errors(*levels).flatten(1).mean(1)
        squared, count = _non_white_sums(*levels)
        self.num_images += len(mse)
        self.psnr_sum += float(_decibel(mse).sum())
        self.ssim_sum += float(_ssim(*levels).double().sum())
        self.mse_sum += float(mse.sum()) / _PEAK**2
        self.non_white_squared_error += float(squared.sum())
        self.non_white_count += float(count.sum())

    def compute(self) -> dict[str, float]:
        """Metrics over all images seen.

        Returns:
            `psnr`: mean over images of the PSNR of each, dB. `psnr_non_white`: PSNR in dB of the
            squared error pooled over all non-white pixels of the set (so that nearly white images
            do not dominate); NaN if there is none. `ssim`: mean over images, in [-1, 1]; images are
            reflected at the border and all positions count, as in torchmetrics. `mse`: mean squared
            error of levels scaled to [0, 1]. `num_images`.

        Raises:
            ValueError: If no image was seen.
        """
        if not self.num_images:
            raise ValueError("no images were measured: call update first")
        pooled = torch.tensor(self.non_white_squared_error, dtype=torch.float64)
        non_white = float(_decibel(pooled / self.non_white_count)) if self.non_white_count else None
        return {
            "psnr": self.psnr_sum / self.num_images,
            "psnr_non_white": float("nan") if non_white is None else non_white,
            "ssim": self.ssim_sum / self.num_images,
            "mse": self.mse_sum / self.num_images,
            "num_images": self.num_images,
        }

    def state(self) -> Tensor:
        """All sums as one float64 vector on the CPU; vectors of several processes may be added."""
        return torch.tensor([getattr(self, name) for name in self._names()], dtype=torch.float64)

    @classmethod
    def from_state(cls, state: Tensor) -> Self:
        """A meter from a `state` vector, or from the sum of several.

        Raises:
            ValueError: If the vector has another shape.
        """
        names = cls._names()
        if tuple(state.shape) != (len(names),):
            raise ValueError(f"state: expected shape ({len(names)},), found {tuple(state.shape)}")
        return cls(**dict(zip(names, state.tolist(), strict=True)))

    def merge(self, other: "ReconstructionMeter") -> None:
        """Add what another meter saw."""
        for name in self._names():
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @classmethod
    def _names(cls) -> tuple[str, ...]:
        return tuple(cls.__dataclass_fields__)


def _level_pair(originals: Tensor, reconstructions: Tensor) -> tuple[Tensor, Tensor]:
    """Both batches as uint8 levels after shape checks."""
    if originals.shape != reconstructions.shape or originals.ndim != 4 or originals.shape[1] != 3:
        found = f"{tuple(originals.shape)} and {tuple(reconstructions.shape)}"
        raise ValueError(f"images: expected two batches of one shape (B, 3, H, W), found {found}")
    return to_uint8(originals), to_uint8(reconstructions)


def _squared_errors(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Exact squared level differences, float64, shape as given."""
    return (originals.int() - reconstructions.int()).square().double()


def _non_white_sums(originals: Tensor, reconstructions: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error and number of values over non-white pixels, each (B,) float64."""
    kept = (originals != _WHITE).any(1, keepdim=True)  # (B, 1, H, W)
    squared = _squared_errors(originals, reconstructions) * kept
    count = kept.flatten(1).sum(1) * originals.shape[1]
    return squared.flatten(1).sum(1), count.double()


def _decibel(mse: Tensor) -> Tensor:
    """PSNR in dB of a mean squared error of levels, capped."""
    return (10 * torch.log10(_PEAK**2 / mse)).clamp_max(PSNR_CAP)


def _ssim(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """SSIM of each image on levels / 255, Gaussian window of 11 pixels, shape (B,)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    values = structural_similarity_index_measure(
        reconstructions.float() / _PEAK,
        originals.float() / _PEAK,
        gaussian_kernel=True,
        sigma=1.5,
        data_range=1.0,
        reduction="none",
    )
    assert isinstance(values, Tensor)
    return values.reshape(-1)
