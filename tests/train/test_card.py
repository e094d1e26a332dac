"""The card of a trained model says what is known, and its folder holds what may be seen."""

import json
from typing import Any

import torch

from tessella.checkpoints import load_tokenizer
from tessella.tokenizers.probe import read_probe, synthetic_probe, verify_probe


def test_the_licence_is_not_stated_and_photographs_are_named(debug_run: Any) -> None:
    card = json.loads((debug_run.out / "tokenizer" / "card.json").read_text())
    assert card["licence"] == "not stated"
    assert read_probe(debug_run.out / "tokenizer", card["resolution"])[1] == "emoji (val)"
    assert "holds 8 images of emoji (val)" in debug_run.output
    assert "run.probe_images=false stores synthetic ones" in debug_run.output


def test_a_licence_and_synthetic_images_may_be_asked_for(script: Any, tmp_path: Any) -> None:
    words = ("run.licence=CC0", "run.probe_images=false", "run.steps=1", "run.evaluate_every=1")
    ended = script(tmp_path / "run", *words)
    assert ended.statuses == [0], ended.output
    folder = tmp_path / "run" / "tokenizer"
    tokenizer = load_tokenizer(folder)
    assert tokenizer.card is not None and tokenizer.card["licence"] == "CC0"
    images, source = read_probe(folder, tokenizer.resolution)
    assert source == "synthetic"
    assert torch.equal(images, synthetic_probe(tokenizer.resolution)[0])
    assert verify_probe(tokenizer, folder).largest_difference < 1e-9
    assert "holds 8 synthetic images" in ended.output
