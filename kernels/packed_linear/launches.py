"""Launches of the kernels of `fused.py`: tile sizes and splits by shape, and running them."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backends import INTERPRETED
from ..launch import NUM_PROGRAMS, Launch, ceil_div
from .formats import CODES_PER_BYTE, num_planes
from .fused import (
    add_splits_kernel,
    packed_linear_kernel,
    quantize_tokens_kernel,
    unpack_kernel,
)
from .prepack import DEPTH, affine_levels, kernel_tag
from .reference import INT8_MAX

MAX_SPLITS = 8
"""Largest number of splits of K: each writes and reads 4 more bytes per output."""
QUANTIZED_ROWS = 4
"""Number of rows of a block of the activation quantizer."""


def packed_linear_fused(
    x: Tensor,
    prepacked: list[Tensor],
    bias: Tensor | None,
    act_scale: Tensor | None,
    *,
    tag: str,
    level_table: tuple[float, ...] | None,
    activations: str,
    route: str,
) -> Tensor:
    """Compute `reference.packed_linear_reference` with a prepacked weight.

    Args:
        x: Input, (M, K) with a stride of 1 along K.
        prepacked: Tensors of the weight, `PrepackedWeight.tensors`.
        bias: Bias, (N,) float; None: no bias.
        act_scale: Common scale of the activations, (1,) float32; None: one per token.
        tag: Format of the stored weight.
        level_table: Level table of the stored weight, or None.
        activations: Treatment of x, `float` or `int8`.
        route: Way of the product: `fused`, or `unpack` for a weight in the type of x and a plain
            matrix product.
    """
    settings: dict[str, Any] = {"tag": tag, "level_table": level_table}
    if route == "unpack":
        weight = unpack_fused(prepacked, num_columns=x.shape[1], dtype=x.dtype, **settings)
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))
    rows, factor, dtype = x, None, x.dtype
    if activations == "int8":
        launch = quantize_launch(x, act_scale, prepacked[0].shape[-1] * codes_per_byte(tag))
        launch.run(x.device)
        rows, factor = launch.output("codes"), launch.output("scales")
    launches = linear_launches(
        rows, prepacked, bias, factor, num_columns=x.shape[1], dtype=dtype, **settings
    )
    for launch in launches:
        launch.run(x.device)
    return launches[-1].output()


def unpack_fused(
    prepacked: list[Tensor],
    *,
    tag: str,
    level_table: tuple[float, ...] | None,
    num_columns: int,
    dtype: torch.dtype,
) -> Tensor:
    """Decode a prepacked weight to (N, K) rounded to a type."""
    launch = unpack_launch(
        prepacked, tag=tag, level_table=level_table, num_columns=num_columns, dtype=dtype
    )
    launch.run(prepacked[0].device)
    return launch.output()


def codes_per_byte(tag: str) -> int:
    """Number of codes of a byte in the kernels' layout."""
    return CODES_PER_BYTE[kernel_tag(tag)]


def linear_launches(
    x: Tensor,
    prepacked: list[Tensor],
    bias: Tensor | None,
    act_scale: Tensor | None,
    *,
    tag: str,
    level_table: tuple[float, ...] | None,
    num_columns: int,
    dtype: torch.dtype,
) -> list[Launch]:
    """Launches of the product and, if K is split, of the sum over splits.

    `out` of the last launch is the result. Rows of int8 x are padded with 0 to the length of the
    blocks of the weight, and `act_scale` is then (M,).
    """
    (planes, num_outputs, width), num_rows = prepacked[0].shape, x.shape[0]
    num_blocks = width // DEPTH
    weight = weight_arguments(prepacked, tag, level_table, num_columns)
    per_byte = codes_per_byte(tag)
    chunk = math.gcd(weight["GROUP"] // DEPTH, per_byte)
    block_m, block_n, num_warps, num_stages = tiles(num_rows, planes, per_byte, per_byte // chunk)
    programs = ceil_div(num_outputs, block_n) * ceil_div(num_rows, block_m)
    splits = min(MAX_SPLITS, num_blocks, max(1, NUM_PROGRAMS // programs))
    per_split = ceil_div(num_blocks, splits)
    splits = ceil_div(num_blocks, per_split)
    out = x.new_empty(num_rows, num_outputs, dtype=dtype)
    sums = x.new_empty(splits, num_rows, num_outputs, dtype=torch.float32) if splits > 1 else out
    end = {"bias": bias, "act_scale": act_scale}
    arguments = {
        "x": x,
        **weight,
        **({"bias": None, "act_scale": None} if splits > 1 else end),
        "out": sums,
        "num_rows": num_rows,
        "num_blocks": num_blocks,
        "blocks_per_split": per_split,
        "x_stride_m": x.stride(0),
        "CHUNK": chunk,
        "SPLIT": splits > 1,
        "EVEN": x.dtype == torch.int8 or num_columns == width * per_byte,
        "BM": block_m,
        "BN": block_n,
    }
    grid = (ceil_div(num_outputs, block_n), ceil_div(num_rows, block_m), splits)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    product = Launch(packed_linear_kernel, grid, arguments, options)
    if splits == 1:
        return [product]
    arguments = {
        "sums": sums,
        "out": out,
        **end,
        "num_rows": num_rows,
        "num_outputs": num_outputs,
        "num_splits": splits,
        "BM": 16,
        "BN": 128,
    }
    blocks = (ceil_div(num_outputs, 128), ceil_div(num_rows, 16))
    options = {"num_warps": 4, "num_stages": 1}
    return [product, Launch(add_splits_kernel, blocks, arguments, options)]


def tiles(num_rows: int, planes: int, per_byte: int, scales: int) -> tuple[int, int, int, int]:
    """Numbers of rows of x and of output channels of a block, of warps and of stages.

    Sums of a second plane, and of groups where a step along K covers several `scales`, take the
    registers of half the channels; with masks at the end of K they also need more warps, and both
    together do not fit a block of 32 rows. With 8 codes in a byte a stage holds 8 tiles of x, and a
    third stage would leave memory for a single program on a multiprocessor.
    """
    if num_rows <= (16 if planes == 2 and scales > 1 else 32):
        return (16 if num_rows <= 16 else 32), 64, 4 if scales == 1 else 8, 4
    num_stages = 2 if per_byte == 8 else 3
    block_n = 128 // planes // (1 if scales == 1 else 2)
    if num_rows <= 256:
        return 64, block_n, 4 if planes == scales == 1 else 8, num_stages
    return 128, block_n, 8, num_stages


def weight_arguments(
    prepacked: list[Tensor], tag: str, level_table: tuple[float, ...] | None, num_columns: int
) -> dict[str, Any]:
    """Kernel arguments that describe a prepacked weight."""
    packed, scale, *zeros = prepacked
    affine = affine_levels(tag, level_table, bool(zeros))
    assert affine is not None
    groups = scale.shape[1]
    return {
        "weight": packed,
        "scale": scale,
        "zero": zeros[0] if zeros else None,
        "num_outputs": packed.shape[1],
        "num_columns": num_columns,
        "num_groups": groups,
        "weight_stride_p": packed.stride(0),
        "weight_stride_n": packed.stride(1),
        "BITS": 8 // codes_per_byte(tag),
        "FACTOR": affine[1],
        "OFFSET": affine[2],
        "PLANES": num_planes(tag),
        "GROUP": num_columns // groups if groups > 1 else 0,
        "DEPTH": DEPTH,
        "INTERPRET": INTERPRETED,
    }


def quantize_launch(x: Tensor, act_scale: Tensor | None, width: int) -> Launch:
    """Launch of the activation quantizer, which writes `codes` (M, width) and `scales` (M,)."""
    num_rows, num_columns = x.shape
    arguments = {
        "x": x,
        "act_scale": act_scale,
        "codes": x.new_empty(num_rows, width, dtype=torch.int8),
        "scales": x.new_empty(num_rows, dtype=torch.float32),
        "num_rows": num_rows,
        "num_columns": num_columns,
        "x_stride_m": x.stride(0),
        "codes_stride_m": width,
        "BM": QUANTIZED_ROWS,
        "BK": 1024,
        "LIMIT": INT8_MAX,
    }
    grid = (ceil_div(num_rows, QUANTIZED_ROWS),)
    return Launch(quantize_tokens_kernel, grid, arguments, {"num_warps": 4, "num_stages": 3})


def unpack_launch(
    prepacked: list[Tensor],
    *,
    tag: str,
    level_table: tuple[float, ...] | None,
    num_columns: int,
    dtype: torch.dtype,
) -> Launch:
    """Launch of the kernel that writes a weight (N, K) in a type, into `out`."""
    packed = prepacked[0]
    arguments = {
        **weight_arguments(prepacked, tag, level_table, num_columns),
        "out": packed.new_empty(packed.shape[1], num_columns, dtype=dtype),
        "HALF": dtype == torch.float16,
        "BN": 64,
    }
    grid = (ceil_div(packed.shape[1], 64), packed.shape[2] // DEPTH)
    return Launch(unpack_kernel, grid, arguments, {"num_warps": 4, "num_stages": 1})
