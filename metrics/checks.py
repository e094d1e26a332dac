"""Checks of what metrics are given: images in their declared range, and vectors of features.

Images in another range do not fail by themselves: floats in 0..255 saturate to white where [-1, 1]
is expected, and any two white images are equal. So every public metric looks at the smallest and
the largest value of each batch, one pass over it. A batch that requires a gradient is the output
of a network in training, which may lie outside: of those only shape and dtype are checked.
"""

import torch
from torch import Tensor

_LEVELS = 255


@torch.no_grad()
def check_images(
    images: Tensor, low: float, high: float, *, name: str = "images", min_side: int = 1
) -> None:
    """Refuse anything but a batch of RGB images: uint8, or floats in a range.

    Args:
        images: Images, expected as uint8 or float (B, 3, H, W). Floats may lie outside the range by
            half a level of 8 bits, (high - low) / 510, which rounding to 8 bits takes back.
        low: Value of black.
        high: Value of white.
        name: Name of the argument in messages.
        min_side: Smallest side allowed, in pixels.

    Raises:
        ValueError: With the shape, dtype or values found and what was expected.
    """
    if images.dtype != torch.uint8 and not images.is_floating_point():
        expected = f"a uint8 tensor, or a float tensor in [{low:g}, {high:g}]"
        raise ValueError(f"{name}: expected {expected}, found {images.dtype}")
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"{name}: expected shape (B, 3, H, W), found {tuple(images.shape)}")
    if min(images.shape[2:]) < min_side:
        height, width = images.shape[2:]
        raise ValueError(f"{name}: expected sides >= {min_side} pixels, found {height} x {width}")
    if images.dtype == torch.uint8 or images.requires_grad or not images.numel():
        return
    smallest, largest = torch.stack(torch.aminmax(images)).tolist()  # NaN if any value is NaN
    slack = (high - low) / (2 * _LEVELS)
    if low - slack <= smallest and largest <= high + slack:
        return
    if not bool(images.isfinite().all()):
        wrong = int((~images.isfinite()).sum())
        raise ValueError(
            f"{name}: {wrong} values are not finite, expected values in [{low:g}, {high:g}]"
        )
    hint = "clamp the output of a network first"
    if largest > 2 * high:
        hint = "give 8-bit values as a uint8 tensor"
    elif low == 0 and smallest < -0.5:
        hint = "[-1, 1] becomes [0, 1] by (x + 1) / 2"
    raise ValueError(
        f"{name}: found values from {smallest:.4g} to {largest:.4g}, expected floats in "
        f"[{low:g}, {high:g}]; {hint}"
    )


@torch.no_grad()
def check_vectors(vectors: Tensor, name: str, size: int | None = None) -> None:
    """Refuse anything but finite float vectors.

    Args:
        vectors: Vectors, expected as float (B, D).
        name: Name of the argument in messages.
        size: Length D of the vectors; None: any.

    Raises:
        ValueError: With the shape, dtype or number of bad vectors found and what was expected.
    """
    if vectors.ndim != 2 or size not in (None, vectors.shape[1]):
        expected = f"(B, {'D' if size is None else size})"
        raise ValueError(f"{name}: expected {expected}, found {tuple(vectors.shape)}")
    if not vectors.is_floating_point():
        raise ValueError(f"{name}: expected a float tensor, found {vectors.dtype}")
    if not bool(torch.isfinite(vectors).all()):
        bad = int((~torch.isfinite(vectors)).any(1).sum())
        raise ValueError(f"{name}: {bad} of {len(vectors)} vectors are not finite")


def check_pair(samples: Tensor, reference: Tensor) -> None:
    """Refuse anything but two sets of finite float vectors of one length.

    Args:
        samples: Features, expected as float (n, D).
        reference: Features of the real images, expected as float (m, D).

    Raises:
        ValueError: With the shapes, dtype or number of bad vectors found and what was expected.
    """
    if samples.ndim != 2 or reference.ndim != 2 or samples.shape[1] != reference.shape[1]:
        found = f"{tuple(samples.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"features: expected (n, D) and (m, D), found {found}")
    check_vectors(samples, "samples")
    check_vectors(reference, "reference")
