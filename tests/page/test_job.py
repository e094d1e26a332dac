"""A job tells its steps and pictures, and ends when its time is over."""

import numpy as np
import pytest
import torch

from tessella.page.job import GUESS_OPACITY, JobTooLong, cell_image, unfinished_pictures
from tessella.page.models import Models
from tessella.sample.steps import Unfinished
from tessella.tests.page.sent import Heard
from tessella.tokens.tokens import Tokens, TokenSpec


def batch(models: Models, *, guessed: bool) -> Unfinished:
    spec = models.tokenizer(next(iter(models.tokenizers))).spec
    tokens = Tokens(torch.zeros(1, spec.num_tokens, spec.num_codebooks, dtype=torch.int64), spec)
    hidden = torch.zeros(1, spec.num_tokens, dtype=torch.bool)
    hidden[0, :4] = True  # the left half of the first row of cells
    return Unfinished(tokens, hidden, guessed)


@pytest.mark.parametrize(("guessed", "opacity"), [(True, GUESS_OPACITY), (False, 0)])
def test_cells_that_are_not_drawn_are_faint_or_transparent(
    models: Models, guessed: bool, opacity: int
) -> None:
    now = batch(models, guessed=guessed)
    tokenizer = models.generator("tiny").tokenizer
    (picture,) = unfinished_pictures(tokenizer, now)
    alpha = np.asarray(picture)[..., 3]
    assert alpha.shape == (32, 32)
    assert (alpha[:4, :16] == opacity).all()
    assert (alpha[4:] == 255).all() and (alpha[:4, 16:] == 255).all()


def test_tokens_that_are_no_grid_belong_to_no_place() -> None:
    image = cell_image(torch.zeros(16), TokenSpec((16,), (2,)))
    assert image.size == (1, 1) and image.getpixel((0, 0)) == 255


def test_steps_are_told_with_pictures_before_the_last(models: Models) -> None:
    job, tokenizer = Heard(), models.generator("tiny").tokenizer
    look = job.viewer(tokenizer, {"model": "tiny"})
    for step in (1, 2, 3):
        look(step, 3, lambda: batch(models, guessed=True))
    steps = [
        (event["event"], event["step"], event["steps"], event["model"]) for event in job.events
    ]
    assert steps == [("step", number, 3, "tiny") for number in (1, 2, 3)]
    assert ["pictures" in event for event in job.events] == [True, True, False]
    assert "pictures" not in Heard().events


def test_looking_is_rare_where_it_takes_longer_than_drawing(models: Models) -> None:
    job = Heard()
    job.frame_seconds = 60
    look = job.viewer(models.generator("tiny").tokenizer, {})
    for step in range(1, 9):
        look(step, 9, lambda: batch(models, guessed=True))
    assert sum("pictures" in event for event in job.events) == 1


def test_a_job_ends_when_its_time_is_over(models: Models) -> None:
    job = Heard(seconds=0.0)
    with pytest.raises(JobTooLong, match="stopped after 0 seconds, the most that one job may take"):
        job.viewer(None, {})(1, 2, lambda: batch(models, guessed=True))
    assert job.events == []
