"""Packed low-bit linear layers in Triton: products on tensor cores, weights unpacked on the way.

A program owns a block of rows of x and of output channels and loops over K. Of each block of the
weight (`prepack.py`) it loads a tile of bytes once (a load per element would take all registers);
every shift of it is a tile of 32 columns, turned into its integer levels without a conversion (1
bit: the sign bit of one; more: the code in the mantissa of 128 or 1024) and multiplied with its
tile of x. Sums are float32, or int32 for int8 activations; scales multiply the sums, per channel at
the end and per group after each group.

Few rows of x fill few multiprocessors, so K is split among programs, whose sums a second kernel
adds up in a fixed order. `unpack_kernel` writes the weight in 16 or 32 bits for a plain product.

In the interpreter (`INTERPRET`) levels and dot operands are float32, because its bf16 is wrong:
docs/kernels.md, "Rules of the Triton code".
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# The arguments of `triton.jit` functions have Triton's types, which Python cannot name.
import triton
import triton.language as tl


@triton.jit
def float_levels(
    codes,
    zero,
    BITS: tl.constexpr,
    FACTOR: tl.constexpr,
    OFFSET: tl.constexpr,
    HALF: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Levels FACTOR * code + OFFSET - zero of uint8 codes (BN, DEPTH), exact in fp16 or bf16."""
    FLOAT: tl.constexpr = tl.float16 if HALF else tl.bfloat16
    codes = codes.to(tl.int16)
    if BITS == 1:
        MINUS_ONE: tl.constexpr = -17408 if HALF else -16512  # 0xBC00, 0xBF80
        levels = (MINUS_ONE ^ (codes << 15)).to(FLOAT, bitcast=True)
        if INTERPRET:
            levels = levels.to(tl.float32)
    else:
        BASE: tl.constexpr = 1024 if HALF else 128
        PATTERN: tl.constexpr = 0x6400 if HALF else 0x4300
        levels = (PATTERN | (codes * FACTOR)).to(FLOAT, bitcast=True)
        if INTERPRET:
            levels = levels.to(tl.float32)
        if zero is None:
            levels = levels - tl.full([], BASE - OFFSET, levels.dtype)
        else:
            base = (PATTERN | zero.to(tl.int16)).to(FLOAT, bitcast=True)
            if INTERPRET:
                base = base.to(tl.float32)
            levels = levels - base[:, None]
    return levels


@triton.jit
def group_of(column, num_groups, GROUP: tl.constexpr):
    """Number of the scale of a column; the last one for columns beyond K, which x lacks."""
    if GROUP == 0:
        return 0
    else:
        return tl.minimum(column // GROUP, num_groups - 1)


@triton.jit
def add_product(
    tile,
    codes,
    zero,
    acc,
    BITS: tl.constexpr,
    FACTOR: tl.constexpr,
    OFFSET: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Return acc + tile @ levels.T: a tile (BM, DEPTH) of int8 or 16-bit x, codes (BN, DEPTH)."""
    if tile.dtype == tl.int8:
        levels = codes.to(tl.int8) * FACTOR + OFFSET
        if zero is not None:
            levels = levels - zero.to(tl.int8)[:, None]
        acc = tl.dot(tile, tl.trans(levels), acc, out_dtype=tl.int32)
    else:
        HALF: tl.constexpr = tile.dtype == tl.float16
        levels = float_levels(codes, zero, BITS, FACTOR, OFFSET, HALF, INTERPRET)
        if INTERPRET:
            tile = tile.to(tl.float32)
        acc = tl.dot(tile, tl.trans(levels), acc, out_dtype=tl.float32)
    return acc


@triton.jit
def finished(total, act_scale, bias, m, n, m_ok, n_ok):
    """Multiply sums (BM, BN) float32 by the scale of their token, and add the bias."""
    if act_scale is not None:
        factor = tl.load(act_scale + m, mask=m_ok, other=0.0)
        total = total * factor[:, None]
    if bias is not None:
        total += tl.load(bias + n, mask=n_ok, other=0.0).to(tl.float32)[None, :]
    return total


@triton.jit
def packed_linear_kernel(
    x,
    weight,
    scale,
    zero,
    bias,
    act_scale,
    out,
    num_rows,
    num_outputs,
    num_columns,
    num_groups,
    num_blocks,
    blocks_per_split,
    x_stride_m,
    weight_stride_p,
    weight_stride_n,
    BITS: tl.constexpr,
    FACTOR: tl.constexpr,
    OFFSET: tl.constexpr,
    PLANES: tl.constexpr,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    DEPTH: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Multiply a block of rows of x with a block of output channels over a split of K."""
    PER_BYTE: tl.constexpr = 8 // BITS
    MASK: tl.constexpr = (1 << BITS) - 1
    SUM: tl.constexpr = tl.int32 if x.dtype.element_ty == tl.int8 else tl.float32
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    split = tl.program_id(2)
    n_ok, m_ok = n < num_outputs, m < num_rows
    j = tl.arange(0, DEPTH)
    x_rows = x + (m.to(tl.int64) * x_stride_m)[:, None]
    weight_rows = weight + (n.to(tl.int64) * weight_stride_n)[:, None]
    scale2 = scale + tl.cast(num_outputs, tl.int64) * num_groups

    first = split * blocks_per_split
    last = tl.minimum(first + blocks_per_split, num_blocks)
    acc = tl.zeros([BM, BN], tl.float32 if GROUP else SUM)
    if PLANES == 2:
        acc2 = tl.zeros([BM, BN], SUM)
    for step in range(0, last - first):
        block = first + step
        where = weight_rows + (block * DEPTH + j)[None, :]
        packed = tl.load(where, mask=n_ok[:, None], other=0)  # (BN, DEPTH)
        if PLANES == 2:
            packed2 = tl.load(where + weight_stride_p, mask=n_ok[:, None], other=0)
        for c in tl.static_range(PER_BYTE // CHUNK):  # shifts that share a scale
            group = group_of((block * PER_BYTE + c * CHUNK) * DEPTH, num_groups, GROUP)
            where_group = tl.cast(group, tl.int64) * num_outputs + n
            z = None
            if zero is not None:
                z = tl.load(zero + where_group, mask=n_ok, other=0)
            part = tl.zeros([BM, BN], SUM) if GROUP else acc
            if PLANES == 2:
                part2 = tl.zeros([BM, BN], SUM) if GROUP else acc2
            for i in tl.static_range(c * CHUNK, c * CHUNK + CHUNK):
                k = (block * PER_BYTE + i) * DEPTH + j
                live = m_ok[:, None] if EVEN else m_ok[:, None] & (k < num_columns)[None, :]
                tile = tl.load(x_rows + k[None, :], mask=live, other=0)  # (BM, DEPTH)
                codes = (packed >> (i * BITS)) & MASK
                part = add_product(tile, codes, z, part, BITS, FACTOR, OFFSET, INTERPRET)
                if PLANES == 2:
                    codes = (packed2 >> (i * BITS)) & MASK
                    part2 = add_product(tile, codes, z, part2, BITS, FACTOR, OFFSET, INTERPRET)
            if GROUP:
                factor = tl.load(scale + where_group, mask=n_ok, other=0.0)
                acc += part.to(tl.float32) * factor[None, :]
                if PLANES == 2:
                    factor = tl.load(scale2 + where_group, mask=n_ok, other=0.0)
                    acc += part2.to(tl.float32) * factor[None, :]
            else:
                acc = part
                if PLANES == 2:
                    acc2 = part2

    total = acc.to(tl.float32)
    if not GROUP:
        total *= tl.load(scale + n, mask=n_ok, other=0.0)[None, :]
        if PLANES == 2:
            total += acc2.to(tl.float32) * tl.load(scale2 + n, mask=n_ok, other=0.0)[None, :]
    where_out = (m.to(tl.int64) * num_outputs)[:, None] + n[None, :]
    ok = m_ok[:, None] & n_ok[None, :]
    if SPLIT:
        where_out += split.to(tl.int64) * num_rows * num_outputs
        tl.store(out + where_out, total, mask=ok)
    else:
        total = finished(total, act_scale, bias, m, n, m_ok, n_ok)
        tl.store(out + where_out, total.to(out.dtype.element_ty), mask=ok)


@triton.jit
def add_splits_kernel(
    sums,
    bias,
    act_scale,
    out,
    num_rows,
    num_outputs,
    num_splits,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Add up the sums of the splits of K in order, and finish them."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    n_ok, m_ok = n < num_outputs, m < num_rows
    ok = m_ok[:, None] & n_ok[None, :]
    where = (m.to(tl.int64) * num_outputs)[:, None] + n[None, :]
    size = tl.cast(num_rows, tl.int64) * num_outputs
    total = tl.zeros([BM, BN], tl.float32)
    for split in range(0, num_splits):
        total += tl.load(sums + split * size + where, mask=ok, other=0.0)
    total = finished(total, act_scale, bias, m, n, m_ok, n_ok)
    tl.store(out + where, total.to(out.dtype.element_ty), mask=ok)


@triton.jit
def quantize_tokens_kernel(
    x,
    act_scale,
    codes,
    scales,
    num_rows,
    num_columns,
    x_stride_m,
    codes_stride_m,
    BM: tl.constexpr,
    BK: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """Round a block of rows of x to int8 codes times a scale."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    m_ok = m < num_rows
    rows = x + (m.to(tl.int64) * x_stride_m)[:, None]
    if act_scale is None:
        largest = tl.zeros([BM], tl.float32)
        for start in range(0, num_columns, BK):
            k = start + tl.arange(0, BK)
            live = m_ok[:, None] & (k < num_columns)[None, :]
            part = tl.load(rows + k[None, :], mask=live, other=0.0).to(tl.float32)
            largest = tl.maximum(largest, tl.max(tl.abs(part), 1))
        factor = tl.div_rn(largest, tl.full([BM], LIMIT, tl.float32))
        factor = tl.where(factor == 0, 1.0, factor)
    else:
        factor = tl.zeros([BM], tl.float32) + tl.load(act_scale).to(tl.float32)
    lost = (factor == float("inf")).to(tl.int32)
    factor = tl.where(lost != 0, 1.0, factor)
    for start in range(0, codes_stride_m, BK):
        k = start + tl.arange(0, BK)
        live = m_ok[:, None] & (k < num_columns)[None, :]
        part = tl.load(rows + k[None, :], mask=live, other=0.0).to(tl.float32)
        lost |= tl.max((part != part).to(tl.int32), 1)  # no maximum of floats keeps a NaN
        divisor = tl.broadcast_to(factor[:, None], [BM, BK])
        quotient = tl.minimum(tl.maximum(tl.div_rn(part, divisor), -LIMIT - 1.0), LIMIT)
        # Adding 1.5 * 2**23 rounds to integers, halves to even, as `torch.round`.
        rounded = (quotient + 12582912.0) - 12582912.0
        where = (m.to(tl.int64) * codes_stride_m)[:, None] + k[None, :]
        inside = m_ok[:, None] & (k < codes_stride_m)[None, :]
        tl.store(codes + where, rounded.to(tl.int8), mask=inside)
    tl.store(scales + m, tl.where(lost != 0, float("nan"), factor), mask=m_ok)


@triton.jit
def unpack_kernel(
    weight,
    scale,
    zero,
    out,
    num_outputs,
    num_columns,
    num_groups,
    weight_stride_p,
    weight_stride_n,
    BITS: tl.constexpr,
    FACTOR: tl.constexpr,
    OFFSET: tl.constexpr,
    PLANES: tl.constexpr,
    GROUP: tl.constexpr,
    HALF: tl.constexpr,
    BN: tl.constexpr,
    DEPTH: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Write a block of output channels of the weight, decoded."""
    PER_BYTE: tl.constexpr = 8 // BITS
    MASK: tl.constexpr = (1 << BITS) - 1
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    block = tl.program_id(1)
    n_ok = n < num_outputs
    j = tl.arange(0, DEPTH)
    where = weight + (n.to(tl.int64) * weight_stride_n)[:, None] + (block * DEPTH + j)[None, :]
    for i in tl.static_range(PER_BYTE):
        k = (block * PER_BYTE + i) * DEPTH + j
        group = group_of((block * PER_BYTE + i) * DEPTH, num_groups, GROUP)
        where_group = tl.cast(group, tl.int64) * num_outputs + n
        z = None
        if zero is not None:
            z = tl.load(zero + where_group, mask=n_ok, other=0)
        values = tl.zeros([BN, DEPTH], tl.float32)
        for plane in tl.static_range(PLANES):
            packed = tl.load(where + plane * weight_stride_p, mask=n_ok[:, None], other=0)
            codes = (packed >> (i * BITS)) & MASK
            levels = float_levels(codes, z, BITS, FACTOR, OFFSET, HALF, INTERPRET)
            where_scale = where_group + plane * tl.cast(num_outputs, tl.int64) * num_groups
            factor = tl.load(scale + where_scale, mask=n_ok, other=0.0)
            values += levels.to(tl.float32) * factor[:, None]
        where_out = (n.to(tl.int64) * num_columns)[:, None] + k[None, :]
        ok = n_ok[:, None] & (k < num_columns)[None, :]
        tl.store(out + where_out, values.to(out.dtype.element_ty), mask=ok)
