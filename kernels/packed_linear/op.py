"""`packed_linear`: a linear layer whose weight stays packed at 1 to 4 bits.

`reference.py` defines the result; `fused.py` unpacks in registers and multiplies on tensor cores.
Both are behind `torch.library` ops, which `torch.compile` does not trace into. Inference only.

Packing saves memory and its traffic, not arithmetic: with 16-bit activations a GPU gains time only
at few rows of x (below about 12 times the bits of a weight), with int8 ones at many rows as well.
Both are derived from bandwidth and arithmetic (docs/kernels.md, "Packed linear layers"), not
measured.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ..backends import Backend, autocast_dtype, no_autocast, resolve_backend
from ..checks import FLOATS
from .formats import PackedWeight, integer_levels
from .prepack import PrepackedWeight, kernel_refusal, prepack_tensors
from .reference import packed_linear_reference, unpack_weight_reference

Activations = Literal["float", "int8"]
Route = Literal["auto", "fused", "unpack"]

UNPACK_ROWS = 512
"""Number of rows of x from which `auto` unpacks the weight once per call: there a matrix product in
16 bits is bound by arithmetic for any number of bits of the weight."""

MAX_ROWS = 2**21
"""Largest number of rows of x in the fused kernel: a CUDA grid has at most 65535 blocks along an
axis, here of 64 rows."""


def packed_linear(
    x: Tensor,
    weight: PackedWeight | PrepackedWeight,
    bias: Tensor | None = None,
    *,
    activations: Activations = "float",
    act_scale: Tensor | None = None,
    route: Route = "auto",
    backend: Backend = "auto",
) -> Tensor:
    """Linear layer with a packed weight, x W^T + bias.

    Args:
        x: Input, (..., K) float with any leading axes; cast to the autocast type under autocast.
        weight: Packed weight, N x K, on the device of x. A `PrepackedWeight` saves the Triton
            kernels the rearrangement, which otherwise every call does.
        bias: Bias, (N,) float; None: no bias.
        activations: Treatment of x. `float`: unchanged. `int8`: rounded to 8-bit integers times a
            scale, per token max |x| / 127 (arXiv:2402.17764), halves to even; their sums are exact.
            A token with a NaN, or with an infinite number and no `act_scale`, gives a row of NaN.
        act_scale: With `int8`, one scale for all tokens instead of one each, (1,) float > 0; values
            beyond [-128, 127] times it are clipped. Its value is not checked.
        route: Way in which Triton multiplies float activations. `fused`: weights unpacked in
            registers, levels exact, scales in float32; 16-bit x only, as float32 sums need more
            than tensor cores give. `unpack`: the weight is rounded to the type of x once per call,
            N K elements, and a plain matrix product reads it. `auto`: `unpack` for float32 x, and
            from 512 rows of x; otherwise `fused`. The reference ignores it.
        backend: Implementation, `reference`, `triton` or `auto`; see `kernels/backends.py`.

    Returns:
        Output, (..., N) of the type of x, added up in float32 and rounded once (`unpack`: as
        `F.linear` does).

    Raises:
        ValueError: If a type, shape or setting is wrong, or an input requires a gradient.
        RuntimeError: If a backend requested by name cannot run here, with the reason: Triton takes
            groups that are multiples of 32 columns and equally spaced levels.

    Example:
        >>> from tessella.kernels.packed_linear.encode import from_float
        >>> weight = from_float(torch.tensor([[1.0, -3.0], [-2.0, -2.0]]), "bin1")
        >>> packed_linear(torch.tensor([[1.0, 10.0]]), weight)
        tensor([[-18., -22.]])
    """
    handle = weight if isinstance(weight, PrepackedWeight) else None
    stored = weight.stored if isinstance(weight, PrepackedWeight) else weight
    _check(x, stored, bias)
    check_settings(stored, bias, activations, act_scale, route, backend)
    dtype = autocast_dtype(x.device)
    if dtype is not None and x.dtype != torch.float64:
        x = x.to(dtype)
    out: Tensor = _packed_linear(
        x,
        stored.qdata,
        stored.scale,
        stored.zero,
        handle.tensors if handle is not None else [],
        bias,
        act_scale,
        stored.tag,
        list(stored.level_table or ()),
        activations,
        route,
        backend,
    )
    return out


def unpack_weight(
    weight: PackedWeight | PrepackedWeight, dtype: torch.dtype, *, backend: Backend = "auto"
) -> Tensor:
    """Decode a weight to a matrix (N, K), rounded to a float type.

    Args:
        weight: Packed weight.
        dtype: Float type of the result.
        backend: Implementation, `reference`, `triton` or `auto`; see `kernels/backends.py`.

    Raises:
        ValueError: If the type is not a float type.
        RuntimeError: If a backend requested by name cannot run here, with the reason.
    """
    if dtype not in FLOATS:
        raise ValueError(f"dtype: expected one of {FLOATS}, found {dtype}")
    handle = weight if isinstance(weight, PrepackedWeight) else None
    stored = weight.stored if isinstance(weight, PrepackedWeight) else weight
    matrix: Tensor = _unpack_weight(
        stored.qdata,
        stored.scale,
        stored.zero,
        handle.tensors if handle is not None else [],
        stored.tag,
        list(stored.level_table or ()),
        stored.num_columns,
        dtype,
        backend,
    )
    return matrix


def _check(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> None:
    """Check that an input fits the weight and that no gradient is required."""
    num_columns, device = weight.num_columns, weight.qdata.device
    if x.dtype not in FLOATS or x.ndim < 1 or x.shape[-1] != num_columns or x.device != device:
        raise ValueError(
            f"x: expected (..., {num_columns}) float on {device}, "
            f"found {tuple(x.shape)} {x.dtype} on {x.device}"
        )
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        raise ValueError("packed_linear has no gradient; call it under torch.no_grad()")


def check_settings(
    weight: PackedWeight,
    bias: Tensor | None,
    activations: str,
    act_scale: Tensor | None,
    route: str,
    backend: str,
) -> None:
    """Check that settings fit the weight and each other; see `packed_linear` for the arguments.

    Raises:
        ValueError: If one does not; the message has what was found and what was expected.
    """
    device = weight.qdata.device
    if bias is not None and (
        bias.shape != (weight.num_rows,) or bias.dtype not in FLOATS or bias.device != device
    ):
        raise ValueError(
            f"bias: expected ({weight.num_rows},) float on {device}, "
            f"found {tuple(bias.shape)} {bias.dtype} on {bias.device}"
        )
    if activations not in get_args(Activations):
        raise ValueError(
            f"activations: expected one of {get_args(Activations)}, found {activations!r}"
        )
    if route not in get_args(Route):
        raise ValueError(f"route: expected one of {get_args(Route)}, found {route!r}")
    if backend not in get_args(Backend):
        raise ValueError(f"backend: expected one of {get_args(Backend)}, found {backend!r}")
    if activations == "int8":
        if route == "unpack":
            raise ValueError("route: expected auto or fused with int8 activations, found 'unpack'")
        if weight.level_table is not None and integer_levels(weight.level_table) is None:
            raise ValueError(
                "level_table: int8 activations need integers in [-127, 127] times a power of two, "
                f"found {weight.level_table}"
            )
    if act_scale is not None and (
        activations != "int8"
        or act_scale.shape != (1,)
        or not act_scale.is_floating_point()
        or act_scale.device != device
    ):
        raise ValueError(
            f"act_scale: expected (1,) float on {device}, with int8 activations alone, "
            f"found {tuple(act_scale.shape)} {act_scale.dtype} on {act_scale.device} with "
            f"{activations} activations"
        )


@torch.library.custom_op("tessella::packed_linear", mutates_args=())
def _packed_linear(
    x: Tensor,
    qdata: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    prepacked: Sequence[Tensor],
    bias: Tensor | None,
    act_scale: Tensor | None,
    tag: str,
    level_table: Sequence[float],
    activations: str,
    route: str,
    backend: str,
) -> Tensor:
    table = tuple(level_table) or None
    rows = x.reshape(-1, x.shape[-1])
    if route == "auto":
        whole = x.dtype == torch.float32 or rows.shape[0] >= UNPACK_ROWS
        route = "unpack" if whole and activations == "float" else "fused"
    refusal = kernel_refusal(tag, scale, zero, table, x.shape[-1])
    if route == "fused" and activations == "float" and x.dtype == torch.float32:
        refusal = refusal or "float32 activations have only the route 'unpack'"
    if route == "fused" and rows.shape[0] > MAX_ROWS:
        refusal = refusal or f"{rows.shape[0]} rows are more than {MAX_ROWS}"
    with no_autocast(x.device):
        chosen = resolve_backend(backend, "packed_linear", x.device, x.dtype, refusal=refusal)
        if chosen == "reference" or not rows.numel():
            return packed_linear_reference(
                x,
                qdata,
                scale,
                zero,
                bias,
                act_scale,
                tag=tag,
                level_table=table,
                activations=activations,
            )
        from .launches import packed_linear_fused

        out = packed_linear_fused(
            rows if rows.stride(1) == 1 else rows.contiguous(),
            list(prepacked) or prepack_tensors(qdata, scale, zero, tag, x.shape[-1], table),
            bias,
            None if act_scale is None else act_scale.float(),
            tag=tag,
            level_table=table,
            activations=activations,
            route=route,
        )
        return out.view(*x.shape[:-1], out.shape[-1])


@_packed_linear.register_fake
def _(
    x: Tensor,
    qdata: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    prepacked: Sequence[Tensor],
    bias: Tensor | None,
    act_scale: Tensor | None,
    tag: str,
    level_table: Sequence[float],
    activations: str,
    route: str,
    backend: str,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], qdata.shape[-2])


@torch.library.custom_op("tessella::unpack_weight", mutates_args=())
def _unpack_weight(
    qdata: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    prepacked: Sequence[Tensor],
    tag: str,
    level_table: Sequence[float],
    num_columns: int,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    table = tuple(level_table) or None
    refusal = kernel_refusal(tag, scale, zero, table, num_columns)
    device = qdata.device
    if resolve_backend(backend, "unpack_weight", device, dtype, refusal=refusal) == "reference":
        return unpack_weight_reference(
            qdata, scale, zero, tag=tag, num_columns=num_columns, level_table=table, dtype=dtype
        )
    from .launches import unpack_fused

    tensors = list(prepacked) or prepack_tensors(qdata, scale, zero, tag, num_columns, table)
    return unpack_fused(tensors, tag=tag, level_table=table, num_columns=num_columns, dtype=dtype)


@_unpack_weight.register_fake
def _(
    qdata: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    prepacked: Sequence[Tensor],
    tag: str,
    level_table: Sequence[float],
    num_columns: int,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    return qdata.new_empty(qdata.shape[-2], num_columns, dtype=dtype)
