"""Bit-token embedding in Triton: one kernel forward, one backward.

Forward: a program owns a block of rows and of channels, builds the signs from the codes in
registers and multiplies them with the weight on tensor cores, one instruction per 16 bits (a loop
over bits would take two or more per bit). Signs are exact in 16 bits; a float32 factor is split
into three bf16 terms (24 bits), so the products are float32 products, never TF32.

Backward: a program owns a block of positions and of channels and loops over the images, so dL/dy is
read once: its sum over images is the gradient of the positions, and signs^T times it that of the
weight. Two more rows of the signs, "visible token" and "hidden token", give those of bias and mask
token. Partial sums are added in a fixed order: no atomics, the same bits in every run.

In the interpreter (`INTERPRET`) dot operands are cast: see `triton_dots.py`.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# The arguments of `triton.jit` functions have Triton's types, which Python cannot name.
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends import INTERPRETED
from ..launch import (
    BLOCK_N,
    CLASS_ROW,
    Launch,
    batch_blocks,
    ceil_div,
    contiguous,
    mask_arguments,
    num_rows_per_block,
    power_of_two,
    strides,
)
from ..rows import add_rows, split_class_row
from ..triton_dots import dot_exact
from .reference import BitEmbeddingGradients


@triton.jit
def bit_signs(bits, visible, PM1: tl.constexpr, HALF: tl.constexpr):
    """Bits 0 / 1 as -1 / +1 or 0 / 1 by bit pattern, 0 where not visible; fp16 or bf16."""
    ONE: tl.constexpr = 0x3C00 if HALF else 0x3F80
    pattern = (ONE | ((1 - bits) << 15)) if PM1 else ONE * bits
    pattern = tl.where(visible, pattern, 0).to(tl.int16)
    return pattern.to(tl.float16 if HALF else tl.bfloat16, bitcast=True)


@triton.jit
def bit_embedding_fwd_kernel(
    codes,
    weight,
    bias,
    position,
    class_table,
    labels,
    mask,
    mask_token,
    out,
    num_rows,
    num_tokens,
    width,
    num_classes,
    codes_stride_b,
    codes_stride_n,
    codes_stride_g,
    weight_stride_k,
    weight_stride_d,
    mask_stride_b,
    mask_stride_n,
    mask_stride_g,
    K: tl.constexpr,
    M: tl.constexpr,
    KP: tl.constexpr,
    CLASS: tl.constexpr,
    PM1: tl.constexpr,
    HALF: tl.constexpr,
    SPLIT: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Compute a block of rows and channels of the hidden states."""
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    d_ok = d < width
    row_ok = rows < num_rows
    rows_per_image = num_tokens + (CLASS != 0)
    place = rows % rows_per_image
    image = (rows // rows_per_image).to(tl.int64)
    token = (place - 1 if CLASS == 1 else place).to(tl.int64)
    if CLASS == 1:
        is_class = place == 0
    elif CLASS == 2:
        is_class = place == num_tokens
    else:
        is_class = rows < 0
    real = row_ok & (is_class == 0)

    k = tl.arange(0, KP)
    group = (k // M).to(tl.int64)
    live = real[:, None] & (k < K)[None, :]  # (BR, KP)
    where_code = (image * codes_stride_b + token * codes_stride_n)[:, None]
    where_code += (group * codes_stride_g)[None, :]
    code = tl.load(codes + where_code, mask=live, other=0).to(tl.int32)
    hidden = code == (1 << M)
    if mask is not None:
        where_mask = (image * mask_stride_b + token * mask_stride_n)[:, None]
        where_mask += (group * mask_stride_g)[None, :]
        hidden |= tl.load(mask + where_mask, mask=live, other=0) != 0
    visible = live & (hidden == 0)
    signs = bit_signs((code >> (k % M)[None, :]) & 1, visible, PM1, HALF)

    where_weight = (k * weight_stride_k)[:, None] + (d * weight_stride_d)[None, :]
    tile = tl.load(weight + where_weight, mask=(k < K)[:, None] & d_ok[None, :], other=0.0)
    if not SPLIT:
        tile = tile.to(signs.dtype)
    acc = dot_exact(signs, tile, tl.zeros([BR, BD], tl.float32), INTERPRET)

    if bias is not None:
        term = tl.load(bias + d, mask=d_ok, other=0.0).to(tl.float32)
        acc += tl.where(real[:, None], term[None, :], 0.0)
    if mask_token is not None:
        replaced = tl.max((hidden & live).to(tl.int32), 1) != 0
        term = tl.load(mask_token + d, mask=d_ok, other=0.0).to(tl.float32)
        acc = tl.where(replaced[:, None], term[None, :], acc)
    if CLASS != 0:
        label = tl.load(labels + image, mask=row_ok & is_class, other=0).to(tl.int64)
        known = row_ok & is_class & (label >= 0) & (label < num_classes)
        where_row = (label * width)[:, None] + d[None, :]
        row = tl.load(class_table + where_row, mask=known[:, None] & d_ok[None, :], other=0.0)
        acc += row.to(tl.float32)
    ok = row_ok[:, None] & d_ok[None, :]
    if position is not None:
        where_position = (place.to(tl.int64) * width)[:, None] + d[None, :]
        acc += tl.load(position + where_position, mask=ok, other=0.0).to(tl.float32)
    where_out = (rows.to(tl.int64) * width)[:, None] + d[None, :]
    tl.store(out + where_out, acc.to(out.dtype.element_ty), mask=ok)


@triton.jit
def bit_embedding_bwd_kernel(
    grad,
    codes,
    mask,
    position_sums,
    weight_sums,
    num_images,
    images_per_split,
    num_tokens,
    width,
    codes_stride_b,
    codes_stride_n,
    codes_stride_g,
    mask_stride_b,
    mask_stride_n,
    mask_stride_g,
    K: tl.constexpr,
    M: tl.constexpr,
    KP: tl.constexpr,
    CLASS: tl.constexpr,
    PM1: tl.constexpr,
    HALF: tl.constexpr,
    REPLACE: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Add up the gradients of a block of positions and channels over a split of the images."""
    place = tl.program_id(0) * BN + tl.arange(0, BN)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    split = tl.program_id(2)
    d_ok = d < width
    rows_per_image = num_tokens + (CLASS != 0)
    token = (place - 1 if CLASS == 1 else place).to(tl.int64)
    real = (token >= 0) & (token < num_tokens)
    ok = (place < rows_per_image)[:, None] & d_ok[None, :]
    where_grad = place.to(tl.int64)[:, None] * width + d[None, :]

    k = tl.arange(0, KP)
    group = (k // M).to(tl.int64)
    live = (k < K)[:, None] & real[None, :]  # (KP, BN)
    where_code = (group * codes_stride_g)[:, None] + (token * codes_stride_n)[None, :]
    where_mask = (group * mask_stride_g)[:, None] + (token * mask_stride_n)[None, :]
    shift = (k % M)[:, None]

    first = split * images_per_split
    last = tl.minimum(first + images_per_split, num_images)
    position_acc = tl.zeros([BN, BD], tl.float32)
    weight_acc = tl.zeros([KP, BD], tl.float32)
    for step in range(0, last - first):
        image = (first + step).to(tl.int64)
        rows = tl.load(
            grad + image * rows_per_image * width + where_grad, mask=ok, other=0.0
        )  # (BN, BD)
        code = tl.load(codes + image * codes_stride_b + where_code, mask=live, other=0)
        code = code.to(tl.int32)
        hidden = code == (1 << M)
        if mask is not None:
            flags = tl.load(mask + image * mask_stride_b + where_mask, mask=live, other=0)
            hidden |= flags != 0
        hidden = hidden & live
        bits = (code >> shift) & 1
        if REPLACE:  # a hidden position contributes to the mask token only
            replaced = tl.max(hidden.to(tl.int32), 0) != 0  # (BN,)
            visible = live & (replaced == 0)[None, :]
            shown = real & (replaced == 0)
            visible |= (k == K + 1)[:, None] & (real & replaced)[None, :]
        else:
            visible = live & (hidden == 0)
            shown = real
        visible |= (k == K)[:, None] & shown[None, :]
        bits = tl.where((k >= K)[:, None], 1, bits)
        signs = bit_signs(bits, visible, PM1, HALF)
        weight_acc = dot_exact(signs, rows, weight_acc, INTERPRET)
        if position_sums is not None:
            position_acc += rows.to(tl.float32)

    if position_sums is not None:
        offset = split.to(tl.int64) * rows_per_image * width
        tl.store(position_sums + offset + where_grad, position_acc, mask=ok)
    partial = split.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    where_sum = (partial * (K + 2) + k)[:, None] * width + d[None, :]
    tl.store(weight_sums + where_sum, weight_acc, mask=(k < K + 2)[:, None] & d_ok[None, :])


def bit_embedding_fused(
    codes: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor | None,
    class_table: Tensor | None,
    labels: Tensor | None,
    mask: Tensor | None,
    mask_token: Tensor | None,
    *,
    bits_per_group: int,
    values: str,
    class_position: str,
    dtype: torch.dtype,
) -> Tensor:
    """Compute `reference.bit_embedding_reference` in one kernel."""
    terms = (codes, weight, bias, position, class_table, labels, mask, mask_token)
    launch = forward_launch(
        *terms,
        bits_per_group=bits_per_group,
        values=values,
        class_position=class_position,
        dtype=dtype,
    )
    launch.run(codes.device)
    return launch.output()


def forward_launch(
    codes: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor | None,
    class_table: Tensor | None,
    labels: Tensor | None,
    mask: Tensor | None,
    mask_token: Tensor | None,
    *,
    bits_per_group: int,
    values: str,
    class_position: str,
    dtype: torch.dtype,
) -> Launch:
    """Launch of the forward kernel; `out` is among its arguments."""
    (batch, num_tokens, _), (num_bits, width) = codes.shape, weight.shape
    place = "none" if class_table is None else class_position
    out = weight.new_empty(batch, num_tokens + (class_table is not None), width, dtype=dtype)
    num_rows = batch * out.shape[1]
    block_d = min(128, max(16, power_of_two(width)))
    column_blocks = ceil_div(width, block_d)
    split = dtype == torch.float32 and weight.dtype == torch.float32
    # Tiles of float32 terms take about 200 registers at 64 rows: too few programs would fit.
    choices = (32,) if weight.dtype == torch.float32 else (32, 64)
    block_rows = num_rows_per_block(num_rows, column_blocks, choices)
    arguments = {
        "codes": codes,
        "weight": weight,
        "bias": contiguous(bias),
        "position": contiguous(position),
        "class_table": contiguous(class_table),
        "labels": contiguous(labels),
        "mask_token": contiguous(mask_token),
        "out": out,
        "num_rows": num_rows,
        "num_tokens": num_tokens,
        "width": width,
        "num_classes": 0 if class_table is None else class_table.shape[0],
        **strides("codes", "bng", codes),
        **strides("weight", "kd", weight),
        **mask_arguments(mask),
        "K": num_bits,
        "M": bits_per_group,
        "KP": max(16, power_of_two(num_bits)),
        "CLASS": CLASS_ROW[place],
        "PM1": values == "pm1",
        "HALF": dtype == torch.float16,
        "SPLIT": split,
        "BR": block_rows,
        "BD": block_d,
        "INTERPRET": INTERPRETED,
    }
    grid = (ceil_div(num_rows, block_rows), column_blocks)
    return Launch(bit_embedding_fwd_kernel, grid, arguments, {"num_warps": 4, "num_stages": 3})


def bit_embedding_backward_fused(
    grad: Tensor,
    codes: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    *,
    bits_per_group: int,
    values: str,
    class_position: str,
    num_classes: int,
    replace: bool,
    need_position: bool,
) -> BitEmbeddingGradients:
    """Compute `reference.bit_embedding_backward_reference`; `grad` is read once."""
    launch = backward_launch(
        grad,
        codes,
        mask,
        bits_per_group=bits_per_group,
        values=values,
        class_position=class_position if num_classes else "none",
        replace=replace,
        need_position=need_position,
    )
    launch.run(codes.device)
    sums = launch.arguments["weight_sums"].sum(0)  # (K + 2, D)
    positions = launch.arguments["position_sums"]
    class_rows, _ = split_class_row(grad, class_position, num_classes)
    num_bits = codes.shape[2] * bits_per_group
    return BitEmbeddingGradients(
        weight=sums[:num_bits].clone(),
        bias=sums[num_bits].clone(),
        position=sums.new_empty(0, grad.shape[2]) if positions is None else positions.sum(0),
        class_table=add_rows(class_rows.float(), labels, num_classes),
        mask_token=sums[num_bits + 1].clone(),
    )


def backward_launch(
    grad: Tensor,
    codes: Tensor,
    mask: Tensor | None,
    *,
    bits_per_group: int,
    values: str,
    class_position: str,
    replace: bool,
    need_position: bool,
) -> Launch:
    """Launch of the backward kernel; `weight_sums` and `position_sums` are partial sums."""
    (batch, rows, width), num_tokens = grad.shape, codes.shape[1]
    num_bits = codes.shape[2] * bits_per_group
    blocks = batch_blocks(batch, rows, width)
    num_splits = blocks.grid[2]

    def empty(*shape: int) -> Tensor:
        return grad.new_empty(shape, dtype=torch.float32)

    arguments = {
        "grad": grad.contiguous(),
        "codes": codes,
        "position_sums": empty(num_splits, rows, width) if need_position else None,
        "weight_sums": empty(num_splits * blocks.grid[0], num_bits + 2, width),
        "num_images": batch,
        "images_per_split": blocks.images_per_split,
        "num_tokens": num_tokens,
        "width": width,
        **strides("codes", "bng", codes),
        **mask_arguments(mask),
        "K": num_bits,
        "M": bits_per_group,
        "KP": max(16, power_of_two(num_bits + 2)),
        "CLASS": CLASS_ROW[class_position],
        "PM1": values == "pm1",
        "HALF": grad.dtype == torch.float16,
        "REPLACE": replace,
        "BN": BLOCK_N,
        "BD": blocks.block_d,
        "INTERPRET": INTERPRETED,
    }
    options = {"num_warps": 4, "num_stages": 3}
    return Launch(bit_embedding_bwd_kernel, blocks.grid, arguments, options)
