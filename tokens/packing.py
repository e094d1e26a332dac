"""Conversions between entries, joint indices and bits; least significant first everywhere.

A joint index is the sum of each entry times the product of the sizes before it; bit i of an entry
has the weight 2**i. Bytes, on disk and in kernels, are those of `kernels/bit_packing`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_JOINT = 2**62
"""Largest number of joint values: indices are int64, and sums of two must not overflow."""


def join_entries(indices: Tensor, codebook_sizes: Sequence[int]) -> Tensor:
    """Joint index of each position, (..., G) -> (...), entry 0 least significant, int64 throughout.

    Raises:
        ValueError: If the joint vocabulary exceeds 2**62.
    """
    if math.prod(codebook_sizes) > MAX_JOINT:
        raise ValueError(f"joint index: {math.prod(codebook_sizes)} values exceed 2**62; use bits")
    joint, basis = torch.zeros_like(indices[..., 0]), 1
    for g, size in enumerate(codebook_sizes):
        joint = joint + indices[..., g] * basis
        basis *= size
    return joint


def split_joint(joint: Tensor, codebook_sizes: Sequence[int]) -> Tensor:
    """Entries of joint indices, (...) -> (..., G); inverse of `join_entries`."""
    entries = []
    for size in codebook_sizes:
        entries.append(joint % size)
        joint = joint // size
    return torch.stack(entries, dim=-1)


def split_bits(fields: Tensor, widths: Sequence[int]) -> Tensor:
    """Bit strings (..., sum of widths) of fields (..., F) with the given widths in bits."""
    parts = []
    for f, width in enumerate(widths):
        shifts = torch.arange(width, device=fields.device)
        parts.append((fields[..., f, None] >> shifts) & 1)
    return torch.cat(parts, dim=-1)


def join_bits(bits: Tensor, widths: Sequence[int]) -> Tensor:
    """Fields (..., F) int64 of bit strings (..., sum of widths); inverse of `split_bits`."""
    parts, start = [], 0
    for width in widths:
        shifts = torch.arange(width, device=bits.device)
        parts.append((bits[..., start : start + width].long() << shifts).sum(-1))
        start += width
    return torch.stack(parts, dim=-1)


def group_sizes(num_bits: int, max_group_bits: int) -> list[int]:
    """Numbers of bits per group, for groups as few as possible and as even as possible."""
    groups = -(-num_bits // max_group_bits)
    return [num_bits // groups + (i < num_bits % groups) for i in range(groups)]
