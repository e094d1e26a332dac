"""A page of one small generator."""

from pathlib import Path

import pytest

from tessella.checkpoints import load_generator
from tessella.page.models import Models
from tessella.tests.page.sent import Heard


@pytest.fixture(scope="session")
def models(folders: tuple[Path, Path]) -> Models:
    """One generator of 32 pixels, 8x8 tokens of 4 bits, three classes."""
    return Models.of({"tiny": load_generator(folders[0])})


@pytest.fixture
def job() -> Heard:
    """A job that keeps what it is told."""
    return Heard()
