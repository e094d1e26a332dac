"""Fine-tuning: the time of its parts, what is drawn before and after, and the configs."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tessella.checkpoints import load_generator
from tessella.config import to_dict
from tessella.data.sources import open_source
from tessella.demo.own_pictures import OwnPictures, open_pictures, write_pictures
from tessella.demo.tuning import (
    TOKENIZER_SHARE,
    Timetable,
    choose_names,
    draw,
    generator_settings,
    reconstruct,
    tokenizer_settings,
)


class Clock:
    """A clock that a test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_generator_gets_what_is_left() -> None:
    clock = Clock()
    times = Timetable(360.0, clock)
    for name, seconds in (("a", 20.0), ("b", 140.0)):
        clock.now += seconds
        assert times.done(name) == seconds
    assert times.left == 200.0 and times.stages == [("a", 20.0), ("b", 140.0)]
    assert times.generator_minutes(20.0) == 3.0
    assert times.generator_minutes(180.0) == 1.2  # a fifth of all in any case
    clock.now += 300
    assert times.left == 0.0 and times.generator_minutes(0.0) == 1.2


@pytest.mark.parametrize("slowness", [1 / 30, 1.0, 3.0])
def test_machines_of_any_speed_end_in_time(slowness: float) -> None:
    """Seconds beside the trainings as on two cores, and on faster and slower machines."""
    clock = Clock()
    times, around, drawing = Timetable(360.0, clock), 14.0 * slowness, 6.0 * slowness
    for name, seconds in (
        ("reading and drawing", drawing + 2 * slowness),
        ("tokenizer", TOKENIZER_SHARE * 360 + around),
        ("encoding", 30 * slowness),
    ):
        clock.now += seconds
        times.done(name)
    clock.now += 60 * times.generator_minutes(around + drawing) + around + drawing
    assert 0.8 * 360 < clock.now - 100 < 1.2 * 360


def written(pictures: OwnPictures, folder: Path, classes: tuple[str, ...]) -> Path:
    write_pictures(pictures, folder, side=64, classes=classes, most=8, seconds=60)
    return folder


def test_names_are_captions_for_words_and_classes_otherwise(
    with_words: Path, with_classes: Path, tmp_path: Path
) -> None:
    emoji = written(open_pictures(None, 64), tmp_path / "emoji", ("face", "animal"))
    val = open_source(emoji, "val")
    captions = [val.read(i).caption for i in range(8)]
    assert choose_names(load_generator(with_words), val) == (captions, "prompts")
    names, condition = choose_names(load_generator(with_classes), val)
    labels = {val.read(i).label for i in range(len(val))} - {None}
    known = [("face", "animal")[label] for label in sorted(labels)]  # names of the generator
    assert known and condition == "classes" and names == (8 * known)[:8]


def test_pictures_that_nothing_names_are_drawn_without_a_condition(
    with_words: Path, with_classes: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "кот"
    folder.mkdir()
    for number in range(16):
        Image.new("RGB", (70, 64), (9 * number, 0, 0)).save(folder / f"{number}.png")
    val = open_source(written(open_pictures(str(folder), 64), tmp_path / "w", ("face",)), "val")
    for path in (with_words, with_classes):
        generator = load_generator(path)
        names, condition = choose_names(generator, val)
        assert (names, condition) == ([""] * 8, "")
        assert len(draw(generator, names, condition)) == 8


def test_before_and_after_differ_by_the_models_alone(with_words: Path) -> None:
    generator = load_generator(with_words)
    names = ["cat", "tree", "cat"]
    first, second = (draw(generator, names, "prompts") for _ in range(2))
    assert [one.tobytes() for one in first] == [one.tobytes() for one in second]
    assert first[0].tobytes() != first[2].tobytes()  # another seed
    originals = torch.linspace(-1, 1, 20)[:, None, None, None].expand(20, 3, 64, 64)
    shown, decibels = reconstruct(generator.tokenizer, originals)
    assert len(shown) == 8 and 0 < decibels < 40


def test_the_configs_start_from_the_models_for_a_time(with_words: Path, tmp_path: Path) -> None:
    for path in ("bundled:maskbit-emoji-64", str(with_words)):
        generator = load_generator(path)
        tokenizer = generator.tokenizer
        first = tokenizer_settings(tokenizer, tmp_path, 2.1, None)
        second = generator_settings(generator, tmp_path, 3.2, 2)
        assert (first.run.minutes, second.run.minutes) == (2.1, 3.2)
        assert (first.run.cpu_threads, second.run.cpu_threads) == (None, 2)
        assert (first.init, second.init) == (tokenizer.origin, path)
        assert to_dict(first.tokenizer) == to_dict(tokenizer.config)
        assert to_dict(second.generator) == to_dict(generator.config)
        assert first.adversarial is None and first.losses.entropy_boost.extra == 0
        assert second.init_ignore == ("tokenizer",)  # its codes are those of the tuned one
        assert second.tokenizer == str(tmp_path / "tokenizer" / "tokenizer")
        assert second.data.store == str(tmp_path / "store")
        assert second.samples["guidance"] == 2.0
