"""Binarized attention in plain torch: the specification of `binary_attention`, both directions.

With s = sign(x), sign(0) = +1, and S over the valid keys only:

    bibert     S = s(q) s(k)^T / sqrt(d),  A = 1[S > 0],                    y = A s(v)
    bivit      S = q k^T / sqrt(d),        A = 1[p >= max(p) / 4],          y = A v
    binary_qk  S = m(q) m(k) s(q) s(k)^T / sqrt(d) + bias,                  y = p v

where p = softmax(S), and m(x) is the mean of |x| over the tokens and channels of a (batch, head).
A query without valid keys gives 0. Everything is float32 (float64 for float64 inputs) and rounded
once; the full score matrix is stored.

Straight-through gradients pass unchanged: s where |x| <= 1; the bool of `bibert` where |S| < 1; the
threshold of `bivit` everywhere, to p. m is differentiated.

Choices where the papers, their code or the methods differ:

- `bibert` (arXiv:2203.06390). The paper has bool(0) = 1, its code bool(0) = 0; here as in the code,
  because for even d a score of 0 is not rare (a tenth of all scores at d = 64). The window |S| < 1
  of bool is also that of the code. For sign the code has |x| < 1; here |x| <= 1 as in the paper, in
  all methods.
- sign(0) is 0 in the code of `bibert` and `bivit`: a third value, which one bit cannot hold.
- `bivit` (arXiv:2211.07091). Its module binarizes q, k and v before the scores: pass `binary_sign`
  of them. p >= max(p) / 4 is S >= max(S) - ln 4, which needs no sum of exponentials; rows divided
  by their number of ones (`row_norm`) are not in its code. A score so close to the threshold that
  rounding decides may fall on either side in another implementation. Rows that are not divided add
  up as many values as they have ones, which float16 cannot hold where they are large.
- `binary_qk` (arXiv:2603.09582). The bias is supported, 8-bit p and v are not. The mean over keys
  includes valid ones only; that over queries includes all, also padding.

The methods need a model trained with them. Without such training, on random normal q, k, v (1024
tokens, 8 heads, d = 64), the cosine to softmax attention is 0.73 with `binary_qk`, 0.63 with
`bivit` and 0.48 with `bibert`
(`python -m pytest tests/kernels/test_binary_attention.py -k without_training`). `binary_qk` is
published with distillation from the full-precision model. `bivit` keeps the softmax in its backward
and can start from a model that has one. `bibert` has no softmax, so it suits training from scratch,
and distils q q^T, k k^T and v v^T instead of attention maps.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

LOG_THRESHOLD = math.log(0.25)
"""Logarithm of the threshold of `bivit`, which keeps scores >= the largest of the row plus this."""


class BinaryAttentionGradients(NamedTuple):
    """Gradients in float32 or float64, with heads before tokens."""

    q: Tensor  # (B, H, Nq, d)
    k: Tensor  # (B, H, Nk, d)
    v: Tensor  # (B, H, Nk, d)
    scores: Tensor  # (B, H, Nq, Nk)


class Operands(NamedTuple):
    """Operands of the two products of a method, heads before tokens, float32 or float64."""

    query: Tensor  # (B, H, Nq, d)
    key: Tensor  # (B, H, Nk, d)
    value: Tensor  # (B, H, Nk, d)
    scale: Tensor  # (B, H, 1, 1): scores are scale * query key^T + bias
    keep: Tensor  # (B or 1, 1, 1, Nk) bool


def signs(x: Tensor) -> Tensor:
    """Signs -1 or +1 in the type of x; +1 for 0, NaN for NaN."""
    one = torch.ones((), dtype=x.dtype, device=x.device)
    return torch.where(x >= 0, one, -one).masked_fill(x.isnan(), math.nan)


def binary_sign(x: Tensor) -> Tensor:
    """Signs -1 or +1, +1 for 0; the gradient passes where |x| <= 1 and is 0 elsewhere."""
    clipped = x.clamp(-1, 1)
    return signs(x.detach()) + (clipped - clipped.detach())


def mean_magnitude(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean of |x| over tokens and channels, (B, H) float32 or float64.

    Args:
        x: Vectors, (B, N, H, d) float.
        valid: True at tokens to include, (B, N) bool; None: all tokens. The mean of none is 0.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    sums: Tensor = torch.linalg.vector_norm(x, 1, -1, dtype=wide)  # (B, N, H)
    if valid is None:
        return sums.mean(1) / x.shape[-1]
    sums = sums.masked_fill(~valid[..., None], 0).sum(1)
    return sums / (valid.sum(1, keepdim=True).clamp(min=1) * x.shape[-1])


def binary_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    method: str,
    row_norm: bool = False,
) -> Tensor:
    """Compute the formulas above; see `op.binary_attention` for the arguments.

    Returns:
        Attended values, (B, Nq, H, d), of the type of q.
    """
    operands = _operands(q, k, v, valid, method)
    scores = _scores(operands, bias)
    if method == "binary_qk":
        weights = _softmax(scores, operands.keep)
    else:
        weights = _binary_weights(scores, operands.keep, method, row_norm)
    return (weights @ operands.value).transpose(1, 2).to(q.dtype).contiguous()


def binary_attention_backward_reference(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor | None,
    bias: Tensor | None,
    *,
    method: str,
    row_norm: bool,
) -> BinaryAttentionGradients:
    """Compute every gradient by explicit formulas, from the inputs of the forward alone.

    Args:
        grad: Gradient dL/dy of the result, (B, Nq, H, d).
        q: Queries, (B, Nq, H, d).
        k: Keys, (B, Nk, H, d).
        v: Values, (B, Nk, H, d).
        valid: True at valid keys, (B, Nk) bool, or None.
        bias: Bias of the scores, (H, Nq, Nk), or None.
        method: Method of the forward.
        row_norm: True if the forward divided rows by their number of ones.

    Returns:
        Gradients of q, k, v and of S, whose sum over the batch is that of the bias.
    """
    operands = _operands(q, k, v, valid, method)
    query, key, value, scale, keep = operands
    scores = _scores(operands, bias)
    grad = grad.transpose(1, 2).to(query.dtype)
    grad_weights = grad @ value.mT
    if method == "bibert":
        weights = _binary_weights(scores, keep, method, row_norm)
        grad_scores = grad_weights * ((scores.abs() < 1) & keep)
    else:
        p = _softmax(scores, keep)
        binary = method == "bivit"
        weights = _binary_weights(scores, keep, method, row_norm) if binary else p
        grad_scores = p * (grad_weights - (p * grad_weights).sum(-1, keepdim=True))
    grad_products = grad_scores * scale
    grad_q, grad_k = grad_products @ key, grad_products.mT @ query
    grad_v = weights.mT @ grad
    if method != "bivit":
        grad_q = grad_q * _window(q)
        grad_k = grad_k * _window(k)
    if method == "bibert":
        grad_v = grad_v * _window(v)
    if method == "binary_qk":
        # d scores / d scale, then the product rule over the two means in the scale.
        slope = (grad_scores * (query @ key.mT)).sum((-2, -1), keepdim=True) / math.sqrt(q.shape[3])
        mean_q, mean_k = mean_magnitude(q), mean_magnitude(k, valid)
        counts = keep.sum(-1, keepdim=True).clamp(min=1)
        grad_q = grad_q + _signs_or_zero(q) * slope * _over_heads(mean_k) / q[0, :, 0].numel()
        slope = slope * _over_heads(mean_q) / (counts * q.shape[3])
        grad_k = grad_k + _signs_or_zero(k) * slope * keep.mT
    return BinaryAttentionGradients(grad_q, grad_k, grad_v, grad_scores)


def _operands(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, method: str) -> Operands:
    """Factors of both products; invalid keys and values, whatever they hold, become 0 first."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scale = torch.full((1, 1, 1, 1), q.shape[-1] ** -0.5, dtype=wide, device=q.device)
    if method == "binary_qk":
        scale = scale * _over_heads(mean_magnitude(q) * mean_magnitude(k, valid))
    query, key, value = (x.transpose(1, 2).to(wide) for x in (q, k, v))
    keep = torch.ones(1, 1, 1, k.shape[1], dtype=torch.bool, device=k.device)
    if valid is not None:
        keep = valid[:, None, None]
        key, value = key.masked_fill(~keep.mT, 0), value.masked_fill(~keep.mT, 0)
    if method != "bivit":
        query, key = signs(query), signs(key)
    if method == "bibert":
        value = signs(value)
    return Operands(query, key, value, scale, keep)


def _scores(operands: Operands, bias: Tensor | None) -> Tensor:
    """Scores S, (B, H, Nq, Nk); products of signs are integers, scaled after their exact sum."""
    scores = operands.query @ operands.key.mT * operands.scale
    return scores if bias is None else scores + bias.to(scores.dtype)


def _softmax(scores: Tensor, keep: Tensor) -> Tensor:
    """Softmax over the kept keys; 0 at other keys and in rows without any kept key."""
    return scores.masked_fill(~keep, -math.inf).softmax(-1).masked_fill(~keep, 0)


def _binary_weights(scores: Tensor, keep: Tensor, method: str, row_norm: bool) -> Tensor:
    """Weights A in {0, 1}, or rows divided by their sums, in the scores' type; NaN for NaN."""
    if method == "bibert":
        chosen = scores > 0
    else:
        largest = scores.masked_fill(~keep, -math.inf).amax(-1, keepdim=True)
        chosen = scores >= largest + LOG_THRESHOLD
    weights = chosen.to(scores.dtype).masked_fill(scores.isnan(), math.nan).masked_fill(~keep, 0)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1) if row_norm else weights


def _window(x: Tensor) -> Tensor:
    """Flags where the gradient passes the sign, (B, H, N, d), for x of shape (B, N, H, d)."""
    return (x.abs() <= 1).transpose(1, 2)


def _signs_or_zero(x: Tensor) -> Tensor:
    """Derivative of |x|, 0 at 0 and for (masked) NaN; heads first, float32 or float64."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return ((x > 0).to(wide) - (x < 0).to(wide)).transpose(1, 2)


def _over_heads(x: Tensor) -> Tensor:
    """Append two axes of size 1: (B, H) to (B, H, 1, 1)."""
    return x[..., None, None]
