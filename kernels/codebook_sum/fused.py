"""Sum of one embedding per codebook in Triton: one kernel forward, two backward.

Forward: a program owns a block of rows and of channels and gathers one table row per codebook.

Backward: the last row of every table, which masked training makes by far the most frequent, is a
dense reduction (flags^T times dL/dy on tensor cores; atomics would add up one by one on this row),
together with the sum over images that is the gradient of the positions. The other codes are sorted
by table row, stably, and a second kernel adds up the run of each row. No atomics: the same bits in
every run.
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
from .reference import CodebookSumGradients, split_tables, table_rows


@triton.jit
def codebook_sum_fwd_kernel(
    codes,
    tables,
    sizes,
    position,
    class_table,
    labels,
    mask,
    out,
    num_rows,
    num_tokens,
    width,
    num_classes,
    codes_stride_b,
    codes_stride_n,
    codes_stride_g,
    mask_stride_b,
    mask_stride_n,
    mask_stride_g,
    G: tl.constexpr,
    CLASS: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
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

    acc = tl.zeros([BR, BD], tl.float32)
    where_code = image * codes_stride_b + token * codes_stride_n
    where_mask = image * mask_stride_b + token * mask_stride_n
    for g in tl.static_range(G):
        size = sizes[g]
        index = tl.load(codes + where_code, mask=real, other=0).to(tl.int64)
        if mask is not None:
            hidden = tl.load(mask + where_mask, mask=real, other=0) != 0
            index = tl.where(hidden, size - 1, index)
        known = real & (index >= 0) & (index < size)
        where_row = (index * width)[:, None] + d[None, :]
        row = tl.load(tables[g] + where_row, mask=known[:, None] & d_ok[None, :], other=0.0)
        acc += row.to(tl.float32)
        where_code += codes_stride_g
        where_mask += mask_stride_g
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
def codebook_sum_bwd_dense_kernel(
    grad,
    last,
    position_sums,
    last_sums,
    num_images,
    images_per_split,
    num_tokens,
    width,
    G: tl.constexpr,
    GP: tl.constexpr,
    CLASS: tl.constexpr,
    HALF: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Add up gradients of positions and of the last table rows over a split of the images."""
    place = tl.program_id(0) * BN + tl.arange(0, BN)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    split = tl.program_id(2)
    d_ok = d < width
    rows_per_image = num_tokens + (CLASS != 0)
    token = place - 1 if CLASS == 1 else place
    real = (token >= 0) & (token < num_tokens)
    ok = (place < rows_per_image)[:, None] & d_ok[None, :]
    where_grad = place.to(tl.int64)[:, None] * width + d[None, :]
    g = tl.arange(0, GP)
    live = (g < G)[:, None] & real[None, :]  # (GP, BN)
    where_last = token[None, :] * G + g[:, None]

    begin = split * images_per_split
    end = tl.minimum(begin + images_per_split, num_images)
    position_acc = tl.zeros([BN, BD], tl.float32)
    last_acc = tl.zeros([GP, BD], tl.float32)
    for step in range(0, end - begin):
        image = (begin + step).to(tl.int64)
        rows = tl.load(
            grad + image * rows_per_image * width + where_grad, mask=ok, other=0.0
        )  # (BN, BD)
        flags = tl.load(last + image * num_tokens * G + where_last, mask=live, other=0)
        if HALF:
            ones = flags.to(tl.float16)
        else:
            ones = tl.where(flags != 0, 0x3F80, 0).to(tl.int16).to(tl.bfloat16, bitcast=True)
        last_acc = dot_exact(ones, rows, last_acc, INTERPRET)
        if position_sums is not None:
            position_acc += rows.to(tl.float32)

    if position_sums is not None:
        offset = split.to(tl.int64) * rows_per_image * width
        tl.store(position_sums + offset + where_grad, position_acc, mask=ok)
    partial = split.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    where_sum = (partial * G + g)[:, None] * width + d[None, :]
    tl.store(last_sums + where_sum, last_acc, mask=(g < G)[:, None] & d_ok[None, :])


@triton.jit
def codebook_sum_bwd_rows_kernel(
    grad,
    order,
    starts,
    table_sums,
    num_codes_per_book,
    num_tokens,
    width,
    CLASS: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """Add up the gradient of one table row over the codes that are its number."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    d_ok = d < width
    begin = tl.load(starts + row)
    end = tl.load(starts + row + 1)
    acc = tl.zeros([BD], tl.float32)
    for step in range(0, (end - begin + BT - 1) // BT):
        slot = begin + step * BT + tl.arange(0, BT)
        inside = slot < end
        code = tl.load(order + slot, mask=inside, other=0) % num_codes_per_book
        image = (code // num_tokens).to(tl.int64)
        place = code % num_tokens
        rows_per_image = num_tokens
        if CLASS != 0:
            rows_per_image = num_tokens + 1
        if CLASS == 1:
            place = place + 1
        where_grad = ((image * rows_per_image + place) * width)[:, None] + d[None, :]
        rows = tl.load(grad + where_grad, mask=inside[:, None] & d_ok[None, :], other=0.0)
        acc += tl.sum(rows.to(tl.float32), 0)
    tl.store(table_sums + row * width + d, acc, mask=d_ok)


def codebook_embedding_sum_fused(
    codes: Tensor,
    tables: list[Tensor],
    sizes: list[int],
    position: Tensor | None,
    class_table: Tensor | None,
    labels: Tensor | None,
    mask: Tensor | None,
    *,
    class_position: str,
) -> Tensor:
    """Compute `reference.codebook_embedding_sum_reference` in one kernel."""
    launch = forward_launch(
        codes,
        tables,
        sizes,
        position,
        class_table,
        labels,
        mask,
        class_position=class_position,
    )
    launch.run(codes.device)
    return launch.output()


def forward_launch(
    codes: Tensor,
    tables: list[Tensor],
    sizes: list[int],
    position: Tensor | None,
    class_table: Tensor | None,
    labels: Tensor | None,
    mask: Tensor | None,
    *,
    class_position: str,
) -> Launch:
    """Launch of the forward kernel; `out` is among its arguments."""
    (batch, num_tokens, groups), width = codes.shape, tables[0].shape[1]
    place = "none" if class_table is None else class_position
    out = tables[0].new_empty(batch, num_tokens + (class_table is not None), width)
    num_rows = batch * out.shape[1]
    block_d = min(256, max(16, power_of_two(width)))
    column_blocks = ceil_div(width, block_d)
    block_rows = num_rows_per_block(num_rows, column_blocks, (4, 8, 16))
    if INTERPRETED:  # the time of an interpreted program does not depend on its size
        block_rows = 64
    arguments = {
        "codes": codes,
        "tables": tuple(split_tables([table.contiguous() for table in tables], sizes)),
        "sizes": tuple(sizes),
        "position": contiguous(position),
        "class_table": contiguous(class_table),
        "labels": contiguous(labels),
        "out": out,
        "num_rows": num_rows,
        "num_tokens": num_tokens,
        "width": width,
        "num_classes": 0 if class_table is None else class_table.shape[0],
        **strides("codes", "bng", codes),
        **mask_arguments(mask),
        "G": groups,
        "CLASS": CLASS_ROW[place],
        "BR": block_rows,
        "BD": block_d,
    }
    grid = (ceil_div(num_rows, block_rows), column_blocks)
    return Launch(codebook_sum_fwd_kernel, grid, arguments, {"num_warps": 4, "num_stages": 3})


def codebook_embedding_sum_backward_fused(
    grad: Tensor,
    codes: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    *,
    sizes: list[int],
    class_position: str,
    num_classes: int,
    need_position: bool,
) -> CodebookSumGradients:
    """Compute `reference.codebook_embedding_sum_backward_reference` in two kernels."""
    batch, num_tokens, groups = codes.shape
    place = class_position if num_classes else "none"
    grad = grad.contiguous()
    rows = torch.stack([row.flatten() for row in table_rows(codes, mask, sizes)])  # (G, B * N)
    keys, is_last = _keys(rows, sizes)
    dense = dense_launch(
        grad,
        is_last.view(groups, batch, num_tokens).permute(1, 2, 0).contiguous(),
        class_position=place,
        need_position=need_position,
    )
    dense.run(grad.device)
    ordered, order = keys.flatten().sort(stable=True)
    bounds = torch.arange(sum(sizes) + 1, device=grad.device)
    starts = torch.searchsorted(ordered, bounds)
    sparse = rows_launch(grad, order, starts, num_tokens=num_tokens, class_position=place)
    sparse.run(grad.device)
    tables = sparse.output("table_sums")
    last, end = dense.output("last_sums").sum(0), 0  # (G, D)
    for g, size in enumerate(sizes):
        end += size
        tables[end - 1] = last[g]
    positions = dense.arguments["position_sums"]
    class_rows, _ = split_class_row(grad, class_position, num_classes)
    return CodebookSumGradients(
        tables=tables,
        position=tables.new_empty(0, grad.shape[2]) if positions is None else positions.sum(0),
        class_table=add_rows(class_rows.float(), labels, num_classes),
    )


def dense_launch(
    grad: Tensor, is_last: Tensor, *, class_position: str, need_position: bool
) -> Launch:
    """Launch of the dense backward kernel; `last_sums` and `position_sums` are partial sums."""
    (batch, rows, width), (_, num_tokens, groups) = grad.shape, is_last.shape
    blocks = batch_blocks(batch, rows, width)
    num_splits = blocks.grid[2]

    def empty(*shape: int) -> Tensor:
        return grad.new_empty(shape, dtype=torch.float32)

    arguments = {
        "grad": grad,
        "last": is_last.view(torch.uint8),
        "position_sums": empty(num_splits, rows, width) if need_position else None,
        "last_sums": empty(num_splits * blocks.grid[0], groups, width),
        "num_images": batch,
        "images_per_split": blocks.images_per_split,
        "num_tokens": num_tokens,
        "width": width,
        "G": groups,
        "GP": max(16, power_of_two(groups)),
        "CLASS": CLASS_ROW[class_position],
        "HALF": grad.dtype == torch.float16,
        "BN": BLOCK_N,
        "BD": blocks.block_d,
        "INTERPRET": INTERPRETED,
    }
    options = {"num_warps": 4, "num_stages": 3}
    return Launch(codebook_sum_bwd_dense_kernel, blocks.grid, arguments, options)


def rows_launch(
    grad: Tensor, order: Tensor, starts: Tensor, *, num_tokens: int, class_position: str
) -> Launch:
    """Launch of the kernel that adds up the run of every table row and writes `table_sums`."""
    batch, _, width = grad.shape
    block_d = min(512, max(16, power_of_two(width)))
    num_table_rows = starts.shape[0] - 1
    arguments = {
        "grad": grad,
        "order": order,
        "starts": starts,
        "table_sums": grad.new_empty(num_table_rows, width, dtype=torch.float32),
        "num_codes_per_book": batch * num_tokens,
        "num_tokens": num_tokens,
        "width": width,
        "CLASS": CLASS_ROW[class_position],
        "BT": 8,
        "BD": block_d,
    }
    grid = (num_table_rows, ceil_div(width, block_d))
    options = {"num_warps": 4, "num_stages": 2}
    return Launch(codebook_sum_bwd_rows_kernel, grid, arguments, options)


def _keys(rows: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Number of the row of all tables that each code adds to, and flags of last rows.

    The number is sum(sizes) for no row and for the last row of a table, (G, M) int64; the flags of
    last rows are (G, M) bool. Nothing is copied from the host, so a CUDA graph can hold it.
    """
    total, start = sum(sizes), 0
    keys, flags = [], []
    for size, row in zip(sizes, rows, strict=True):
        is_last = row == size - 1
        known = (row >= 0) & (row < size - 1)
        keys.append(torch.where(known, row + start, total))
        flags.append(is_last)
        start += size
    return torch.stack(keys), torch.stack(flags)
