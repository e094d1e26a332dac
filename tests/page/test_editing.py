"""Editing: only painted pixels change, in pictures of any size."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tessella.data.images import to_pil
from tessella.page.editing import WORK_SIDE, EditWish, _mask_of_size, edit
from tessella.page.models import Models
from tessella.sample.pictures import draw_edit
from tessella.tests.page.sent import Heard, file_of, noise, painted


@pytest.mark.parametrize(
    ("size", "mask_size", "box"),
    [
        ((48, 40), (48, 40), (10, 5, 30, 20)),
        ((300, 200), (150, 100), (10, 5, 60, 50)),
        ((900, 600), (450, 300), (0, 0, 450, 300)),  # the window is shrunk, and leaves the picture
        ((30, 900), (30, 900), (0, 100, 20, 800)),
        ((900, 600), (600, 400), (590, 390, 600, 400)),
        ((7, 5), (7, 5), (3, 2, 4, 3)),
    ],
)
def test_painted_pixels_alone_change(
    models: Models,
    job: Heard,
    size: tuple[int, int],
    mask_size: tuple[int, int],
    box: tuple[int, int, int, int],
) -> None:
    picture = noise(*size)
    mask = painted(*mask_size, box).resize(size, 0)
    wish = EditWish(
        model="tiny",
        picture=file_of(picture),
        mask=file_of(painted(*mask_size, box)),
        num=2,
        steps=1,
    )
    done = edit(models, wish, job)
    assert done["changed"] == 0 and done["seeds"] == [0, 1] and done["positions"] == 64
    region, own = np.asarray(mask) > 0, np.asarray(picture)
    for found in done["pictures"]:
        now = np.asarray(found)
        assert found.size == size and found.mode == "RGB"
        assert np.array_equal(now[~region], own[~region])
        assert (now[region] != own[region]).any()
    assert [event["step"] for event in job.events] == [1]


@pytest.mark.parametrize(
    ("size", "box"),
    [((90, 70), (40, 30, 60, 50)), ((300, 200), (280, 5, 300, 60)), ((50, 200), (0, 40, 50, 190))],
)
def test_an_edit_is_that_of_the_library_where_nothing_is_shrunk(
    models: Models, job: Heard, size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    picture = noise(*size, seed=3)
    wish = EditWish(
        model="tiny",
        picture=file_of(picture),
        mask=file_of(painted(*size, box)),
        class_name="cat",
        seed=4,
        steps=2,
        guidance=1.0,
    )
    done = edit(models, wish, job)
    how: dict[str, Any] = {"label": 1, "seed": 4, "num_steps": 2, "guidance": 1.0}
    expected = draw_edit(models.generator("tiny"), picture, box=box, **how)
    assert done["pictures"][0].tobytes() == to_pil(expected.images[0]).tobytes()
    assert done["drawn_anew"] == expected.facts["drawn_anew"]


def test_a_large_picture_is_edited_in_a_small_square(
    models: Models, job: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def look(generator: Any, part: Image.Image, **how: Any) -> Any:
        seen.append(part.size)
        return draw_edit(generator, part, **how)

    monkeypatch.setattr("tessella.page.editing.draw_edit", look)
    monkeypatch.setattr("tessella.page.editing.WORK_SIDE", 48)
    for size, box in (((300, 200), (0, 0, 30, 20)), ((200, 300), (10, 8, 16, 12))):
        wish = EditWish(
            model="tiny",
            picture=file_of(noise(*size)),
            mask=file_of(painted(30, 20, box)),
            steps=1,
        )
        assert edit(models, wish, job)["pictures"][0].size == size
    assert seen == [(48, 32), (48, 48)]


def test_a_shrunk_mask_covers_every_painted_pixel() -> None:
    mask = np.zeros((900, 700), dtype=bool)
    mask[431, 17] = mask[899, 699] = True
    small = _mask_of_size(mask, (350, 450))
    assert small.shape == (450, 350) and np.argwhere(small).tolist() == [[215, 8], [449, 349]]
    odd = _mask_of_size(mask, (WORK_SIDE * 7 // 9, WORK_SIDE))
    assert odd[round(431.5 / 900 * 512 - 0.5), round(17.5 / 700 * 398 - 0.5)] and odd[-1, -1]
    assert odd.sum() <= 8
    assert _mask_of_size(mask, (700, 900)) is not None


def test_an_edit_follows_its_prompt(worded: Models, job: Heard) -> None:
    fields = {
        "model": "worded",
        "picture": file_of(noise(32, 32)),
        "mask": file_of(painted(32, 32, (0, 0, 20, 32))),
        "steps": 1,
    }
    hat, none = (edit(worded, EditWish(**fields, prompt=text), job) for text in ("a hat", ""))
    assert hat["changed"] == none["changed"] == 0
    assert hat["pictures"][0].tobytes() != none["pictures"][0].tobytes()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"picture": "AAAA"}, "picture: no picture"),
        ({"mask": "AAAA"}, "mask: no picture"),
        ({"mask": file_of(painted(5, 5, (0, 0, 0, 0)))}, "mask: nothing is painted"),
        ({"num": 5}, "number of pictures: expected 1 to 4, found 5"),
        ({"class_name": "dog"}, "class 'dog'"),
        ({"prompt": "a hat"}, "prompt: this model reads no text"),
        ({"model": "x"}, "model 'x': unknown"),
    ],
)
def test_what_cannot_be_edited_is_refused(
    models: Models, job: Heard, fields: dict[str, Any], said: str
) -> None:
    whole = {
        "model": "tiny",
        "picture": file_of(noise(9, 9)),
        "mask": file_of(painted(9, 9, (0, 0, 4, 4))),
    }
    with pytest.raises(ValueError, match=said):
        edit(models, EditWish(**whole | fields), job)


def test_a_mask_of_another_size_keeps_its_type() -> None:
    assert (
        torch.from_numpy(_mask_of_size(np.eye(9, dtype=bool)[:, ::-1], (9, 9))).dtype == torch.bool
    )
