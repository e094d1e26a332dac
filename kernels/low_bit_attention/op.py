"""`low_bit_attention`: softmax attention with INT8 or FP8 products, forward only.

`reference.py` defines the result, `fused.py` computes it in at most three kernels, which
`launches.py` runs, both behind the torch.library op `tessella::low_bit_attention`. Rounding has no
gradient: inputs that need one are refused, or (`straight_through`) get that of exact attention on
the same inputs, which backward recomputes from q, k, v and valid; nothing else is saved.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backends import Backend, autocast_dtype, no_autocast, resolve_backend
from ..checks import FLOATS, HEAD_DIMS, check_valid
from .reference import low_bit_attention_reference

LowBitPrecision = Literal["int8", "int8_fp8", "fp8"]
"""Number formats of the two products, QK^T and PV; see `low_bit_attention`."""


def low_bit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    valid: Tensor | None = None,
    precision: LowBitPrecision = "int8",
    smooth_k: bool = True,
    straight_through: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """Softmax attention, softmax(q k^T / sqrt(d)) v of every head, with products of 8-bit codes.

    Args:
        q: Queries, (B, Nq, H, d), of any float type (float64: reference only). d is a multiple of
            8 from 32 to 128. Any strides, such as those of `qkv.view(B, N, 3, H, d).unbind(2)`; a
            tensor whose channels are not adjacent is copied first.
        k: Keys, (B, Nk, H, d), of the type of q.
        v: Values, (B, Nk, H, d), of the type of q.
        valid: True at keys that may be attended to, (B, Nk) bool; None: all keys. Other keys are
            ignored, but their values must be finite. A row without any valid key is 0.
        precision: Number formats of the products. `int8`: INT8 for QK^T; 16 bits for PV, the type
            of v or bfloat16 for wider ones. `int8_fp8`: INT8 and FP8 (e4m3). `fp8`: FP8 for both.
        smooth_k: Subtract the mean of the valid keys of every head before rounding; the exact
            result does not change, but the error of keys with a common offset becomes smaller.
            Without effect where q and k are normalized.
        straight_through: Give gradients, those of exact attention on the unrounded inputs.
        backend: Implementation, `reference`, `triton` or `auto`; see `kernels/backends.py`.

    Returns:
        Attended values, (B, Nq, H, d), contiguous, of the type of q. A NaN appears wherever it is
        read: one in q in the 64 rows that share its scale; one in a valid token of k in all rows of
        the head; one in v in its channel of all rows of the head. Rows without any valid key stay
        0. Under autocast inputs other than float64 are first cast to the autocast type, as
        `F.scaled_dot_product_attention` does.

    Raises:
        ValueError: If a type, shape or setting is wrong, or an input needs a gradient and
            `straight_through` is not set.
        RuntimeError: If a backend requested by name cannot run here, with the reason: FP8 needs
            compute capability 8.9.

    Source: arXiv:2410.02367, arXiv:2411.10958; `reference.py` has the formulas. Not for short
    sequences: rounding moves 8 to 13 bytes per channel of a token, 18 to 30 % of the time of the
    attention itself at 1,024 tokens and more at fewer (docs/kernels.md, "Low-bit attention").

    Example:
        >>> q, k, v = torch.randn(3, 2, 100, 4, 64).unbind()
        >>> low_bit_attention(q, k, v, precision="int8_fp8").shape
        torch.Size([2, 100, 4, 64])
    """
    dtype = autocast_dtype(q.device)
    if dtype is not None:
        q, k, v = (x if x.dtype == torch.float64 else x.to(dtype) for x in (q, k, v))
    _check_inputs(q, k, v, valid)
    if precision not in get_args(LowBitPrecision):
        raise ValueError(
            f"precision: expected one of {get_args(LowBitPrecision)}, found {precision!r}"
        )
    if not straight_through and torch.is_grad_enabled():
        for name, tensor in {"q": q, "k": k, "v": v}.items():
            if tensor.requires_grad:
                raise ValueError(
                    f"{name}: needs a gradient, and rounding has none; expected torch.no_grad(), "
                    "or straight_through=True for the gradient of exact attention"
                )
    out: Tensor = _low_bit_attention(q, k, v, valid, precision, smooth_k, backend)
    return out


def _check_inputs(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> None:
    """Check that queries, keys, values and valid flags have types and shapes that fit together."""
    if q.dtype not in FLOATS or q.ndim != 4 or 0 in q.shape:
        raise ValueError(
            "q: expected (B, Nq, H, d) float16, bfloat16, float32 or float64 without empty axes, "
            f"found {tuple(q.shape)} {q.dtype}"
        )
    batch, _, num_heads, head_dim = q.shape
    if head_dim not in HEAD_DIMS:
        raise ValueError(f"q: expected a head dim of 32, 40, ... or 128, found {head_dim}")
    if k.ndim != 4 or k.shape[1] == 0 or k.shape != (batch, k.shape[1], num_heads, head_dim):
        raise ValueError(
            f"k: expected ({batch}, Nk, {num_heads}, {head_dim}) with Nk >= 1, "
            f"found {tuple(k.shape)}"
        )
    if v.shape != k.shape:
        raise ValueError(f"v: expected the shape of k, {tuple(k.shape)}, found {tuple(v.shape)}")
    for name, tensor in {"k": k, "v": v}.items():
        if tensor.dtype != q.dtype or tensor.device != q.device:
            raise ValueError(
                f"{name}: expected {q.dtype} on {q.device} as q, "
                f"found {tensor.dtype} on {tensor.device}"
            )
    check_valid(valid, (batch, k.shape[1]), q.device)


@torch.library.custom_op("tessella::low_bit_attention", mutates_args=())
def _low_bit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor | None,
    precision: str,
    smooth_k: bool,
    backend: str,
) -> Tensor:
    with no_autocast(q.device):
        if _resolve(backend, q, precision) == "triton":
            from .launches import low_bit_attention_fused as implementation
        else:
            implementation = low_bit_attention_reference
        return implementation(q, k, v, valid, precision=precision, smooth_k=smooth_k)


@_low_bit_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor | None,
    precision: str,
    smooth_k: bool,
    backend: str,
) -> Tensor:
    return q.new_empty(q.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save the inputs for backward, and no activations."""
    ctx.save_for_backward(*inputs[:4])


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Straight-through gradients of q, k and v, which are those of exact attention."""
    q, k, v, valid = ctx.saved_tensors
    return (*exact_attention_gradients(grad, q, k, v, valid), None, None, None, None)


_low_bit_attention.register_autograd(_backward, setup_context=_setup_context)


def exact_attention_gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None
) -> tuple[Tensor, ...]:
    """Gradients of q, k and v by `F.scaled_dot_product_attention`, which is recomputed.

    Rows of an image without a valid key have gradients of 0: they attend to all keys, so that
    nothing is NaN, and their dL/dy is set to 0.

    Args:
        grad: Gradient dL/dy of the result, (B, Nq, H, d).
        q: Queries, (B, Nq, H, d).
        k: Keys, (B, Nk, H, d).
        v: Values, (B, Nk, H, d).
        valid: True at valid keys, (B, Nk) bool; None: all keys.
    """
    mask = None
    if valid is not None:
        seen = valid.any(1)  # (B,)
        grad = grad * seen[:, None, None, None]
        mask = (valid | ~seen[:, None])[:, None, None]  # (B, 1, 1, Nk)
    with no_autocast(q.device), torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        queries, keys, values = (x.transpose(1, 2) for x in leaves)  # (B, H, N, d)
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return torch.autograd.grad(out.transpose(1, 2), leaves, grad)


def _resolve(backend: str, q: Tensor, precision: str) -> str:
    """Choose the implementation of a call; e4m3 products exist from Ada and Hopper on."""
    refusal = None
    if precision != "int8" and q.device.type == "cuda":
        capability = torch.cuda.get_device_capability(q.device)
        if capability < (8, 9):
            refusal = (
                f"{precision}: compute capability {capability[0]}.{capability[1]} is below 8.9"
            )
    return resolve_backend(backend, "low_bit_attention", q.device, q.dtype, refusal=refusal)
