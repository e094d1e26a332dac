"""Pictures in one call: what `generate_images` and `edit` add to `generate`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tessella
from tessella.generators.base import Generator
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


def test_an_edit_keeps_the_tokens_outside(generator: Generator, tmp_path: Path) -> None:
    picture = Image.linear_gradient("L").resize((48, 64))
    picture.save(tmp_path / "picture.png")
    how: dict[str, Any] = {"box": (0, 0, 32, 16), "label": "cat", "num": 2, "seed": 9} | FAST
    edited = draw_edit(generator, tmp_path / "picture.png", **how)
    assert edited.facts == {"label": 1, "drawn_anew": 32, "known_unchanged": True}
    pixels = tessella.read_images(picture, resolution=32)
    known = generator.tokenizer.encode(pixels)
    below = torch.arange(64) >= 32
    assert torch.equal(edited.tokens.indices[:, below], known.indices[:, below].expand(2, -1, -1))
    assert torch.equal(tessella.edit(generator, picture, **how), edited.images)
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:16] = True
    by_mask = tessella.edit(generator, picture, **how | {"box": None, "mask": mask})
    assert torch.equal(by_mask, edited.images)
    shown = Image.fromarray(((~mask).numpy() == 0).astype("uint8") * 255).resize((48, 64))
    assert tessella.edit(generator, picture, **how | {"box": None, "mask": shown}).shape[0] == 2
    for wrong in (mask[:16], mask.float(), mask[None]):
        with pytest.raises(ValueError, match=r"mask: expected a picture or \(32, 32\) bool"):
            tessella.edit(generator, picture, mask=wrong)
    pasted = tessella.edit(generator, picture, **how, paste=True)
    assert torch.equal(pasted[:, :, 16:], pixels[:, :, 16:].expand(2, -1, -1, -1))


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
