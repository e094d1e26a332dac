"""Pictures in one call: what `generate_images` and `edit` add to `generate`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tessella
from tessella.data.images import to_tensor
from tessella.generators.base import Generator
from tessella.sample.masks import box_mask
from tessella.sample.pictures import draw_edit

Folders = tuple[Path, Path]
FAST = {"num_steps": 2}


@pytest.fixture(scope="module")
def generator(folders: Folders) -> Generator:
    return tessella.load_generator(folders[0])


def test_pictures_are_the_decoded_tokens(generator: Generator) -> None:
    tokens = tessella.generate(generator, [1, 2, -1], seeds=[5, 6, 7], **FAST)
    expected = generator.tokenizer.decode(tokens)
    images = tessella.generate_images(generator, [1, 2, -1], seeds=[5, 6, 7], batch_size=2, **FAST)
    assert torch.allclose(images, expected, atol=1e-5) and images.shape == (3, 3, 32, 32)


def test_classes_are_named(generator: Generator) -> None:
    by_label = tessella.generate_images(generator, [1, 2], seeds=[3, 4], **FAST)
    by_name = tessella.generate_images(generator, classes=["cat", "ship"], seeds=[3, 4], **FAST)
    assert torch.equal(by_label, by_name)
    one_name = tessella.generate_images(generator, classes="cat", seeds=[3, 4], **FAST)
    assert torch.equal(one_name[0], by_label[0]) and len(one_name) == 2
    assert len(tessella.generate_images(generator, classes="cat", num=3, **FAST)) == 3
    with pytest.raises(ValueError, match="give labels or classes, not both"):
        tessella.generate_images(generator, [1], classes=["cat"])
    with pytest.raises(ValueError, match="classes: expected names, found 1"):
        tessella.generate_images(generator, classes=[1])
    with pytest.raises(ValueError, match="class 'kat': unknown; did you mean cat"):
        tessella.generate_images(generator, classes="kat")


def test_an_edit_changes_the_region_alone(generator: Generator, tmp_path: Path) -> None:
    """Of a picture that is no square and larger than the tokenizer's: in its size and place."""
    picture = Image.linear_gradient("L").resize((50, 70)).convert("RGB")
    picture.save(tmp_path / "picture.png")
    how: dict[str, Any] = {"box": (30, 40, 46, 52), "label": "cat", "num": 2, "seed": 9} | FAST
    edited = draw_edit(generator, tmp_path / "picture.png", **how)
    facts = dict(edited.facts)
    assert facts.pop("drawn_anew") == 16 + facts.pop("undecided")
    assert facts == {
        "label": 1,
        "trained_on": "not stated",
        "known_unchanged": True,
        "window": [18, 30, 32],
        "size": "50x70",
    }
    own = to_tensor(picture)
    region = box_mask((30, 40, 46, 52), 70, 50)
    assert edited.images.shape == (2, 3, 70, 50)
    assert torch.equal(edited.images[:, :, ~region], own[:, ~region].expand(2, -1, -1))
    assert not torch.equal(edited.images[0, :, region], own[:, region])
    assert not torch.equal(edited.images[0], edited.images[1])

    by_mask = {"box": None, "mask": region}
    assert torch.equal(tessella.edit(generator, picture, **how | by_mask), edited.images)
    shown = Image.fromarray(region.numpy().astype("uint8") * 255)
    by_mask = {"box": None, "mask": shown}
    assert torch.equal(tessella.edit(generator, picture, **how | by_mask), edited.images)
    for wrong in (region[:16], region.float(), region.T):
        with pytest.raises(ValueError, match=r"mask: expected a picture or \(70, 50\) bool"):
            tessella.edit(generator, picture, mask=wrong)
    square = draw_edit(generator, picture, **how, paste=False)
    assert square.facts["size"] == "32x32" and square.tokens.equal(edited.tokens)
    assert torch.equal(square.images, generator.tokenizer.decode(edited.tokens))


def test_what_is_drawn_does_not_depend_on_what_it_replaces(generator: Generator) -> None:
    """Of a photograph whose window is resized, and of one that the window exceeds."""
    picture = Image.linear_gradient("L").resize((90, 60)).convert("RGB")
    for box in ((20, 10, 50, 40), (0, 20, 90, 30)):
        other = picture.copy()
        other.paste((255, 0, 128), box)
        one, two = (
            draw_edit(generator, given, box=box, label=0, num=1, **FAST)
            for given in (picture, other)
        )
        assert one.tokens.equal(two.tokens) and one.facts == two.facts
        assert torch.equal(one.images, two.images)


def test_an_edit_says_what_the_model_was_trained_on() -> None:
    bundled = tessella.load_generator("bundled:maskbit-emoji-64")
    photograph = Image.linear_gradient("L").convert("RGB")
    for how in ({"box": (0, 0, 9, 9)}, {"variation": 0.1}):
        edited = draw_edit(bundled, photograph, num_steps=1, **how)
        assert edited.facts["trained_on"] == "emoji, 1,381 images"


def test_the_way_from_one_class_to_another(generator: Generator) -> None:
    edited = draw_edit(generator, label="cat", to="ship", num=3, **FAST)
    assert edited.facts["labels"] == [1, 2] and edited.facts["shares"] == [0.0, 0.5, 1.0]
    ends = tessella.generate_images(generator, [1, 2], seeds=[0, 0], **FAST)
    assert torch.allclose(edited.images[[0, 2]], ends, atol=1e-4)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "image: no picture given; it can be left out only with to"),
        ({"image": 1}, "give one of mask, box, variation and enrich"),
        ({"image": 1, "box": (0, 0, 8, 8), "enrich": 1}, "give one of mask, box"),
        ({"to": 1}, "to needs label: the class to start from"),
        ({"label": 0, "to": 1, "num": 1}, "num 1: from one class to another"),
        ({"image": 1, "variation": 0.5, "num": 0}, "num: expected a whole number of at least 1"),
        ({"image": 1, "box": (0, 0, 8)}, "box: expected four whole numbers of pixels"),
        ({"image": 1, "box": (0, 0, 8.5, 8)}, "box: expected four whole numbers of pixels"),
        ({"image": 1, "variation": 0.5, "outside": True}, "outside goes with box"),
        ({"image": 1, "variation": 0.5, "paste": True}, "paste goes with mask or box"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    generator: Generator, how: dict[str, Any], message: str
) -> None:
    if "image" in how:
        how = how | {"image": Image.new("RGB", (32, 32))}
    with pytest.raises(ValueError, match=message):
        tessella.edit(generator, **how)
