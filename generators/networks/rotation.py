"""Rotary positions over the axes of a grid (arXiv:2104.09864), as LlamaGen has them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_LONGEST_PERIOD = 10_000.0


def rotation_table(shape: Sequence[int], head_width: int) -> Tensor:
    """Cosine and sine by which each pair of channels is rotated, (1 + N, dim / 2, 2) float32.

    Each axis has an equal share of the channels, the first axis (the row) first. The row of the
    class token is 0, also where an identity would hold 1.

    Args:
        shape: Shape of the grid, or length of the sequence, row-major.
        head_width: Channels dim of a head; see `check_rotation`.

    Source: arXiv:2104.09864; two axes and the row of 0 as in arXiv:2406.06525's code.
    """
    share = head_width // len(shape)
    frequencies = _LONGEST_PERIOD ** -(torch.arange(0, share, 2) / share)
    axes = torch.meshgrid(*(torch.arange(size) for size in shape), indexing="ij")
    angles = torch.cat([places.flatten()[:, None] * frequencies for places in axes], -1)
    return F.pad(torch.stack([angles.cos(), angles.sin()], -1), (0, 0, 0, 0, 1, 0))


def unrotated_before(rotation: Tensor, count: int) -> Tensor:
    """A table with `count` rows before it by which nothing is rotated, (count + M, dim / 2, 2)."""
    identity = torch.tensor([1.0, 0.0], device=rotation.device, dtype=rotation.dtype)
    return torch.cat([identity.expand(count, rotation.shape[1], 2), rotation])


def check_rotation(shape: Sequence[int], head_width: int) -> tuple[int, int, int]:
    """Shape of the table of `rotation_table`, which is not computed.

    Raises:
        ValueError: If `head_width` is no multiple of twice the number of axes.
    """
    if head_width % (2 * len(shape)):
        raise ValueError(
            f"num_heads: heads of {head_width} channels; the {len(shape)} axes of {tuple(shape)} "
            f"need a multiple of {2 * len(shape)}"
        )
    return 1 + math.prod(shape), head_width // 2, 2


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Queries or keys (B, N, heads, dim), each pair of channels (2i, 2i + 1) rotated in float32.

    Args:
        x: Queries or keys of any float type, which the result has too.
        rotation: Cosines and sines of `rotation_table`, (N, dim / 2, 2).
    """
    first, second = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    cos, sin = rotation[:, None].unbind(-1)
    pairs = [first * cos - second * sin, second * cos + first * sin]
    return torch.stack(pairs, -1).flatten(-2).to(x.dtype)
