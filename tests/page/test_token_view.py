"""Tokens for people: reconstruction, weights and colours, and tokens changed by hand."""

import io
from typing import Any

import pytest
import torch

from tessella.data.images import to_pil, to_tensor
from tessella.data.transforms import resize_center_crop
from tessella.metrics.image import psnr
from tessella.page.limits import Limits
from tessella.page.models import Models
from tessella.page.token_view import (
    DecodeWish,
    TokensWish,
    decode_tokens,
    show_tokens,
    token_colours,
)
from tessella.tests.page.sent import Heard, file_of, noise
from tessella.tokens.tokens import Tokens, TokenSpec


@pytest.fixture
def name(models: Models) -> str:
    """The name of the page's tokenizer."""
    return next(iter(models.tokenizers))


def test_a_picture_of_any_size_is_shown_with_its_tokens(
    models: Models, job: Heard, name: str
) -> None:
    picture, tokenizer = noise(90, 50), models.tokenizer(name)
    done = show_tokens(models, TokensWish(tokenizer=name, picture=file_of(picture)), job)
    square = resize_center_crop(picture, 32)
    tokens = tokenizer.encode(to_tensor(square)[None])
    decoded = to_pil(tokenizer.decode(tokens)[0])
    assert [p.tobytes() for p in done["pictures"]] == [square.tobytes(), decoded.tobytes()]
    assert done["codes"] == tokens.indices[0].tolist() and done["length"] is None
    assert (done["size"], done["shape"], done["sizes"]) == ([90, 50], [8, 8], [2, 2, 2, 2])
    assert done["bits"] == 256
    rows = {row[0]: row[1:] for row in done["weights"]}
    expected = psnr(to_tensor(square)[None], to_tensor(decoded)[None]).item()
    assert rows["tokens"] == [32, pytest.approx(expected, abs=0.05)]
    file = io.BytesIO()
    square.save(file, "JPEG", quality=75, optimize=True)
    assert rows["JPEG, quality 75"][0] == len(file.getvalue())
    assert rows["PNG"][1] == 100 and rows["PNG"][0] > rows["JPEG, quality 75"][0]
    assert rows["JPEG, quality 75"][1] > rows["JPEG, quality 10"][1]
    assert set(rows) >= {"WebP, quality 75", "WebP, quality 10"}


def test_a_changed_token_changes_the_picture_where_it_is(
    models: Models, job: Heard, name: str
) -> None:
    shown = show_tokens(models, TokensWish(tokenizer=name, picture=file_of(noise(32, 32))), job)
    same = decode_tokens(models, DecodeWish(tokenizer=name, codes=shown["codes"]), job)
    assert same["pictures"][0].tobytes() == shown["pictures"][1].tobytes()
    assert same["colours"] == shown["colours"]
    codes = [list(row) for row in shown["codes"]]
    codes[0] = [1 - code for code in codes[0]]
    other = decode_tokens(models, DecodeWish(tokenizer=name, codes=codes), job)
    assert other["pictures"][0].tobytes() != same["pictures"][0].tobytes()
    assert other["colours"][0] != same["colours"][0] and other["colours"][1:] == same["colours"][1:]


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        ([], "codes: expected 64 positions of 4"),
        ([[0] * 4] * 63, "codes: expected 64 positions of 4"),
        ([[0] * 3] * 64, "codes: expected 64 positions of 4"),
        ([[0] * 4] * 63 + [[0, 0, 2, 0]], "codes: a code is out of range"),
        ([[0] * 4] * 63 + [[0, 0, 0, -1]], "codes: a code is out of range"),
        ([[0] * 4] * 63 + [[10**30, 0, 0, 0]], "codes: a code is out of range"),
    ],
)
def test_codes_of_another_tokenizer_are_refused(
    models: Models, job: Heard, name: str, codes: list[list[int]], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        decode_tokens(models, DecodeWish(tokenizer=name, codes=codes), job)


def test_lengths_are_for_ordered_tokens(models: Models, job: Heard, name: str) -> None:
    wish = DecodeWish(tokenizer=name, codes=[[0] * 4] * 64, length=3)
    with pytest.raises(ValueError, match="only tokens of an ordered spec have lengths"):
        decode_tokens(models, wish, job)


def test_too_many_tokens_are_not_shown(models: Models, job: Heard, name: str) -> None:
    wish = TokensWish(tokenizer=name, picture="")
    with pytest.raises(ValueError, match="it has 64 tokens, more than the 63 that this page"):
        show_tokens(models, wish, job, Limits(tokens=63))


def test_an_upload_that_is_no_picture_is_refused(models: Models, job: Heard, name: str) -> None:
    with pytest.raises(ValueError, match="picture: no picture"):
        show_tokens(models, TokensWish(tokenizer=name, picture="AAAA"), job)


def colours(indices: Any, sizes: tuple[int, ...]) -> list[list[int]]:
    rows = torch.tensor(indices)[None]
    found = token_colours(Tokens(rows, TokenSpec((rows.shape[1],), sizes)))
    assert all(len(colour) == 7 and colour[0] == "#" for colour in found)
    return [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in found]


def test_equal_tokens_have_equal_colours_and_near_bits_near_ones() -> None:
    zero, one, opposite = [0] * 24, [1] + [0] * 23, [1] * 24
    first, again, near, far = colours([zero, zero, one, opposite], (2,) * 24)

    def distance(a: list[int], b: list[int]) -> int:
        return sum(abs(x - y) for x, y in zip(a, b, strict=True))

    assert first == again
    assert 0 < distance(first, near) < distance(first, far)
    assert [a + b for a, b in zip(first, far, strict=True)] == [270] * 3  # opposite signs


def test_codes_that_are_no_bits_have_colours_of_their_own() -> None:
    rows = [[i, j] for i in range(5) for j in range(9)]
    found = colours(rows, (5, 9))
    assert len({tuple(colour) for colour in found}) == 45
    assert colours([[1, 2], [1, 2]], (5, 9))[0] == colours([[1, 2], [1, 2]], (5, 9))[1]
