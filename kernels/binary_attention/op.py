"""`binary_attention`: three published attentions whose scores or probabilities are binarized.

`reference.py` defines the results and has the requirements of the methods; `fused.py` computes the
forward in one kernel that stores no scores. Both are behind the torch.library op
`tessella::binary_attention`, which `torch.compile` does not trace into. The backward is
straight-through, `tessella::binary_attention_backward`: plain torch on any device, recomputed from
q, k and v, with the score matrix in memory.

These attentions are for models trained with them; `reference.py` has their effect on other models.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..backends import Backend, no_autocast, resolve_backend
from ..checks import FLOATS, HEAD_DIMS, check_float, check_valid
from .reference import binary_attention_backward_reference, binary_attention_reference

Method = Literal["bibert", "bivit", "binary_qk"]
"""Names of the published methods; see `binary_attention`."""


def binary_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    method: Method,
    valid: Tensor | None = None,
    bias: Tensor | None = None,
    row_norm: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """Attention with one-bit scores or probabilities and a straight-through backward.

    Args:
        q: Queries, (B, Nq, H, d) float of any strides; the Triton code first copies tensors whose
            channels are not adjacent or whose other strides are not multiples of 8.
        k: Keys, (B, Nk, H, d), of the type of q.
        v: Values, (B, Nk, H, d), of the type of q.
        method: Published method. `bibert`: signs of q, k and v, no softmax, ones where the score is
            positive. `bivit`: ones where the probability is at least a quarter of the largest of
            the row; its paper passes signs of q, k and v. `binary_qk`: signs of q and k times their
            mean magnitude per (batch, head), then softmax.
        valid: True at valid keys, (B, Nk) bool; None: all keys. Values of other keys, NaN included,
            have no effect and a gradient of 0. For `binary_qk` the mean magnitude of the queries
            includes every query, valid or not.
        bias: Bias added to the scores, (H, Nq, Nk) of the type of q, finite; for `binary_qk` only.
        row_norm: Divide each row of ones by their number; for `bivit` only, and not in its paper.
        backend: Implementation, `reference`, `triton` or `auto`; see `kernels/backends.py`. The
            Triton code takes d = 32, 40, ..., 128; the backward is always plain torch.

    Returns:
        Attended values, (B, Nq, H, d), of the type of q, also under autocast; 0 for queries without
        valid keys. Otherwise a NaN appears wherever it is read: one in q in its own row (for
        `binary_qk` in all rows of the head, as their mean magnitude is NaN); one in a valid token
        of k in all rows of the head; one in v in its channel of all rows of the head.
        Sums are float32, products of signs and ones exact. The Triton code makes other products of
        float32 from three TF32 products (about 22 bits), and rounds probabilities to the type of a
        16-bit v.

    Raises:
        ValueError: If a type, shape or setting is wrong.
        RuntimeError: If a backend requested by name cannot run here, with the reason.

    Source: arXiv:2203.06390, arXiv:2211.07091, arXiv:2603.09582; `reference.py` has the formulas.

    Example:
        >>> q = k = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)  # two tokens, d = 1
        >>> v = torch.tensor([3.0, 5.0]).view(1, 2, 1, 1)
        >>> binary_attention(q, k, v, method="bivit").flatten()  # weights .88, .12: 1, 0
        tensor([3., 5.])
    """
    _check(q, k, v, method, valid, bias, row_norm)
    out: Tensor = _binary_attention(q, k, v, valid, bias, method, row_norm, backend)
    return out


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    method: str,
    valid: Tensor | None,
    bias: Tensor | None,
    row_norm: bool,
) -> None:
    """Check that settings, types and shapes fit each other."""
    if method not in get_args(Method):
        raise ValueError(f"method: expected one of {get_args(Method)}, found {method!r}")
    if q.dtype not in FLOATS or q.ndim != 4 or 0 in q.shape:
        raise ValueError(
            f"q: expected (B, Nq, H, d) float without empty axes, found {tuple(q.shape)} {q.dtype}"
        )
    if k.ndim != 4 or 0 in k.shape:
        raise ValueError(f"k: expected (B, Nk, H, d) without empty axes, found {tuple(k.shape)}")
    (batch, num_queries, heads, width), num_keys = q.shape, k.shape[1]
    check_float("k", k, (batch, num_keys, heads, width), q)
    check_float("v", v, (batch, num_keys, heads, width), q)
    check_valid(valid, (batch, num_keys), q.device)
    if bias is not None and method != "binary_qk":
        raise ValueError(f"bias: expected None with method {method!r}, found a tensor")
    check_float("bias", bias, (heads, num_queries, num_keys), q)
    if row_norm and method != "bivit":
        raise ValueError(f"row_norm: expected False with method {method!r}, found {row_norm}")


@torch.library.custom_op("tessella::binary_attention", mutates_args=())
def _binary_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor | None,
    bias: Tensor | None,
    method: str,
    row_norm: bool,
    backend: str,
) -> Tensor:
    with no_autocast(q.device):
        refusal = _refusal(q, k)
        chosen = resolve_backend(backend, "binary_attention", q.device, q.dtype, refusal=refusal)
        if chosen == "triton":
            from .fused import binary_attention_fused as implementation
        else:
            implementation = binary_attention_reference
        return implementation(q, k, v, valid, bias, method=method, row_norm=row_norm)


@_binary_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor | None,
    bias: Tensor | None,
    method: str,
    row_norm: bool,
    backend: str,
) -> Tensor:
    return q.new_empty(q.shape)


@torch.library.custom_op("tessella::binary_attention_backward", mutates_args=())
def _binary_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor | None,
    bias: Tensor | None,
    method: str,
    row_norm: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with no_autocast(q.device):
        gradients = binary_attention_backward_reference(
            grad, q, k, v, valid, bias, method=method, row_norm=row_norm
        )
        of_q, of_k, of_v = (x.transpose(1, 2).to(q.dtype).contiguous() for x in gradients[:3])
        if bias is None:
            return of_q, of_k, of_v, q.new_empty(0)
        return of_q, of_k, of_v, gradients.scores.sum(0).to(q.dtype)


@_binary_attention_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor | None,
    bias: Tensor | None,
    method: str,
    row_norm: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_bias = (0,) if bias is None else bias.shape
    return (
        q.new_empty(q.shape),
        k.new_empty(k.shape),
        v.new_empty(v.shape),
        q.new_empty(of_bias),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save the inputs for backward, and no scores."""
    q, k, v, valid, bias, ctx.method, ctx.row_norm, _ = inputs
    ctx.save_for_backward(q, k, v, valid, bias)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Gradients of q, k, v and the bias; None for other inputs."""
    q, k, v, valid, bias = ctx.saved_tensors
    gradients = _binary_attention_backward(grad, q, k, v, valid, bias, ctx.method, ctx.row_norm)
    of_q, of_k, of_v, of_bias = gradients
    return of_q, of_k, of_v, None, None if bias is None else of_bias, None, None, None


_binary_attention.register_autograd(_backward, setup_context=_setup_context)


def _refusal(q: Tensor, k: Tensor) -> str | None:
    """Reason why the Triton code cannot take these shapes, or None if it can."""
    if q.shape[-1] not in HEAD_DIMS:
        return f"head dim {q.shape[-1]} is not one of 32, 40, ..., 128"
    if max(q.shape[1], k.shape[1]) > 2**30:
        return f"{q.shape[1]} queries or {k.shape[1]} keys are more than 2**30"
    return None
