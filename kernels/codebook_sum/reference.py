"""Sum of one embedding per codebook in plain torch: the specification, forward and backward.

    y[b, n] = sum_g T_g[index[b, n, g]] + position[n]         for the N tokens
    y[b, c] = class_table[labels[b]] + position[c]            for the class row, if there is one

where index is the code, or the last row of table g where the mask hides it. Added up in float32
(float64 for float64 tables), codebook by codebook, and rounded once.

Source: `Bert` of arXiv:2409.16211 with splits (last row = hidden), arXiv:2502.20321 (the codebooks
before the tokens: pass a transposed view).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..rows import add_rows, split_class_row


class CodebookSumGradients(NamedTuple):
    """Gradients in float32 or float64; those that are not needed have no rows."""

    tables: Tensor  # (sum of sizes, D), table after table
    position: Tensor  # (N, D), (N + 1, D) with a class row, or (0, D)
    class_table: Tensor  # (C, D) or (0, D)


def split_tables(tables: list[Tensor], sizes: list[int]) -> list[Tensor]:
    """List of one table per codebook, from such a list or from one table with all rows."""
    return tables if len(tables) == len(sizes) else list(torch.split(tables[0], sizes))


def table_rows(codes: Tensor, mask: Tensor | None, sizes: list[int]) -> list[Tensor]:
    """Row number of each table that a token reads, (B, N) int64 per codebook."""
    columns = list(codes.long().unbind(-1))
    if mask is None:
        return columns
    return [
        torch.where(mask[..., min(g, mask.shape[-1] - 1)], size - 1, column)
        for g, (size, column) in enumerate(zip(sizes, columns, strict=True))
    ]


def codebook_embedding_sum_reference(
    codes: Tensor,
    tables: list[Tensor],
    sizes: list[int],
    position: Tensor | None = None,
    class_table: Tensor | None = None,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    class_position: str = "last",
) -> Tensor:
    """Compute the formula above; see `op.codebook_embedding_sum` for the arguments.

    `tables` has one table per codebook, or one with all rows, table after table; `sizes` are the
    numbers of rows of each.

    Returns:
        Hidden states, (B, N, D), or (B, N + 1, D) with a class row.
    """
    dtype = tables[0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    x = torch.zeros((), dtype=wide, device=codes.device)
    for table, rows in zip(
        split_tables(tables, sizes), table_rows(codes, mask, sizes), strict=True
    ):
        x = x + F.embedding(rows, table).to(wide)
    if class_table is not None:
        assert labels is not None
        row = F.embedding(labels, class_table).to(wide)[:, None]
        x = torch.cat([row, x] if class_position == "first" else [x, row], 1)
    if position is not None:
        x = x + position.to(wide)
    return x.to(dtype)


def codebook_embedding_sum_backward_reference(
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
    """Compute every gradient by explicit formulas; `grad` is dL/dy, (B, N, D) or (B, N + 1, D)."""
    grad = grad.to(torch.promote_types(grad.dtype, torch.float32))
    rows, tokens = split_class_row(grad, class_position, num_classes)
    tokens = tokens.flatten(0, 1)
    tables = [
        add_rows(tokens, index.flatten(), size)
        for size, index in zip(sizes, table_rows(codes, mask, sizes), strict=True)
    ]
    return CodebookSumGradients(
        tables=torch.cat(tables),
        position=grad.sum(0) if need_position else grad.new_empty(0, grad.shape[-1]),
        class_table=add_rows(rows, labels, num_classes),
    )
