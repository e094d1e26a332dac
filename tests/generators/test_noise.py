"""Philox against published answers, and what makes its numbers usable: range, law, independence."""

import math

import pytest
import torch
from torch import Tensor

from tessella.generators import noise
from tessella.generators.noise import derive_seeds, gumbel, philox, uniform

KNOWN = {
    "zeros": ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    "ones": ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    "pi": (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
}
"""Counter, key and result: the known-answer file of the Random123 distribution, philox4x32-10."""
LARGEST, SMALLEST = 1 - 2.0**-24, 2.0**-24


def words(text: str) -> list[Tensor]:
    return [torch.tensor([int(word, 16)]) for word in text.split()]


def within_4_sigma(mean: float, expected: float, sigma: float, count: int) -> bool:
    return abs(mean - expected) < 4 * sigma / math.sqrt(count)


@pytest.mark.parametrize("name", KNOWN)
def test_philox_gives_the_published_answers(name: str) -> None:
    counter, key, expected = KNOWN[name]
    found = philox(words(counter), words(key))
    assert [f"{int(word):08x}" for word in found] == expected.split()


def test_philox_is_elementwise() -> None:
    counters = [torch.cat(c) for c in zip(*(words(KNOWN[n][0]) for n in KNOWN), strict=True)]
    keys = [torch.cat(k) for k in zip(*(words(KNOWN[n][1]) for n in KNOWN), strict=True)]
    found = torch.stack(philox(counters, keys), 1)
    for row, name in zip(found.tolist(), KNOWN, strict=True):
        assert [f"{word:08x}" for word in row] == KNOWN[name][2].split()


def test_uniform_is_philox_of_place_draw_and_seed() -> None:
    """Counter (place, draw, 0, 0), key (low half, high half of the seed), top 23 bits of a word."""
    seed, draw = 0x0123456789ABCDEF, 7
    key = (torch.tensor([seed & 0xFFFFFFFF]), torch.tensor([seed >> 32]))
    expected = []
    for place in range(3):
        counter = [torch.tensor([value]) for value in (place, draw, 0, 0)]
        expected += [((int(w) >> 9) + 0.5) / 2**23 for w in philox(counter, key)]
    found = uniform(torch.tensor([seed]), draw, (2, 5))
    assert found.shape == (1, 2, 5) and found.dtype == torch.float32
    assert found.flatten().tolist() == expected[:10]


def test_uniform_numbers_are_uniform() -> None:
    """n = 2**18 numbers in 64 bins: every bin, mean and variance within 4 sigma."""
    numbers = uniform(torch.arange(64), 0, (4096,)).double().flatten()
    n, bins = numbers.numel(), 64
    share = 1 / bins
    bound = 4 * math.sqrt(n * share * (1 - share))
    counts = torch.histc(numbers, bins, 0, 1)
    assert (counts - n * share).abs().max() < bound
    assert within_4_sigma(numbers.mean().item(), 0.5, math.sqrt(1 / 12), n)
    # the variance of (u - 1/2)**2 is 1/80 - 1/144
    assert within_4_sigma(
        (numbers - 0.5).square().mean().item(), 1 / 12, math.sqrt(1 / 80 - 1 / 144), n
    )
    # bit by bit: the lowest bit that is kept is as fair as the highest
    for bit in range(23):
        ones = ((numbers * 2**23).long() >> bit & 1).double().mean().item()
        assert within_4_sigma(ones, 0.5, 0.5, n), bit


@pytest.mark.parametrize(("word", "expected"), [(0, SMALLEST), (0xFFFFFFFF, LARGEST)])
def test_extreme_words_give_neither_0_nor_1(
    word: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        noise, "philox", lambda counter, key: (torch.full_like(counter[0], word),) * 4
    )
    numbers = uniform(torch.tensor([0]), 0, (4,))
    assert numbers.tolist() == [[expected] * 4]
    assert (numbers > 0).all() and (numbers < 1).all()
    assert gumbel(torch.tensor([0]), 0, (4,)).isfinite().all()


def test_gumbel_numbers_have_mean_and_variance_of_the_law() -> None:
    """n = 2**16; mean Euler's constant, variance pi**2 / 6, kurtosis 5.4."""
    numbers = gumbel(torch.arange(16), 3, (4096,)).double().flatten()
    n, variance = numbers.numel(), math.pi**2 / 6
    assert within_4_sigma(numbers.mean().item(), 0.5772156649, math.sqrt(variance), n)
    spread = (numbers - 0.5772156649).square().mean().item()
    assert within_4_sigma(spread, variance, variance * math.sqrt(5.4 - 1), n)


def test_an_image_has_the_same_numbers_in_every_batch() -> None:
    seeds = torch.tensor([5, -3, 2**62, 0, 5, -(2**63), 2**63 - 1])
    together = uniform(seeds, 2, (3, 7))
    for i in range(len(seeds)):
        assert torch.equal(uniform(seeds[i : i + 1], 2, (3, 7))[0], together[i])
    assert torch.equal(together[0], together[4])
    flipped = uniform(seeds.flip(0), 2, (3, 7)).flip(0)
    assert torch.equal(flipped, together)
    assert len({tuple(row.flatten().tolist()) for row in together}) == len(seeds) - 1


def test_the_prefix_does_not_depend_on_the_shape() -> None:
    seeds = torch.tensor([1, 2])
    long = uniform(seeds, 0, (50,))
    for count in (1, 3, 4, 5, 49):
        assert torch.equal(uniform(seeds, 0, (count,)), long[:, :count])
    assert uniform(seeds[:0], 0, (3,)).shape == (0, 3)


def test_the_draw_may_be_a_tensor() -> None:
    seeds = torch.tensor([1, 2])
    assert torch.equal(uniform(seeds, torch.tensor(9), (5,)), uniform(seeds, 9, (5,)))


def correlation(a: Tensor, b: Tensor) -> float:
    a, b = a.double().flatten() - 0.5, b.double().flatten() - 0.5
    return (a * b).mean().item() * 12


@pytest.mark.parametrize("other", ["draw", "seed", "high seed", "negative seed", "shift"])
def test_other_draws_seeds_and_places_are_uncorrelated(other: str) -> None:
    """n = 2**15 pairs; the correlation of independent numbers has sigma 1 / sqrt(n)."""
    count = 2**15
    seeds = torch.tensor([12345])
    first = uniform(seeds, 4, (count,))
    second = {
        "draw": lambda: uniform(seeds, 5, (count,)),
        "seed": lambda: uniform(seeds + 1, 4, (count,)),
        "high seed": lambda: uniform(seeds + 2**32, 4, (count,)),
        "negative seed": lambda: uniform(-seeds, 4, (count,)),
        "shift": lambda: first.roll(1, 1),
    }[other]()
    assert within_4_sigma(correlation(first, second), 0, 1, count)
    assert not torch.equal(first, second)


def test_seeds_of_a_run_are_distinct_and_belong_to_their_number() -> None:
    numbers = torch.arange(20_000)
    seeds = derive_seeds(7, numbers)
    assert seeds.dtype == torch.int64
    assert (seeds >= 0).all() and (seeds >= 2**62).any()
    assert seeds.unique().numel() == len(seeds)
    some = torch.tensor([19_999, 0, 3])
    assert torch.equal(derive_seeds(7, some), seeds[some])
    for other in (8, 7 + 2**32, 2**63 - 1):
        assert not torch.isin(derive_seeds(other, numbers), seeds).any(), other
    assert not torch.equal(derive_seeds(7, numbers + 2**32), seeds)


def test_derived_seeds_are_philox_of_number_and_run() -> None:
    counter = [torch.tensor([value]) for value in (3, 1, 0, 0)]
    low, high, _, _ = philox(counter, (torch.tensor([9]), torch.tensor([2])))
    expected = (int(high) >> 1) << 32 | int(low)
    assert derive_seeds(9 + (2 << 32), torch.tensor([3 + 2**32])).tolist() == [expected]


def test_every_bit_of_a_derived_seed_is_fair() -> None:
    """n = 20,000 seeds, 63 bits, each within 4 sigma of one half."""
    seeds = derive_seeds(0, torch.arange(20_000))
    for bit in range(63):
        share = (seeds >> bit & 1).double().mean().item()
        assert within_4_sigma(share, 0.5, 0.5, len(seeds)), bit
