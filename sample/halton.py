"""Halton orders of a grid: every prefix is spread over the picture (arXiv:2503.17076)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_PRIMES = (2, 3, 5, 7, 11, 13)


def halton_cell(number: int, base: int, size: int) -> int:
    """Cell of a Halton point in [0, 1), the radical inverse of `number`.

    Computed in integers: floats would put some points of a grid with 9 or 27 columns one cell off.

    Args:
        number: Number of the point, from 0.
        base: Base of the digits, a prime.
        size: Number of equal cells.

    Returns:
        Number of the cell, 0 to size - 1.
    """
    mirrored, scale = 0, 1
    while number:
        number, digit = divmod(number, base)
        mirrored, scale = mirrored * base + digit, scale * base
    return mirrored * size // scale


def halton_order(shape: Sequence[int]) -> Tensor:
    """Positions of a grid in Halton order.

    Points start at number 1, (1/2, 1/3) in two dimensions (base 2 for rows, 3 for columns). A
    position comes where its cell is first visited. Points are drawn until every cell is visited
    (the 10,000 points of the reference would miss some cells of a 64x64 grid).

    Example:
        >>> from tessella.sample.halton import halton_order
        >>> halton_order((2, 3))
        tensor([4, 2, 3, 1, 5, 0])

    Args:
        shape: Number of cells in each dimension, e.g. (rows, columns).

    Returns:
        Permutation of the row-major position numbers, (N,) int64.

    Raises:
        ValueError: If there are more than 6 dimensions.
    """
    if len(shape) > len(_PRIMES):
        raise ValueError(f"halton: expected at most {len(_PRIMES)} dimensions, found {len(shape)}")
    total = math.prod(shape)
    seen: dict[int, None] = {}
    number = 0
    while len(seen) < total:
        number += 1
        cell = 0
        for size, base in zip(shape, _PRIMES, strict=False):
            cell = cell * size + halton_cell(number, base, size)
        seen.setdefault(cell)
    return torch.tensor(list(seen))
