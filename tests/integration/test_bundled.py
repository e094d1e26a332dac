"""Every shipped generator is what its card and its recipe say, and draws."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from tessella.checkpoints import load_generator
from tessella.config import build_config, load_config
from tessella.sample.generate import generate
from tessella.train.generator_recipe import TrainGeneratorConfig

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "assets" / "models"
GENERATORS = [
    folder.name
    for folder in sorted(MODELS.iterdir())
    if json.loads((folder / "card.json").read_text(encoding="utf-8"))["kind"] == "generator"
]


def test_there_are_some() -> None:
    assert {"maskbit-emoji-64", "bld-emoji-64", "bfn-emoji-64"} <= set(GENERATORS)


@pytest.mark.parametrize("name", GENERATORS)
def test_it_is_what_its_recipe_makes(name: str) -> None:
    """The config file that the card's command names: network, sampling, steps, tokenizer."""
    generator = load_generator(f"bundled:{name}")
    assert generator.card is not None
    (file,) = (word for word in generator.card["command"].split() if word.endswith(".yaml"))
    recipe = load_config(TrainGeneratorConfig, ROOT / file)
    trained = dataclasses.replace(recipe.generator, num_classes=generator.num_classes)
    assert generator.config == trained
    assert generator.card["steps"] == recipe.run.steps
    # A field that a later version added is not in the card, and has its default.
    assert build_config(type(recipe.sampling), generator.card["sampling"]) == recipe.sampling
    assert generator.card["tokenizer"]["path"] == recipe.tokenizer
    assert generator.num_parameters() == generator.card["parameters"]


@pytest.mark.parametrize("name", GENERATORS)
def test_it_draws_what_it_was_asked_for(name: str) -> None:
    """Mean colours of faces and flags: a face on white is yellow, so blue lacks."""
    generator = load_generator(f"bundled:{name}")
    face, flag = (generator.classes.index(word) for word in ("face", "flag"))
    steps = {} if generator.config.type == "ar" else {"num_steps": 8}
    tokens, again = (generate(generator, [face] * 4 + [flag] * 4, **steps) for _ in range(2))
    images = generator.tokenizer.decode(tokens)
    assert torch.equal(tokens.indices, again.indices)
    centres = images[:4, :, 24:40, 24:40].mean((0, 2, 3))
    assert centres[0] - centres[2] > 0.4
    assert (images[4:, :, 28:36, 4:60].mean((1, 2, 3)) < images[4:, :, :4].mean((1, 2, 3))).all()
