"""Halton orders of a grid: every prefix is spread over the picture (arXiv:2503.17076)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_PRIMES = (2, 3, 5, 7, 11, 13)


def halton_cell(number: int, base: int, size: int) -> int:
    """Which of `size` equal cells of [0, 1) holds the digits of `number`, mirrored at the point.

    In whole numbers: floats would put some points of a grid with 9 or 27 columns one cell off.
    """
    mirrored, scale = 0, 1
    while number:
        number, digit = divmod(number, base)
        mirrored, scale = mirrored * base + digit, scale * base
    return mirrored * size // scale


def halton_order(shape: Sequence[int]) -> Tensor:
    """Positions of a grid in Halton order, (N,) int64: a permutation, row-major numbers.

    Points start at number 1, (1/2, 1/3) in two dimensions (base 2 for rows, 3 for columns); each
    names the cell that it falls in, and the first visit counts. Points are drawn until no cell is
    left out (10,000, as in the reference, would miss some of a 64x64 grid).

    Raises:
        ValueError: If there are more dimensions than bases.
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
