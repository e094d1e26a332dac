"""Launches of the kernels of `fused.py`: output tensors, tile sizes by shape, and running them."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..backends import INTERPRETED
from ..launch import Launch, ceil_div, power_of_two, strides, valid_arguments
from .fused import (
    low_bit_attention_kernel,
    low_bit_quantize_kernel,
    low_bit_statistics_kernel,
)
from .reference import (
    BLOCK,
    FP8,
    FP8_MAX,
    INT8_MAX,
    MIN_PEAK,
    WEIGHT_EXPONENT,
    product_dtype,
    score_factor,
)

MANY_QUERIES = 512
"""Largest number of queries with tiles of 64; more take 128. The batch must not change a result."""
TOKENS_PER_PART = 512
"""Number of tokens whose statistics one program takes; fixed, so that results of an image do not
depend on its batch."""


class Statistics(NamedTuple):
    """Partial sums and maxima, float32; None where the quantizer needs none."""

    key_sums: Tensor | None  # (B * H * parts, P), P the padded head dim
    key_counts: Tensor | None  # (B * H * parts,)
    value_peaks: Tensor | None  # (B * H * parts, P)


class Quantized(NamedTuple):
    """Codes, padded with zeros beyond the real tokens and channels, and scales in float32."""

    queries: Tensor  # (B * H, query blocks * 64, P) int8 or e4m3
    query_scales: Tensor  # (B * H, query blocks)
    keys: Tensor  # (B * H, key blocks * 64, P)
    key_scales: Tensor  # (B * H, key blocks)
    values: Tensor | None  # (B * H, P, key blocks * 64) e4m3; None: 16-bit values as they are
    value_scales: Tensor | None  # (B * H, P)


def low_bit_attention_fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor | None,
    *,
    precision: str,
    smooth_k: bool,
) -> Tensor:
    """Compute `reference.low_bit_attention_reference` in two or three kernels."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    statistics, launch = statistics_launch(k, v, valid, precision=precision, smooth_k=smooth_k)
    if launch is not None:
        launch.run(q.device)
    quantized, launch = quantize_launch(q, k, v, valid, statistics, precision=precision)
    launch.run(q.device)
    launch = attention_launch(q, v.to(product_dtype(v.dtype)), valid, quantized)
    launch.run(q.device)
    return launch.output()


def statistics_launch(
    k: Tensor, v: Tensor, valid: Tensor | None, *, precision: str, smooth_k: bool
) -> tuple[Statistics, Launch | None]:
    """Outputs of the statistics kernel, and its launch; None if none are needed."""
    batch, num_keys, num_heads, head_dim = k.shape
    padded = power_of_two(head_dim)
    num_programs = batch * num_heads * ceil_div(num_keys, TOKENS_PER_PART)

    def empty(*shape: int) -> Tensor:
        return k.new_empty(shape, dtype=torch.float32)

    statistics = Statistics(
        empty(num_programs, padded) if smooth_k else None,
        empty(num_programs) if smooth_k else None,
        None if precision == "int8" else empty(num_programs, padded),
    )
    if statistics.key_sums is None and statistics.value_peaks is None:
        return statistics, None
    arguments = {
        "keys": k,
        "values": v,
        **statistics._asdict(),
        "num_keys": num_keys,
        "num_heads": num_heads,
        **strides("keys", "bnh", k[..., 0]),
        **strides("values", "bnh", v[..., 0]),
        **valid_arguments(valid),
        "D": head_dim,
        "BD": padded,
        "BN": 4096 // padded,  # two such tiles of float32 in 64 registers of a thread
        "PART": TOKENS_PER_PART,
    }
    options = {"num_warps": 4, "num_stages": 1}
    return statistics, Launch(low_bit_statistics_kernel, (num_programs,), arguments, options)


def quantize_launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor | None,
    statistics: Statistics,
    *,
    precision: str,
) -> tuple[Quantized, Launch]:
    """Outputs of the quantization kernel, and its launch."""
    (batch, num_queries, num_heads, head_dim), num_keys = q.shape, k.shape[1]
    heads, padded = batch * num_heads, power_of_two(head_dim)
    query_blocks, key_blocks = ceil_div(num_queries, BLOCK), ceil_div(num_keys, BLOCK)
    fp8, fp8_values = precision == "fp8", precision != "int8"
    low = FP8 if fp8 else torch.int8

    def scales(*shape: int) -> Tensor:
        return q.new_empty(shape, dtype=torch.float32)

    quantized = Quantized(
        q.new_empty(heads, query_blocks * BLOCK, padded, dtype=low),
        scales(heads, query_blocks),
        q.new_empty(heads, key_blocks * BLOCK, padded, dtype=low),
        scales(heads, key_blocks),
        q.new_empty(heads, padded, key_blocks * BLOCK, dtype=FP8) if fp8_values else None,
        scales(heads, padded) if fp8_values else None,
    )
    num_parts = ceil_div(num_keys, TOKENS_PER_PART)
    arguments = {
        "queries": q,
        "keys": k,
        "values": v,
        **statistics._asdict(),
        "query_codes": quantized.queries,
        "query_scales": quantized.query_scales,
        "key_codes": quantized.keys,
        "key_scales": quantized.key_scales,
        "value_codes": quantized.values,
        "value_scales": quantized.value_scales,
        "num_queries": num_queries,
        "num_keys": num_keys,
        "num_heads": num_heads,
        "factor": score_factor(head_dim),
        **strides("queries", "bnh", q[..., 0]),
        **strides("keys", "bnh", k[..., 0]),
        **strides("values", "bnh", v[..., 0]),
        **valid_arguments(valid),
        "D": head_dim,
        "BD": padded,
        "BN": BLOCK,
        "PART": TOKENS_PER_PART,
        "BP": min(16, power_of_two(num_parts)),
        "MIN_PEAK": MIN_PEAK,
        "MAX": FP8_MAX if fp8 else INT8_MAX,
        "FP8_MAX": FP8_MAX,
        "INTERPRET": INTERPRETED,
    }
    grid = (heads * (query_blocks + key_blocks * (2 if fp8_values else 1)),)
    options = {"num_warps": 4, "num_stages": 1}
    return quantized, Launch(low_bit_quantize_kernel, grid, arguments, options)


def attention_launch(q: Tensor, v: Tensor, valid: Tensor | None, quantized: Quantized) -> Launch:
    """Launch of the attention kernel; `out` is among its arguments.

    Args:
        q: Queries (B, Nq, H, d), which give the shape and the type of the result.
        v: Values (B, Nk, H, d) in 16 bits, read where `quantized` holds none.
        valid: True at valid keys, (B, Nk) bool; None: all keys.
        quantized: Codes and scales that the quantization kernel wrote.
    """
    (batch, num_queries, num_heads, head_dim), num_keys = q.shape, v.shape[1]
    heads, padded = batch * num_heads, power_of_two(head_dim)
    fp8_values = quantized.values is not None
    rows = 128 if num_queries > MANY_QUERIES else 64
    # Two sums of 128 rows need 8 warps from 64 channels on, one sum from 128.
    wide = rows == 128 and (padded == 128 or (fp8_values and padded == 64))
    if fp8_values and padded == 128 and valid is not None:
        rows, wide = 64, True  # anything else spills
    arguments = {
        "queries": quantized.queries,
        "query_scales": quantized.query_scales,
        "keys": quantized.keys,
        "key_scales": quantized.key_scales,
        "values": quantized.values if fp8_values else v,
        "value_scales": quantized.value_scales,
        "out": q.new_empty(batch, num_queries, num_heads, head_dim),
        "num_queries": num_queries,
        "num_keys": num_keys,
        "num_heads": num_heads,
        **strides("values", "bnh", v[..., 0]),
        **valid_arguments(valid),
        "D": head_dim,
        "BD": padded,
        "BM": rows,
        "BN": BLOCK,
        "EXPONENT": WEIGHT_EXPONENT if fp8_values else 0,
        "TAIL": num_keys % BLOCK != 0,
        "INTERPRET": INTERPRETED,
    }
    grid = (heads * ceil_div(num_queries, rows),)
    options = {"num_warps": 8 if wide else 4, "num_stages": 3}
    return Launch(low_bit_attention_kernel, grid, arguments, options)
