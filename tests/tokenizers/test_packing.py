"""The one bit layout: round trips, sizes, order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tessella.tokenizers.packing import pack_bits, unpack_bits

LENGTHS = (1, 7, 8, 9, 18, 31, 32, 36, 62, 63, 64, 128)


@pytest.mark.parametrize("num_bits", LENGTHS)
def test_round_trip_and_size(num_bits: int) -> None:
    rng = torch.Generator().manual_seed(num_bits)
    bits = torch.randint(0, 2, (3, 5, num_bits), generator=rng)
    packed = pack_bits(bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (3, 5, -(-num_bits // 8))
    assert torch.equal(unpack_bits(packed, num_bits), bits.to(torch.uint8))


@pytest.mark.parametrize("bit", range(24))
def test_least_significant_first(bit: int) -> None:
    bits = torch.zeros(24, dtype=torch.int64)
    bits[bit] = 1
    packed = pack_bits(bits)
    assert int.from_bytes(bytes(packed.tolist()), "little") == 2**bit


def test_unused_bits_of_the_last_byte_are_zero() -> None:
    assert pack_bits(torch.ones(9, dtype=torch.bool)).tolist() == [255, 1]


@given(st.lists(st.booleans(), min_size=1, max_size=70))
@settings(max_examples=50, deadline=None, database=None)
def test_packed_bytes_are_the_little_endian_number(values: list[bool]) -> None:
    packed = pack_bits(torch.tensor(values))
    number = sum(2**i for i, value in enumerate(values) if value)
    assert bytes(packed.tolist()) == number.to_bytes(-(-len(values) // 8), "little")
    assert unpack_bits(packed, len(values)).tolist() == values


@pytest.mark.parametrize(
    ("packed", "num_bits"),
    [
        (torch.zeros(2, dtype=torch.uint8), 17),
        (torch.zeros(2, dtype=torch.uint8), 8),
        (torch.zeros(2, dtype=torch.int64), 16),
    ],
)
def test_unpack_refuses_another_size_or_type(packed: torch.Tensor, num_bits: int) -> None:
    with pytest.raises(ValueError, match=rf"expected {-(-num_bits // 8)} uint8 for {num_bits}"):
        unpack_bits(packed, num_bits)
