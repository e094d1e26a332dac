"""What an edit hides and what it keeps, with every kind of generator; mixtures of classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tessella.generators.base import Generator
from tessella.generators.build import build_generator
from tessella.sample import edit
from tessella.sample.edit import (
    between,
    box_mask,
    enrich,
    read_masked_image,
    token_mask,
    variation_mask,
)
from tessella.sample.generate import generate
from tessella.sample.samplers import SAMPLERS
from tessella.tests.sample.kinds import GENERATORS, GRID, make
from tessella.tokenizers.base import Tokenizer
from tessella.tokens.tokens import Tokens, TokenSpec

SPEC = TokenSpec((8, 8), (2,) * 4)


def class_table(generator: Generator) -> nn.Embedding:
    """The embeddings of its classes."""
    tables = [getattr(part, "class_embedding", None) for part in generator.modules()]
    (table,) = [table for table in tables if isinstance(table, nn.Embedding)]
    return table


def random_tokens(batch: int, spec: TokenSpec = GRID) -> Tokens:
    rng = torch.Generator().manual_seed(5)
    shape = (batch, spec.num_tokens, spec.num_codebooks)
    return Tokens(torch.randint(2, shape, generator=rng), spec)


def write(path: Path, light: np.ndarray) -> Path:
    """A mask file, white where `light` is True."""
    Image.fromarray(light.astype(np.uint8) * 255).save(path)
    return path


def cells(rows: slice, columns: slice) -> Tensor:
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[rows, columns] = True
    return expected.flatten()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (128, 128), (10, 200, 90)).save(path)
    return path


@pytest.mark.parametrize("size", [16, 20, 32, 64, 100, 128, 300])
def test_a_mask_on_token_borders_hides_just_these_tokens(size: int, tmp_path: Path) -> None:
    """Whatever the size of the picture: a smooth filter would leak into the next token."""
    Image.new("RGB", (size, size)).save(tmp_path / "picture.png")
    light = np.zeros((size, size), bool)
    light[size // 4 : size // 2, size // 2 :] = True
    mask_path = write(tmp_path / "mask.png", light)
    pixels, mask = read_masked_image(tmp_path / "picture.png", mask_path, 32)
    assert pixels.shape == (3, 32, 32) and mask.shape == (32, 32) and mask.dtype == torch.bool
    assert torch.equal(token_mask(mask, SPEC), cells(slice(2, 4), slice(4, 8)))


def test_a_thin_line_is_not_lost(picture: Path, tmp_path: Path) -> None:
    light = np.zeros((128, 128), bool)
    light[:, 50] = True
    _, mask = read_masked_image(picture, write(tmp_path / "mask.png", light), 32)
    assert torch.equal(token_mask(mask, SPEC), cells(slice(0, 8), slice(3, 4)))


def test_picture_and_mask_are_cropped_alike(tmp_path: Path) -> None:
    """64x32 to 32x32: the outer quarters fall away; the mask marks what is white in the picture."""
    light = np.zeros((32, 64), bool)
    light[:8, 16:24] = True
    write(tmp_path / "picture.png", light)
    pixels, mask = read_masked_image(
        tmp_path / "picture.png", write(tmp_path / "mask.png", light), 32
    )
    assert torch.equal(mask, pixels[0] > 0)
    assert torch.equal(token_mask(mask, SPEC), cells(slice(0, 2), slice(0, 2)))


@pytest.mark.parametrize(("grey", "hidden"), [(0, False), (127, False), (128, True), (255, True)])
def test_grey_is_light_from_128(picture: Path, tmp_path: Path, grey: int, hidden: bool) -> None:
    Image.new("L", (128, 128), grey).save(tmp_path / "mask.png")
    _, mask = read_masked_image(picture, tmp_path / "mask.png", 32)
    assert mask.all() if hidden else not mask.any()


def test_without_a_mask_there_is_none(picture: Path) -> None:
    pixels, mask = read_masked_image(picture, None, 32)
    assert mask is None
    expected = torch.tensor([10, 200, 90]) / 127.5 - 1
    torch.testing.assert_close(pixels[:, 5, 5], expected, rtol=0, atol=1e-6)


def test_a_mask_of_another_size_is_refused(picture: Path, tmp_path: Path) -> None:
    write(tmp_path / "mask.png", np.ones((128, 127), bool))
    with pytest.raises(ValueError, match="the mask is 127x128, the image 128x128"):
        read_masked_image(picture, tmp_path / "mask.png", 32)


def test_files_that_are_no_pictures_are_refused(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no")
    for image, mask in ((tmp_path / "broken.png", None), (picture, tmp_path / "broken.png")):
        with pytest.raises(ValueError, match=r"broken\.png"):
            read_masked_image(image, mask, 32)


def test_boxes() -> None:
    mask = box_mask((8, 4, 16, 32), 32)
    assert mask.sum() == 8 * 28
    assert torch.equal(token_mask(mask, SPEC), cells(slice(1, 8), slice(2, 4)))
    assert torch.equal(box_mask((8, 4, 16, 32), 32, outside=True), ~mask)
    assert box_mask((0, 0, 32, 32), 32).all()
    touched = box_mask((7, 0, 9, 1), 32)  # one pixel of each of two tokens
    assert torch.equal(token_mask(touched, SPEC), cells(slice(0, 1), slice(1, 3)))


@pytest.mark.parametrize(
    "box", [(8, 0, 8, 4), (0, 5, 4, 4), (-1, 0, 4, 4), (0, 0, 33, 4), (0, 0, 4, 33)]
)
def test_boxes_that_do_not_fit_are_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected 0 <= left < right <= 32"):
        box_mask(box, 32)


@pytest.mark.parametrize(
    ("mask", "spec", "message"),
    [
        (torch.zeros(32, 32).bool(), SPEC, "nothing is marked"),
        (torch.ones(32, 32).bool(), TokenSpec((64,), (4,)), "needs a grid of tokens; 64 tokens"),
        (torch.ones(32, 30).bool(), SPEC, "32x30 pixels are no multiple of 8x8 cells"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask: Tensor, spec: TokenSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_mask(mask, spec)


def test_cells_of_a_grid_that_is_no_square() -> None:
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[7, 4] = True
    expected = torch.zeros(2, 3, dtype=torch.bool)
    expected[1, 1] = True
    assert torch.equal(token_mask(mask, TokenSpec((2, 3), (4,))), expected.flatten())


@pytest.mark.parametrize(
    ("share", "count"), [(1e-9, 1), (0.01, 1), (0.25, 16), (0.5, 32), (0.99, 63), (1.0, 64)]
)
def test_a_variation_hides_its_share(share: float, count: int) -> None:
    mask = variation_mask(torch.arange(5), SPEC, share)
    assert mask.shape == (5, 64) and mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [count] * 5


def test_variations_belong_to_their_seeds() -> None:
    seeds = torch.arange(400)
    mask = variation_mask(seeds, SPEC, 0.25)
    assert torch.equal(variation_mask(seeds[7:9], SPEC, 0.25), mask[7:9])
    assert mask.unique(dim=0).shape[0] == 400
    # n = 400 images, every position hidden with probability 1/4 within 4 sigma
    sigma = (0.25 * 0.75 / 400) ** 0.5
    assert (mask.float().mean(0) - 0.25).abs().max() < 4 * sigma


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, float("nan")])
def test_shares_that_are_impossible_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="expected a share above 0 up to 1"):
        variation_mask(torch.arange(2), SPEC, share)


def test_every_kind_of_generator_is_tested_here() -> None:
    assert {config.type for config, _ in GENERATORS.values()} == set(SAMPLERS)


@pytest.mark.parametrize("kind", GENERATORS)
def test_known_bits_never_change(kind: str) -> None:
    """Of boxes, what is around them, and variations, in batches of several masks."""
    generator, knobs = make(kind), GENERATORS[kind][1]
    box = token_mask(box_mask((0, 2, 3, 4), 4), GRID)
    seeds, known = torch.arange(4), random_tokens(4)
    mask = torch.stack([box, ~box, *variation_mask(seeds[2:], GRID, 0.5)])
    labels, knobs = [0, 1, 2, -1], {"guidance": 2.0} | knobs
    found = generate(generator, labels, seeds=seeds, known=known, mask=mask, **knobs)
    assert torch.equal(found.bits()[~mask], known.bits()[~mask])
    assert not torch.equal(found.bits()[mask], known.bits()[mask])


@pytest.mark.parametrize("kind", GENERATORS)
def test_enriching_draws_every_token_once_in_each_repeat(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter at a time, one place in every cell of 2x2, and what is not in it stays."""
    generator, knobs = make(kind), GENERATORS[kind][1]
    turns: list[tuple[Tensor, Tensor]] = []

    def spy(*given: Any, known: Tokens, mask: Tensor, seeds: Tensor, **rest: Any) -> Tokens:
        drawn = generate(*given, known=known, mask=mask, seeds=seeds, **rest)
        kept = ~mask.expand(len(drawn), -1)
        assert torch.equal(drawn.bits()[kept], known.indices.expand(len(drawn), -1, -1)[kept])
        turns.append((mask, seeds))
        return drawn

    monkeypatch.setattr(edit, "generate", spy)
    seeds, picture = torch.tensor([3, 11, 2**40]), random_tokens(1)
    found = enrich(generator, picture, [0, 1, -1], seeds=seeds, repeats=2, batch_size=2, **knobs)
    masks = torch.stack([mask for mask, _ in turns]).view(2, 4, 3, 4, 4)
    assert (masks.sum(1) == 1).all()
    inside = masks.view(2, 4, 3, 2, 2, 2, 2).transpose(4, 5).flatten(5)  # cells, places in one
    assert (inside.sum(-1) == 1).all() and (inside == inside[..., :1, :1, :]).all()
    assert not torch.equal(masks[0], masks[1]), "the order of a repeat"
    assert not torch.equal(masks[:, :, 0], masks[:, :, 1]), "the order of an image"
    assert torch.cat([seeds for _, seeds in turns]).unique().numel() == 8 * 3
    monkeypatch.undo()
    assert not torch.equal(found.indices[0], found.indices[1])
    alone = enrich(generator, picture, [-1], seeds=seeds[2:], repeats=2, **knobs)
    assert alone.equal(found[2:])


def test_turns_of_enriching_draw_other_numbers(oracle: Callable[..., Any]) -> None:
    """Fair coins have nothing to do with those of the repeat before: half agree, 4 sigma."""
    coins = oracle(TokenSpec((4, 4), (2,)), lambda call: torch.zeros(*call.indices.shape, 2))
    tokens = Tokens(torch.zeros(300, 16, 1, dtype=torch.int64), coins.spec)
    once, twice = (
        enrich(coins, tokens, seeds=range(300), repeats=repeats, num_steps=1, batch_size=300)
        for repeats in (1, 2)
    )
    agree = (once.indices == twice.indices).float().mean().item()
    assert agree == pytest.approx(0.5, abs=4 * 0.5 / (300 * 16) ** 0.5)
    assert once.indices.float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / 4800**0.5)


def test_enriching_covers_grids_of_odd_sides(oracle: Callable[..., Any]) -> None:
    """Every position is redrawn by a generator that always says 1."""
    spec = TokenSpec((3, 5), (2,))
    ones = oracle(spec, lambda call: torch.tensor([-30.0, 30.0]).expand(*call.indices.shape, 2))
    tokens = Tokens(torch.zeros(1, 15, 1, dtype=torch.int64), spec)
    assert (enrich(ones, tokens, seeds=[1], repeats=1, num_steps=1).indices == 1).all()


@pytest.mark.parametrize("shape", [(16,), (1, 4), (2, 2, 2)])
def test_what_has_no_quarters_is_not_enriched(shape: tuple[int, ...]) -> None:
    spec = TokenSpec(shape, (2,) * 6)
    with pytest.raises(ValueError, match="expected a grid of at least 2x2 tokens"):
        enrich(make("maskbit", spec), random_tokens(1, spec), seeds=[0])
    with pytest.raises(ValueError, match="repeats: expected at least 1, found 0"):
        enrich(make("maskbit"), random_tokens(1), seeds=[0], repeats=0)


@pytest.mark.parametrize("kind", GENERATORS)
def test_from_one_class_to_another(kind: str) -> None:
    """The ends are the classes, "no label" stays what it was, and a mixture draws what a class
    draws whose embedding is overwritten with it."""
    generator, knobs = make(kind), GENERATORS[kind][1]
    mixed = between(generator, 2, 0, 5)
    assert mixed.num_classes == 5 and generator.num_classes == 3
    draw = {"seeds": [7] * 3, "guidance": 2.0, **knobs}
    plain = generate(generator, [2, 0, -1], **draw)
    assert plain.indices.unique(dim=0).shape[0] == 3
    assert generate(mixed, [0, 4, -1], **draw).equal(plain)
    other = make(kind)
    with torch.no_grad():
        rows = class_table(other).weight
        rows[1] = 0.25 * rows[2] + 0.75 * rows[0]
    draw["seeds"] = [8] * 3
    expected = generate(other, [1, 2, -1], **draw)
    assert generate(mixed, [3, 0, -1], **draw).equal(expected)
    draw["seeds"] = [7] * 3
    assert generate(generator, [2, 0, -1], **draw).equal(plain), "the original is as it was"
    own = {id(parameter) for parameter in generator.parameters()}
    new = [name for name, part in mixed.named_parameters() if id(part) not in own]
    assert len(new) == 1 and new[0].endswith("class_embedding.weight")
    with pytest.raises(ValueError, match="expected 0 to 4, or -1 for none, found"):
        generate(mixed, [5], **knobs)


def test_a_generator_of_mixtures_has_the_tokenizer_of_its_own() -> None:
    class Named(Tokenizer):
        spec = GRID

    generator = make("maskgit")
    generator.tokenizer, generator.classes = Named(), ("cat", "dog", "ship")
    mixed = between(generator, 0, 2, 4)
    assert mixed.tokenizer is generator.tokenizer
    assert mixed.classes[1:3] == ("0.6667 cat + 0.3333 ship", "0.3333 cat + 0.6667 ship")
    assert generator.classes == ("cat", "dog", "ship")


def test_a_generator_of_mixtures_is_a_model_of_its_own() -> None:
    """Its config builds what its weights fit, and what it draws is not by the original's name."""
    generator = make("bigr").to(torch.float16)
    generator.fingerprint = "beef"
    mixed = between(generator, 0, 2, 4)
    assert class_table(mixed).weight.dtype == torch.float16
    shared = {id(buffer) for buffer in generator.buffers()}
    assert shared and all(id(buffer) in shared for buffer in mixed.buffers())
    assert (generator.fingerprint, mixed.fingerprint) == ("beef", None)
    assert (generator.config.num_classes, mixed.config.num_classes) == (3, 4)
    build_generator(mixed.config, mixed.spec).load_state_dict(mixed.state_dict())
