"""Statistics of tokens at several levels at once, and the picture of their bits."""

import pytest
import torch

from tessella.metrics.token_statistics import TokenStatistics
from tessella.tokens.tokens import Tokens, TokenSpec

BITS = TokenSpec(shape=(4, 4), codebook_sizes=(2,) * 4)


def tokens(seed: int = 0) -> Tokens:
    """Bits of 64 images; bit 1 equals bit 0, bit 2 is its opposite, bit 3 is free."""
    rng = torch.Generator().manual_seed(seed)
    first, last = torch.randint(0, 2, (2, 64, 16), generator=rng)
    return Tokens(torch.stack([first, first, 1 - first, last], 2), BITS)


def test_bits_that_hang_together() -> None:
    statistics = TokenStatistics(BITS)
    statistics.update(tokens())
    values = statistics.compute()
    assert values["bit_correlation_max_abs"] == pytest.approx(1)
    assert values["entropy_bits"] == pytest.approx(2, abs=0.01)
    assert values["bits_per_image"] == 64
    picture = statistics.correlation_picture()
    assert picture is not None and picture.size == (384, 384)
    at = {(x, y): picture.getpixel((x * 96 + 48, y * 96 + 48)) for x in range(4) for y in range(4)}
    assert at[0, 0] == (255, 255, 255)
    assert at[0, 1] == at[1, 0] == (255, 0, 0)
    assert at[0, 2] == at[1, 2] == (0, 0, 255)
    assert min(at[0, 3]) > 230


def test_merge_equals_one_object() -> None:
    whole, first, second = (TokenStatistics(BITS) for _ in range(3))
    for part, seed in ((first, 0), (second, 1)):
        part.update(tokens(seed))
        whole.update(tokens(seed))
    second.merge(first)
    assert second.compute() == whole.compute()


def test_codes_that_are_no_bits_have_no_picture() -> None:
    spec = TokenSpec(shape=(2, 2), codebook_sizes=(5,))
    statistics = TokenStatistics(spec)
    statistics.update(Tokens(torch.randint(0, 5, (3, 4, 1)), spec))
    assert statistics.correlation_picture() is None
    assert "perplexity" in statistics.compute()
