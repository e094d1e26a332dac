"""The bar of a drawing moves by the steps of the sampler, whatever the kind of generator."""

from typing import Any

import pytest

from tessella.sample.generate import generate_batches
from tessella.sample.request import Request
from tessella.sample.samplers import choose_sampling
from tessella.sample.steps import counted, watched
from tessella.tests.sample.kinds import GENERATORS, GRID, make


@pytest.mark.parametrize("kind", GENERATORS)
def test_every_sampler_tells_its_steps(kind: str) -> None:
    """Batches of 2 and 1: many small parts, which add up to each batch."""
    generator, knobs = make(kind), GENERATORS[kind][1]
    sampling = choose_sampling(generator, None, knobs)
    request = Request.make(generator, [0, 1, 2], seeds=[0, 1, 2])
    moves: list[float] = []
    batches = generate_batches(generator, request, sampling, batch_size=2, advance=moves.append)
    next(batches)
    steps = {"bfn": 4, "ar": GRID.num_tokens}.get(kind, knobs.get("num_steps"))
    parts = [move for move in moves if move > 1e-9]
    assert parts == pytest.approx([2 / steps] * steps)
    next(batches)
    assert sum(moves) == pytest.approx(3) and len(moves) >= 2 * steps


def test_a_sampler_that_stops_early_or_tells_nothing_makes_the_whole_batch() -> None:
    def half() -> None:
        for row in counted(range(4)):
            if row == 2:
                break

    told: Any
    for work, expected in ((half, [1.0, 1.0, 2.0]), (lambda: None, [4.0])):
        told = []
        with watched(4, told.append):
            work()
        assert told == expected
    assert list(counted("ab")) == ["a", "b"]
