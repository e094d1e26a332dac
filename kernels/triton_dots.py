"""Products and casts that the Triton kernels share; imports triton, so only they may import it.

In the interpreter (`INTERPRET`) dot operands are cast to float32, because its bf16 dot is wrong,
and casts are preceded by the right rounding, because its own truncate: docs/kernels.md, "Rules of
the Triton code", which also has the accuracy of one, two and three bf16 terms.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# The arguments of `triton.jit` functions have Triton's types, which Python cannot name.
import triton
import triton.language as tl


@triton.jit
def dot_low(left, right, acc, INTERPRET: tl.constexpr):
    """Return acc + left @ right, float32 sums of 16-bit or e4m3 operands."""
    if INTERPRET:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, acc, out_dtype=tl.float32)


@triton.jit
def dot_exact(left, right, acc, INTERPRET: tl.constexpr):
    """Return acc + left @ right; `left` is exact in 16 bits, float32 `right` split in three."""
    if right.dtype == tl.float32:
        high = right.to(tl.bfloat16)
        rest = right - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
        acc = dot_low(left, low, acc, INTERPRET)
        acc = dot_low(left, middle, acc, INTERPRET)
        acc = dot_low(left, high, acc, INTERPRET)
    else:
        acc = dot_low(left, right, acc, INTERPRET)
    return acc


@triton.jit
def dot_float(left, right, acc, INTERPRET: tl.constexpr):
    """Return acc + left @ right, float32 sums; float32 operands make three TF32 products."""
    if left.dtype == tl.float32:
        acc = tl.dot(left, right, acc, input_precision="tf32x3", out_dtype=tl.float32)
    else:
        acc = dot_low(left, right, acc, INTERPRET)
    return acc


@triton.jit
def narrow(x, dtype: tl.constexpr, INTERPRET: tl.constexpr):
    """Round float32 to a narrower float, to nearest even; the interpreter's casts truncate."""
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
