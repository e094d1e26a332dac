"""The first minute: words where the model reads them, classes, bytes of files, an edit."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tessella.checkpoints import load_generator
from tessella.demo import shipped
from tessella.demo.shipped import colours_of, draw_rounds, encode_picture, inpaint
from tessella.page.file_sizes import FILES
from tessella.tokens.tokens import Tokens, TokenSpec


def test_a_model_without_text_draws_by_classes_alone(with_classes: Path) -> None:
    words, classes = draw_rounds(load_generator(with_classes))
    assert not words and [one.name for one in classes] == ["face", "animal"]
    assert [len(one.pictures) for one in classes] == [2, 2]
    first, second = (np.asarray(picture) for picture in classes[0].pictures)
    assert (first != second).any()


def test_a_model_with_text_draws_by_words_as_well(
    with_words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "PROMPTS", ("red apple", "кот", "sad cat"))
    monkeypatch.setattr(shipped, "_SECONDS", 0.0)
    words, classes = draw_rounds(load_generator(with_words))
    assert [one.name for one in words] == ["red apple", "sad cat"]  # the other cannot be read
    assert [one.name for one in classes] == ["face", "animal"]
    assert {len(one.pictures) for one in (*words, *classes)} == {1}  # there is no time for more


def test_bytes_are_those_of_the_files(with_classes: Path, tmp_path: Path) -> None:
    tokenizer = load_generator(with_classes).tokenizer
    noise = torch.randint(256, (70, 300, 3), generator=torch.Generator().manual_seed(0))
    encoded = encode_picture(tokenizer, Image.fromarray(noise.byte().numpy()))
    assert encoded.original.size == (256, 48) and encoded.shape == (3, 16)  # 256 x 60, cut
    assert encoded.bits == 3 * 16 * 4 and encoded.tokens.size == (16, 3)
    tokens, *files = encoded.weights
    assert (tokens.name, tokens.num_bytes) == ("tokens", 24)
    assert [one.name for one in files] == list(FILES)
    for one, how in zip(files, FILES.values(), strict=True):
        encoded.original.save(tmp_path / "file", **how)
        assert one.num_bytes == (tmp_path / "file").stat().st_size, one.name
    assert files[0].decibels == 100.0 and 0 < files[2].decibels < files[1].decibels < 100
    difference = np.asarray(encoded.original, float) - np.asarray(tokens.picture, float)
    expected = 10 * math.log10(255**2 / np.square(difference).mean())
    assert tokens.decibels == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("size", [(5, 3), (1, 1), (2000, 20)])
def test_a_picture_that_is_too_small_is_the_square_of_the_tokenizer(
    with_classes: Path, size: tuple[int, int]
) -> None:
    tokenizer = load_generator(with_classes).tokenizer
    encoded = encode_picture(tokenizer, Image.new("RGB", size, "red"))
    assert encoded.original.size == (64, 64) and encoded.shape == (4, 4)


@pytest.mark.parametrize(("most", "tried"), [(1, [1]), (2, [1, 2]), (12, [1, 2, 4, 8, 12])])
def test_the_number_of_threads_is_the_fastest(
    with_classes: Path, monkeypatch: pytest.MonkeyPatch, most: int, tried: list[int]
) -> None:
    """A machine on which four threads are fastest, and one batch is disturbed."""
    tokenizer, used = load_generator(with_classes).tokenizer, []
    clock, disturbed = [0.0], [7]
    monkeypatch.setattr(shipped.torch, "set_num_threads", used.append)
    monkeypatch.setattr(shipped.time, "perf_counter", lambda: clock[0])

    def encode(images: torch.Tensor) -> None:
        clock[0] += 1 + abs(used[-1] - 4) + (len(used) in disturbed) * 100

    monkeypatch.setattr(tokenizer, "encode", encode)
    fastest = min(most, 4)
    assert shipped.fastest_threads(tokenizer, most) == fastest
    assert used == [*tried * 3, fastest]


@pytest.mark.parametrize(
    ("sizes", "codes", "colour"),
    [
        ((2,) * 24, [1] * 8 + [0] * 15 + [1], (255, 0, 1)),
        ((256,), [255], (255, 255, 255)),
        ((3, 3), [1, 1], (127, 255, 255)),
    ],
)
def test_colours_are_made_of_the_codes(
    sizes: tuple[int, ...], codes: list[int], colour: tuple[int, int, int]
) -> None:
    tokens = Tokens(torch.tensor([[codes]]), TokenSpec((1, 1), sizes))
    assert colours_of(tokens, (1, 1)).getpixel((0, 0)) == colour


@pytest.mark.parametrize(("models", "name"), [("with_classes", "face"), ("with_words", "smirking")])
def test_half_a_picture_is_kept_and_half_drawn(
    models: str, name: str, request: pytest.FixtureRequest
) -> None:
    edited = inpaint(load_generator(request.getfixturevalue(models)), num=2)
    original = np.asarray(edited.original)
    assert len(edited.pictures) == 2 and edited.name.startswith(name)
    for picture in map(np.asarray, edited.pictures):
        assert (picture[:32] == original[:32]).all() and (picture[32:] != original[32:]).any()
    assert (np.asarray(edited.hidden)[32:] == 150).all()
