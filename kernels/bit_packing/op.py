"""`pack_codes`, `pack_signs` and their inverses: the one bit layout of the project, disk and GPU.

`reference.py` defines the layout, `fused.py` computes it in one kernel each. Both are behind the
torch.library ops `tessella::pack_codes`, `unpack_codes`, `pack_signs` and `unpack_signs`, which
`torch.compile` does not trace into. Bits have no gradients. A batch of 0 images is allowed.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import Backend, resolve_backend
from ..checks import FLOATS, refuse_values
from .reference import (
    num_packed_bytes,
    pack_codes_reference,
    pack_signs_reference,
    unpack_codes_reference,
    unpack_signs_reference,
)

MAX_BITS = 62
"""Largest number of bits of a field, which is that of a joint index."""
MAX_IMAGE_BITS = 2**30
"""Largest number of bits of an image in the Triton code, which counts them in int32."""
MAX_MIXED_GROUPS = 16
"""Largest number of groups of different widths in the Triton code, which is unrolled over them."""


def pack_codes(
    codes: Tensor,
    bits: int | Sequence[int],
    *,
    validate: bool | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Pack codes of a few bits each to dense bytes, lowest bit first.

    Args:
        codes: Codes, int32 or int64 of any strides, N >= 1: (..., N) where `bits` is one width, or
            (..., N, G) where it is G widths, one for each group of a position. Values 0 to
            2**width - 1.
        bits: Width of a code, or the widths of the G groups, 1 to 62 bits each; G groups of m bits
            are `(m,) * G`.
        validate: Check the values; on a GPU this waits for the device. None: on a CPU only. The
            lowest bits of an unchecked code out of range are packed.
        backend: Implementation, `reference`, `triton` or `auto`; see `kernels/backends.py`.

    Returns:
        Packed codes, (..., ceil(N * sum of widths / 8)) uint8; unused high bits of the last byte
        are 0.

    Raises:
        ValueError: If a type, shape, width or checked value is wrong.
        RuntimeError: If a backend requested by name cannot run here, with the reason.

    Example:
        >>> pack_codes(torch.tensor([1, 2, 3]), 4)
        tensor([33,  3], dtype=torch.uint8)
        >>> pack_codes(torch.tensor([[[1, 3], [0, 7]]]), (1, 3))
        tensor([[231]], dtype=torch.uint8)
    """
    widths = _widths(bits)
    if codes.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"codes: expected int32 or int64, found {codes.dtype}")
    grouped = _has_groups(bits)
    axis = codes.ndim - 1 - grouped  # of the positions
    if axis < 0 or codes.shape[axis] < 1 or (grouped and codes.shape[-1] != len(widths)):
        expected = f"(..., N, {len(widths)})" if grouped else "(..., N)"
        raise ValueError(f"codes: expected {expected} with N >= 1, found {tuple(codes.shape)}")
    batch, fields = codes.shape[:axis], _fields(widths)
    positions = codes.shape[axis] * len(widths) // len(fields)
    packed = _through(_pack_codes_op, _pack_codes)(
        codes.reshape(batch.numel(), positions, len(fields)),
        fields,
        codes.device.type == "cpu" if validate is None else validate,
        backend,
    )
    return packed.view(*batch, packed.shape[-1])


def unpack_codes(
    packed: Tensor,
    num_codes: int,
    bits: int | Sequence[int],
    *,
    dtype: torch.dtype = torch.int64,
    backend: Backend = "auto",
) -> Tensor:
    """Unpack codes; inverse of `pack_codes`. The result is valid input of `bit_embedding`.

    Args:
        packed: Packed codes, (..., ceil(N * sum of widths / 8)) uint8 of any strides; unused bits
            are not read.
        num_codes: Number of positions N >= 1 of an image.
        bits: Width of a code, or the widths of the G groups, 1 to 62 bits each.
        dtype: Integer type of the codes: int64, or int32 for widths up to 31.
        backend: Implementation, `reference`, `triton` or `auto`; see `kernels/backends.py`.

    Returns:
        Codes, (..., N) where `bits` is one width, (..., N, G) where it is G widths.

    Raises:
        ValueError: If a type, shape or width is wrong.
        RuntimeError: If a backend requested by name cannot run here, with the reason.
    """
    widths = _widths(bits)
    _check_packed(packed, num_codes, widths)
    if dtype not in (torch.int32, torch.int64):
        raise ValueError(f"dtype: expected int32 or int64, found {dtype}")
    if dtype == torch.int32 and max(widths) > 31:
        raise ValueError(f"dtype: codes of {max(widths)} bits do not fit int32; use int64")
    batch, num_bytes = packed.shape[:-1], packed.shape[-1]
    fields = _fields(widths)
    codes = _through(_unpack_codes_op, _unpack_codes)(
        packed.reshape(batch.numel(), num_bytes),
        num_codes * len(widths) // len(fields),
        fields,
        dtype,
        backend,
    )
    groups = (len(widths),) if _has_groups(bits) else ()
    return codes.view(*batch, num_codes, *groups)


def pack_signs(x: Tensor, *, validate: bool | None = None, backend: Backend = "auto") -> Tensor:
    """Pack signs, one bit per number: 1 where x >= 0; the sign of 0 is +1.

    The bits are those of `pack_codes` of x >= 0 with one bit each. There is no gradient.

    Args:
        x: Numbers, (..., n) float of any strides with n >= 1.
        validate: Refuse NaN; on a GPU this waits for the device. None: on a CPU only. An unchecked
            NaN counts as negative.
        backend: Implementation, `reference`, `triton` or `auto`; see `kernels/backends.py`.

    Returns:
        Packed signs, (..., ceil(n / 8)) uint8; unused high bits of the last byte are 0.

    Raises:
        ValueError: If the type or shape is wrong, or a checked value is NaN.
        RuntimeError: If a backend requested by name cannot run here, with the reason.
    """
    if x.dtype not in FLOATS or x.ndim < 1 or x.shape[-1] < 1:
        raise ValueError(
            f"x: expected (..., n) float with n >= 1, found {tuple(x.shape)} {x.dtype}"
        )
    batch = x.shape[:-1]
    packed = _through(_pack_signs_op, _pack_signs)(
        x.detach().reshape(batch.numel(), x.shape[-1]),
        x.device.type == "cpu" if validate is None else validate,
        backend,
    )
    return packed.view(*batch, packed.shape[-1])


def unpack_signs(
    packed: Tensor,
    num_signs: int,
    *,
    dtype: torch.dtype = torch.float32,
    backend: Backend = "auto",
) -> Tensor:
    """Unpack signs to numbers; inverse of `pack_signs`.

    Args:
        packed: Packed signs, (..., ceil(n / 8)) uint8 of any strides; unused bits are not read.
        num_signs: Size n >= 1 of the last axis of the result.
        dtype: Float type of the result.
        backend: Implementation, `reference`, `triton` or `auto`; see `kernels/backends.py`.

    Returns:
        Signs, (..., n) in {-1, 1}.

    Raises:
        ValueError: If a type or shape is wrong.
        RuntimeError: If a backend requested by name cannot run here, with the reason.
    """
    _check_packed(packed, num_signs, [1])
    if dtype not in FLOATS:
        raise ValueError(f"dtype: expected one of {FLOATS}, found {dtype}")
    batch, num_bytes = packed.shape[:-1], packed.shape[-1]
    unpack = _through(_unpack_signs_op, _unpack_signs)
    signs = unpack(packed.reshape(batch.numel(), num_bytes), num_signs, dtype, backend)
    return signs.view(*batch, num_signs)


def _through(op: Callable[..., Tensor], function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Choose the torch.library op while `torch.compile` traces, and its plain function otherwise.

    There are no gradients to record, and the first call of an op loads the compiler, which takes
    longer than all the packing of a run.
    """
    return op if torch.compiler.is_compiling() else function


def _has_groups(bits: int | Sequence[int]) -> bool:
    """Whether `bits` is a sequence of widths instead of a single width."""
    return hasattr(bits, "__len__")


def _widths(bits: int | Sequence[int]) -> list[int]:
    """Check the widths of the groups, one or several, and return them as a list."""
    given: Any = bits if _has_groups(bits) else [bits]
    try:
        widths = [operator.index(width) for width in given]
    except TypeError:
        raise ValueError(f"bits: expected whole numbers, found {bits!r}") from None
    if not widths:
        raise ValueError("bits: expected at least one width, found none")
    for width in widths:
        if not 1 <= width <= MAX_BITS:
            raise ValueError(f"bits: expected 1 to {MAX_BITS}, found {width}")
    return widths


def _fields(widths: list[int]) -> list[int]:
    """Widths of the repeated fields; groups of a common width are treated as more positions."""
    return widths[:1] if len(set(widths)) == 1 else widths


def _check_packed(packed: Tensor, num_codes: int, widths: Sequence[int]) -> None:
    """Check that packed bytes have the type and the number that the codes take."""
    if num_codes < 1:
        raise ValueError(f"packed: expected at least 1 code per image, found {num_codes}")
    num_bytes = num_packed_bytes(num_codes, widths)
    if packed.dtype != torch.uint8 or packed.ndim < 1 or packed.shape[-1] != num_bytes:
        raise ValueError(
            f"packed: expected (..., {num_bytes}) uint8 for {num_codes} x {sum(widths)} bits, "
            f"found {tuple(packed.shape)} {packed.dtype}"
        )


def check_codes(codes: Tensor, widths: Sequence[int]) -> None:
    """Check that codes (B, N, G) are in [0, 2**width) of their group.

    Raises:
        ValueError: If one is not; the message has the first wrong value of the first such group.
    """
    if len(widths) == 1:
        refuse_values("codes", codes, codes >> widths[0] != 0, f"0 to 2**{widths[0]} - 1")
        return
    for group, width in enumerate(widths):
        column = codes[..., group]
        refuse_values(f"codes[..., {group}]", column, column >> width != 0, f"0 to 2**{width} - 1")


def _pack_codes(codes: Tensor, widths: Sequence[int], validate: bool, backend: str) -> Tensor:
    if validate:
        check_codes(codes, widths)
    if _resolve(backend, "pack_codes", codes.device, codes.shape[1], widths) == "triton":
        from .fused import pack_codes_fused

        return pack_codes_fused(codes, widths)
    return pack_codes_reference(codes, widths)


_pack_codes_op = torch.library.custom_op("tessella::pack_codes", _pack_codes, mutates_args=())


@_pack_codes_op.register_fake
def _(codes: Tensor, widths: Sequence[int], validate: bool, backend: str) -> Tensor:
    num_bytes = num_packed_bytes(codes.shape[1], widths)
    return codes.new_empty(codes.shape[0], num_bytes, dtype=torch.uint8)


def _unpack_codes(
    packed: Tensor, num_codes: int, widths: Sequence[int], dtype: torch.dtype, backend: str
) -> Tensor:
    if _resolve(backend, "unpack_codes", packed.device, num_codes, widths) == "triton":
        from .fused import unpack_codes_fused

        return unpack_codes_fused(packed, num_codes, widths, dtype)
    return unpack_codes_reference(packed, num_codes, widths, dtype)


_unpack_codes_op = torch.library.custom_op("tessella::unpack_codes", _unpack_codes, mutates_args=())


@_unpack_codes_op.register_fake
def _(
    packed: Tensor, num_codes: int, widths: Sequence[int], dtype: torch.dtype, backend: str
) -> Tensor:
    return packed.new_empty(packed.shape[0], num_codes, len(widths), dtype=dtype)


def _pack_signs(x: Tensor, validate: bool, backend: str) -> Tensor:
    if validate:
        refuse_values("x", x, x.isnan(), "numbers")
    if _resolve(backend, "pack_signs", x.device, x.shape[1], [1], x.dtype) == "triton":
        from .fused import pack_signs_fused

        return pack_signs_fused(x)
    return pack_signs_reference(x)


_pack_signs_op = torch.library.custom_op("tessella::pack_signs", _pack_signs, mutates_args=())


@_pack_signs_op.register_fake
def _(x: Tensor, validate: bool, backend: str) -> Tensor:
    return x.new_empty(x.shape[0], (x.shape[1] + 7) // 8, dtype=torch.uint8)


def _unpack_signs(packed: Tensor, num_signs: int, dtype: torch.dtype, backend: str) -> Tensor:
    if _resolve(backend, "unpack_signs", packed.device, num_signs, [1], dtype) == "triton":
        from .fused import unpack_signs_fused

        return unpack_signs_fused(packed, num_signs, dtype)
    return unpack_signs_reference(packed, num_signs, dtype)


_unpack_signs_op = torch.library.custom_op("tessella::unpack_signs", _unpack_signs, mutates_args=())


@_unpack_signs_op.register_fake
def _(packed: Tensor, num_signs: int, dtype: torch.dtype, backend: str) -> Tensor:
    return packed.new_empty(packed.shape[0], num_signs, dtype=dtype)


def _resolve(
    backend: str,
    op: str,
    device: torch.device,
    num_codes: int,
    widths: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> str:
    """Choose the implementation of a call; the float type matters for signs only."""
    refusal = None
    if num_codes * sum(widths) > MAX_IMAGE_BITS:
        refusal = f"an image of {num_codes * sum(widths)} bits is larger than {MAX_IMAGE_BITS}"
    elif len(widths) > MAX_MIXED_GROUPS:
        refusal = f"{len(widths)} groups of several widths are more than {MAX_MIXED_GROUPS}"
    return resolve_backend(backend, op, device, dtype, refusal=refusal)
