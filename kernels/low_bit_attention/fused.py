"""Low-bit attention in Triton: statistics, quantization, attention, at most three launches.

Statistics: sums of K and, for e4m3 values, max |V| per channel, over parts of 512 tokens; whoever
reads them adds the parts up. Quantization: one program per 64 tokens of Q, K or V writes codes and
a scale, padded with zeros to whole blocks and to a power of two of channels; V is transposed, as
the tensor cores read e4m3. Attention: a program owns 64 or 128 queries of one head and walks over
blocks of 64 keys. What a number is depends on its own image only: no atomics, no split of keys.

e4m3 products are added to a second float32 sum after every block of keys: a Hopper accumulator
keeps about 22 bits. In the interpreter (`INTERPRET`) dot operands are cast to float32, and casts
are preceded by the right rounding: its own are wrong.

Source: kernels.md 4.2 to 4.6 and 6.1.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends import INTERPRETED
from ..launch import NUM_PROGRAMS, Launch, ceil_div, power_of_two, strides
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

TOKENS_PER_PART = 512
"""Tokens whose statistics one program takes; fixed, so that a batch does not change an image."""


class Statistics(NamedTuple):
    """Partial sums and maxima, float32; None where the quantizer needs none."""

    key_sums: Tensor | None  # (B * H * parts, P), P the padded head dim
    key_counts: Tensor | None  # (B * H * parts,)
    value_peaks: Tensor | None  # (B * H * parts, P)


class Quantized(NamedTuple):
    """Codes with zeros behind the real tokens and channels, and their scales, float32."""

    queries: Tensor  # (B * H, query blocks * 64, P) int8 or e4m3
    query_scales: Tensor  # (B * H, query blocks)
    keys: Tensor  # (B * H, key blocks * 64, P)
    key_scales: Tensor  # (B * H, key blocks)
    values: Tensor | None  # (B * H, P, key blocks * 64) e4m3; None: 16-bit values as they are
    value_scales: Tensor | None  # (B * H, P)


@triton.jit
def narrow(x, dtype: tl.constexpr, INTERPRET: tl.constexpr):
    """float32 to a narrower float, to the nearest even; the interpreter's casts truncate."""
    if INTERPRET:
        bits = x.to(tl.int32, bitcast=True)
        if dtype == tl.bfloat16:
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
            x = bits.to(tl.float32, bitcast=True)
        elif dtype == tl.float8e4nv:
            normal = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000
            small = (x + 24576.0) - 24576.0  # multiples of 2^-9, the subnormals
            x = tl.where(tl.abs(x) < 0.015625, small, normal.to(tl.float32, bitcast=True))
    return x.to(dtype)


@triton.jit
def dot_low(left, right, acc, INTERPRET: tl.constexpr):
    """acc + left @ right, float32 sums of 16-bit or e4m3 operands."""
    if INTERPRET:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, acc, out_dtype=tl.float32)


@triton.jit
def real_tokens(valid, image, n, num_tokens, stride_b, stride_n):
    """Which of the tokens n exist and are valid."""
    ok = n < num_tokens
    if valid is not None:
        where = image * stride_b + n.to(tl.int64) * stride_n
        ok &= tl.load(valid + where, mask=ok, other=0) != 0
    return ok


@triton.jit
def load_rows(tokens, n, ok, stride_n, D: tl.constexpr, BD: tl.constexpr):
    """Rows n as float32, (len(n), BD), 0 where not ok and behind channel D."""
    d = tl.arange(0, BD)
    where = (n.to(tl.int64) * stride_n)[:, None] + d[None, :]
    return tl.load(tokens + where, mask=ok[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)


@triton.jit
def low_bit_statistics_kernel(
    keys,
    values,
    valid,
    key_sums,
    key_counts,
    value_peaks,
    num_keys,
    num_heads,
    keys_stride_b,
    keys_stride_n,
    keys_stride_h,
    values_stride_b,
    values_stride_n,
    values_stride_h,
    valid_stride_b,
    valid_stride_n,
    D: tl.constexpr,
    BD: tl.constexpr,
    BN: tl.constexpr,
    PART: tl.constexpr,
):
    num_parts = tl.cdiv(num_keys, PART)
    program = tl.program_id(0)  # part of a head of an image
    head, part = program // num_parts, program % num_parts
    image, h = (head // num_heads).to(tl.int64), (head % num_heads).to(tl.int64)
    keys += image * keys_stride_b + h * keys_stride_h
    values += image * values_stride_b + h * values_stride_h
    sums = tl.zeros([BN, BD], tl.float32)
    peaks = tl.zeros([BN, BD], tl.float32)
    count = tl.zeros([BN], tl.float32)
    for start in range(part * PART, tl.minimum(part * PART + PART, num_keys), BN):
        n = start + tl.arange(0, BN)
        ok = real_tokens(valid, image, n, num_keys, valid_stride_b, valid_stride_n)
        if key_sums is not None:
            sums += load_rows(keys, n, ok, keys_stride_n, D, BD)
            count += ok.to(tl.float32)
        if value_peaks is not None:
            peaks = tl.maximum(peaks, tl.abs(load_rows(values, n, ok, values_stride_n, D, BD)))
    where = program.to(tl.int64) * BD + tl.arange(0, BD)
    if key_sums is not None:
        tl.store(key_sums + where, tl.sum(sums, 0))
        tl.store(key_counts + program, tl.sum(count, 0))
    if value_peaks is not None:
        tl.store(value_peaks + where, tl.max(peaks, 0))


@triton.jit
def key_mean(key_sums, key_counts, head, num_parts, BD: tl.constexpr, BP: tl.constexpr):
    """Mean of the valid keys of a head, (BD,); 0 if there is none."""
    sums = tl.zeros([BD], tl.float32)
    count = 0.0
    for start in range(0, num_parts, BP):
        part = start + tl.arange(0, BP)
        ok = part < num_parts
        row = head.to(tl.int64) * num_parts + part
        where = row[:, None] * BD + tl.arange(0, BD)[None, :]
        sums += tl.sum(tl.load(key_sums + where, mask=ok[:, None], other=0.0), 0)
        count += tl.sum(tl.load(key_counts + row, mask=ok, other=0.0), 0)
    return tl.div_rn(sums, tl.maximum(count, 1.0))


@triton.jit
def value_peak(value_peaks, head, num_parts, BD: tl.constexpr, BP: tl.constexpr):
    """max |V| of the channels of a head, (BD,)."""
    peaks = tl.zeros([BD], tl.float32)
    for start in range(0, num_parts, BP):
        part = start + tl.arange(0, BP)
        where = (head.to(tl.int64) * num_parts + part)[:, None] * BD + tl.arange(0, BD)[None, :]
        tile = tl.load(value_peaks + where, mask=(part < num_parts)[:, None], other=0.0)
        peaks = tl.maximum(peaks, tl.max(tile, 0))
    return peaks


@triton.jit
def store_block(
    x, codes, scales, row, MIN_PEAK: tl.constexpr, MAX: tl.constexpr, INTERPRET: tl.constexpr
):
    """Codes and the scale of a tile (BN, BD), as block `row` of all blocks."""
    BN: tl.constexpr = x.shape[0]
    BD: tl.constexpr = x.shape[1]
    peak = tl.maximum(tl.max(tl.max(tl.abs(x), 1), 0), MIN_PEAK)
    if codes.dtype.element_ty == tl.int8:
        halves = (x * tl.div_rn(2.0 * MAX, peak)).to(tl.int32)  # towards zero
        coded = ((halves + (halves > 0).to(tl.int32)) >> 1).to(tl.int8)
    else:
        scaled = tl.clamp(x * tl.div_rn(MAX, peak), -MAX, MAX)
        coded = narrow(scaled, tl.float8e4nv, INTERPRET)
    where = (row * BN + tl.arange(0, BN))[:, None] * BD + tl.arange(0, BD)[None, :]
    tl.store(codes + where, coded)
    tl.store(scales + row, tl.div_rn(peak, MAX))


@triton.jit
def low_bit_quantize_kernel(
    queries,
    keys,
    values,
    valid,
    key_sums,
    key_counts,
    value_peaks,
    query_codes,
    query_scales,
    key_codes,
    key_scales,
    value_codes,
    value_scales,
    num_queries,
    num_keys,
    num_heads,
    factor,
    queries_stride_b,
    queries_stride_n,
    queries_stride_h,
    keys_stride_b,
    keys_stride_n,
    keys_stride_h,
    values_stride_b,
    values_stride_n,
    values_stride_h,
    valid_stride_b,
    valid_stride_n,
    D: tl.constexpr,
    BD: tl.constexpr,
    BN: tl.constexpr,
    PART: tl.constexpr,
    BP: tl.constexpr,
    MIN_PEAK: tl.constexpr,
    MAX: tl.constexpr,
    FP8_MAX: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    query_blocks, key_blocks = tl.cdiv(num_queries, BN), tl.cdiv(num_keys, BN)
    num_blocks = query_blocks + key_blocks
    if value_codes is not None:
        num_blocks += key_blocks
    head, block = tl.program_id(0) // num_blocks, tl.program_id(0) % num_blocks
    image, h = (head // num_heads).to(tl.int64), (head % num_heads).to(tl.int64)
    num_parts = tl.cdiv(num_keys, PART)
    if block < query_blocks:
        n = block * BN + tl.arange(0, BN)
        queries += image * queries_stride_b + h * queries_stride_h
        x = load_rows(queries, n, n < num_queries, queries_stride_n, D, BD) * factor
        row = head.to(tl.int64) * query_blocks + block
        store_block(x, query_codes, query_scales, row, MIN_PEAK, MAX, INTERPRET)
    elif block < query_blocks + key_blocks:
        block -= query_blocks
        n = block * BN + tl.arange(0, BN)
        ok = real_tokens(valid, image, n, num_keys, valid_stride_b, valid_stride_n)
        keys += image * keys_stride_b + h * keys_stride_h
        x = load_rows(keys, n, ok, keys_stride_n, D, BD)
        if key_sums is not None:
            mean = key_mean(key_sums, key_counts, head, num_parts, BD, BP)
            x = tl.where(ok[:, None], x - mean[None, :], 0.0)
        row = head.to(tl.int64) * key_blocks + block
        store_block(x, key_codes, key_scales, row, MIN_PEAK, MAX, INTERPRET)
    elif value_codes is not None:
        block -= query_blocks + key_blocks
        n = block * BN + tl.arange(0, BN)
        d = tl.arange(0, BD)
        ok = real_tokens(valid, image, n, num_keys, valid_stride_b, valid_stride_n)
        values += image * values_stride_b + h * values_stride_h
        x = load_rows(values, n, ok, values_stride_n, D, BD)
        peak = tl.maximum(value_peak(value_peaks, head, num_parts, BD, BP), MIN_PEAK)
        x = tl.clamp(x * tl.div_rn(FP8_MAX, peak)[None, :], -FP8_MAX, FP8_MAX)
        where = (head.to(tl.int64) * BD + d)[:, None] * (key_blocks * BN) + n[None, :]
        tl.store(value_codes + where, tl.trans(narrow(x, tl.float8e4nv, INTERPRET)))
        if block == 0:
            tl.store(value_scales + head.to(tl.int64) * BD + d, tl.div_rn(peak, FP8_MAX))


@triton.jit
def attend(
    state,
    queries,
    query_scale,
    block,
    keys,
    key_scales,
    values,
    valid,
    num_keys,
    values_stride_n,
    valid_stride_n,
    D: tl.constexpr,
    BD: tl.constexpr,
    BN: tl.constexpr,
    EXPONENT: tl.constexpr,
    MASKED: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """One step of the online softmax: (O, l, m) with the keys of a block."""
    acc, total, peak = state
    FP8_VALUES: tl.constexpr = values.dtype.element_ty == tl.float8e4nv
    n = tl.arange(0, BN)
    d = tl.arange(0, BD)
    first = tl.cast(block, tl.int64) * BN
    codes = tl.load(keys + first * BD + (n[:, None] * BD + d[None, :]))  # (BN, BD)
    if codes.dtype == tl.int8:
        scores = tl.dot(queries, tl.trans(codes), out_dtype=tl.int32).to(tl.float32)
    else:
        zeros = tl.zeros([queries.shape[0], BN], tl.float32)
        scores = dot_low(queries, tl.trans(codes), zeros, INTERPRET)
    if MASKED:
        ok = n < num_keys - first
        if valid is not None:
            where_valid = (first + n) * valid_stride_n
            ok &= tl.load(valid + where_valid, mask=ok, other=0) != 0
        scores = tl.where(ok[None, :], scores, float("-inf"))
    scale = query_scale * tl.load(key_scales + block)  # (BM,)
    new_peak = tl.maximum(peak, tl.max(scores, 1) * scale)
    base = new_peak
    if MASKED and valid is not None:  # a block of no valid key
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    weights = tl.exp2(scores * scale[:, None] - (base - EXPONENT)[:, None])
    decay = tl.exp2(peak - base)
    total = total * decay + tl.sum(weights, 1)
    acc = acc * decay[:, None]
    low = narrow(weights, values.dtype.element_ty, INTERPRET)
    if FP8_VALUES:
        row = d.to(tl.int64) * (tl.cdiv(num_keys, BN) * BN)
        tile = tl.load(values + first + (row[:, None] + n[None, :]))  # (BD, BN)
        zeros = tl.zeros([queries.shape[0], BD], tl.float32)
        acc += dot_low(low, tl.trans(tile), zeros, INTERPRET)
    else:
        where = (n.to(tl.int64) * values_stride_n)[:, None] + d[None, :]
        values += first * values_stride_n
        if MASKED:
            real = (n < num_keys - first)[:, None] & (d < D)[None, :]
            tile = tl.load(values + where, mask=real, other=0.0)
        elif D != BD:
            tile = tl.load(values + where, mask=(d < D)[None, :], other=0.0)
        else:
            tile = tl.load(values + where)
        acc = dot_low(low, tile, acc, INTERPRET)
    return acc, total, new_peak


@triton.jit
def low_bit_attention_kernel(
    queries,
    query_scales,
    keys,
    key_scales,
    values,
    value_scales,
    valid,
    out,
    num_queries,
    num_keys,
    num_heads,
    values_stride_b,
    values_stride_n,
    values_stride_h,
    valid_stride_b,
    valid_stride_n,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    EXPONENT: tl.constexpr,
    TAIL: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    num_tiles = tl.cdiv(num_queries, BM)
    query_blocks, key_blocks = tl.cdiv(num_queries, BN), tl.cdiv(num_keys, BN)
    head, tile = tl.program_id(0) // num_tiles, tl.program_id(0) % num_tiles
    image, h = (head // num_heads).to(tl.int64), (head % num_heads).to(tl.int64)
    head = head.to(tl.int64)
    keys += head * key_blocks * BN * BD
    key_scales += head * key_blocks
    if value_scales is None:
        values += image * values_stride_b + h * values_stride_h
    else:
        values += head * BD * key_blocks * BN
    if valid is not None:
        valid += image * valid_stride_b

    m = tile * BM + tl.arange(0, BM)
    d = tl.arange(0, BD)
    where = (head * query_blocks * BN + m)[:, None] * BD + d[None, :]
    codes = tl.load(queries + where, mask=(m < query_blocks * BN)[:, None], other=0.0)
    where_scale = head * query_blocks + m // BN
    query_scale = tl.load(query_scales + where_scale, mask=m < num_queries, other=1.0)

    acc = tl.zeros([BM, BD], tl.float32)
    total = tl.zeros([BM], tl.float32)
    peak = tl.full([BM], float("-inf"), tl.float32)
    state = (acc, total, peak)
    ALL_MASKED: tl.constexpr = valid is not None
    unmasked = key_blocks if ALL_MASKED else num_keys // BN
    for block in range(0, unmasked):
        state = attend(
            state,
            codes,
            query_scale,
            block,
            keys,
            key_scales,
            values,
            valid,
            num_keys,
            values_stride_n,
            valid_stride_n,
            D,
            BD,
            BN,
            EXPONENT,
            ALL_MASKED,
            INTERPRET,
        )
    if TAIL and not ALL_MASKED:
        state = attend(
            state,
            codes,
            query_scale,
            unmasked,
            keys,
            key_scales,
            values,
            valid,
            num_keys,
            values_stride_n,
            valid_stride_n,
            D,
            BD,
            BN,
            EXPONENT,
            True,
            INTERPRET,
        )
    acc, total, peak = state
    result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    if value_scales is not None:
        result *= tl.load(value_scales + head * BD + d)[None, :]
    row = (image * num_queries + m) * num_heads + h
    ok = (m < num_queries)[:, None] & (d < D)[None, :]
    result = narrow(result, out.dtype.element_ty, INTERPRET)
    tl.store(out + (row * D)[:, None] + d[None, :], result, mask=ok)


def low_bit_attention_fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor | None,
    *,
    precision: str,
    smooth_k: bool,
) -> Tensor:
    """As `reference.low_bit_attention_reference`, in two or three kernels."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    statistics, launch = statistics_launch(k, v, valid, precision=precision, smooth_k=smooth_k)
    if launch is not None:
        launch.run(q.device)
    quantized, launch = quantize_launch(q, k, v, valid, statistics, precision=precision)
    launch.run(q.device)
    launch = attention_launch(q, v.to(product_dtype(v.dtype)), valid, quantized)
    launch.run(q.device)
    return launch.arguments["out"]


def statistics_launch(
    k: Tensor, v: Tensor, valid: Tensor | None, *, precision: str, smooth_k: bool
) -> tuple[Statistics, Launch | None]:
    """What the statistics kernel writes, and its launch; None if nothing is needed."""
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
        **_valid_arguments(valid),
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
    """What the quantization kernel writes, and its launch."""
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
        **_valid_arguments(valid),
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
    """The attention kernel with its arguments; `out` is among them.

    Args:
        q: For shape and type of the result.
        v: 16-bit values, read where `quantized` holds none.
    """
    (batch, num_queries, num_heads, head_dim), num_keys = q.shape, v.shape[1]
    heads, padded = batch * num_heads, power_of_two(head_dim)
    fp8_values = quantized.values is not None
    rows = 64 if heads * ceil_div(num_queries, 128) < NUM_PROGRAMS else 128
    # Two sums of 128 rows take 8 warps at 64 channels already; one does at 128.
    wide = rows == 128 and (padded == 128 or (fp8_values and padded == 64))
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
        **_valid_arguments(valid),
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


def _valid_arguments(valid: Tensor | None) -> dict[str, Tensor | int | None]:
    """The valid keys as bytes, with strides."""
    if valid is None:
        return {"valid": None, "valid_stride_b": 0, "valid_stride_n": 0}
    return {"valid": valid.view(torch.uint8), **strides("valid", "bn", valid)}
