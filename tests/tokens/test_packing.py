"""The bytes of tokens on disk, which must never change; entries, joint indices and bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tessella.tests.cases import over
from tessella.tokens.packing import group_sizes, join_bits, join_entries, split_bits
from tessella.tokens.tokens import Tokens, TokenSpec

# shape, codebook sizes, bytes of the two images of `fixed_tokens`
STORED = {
    "10 bits of 1000": ((3,), (1000,), "f3899f1e", "e09f673d"),
    "3 bits": ((5,), (2,) * 3, "5555", "aa2a"),
    "1 bit": ((7,), (2,), "55", "2a"),
    "levels": ((2, 2), (8, 5, 5, 5), "8308120820", "a09e6a6aa9"),
    "14 bits": ((3,), (2**14,), "9bbae8974a00", "d8d4776eee01"),
    "7 and 7 bits": ((3,), (2**7,) * 2, "1bb6689ed203", "d8d41766be01"),
    "18 bits": ((3,), (2**18,), "9b3a8a7e954a08", "d8d47de763ee01"),
    "62 bits": (
        (2,),
        (2**62,),
        "9b3a624cdfbc1b8fe85793f24e9ba906",
        "d8d41163fae6ddf8773e3fb8d5251a01",
    ),
    "64 bits, not of a joint index": (
        (2,),
        (3, 2**62),
        "b1a923c6f4cdbbf1cc3dd0bd668fe61f",
        "a612e2206176c498c1a68e18d337efc6",
    ),
    "fields of 3, 40 and 31 bits": (
        (3,),
        (5, 2**40, 2**31),
        "6453478ce9ebd17cb570ee81ee359be85793423d9aaf169b25f24209",
        "4a25c441c2d4a3f96a093675c4983e304b69a55b6707a22844bf9a14",
    ),
    "66 bits": (
        (2,),
        (2,) * 66,
        "5555555555555555a9aaaaaaaaaaaaaa0a",
        "aaaaaaaaaaaaaaaa565555555555555505",
    ),
}


def fixed_tokens(shape: tuple[int, ...], sizes: tuple[int, ...]) -> Tokens:
    """Two images of values by a formula."""
    spec = TokenSpec(shape, sizes)
    indices = [
        [
            [
                (7 * image + 5 * position + 3 * g + 1) * 2654435761 * 2147483659 % size
                for g, size in enumerate(sizes)
            ]
            for position in range(spec.num_tokens)
        ]
        for image in range(2)
    ]
    return Tokens(torch.tensor(indices), spec)


@over("name", STORED)
def test_bytes_on_disk_are_those_of_every_version(name: str) -> None:
    shape, sizes, *images = STORED[name]
    tokens = fixed_tokens(shape, sizes)
    assert [bytes(row).hex() for row in tokens.pack().tolist()] == images
    stored = torch.tensor([list(bytes.fromhex(image)) for image in images], dtype=torch.uint8)
    assert Tokens.unpack(stored, tokens.spec).equal(tokens)


def test_tokens_of_0_images_pack_and_unpack() -> None:
    for sizes in ((1000,), (2,) * 3, (5, 2**40, 2**31)):
        none = fixed_tokens((3,), sizes)[:0]
        assert none.pack().shape == (0, none.spec.packed_bytes)
        assert Tokens.unpack(none.pack(), none.spec).equal(none)


def test_a_value_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="found 16"):
        Tokens(torch.tensor([[[16]]]), TokenSpec((1,), (16,))).pack()


@given(st.lists(st.tuples(st.integers(1, 15), st.integers(0, 2**15 - 1)), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None, database=None)
def test_bits_are_those_of_the_joint_index(entries: list[tuple[int, int]]) -> None:
    widths = [width for width, _ in entries]
    indices = torch.tensor([[value % 2**width for width, value in entries]])
    bits = split_bits(indices, widths)
    joint = join_entries(indices, [2**width for width in widths]).item()
    assert bits.tolist() == [[joint >> i & 1 for i in range(sum(widths))]]
    assert torch.equal(join_bits(bits, widths), indices)


def test_groups_are_few_even_and_the_larger_ones_first() -> None:
    """Files say how many bits a group has, so their order is fixed."""
    for bits, most, expected in (
        (14, 10, [7, 7]),
        (18, 10, [9, 9]),
        (25, 8, [7, 6, 6, 6]),
        (10, 10, [10]),
        (11, 10, [6, 5]),
        (3, 1, [1, 1, 1]),
    ):
        assert group_sizes(bits, most) == expected, (bits, most)
