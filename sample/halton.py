"""Halton orders of a grid: every prefix is spread over the picture (arXiv:2503.17076)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_PRIMES = (2, 3, 5, 7, 11, 13)


def radical_inverse(number: int, base: int) -> float:
    """The digits of `number` in `base`, mirrored at the point: in [0, 1)."""
    value, share = 0.0, 1.0
    while number:
        share /= base
        number, digit = divmod(number, base)
        value += digit * share
    return value


def halton_order(shape: Sequence[int]) -> Tensor:
    """Positions of a grid in Halton order, (N,) int64: a permutation, row-major numbers.

    Points start at number 1, (1/2, 1/3) in two dimensions (base 2 for rows, 3 for columns); each
    names the cell that it falls in, and the first visit counts. Points are drawn until no cell is
    left out (10,000, as in the reference, would miss some of a 64x64 grid).
    """
    total = math.prod(shape)
    seen: dict[int, None] = {}
    number = 0
    while len(seen) < total:
        number += 1
        cell = 0
        for size, base in zip(shape, _PRIMES, strict=False):
            cell = cell * size + int(radical_inverse(number, base) * size)
        seen.setdefault(cell)
    return torch.tensor(list(seen))
