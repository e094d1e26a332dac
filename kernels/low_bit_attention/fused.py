"""Low-bit attention in Triton: statistics, quantization, attention, at most three launches.

Statistics: sums of K and, for e4m3 values, max |V| per channel, over parts of 512 tokens, which the
reader adds up. Quantization: one program per 64 tokens of Q, K or V writes codes and a scale,
padded with zeros to whole blocks and to a power of two of channels; V is transposed, as the tensor
cores read e4m3. Attention: a program owns 64 or 128 queries of one head and loops over blocks of 64
keys. A result depends on its own image only: no atomics, no split of keys, tiles by token numbers.

max |x| is taken of the bits of |x| as integers: they have the same order, and NaN is above all
numbers, where a maximum of floats drops it. A NaN is in the scale of its block or channel. e4m3
products are added to a second float32 sum after every block of keys: a Hopper accumulator keeps
about 22 bits. docs/kernels.md, "Rules of the Triton code", explains `INTERPRET`.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# The arguments of `triton.jit` functions have Triton's types, which Python cannot name.
import triton
import triton.language as tl

from ..triton_dots import dot_low, narrow


@triton.jit
def real_tokens(valid, image, n, num_tokens, stride_b, stride_n):
    """Flags of the tokens n, true where they exist and are valid."""
    ok = n < num_tokens
    if valid is not None:
        where = image * stride_b + n.to(tl.int64) * stride_n
        ok &= tl.load(valid + where, mask=ok, other=0) != 0
    return ok


@triton.jit
def load_rows(tokens, n, ok, stride_n, D: tl.constexpr, BD: tl.constexpr):
    """Load rows n as float32, (len(n), BD), 0 where not ok and beyond channel D."""
    d = tl.arange(0, BD)
    where = (n.to(tl.int64) * stride_n)[:, None] + d[None, :]
    return tl.load(tokens + where, mask=ok[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)


@triton.jit
def magnitude(x):
    """Absolute value of float32 as int32 of the same order, NaN above all numbers."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def floored(peak, MIN_PEAK: tl.constexpr):
    """Magnitudes as float32, at least MIN_PEAK; NaN stays."""
    peak = peak.to(tl.float32, bitcast=True)
    return tl.where(peak < MIN_PEAK, MIN_PEAK, peak)


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
    """Write sums of K and maxima of |V| of one part of the keys of one head."""
    num_parts = tl.cdiv(num_keys, PART)
    program = tl.program_id(0)  # part of a head of an image
    head, part = program // num_parts, program % num_parts
    image, h = (head // num_heads).to(tl.int64), (head % num_heads).to(tl.int64)
    keys += image * keys_stride_b + h * keys_stride_h
    values += image * values_stride_b + h * values_stride_h
    sums = tl.zeros([BN, BD], tl.float32)
    peaks = tl.zeros([BN, BD], tl.int32)
    count = tl.zeros([BN], tl.float32)
    for start in range(part * PART, tl.minimum(part * PART + PART, num_keys), BN):
        n = start + tl.arange(0, BN)
        ok = real_tokens(valid, image, n, num_keys, valid_stride_b, valid_stride_n)
        if key_sums is not None:
            sums += load_rows(keys, n, ok, keys_stride_n, D, BD)
            count += ok.to(tl.float32)
        if value_peaks is not None:
            peaks = tl.maximum(peaks, magnitude(load_rows(values, n, ok, values_stride_n, D, BD)))
    where = program.to(tl.int64) * BD + tl.arange(0, BD)
    if key_sums is not None:
        tl.store(key_sums + where, tl.sum(sums, 0))
        tl.store(key_counts + program, tl.sum(count, 0))
    if value_peaks is not None:
        tl.store(value_peaks + where, tl.max(peaks, 0).to(tl.float32, bitcast=True))


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
    """Maxima of |V| of the channels of a head, (BD,) magnitudes."""
    peaks = tl.zeros([BD], tl.int32)
    for start in range(0, num_parts, BP):
        part = start + tl.arange(0, BP)
        where = (head.to(tl.int64) * num_parts + part)[:, None] * BD + tl.arange(0, BD)[None, :]
        tile = tl.load(value_peaks + where, mask=(part < num_parts)[:, None], other=0.0)
        peaks = tl.maximum(peaks, tl.max(magnitude(tile), 0))
    return peaks


@triton.jit
def store_block(
    x, codes, scales, row, MIN_PEAK: tl.constexpr, MAX: tl.constexpr, INTERPRET: tl.constexpr
):
    """Write the codes and the scale of a tile (BN, BD), as block `row` of all blocks."""
    BN: tl.constexpr = x.shape[0]
    BD: tl.constexpr = x.shape[1]
    peak = floored(tl.max(tl.max(magnitude(x), 1), 0), MIN_PEAK)
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
    """Write codes and scale of one block of 64 tokens of Q, K or V."""
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
        peak = floored(value_peak(value_peaks, head, num_parts, BD, BP), MIN_PEAK)
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
    """One step of the online softmax: update (O, l, m) by the keys of a block."""
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
    scale = query_scale * tl.load(key_scales + block)  # (BM,)
    if MASKED:
        ok = n < num_keys - first
        if valid is not None:
            where_valid = first * valid_stride_n + n * valid_stride_n
            ok &= tl.load(valid + where_valid, mask=ok, other=0) != 0
            scores *= scale[:, None]  # before -inf, which a scale of NaN would undo
            scale = tl.full([queries.shape[0]], 1.0, tl.float32)
        scores = tl.where(ok[None, :], scores, float("-inf"))
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
    """Attend from one tile of queries of one head to all its keys."""
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
