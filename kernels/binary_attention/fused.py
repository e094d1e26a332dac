"""Binarized attention in Triton: the forward of the three methods in one kernel.

A program owns a block of queries of one (batch, head) and loops over the keys. No scores are
stored. The METHOD changes:

- `bibert`: signs of q and k in INT8, made as they are loaded, multiplied on tensor cores; the
  integers are compared with 0, and 0 / 1 in 16 bits multiplies the signs of v. No exponential, all
  exact.
- `binary_qk`: the same product of signs, times one scale per (batch, head) from a reduction before
  the launch, then the online softmax of FlashAttention.
- `bivit`: two loops. The first finds the largest score of each query, the second recomputes the
  scores and keeps those not below it by more than ln 4: no sum of exponentials.

INT8 is the narrowest fast product: Hopper emulates four-bit products, and Triton does not expose
its one-bit product (docs/kernels.md, "Rules of the Triton code"). INT8 has no NaN, so `bibert`
finds NaN of q while reading it and NaN of k in a mean before the launch. 16-bit operands are
multiplied unchanged. A product of two float32 operands is three TF32 products (`tf32x3`, about 22
bits), never one; a float32 operand with 0 / 1 is split into three bf16 terms (24 bits). Channels
and keys beyond the end are 0 in the products, not a sign.

In the interpreter (`INTERPRET`) dot operands are cast: see `triton_dots.py`.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# The arguments of `triton.jit` functions have Triton's types, which Python cannot name.
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends import INTERPRETED
from ..launch import Launch, ceil_div, num_rows_per_block, power_of_two, strides, valid_arguments
from ..triton_dots import dot_exact, dot_float
from .reference import LOG_THRESHOLD, mean_magnitude

METHODS = {"bibert": 0, "bivit": 1, "binary_qk": 2}
"""Numbers by which the kernel receives the method."""

BIBERT = tl.constexpr(0)
BIVIT = tl.constexpr(1)
BINARY_QK = tl.constexpr(2)


@triton.jit
def int8_signs(x, real):
    """Signs -1 or +1 (+1 for 0) in INT8, 0 where not real; compared in float32 for INTERPRET."""
    return tl.where(real, tl.where(x.to(tl.float32) >= 0, 1, -1), 0).to(tl.int8)


@triton.jit
def float_signs(x, real):
    """Signs like `int8_signs`, but in float16, with NaN for NaN."""
    x = x.to(tl.float32)
    return tl.where(x != x, float("nan"), int8_signs(x, real).to(tl.float32)).to(tl.float16)


@triton.jit
def is_nan(x):
    """Flags of NaN in float32 numbers: 1 or 0, int32."""
    return (x != x).to(tl.int32)


@triton.jit
def rows_with_nan(x):
    """Flags of rows of (R, D) that hold NaN: 1 or 0, (R,) int32."""
    return tl.max(is_nan(x.to(tl.float32)), 1)


@triton.jit
def dot_ones(ones, right, acc, INTERPRET: tl.constexpr):
    """Return acc + ones @ right for 0 / 1 in float32, which 16 bits represent."""
    ones = ones.to(tl.bfloat16 if right.dtype == tl.float32 else right.dtype)
    return dot_exact(ones, right, acc, INTERPRET)


@triton.jit
def load_keys(
    k,
    valid,
    start,
    num_keys,
    stride_n,
    valid_stride_n,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    BN: tl.constexpr,
):
    """Load a block of keys or values (BN, D), 0 beyond the end, and flags of valid keys (BN,)."""
    n = start + tl.arange(0, BN)
    d = tl.arange(0, D)
    real = n < num_keys
    n = n.to(tl.int64)
    if valid is not None:
        real &= tl.load(valid + n * valid_stride_n, mask=real, other=0) != 0
    where = (n * tl.multiple_of(stride_n, 8))[:, None] + d[None, :]
    return tl.load(k + where, mask=real[:, None] & (d < WIDTH)[None, :], other=0.0), real


@triton.jit
def binary_attention_fwd_kernel(
    q,
    k,
    v,
    valid,
    bias,
    scale,
    out,
    threshold,
    num_queries,
    num_keys,
    heads,
    q_stride_b,
    q_stride_n,
    q_stride_h,
    k_stride_b,
    k_stride_n,
    k_stride_h,
    v_stride_b,
    v_stride_n,
    v_stride_h,
    valid_stride_b,
    valid_stride_n,
    bias_stride_h,
    bias_stride_q,
    bias_stride_k,
    METHOD: tl.constexpr,
    ROW_NORM: tl.constexpr,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Attend from one block of queries of one head to all its keys."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    blocks = tl.cdiv(num_queries, BM)
    block = tl.program_id(0) % blocks
    pair = tl.program_id(0) // blocks
    image = (pair // heads).to(tl.int64)
    head = (pair % heads).to(tl.int64)
    k += image * tl.multiple_of(k_stride_b, 8) + head * tl.multiple_of(k_stride_h, 8)
    v += image * tl.multiple_of(v_stride_b, 8) + head * tl.multiple_of(v_stride_h, 8)
    if valid is not None:
        valid += image * valid_stride_b

    m = block * BM + tl.arange(0, BM)
    d = tl.arange(0, D)
    query_ok = (m < num_queries)[:, None] & (d < WIDTH)[None, :]
    rows = m.to(tl.int64)
    where_q = (rows * tl.multiple_of(q_stride_n, 8))[:, None] + d[None, :]
    q += image * tl.multiple_of(q_stride_b, 8) + head * tl.multiple_of(q_stride_h, 8)
    queries = tl.load(q + where_q, mask=query_ok, other=0.0)  # (BM, D)
    if METHOD != BIVIT:
        queries = int8_signs(queries, query_ok)
    if METHOD == BINARY_QK:
        factor = tl.load(scale + pair) * LOG2_E

    largest = tl.full([BM], float("-inf"), tl.float32)
    if METHOD == BIVIT:
        for start in range(0, num_keys, BN):
            keys, real = load_keys(
                k, valid, start, num_keys, k_stride_n, valid_stride_n, WIDTH, D, BN
            )
            zero = tl.zeros([BM, BN], tl.float32)
            scores = dot_float(queries, tl.trans(keys), zero, INTERPRET)
            scores = tl.where(real[None, :], scores, float("-inf"))
            largest = tl.maximum(largest, tl.max(scores, 1))
        largest += threshold

    acc = tl.zeros([BM, D], tl.float32)
    total = tl.zeros([BM], tl.float32)
    any_key = tl.zeros([BN], tl.int32)
    for start in range(0, num_keys, BN):
        keys, real = load_keys(k, valid, start, num_keys, k_stride_n, valid_stride_n, WIDTH, D, BN)
        if METHOD == BIVIT:
            zero = tl.zeros([BM, BN], tl.float32)
            scores = dot_float(queries, tl.trans(keys), zero, INTERPRET)
            weights = tl.where(scores >= largest[:, None], 1.0, 0.0)
            weights = tl.where(scores != scores, float("nan"), weights)
            weights = tl.where(real[None, :], weights, 0.0)
            if ROW_NORM:
                total += tl.sum(weights, 1)
        else:
            if METHOD == BIBERT and valid is not None:
                any_key |= real.to(tl.int32)
            keys = int8_signs(keys, (d < WIDTH)[None, :])
            products = tl.dot(queries, tl.trans(keys), out_dtype=tl.int32)  # (BM, BN)
            if METHOD == BIBERT:
                weights = tl.where(products > 0, 1.0, 0.0)  # the signs of no value are 0
            else:
                scores = products.to(tl.float32) * factor
                if bias is not None:
                    n = (start + tl.arange(0, BN)).to(tl.int64)
                    where_bias = (rows * bias_stride_q)[:, None] + (n * bias_stride_k)[None, :]
                    ok = (m < num_queries)[:, None] & (n < num_keys)[None, :]
                    where_bias += head * bias_stride_h
                    term = tl.load(bias + where_bias, mask=ok, other=0.0)
                    scores += term.to(tl.float32) * LOG2_E
                scores = tl.where(real[None, :], scores, float("-inf"))
                larger = tl.maximum(largest, tl.max(scores, 1))
                shift = tl.where(larger == float("-inf"), 0.0, larger)  # no key yet
                weights = tl.exp2(scores - shift[:, None])
                shrink = tl.exp2(largest - shift)
                total = total * shrink + tl.sum(weights, 1)
                acc *= shrink[:, None]
                largest = larger
        values, _ = load_keys(v, valid, start, num_keys, v_stride_n, valid_stride_n, WIDTH, D, BN)
        if METHOD == BIBERT:
            values = float_signs(values, real[:, None] & (d < WIDTH)[None, :])
        if METHOD == BINARY_QK:
            acc = dot_float(weights.to(values.dtype), values, acc, INTERPRET)
        else:
            acc = dot_ones(weights, values, acc, INTERPRET)

    if METHOD == BIBERT:
        queries = tl.load(q + where_q, mask=query_ok, other=0.0)  # again: keeping them would spill
        unknown = rows_with_nan(queries) | is_nan(tl.load(scale + pair))
        if valid is not None:
            unknown &= tl.max(any_key, 0)
        acc = tl.where(unknown[:, None] != 0, float("nan"), acc)
    if METHOD == BINARY_QK or ROW_NORM:
        acc /= tl.where(total == 0, 1.0, total)[:, None]
    where_out = ((image * num_queries + rows) * heads + head)[:, None] * WIDTH + d[None, :]
    tl.store(out + where_out, acc.to(out.dtype.element_ty), mask=query_ok)


def binary_attention_fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    method: str,
    row_norm: bool = False,
) -> Tensor:
    """Compute `reference.binary_attention_reference` in one kernel and reductions for the scale."""
    launch = forward_launch(q, k, v, valid, bias, method=method, row_norm=row_norm)
    launch.run(q.device)
    return launch.output()


def forward_launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor | None,
    bias: Tensor | None,
    *,
    method: str,
    row_norm: bool,
) -> Launch:
    """Launch of the kernel; `out` is among its arguments."""
    q, k, v = (_aligned(x) for x in (q, k, v))
    (batch, num_queries, heads, width), num_keys = q.shape, k.shape[1]
    scale = None
    if method == "bibert":  # NaN, which INT8 does not have, if a valid key holds one
        scale = mean_magnitude(k, valid)
    elif method == "binary_qk":
        scale = mean_magnitude(q) * mean_magnitude(k, valid) * width**-0.5
    block_d = power_of_two(width)
    block_m, block_n, num_warps = _blocks(q, method, block_d, with_bias=bias is not None)
    arguments = {
        "q": q,
        "k": k,
        "v": v,
        "bias": bias,
        "scale": scale,
        "out": q.new_empty(q.shape),
        "threshold": LOG_THRESHOLD * math.sqrt(width),
        "num_queries": num_queries,
        "num_keys": num_keys,
        "heads": heads,
        **strides("q", "bnh", q[..., 0]),
        **strides("k", "bnh", k[..., 0]),
        **strides("v", "bnh", v[..., 0]),
        **valid_arguments(valid),
        "bias_stride_h": 0 if bias is None else bias.stride(0),
        "bias_stride_q": 0 if bias is None else bias.stride(1),
        "bias_stride_k": 0 if bias is None else bias.stride(2),
        "METHOD": METHODS[method],
        "ROW_NORM": row_norm,
        "WIDTH": width,
        "D": block_d,
        "BM": block_m,
        "BN": block_n,
        "INTERPRET": INTERPRETED,
    }
    grid = (ceil_div(num_queries, block_m) * batch * heads,)
    options = {"num_warps": num_warps, "num_stages": 3}
    return Launch(binary_attention_fwd_kernel, grid, arguments, options)


def _aligned(x: Tensor) -> Tensor:
    """Copy (B, N, H, d) if channels are not adjacent or strides are not multiples of 8."""
    if x.stride(3) == 1 and all(stride % 8 == 0 for stride in x.stride()[:3]):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _blocks(q: Tensor, method: str, block_d: int, *, with_bias: bool) -> tuple[int, int, int]:
    """Numbers of queries and keys of a block, and of warps, with which no registers spill."""
    ragged = q.shape[3] != block_d  # masks of channels take registers
    if q.dtype == torch.float32:
        if block_d < 128:
            return 64, 32, 8
        if method == "bivit":
            return 64, 16, 8 if ragged else 4
        return 64, 16 if ragged else 32, 8
    choices = (64,) if ragged and block_d == 128 else (64, 128)
    block_m = num_rows_per_block(q.shape[1], q.shape[0] * q.shape[2], choices)
    return block_m, 64, 8 if block_m == 128 or block_d == 128 or with_bias else 4
