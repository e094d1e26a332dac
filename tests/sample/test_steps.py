"""Steps are told to a bar, and tokens are shown after each, whatever the kind of generator."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.sample.generate import generate, generate_batches
from tessella.sample.request import Request
from tessella.sample.samplers import choose_sampling
from tessella.sample.steps import Present, counted, viewed, watched
from tessella.tests.sample.kinds import GENERATORS, GRID, make
from tessella.tokens.tokens import Tokens


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


@pytest.mark.parametrize("kind", GENERATORS)
def test_every_sampler_shows_its_tokens_after_each_step(kind: str) -> None:
    """What is drawn stays where tokens are drawn for good; the last look is the result."""
    generator, knobs = make(kind), GENERATORS[kind][1]
    seen: list[tuple[int, int, Tokens, Tensor]] = []

    def look(step: int, steps: int, present: Present) -> None:
        now = present()
        tokens = Tokens(now.tokens.indices.clone(), now.tokens.spec).validate()
        seen.append((step, steps, tokens, now.hidden.clone()))
        assert now.guessed == (kind != "ar")

    known = generate(generator, [2], seeds=[5], **knobs)
    mask = torch.zeros(GRID.num_tokens, dtype=torch.bool)
    mask[[3, 7, 8, 15]] = True
    with viewed(look):
        tokens = generate(generator, [0, 1], seeds=[0, 1], known=known, mask=mask, **knobs)
    assert tokens.equal(generate(generator, [0, 1], seeds=[0, 1], known=known, mask=mask, **knobs))
    numbers, totals, shown, hidden = zip(*seen, strict=True)
    assert numbers == tuple(range(1, totals[0] + 1)) and len(set(totals)) == 1
    assert shown[-1].equal(tokens) and not hidden[-1].any()
    for before, after, still in zip(shown, shown[1:], hidden, strict=False):
        assert before.spec == generator.spec
        same = (before.indices == after.indices).all(-1)
        assert same[:, ~mask].all(), "known positions"
        if kind in ("maskbit", "maskgit", "bigr", "ar"):
            assert same[~still].all(), "drawn positions"
    if kind in ("maskbit", "maskgit", "bigr", "ar"):
        assert [int(rows.sum()) for rows in hidden] == sorted(
            (int(rows.sum()) for rows in hidden), reverse=True
        )
        assert 0 < hidden[0].sum() < 2 * GRID.num_tokens
        assert not hidden[0][:, ~mask].any()
    else:
        assert not torch.cat(hidden).any(), "every position has a value from the first step on"


def test_what_a_viewer_raises_ends_the_drawing_and_nobody_looks_after_the_block() -> None:
    generator, calls = make("maskbit"), []

    def stop(step: int, steps: int, present: Present) -> None:
        calls.append(step)
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"), viewed(stop):
        generate(generator, [0], num_steps=4)
    generate(generator, [0], num_steps=4)
    assert calls == [1]
