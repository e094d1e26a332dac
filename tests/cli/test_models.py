"""Bundled models are listed with what a user chooses by, and go by their bare names everywhere."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tessella.checkpoints import load_generator, load_tokenizer
from tessella.cli.info import describe
from tessella.cli.main import main
from tessella.cli.models import describe as describe_bundled
from tessella.model_folders import bundled_models


def run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.stdout or result.stderr


def test_every_bundled_model_is_listed() -> None:
    told = json.loads(run("models", "--json"))
    assert sorted(told) == bundled_models()
    generator, tokenizer = told["maskbit-emoji-64"], told["bits-emoji-64"]
    assert generator["parameters"] == load_generator("maskbit-emoji-64").num_parameters()["total"]
    assert generator["tokenizer"] == "bits-emoji-64" and "tokenizer" not in tokenizer
    assert (tokenizer["kind"], tokenizer["bits_per_image"]) == ("tokenizer", 1536)
    assert 7 < tokenizer["megabytes"] < 9
    for facts in told.values():
        assert facts["trained_on"] == "emoji, 1,381 images" and facts["licence"] == "Apache-2.0"
    said = run("models")
    assert said.startswith("ar-emoji-64:\n  kind ") and "  parameters      3,764,928\n" in said


def test_a_card_that_does_not_say_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"parameters": {"total": 3}, "tokens": "few", "bits_per_image": 8}
    monkeypatch.setattr("tessella.model_folders.read_card", lambda folder: facts)
    told = describe_bundled("bits-emoji-64")
    assert told["trained_on"] == told["licence"] == "not stated"


def test_bare_names_are_taken_by_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert describe("maskbit-emoji-64")["kind"] == "generator"
    run("info", "bits-emoji-64")
    run("sample", "--generator", "maskbit-emoji-64", "--num", 1, "--num-steps", 1, "--out", "s")
    assert len(list(Path("s").rglob("*.png"))) >= 1
    run("encode", "s", "--tokenizer", "bits-emoji-64", "--out", "store")
    run("decode", "store", "--tokenizer", "bits-emoji-64", "--out", "again")
    said = run("encode", "s", "--tokenizer", "bits-emoji-46", "--out", "other", code=1)
    assert "did you mean the bundled model bits-emoji-64?" in said
    run("verify", "bits-emoji-64")
    run("verify", "bits-emoji-64", "--store", code=1)
    assert load_tokenizer("bits-emoji-64").origin == "bundled:bits-emoji-64"
