"""Entries, joint indices and bits, one into the other; least significant first everywhere.

A joint index is sum of entry times the product of the sizes before it; bit i of an entry weighs
2**i. Bytes, on disk and in kernels, are those of `kernels/bit_packing`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_JOINT = 2**62
"""Largest index: they are int64, and sums of two must not overflow."""


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
    """Inverse of `join_entries`, (...) -> (..., G)."""
    entries = []
    for size in codebook_sizes:
        entries.append(joint % size)
        joint = joint // size
    return torch.stack(entries, dim=-1)


def split_bits(fields: Tensor, widths: Sequence[int]) -> Tensor:
    """Fields (..., F) of the given bit widths as one bit string (..., sum of widths)."""
    parts = []
    for f, width in enumerate(widths):
        shifts = torch.arange(width, device=fields.device)
        parts.append((fields[..., f, None] >> shifts) & 1)
    return torch.cat(parts, dim=-1)


def join_bits(bits: Tensor, widths: Sequence[int]) -> Tensor:
    """Bits (..., sum of widths) as fields (..., F) int64; inverse of `split_bits`."""
    parts, start = [], 0
    for width in widths:
        shifts = torch.arange(width, device=bits.device)
        parts.append((bits[..., start : start + width].long() << shifts).sum(-1))
        start += width
    return torch.stack(parts, dim=-1)


def group_sizes(num_bits: int, max_group_bits: int) -> list[int]:
    """Bits per group: as few groups as possible, as even as possible."""
    groups = -(-num_bits // max_group_bits)
    return [num_bits // groups + (i < num_bits % groups) for i in range(groups)]
