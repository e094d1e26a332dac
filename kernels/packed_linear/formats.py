"""Storage formats of low-bit weights: a tag, packed codes and scales, and their decoding.

One hardware-neutral layout; kernels rearrange it when they load it (`prepack.py`) and never write
theirs to disk. A weight is a matrix of N output channels and K inputs. In a convolution K runs over
(kh, kw, C_in), C_in fastest (the order in which NHWC memory is read, not PyTorch's), and the rows
of the convolution's groups follow each other. Every row is padded to a whole byte; padding may
decode to any value and is never read.

| tag | code | bytes of a row | decodes to |
| --- | --- | --- | --- |
| `bin1` | 1 if w >= 0, 8 a byte, least significant bit first | ceil(K / 8) | (2 b - 1) s |
| `bin2` | two planes of `bin1`: signs of w and of the remainder | 2 ceil(K / 8) | their sum |
| `tern2` | t + 1, 4 a byte, first column in the low bits | ceil(K / 4) | (c - 1) s; 3 is invalid |
| `tern3` | v = sum of (t_i + 1) 3**(4-i) of 5 columns as ceil(256 v / 243) | ceil(K / 5) | t s |
| `u2` | 4 a byte | ceil(K / 4) | level_table[c] s, or (c - z) s with a zero point |
| `u4` | 2 a byte, even column in the low nibble | ceil(K / 2) | (c - 8) s, or (c - z) s |

Codes of whole bits are packed by the rule of `kernels/bit_packing`, a row as an image. Decoding
`tern3` needs no division: t_i + 1 = (((byte * 3**i) mod 256) * 3) >> 8.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ..bit_packing.reference import pack_codes_reference, unpack_codes_reference

Tag = Literal["bin1", "bin2", "tern2", "tern3", "u2", "u4"]
"""Names of the formats that can be read. Any other must be refused, not guessed."""

CODES_PER_BYTE = {"bin1": 8, "bin2": 8, "tern2": 4, "tern3": 5, "u2": 4, "u4": 2}
NUM_CODES = {"bin1": 2, "bin2": 2, "tern2": 3, "tern3": 3, "u2": 4, "u4": 16}
SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SYMMETRIC_LEVELS = (-3.0, -1.0, 1.0, 3.0)
"""Values of the four codes of a symmetric format of two bits, in units of the scale."""
LARGEST_LEVEL = torch.finfo(torch.float32).max


def num_planes(tag: str) -> int:
    """Number of bit planes of a weight: 2 for `bin2`, otherwise 1."""
    return 2 if tag == "bin2" else 1


def check_tag(tag: str | None) -> None:
    """Check that this version can read a format.

    Raises:
        ValueError: If it cannot; the message has the formats that it can read.
    """
    if tag not in get_args(Tag):
        raise ValueError(f"tag: expected one of {get_args(Tag)}, found {tag!r}")


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A low-bit weight; compared by identity.

    Args:
        tag: Format of the codes, one of `Tag`.
        shape: Shape of the weight that was packed, (N, K) or (C_out, C_in / groups, kh, kw).
        qdata: Packed codes, (N, bytes of a row) uint8; (2, N, bytes of a row) for `bin2`.
        scale: Scales in float16, bfloat16 or float32, of any sign: (1,) for the whole tensor, (N,)
            per channel or (N, G) per group of K / G columns; (2, N) or (2, N, G) for `bin2`.
        zero: Zero points of an asymmetric `u2` or `u4`, (N, G) uint8 (G = 1 without groups), each
            a code; None: symmetric.
        level_table: Values of the four codes of a symmetric `u2` in units of the scale, finite in
            float32; None for any other format.

    Raises:
        ValueError: If a shape, a type or a level does not fit; values of tensors are checked by
            `check_values`.
    """

    tag: Tag
    shape: tuple[int, ...]
    qdata: Tensor
    scale: Tensor
    zero: Tensor | None = None
    level_table: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_tag(self.tag)
        whole = isinstance(self.shape, tuple) and all(isinstance(n, int) for n in self.shape)
        if not whole or len(self.shape) not in (2, 4) or min(self.shape) < 1:
            raise ValueError(
                f"shape: expected a tuple of 2 or 4 sizes of at least 1, found {self.shape!r}"
            )
        self._check_qdata()
        self._check_scale()
        self._check_zero()
        self._check_level_table()

    @property
    def num_rows(self) -> int:
        """Number of output channels, N."""
        return self.shape[0]

    @property
    def num_columns(self) -> int:
        """Number of inputs, K."""
        return matrix_columns(self.shape)

    @property
    def num_groups(self) -> int:
        """Number of scales of a row, G."""
        return scale_groups(self.tag, self.scale)

    @property
    def group_size(self) -> int:
        """Number of columns that share a scale; K without groups."""
        return self.num_columns // self.num_groups

    def codes(self) -> Tensor:
        """Unpacked codes, (N, K) uint8; (2, N, K) for `bin2`. Ternary codes are t + 1."""
        return unpack_rows(self.qdata, self.tag, self.num_columns)

    def dequantize(self) -> Tensor:
        """Decode to a matrix (N, K): scale times level, rounded to float32.

        With 16-bit scales this is exact, except for the sum of the two planes of `bin2`.
        """
        return dequantize_rows(
            self.qdata, self.scale, self.zero, self.tag, self.num_columns, self.level_table
        )

    def dense(self) -> Tensor:
        """Decode to a weight of its own shape, float32."""
        return from_matrix(self.dequantize(), self.shape)

    def num_bytes(self) -> int:
        """Size of codes, scales and zero points in bytes, as in a file."""
        parts = (self.qdata, self.scale, self.zero)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    def bits_per_weight(self) -> float:
        """Bits per weight: 8 `num_bytes` / (N K), scales and zero points included."""
        return 8 * self.num_bytes() / (self.num_rows * self.num_columns)

    def to(self, device: torch.device | str) -> "PackedWeight":
        """Copy of the weight on a device."""
        zero = None if self.zero is None else self.zero.to(device)
        return replace(self, qdata=self.qdata.to(device), scale=self.scale.to(device), zero=zero)

    def check_values(self) -> "PackedWeight":
        """Check for codes, zero points and scales that no encoder writes (waits for the device).

        Returns:
            The weight itself.

        Raises:
            ValueError: If there are any; the message has the first wrong value.
        """
        if not self.scale.isfinite().all():
            raise ValueError("scale: expected finite values, found inf or NaN")
        if self.zero is not None and int(self.zero.max()) >= NUM_CODES[self.tag]:
            raise ValueError(
                f"zero: expected 0 to {NUM_CODES[self.tag] - 1}, found {int(self.zero.max())}"
            )
        if self.tag == "tern2":
            codes = self.codes()
            if (codes == 3).any():
                row, column = (codes == 3).nonzero()[0].tolist()
                raise ValueError(f"qdata: code 3 of tern2 is invalid, row {row} column {column}")
        if self.tag == "tern3":
            valid = torch.zeros(256, dtype=torch.bool, device=self.qdata.device)
            valid[_tern3_bytes(self.qdata.device)] = True
            wrong = ~valid[self.qdata.long()]
            if wrong.any():
                found = int(self.qdata[wrong][0])
                raise ValueError(
                    "qdata: expected bytes ceil(256 v / 243) of an integer v for tern3, "
                    f"found byte {found}"
                )
        return self

    def _check_qdata(self) -> None:
        planes = (2,) if self.tag == "bin2" else ()
        expected = (*planes, self.num_rows, row_bytes(self.tag, self.num_columns))
        if self.qdata.dtype != torch.uint8 or self.qdata.shape != expected:
            raise ValueError(
                f"qdata: expected {expected} uint8 for {self.tag} {self.shape}, "
                f"found {tuple(self.qdata.shape)} {self.qdata.dtype}"
            )

    def _check_scale(self) -> None:
        planes = (2,) if self.tag == "bin2" else ()
        found, rows = tuple(self.scale.shape), (*planes, self.num_rows)
        grouped = found[:-1] == rows and found[-1] > 0
        if self.scale.dtype not in SCALE_DTYPES or not (
            found == rows or grouped or (found == (1,) and not planes)
        ):
            raise ValueError(
                f"scale: expected {rows} or {(*rows, 'G')}{'' if planes else ' or (1,)'} float16, "
                f"bfloat16 or float32, found {found} {self.scale.dtype}"
            )
        if grouped and self.num_columns % found[-1]:
            raise ValueError(
                f"scale: K = {self.num_columns} columns cannot be divided into {found[-1]} "
                "equal groups"
            )

    def _check_zero(self) -> None:
        if self.zero is not None:
            if self.tag not in ("u2", "u4"):
                raise ValueError(
                    f"zero: only u2 and u4 have zero points, found some for {self.tag}"
                )
            expected = (self.num_rows, self.num_groups)
            if self.zero.shape != expected or self.zero.dtype != torch.uint8:
                raise ValueError(
                    f"zero: expected {expected} uint8, "
                    f"found {tuple(self.zero.shape)} {self.zero.dtype}"
                )

    def _check_level_table(self) -> None:
        if self.tag != "u2" or self.zero is not None:
            if self.level_table is not None:
                raise ValueError(
                    f"level_table: expected None for {self.tag}, found {self.level_table!r}"
                )
            return
        if (
            not isinstance(self.level_table, tuple)
            or len(self.level_table) != 4
            or not all(
                isinstance(x, int | float) and abs(x) <= LARGEST_LEVEL for x in self.level_table
            )
        ):
            raise ValueError(
                f"level_table: expected a tuple of 4 finite float32 numbers for u2, "
                f"found {self.level_table!r}"
            )


def matrix_columns(shape: tuple[int, ...]) -> int:
    """Number of inputs K of a weight of a shape."""
    return math.prod(shape[1:])


def to_matrix(weight: Tensor) -> Tensor:
    """Matrix (N, K) of a linear weight, or of (C_out, C_in, kh, kw) with C_in fastest."""
    return weight if weight.ndim == 2 else weight.permute(0, 2, 3, 1).flatten(1)


def from_matrix(matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Weight of a shape from its matrix (N, K), contiguous; inverse of `to_matrix`."""
    if len(shape) == 2:
        return matrix
    num_rows, channels, height, width = shape
    return matrix.view(num_rows, height, width, channels).permute(0, 3, 1, 2).contiguous()


def row_bytes(tag: str, num_columns: int) -> int:
    """Number of bytes of one packed row of one plane."""
    return -(-num_columns // CODES_PER_BYTE[tag])


def scale_groups(tag: str, scale: Tensor) -> int:
    """Number of scales of a row, G."""
    return scale.shape[-1] if scale.ndim == num_planes(tag) + 1 else 1


def pack_rows(codes: Tensor, tag: str) -> Tensor:
    """Pack rows of codes.

    Args:
        codes: Codes, (..., K) integers or bool in [0, number of codes); ternary codes are t + 1.
        tag: Format of the codes.

    Returns:
        Packed rows, (..., bytes of a row) uint8; padding bits are 0.

    Raises:
        ValueError: If the tag is unknown, or a code is not an integer or is out of range.
    """
    check_tag(tag)
    if codes.is_floating_point() or codes.is_complex():
        raise ValueError(f"codes: expected integers or bool, found {codes.dtype}")
    if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < NUM_CODES[tag]):
        raise ValueError(
            f"codes: expected 0 to {NUM_CODES[tag] - 1} for {tag}, "
            f"found {int(codes.min())} to {int(codes.max())}"
        )
    return packed_rows(codes.to(torch.uint8), tag)


def packed_rows(codes: Tensor, tag: str) -> Tensor:
    """Pack rows like `pack_rows`, without checks; the codes are uint8."""
    if tag == "tern3":
        trits = torch.unflatten(F.pad(codes, (0, -codes.shape[-1] % 5)), -1, (-1, 5))
        v = trits[..., 0].int()
        for i in range(1, 5):
            v = 3 * v + trits[..., i]
        return ((256 * v + 242) // 243).to(torch.uint8)
    rows = codes.reshape(-1, codes.shape[-1], 1)
    packed = pack_codes_reference(rows, (8 // CODES_PER_BYTE[tag],))
    return packed.view(*codes.shape[:-1], packed.shape[1])


def unpack_rows(qdata: Tensor, tag: str, num_columns: int) -> Tensor:
    """Unpack codes of packed rows, (..., K) uint8; inverse of `pack_rows`."""
    rows = qdata.reshape(-1, qdata.shape[-1])
    if tag == "tern3":
        codes = code_table(tag, qdata.device)[rows.int()].flatten(1)[:, :num_columns]
    else:
        widths = (8 // CODES_PER_BYTE[tag],)
        codes = unpack_codes_reference(rows, num_columns, widths, torch.uint8)
    return codes.reshape(*qdata.shape[:-1], num_columns)


def code_table(tag: str, device: torch.device) -> Tensor:
    """Table of the codes of every byte, (256, codes per byte) uint8."""
    if tag == "tern3":
        byte = torch.arange(256, device=device, dtype=torch.int32)[:, None]
        powers = torch.tensor([1, 3, 9, 27, 81], device=device, dtype=torch.int32)
        return ((((byte * powers) & 255) * 3) >> 8).to(torch.uint8)
    byte = torch.arange(256, device=device, dtype=torch.uint8)[:, None]
    return unpack_rows(byte, tag, CODES_PER_BYTE[tag])


def byte_levels(
    tag: str, level_table: tuple[float, ...] | None, asymmetric: bool, device: torch.device
) -> Tensor:
    """Table of the levels of every byte in units of the scale, (256, codes per byte) float32.

    With a zero point (`asymmetric`) the entries are the codes; the caller subtracts it.
    """
    codes = code_table(tag, device)
    if tag in ("bin1", "bin2"):
        return codes.float() * 2 - 1
    if asymmetric:
        return codes.float()
    if level_table is not None:
        return torch.tensor(level_table, device=device, dtype=torch.float32)[codes.int()]
    return codes.float() - (8 if tag == "u4" else 1)


def integer_levels(level_table: tuple[float, ...]) -> tuple[float, tuple[int, ...]] | None:
    """Write levels as a power of two times integers in [-127, 127]; None if that is impossible.

    The power is the largest possible one; its product with a scale is exact.
    """
    for exponent in range(7, -8, -1):
        step = 2.0**exponent
        multiples = [level / step for level in level_table]
        if all(m == round(m) and abs(m) <= 127 for m in multiples):
            return step, tuple(round(m) for m in multiples)
    return None


def level_rows(
    qdata: Tensor,
    zero: Tensor | None,
    tag: str,
    num_columns: int,
    level_table: tuple[float, ...] | None,
) -> Tensor:
    """Levels of rows of one plane in units of the scale, (rows, G, K / G) float32.

    G is the number of zero points of a row, 1 without zero points.
    """
    table = byte_levels(tag, level_table, zero is not None, qdata.device)
    rows = table.index_select(0, qdata.flatten().int()).view(qdata.shape[0], -1)[:, :num_columns]
    if zero is None:
        return rows[:, None]
    return torch.unflatten(rows, 1, (zero.shape[1], -1)) - zero[..., None].float()


def dequantize_rows(
    qdata: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    tag: str,
    num_columns: int,
    level_table: tuple[float, ...] | None,
) -> Tensor:
    """Decode some rows of the tensors of a `PackedWeight` (a scale per tensor stays whole)."""
    total: Tensor | None = None
    for plane in range(num_planes(tag)):
        rows, factor = (qdata[plane], scale[plane]) if tag == "bin2" else (qdata, scale)
        values = level_rows(rows, zero, tag, num_columns, level_table).flatten(1)
        groups = factor.shape[1] if factor.ndim == 2 else 1
        factor = factor.float().view(-1, groups, 1)
        values = (torch.unflatten(values, 1, (groups, -1)) * factor).flatten(1)
        total = values if total is None else total + values
    assert total is not None
    return total


def _tern3_bytes(device: torch.device) -> Tensor:
    """Bytes that five trits can give, (243,) int64."""
    return (256 * torch.arange(243, device=device) + 242) // 243
