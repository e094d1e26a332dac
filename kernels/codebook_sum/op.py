"""`codebook_embedding_sum`: codes of several codebooks to hidden states in one pass.

Masks, a class row and positions are part of it. `reference.py` defines the result, `fused.py`
computes it in one kernel forward and two backward. Both are behind the torch.library ops
`tessella::codebook_embedding_sum` and `tessella::codebook_embedding_sum_backward`, which
`torch.compile` does not trace into. Backward saves codes, mask and labels, no activations, and
gives the same bits in every run.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..backends import Backend, no_autocast, resolve_backend
from ..checks import FLOATS, check_devices, check_float, check_label_tensor, refuse_values
from .reference import (
    codebook_embedding_sum_backward_reference,
    codebook_embedding_sum_reference,
    table_rows,
)

ClassPosition = Literal["last", "first"]

MAX_FUSED_CODEBOOKS = 64
"""Largest number of codebooks of the Triton code, which is unrolled over them."""


def codebook_embedding_sum(
    codes: Tensor,
    tables: Tensor | Sequence[Tensor],
    position: Tensor | None = None,
    class_table: Tensor | None = None,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    class_position: ClassPosition = "last",
    validate: bool | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Embedding of multi-codebook tokens: one row of each table, plus class row and positions.

    Args:
        codes: Codes, (B, N, G) int32 or int64 of any strides, or (B, N) for G = 1; entry g is a row
            number of table g. UniTok's (B, G, N) is `codes.transpose(1, 2)`.
        tables: Embedding tables, (G, V, D), or G tables (V_g, D) of different sizes. With a mask
            the last row of each stands for "hidden"; a code may also be its number.
        position: Position embedding added to every row, (N, D), or (N + 1, D) with a class row.
        class_table: Class embedding, (C, D); the row of an image's label becomes one more
            position.
        labels: Class labels, (B,) int32 or int64 in [0, C); with a class table only.
        mask: True at hidden codes, (B, N) or (B, N, G) bool; the code there is ignored.
        class_position: Position of the class row, `last` or `first`.
        validate: Check the values of codes and labels; on a GPU this waits for the device. None: on
            a CPU only. Unchecked values out of range count as a row of 0 in the Triton code.
        backend: Implementation, `reference`, `triton` or `auto`; see `kernels/backends.py`.

    Returns:
        Hidden states, (B, N, D) or (B, N + 1, D), of the type of the tables, also under autocast
        (like `nn.Embedding`). Added up in float32 and rounded once.

    Raises:
        ValueError: If a type, shape, setting or checked value is wrong.
        RuntimeError: If a backend requested by name cannot run here, with the reason.

    Source: arXiv:2409.16211, arXiv:2502.20321; `reference.py` has the formula.

    Example:
        >>> tables = torch.tensor([[[1.0], [2.0]], [[10.0], [20.0]]])  # 2 codebooks, D = 1
        >>> codebook_embedding_sum(torch.tensor([[[0, 1], [1, 0]]]), tables)
        tensor([[[21.],
                 [12.]]])
    """
    if codes.ndim == 2:
        codes = codes[..., None]
    if mask is not None and mask.ndim == 2:
        mask = mask[..., None]
    if isinstance(tables, Tensor) and tables.ndim != 3:
        raise ValueError(f"tables: expected (G, V, D), found {tuple(tables.shape)}")
    parts = list(tables)
    _check(codes, parts, position, class_table, labels, mask, class_position)
    hidden_states: Tensor = _codebook_embedding_sum(
        codes,
        [tables.flatten(0, 1)] if isinstance(tables, Tensor) else parts,
        [part.shape[0] for part in parts],
        position,
        class_table,
        labels,
        mask,
        class_position,
        codes.device.type == "cpu" if validate is None else validate,
        backend,
    )
    return hidden_states


def _check(
    codes: Tensor,
    tables: list[Tensor],
    position: Tensor | None,
    class_table: Tensor | None,
    labels: Tensor | None,
    mask: Tensor | None,
    class_position: str,
) -> None:
    """Check that types, devices and shapes of all inputs fit each other."""
    if codes.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"codes: expected int32 or int64, found {codes.dtype}")
    if codes.ndim != 3 or 0 in codes.shape:
        raise ValueError(
            f"codes: expected (B, N, G) or (B, N) without empty axes, found {tuple(codes.shape)}"
        )
    if class_position not in get_args(ClassPosition):
        raise ValueError(
            f"class_position: expected one of {get_args(ClassPosition)}, found {class_position!r}"
        )
    batch, tokens, groups = codes.shape
    if len(tables) != groups:
        raise ValueError(f"tables: expected one per codebook, {groups}, found {len(tables)}")
    first = tables[0]
    if first.dtype not in FLOATS or first.ndim != 2 or first.shape[1] < 1:
        raise ValueError(f"tables: expected (V, D) float, found {tuple(first.shape)} {first.dtype}")
    width = first.shape[1]
    for g, table in enumerate(tables):
        check_float(f"tables[{g}]", table, (max([1, *table.shape[:1]]), width), first)
    if (class_table is None) != (labels is None):
        raise ValueError("labels: class_table and labels go together, found one without the other")
    check_float("position", position, (tokens + (class_table is not None), width), first)
    if class_table is not None and labels is not None:
        num_classes = max([1, *class_table.shape[:1]])
        check_float("class_table", class_table, (num_classes, width), first)
        check_label_tensor(labels, batch)
    shapes = ((batch, tokens, 1), (batch, tokens, groups))
    if mask is not None and (mask.dtype != torch.bool or mask.shape not in shapes):
        raise ValueError(
            f"mask: expected ({batch}, {tokens}) or ({batch}, {tokens}, {groups}) bool, "
            f"found {tuple(mask.shape)} {mask.dtype}"
        )
    check_devices(codes, tables=first, labels=labels, mask=mask)


def check_values(
    codes: Tensor, mask: Tensor | None, sizes: list[int], labels: Tensor | None, num_classes: int
) -> None:
    """Check that visible codes are row numbers of their table and labels are in [0, C).

    Raises:
        ValueError: If one is not; the message has the first wrong value.
    """
    for g, (size, rows) in enumerate(zip(sizes, table_rows(codes, mask, sizes), strict=True)):
        refuse_values(f"codes[..., {g}]", rows, (rows < 0) | (rows >= size), f"0 to {size - 1}")
    if labels is not None:
        wrong = (labels < 0) | (labels >= num_classes)
        refuse_values("labels", labels, wrong, f"0 to {num_classes - 1}")


@torch.library.custom_op("tessella::codebook_embedding_sum", mutates_args=())
def _codebook_embedding_sum(
    codes: Tensor,
    tables: list[Tensor],
    sizes: list[int],
    position: Tensor | None,
    class_table: Tensor | None,
    labels: Tensor | None,
    mask: Tensor | None,
    class_position: str,
    validate: bool,
    backend: str,
) -> Tensor:
    if validate:
        num_classes = 0 if class_table is None else class_table.shape[0]
        check_values(codes, mask, sizes, labels, num_classes)
    with no_autocast(codes.device):
        if _resolve(backend, codes, tables[0].dtype) == "triton":
            from .fused import codebook_embedding_sum_fused as implementation
        else:
            implementation = codebook_embedding_sum_reference
        return implementation(
            codes,
            tables,
            sizes,
            position,
            class_table,
            labels,
            mask,
            class_position=class_position,
        )


@_codebook_embedding_sum.register_fake
def _(
    codes: Tensor,
    tables: list[Tensor],
    sizes: list[int],
    position: Tensor | None,
    class_table: Tensor | None,
    labels: Tensor | None,
    mask: Tensor | None,
    class_position: str,
    validate: bool,
    backend: str,
) -> Tensor:
    rows = codes.shape[1] + (class_table is not None)
    return tables[0].new_empty(codes.shape[0], rows, tables[0].shape[1])


@torch.library.custom_op("tessella::codebook_embedding_sum_backward", mutates_args=())
def _codebook_embedding_sum_backward(
    grad: Tensor,
    codes: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    sizes: list[int],
    class_position: str,
    num_classes: int,
    need_position: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    with no_autocast(codes.device):
        if _resolve(backend, codes, grad.dtype) == "triton":
            from .fused import codebook_embedding_sum_backward_fused as implementation
        else:
            implementation = codebook_embedding_sum_backward_reference
        gradients = implementation(
            grad,
            codes,
            labels,
            mask,
            sizes=sizes,
            class_position=class_position,
            num_classes=num_classes,
            need_position=need_position,
        )
    return gradients.tables, gradients.position, gradients.class_table


@_codebook_embedding_sum_backward.register_fake
def _(
    grad: Tensor,
    codes: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    sizes: list[int],
    class_position: str,
    num_classes: int,
    need_position: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(grad.dtype, torch.float32)
    width = grad.shape[2]
    return (
        grad.new_empty(sum(sizes), width, dtype=dtype),
        grad.new_empty(grad.shape[1] if need_position else 0, width, dtype=dtype),
        grad.new_empty(num_classes, width, dtype=dtype),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save the tensors and settings that backward reads, and no activations."""
    codes, tables, ctx.sizes, _, class_table, labels, mask, ctx.class_position, _, ctx.backend = (
        inputs
    )
    ctx.save_for_backward(codes, labels, mask)
    ctx.num_tables, ctx.dtype = len(tables), tables[0].dtype
    ctx.num_classes = 0 if class_table is None else class_table.shape[0]


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Gradients of tables, position and class table; None for other inputs."""
    codes, labels, mask = ctx.saved_tensors
    needs = ctx.needs_input_grad
    flat, position, class_table = _codebook_embedding_sum_backward(
        grad,
        codes,
        labels,
        mask,
        ctx.sizes,
        ctx.class_position,
        ctx.num_classes,
        needs[3],
        ctx.backend,
    )
    flat = flat.to(ctx.dtype)
    if ctx.num_tables == 1:
        tables = [flat]
    else:  # contiguous parts of one buffer
        starts = accumulate(ctx.sizes, initial=0)
        tables = [flat[start:end] for start, end in pairwise(starts)]
    position = position.to(ctx.dtype) if needs[3] else None
    class_table = class_table.to(ctx.dtype) if needs[4] else None
    return (None, tables, None, position, class_table, None, None, None, None, None)


_codebook_embedding_sum.register_autograd(_backward, setup_context=_setup_context)


def _resolve(backend: str, codes: Tensor, dtype: torch.dtype) -> str:
    """Choose the implementation of a call, by the limits of the Triton code."""
    batch, tokens, groups = codes.shape
    refusal = None
    if batch * (tokens + 1) * groups > 2**30:
        refusal = f"{batch} x {tokens} x {groups} codes are more than 2**30"
    elif groups > MAX_FUSED_CODEBOOKS:
        refusal = f"{groups} codebooks are more than {MAX_FUSED_CODEBOOKS}"
    return resolve_backend(backend, "codebook_embedding_sum", codes.device, dtype, refusal=refusal)
