"""Small generators for the page."""

from pathlib import Path

import pytest
import torch

from tessella.checkpoints import load_generator
from tessella.generators.build import build_generator
from tessella.generators.conditions import TextConfig
from tessella.generators.masked import MaskBitConfig
from tessella.page.models import Models
from tessella.tests.page.sent import Heard
from tessella.tests.sample.kinds import TRUNK
from tessella.text.words import WordsConfig


@pytest.fixture(scope="session")
def models(folders: tuple[Path, Path]) -> Models:
    """One generator of 32 pixels, 8x8 tokens of 4 bits, three classes."""
    return Models.of({"tiny": load_generator(folders[0])})


@pytest.fixture(scope="session")
def worded(folders: tuple[Path, Path], models: Models) -> Models:
    """The same beside a generator that reads words and has no classes."""
    tiny = models.generator("tiny")
    text = TextConfig(encoder=WordsConfig(max_length=8))
    config = MaskBitConfig(transformer=TRUNK, num_classes=0, text=text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = build_generator(config, tiny.spec).eval()
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    generator.tokenizer = tiny.tokenizer
    return Models.of({"worded": generator, "tiny": tiny})


@pytest.fixture
def job() -> Heard:
    """A job that keeps what it is told."""
    return Heard()
