"""Bit packing in plain torch: the specification of `pack_codes`, `unpack_codes` and the signs.

An image is one dense string of bits: position after position, in a position field after field, each
of its given width; bit i of a field has the weight 2**i. Byte j holds bits 8j .. 8j + 7, bit 8j + i
with the weight 2**i. Every image starts at a byte; the unused high bits of its last byte are 0.

The overlaps of fields and bytes repeat after P = 8 / gcd(W, 8) positions of W bits. So a field of
every P-th position overlaps bytes at a fixed distance with a fixed shift, and a few shifts of
strided slices handle all of them: no bit is ever a tensor element, and no temporary tensor is
larger than the codes.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Overlap(NamedTuple):
    """A field and a byte of a period that share bits.

    Args:
        position: Position of the field in the period, 0 to P - 1.
        group: Group of the field.
        byte: Number of the byte in the period.
        shift: Exponent of the weight 2**shift of the byte's lowest bit in the field; negative if
            the field begins inside the byte, at bit -shift.
        mask: Mask of the bits of the byte that are not beyond the field.
    """

    position: int
    group: int
    byte: int
    shift: int
    mask: int


def num_packed_bytes(num_codes: int, widths: Sequence[int]) -> int:
    """Number of bytes of an image of `num_codes` positions with fields of these widths."""
    return (num_codes * sum(widths) + 7) // 8


def period_of(widths: Sequence[int]) -> tuple[int, int]:
    """Numbers of positions and of bytes after which the overlaps of fields and bytes repeat."""
    total = sum(widths)
    shared = math.gcd(total, 8)
    return 8 // shared, total // shared


def overlaps(widths: Sequence[int], num_codes: int) -> Iterator[Overlap]:
    """Iterate over the overlaps in the first period, of at most `num_codes` positions."""
    start = 0
    for position in range(min(num_codes, period_of(widths)[0])):
        for group, width in enumerate(widths):
            end = start + width
            for byte in range(start // 8, (end + 7) // 8):
                mask = 255 >> max(0, 8 * byte + 8 - end)
                yield Overlap(position, group, byte, 8 * byte - start, mask)
            start = end


def pack_codes_reference(codes: Tensor, widths: Sequence[int]) -> Tensor:
    """Pack fields (B, N, G) of any integer type, modulo 2**width each, to (B, bytes) uint8.

    Args:
        codes: Codes, one field per position and group, (B, N, G); N >= 1.
        widths: Number of bits of each of the G fields.
    """
    num_codes = codes.shape[1]
    num_bytes = num_packed_bytes(num_codes, widths)
    packed = codes.new_zeros(codes.shape[0], num_bytes, dtype=torch.uint8)
    positions, period = period_of(widths)
    for position, group, byte, shift, mask in overlaps(widths, num_codes):
        field = codes[:, position::positions, group]
        part = (field >> shift if shift > 0 else field << -shift).to(torch.uint8)
        packed[:, byte::period][:, : field.shape[1]] |= part.bitwise_and_(mask)
    return packed


def unpack_codes_reference(
    packed: Tensor, num_codes: int, widths: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """Unpack (B, bytes) uint8 to (B, N, G) of an integer type; inverse of `pack_codes_reference`.

    Args:
        packed: Packed images of `num_packed_bytes(num_codes, widths)` bytes each; unused bits are
            not read.
        num_codes: Number of positions N.
        widths: Number of bits of each of the G fields; they fit `dtype`.
        dtype: Integer type of the result.
    """
    codes = packed.new_zeros(packed.shape[0], num_codes, len(widths), dtype=dtype)
    positions, period = period_of(widths)
    for position, group, byte, shift, mask in overlaps(widths, num_codes):
        field = codes[:, position::positions, group]
        part = packed[:, byte::period][:, : field.shape[1]] & mask
        field |= part.to(dtype) << shift if shift > 0 else (part >> -shift).to(dtype)
    return codes


def pack_signs_reference(x: Tensor) -> Tensor:
    """Pack bits x >= 0 of (B, n) to (B, ceil(n / 8)) uint8; the sign of 0 and -0 is +1."""
    return pack_codes_reference((x >= 0).view(torch.uint8)[..., None], (1,))


def unpack_signs_reference(packed: Tensor, num_signs: int, dtype: torch.dtype) -> Tensor:
    """Unpack signs to (B, n) of a float type in {-1, 1}; inverse of `pack_signs_reference`."""
    bits = unpack_codes_reference(packed, num_signs, (1,), torch.uint8)[..., 0]
    return bits.to(dtype).mul_(2).sub_(1)
