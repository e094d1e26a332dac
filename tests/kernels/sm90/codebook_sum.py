"""The launches of `codebook_embedding_sum` at published shapes, and what they must compile to."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from tessella.tests.kernels.sm90.figure import Figure, meta

if TYPE_CHECKING:  # the launches import triton
    from tessella.kernels.launch import Launch

FIGURES = {
    "codebook_sum 8 float32 forward": Figure(162, 0, ""),
    "codebook_sum 8 float32 backward_dense": Figure(101, 16640, "HMMA"),
    "codebook_sum 8 float32 backward_rows": Figure(46, 0, ""),
    "codebook_sum 8 bfloat16 forward": Figure(118, 0, ""),
    "codebook_sum 8 bfloat16 backward_dense": Figure(78, 8448, "HMMA"),
    "codebook_sum 8 bfloat16 backward_rows": Figure(46, 2048, ""),
    "codebook_sum 1 bfloat16 forward": Figure(48, 0, ""),
    "codebook_sum 1 bfloat16 backward_dense": Figure(80, 8448, "HMMA"),
    "codebook_sum 1 bfloat16 backward_rows": Figure(46, 2048, ""),
}
"""By name of the launch."""


def launches() -> Iterator[tuple[str, "Launch"]]:
    """Every launch by name."""
    cases = {
        "8 float32": codebook_sum_launches(torch.float32, 8, 4096),
        "8 bfloat16": codebook_sum_launches(torch.bfloat16, 8, 4096),
        "1 bfloat16": codebook_sum_launches(torch.bfloat16, 1, 1025),
    }
    for case, made in cases.items():
        for direction, launch in made.items():
            yield f"codebook_sum {case} {direction}", launch


def codebook_sum_launches(dtype: torch.dtype, groups: int, size: int) -> dict[str, "Launch"]:
    """Forward and both backward kernels at UniTok's or MaskGIT's shape."""
    from tessella.kernels.codebook_sum.fused import dense_launch, forward_launch, rows_launch

    batch, tokens, width = 64, 256, 1024
    grad = meta(batch, tokens + 1, width, dtype=dtype)
    forward = forward_launch(
        meta(batch, groups, tokens, dtype=torch.int64).transpose(1, 2),
        [meta(size, width, dtype=dtype) for _ in range(groups)],
        [size] * groups,
        meta(tokens + 1, width, dtype=dtype),
        meta(1001, width, dtype=dtype),
        meta(batch, dtype=torch.int64),
        meta(batch, tokens, groups, dtype=torch.bool),
        class_position="last",
    )
    is_last = meta(batch, tokens, groups, dtype=torch.bool)
    dense = dense_launch(grad, is_last, class_position="last", need_position=True)
    order = meta(batch * tokens * groups, dtype=torch.int64)
    starts = meta(groups * size + 1, dtype=torch.int64)
    rows = rows_launch(grad, order, starts, num_tokens=tokens, class_position="last")
    return {"forward": forward, "backward_dense": dense, "backward_rows": rows}
