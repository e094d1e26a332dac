"""Packed low-bit linear layers in plain torch: the specification of `packed_linear`.

    y[m, n] = sum_k x[m, k] W[n, k] + bias[n]                                 float activations
    y[m, n] = a[m] sum_g s[n, g] (sum_k q[m, k] c[n, k]) + bias[n]            int8 activations

where W is the decoded weight (`PackedWeight.dequantize`, float32), c = W / s its integer levels,
and x is approximately a q by the rule of `quantize_tokens`. The inner sum of integers is exact.

The weight is unpacked by a table of 256 rows, a block of output rows at a time, so the workspace
does not grow with N. A weight that fits one block (`BLOCK_ELEMENTS`) gives the same bits as
`F.linear(x, dequantize())`; with several blocks the matrix library may add up in another order.

Source: scales of activations per token as in BitNet b1.58, arXiv:2402.17764.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from .formats import dequantize_rows, integer_levels, level_rows, num_planes, scale_groups

BLOCK_ELEMENTS = 2**20
"""Number of weights that are unpacked at a time; at least one row. The largest tensor made while
unpacking rows not longer than this takes 8 bytes for each."""
INT8_MAX = 127


def row_blocks(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Blocks of output rows of at most `BLOCK_ELEMENTS` weights, or of one row."""
    size = max(1, BLOCK_ELEMENTS // num_columns)
    return (slice(i, min(i + size, num_rows)) for i in range(0, num_rows, size))


def block_of(
    rows: slice, qdata: Tensor, scale: Tensor, zero: Tensor | None, tag: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Select codes, scales and zero points of some output rows."""
    if scale.shape != (1,):
        scale = scale[:, rows] if tag == "bin2" else scale[rows]
    return (
        qdata[:, rows] if tag == "bin2" else qdata[rows],
        scale,
        None if zero is None else zero[rows],
    )


def quantize_tokens(x: Tensor, act_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Round activations to integers times a scale.

    Args:
        x: Activations, (M, K) float.
        act_scale: Common scale of all tokens, (1,) float32; None: max |x| / 127 of each token (1
            where that is 0).

    Returns:
        Codes clip(round(x / scale), -128, 127) as (M, K) int8, halves rounded to even, and scales
        (M,) float32. The scale is NaN, and with it every result of the token, where x has a NaN or
        the scale would be infinite.
    """
    x = x.float()
    if act_scale is None:
        scale = x.abs().amax(-1) / INT8_MAX
        scale = torch.where(scale == 0, 1.0, scale)
    else:
        scale = act_scale.float().expand(x.shape[0])
    codes = (x / scale[:, None]).round().clamp(-INT8_MAX - 1, INT8_MAX)
    lost = x.isnan().any(-1) | scale.isinf()
    return codes.to(torch.int8), torch.where(lost, torch.nan, scale)


def packed_linear_reference(
    x: Tensor,
    qdata: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    bias: Tensor | None = None,
    act_scale: Tensor | None = None,
    *,
    tag: str,
    level_table: tuple[float, ...] | None = None,
    activations: str = "float",
) -> Tensor:
    """Compute the formulas above; `op.packed_linear` and `PackedWeight` have the arguments.

    Returns:
        Output, (..., N) of the type of x, added up in float32 (float64 for float64) and rounded
        once.
    """
    num_rows, num_columns = qdata.shape[-2], x.shape[-1]
    wide = torch.promote_types(x.dtype, torch.float32)
    rows = x.reshape(-1, num_columns)
    codes, factor = rows.to(wide), None
    if activations == "int8":
        codes, factor = quantize_tokens(rows, act_scale)
        codes = codes.double()
    out = x.new_empty(rows.shape[0], num_rows)
    for part in row_blocks(num_rows, num_columns):
        weight = block_of(part, qdata, scale, zero, tag)
        term = None if bias is None else bias[part].to(wide)
        if factor is None:
            block = dequantize_rows(*weight, tag, num_columns, level_table).to(wide)
            out[:, part] = F.linear(codes, block, term)
        else:
            total = _integer_product(codes, *weight, tag, level_table) * factor[:, None]
            out[:, part] = total if term is None else total + term
    return out.view(*x.shape[:-1], num_rows)


def _integer_product(
    codes: Tensor,
    qdata: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    tag: str,
    level_table: tuple[float, ...] | None,
) -> Tensor:
    """Compute sum_g s[n, g] (sum_k q[m, k] c[n, k]), (M, rows) float32.

    The integers q, (M, K), are held in float64, in which their sums are exact; the sums are rounded
    to float32 before a scale multiplies them.
    """
    step, num_columns = 1.0, codes.shape[1]
    if level_table is not None:
        grid = integer_levels(level_table)
        assert grid is not None
        step, level_table = grid[0], tuple(float(level) for level in grid[1])
    groups = scale_groups(tag, scale)
    total = codes.new_zeros(codes.shape[0], qdata.shape[-2], dtype=torch.float32)
    for plane in range(num_planes(tag)):
        part, factor = (qdata[plane], scale[plane]) if tag == "bin2" else (qdata, scale)
        grid_rows = level_rows(part, zero, tag, num_columns, level_table).flatten(1)
        factor = (factor.float() * step).view(-1, groups)
        size = num_columns // groups
        for group in range(groups):
            chosen = slice(group * size, (group + 1) * size)
            product = F.linear(codes[:, chosen], grid_rows[:, chosen].double())
            total = total + product.float() * factor[:, group]
    return total


def unpack_weight_reference(
    qdata: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    *,
    tag: str,
    num_columns: int,
    level_table: tuple[float, ...] | None,
    dtype: torch.dtype,
) -> Tensor:
    """Decode a weight to (N, K) rounded to a type, a block of rows at a time."""
    out = torch.empty(qdata.shape[-2], num_columns, dtype=dtype, device=qdata.device)
    for part in row_blocks(*out.shape):
        block = block_of(part, qdata, scale, zero, tag)
        out[part] = dequantize_rows(*block, tag, num_columns, level_table).to(dtype)
    return out
