"""Masks of pixels and of tokens: what `generate` takes for the one or the other."""

from typing import Any

import pytest
import torch

from tessella.sample.generate import generate
from tessella.sample.masks import box_mask, mask_rows
from tessella.tests.sample.kinds import GRID, make
from tessella.tokens.tokens import Tokens, TokenSpec

WIDE = TokenSpec((2, 4), (2,))


def test_a_box_in_a_picture_that_is_no_square() -> None:
    mask = box_mask((5, 1, 7, 3), 4, 8)
    assert mask.shape == (4, 8) and mask.sum() == 4 and mask[1:3, 5:7].all()
    with pytest.raises(ValueError, match="0 <= left < right <= 8 and 0 <= top < bottom <= 4"):
        box_mask((0, 0, 8, 5), 4, 8)


@pytest.mark.parametrize(
    ("shape", "marked", "expected"),
    [
        ((6, 12), (3, 11), [7]),
        ((2, 4), (1, 0), [4]),  # the grid itself
        ((1, 6, 12), (0, 2, 3), [1]),
        ((3, 6, 12), (1, 0, 0), None),
    ],
)
def test_pixels_hide_the_token_of_their_cell(shape: Any, marked: Any, expected: Any) -> None:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[marked] = True
    if expected is None:
        mask[0, 5, 11] = mask[2, 5, 0] = True
        assert mask_rows(mask, 3, WIDE).nonzero().tolist() == [[0, 7], [1, 0], [2, 4]]
        return
    rows = mask_rows(mask, 3, WIDE)
    assert rows.shape == (3, 8)
    assert [row.nonzero().flatten().tolist() for row in rows] == [expected] * 3


@pytest.mark.parametrize("shape", [(8,), (1, 8), (3, 8)])
def test_rows_of_tokens_stay_rows_of_tokens(shape: Any) -> None:
    mask = torch.arange(8) > 4
    assert torch.equal(mask_rows(mask.expand(shape), 3, WIDE), mask.expand(3, 8))


@pytest.mark.parametrize("shape", [(7,), (2, 8), (4, 4), (6, 6), (3, 8, 4), (2, 4, 8), ()])
def test_other_shapes_are_refused(shape: Any) -> None:
    with pytest.raises(
        ValueError, match=r"expected \(N,\) or \(1 or 3, N\) with N = 8, or \(2 k, 4"
    ):
        mask_rows(torch.ones(shape, dtype=torch.bool), 3, WIDE)


def test_a_sequence_has_no_pixels() -> None:
    with pytest.raises(ValueError, match=r"with N = 8, found \(4, 4\)"):
        mask_rows(torch.ones(4, 4, dtype=torch.bool), 3, TokenSpec((8,), (2,)))


def test_generate_takes_a_mask_of_pixels() -> None:
    generator = make("maskbit")
    known = Tokens(torch.zeros(2, 16, 6, dtype=torch.int64), GRID)
    pixels = torch.zeros(32, 32, dtype=torch.bool)
    pixels[7, 8] = pixels[31, 31] = True
    tokens = torch.zeros(16, dtype=torch.bool)
    tokens[1] = tokens[15] = True
    drawn = [generate(generator, [0, 1], known=known, mask=mask, num_steps=2)
             for mask in (pixels, tokens)]  # fmt: skip
    assert drawn[0].equal(drawn[1]) and not drawn[0].equal(known)
    with pytest.raises(ValueError, match="nothing is marked"):
        generate(generator, [0], known=known[:1], mask=pixels & False)
