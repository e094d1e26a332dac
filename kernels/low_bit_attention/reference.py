"""Low-bit attention in plain torch: the specification of `low_bit_attention`.

Per image and head, with K' = K - mean of K over the valid keys (`smooth_k`; softmax is invariant to
a vector that is added to all keys) and Q' = Q d^-1/2 log2(e):

    Q' = s_q Q8 and K' = s_k K8     one scale per 64 tokens: max |x| / 127 (INT8) or / 448 (e4m3)
    S  = s_q s_k Q8 K8^T            integer products are exact; sums of e4m3 products in float32
    m, l, O                         online softmax in base 2 over blocks of 64 keys, in float32
    O += low(2^e exp2(S - m)) V8    16 bits: e = 0, V8 = V; e4m3: e = 8, V = s_v V8 per channel
    out = s_v O / l

INT8 rounds half away from zero, floats to the nearest even. Keys that are not valid enter neither
mean nor scales nor softmax. P and V in 16 bits have V's type, or bfloat16 for wider V: its range is
that of float32. l sums P before it is rounded.

Source: arXiv:2410.02367 (smoothing, INT8 QK, online softmax), arXiv:2411.10958 (FP8 PV with
channel scales), arXiv:2606.06521 (2^8 as the scale of P). Differences from the public code
(thu-ml/SageAttention): scales of Q are per 64 tokens here, per 128 there; a scale has a floor, so
that blocks of zeros stay zero, where 0 / 0 gives NaN there; queries without valid keys give 0,
where a mask of -1e6 gives the mean of all values there. docs/kernels.md has the errors.

Limits of magnitude: a block with max |x| below 2^-60 is rounded with the scale of 2^-60, so that q
of 1e-30 with k of 1e30 gives scores of 0; float32 V above 3.389e38, the largest bfloat16, is
infinite for `int8`.
"""

import math

import torch
from torch import Tensor

BLOCK = 64
"""Number of tokens of Q, and of K, that share a scale; also of keys in a step of the softmax."""
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
"""Largest value of e4m3."""
INT8_MAX = 127.0
"""Largest code of INT8; -128 is not used."""
MIN_PEAK = 2.0**-60
"""Floor of max |x| of a block, with which the product of two scales stays a normal float32."""
WEIGHT_EXPONENT = 8
"""Exponent of the factor 2^8 of P before it is rounded to e4m3: exact, and below 448."""


def score_factor(head_dim: int) -> float:
    """Factor of the queries before rounding, d^-1/2 log2(e)."""
    factor: float = head_dim**-0.5 * math.log2(math.e)
    return factor


def product_dtype(values: torch.dtype) -> torch.dtype:
    """Type of 16 bits in which P and V are multiplied, for the type of the values."""
    return values if values in (torch.float16, torch.bfloat16) else torch.bfloat16


def round_int8(x: Tensor) -> Tensor:
    """Round x / 2 to the nearest integer, half away from zero; x is of float type, |x| < 2^24."""
    halves = x.trunc()
    return ((halves + (halves > 0)) / 2).floor()


def round_fp8(x: Tensor) -> Tensor:
    """Round x to the nearest e4m3 number, saturating at 448; the result has the type of x."""
    return x.clamp(-FP8_MAX, FP8_MAX).to(FP8).to(x.dtype)


def quantize_blocks(x: Tensor, *, fp8: bool) -> tuple[Tensor, Tensor]:
    """Codes and scales of blocks of 64 tokens.

    Args:
        x: Numbers to round, (B, H, N, d) float32 or float64.
        fp8: Use e4m3 codes instead of INT8 codes.

    Returns:
        Codes of the type of x, (B, H, N, d), and the scale of every token, (B, H, N, 1): their
        product is x, within half a scale for INT8.
    """
    num_tokens = x.shape[2]
    peaks = [block.abs().amax((2, 3), keepdim=True) for block in torch.split(x, BLOCK, 2)]
    peak = torch.cat(peaks, 2).clamp(min=MIN_PEAK)  # (B, H, blocks, 1)
    peak = peak.repeat_interleave(BLOCK, 2)[:, :, :num_tokens]
    if fp8:
        return round_fp8(x * _quotient(FP8_MAX, peak)), peak / FP8_MAX
    return round_int8(x * _quotient(2 * INT8_MAX, peak)), peak / INT8_MAX


def quantize_channels(values: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of values (B, H, N, d) in e4m3, of their type, and scales of channels (B, H, 1, d)."""
    peak = values.abs().amax(2, keepdim=True).clamp(min=MIN_PEAK)
    return round_fp8(values * _quotient(FP8_MAX, peak)), peak / FP8_MAX


def _quotient(number: float, x: Tensor) -> Tensor:
    """Quotient number / x, rounded once; `number / x` of torch is number times a rounded 1 / x."""
    return torch.full_like(x, number) / x


def low_bit_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor | None,
    *,
    precision: str,
    smooth_k: bool,
) -> Tensor:
    """Compute the formula above; see `op.low_bit_attention` for the arguments.

    Returns:
        Attended values, (B, Nq, H, d), contiguous, of the type of q. The memory holds scores of 64
        keys at a time.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    queries, keys, values = (x.transpose(1, 2).to(wide) for x in (q, k, v))  # (B, H, N, d)
    keys = _real_keys(keys, valid, smooth_k)
    fp8 = precision == "fp8"
    queries, query_scales = quantize_blocks(queries * score_factor(q.shape[-1]), fp8=fp8)
    keys, key_scales = quantize_blocks(keys, fp8=fp8)
    if precision == "int8":
        low, exponent = product_dtype(v.dtype), 0
        values, value_scales = values.to(low).to(wide), None
    else:
        low, exponent = FP8, WEIGHT_EXPONENT
        values = values if valid is None else values.masked_fill(~valid[:, None, :, None], 0)
        values, value_scales = quantize_channels(values)

    rows = queries.shape[:3]
    peak = queries.new_full((*rows, 1), -math.inf)
    total = queries.new_zeros(*rows, 1)
    out = queries.new_zeros(*rows, q.shape[-1])
    for start in range(0, k.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        scales = query_scales * key_scales[:, :, start : start + 1]
        scores = queries @ keys[:, :, block].mT * scales  # (B, H, Nq, 64)
        if valid is not None:
            scores = scores.masked_fill(~valid[:, None, None, block], -math.inf)
        new_peak = torch.maximum(peak, scores.amax(-1, keepdim=True))
        base = new_peak.masked_fill(new_peak == -math.inf, 0)  # no valid key so far
        weights = torch.exp2(scores - (base - exponent))
        decay = torch.exp2(peak - base)
        total = total * decay + weights.sum(-1, keepdim=True)
        out = out * decay + weights.to(low).to(wide) @ values[:, :, block]
        peak = new_peak
    out = out / total.masked_fill(total == 0, 1)
    if value_scales is not None:
        out = out * value_scales
    return out.transpose(1, 2).to(q.dtype).contiguous()


def _real_keys(keys: Tensor, valid: Tensor | None, smooth_k: bool) -> Tensor:
    """Keys (B, H, N, d) minus their mean (`smooth_k`), and 0 where they are not valid."""
    if valid is None:
        return keys - keys.mean(2, keepdim=True) if smooth_k else keys
    real = valid[:, None, :, None]
    keys = keys.masked_fill(~real, 0)
    if smooth_k:
        mean = keys.sum(2, keepdim=True) / real.sum(2, keepdim=True).clamp(min=1)
        keys = (keys - mean).masked_fill(~real, 0)
    return keys
