"""A model that was loaded can be saved again, and the folder is whole whatever else happens."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tessella import model_folders
from tessella.checkpoints import (
    CheckpointError,
    describe_model,
    load_generator,
    load_tokenizer,
    save_generator,
    save_tokenizer,
)
from tessella.generators.base import Generator
from tessella.generators.build import build_generator
from tessella.sample.samplers import choose_sampling
from tessella.tests.contract.test_generator_contract import GENERATORS, config_of
from tessella.tests.contract.test_tokenizer_contract import TOKENIZERS
from tessella.tests.folders import assert_same
from tessella.tokenizers.base import Tokenizer
from tessella.tokenizers.build import build_tokenizer
from tessella.tokenizers.probe import NoProbe, read_probe, synthetic_probe, verify_probe

FACTS = {"sampling": {"guidance": 2.5}, "licence": "MIT", "quality": {"gFID": 3.0}}


def a_tokenizer(seed: int = 0) -> Tokenizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_tokenizer(TOKENIZERS["lfq"]).eval()


def a_generator(kind: str, tokenizer: Tokenizer) -> Generator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = build_generator(config_of(kind), tokenizer.spec).eval()
    generator.classes = ("a", "b", "c")
    return generator


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of a generator and of its tokenizer, with facts and probe images."""
    save_tokenizer(a_tokenizer(), tmp_path / "t", card=FACTS, probe=synthetic_probe(16))
    generator = a_generator("maskbit", a_tokenizer())
    save_generator(generator, tmp_path / "g", tokenizer_path=tmp_path / "t", card=FACTS)
    return tmp_path / "g", tmp_path / "t"


def facts_of(folder: Path) -> dict[str, Any]:
    """The card, less where the tokenizer is."""
    card: dict[str, Any] = json.loads((folder / "card.json").read_text())
    card.get("tokenizer", {}).pop("path", None)
    card.get("tokenizer", {}).pop("relative_path", None)
    return card


@pytest.mark.parametrize("kind", GENERATORS)
def test_every_kind_of_generator_is_whole_after_saving_again(kind: str, tmp_path: Path) -> None:
    tokenizer = a_tokenizer()
    save_tokenizer(tokenizer, tmp_path / "t")
    generator = a_generator(kind, tokenizer)
    save_generator(generator, tmp_path / "g", tokenizer_path=tmp_path / "t", card=FACTS)
    loaded = load_generator(tmp_path / "g")
    save_generator(loaded, tmp_path / "again" / "g")
    again = load_generator(tmp_path / "again" / "g")
    assert_same(again, generator)
    assert_same(again.tokenizer, tokenizer)
    assert again.classes == ("a", "b", "c")
    assert facts_of(tmp_path / "again" / "g") == facts_of(tmp_path / "g")
    assert choose_sampling(again, None, {}).guidance == 2.5


def test_a_tokenizer_is_whole_after_saving_again(pair: tuple[Path, Path], tmp_path: Path) -> None:
    save_tokenizer(load_tokenizer(pair[1]), tmp_path / "again")
    assert facts_of(tmp_path / "again") == facts_of(pair[1])
    result = verify_probe(load_tokenizer(tmp_path / "again"), tmp_path / "again")
    assert (result.source, result.largest_difference) == ("synthetic", 0)
    shutil.rmtree(pair[1])
    loaded = load_tokenizer(tmp_path / "again")
    shutil.rmtree(tmp_path / "again")
    save_tokenizer(loaded, tmp_path / "third")  # without probe images, which are gone
    with pytest.raises(NoProbe):
        read_probe(tmp_path / "third", 16)


def test_the_tokenizer_is_referred_to_where_it_still_is(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_generator("g")
    save_generator(loaded, "h")
    card = json.loads(Path("h/card.json").read_text())["tokenizer"]
    assert card["path"] == str(pair[1]) and card["relative_path"] == "../t"
    assert not Path("h/tokenizer").exists()
    monkeypatch.chdir("/")
    assert load_generator(tmp_path / "h").tokenizer.fingerprint == card["fingerprint"]


def test_the_tokenizer_is_stored_where_it_would_be_lost(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """It came from no folder, was changed, was replaced, is gone, or is in another model."""
    generator = a_generator("maskgit", a_tokenizer())
    generator.tokenizer = a_tokenizer()
    save_generator(generator, tmp_path / "of-no-folder")
    assert_same(load_generator(tmp_path / "of-no-folder").tokenizer, a_tokenizer())

    changed = load_generator(pair[0])
    with torch.no_grad():
        changed.tokenizer.last_layer.add_(1)
    save_generator(changed, tmp_path / "changed")
    assert_same(load_generator(tmp_path / "changed").tokenizer, changed.tokenizer)

    loaded = load_generator(pair[0])
    save_tokenizer(a_tokenizer(1), pair[1], overwrite=True)
    save_generator(loaded, tmp_path / "replaced")
    shutil.rmtree(pair[1])
    save_generator(loaded, tmp_path / "gone")
    save_generator(load_generator(tmp_path / "gone"), tmp_path / "of-a-model")
    shutil.rmtree(tmp_path / "gone")
    for name in ("replaced", "of-a-model"):
        shutil.move(tmp_path / name, tmp_path / f"moved-{name}")
        again = load_generator(tmp_path / f"moved-{name}")
        assert_same(again.tokenizer, a_tokenizer())
        assert describe_model(tmp_path / f"moved-{name}")["tokenizer"]["path"] == ""
    save_generator(again, tmp_path / "moved-of-a-model", overwrite=True)  # onto itself
    assert_same(load_generator(tmp_path / "moved-of-a-model").tokenizer, a_tokenizer())


def test_a_tokenizer_given_by_path_alone_is_found_again(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    generator = a_generator("maskbit", a_tokenizer())
    save_generator(generator, tmp_path / "h", tokenizer_path=pair[1])
    assert load_generator(tmp_path / "h").tokenizer.fingerprint
    with pytest.raises(CheckpointError, match="no such folder"):
        save_generator(generator, tmp_path / "i", tokenizer_path=tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="holds a generator, not a tokenizer"):
        save_generator(generator, tmp_path / "i", tokenizer_path=pair[0])
    assert not (tmp_path / "i").exists()


def test_measured_facts_belong_to_the_weights(pair: tuple[Path, Path], tmp_path: Path) -> None:
    loaded = load_generator(pair[0])
    half = save_generator(loaded, tmp_path / "same", card={"licence": "of my own"})
    assert (half["quality"], half["licence"]) == (FACTS["quality"], "of my own")
    with torch.no_grad():
        next(loaded.parameters()).add_(1)
    card = save_generator(loaded, tmp_path / "other")
    assert "quality" not in card
    assert (card["sampling"], card["licence"]) == (FACTS["sampling"], "MIT")
    tokenizer = load_tokenizer(pair[1])
    with torch.no_grad():
        tokenizer.last_layer.add_(1)
    assert "quality" not in save_tokenizer(tokenizer, tmp_path / "tokenizer")
    again = load_tokenizer(tmp_path / "tokenizer")
    assert verify_probe(again, tmp_path / "tokenizer").largest_difference == 0


def test_what_would_not_load_is_not_written(pair: tuple[Path, Path], tmp_path: Path) -> None:
    loaded, tokenizer = load_generator(pair[0]), load_tokenizer(pair[1])
    loaded.dense = nn.Linear(8, 8)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"would not load: dense\.bias, dense\.weight; expected"):
        save_generator(loaded, tmp_path / "h")
    tokenizer.extra = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="would not load: extra; expected"):
        save_tokenizer(tokenizer, tmp_path / "h")
    assert not (tmp_path / "h").exists()


def test_bundled_models_are_found_by_their_bare_names(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_folders, "_BUNDLED", tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_tokenizer("t").origin == "bundled:t"
    generator = load_generator("g")
    assert generator.origin == "bundled:g" and generator.tokenizer.fingerprint
    saved = save_generator(generator, "mine", tokenizer_path="t")
    assert saved["tokenizer"] == saved["tokenizer"] | {"path": "bundled:t"}
    assert "relative_path" not in saved["tokenizer"]
    with pytest.raises(CheckpointError, match="did you mean the bundled model g"):
        load_generator("gg")
    save_tokenizer(a_tokenizer(1), "t")  # a folder of that name comes first
    assert load_tokenizer("t").origin == str(tmp_path / "elsewhere" / "t")
    assert load_tokenizer("t").fingerprint != load_tokenizer("bundled:t").fingerprint
