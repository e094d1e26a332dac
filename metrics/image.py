"""Pixel metrics of reconstructions: PSNR, PSNR without the white background, SSIM, MS-SSIM, MSE.

All are computed after the rounding rule of the package, `round(127.5 * (x + 1))` clamped to
0..255, so a value measured on tensors equals the value measured on the saved PNGs. Sums are kept in
float64 and are additive, so images can be split over batches and processes in any way. Images are
uint8, or floats in [-1, 1]: any other range is refused.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..data.images import to_uint8
from .checks import check_images

PSNR_CAP = 100.0
"""Reported PSNR of identical images, and upper bound of all others, in dB."""
MIN_SSIM_SIDE = 11
"""The SSIM window (Gaussian, sigma 1.5) is 11 pixels wide."""
_WHITE, _PEAK = 255, 255.0


@dataclass(frozen=True, kw_only=True)
class MsSsim:
    """A form of MS-SSIM; smaller images have fewer scales and a smaller window.

    Attributes:
        name: `ms_ssim` for the published form; `ms_ssim_SCALESxWINDOW` for smaller images, whose
            values are comparable only with values of the same form.
        min_side: Smallest shorter side, in pixels: window * (scales - 1)^2, as torchmetrics
            requires; the smallest scale is then at least about as wide as the window.
        scales: Number of scales, each half as wide as the one before.
        window: Side of the Gaussian window in pixels; sigma is 1.5 / 11 of it.
    """

    name: str
    min_side: int
    scales: int
    window: int

    @property
    def sigma(self) -> float:
        """Standard deviation of the Gaussian in pixels; torchmetrics derives the window from it."""
        return 1.5 * self.window / 11

    @property
    def betas(self) -> tuple[float, ...]:
        """Exponents of the scales, finest first: the first published ones, scaled to their sum.

        So images of equal similarity at all scales get that similarity, as in `ms_ssim`;
        torchmetrics does not normalize exponents.
        """
        kept = _BETAS[: self.scales]
        return tuple(beta * sum(_BETAS) / sum(kept) for beta in kept)


_BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_FORMS = (
    MsSsim(name="ms_ssim", min_side=176, scales=5, window=11),
    MsSsim(name="ms_ssim_4x7", min_side=63, scales=4, window=7),
    MsSsim(name="ms_ssim_3x5", min_side=20, scales=3, window=5),
    MsSsim(name="ms_ssim_3x3", min_side=12, scales=3, window=3),
)
"""Forms by falling size; an image gets the first form that it is large enough for."""


def ms_ssim_form(side: int) -> MsSsim | None:
    """Form of MS-SSIM for images whose shorter side is `side` pixels; None below 12."""
    return next((form for form in MS_SSIM_FORMS if side >= form.min_side), None)


def ms_ssim_name(side: int) -> str | None:
    """Name of MS-SSIM for images whose shorter side is `side` pixels; None below 12."""
    form = ms_ssim_form(side)
    return None if form is None else form.name


def psnr(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, computed on uint8 pixels.

    Args:
        originals: Float in [-1, 1] or uint8, shape (B, 3, H, W).
        reconstructions: The same.

    Returns:
        Float64, shape (B,), in [0, 100]; identical images give 100 (`PSNR_CAP`).

    Raises:
        ValueError: If shapes differ, or values are not finite or out of range.
    """
    squared = _squared_errors(*_pixel_pair(originals, reconstructions))
    return _decibel(squared.flatten(1).mean(1))


def psnr_non_white(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """PSNR of each image in dB over the pixels whose original is not pure white.

    Nearly any tokenizer reproduces a white background perfectly, which raises the plain PSNR of
    drawings by many dB.

    Args:
        originals: Float in [-1, 1] or uint8, shape (B, 3, H, W). White is (255, 255, 255) after
            rounding.
        reconstructions: The same.

    Returns:
        Float64, shape (B,), at most 100; NaN for an original that is all white.

    Raises:
        ValueError: If shapes differ, or values are not finite or out of range.
    """
    squared, count = _non_white_sums(*_pixel_pair(originals, reconstructions))
    return torch.where(count > 0, _decibel(squared / count), torch.nan)


def reconstruction_values(originals: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
    """All metrics of each image; `ReconstructionMeter` averages these.

    Args:
        originals: Float in [-1, 1] or uint8, shape (B, 3, H, W), H, W >= 11 pixels.
        reconstructions: The same.

    Returns:
        Float64 tensors of shape (B,): `psnr` and `psnr_non_white` in dB (the second is NaN for an
        original that is all white), `ssim` in [-1, 1], `mse` of pixels scaled to [0, 1] and, from
        12 pixels on, MS-SSIM in [0, 1] under `ms_ssim_name` of the shorter side.

    Raises:
        ValueError: If shapes differ, values are not finite or out of range, or images are too
            small.

    Source: MS-SSIM is Wang, Simoncelli and Bovik (Asilomar 2003). A negative contrast term, which
    has no real power, counts as 0: the default `relu` of torchmetrics. Both kinds of SSIM are
    computed by torchmetrics in float32, whose rounding in flat white areas costs up to 1e-4.
    """
    return _values(*_pixel_pair(originals, reconstructions))


@dataclass(kw_only=True)
class ReconstructionMeter:
    """Reconstruction metrics of a set of images, streaming and mergeable.

    Every field is a plain sum over images, so `merge` of two meters, or the sum of their `state`
    over processes, equals one meter that saw all images. Each form of MS-SSIM has its own sum and
    number of images.
    """

    num_images: float = 0.0
    psnr_sum: float = 0.0
    ssim_sum: float = 0.0
    mse_sum: float = 0.0
    non_white_squared_error: float = 0.0
    non_white_count: float = 0.0
    ms_ssim_sum: float = 0.0
    ms_ssim_images: float = 0.0
    ms_ssim_4x7_sum: float = 0.0
    ms_ssim_4x7_images: float = 0.0
    ms_ssim_3x5_sum: float = 0.0
    ms_ssim_3x5_images: float = 0.0
    ms_ssim_3x3_sum: float = 0.0
    ms_ssim_3x3_images: float = 0.0

    @torch.no_grad()
    def update(self, originals: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
        """Add a batch.

        Args:
            originals: Float in [-1, 1] or uint8, shape (B, 3, H, W), H, W >= 11 pixels.
            reconstructions: The same.

        Returns:
            Values of each image as from `reconstruction_values`.

        Raises:
            ValueError: If shapes differ, values are not finite or out of range, or images are too
            small.
        """
        pixels = _pixel_pair(originals, reconstructions)
        values = _values(*pixels)
        squared, count = _non_white_sums(*pixels)
        self.num_images += len(squared)
        self.psnr_sum += float(values["psnr"].sum())
        self.ssim_sum += float(values["ssim"].sum())
        self.mse_sum += float(values["mse"].sum())
        self.non_white_squared_error += float(squared.sum())
        self.non_white_count += float(count.sum())
        for form in MS_SSIM_FORMS:
            if form.name in values:
                total, images = f"{form.name}_sum", f"{form.name}_images"
                setattr(self, total, getattr(self, total) + float(values[form.name].sum()))
                setattr(self, images, getattr(self, images) + len(squared))
        return values

    def compute(self) -> dict[str, float]:
        """Metrics over all images seen.

        Returns:
            `psnr`: mean over images of the PSNR of each, dB. `psnr_non_white`: PSNR in dB of the
            squared error pooled over all non-white pixels of the set (so that nearly white images
            do not dominate); NaN if there are no such pixels. `ssim`: mean over images, in [-1, 1];
            images are reflected at the border and all positions count, as in torchmetrics.
            `ms_ssim`, or the name of a form for smaller images: mean over images, in [0, 1]; absent
            if all images were below 12 pixels. `mse`: mean squared error of pixels scaled to
            [0, 1]. `num_images`: number of images.

        Raises:
            ValueError: If no image was seen.
        """
        if not self.num_images:
            raise ValueError("no images were measured: call update first")
        pooled = torch.tensor(self.non_white_squared_error, dtype=torch.float64)
        non_white = float(_decibel(pooled / self.non_white_count)) if self.non_white_count else None
        result = {
            "psnr": self.psnr_sum / self.num_images,
            "psnr_non_white": float("nan") if non_white is None else non_white,
            "ssim": self.ssim_sum / self.num_images,
        }
        for form in MS_SSIM_FORMS:
            if images := getattr(self, f"{form.name}_images"):
                result[form.name] = getattr(self, f"{form.name}_sum") / images
        return result | {"mse": self.mse_sum / self.num_images, "num_images": self.num_images}

    def state(self) -> Tensor:
        """All sums as one float64 vector on the CPU; vectors of several processes can be added."""
        return torch.tensor([getattr(self, name) for name in self._names()], dtype=torch.float64)

    @classmethod
    def from_state(cls, state: Tensor) -> Self:
        """Meter from a `state` vector, or from the sum of several.

        Raises:
            ValueError: If the vector has another shape.
        """
        names = cls._names()
        if tuple(state.shape) != (len(names),):
            raise ValueError(f"state: expected shape ({len(names)},), found {tuple(state.shape)}")
        return cls(**dict(zip(names, state.tolist(), strict=True)))

    def merge(self, other: "ReconstructionMeter") -> None:
        """Add the images of another meter."""
        for name in self._names():
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @classmethod
    def _names(cls) -> tuple[str, ...]:
        """Names of the fields, in the order of `state`."""
        return tuple(cls.__dataclass_fields__)


def _pixel_pair(originals: Tensor, reconstructions: Tensor) -> tuple[Tensor, Tensor]:
    """Convert both batches to uint8 pixels after checks of shape, dtype and values."""
    if originals.shape != reconstructions.shape or originals.ndim != 4 or originals.shape[1] != 3:
        found = f"{tuple(originals.shape)} and {tuple(reconstructions.shape)}"
        raise ValueError(f"images: expected two batches of one shape (B, 3, H, W), found {found}")
    check_images(originals, -1, 1, name="originals")
    check_images(reconstructions, -1, 1, name="reconstructions")
    first, second = (
        images if images.dtype == torch.uint8 else to_uint8(images)
        for images in (originals, reconstructions)
    )
    return first, second


def _values(originals: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
    """Compute `reconstruction_values` of uint8 pixels."""
    side = min(originals.shape[2:])
    if side < MIN_SSIM_SIDE:
        found = f"{originals.shape[2]} x {originals.shape[3]}"
        raise ValueError(f"images: SSIM needs sides >= {MIN_SSIM_SIDE} pixels, found {found}")
    mse = _squared_errors(originals, reconstructions).flatten(1).mean(1)
    squared, count = _non_white_sums(originals, reconstructions)
    values = {
        "psnr": _decibel(mse),
        "psnr_non_white": torch.where(count > 0, _decibel(squared / count), torch.nan),
        "ssim": _ssim(originals, reconstructions).double(),
    }
    if form := ms_ssim_form(side):
        values[form.name] = _ms_ssim(originals, reconstructions, form).double()
    return values | {"mse": mse / _PEAK**2}


def _squared_errors(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Exact squared pixel differences, float64, in the shape of the input."""
    return (originals.int() - reconstructions.int()).square().double()


def _non_white_sums(originals: Tensor, reconstructions: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error and number of values over non-white pixels, each (B,) float64."""
    kept = (originals != _WHITE).any(1, keepdim=True)  # (B, 1, H, W)
    squared = _squared_errors(originals, reconstructions) * kept
    count = kept.flatten(1).sum(1) * originals.shape[1]
    return squared.flatten(1).sum(1), count.double()


def _decibel(mse: Tensor) -> Tensor:
    """PSNR in dB of a mean squared error of 8-bit pixels, at most `PSNR_CAP`."""
    return (10 * torch.log10(_PEAK**2 / mse)).clamp_max(PSNR_CAP)


def _ssim(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """SSIM of each image of uint8 pixels, Gaussian window of 11 pixels, shape (B,)."""
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


def _ms_ssim(originals: Tensor, reconstructions: Tensor, form: MsSsim) -> Tensor:
    """MS-SSIM of each image of uint8 pixels, shape (B,)."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    if not len(originals):
        return originals.new_zeros(0, dtype=torch.float32)
    values = multiscale_structural_similarity_index_measure(
        reconstructions.float() / _PEAK,
        originals.float() / _PEAK,
        gaussian_kernel=True,
        sigma=form.sigma,
        kernel_size=form.window,
        data_range=1.0,
        betas=form.betas,
        normalize="relu",
        reduction="none",
    )
    return values.reshape(-1)
