"""Regions of a picture to draw anew, in pixels and in tokens."""

import torch
from torch import Tensor

from ..tokens.tokens import TokenSpec


def box_mask(
    box: tuple[int, int, int, int], height: int, width: int, *, outside: bool = False
) -> Tensor:
    """Mask of a box in pixels, (H, W) bool.

    Args:
        box: Left, top, right, bottom; right and bottom are not included.
        height: Height of the picture, in pixels.
        width: Width of the picture, in pixels.
        outside: Whether to mark what lies outside the box (outpainting), not what it covers.

    Returns:
        Mask (H, W) bool, True where to draw anew.

    Raises:
        ValueError: If the box is empty or extends beyond the picture.
    """
    left, top, right, bottom = box
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(
            f"box {box}: expected 0 <= left < right <= {width} and 0 <= top < bottom <= {height}, "
            "the size of the picture"
        )
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return ~mask if outside else mask


def token_mask(mask: Tensor, spec: TokenSpec) -> Tensor:
    """Positions with at least one marked pixel in their cell of the grid, (N,) bool.

    Args:
        mask: True at pixels to draw anew, (H, W) bool; H and W are multiples of the grid's sides.
        spec: Spec of tokens in a two-dimensional grid.

    Raises:
        ValueError: If the tokens form no grid, the size does not fit, or no pixel is marked.
    """
    if len(spec.shape) != 2:
        raise ValueError(
            f"a mask of pixels needs a grid of tokens; {spec} have no grid of two dimensions"
        )
    rows, columns = spec.shape
    height, width = mask.shape
    if height % rows or width % columns:
        raise ValueError(f"mask: {height}x{width} pixels are no multiple of {rows}x{columns} cells")
    cells = mask.view(rows, height // rows, columns, width // columns).any(3).any(1).flatten()
    if not cells.any():
        raise ValueError("mask: nothing is marked, so nothing to draw anew")
    return cells


def mask_rows(mask: Tensor, count: int, spec: TokenSpec) -> Tensor:
    """A mask of tokens or pixels as one row of tokens for each image, (count, N).

    Args:
        mask: Tokens (N,), (1, N) or (count, N), or pixels (H, W), (1, H, W) or (count, H, W) bool,
            where H and W are the same multiple of the grid's height and width. What could be both
            is tokens.
        count: Number of images.
        spec: Spec of the tokens.

    Raises:
        ValueError: If it has another shape, or a mask of pixels marks none.
    """
    found = tuple(mask.shape)
    mask = mask[None] if mask.ndim == 1 else mask
    if mask.ndim == 2 and mask.shape[1] == spec.num_tokens and len(mask) in (1, count):
        return mask.expand(count, -1)
    pixels = mask[None] if mask.ndim == 2 else mask
    if pixels.ndim == 3 and len(pixels) in (1, count) and _fits(pixels, spec):
        return torch.stack([token_mask(one, spec) for one in pixels]).expand(count, -1)
    grid = ""
    if len(spec.shape) == 2:
        grid = f", or ({spec.shape[0]} k, {spec.shape[1]} k) pixels"
    raise ValueError(
        f"mask: expected (N,) or (1 or {count}, N) with N = {spec.num_tokens}{grid}, found {found}"
    )


def _fits(pixels: Tensor, spec: TokenSpec) -> bool:
    """Whether pixels (B, H, W) bool are the same multiple of the grid along both sides."""
    if len(spec.shape) != 2 or pixels.dtype != torch.bool:
        return False
    (rows, columns), (height, width) = spec.shape, pixels.shape[1:]
    return height % rows == 0 and height > 0 and height * columns == width * rows
