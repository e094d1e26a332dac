"""What a card says of a model is told as it is, and no more."""

from pathlib import Path
from typing import Any

import pytest

from tessella.model_folders import bundled_models, find_folder, read_card, trained_on


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({"data": {"source": "emoji", "images": 1381}}, "emoji, 1,381 images"),
        ({"data": {"source": "photos"}}, "photos"),
        ({"data": "ImageNet"}, "ImageNet"),
        ({"data": {"source": 3}}, "not stated"),
        ({"data": {"images": 3}}, "not stated"),
        ({"data": ["emoji"]}, "not stated"),
        ({"imported": {"format": "maskbit"}}, "not stated"),
        ({}, "not stated"),
        (None, "not stated"),
    ],
)
def test_training_data_in_words(card: dict[str, Any] | None, words: str) -> None:
    assert trained_on(card) == words


def test_bundled_models_say_what_they_learned_from() -> None:
    assert bundled_models() == sorted(bundled_models()) != []
    for name in bundled_models():
        folder = find_folder(name)
        assert isinstance(folder, Path) and trained_on(read_card(folder)).startswith("emoji, 1,381")
