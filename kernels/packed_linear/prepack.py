"""Layout of weights that the Triton kernels read, made from a stored weight when it is loaded.

K is cut into blocks of `DEPTH` columns times the codes of a byte (8, 4 or 2). Byte j of a block
holds columns i * DEPTH + j of the block, the first in its lowest bits: one shift of `DEPTH` bytes
gives `DEPTH` adjacent columns, the operand of one tensor-core product, without a reshape or a
shuffle. Trits of `tern3` become two bits each. Scales become float32 (planes, groups, N), so that a
block of rows reads adjacent numbers.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from .formats import (
    CODES_PER_BYTE,
    PackedWeight,
    integer_levels,
    num_planes,
    packed_rows,
    scale_groups,
    unpack_rows,
)

DEPTH = 32
"""Number of columns of one product: the least depth of int8 operands on tensor cores."""
MAX_SPAN = 127
"""Largest distance between two levels of a table, in steps: a code times the factor must fit the 7
bits of a bfloat16 mantissa."""
FACTOR_AND_OFFSET = {
    "bin1": (2, -1),
    "bin2": (2, -1),
    "tern2": (1, -1),
    "tern3": (1, -1),
    "u4": (1, -8),
}
"""Factor and offset of each format without a level table, with level = factor * code + offset."""


@dataclass(frozen=True, eq=False)
class PrepackedWeight:
    """A weight in the layout of the kernels, together with the stored one.

    Args:
        stored: Weight in the storage layout, which the reference reads.
        qdata: Codes in the kernels' layout, (planes, N, blocks * DEPTH) uint8.
        scale: Scales times the step of the levels, (planes, G, N) float32.
        zero: Zero points, (G, N) uint8; None: symmetric.
    """

    stored: PackedWeight
    qdata: Tensor
    scale: Tensor
    zero: Tensor | None

    @property
    def tensors(self) -> list[Tensor]:
        """Tensors that the kernels read: codes, scales and, if there are any, zero points."""
        return [self.qdata, self.scale, *([] if self.zero is None else [self.zero])]


def kernel_tag(tag: str) -> str:
    """Format that the kernels read for a storage format: `tern2` for `tern3`."""
    return "tern2" if tag == "tern3" else tag


def affine_levels(
    tag: str, level_table: tuple[float, ...] | None, asymmetric: bool
) -> tuple[float, int, int] | None:
    """Step, factor and offset with level = step * (factor * code + offset); None: impossible."""
    if asymmetric:
        return 1.0, 1, 0
    if level_table is None:
        return 1.0, *FACTOR_AND_OFFSET[tag]
    grid = integer_levels(level_table)
    if grid is None:
        return None
    step, (first, second, *rest) = grid
    factor = second - first
    if rest != [first + 2 * factor, first + 3 * factor] or factor < 1 or 3 * factor > MAX_SPAN:
        return None
    return step, factor, first


def kernel_refusal(
    tag: str,
    scale: Tensor,
    zero: Tensor | None,
    level_table: tuple[float, ...] | None,
    columns: int,
) -> str | None:
    """Reason why the kernels cannot take a weight, or None if they can."""
    groups = scale_groups(tag, scale)
    if groups > 1 and (columns // groups) % DEPTH:
        return f"groups of {columns // groups} columns are not a multiple of {DEPTH}"
    if affine_levels(tag, level_table, zero is not None) is None:
        return f"levels {level_table} are not equally spaced small integers times a power of two"
    return None


def prepack(weight: PackedWeight) -> PrepackedWeight:
    """Rearrange a weight for the kernels, on its device.

    Raises:
        ValueError: If the kernels cannot take it; the message has the reason.
    """
    reason = kernel_refusal(
        weight.tag, weight.scale, weight.zero, weight.level_table, weight.num_columns
    )
    if reason is not None:
        raise ValueError(f"prepack: {reason}")
    tensors = prepack_tensors(
        weight.qdata, weight.scale, weight.zero, weight.tag, weight.num_columns, weight.level_table
    )
    qdata, factors, *zeros = tensors
    return PrepackedWeight(weight, qdata, factors, zeros[0] if zeros else None)


def prepack_tensors(
    qdata: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    tag: str,
    num_columns: int,
    level_table: tuple[float, ...] | None,
) -> list[Tensor]:
    """Codes, scales and, if there are any, zero points in the layout of `PrepackedWeight`."""
    planes, num_rows, groups = num_planes(tag), qdata.shape[-2], scale_groups(tag, scale)
    codes = unpack_rows(qdata, tag, num_columns).view(planes, num_rows, num_columns)
    per_byte = CODES_PER_BYTE[kernel_tag(tag)]
    room = -num_columns % (per_byte * DEPTH)
    blocks = F.pad(codes, (0, room)).view(planes, num_rows, -1, per_byte, DEPTH)
    # Byte j takes codes j, DEPTH + j, ...: transposed, they are adjacent, as the stored rule packs.
    packed = packed_rows(blocks.transpose(-1, -2).flatten(2), kernel_tag(tag))
    affine = affine_levels(tag, level_table, zero is not None)
    assert affine is not None
    factors = (scale.float() * affine[0]).view(planes, -1, groups).expand(planes, num_rows, groups)
    tensors = [packed, factors.transpose(1, 2).contiguous()]
    return tensors if zero is None else [*tensors, zero.t().contiguous()]
