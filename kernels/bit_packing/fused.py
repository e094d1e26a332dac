"""Bit packing in Triton: a program owns a tile of packed bytes, or of unpacked codes.

Packing: each byte is the OR of its parts of all codes that overlap it, so no two programs write to
one byte. Unpacking: each code is assembled from the bytes that cover it. Every loop is unrolled:
over groups, over the positions that overlap a byte, over the bytes that cover a code. Bits of an
image are counted in int32, images and memory in int64; no arithmetic on floats.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# The arguments of `triton.jit` functions have Triton's types, which Python cannot name.
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import Launch, ceil_div, power_of_two, strides
from .reference import num_packed_bytes

TILE = 1024
"""Number of bytes or codes of a program."""


@triton.jit
def tile_of(column_blocks, BB: tl.constexpr, BC: tl.constexpr):
    """Rows (BB,) int64 and columns (BC,) int32 of this program."""
    block = tl.program_id(0)
    rows = (block // column_blocks).to(tl.int64) * BB + tl.arange(0, BB)
    return rows, (block % column_blocks) * BC + tl.arange(0, BC)


@triton.jit
def pack_codes_kernel(
    codes,
    packed,
    num_images,
    num_positions,
    num_bytes,
    column_blocks,
    codes_stride_b,
    codes_stride_n,
    codes_stride_g,
    WIDTHS: tl.constexpr,
    STARTS: tl.constexpr,
    TOTAL: tl.constexpr,
    GROUPS: tl.constexpr,
    POSITIONS: tl.constexpr,
    WIDE: tl.constexpr,
    BB: tl.constexpr,
    BC: tl.constexpr,
):
    """Write a tile of bytes, each the OR of the codes that overlap it."""
    image, j = tile_of(column_blocks, BB, BC)
    live = (image < num_images)[:, None] & (j < num_bytes)[None, :]
    where_image = (image * codes_stride_b)[:, None]
    bit = j * 8
    found = tl.zeros([BB, BC], tl.int32)
    for step in tl.static_range(POSITIONS):
        position = bit // TOTAL + step
        where = where_image + (position.to(tl.int64) * codes_stride_n)[None, :]
        for group in tl.static_range(GROUPS):
            first = position * TOTAL + STARTS[group] - bit  # bit of the field in the byte
            meets = (first < 8) & (first + WIDTHS[group] > 0) & (position < num_positions)  # (BC,)
            code = tl.load(codes + where, mask=live & meets[None, :], other=0)
            where += codes_stride_g
            code = code.to(tl.int64 if WIDE else tl.int32) & ((1 << WIDTHS[group]) - 1)
            right = tl.minimum(tl.maximum(-first, 0), WIDTHS[group] - 1)[None, :]
            left = tl.minimum(tl.maximum(first, 0), 7)[None, :]
            found |= (code >> right).to(tl.int32) << left
    where_out = image[:, None] * num_bytes + j[None, :]
    tl.store(packed + where_out, (found & 255).to(tl.uint8), mask=live)


@triton.jit
def unpack_codes_kernel(
    packed,
    codes,
    num_images,
    num_positions,
    num_bytes,
    column_blocks,
    WIDTHS: tl.constexpr,
    STARTS: tl.constexpr,
    TOTAL: tl.constexpr,
    GROUPS: tl.constexpr,
    COVER: tl.constexpr,
    WIDE: tl.constexpr,
    BB: tl.constexpr,
    BC: tl.constexpr,
):
    """Write a tile of codes, each from the bytes that cover it."""
    image, position = tile_of(column_blocks, BB, BC)
    live = (image < num_images)[:, None] & (position < num_positions)[None, :]
    where_image = (image * num_bytes)[:, None]
    where_out = (image * num_positions)[:, None] + position[None, :]
    for group in tl.static_range(GROUPS):
        bit = position * TOTAL + STARTS[group]
        code = tl.zeros([BB, BC], tl.int64 if WIDE else tl.int32)
        for i in tl.static_range(COVER):
            mask = live & (8 * i < bit % 8 + WIDTHS[group])[None, :]
            where = where_image + (bit // 8 + i)[None, :]
            byte = tl.load(packed + where, mask=mask, other=0).to(code.dtype)
            if i == 0:
                code = byte >> (bit % 8)[None, :]
            else:
                # A byte that would be shifted by more lies beyond the field: it is 0.
                code |= byte << tl.minimum(8 * i - bit % 8, 63 if WIDE else 31)[None, :]
        code &= (1 << WIDTHS[group]) - 1
        tl.store(codes + where_out * GROUPS + group, code.to(codes.dtype.element_ty), mask=live)


@triton.jit
def pack_signs_kernel(
    x,
    packed,
    num_rows,
    num_signs,
    num_bytes,
    column_blocks,
    x_stride_b,
    x_stride_n,
    BB: tl.constexpr,
    BC: tl.constexpr,
):
    """Write a tile of bytes of eight signs each."""
    row, j = tile_of(column_blocks, BB, BC)
    i = tl.arange(0, 8)
    number = (j * 8)[:, None] + i[None, :]  # (BC, 8)
    live = (row < num_rows)[:, None, None] & (number < num_signs)[None, :, :]
    where = (row * x_stride_b)[:, None, None] + (number.to(tl.int64) * x_stride_n)[None, :, :]
    # Numbers beyond the end of a row count as negative: the unused bits are 0.
    positive = tl.load(x + where, mask=live, other=-1.0).to(tl.float32) >= 0
    found = tl.sum(positive.to(tl.int32) << i[None, None, :], 2)  # (BB, BC)
    ok = (row < num_rows)[:, None] & (j < num_bytes)[None, :]
    tl.store(packed + row[:, None] * num_bytes + j[None, :], found.to(tl.uint8), mask=ok)


@triton.jit
def unpack_signs_kernel(
    packed,
    signs,
    num_rows,
    num_signs,
    num_bytes,
    column_blocks,
    BB: tl.constexpr,
    BC: tl.constexpr,
):
    """Write a tile of numbers -1 or +1."""
    row, n = tile_of(column_blocks, BB, BC)
    live = (row < num_rows)[:, None] & (n < num_signs)[None, :]
    where = row[:, None] * num_bytes + (n // 8)[None, :]
    bit = (tl.load(packed + where, mask=live, other=0).to(tl.int32) >> (n % 8)[None, :]) & 1
    sign = tl.where(bit != 0, 1.0, -1.0).to(signs.dtype.element_ty)
    tl.store(signs + row[:, None] * num_signs + n[None, :], sign, mask=live)


def pack_codes_fused(codes: Tensor, widths: Sequence[int]) -> Tensor:
    """Compute `reference.pack_codes_reference` in one kernel."""
    launch = pack_codes_launch(codes, widths)
    return _run(launch, "packed", codes.device)


def unpack_codes_fused(
    packed: Tensor, num_codes: int, widths: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """Compute `reference.unpack_codes_reference` in one kernel."""
    launch = unpack_codes_launch(packed, num_codes, widths, dtype)
    return _run(launch, "codes", packed.device)


def pack_signs_fused(x: Tensor) -> Tensor:
    """Compute `reference.pack_signs_reference` in one kernel."""
    return _run(pack_signs_launch(x), "packed", x.device)


def unpack_signs_fused(packed: Tensor, num_signs: int, dtype: torch.dtype) -> Tensor:
    """Compute `reference.unpack_signs_reference` in one kernel."""
    return _run(unpack_signs_launch(packed, num_signs, dtype), "signs", packed.device)


def pack_codes_launch(codes: Tensor, widths: Sequence[int]) -> Launch:
    """Launch of the packing kernel; `packed` is among its arguments."""
    num_images, num_positions, _ = codes.shape
    num_bytes = num_packed_bytes(num_positions, widths)
    total = sum(widths)
    positions = max((8 * j + 7) // total - 8 * j // total + 1 for j in range(total))
    arguments = {
        "codes": codes,
        "packed": codes.new_empty(num_images, num_bytes, dtype=torch.uint8),
        "num_images": num_images,
        "num_positions": num_positions,
        "num_bytes": num_bytes,
        **strides("codes", "bng", codes),
        **_fields(widths),
        "POSITIONS": positions,
        "WIDE": max(widths) > 31,
    }
    tile = _tile(positions * len(widths))
    return _launch(pack_codes_kernel, arguments, num_images, num_bytes, tile)


def unpack_codes_launch(
    packed: Tensor, num_codes: int, widths: Sequence[int], dtype: torch.dtype
) -> Launch:
    """Launch of the unpacking kernel; `codes` is among its arguments."""
    num_images, num_bytes = packed.shape
    fields = _fields(widths)
    first_bits = [n * fields["TOTAL"] + start for n in range(8) for start in fields["STARTS"]]
    arguments = {
        "packed": packed.contiguous(),
        "codes": packed.new_empty(num_images, num_codes, len(widths), dtype=dtype),
        "num_images": num_images,
        "num_positions": num_codes,
        "num_bytes": num_bytes,
        **fields,
        "COVER": max(
            ceil_div(bit % 8 + width, 8)
            for bit, width in zip(first_bits, 8 * list(widths), strict=True)
        ),
        "WIDE": max(widths) > 24,  # with up to 7 bits in front of it a code fits int32
    }
    return _launch(unpack_codes_kernel, arguments, num_images, num_codes, _tile(len(widths)))


def pack_signs_launch(x: Tensor) -> Launch:
    """Launch of the packing kernel; `packed` is among its arguments."""
    num_rows, num_signs = x.shape
    num_bytes = num_packed_bytes(num_signs, [1])
    arguments = {
        "x": x,
        "packed": x.new_empty(num_rows, num_bytes, dtype=torch.uint8),
        "num_rows": num_rows,
        "num_signs": num_signs,
        "num_bytes": num_bytes,
        **strides("x", "bn", x),
    }
    return _launch(pack_signs_kernel, arguments, num_rows, num_bytes, TILE // 4)


def unpack_signs_launch(packed: Tensor, num_signs: int, dtype: torch.dtype) -> Launch:
    """Launch of the unpacking kernel; `signs` is among its arguments."""
    num_rows, num_bytes = packed.shape
    arguments = {
        "packed": packed.contiguous(),
        "signs": packed.new_empty(num_rows, num_signs, dtype=dtype),
        "num_rows": num_rows,
        "num_signs": num_signs,
        "num_bytes": num_bytes,
    }
    return _launch(unpack_signs_kernel, arguments, num_rows, num_signs, TILE)


def _fields(widths: Sequence[int]) -> dict[str, Any]:
    """Kernel arguments of the fields of a position: widths, first bits, and bits in total."""
    starts = tuple(sum(widths[:group]) for group in range(len(widths)))
    fields = {"WIDTHS": tuple(widths), "STARTS": starts}
    return fields | {"TOTAL": sum(widths), "GROUPS": len(widths)}


def _tile(num_loads: int) -> int:
    """Number of bytes or codes of a program: few where unrolled loops take many registers."""
    return TILE if num_loads <= 4 else TILE // 4


def _launch(
    kernel: Any, arguments: dict[str, Any], num_rows: int, num_columns: int, tile: int
) -> Launch:
    """Launch over (rows, columns) in tiles that are wide where rows are long."""
    block_columns = min(tile // 4, power_of_two(num_columns))
    block_rows = tile // block_columns
    column_blocks = ceil_div(num_columns, block_columns)
    grid = (ceil_div(num_rows, block_rows) * column_blocks,)
    tiles = {"column_blocks": column_blocks, "BB": block_rows, "BC": block_columns}
    return Launch(kernel, grid, arguments | tiles, {"num_warps": 4, "num_stages": 1})


def _run(launch: Launch, name: str, device: torch.device) -> Tensor:
    """Run a launch and return its output of a name; 0 images need no launch."""
    if launch.grid[0]:
        launch.run(device)
    return launch.output(name)
