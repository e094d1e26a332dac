"""Editing with a masked generator: some tokens of a picture are kept, the others drawn anew.

Inpainting hides what a mask or a box covers, outpainting what lies outside it, class editing does
either with another label, variation hides a random share. All of them are the sampler of
`masked.py` with some slots known.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.images import read_image, to_tensor
from ..data.transforms import resize_center_crop
from ..generators.noise import uniform
from ..tokenizers.tokens import TokenSpec

_VARIATION = 2**31 + 1  # the draw that chooses what a variation hides


def read_masked_image(
    image_path: Path, mask_path: Path | None, resolution: int
) -> tuple[Tensor, Tensor | None]:
    """A picture and its mask, resized and centre-cropped alike.

    Args:
        image_path: Any picture.
        mask_path: A picture of the same size, light (128 to 255) where to draw anew; or None.
        resolution: Of the tokenizer, in pixels.

    Returns:
        Image (3, R, R) in [-1, 1], and mask (R, R) bool, True where to draw anew, or None.

    Raises:
        ValueError: If a file cannot be read or the sizes differ.
    """
    image = read_image(image_path)
    pixels = to_tensor(resize_center_crop(image, resolution))
    if mask_path is None:
        return pixels, None
    mask = read_image(mask_path)
    if mask.size != image.size:
        raise ValueError(
            f"{mask_path}: the mask is {mask.width}x{mask.height}, the image "
            f"{image.width}x{image.height}; expected the same size"
        )
    light = (np.asarray(mask.convert("L")) >= 128).astype(np.uint8) * 255
    whole = Image.fromarray(light).convert("RGB")  # a smooth filter would leak over token borders
    resized = resize_center_crop(whole, resolution, resample=Image.Resampling.BOX)
    return pixels, torch.from_numpy(np.asarray(resized)[..., 0] > 0)


def box_mask(box: tuple[int, int, int, int], resolution: int, *, outside: bool = False) -> Tensor:
    """Mask of a box in pixels, (R, R) bool.

    Args:
        box: Left, top, right, bottom; right and bottom are not included.
        resolution: Height and width of the picture.
        outside: Hide what the box leaves out (outpainting) instead of what it covers.

    Raises:
        ValueError: If the box is empty or leaves the picture.
    """
    left, top, right, bottom = box
    if not (0 <= left < right <= resolution and 0 <= top < bottom <= resolution):
        raise ValueError(f"box {box}: expected 0 <= left < right <= {resolution}, likewise top")
    mask = torch.zeros(resolution, resolution, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return ~mask if outside else mask


def token_mask(mask: Tensor, spec: TokenSpec) -> Tensor:
    """Positions with at least one hidden pixel in their cell of the grid, (N,) bool.

    Args:
        mask: Hidden pixels, (H, W) bool; H and W are multiples of the grid.
        spec: Tokens of a two-dimensional grid.

    Raises:
        ValueError: If the tokens are no grid, the size does not fit, or nothing is hidden.
    """
    if len(spec.shape) != 2:
        raise ValueError(f"a mask of pixels needs a grid of tokens; {spec} has none")
    rows, columns = spec.shape
    height, width = mask.shape
    if height % rows or width % columns:
        raise ValueError(f"mask: {height}x{width} pixels are no multiple of {rows}x{columns} cells")
    cells = mask.view(rows, height // rows, columns, width // columns).any(3).any(1).flatten()
    if not cells.any():
        raise ValueError("mask: nothing is marked inside the centre crop, so nothing to draw anew")
    return cells


def variation_mask(seeds: Tensor, spec: TokenSpec, share: float) -> Tensor:
    """A random share of the positions of each image, (B, N) bool: at least one, the rest known.

    Raises:
        ValueError: If the share is outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"variation: expected a share above 0 up to 1, found {share}")
    count = max(1, round(share * spec.num_tokens))
    noise = uniform(seeds, _VARIATION, (spec.num_tokens,))
    return torch.zeros_like(noise, dtype=torch.bool).scatter_(1, noise.argsort(1)[:, :count], True)
