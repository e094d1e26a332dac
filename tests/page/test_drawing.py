"""Drawing and comparing: the pictures of the library, step by step, and what is refused."""

from typing import Any

import pytest
import torch

from tessella.data.images import to_pil
from tessella.documents import check
from tessella.page.drawing import CompareWish, DrawWish, compare, conditions, draw, label_of
from tessella.page.job import JobTooLong
from tessella.page.limits import Limits
from tessella.page.models import Models
from tessella.sample.pictures import generate_images
from tessella.tests.page.sent import Heard
from tessella.tests.sample.kinds import make


def test_pictures_are_those_of_the_library_and_appear_step_by_step(
    models: Models, job: Heard
) -> None:
    wish = DrawWish(model="tiny", class_name="cat", num=3, seed=7, steps=5, guidance=1.5)
    done = draw(models, wish, job)
    expected = generate_images(
        models.generator("tiny"), [1, 1, 1], seeds=[7, 8, 9], num_steps=5, guidance=1.5
    )
    assert done["event"] == "done" and done["seeds"] == [7, 8, 9] and done["seconds"] > 0
    for found, image in zip(done["pictures"], expected, strict=True):
        assert found.tobytes() == to_pil(image).tobytes()
    assert [event["step"] for event in job.events] == [1, 2, 3, 4, 5]
    assert all(event["steps"] == 5 for event in job.events)
    shown = [event["pictures"] for event in job.events[:-1]]
    assert all(len(pictures) == 3 for pictures in shown)
    hidden = [sum(picture.getchannel("A").histogram()[:255]) for picture, *_ in shown]
    assert hidden == sorted(hidden, reverse=True) and hidden[0] > hidden[-1] > 0


def test_settings_that_are_not_given_are_the_models_own(models: Models, job: Heard) -> None:
    draw(models, DrawWish(model="tiny", num=1), job)
    assert [event["steps"] for event in job.events] == [4] * 4


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"model": "other"}, "model 'other': unknown; there are: tiny"),
        ({"class_name": "dog"}, "class 'dog': this model has grinning face, cat, ship"),
        ({"prompt": "red apple"}, "prompt: this model reads no text"),
        ({"prompt": "x" * 10_000}, "prompt: 10,000 characters, expected at most 1,000"),
        ({"num": 0}, "number of pictures: expected 1 to 16, found 0"),
        ({"num": 17}, "number of pictures: expected 1 to 16, found 17"),
        ({"seed": -1}, "seed: expected 0 to "),
        ({"seed": 2**53}, "seed: expected 0 to 9,007,199,254,740,975, found 9007199254740992"),
        ({"steps": 0}, "steps: expected 1 to 256, found 0"),
        ({"steps": 257}, "steps: expected 1 to 256, found 257"),
        ({"steps": 200}, "num_steps"),
        ({"guidance": -1.0}, "guidance: expected 0 to 100, found -1.0"),
    ],
)
def test_a_wish_out_of_range_is_refused(
    models: Models, job: Heard, wish: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match="^" + said):
        draw(models, DrawWish(**{"model": "tiny"} | wish), job)
    assert job.events == []


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "wish: model: required, not given"),
        ({"model": "tiny", "num": "4"}, "wish: num: input should be a valid integer"),
        ({"model": "tiny", "file": "x"}, "wish: file: unexpected keyword argument"),
        ({"model": "tiny", "num": True}, "wish: num: input should be a valid integer"),
    ],
)
def test_a_wish_of_another_form_is_refused(data: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check(data, DrawWish, name="wish")


def test_a_prompt_is_drawn_by_a_model_of_words_alone(worded: Models, job: Heard) -> None:
    generator = worded.generator("worded")
    done = draw(worded, DrawWish(model="worded", prompt=" red apple\n", num=2, steps=2), job)
    expected = generate_images(generator, prompts="red apple", seeds=[0, 1], num_steps=2)
    assert [p.tobytes() for p in done["pictures"]] == [to_pil(i).tobytes() for i in expected]
    plain = draw(worded, DrawWish(model="worded", num=2, steps=2), job)
    assert [p.tobytes() for p in done["pictures"]] != [p.tobytes() for p in plain["pictures"]]
    job.events.clear()
    assert compare(worded, CompareWish(prompt="sad cat", num=1, guidance=2.0), job)["models"] == 1
    assert [event["event"] for event in job.events][-2:] == ["drawn", "left out"]
    assert "reads no text" in job.events[-1]["reason"]
    job.events.clear()
    both = CompareWish(prompt="sad cat", class_name="ship", num=1)
    assert compare(worded, both, job)["models"] == 2
    drawn = [event for event in job.events if event["event"] == "drawn"]
    assert [event["without"] for event in drawn] == ["class", "prompt"]
    ship = generate_images(worded.generator("tiny"), [2], seeds=[0])
    assert drawn[1]["pictures"][0].tobytes() == to_pil(ship[0]).tobytes()


@pytest.mark.parametrize("prompt", ["", " \n\t ", "\U0001f600 cat \x07\x1b[2J", "../../etc/passwd"])
def test_any_characters_are_a_prompt(worded: Models, job: Heard, prompt: str) -> None:
    done = draw(worded, DrawWish(model="worded", prompt=prompt, num=1, steps=1), job)
    assert len(done["pictures"]) == 1


def test_a_prompt_of_more_words_than_the_model_reads_is_refused(worded: Models, job: Heard) -> None:
    with pytest.raises(ValueError, match="expected at most 8 words and pieces, found 9"):
        draw(worded, DrawWish(model="worded", prompt="cat " * 9), job)


def test_a_prompt_of_spaces_is_none(models: Models) -> None:
    generator, wish = models.generator("tiny"), DrawWish(model="tiny", prompt=" \n ", num=2)
    assert conditions(generator, wish) == {}
    named = DrawWish(model="tiny", class_name="ship", num=2)
    assert conditions(generator, named) == {"label": 2}


def test_classes_without_names_go_by_number() -> None:
    generator = make("maskbit")
    assert [label_of(generator, name) for name in ("", "class 0", "class 2")] == [None, 0, 2]
    with pytest.raises(ValueError, match="class 'class 3': this model has class 0, class 1"):
        label_of(generator, "class 3")


def test_every_model_draws_from_the_same_seeds_or_is_left_out(
    models: Models, job: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = models.generator("tiny")
    other = make("ar", tiny.spec)
    other.tokenizer = tiny.tokenizer
    both = Models.of({"tiny": tiny, "second": other})
    done = compare(both, CompareWish(class_name="cat", num=2, seed=5), job)
    assert done == {"event": "done", "models": 1}
    kinds = [(event["event"], event["place"]) for event in job.events]
    assert kinds[-2:] == [("drawn", 0), ("left out", 1)]
    assert "class 'cat': this model has class 0" in job.events[-1]["reason"]
    drawn = job.events[-2]
    expected = generate_images(tiny, [1, 1], seeds=[5, 6])
    assert [p.tobytes() for p in drawn["pictures"]] == [to_pil(i).tobytes() for i in expected]
    assert drawn["seeds"] == [5, 6] and drawn["title"] == "tiny"
    job.events.clear()
    assert compare(both, CompareWish(num=1), job)["models"] == 2
    assert {event["place"] for event in job.events if event["event"] == "step"} == {0, 1}
    with pytest.raises(ValueError, match="steps: each model has its own"):
        compare(both, CompareWish(steps=3), job)


def test_time_and_number_are_limited(models: Models) -> None:
    with pytest.raises(JobTooLong):
        draw(models, DrawWish(model="tiny"), Heard(seconds=0.0))
    with pytest.raises(ValueError, match="expected 1 to 2, found 3"):
        draw(models, DrawWish(model="tiny", num=3), Heard(), Limits(pictures=2))


def test_a_browser_that_goes_away_ends_the_drawing(models: Models) -> None:
    calls: list[int] = []
    generator = models.generator("tiny")
    predict = generator.predict

    def counted(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return predict(*arguments)

    def gone(event: dict[str, Any]) -> None:
        raise ConnectionError("gone")

    job = Heard()
    job.tell = gone
    generator.predict = counted  # type: ignore[method-assign]
    try:
        with pytest.raises(ConnectionError, match="gone"):
            draw(models, DrawWish(model="tiny", steps=8), job)
    finally:
        del generator.predict
    assert len(calls) == 1
