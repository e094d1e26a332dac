"""The models that the page offers, and what it says of them."""

from pathlib import Path

import pytest

from tessella.checkpoints import CheckpointError
from tessella.model_folders import bundled_models
from tessella.page.models import FIRST, Models, generator_facts, title_of
from tessella.tests.sample.kinds import GENERATORS, make


def test_shipped_generators_are_offered_after_those_that_are_added(
    folders: tuple[Path, Path],
) -> None:
    own = str(folders[0])
    models = Models.load([own, "ar-emoji-64", own])
    names = list(models.generators)
    assert names[:3] == [own, "bundled:ar-emoji-64", FIRST]
    assert {name.removeprefix("bundled:") for name in names[1:]} <= set(bundled_models())
    assert len(names) == len(set(names)) >= 5
    assert set(models.tokenizers) >= {str(folders[1]), "bundled:bits-emoji-64"}
    facts = models.facts()
    assert [one["name"] for one in facts["generators"]] == names
    by_name = {one["name"]: one for one in facts["generators"]}
    ar, maskbit, tiny = by_name["bundled:ar-emoji-64"], by_name[FIRST], by_name[own]
    assert (ar["steps"], ar["steps_fixed"], ar["title"]) == (64, True, "ar-emoji-64")
    assert not maskbit["steps_fixed"] and "animal" in maskbit["classes"]
    assert tiny["classes"] == ["grinning face", "cat", "ship"]
    assert (tiny["steps"], tiny["guidance"], tiny["resolution"]) == (4, 2.0, 32)
    with pytest.raises(ValueError, match="model 'other': unknown; there are: "):
        models.generator("other")
    with pytest.raises(ValueError, match="model 'other': unknown; there are: "):
        models.tokenizer("other")


def test_a_folder_that_holds_no_generator_is_refused(folders: tuple[Path, Path]) -> None:
    with pytest.raises(CheckpointError, match="holds a tokenizer, not a generator"):
        Models.load([str(folders[1])])
    with pytest.raises(CheckpointError, match="no such folder"):
        Models.load(["nowhere"])


@pytest.mark.parametrize("kind", GENERATORS)
def test_only_an_autoregressive_model_fixes_its_steps(kind: str, models: Models) -> None:
    tiny = models.generator("tiny")
    generator = make(kind, tiny.spec)
    generator.tokenizer = tiny.tokenizer
    facts = generator_facts("x", generator)
    assert facts["steps_fixed"] == (kind == "ar")
    assert facts["classes"] == ["class 0", "class 1", "class 2"]
    assert facts["guided"] and not facts["reads_text"]


def test_a_model_of_words_reads_text(worded: Models) -> None:
    facts = generator_facts("x", worded.generator("worded"))
    assert facts["reads_text"] and facts["guided"] and facts["classes"] == []


def test_titles_are_the_last_part_of_a_name() -> None:
    assert title_of("bundled:ar-emoji-64") == "ar-emoji-64"
    assert title_of("runs/mine/generator/") == "generator"
    assert title_of("/") == "/"
