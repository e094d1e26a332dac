"""`bit_embedding`: packed bit codes, masks, class and position terms to hidden states in one pass.

`reference.py` defines the result, `fused.py` computes it in one kernel each way. Both are behind
the torch.library ops `tessella::bit_embedding` and `tessella::bit_embedding_backward`, which
`torch.compile` does not trace into. Backward saves codes, mask and labels, no activations, and
gives the same bits in every run.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..backends import Backend, autocast_dtype, no_autocast, resolve_backend
from ..checks import FLOATS, check_devices, check_float, check_label_tensor, refuse_values
from .reference import bit_embedding_backward_reference, bit_embedding_reference, hidden_groups

Values = Literal["pm1", "01"]
ClassPosition = Literal["last", "first"]

MAX_BITS = 62
"""Largest number of bits K of a position, which is that of a joint index."""
MAX_GROUP_BITS = 30
"""Largest number of bits m of a group: codes and the in-band mask fit int32."""


def bit_embedding(
    codes: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    position: Tensor | None = None,
    class_table: Tensor | None = None,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    mask_token: Tensor | None = None,
    *,
    bits_per_group: int,
    values: Values = "pm1",
    class_position: ClassPosition = "last",
    validate: bool | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Embedding of bit tokens: signs times a weight, plus bias, class row and positions.

    Args:
        codes: Codes of G groups of m bits, (B, N, G) int32 or int64 of any strides, or (B, N) for
            G = 1; bit i of group g is channel g * m + i. Values 0 to 2**m - 1, and 2**m = hidden.
            Single bits have m = 1.
        weight: Weight with one row per bit, (K, D) with K = G * m <= 62, of any strides, such as
            `linear.weight.t()`.
        bias: Bias added to every token, (D,); None: no bias.
        position: Position embedding added to every row, (N, D), or (N + 1, D) with a class row.
        class_table: Class embedding, (C, D); the row of an image's label becomes one more
            position, without bias.
        labels: Class labels, (B,) int32 or int64 in [0, C); with a class table only.
        mask: True at hidden groups, (B, N) or (B, N, G) bool; groups with the code 2**m are hidden
            as well. None: only these.
        mask_token: Vector of hidden positions, (D,), which replaces signs and bias; a position with
            any hidden group is hidden as a whole. None: the bits of hidden groups are 0.
        bits_per_group: Number of bits m of a group, 1 to 30.
        values: Numbers that bits stand for: -1 or +1 (`pm1`), or 0 or 1 (`01`).
        class_position: Position of the class row, `last` or `first`.
        validate: Check the values of codes and labels; on a GPU this waits for the device. None: on
            a CPU only. Unchecked codes out of range give unspecified numbers, labels out of range a
            class row of 0.
        backend: Implementation, `reference`, `triton` or `auto`; see `kernels/backends.py`.

    Returns:
        Hidden states, (B, N, D) or (B, N + 1, D), of the type of the weight or, under autocast, of
        the autocast type. Added up in float32 and rounded once; float32 weights are never rounded
        to TF32.

    Raises:
        ValueError: If a type, shape, setting or checked value is wrong.
        RuntimeError: If a backend requested by name cannot run here, with the reason.

    Source: arXiv:2409.16211, arXiv:2410.14672, arXiv:2304.04820; `reference.py` has the formulas.

    Example:
        >>> codes = torch.tensor([[[3, 0], [4, 1]]])  # 2 groups of 2 bits; 4 = hidden
        >>> bit_embedding(codes, torch.eye(4), bits_per_group=2)
        tensor([[[ 1.,  1., -1., -1.],
                 [ 0.,  0.,  1., -1.]]])
    """
    if codes.ndim == 2:
        codes = codes[..., None]
    if mask is not None and mask.ndim == 2:
        mask = mask[..., None]
    _check_settings(codes, bits_per_group, values, class_position)
    _check_terms(codes, weight, bias, position, class_table, labels, mask, mask_token)
    if codes.shape[-1] * bits_per_group != weight.shape[0]:
        raise ValueError(
            f"weight: expected {codes.shape[-1]} groups x {bits_per_group} bits = "
            f"{codes.shape[-1] * bits_per_group} rows, found {weight.shape[0]}"
        )
    hidden_states: Tensor = _bit_embedding(
        codes,
        weight,
        bias,
        position,
        class_table,
        labels,
        mask,
        mask_token,
        bits_per_group,
        values,
        class_position,
        autocast_dtype(codes.device) or weight.dtype,
        codes.device.type == "cpu" if validate is None else validate,
        backend,
    )
    return hidden_states


def _check_settings(codes: Tensor, bits_per_group: int, values: str, class_position: str) -> None:
    """Check the settings, and the type and the shape of the codes."""
    if codes.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"codes: expected int32 or int64, found {codes.dtype}")
    if codes.ndim != 3 or 0 in codes.shape:
        raise ValueError(
            f"codes: expected (B, N, G) or (B, N) without empty axes, found {tuple(codes.shape)}"
        )
    if not 1 <= bits_per_group <= MAX_GROUP_BITS:
        raise ValueError(f"bits_per_group: expected 1 to {MAX_GROUP_BITS}, found {bits_per_group}")
    if codes.shape[-1] * bits_per_group > MAX_BITS:
        raise ValueError(
            f"codes: expected at most {MAX_BITS} bits per position, "
            f"found {codes.shape[-1]} groups x {bits_per_group} bits"
        )
    if values not in get_args(Values):
        raise ValueError(f"values: expected one of {get_args(Values)}, found {values!r}")
    if class_position not in get_args(ClassPosition):
        raise ValueError(
            f"class_position: expected one of {get_args(ClassPosition)}, found {class_position!r}"
        )


def _check_terms(
    codes: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor | None,
    class_table: Tensor | None,
    labels: Tensor | None,
    mask: Tensor | None,
    mask_token: Tensor | None,
) -> None:
    """Check that types, devices and shapes of all terms fit codes and weight."""
    if weight.dtype not in FLOATS or weight.ndim != 2 or weight.shape[1] < 1:
        raise ValueError(
            f"weight: expected (K, D) float, found {tuple(weight.shape)} {weight.dtype}"
        )
    (batch, tokens, groups), width = codes.shape, weight.shape[1]
    if (class_table is None) != (labels is None):
        raise ValueError("labels: class_table and labels go together, found one without the other")
    rows = tokens + (class_table is not None)
    check_float("bias", bias, (width,), weight)
    check_float("position", position, (rows, width), weight)
    check_float("mask_token", mask_token, (width,), weight)
    if class_table is not None and labels is not None:
        num_classes = max([1, *class_table.shape[:1]])
        check_float("class_table", class_table, (num_classes, width), weight)
        check_label_tensor(labels, batch)
    if mask is not None:
        if mask.dtype != torch.bool or mask.shape not in (
            (batch, tokens, 1),
            (batch, tokens, groups),
        ):
            raise ValueError(
                f"mask: expected ({batch}, {tokens}) or ({batch}, {tokens}, {groups}) bool, "
                f"found {tuple(mask.shape)} {mask.dtype}"
            )
        if mask_token is not None and mask.shape[-1] > 1:
            raise ValueError(
                f"mask: expected ({batch}, {tokens}) with a mask_token, which hides whole positions"
                f", found {tuple(mask.shape)}"
            )
    check_devices(codes, weight=weight, labels=labels, mask=mask)


def check_values(
    codes: Tensor,
    mask: Tensor | None,
    labels: Tensor | None,
    num_classes: int,
    bits_per_group: int,
) -> None:
    """Check that visible codes are in [0, 2**m] and labels in [0, C).

    Raises:
        ValueError: If one is not; the message has the first wrong value.
    """
    wrong = (codes < 0) | (codes > 1 << bits_per_group)
    if mask is not None:
        wrong &= ~hidden_groups(codes, mask, bits_per_group)
    refuse_values("codes", codes, wrong, f"0 to 2**{bits_per_group} (hidden)")
    if labels is not None:
        wrong = (labels < 0) | (labels >= num_classes)
        refuse_values("labels", labels, wrong, f"0 to {num_classes - 1}")


@torch.library.custom_op("tessella::bit_embedding", mutates_args=())
def _bit_embedding(
    codes: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor | None,
    class_table: Tensor | None,
    labels: Tensor | None,
    mask: Tensor | None,
    mask_token: Tensor | None,
    bits_per_group: int,
    values: str,
    class_position: str,
    dtype: torch.dtype,
    validate: bool,
    backend: str,
) -> Tensor:
    if validate:
        num_classes = 0 if class_table is None else class_table.shape[0]
        check_values(codes, mask, labels, num_classes, bits_per_group)
    terms = (codes, weight, bias, position, class_table, labels, mask, mask_token)
    rows = codes.shape[0] * (codes.shape[1] + 1)
    with no_autocast(codes.device):
        if _resolve(backend, codes.device, weight.dtype, dtype, rows) == "triton":
            from .fused import bit_embedding_fused as implementation
        else:
            implementation = bit_embedding_reference
        return implementation(
            *terms,
            bits_per_group=bits_per_group,
            values=values,
            class_position=class_position,
            dtype=dtype,
        )


@_bit_embedding.register_fake
def _(
    codes: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor | None,
    class_table: Tensor | None,
    labels: Tensor | None,
    mask: Tensor | None,
    mask_token: Tensor | None,
    bits_per_group: int,
    values: str,
    class_position: str,
    dtype: torch.dtype,
    validate: bool,
    backend: str,
) -> Tensor:
    rows = codes.shape[1] + (class_table is not None)
    return weight.new_empty(codes.shape[0], rows, weight.shape[1], dtype=dtype)


@torch.library.custom_op("tessella::bit_embedding_backward", mutates_args=())
def _bit_embedding_backward(
    grad: Tensor,
    codes: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    bits_per_group: int,
    values: str,
    class_position: str,
    num_classes: int,
    replace: bool,
    need_position: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    with no_autocast(codes.device):
        rows = codes.shape[0] * (codes.shape[1] + 1)
        if _resolve(backend, codes.device, grad.dtype, grad.dtype, rows) == "triton":
            from .fused import bit_embedding_backward_fused as implementation
        else:
            implementation = bit_embedding_backward_reference
        gradients = implementation(
            grad,
            codes,
            labels,
            mask,
            bits_per_group=bits_per_group,
            values=values,
            class_position=class_position,
            num_classes=num_classes,
            replace=replace,
            need_position=need_position,
        )
    weight, bias, position, class_table, token = gradients
    return weight, bias, position, class_table, token


@_bit_embedding_backward.register_fake
def _(
    grad: Tensor,
    codes: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    bits_per_group: int,
    values: str,
    class_position: str,
    num_classes: int,
    replace: bool,
    need_position: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    width = grad.shape[-1]
    dtype = torch.promote_types(grad.dtype, torch.float32)

    def empty(*shape: int) -> Tensor:
        return grad.new_empty(shape, dtype=dtype)

    num_bits = codes.shape[2] * bits_per_group
    num_positions = grad.shape[1] if need_position else 0
    return (
        empty(num_bits, width),
        empty(width),
        empty(num_positions, width),
        empty(num_classes, width),
        empty(width),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save the tensors and settings that backward reads, and no activations."""
    codes, weight, _, _, class_table, labels, mask, mask_token, *settings = inputs
    ctx.save_for_backward(codes, labels, mask)
    ctx.dtype = weight.dtype
    ctx.bits_per_group, ctx.values, ctx.class_position, *_, ctx.backend = settings
    ctx.num_classes = 0 if class_table is None else class_table.shape[0]
    ctx.replace = mask_token is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Gradients of weight, bias, position, class table and mask token; None for other inputs."""
    codes, labels, mask = ctx.saved_tensors
    needs = ctx.needs_input_grad
    gradients = _bit_embedding_backward(
        grad,
        codes,
        labels,
        mask,
        ctx.bits_per_group,
        ctx.values,
        ctx.class_position,
        ctx.num_classes,
        ctx.replace,
        needs[3],
        ctx.backend,
    )
    weight, bias, position, class_table, mask_token = (
        g.to(ctx.dtype) if need else None
        for g, need in zip(gradients, (*needs[1:5], needs[7]), strict=True)
    )
    return (None, weight, bias, position, class_table, None, None, mask_token, *([None] * 6))


_bit_embedding.register_autograd(_backward, setup_context=_setup_context)


def _resolve(
    backend: str, device: torch.device, weight: torch.dtype, dtype: torch.dtype, num_rows: int
) -> str:
    """Choose the implementation of a call; the Triton code counts rows in int32."""
    refusal = f"{num_rows} rows are more than 2**30" if num_rows > 2**30 else None
    if weight == torch.float64:
        dtype = weight
    return resolve_backend(backend, "bit_embedding", device, dtype, refusal=refusal)
