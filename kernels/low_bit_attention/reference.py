"""Low-bit attention in plain torch: the specification of `low_bit_attention`.

Per image and head, with K' = K - mean of K over the valid keys (`smooth_k`; softmax does not see a
vector that is added to all keys) and Q' = Q d^-1/2 log2(e):

    Q' = s_q Q8 and K' = s_k K8     one scale per 64 tokens: max |x| / 127 (INT8) or / 448 (e4m3)
    S  = s_q s_k Q8 K8^T            integer products are exact; sums of e4m3 products in float32
    m, l, O                         online softmax in base 2 over blocks of 64 keys, in float32
    O += low(2^e exp2(S - m)) V8    16 bits: e = 0, V8 = V; e4m3: e = 8, V = s_v V8 per channel
    out = s_v O / l

INT8 rounds half away from zero, floats to the nearest even. Keys that are not valid enter neither
mean nor scales nor softmax. P and V in 16 bits have V's type, or bfloat16 for wider V: its range is
that of float32. l sums P before it is rounded.

Source: arXiv:2410.02367 (smoothing, INT8 QK, online softmax), arXiv:2411.10958 (FP8 PV with
channel scales), arXiv:2606.06521 (2^8 as the scale of P); kernels.md 4.2, 4.3 and 4.10. Scales of
Q are per 64 tokens here, per 128 there; a scale has a floor, so that blocks of zeros stay zero.

Magnitudes that do not work: max |x| of a block below 2^-60 is rounded on the scale of 2^-60, so
that q of 1e-30 beside k of 1e30 gives scores of 0; float32 V above 3.389e38, the largest bfloat16,
is infinite for `int8`.
"""

import math

import torch
from torch import Tensor

BLOCK = 64
"""Tokens of Q, and of K, that share a scale; also the keys of one step of the softmax."""
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
"""Largest value of e4m3."""
INT8_MAX = 127.0
"""Largest code of INT8; -128 is not used."""
MIN_PEAK = 2.0**-60
"""Floor of max |x| of a block: the product of two scales stays a normal float32."""
WEIGHT_EXPONENT = 8
"""P is multiplied by 2^8 before it is rounded to e4m3: exact, and below 448."""


def score_factor(head_dim: int) -> float:
    """d^-1/2 log2(e), by which queries are multiplied first."""
    return head_dim**-0.5 * math.log2(math.e)


def product_dtype(values: torch.dtype) -> torch.dtype:
    """The 16-bit type of P and V for values of this type."""
    return values if values in (torch.float16, torch.bfloat16) else torch.bfloat16


def round_int8(x: Tensor) -> Tensor:
    """x / 2 to the nearest integer, half away from zero; of float type, |x| < 2^24."""
    halves = x.trunc()
    return ((halves + (halves > 0)) / 2).floor()


def round_fp8(x: Tensor) -> Tensor:
    """To the nearest e4m3, saturating at 448; of the type of x."""
    return x.clamp(-FP8_MAX, FP8_MAX).to(FP8).to(x.dtype)


def quantize_blocks(x: Tensor, *, fp8: bool) -> tuple[Tensor, Tensor]:
    """Codes and scales of blocks of 64 tokens.

    Args:
        x: (B, H, N, d) float32 or float64.
        fp8: Codes are e4m3 rather than INT8.

    Returns:
        Codes of the type of x, (B, H, N, d), and the scale of every token, (B, H, N, 1): their
        product is x, within half a scale for INT8.
    """
    num_tokens = x.shape[2]
    peaks = [block.abs().amax((2, 3), keepdim=True) for block in x.split(BLOCK, 2)]
    peak = torch.cat(peaks, 2).clamp(min=MIN_PEAK)  # (B, H, blocks, 1)
    peak = peak.repeat_interleave(BLOCK, 2)[:, :, :num_tokens]
    if fp8:
        return round_fp8(x * _quotient(FP8_MAX, peak)), peak / FP8_MAX
    return round_int8(x * _quotient(2 * INT8_MAX, peak)), peak / INT8_MAX


def quantize_channels(values: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3 codes of values (B, H, N, d), of their type, and scales of channels (B, H, 1, d)."""
    peak = values.abs().amax(2, keepdim=True).clamp(min=MIN_PEAK)
    return round_fp8(values * _quotient(FP8_MAX, peak)), peak / FP8_MAX


def _quotient(number: float, x: Tensor) -> Tensor:
    """number / x, rounded once; `number / x` of torch is number times a rounded 1 / x."""
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
    """The formula above; see `op.low_bit_attention` for the arguments.

    Returns:
        (B, Nq, H, d), contiguous, of the type of q. Holds scores of 64 keys at a time.
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
    """Keys (B, H, N, d) less their mean, and 0 where they are not valid."""
    if valid is None:
        return keys - keys.mean(2, keepdim=True) if smooth_k else keys
    real = valid[:, None, :, None]
    keys = keys.masked_fill(~real, 0)
    if smooth_k:
        mean = keys.sum(2, keepdim=True) / real.sum(2, keepdim=True).clamp(min=1)
        keys = (keys - mean).masked_fill(~real, 0)
    return keys
