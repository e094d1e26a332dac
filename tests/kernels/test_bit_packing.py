"""Bit packing without Triton: against Python's integers, numpy and itself."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tessella.kernels.bit_embedding.op import bit_embedding
from tessella.kernels.bit_packing.op import (
    _pack_codes_op,
    _pack_signs_op,
    _unpack_codes_op,
    _unpack_signs_op,
    pack_codes,
    pack_signs,
    unpack_codes,
    unpack_signs,
)
from tessella.kernels.bit_packing.reference import (
    pack_codes_reference,
    unpack_codes_reference,
)
from tessella.tests.cases import over
from tessella.tests.probes import LargestTensor

MIXED = [(1, 2), (4, 10, 3), (62, 1), (31, 32, 33), (7, 7), (1,) * 18, (5, 62, 8, 24, 13)]


def draw(widths: Sequence[int], *shape: int, seed: int = 0) -> Tensor:
    """Codes of groups, (*shape, G) int64; the largest and 0 are among them."""
    rng = torch.Generator().manual_seed(seed)
    codes = torch.stack([torch.randint(2**w, shape, generator=rng) for w in widths], -1)
    codes.view(-1, len(widths))[0] = torch.tensor([2**w - 1 for w in widths])
    codes.view(-1, len(widths))[-1] = 0
    return codes


def bit_string(fields: Sequence[Sequence[int]], widths: Sequence[int]) -> bytes:
    """One image by Python's integers: every field at its place in one number."""
    number, place = 0, 0
    for position in fields:
        for value, width in zip(position, widths, strict=True):
            number += value << place
            place += width
    return number.to_bytes(-(-place // 8), "little")


@over("num_codes", [1, 5, 16])
@over("bits", range(1, 63))
def test_one_width_is_the_number_and_back(bits: int, num_codes: int) -> None:
    codes = draw((bits,), 3, num_codes, seed=bits)[..., 0]
    packed = pack_codes(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (3, -(-num_codes * bits // 8))
    for row, image in zip(packed.tolist(), codes.tolist(), strict=True):
        assert bytes(row) == bit_string([[code] for code in image], (bits,))
    assert torch.equal(unpack_codes(packed, num_codes, bits), codes)


@over("num_codes", [1, 2, 11])
@over("widths", MIXED, ids=str)
def test_several_widths_are_the_number_and_back(widths: tuple[int, ...], num_codes: int) -> None:
    codes = draw(widths, 3, num_codes)
    packed = pack_codes(codes, widths)
    for row, image in zip(packed.tolist(), codes.tolist(), strict=True):
        assert bytes(row) == bit_string(image, widths)
    assert torch.equal(unpack_codes(packed, num_codes, widths), codes)


@st.composite
def images(take: Callable[..., Any]) -> tuple[list[list[int]], list[int]]:
    """Fields of one image and their widths."""
    widths = take(st.lists(st.integers(1, 62), min_size=1, max_size=5))
    fields = st.tuples(*(st.integers(0, 2**w - 1) for w in widths))
    return take(st.lists(fields.map(list), min_size=1, max_size=9)), widths


@given(images())
@settings(max_examples=100, deadline=None, database=None)
def test_any_fields_are_the_number_and_back(image: tuple[list[list[int]], list[int]]) -> None:
    fields, widths = image
    packed = pack_codes(torch.tensor(fields), widths)
    assert bytes(packed.tolist()) == bit_string(fields, widths)
    assert unpack_codes(packed, len(fields), widths).tolist() == fields


@pytest.mark.parametrize("num_bits", [1, 7, 8, 9, 64, 131])
def test_single_bits_are_those_of_numpy(num_bits: int) -> None:
    bits = draw((1,), 2, 3, num_bits)[..., 0]
    packed = pack_codes(bits, 1)
    expected = np.packbits(bits.numpy().astype(np.uint8), axis=-1, bitorder="little")
    assert np.array_equal(packed.numpy(), expected)


@over("bit", range(24))
def test_least_significant_first(bit: int) -> None:
    bits = torch.zeros(24, dtype=torch.int64)
    bits[bit] = 1
    assert int.from_bytes(bytes(pack_codes(bits, 1).tolist()), "little") == 2**bit
    joint = torch.tensor([1 << bit])
    assert torch.equal(pack_codes(joint, 24), pack_codes(bits, 1))


def test_unused_bits_are_written_as_0_and_not_read() -> None:
    packed = pack_codes(torch.full((1, 3), 7), 3)
    assert packed.tolist() == [[255, 1]]
    packed[0, 1] = 255
    assert unpack_codes(packed, 3, 3).tolist() == [[7, 7, 7]]
    assert unpack_signs(packed, 9).tolist() == [[1.0] * 9]


def test_int32_and_any_strides_give_the_same() -> None:
    codes = draw((9, 5), 4, 7)
    expected = pack_codes(codes, (9, 5))
    wide = torch.full((6, 9, 5), -1)
    wide[1:5, 2:, 1:4:2] = codes
    for other in (
        codes.int(),
        codes.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        wide[1:5, 2:, 1:4:2],
    ):
        assert torch.equal(pack_codes(other, (9, 5)), expected)
    bytes_apart = torch.full((4, 2 * expected.shape[1]), 77, dtype=torch.uint8)
    bytes_apart[:, ::2] = expected
    for dtype in (torch.int32, torch.int64):
        found = unpack_codes(bytes_apart[:, ::2], 7, (9, 5), dtype=dtype)
        assert found.dtype == dtype and torch.equal(found, codes.to(dtype))
    largest = torch.tensor([2**31 - 1, 0, 2**31 - 1], dtype=torch.int32)
    for bits in (31, 40, 62):
        packed = pack_codes(largest, bits)
        assert torch.equal(packed, pack_codes(largest.long(), bits))
    assert torch.equal(unpack_codes(pack_codes(largest, 31), 3, 31, dtype=torch.int32), largest)


def test_widths_of_numpy() -> None:
    codes = draw((6, 3), 4, 5)
    packed = pack_codes(codes, np.array([6, 3]))
    assert torch.equal(packed, pack_codes(codes, (6, 3)))
    assert torch.equal(unpack_codes(packed, 5, np.array([6, 3])), codes)
    packed = pack_codes(codes[..., 0], np.int64(6))
    assert torch.equal(unpack_codes(packed, 5, np.int64(6)), codes[..., 0])


def test_leading_axes_stay() -> None:
    codes = draw((6, 3), 2, 3, 4, 5)
    packed = pack_codes(codes, (6, 3))
    assert packed.shape == (2, 3, 4, 6)
    assert torch.equal(packed[1, 2, 3], pack_codes(codes[1, 2, 3], (6, 3)))
    assert torch.equal(unpack_codes(packed, 5, (6, 3)), codes)
    assert pack_codes(codes[..., 0], 6).shape == (2, 3, 4, 4)
    assert pack_codes(codes[0, 0, 0, :, 0], 6).shape == (4,)


def test_groups_of_one_width_are_codes_in_a_row() -> None:
    codes = draw((7, 7), 3, 5)
    packed = pack_codes(codes, (7, 7))
    assert torch.equal(packed, pack_codes(codes.flatten(1), 7))
    assert torch.equal(packed, pack_codes(codes[..., 0] + 2**7 * codes[..., 1], 14))
    strided = codes.transpose(0, 2).contiguous().transpose(0, 2)
    assert torch.equal(packed, pack_codes(strided, (7, 7)))


def test_0_images_pack_and_unpack() -> None:
    none = torch.zeros(0, 5, 2, dtype=torch.int64)
    for widths in ((3, 4), (3, 3)):
        packed = pack_codes(none, widths)
        assert packed.shape == (0, -(-5 * sum(widths) // 8)) and packed.dtype == torch.uint8
        assert unpack_codes(packed, 5, widths).shape == (0, 5, 2)
    assert pack_signs(torch.zeros(0, 9)).shape == (0, 2)
    assert unpack_signs(torch.zeros(0, 2, dtype=torch.uint8), 9).shape == (0, 9)


def test_unchecked_codes_count_by_their_low_bits() -> None:
    codes = torch.tensor([[5, 16 + 3, -1, 2**40 + 1]])
    packed = pack_codes(codes, 4, validate=False)
    assert unpack_codes(packed, 4, 4).tolist() == [[5, 3, 15, 1]]


def test_packed_codes_feed_the_embedding() -> None:
    codes = draw((7, 7), 2, 5)
    weight = torch.randn(14, 3, generator=torch.Generator().manual_seed(1))
    stored = pack_codes(codes, (7, 7))
    found = bit_embedding(
        unpack_codes(stored, 5, (7, 7), dtype=torch.int32), weight, bits_per_group=7
    )
    assert torch.equal(found, bit_embedding(codes, weight, bits_per_group=7))


@over("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@over("num", [1, 8, 37])
def test_signs_are_bits_of_not_negative(num: int, dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, num, generator=torch.Generator().manual_seed(num)).to(dtype)
    x[0, 0, 0], x[1, 0, 0], x[0, 1, 0] = 0.0, -0.0, float("-inf")
    packed = pack_signs(x)
    assert torch.equal(packed, pack_codes((x >= 0).long(), 1))
    expected = torch.where(x < 0, -1, 1).to(dtype)
    found = unpack_signs(packed, num, dtype=dtype)
    assert found.dtype == dtype and torch.equal(found, expected)
    apart = torch.full((2, 2 * num, 3), -1.0).to(dtype)
    apart[:, ::2] = x.transpose(1, 2)
    assert torch.equal(pack_signs(apart[:, ::2].transpose(1, 2)), packed)
    assert torch.equal(pack_signs(x.requires_grad_()), packed)


def test_unchecked_nan_is_negative() -> None:
    assert pack_signs(torch.tensor([float("nan"), 1.0]), validate=False).tolist() == [2]


@pytest.mark.parametrize("widths", [(1,), (14,), (24,), (4, 10, 3)], ids=str)
def test_nothing_is_larger_than_the_codes(widths: tuple[int, ...]) -> None:
    codes = draw(widths, 10, 64)
    size = codes.numel() * codes.element_size()
    with LargestTensor() as largest:
        packed = pack_codes_reference(codes, widths)
    assert 0 < largest.num_bytes <= size
    with LargestTensor() as largest:
        unpack_codes_reference(packed, 64, widths, torch.int64)
    assert 0 < largest.num_bytes <= size


CODES = torch.zeros(2, 4, 3, dtype=torch.int64)
BYTES = torch.zeros(2, 5, dtype=torch.uint8)
WRONG: dict[str, Callable[[], Any]] = {
    "codes: expected int32 or int64, found torch.uint8": lambda: pack_codes(CODES.byte(), 2),
    "codes: expected int32 or int64, found torch.float32": lambda: pack_codes(CODES.float(), 2),
    "codes: expected (..., N) with N >= 1, found (2, 0)": lambda: pack_codes(CODES[:, :0, 0], 2),
    "codes: expected (..., N) with N >= 1, found ()": lambda: pack_codes(CODES[0, 0, 0], 2),
    "codes: expected (..., N, 2) with N >= 1, found (2, 4, 3)": lambda: pack_codes(CODES, (1, 2)),
    "codes: expected (..., N, 3) with N >= 1, found (3,)": lambda: pack_codes(
        CODES[0, 0], (1, 2, 3)
    ),
    "codes: expected (..., N, 3) with N >= 1, found (2, 0, 3)": lambda: pack_codes(
        CODES[:, :0], (1, 2, 3)
    ),
    "codes: expected 0 to 2**4 - 1, found 16": lambda: pack_codes(torch.tensor([15, 16, 17]), 4),
    "codes: expected 0 to 2**62 - 1, found -1": lambda: pack_codes(torch.tensor([-1]), 62),
    "codes: expected 0 to 2**62 - 1, found -2": lambda: pack_codes(torch.tensor([-2]).int(), 62),
    "codes[..., 1]: expected 0 to 2**3 - 1, found 9": lambda: pack_codes(
        torch.tensor([[8, 7], [8, 9]]), (4, 3)
    ),
    "bits: expected 1 to 62, found 0": lambda: pack_codes(CODES, 0),
    "bits: expected 1 to 62, found 63": lambda: pack_codes(CODES, (1, 63, 2)),
    "bits: expected at least one width": lambda: pack_codes(CODES, ()),
    "bits: expected whole numbers, found 4.0": lambda: pack_codes(CODES, 4.0),  # type: ignore[arg-type]
    "bits: expected whole numbers, found [4.5]": lambda: unpack_codes(BYTES, 4, [4.5]),  # type: ignore[list-item]
    "bits: expected 1 to 62, found -3": lambda: unpack_codes(BYTES, 4, -3),
    "packed: expected (..., 5) uint8 for 4 x 10 bits, found (2, 4) torch.uint8": lambda: (
        unpack_codes(BYTES[:, :4], 4, 10)
    ),
    "packed: expected (..., 5) uint8 for 4 x 9 bits, found (2, 5) torch.int64": lambda: (
        unpack_codes(BYTES.long(), 4, (4, 5))
    ),
    "packed: expected (..., 6) uint8": lambda: unpack_codes(BYTES, 41, 1),
    "packed: expected at least 1 code per image, found 0": lambda: unpack_codes(
        BYTES[:, :0], 0, 10
    ),
    "dtype: expected int32 or int64, found torch.int16": lambda: unpack_codes(
        BYTES, 4, 10, dtype=torch.int16
    ),
    "dtype: codes of 32 bits do not fit int32": lambda: unpack_codes(
        BYTES, 1, (8, 32), dtype=torch.int32
    ),
    "x: expected (..., n) float with n >= 1, found (2, 4, 3) torch.int64": lambda: pack_signs(
        CODES
    ),
    "x: expected (..., n) float with n >= 1, found (2, 0)": lambda: pack_signs(torch.zeros(2, 0)),
    "x: expected numbers, found nan": lambda: pack_signs(torch.tensor([1.0, float("nan")])),
    "packed: expected (..., 5) uint8 for 33 x 1 bits": lambda: unpack_signs(BYTES[:, :4], 33),
    "dtype: expected one of": lambda: unpack_signs(BYTES, 40, dtype=torch.int8),
    "backend: expected one of": lambda: pack_codes(CODES, 2, backend="cuda"),  # type: ignore[arg-type]
}


@over("message", WRONG)
def test_wrong_input_is_one_clear_error(message: str) -> None:
    literal = "".join(f"\\{c}" if c in "()[]*.+?|" else c for c in message)
    with pytest.raises(ValueError, match="(?s)^" + literal):
        WRONG[message]()


@pytest.mark.slow
@pytest.mark.parametrize("widths", [[14], [4, 10, 3]], ids=str)
def test_ops_are_registered_right(widths: list[int]) -> None:
    codes = draw(widths, 2, 5)
    torch.library.opcheck(_pack_codes_op, (codes, widths, True, "reference"))
    packed = pack_codes(codes, widths)
    for dtype in (torch.int32, torch.int64):
        torch.library.opcheck(_unpack_codes_op, (packed, 5, widths, dtype, "reference"))


@pytest.mark.slow
def test_sign_ops_are_registered_right() -> None:
    x = torch.randn(3, 13, generator=torch.Generator().manual_seed(0))
    torch.library.opcheck(_pack_signs_op, (x, True, "reference"))
    torch.library.opcheck(_unpack_signs_op, (pack_signs(x), 13, torch.bfloat16, "reference"))


@pytest.mark.slow
def test_compiles_into_one_graph() -> None:
    def round_trip(codes: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        mixed, one, signs = pack_codes(codes, (9, 5)), pack_codes(codes[..., 0], 9), pack_signs(x)
        num_codes = codes.shape[1]
        return (
            mixed,
            unpack_codes(mixed, num_codes, (9, 5)),
            unpack_codes(one, num_codes, 9, dtype=torch.int32),
            unpack_signs(signs, x.shape[-1], dtype=torch.float16),
        )

    compiled = torch.compile(round_trip, fullgraph=True, backend="aot_eager", dynamic=True)
    for num_codes in (5, 7):
        given = draw((9, 5), 2, num_codes), torch.linspace(-1, 1, num_codes)
        for found, expected in zip(compiled(*given), round_trip(*given), strict=True):
            assert found.dtype == expected.dtype and torch.equal(found, expected)


def test_examples_in_the_docstring() -> None:
    assert pack_codes(torch.tensor([1, 2, 3]), 4).tolist() == [33, 3]
    assert pack_codes(torch.tensor([[[1, 3], [0, 7]]]), (1, 3)).tolist() == [[231]]
