"""Codes, bits and bytes, one into the other; least significant first everywhere.

A joint index is sum of entry times the product of the sizes before it; bit i of an entry weighs
2**i; byte j holds bits 8j .. 8j + 7. The one layout of the project, on disk and in kernels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_JOINT = 2**62
"""Largest index: they are int64, and sums of two must not overflow."""


def pack_bits(bits: Tensor) -> Tensor:
    """Bits in {0, 1}, (..., n) of any integer or bool dtype, as (..., ceil(n / 8)) uint8.

    The unused high bits of the last byte are 0.
    """
    num_bits = bits.shape[-1]
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, -num_bits % 8))
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (padded.unflatten(-1, (-1, 8)) * weights).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, num_bits: int) -> Tensor:
    """Inverse of `pack_bits`: (..., ceil(n / 8)) uint8 as (..., n) uint8 in {0, 1}.

    Raises:
        ValueError: If the byte count does not fit `num_bits`.
    """
    if packed.dtype != torch.uint8 or packed.shape[-1] != (num_bits + 7) // 8:
        raise ValueError(
            f"packed: expected {(num_bits + 7) // 8} uint8 for {num_bits} bits, "
            f"found {packed.shape[-1]} {packed.dtype}"
        )
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> shifts) & 1).flatten(-2)[..., :num_bits]


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
