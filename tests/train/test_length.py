"""Runs in minutes: how near to the time they end, and what follows from the recorded plans."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tessella.train.engine import RunConfig
from tessella.train.length import Length, Pace, Plan
from tessella.train.schedules import LearningRateConfig, lr_at


def config(**fields: Any) -> RunConfig:
    return RunConfig(**{"steps": 2000, "batch_size_per_device": 1, "minutes": 6.0, **fields})


@dataclass
class Simulated:
    """What became of a run on a machine of simulated speed."""

    time: float
    steps: int
    plans: int
    reports: int
    shares: list[float]


def simulate(
    each: float, slower: Callable[[float], float], *, pause: float = 0.0, jitter: float = 0.4
) -> Simulated:
    """A run of 6 minutes.

    Args:
        each: Seconds of a step at first.
        slower: Factor of these seconds at a share of the time.
        pause: Seconds of each of the measurements, due every 500 of 2,000 steps.
        jitter: Largest random deviation of a step's seconds.
    """
    length, rng = Length(config()), random.Random(0)
    pace, now, paused, step, reports, shares = Pace(length, 0.0), 0.0, 0.0, 0, 0, [0.0]
    while not length.ended(step):
        factor = slower(now / length.seconds) * rng.uniform(1 - jitter, 1 + jitter)
        now += each * factor * (4 if step == 0 else 1)
        step += 1
        if end := pace.proposed_end(step, now, paused):
            length.make_plan(step, end)
        shares.append(length.share(step))
        if length.is_due(step, 500) and not (length.ended(step) or pace.spares(now)):
            reports, now, paused = reports + 1, now + pause, paused + pause
    return Simulated(now / length.seconds, step, len(length.plans), reports, shares)


@pytest.mark.parametrize("each", [0.02, 0.5, 5.0])
@pytest.mark.parametrize("pause", [0.0, 14.4])
@pytest.mark.parametrize(
    ("slower", "factor"),
    [
        (lambda share: 1.0, 1.0),
        (lambda share: 3.0 if share > 0.5 else 1.0, 2 / 3),
        (lambda share: 10.0 if share > 0.5 else 1.0, 0.55),
        (lambda share: 0.1 if share > 0.5 else 1.0, 5.5),
        (lambda share: 3.0 if int(share * 20) % 2 else 1.0, 2 / 3),
    ],
    ids=["steady", "a third", "a tenth", "tenfold", "other work by turns"],
)
def test_a_run_ends_in_time_whatever_the_speed(
    slower: Callable[[float], float], factor: float, each: float, pause: float
) -> None:
    """Steps of 20 ms and of 5 s; the steps are those that fit into the time."""
    found = simulate(each, slower, pause=pause)
    assert 0.88 < found.time < 1.1
    fit = factor * (360 - 3 * pause) / each
    assert found.steps == pytest.approx(fit, rel=0.35)
    assert found.shares == sorted(found.shares) and found.shares[-1] > 0.85
    assert found.reports in ((3, 4) if each < 1 else (2, 3, 4)) and found.plans < 50


@pytest.mark.parametrize("pause", [36.0, 108.0])
@pytest.mark.parametrize("each", [0.5, 5.0])
def test_slow_measurements_take_no_more_than_they_may(each: float, pause: float) -> None:
    """Each takes a tenth or three tenths of the time: one or two are made, and the run goes on."""
    found = simulate(each, lambda share: 1.0, pause=pause)
    assert 0.9 < found.time < 1.1 and found.reports == (2 if pause == 36 else 1)
    assert found.steps == pytest.approx((360 - found.reports * pause) / each, rel=0.15)


def test_at_a_steady_speed_one_plan_is_enough() -> None:
    found = simulate(0.5, lambda share: 1.0, jitter=0.05)
    assert found.plans <= 2 and found.time == pytest.approx(1, abs=0.02)
    assert found.shares[found.steps // 2] == pytest.approx(0.5, abs=0.02)


def test_a_step_longer_than_the_time_ends_the_run() -> None:
    length = Length(config(minutes=0.5))
    assert Pace(length, 0.0).proposed_end(1, 31.0, 0.0) == 1
    length.make_plan(1, 1)
    assert length.ended(1) and not length.ended(0)


def test_shares_go_on_from_one_plan_to_the_next() -> None:
    """Step 10 to 110, planned anew at 60 to end at 80: half of the run in 50 steps, half in 20."""
    length = Length(config())
    assert [length.share(step) for step in (0, 10)] == [0, 0] and length.end_at(10) is None
    assert length.make_plan(10, 110) == Plan(10, 0.0, 110)
    assert length.make_plan(60, 80) == Plan(60, 0.5, 80)
    found = [length.share(step) for step in (10, 35, 60, 70, 80, 90)]
    assert found == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])
    assert [length.end_at(step) for step in (9, 10, 59, 60)] == [None, 110, 110, 80]
    assert length.ended(80) and not length.ended(79)
    assert [length.position(step) for step in (35, 70)] == pytest.approx([500, 1500])
    assert length.steps_for(200, 20) == 11 and length.steps_for(200, 60) == 8


def test_the_learning_rate_goes_by_the_share_of_the_time() -> None:
    """A fifth of the steps that the config counts: warm-up and cosine are those of the config."""
    rates = LearningRateConfig(peak=1.0, warmup_steps=200, final_share=0.0)
    length = Length(config())
    length.make_plan(0, 400)
    for step in (0, 20, 39, 40, 100, 220, 399):
        expected = lr_at(5 * step, 2000, rates)
        assert lr_at(length.position(step), 2000, rates) == pytest.approx(expected, abs=1e-12)
    assert lr_at(199.9, 2000, rates) == 1.0  # between two steps, and no higher than the peak


def test_reports_are_due_by_share_and_not_all_the_time() -> None:
    length = Length(config())
    length.make_plan(0, 100)
    due = [step for step in range(1, 101) if length.is_due(step, 500)]
    assert due == [25, 50, 75, 100]
    # Every 50 of 2,000 steps would be every 2 or 3; a twentieth of the time lies between two.
    assert [step for step in range(1, 101) if length.is_due(step, 50)] == list(range(5, 101, 5))
    lines = [step for step in range(1, 101) if length.is_due(step, 50, apart=1 / 20)]
    assert len(lines) == 40
    in_steps = Length(config(minutes=None))
    assert [step for step in range(1, 1001) if in_steps.is_due(step, 500)] == [500, 1000]


def test_a_checkpoint_brings_the_plans_back_and_the_log_those_after_it() -> None:
    length = Length(config())
    for step, end in ((10, 110), (60, 80)):
        length.make_plan(step, end)
    length.paused = 3.5
    resumed = Length(config())
    resumed.load_state_dict(length.state_dict(50), 50, 100.0)
    assert resumed.plans == length.plans[:1] and resumed.paused == 3.5
    log = [{"step": p.step, "plan": {"share": p.share, "end": p.end}} for p in length.plans]
    stale = {"step": 70, "plan": {"share": 0.6, "end": 90}}  # dropped by the plan made at 60
    resumed.follow([{"step": 5, "loss": 1.0}, log[0], stale, log[1], {"step": 70, "loss": 1.0}])
    assert resumed.plans == length.plans
    # It makes no plan up to step 70, the last one in the log, unless it is late by a fifth.
    pace = Pace(resumed, 100.0)
    assert [pace.proposed_end(step, 150.0, 0.0) for step in (51, 52, 70)] == [0, 0, 0]
    assert pace.proposed_end(70, 433.0, 0.0) == 70
    assert pace.proposed_end(71, 160.0, 0.0) > 80


def test_another_length_goes_on_from_the_time_that_has_passed() -> None:
    """100 steps in 2 of 6 minutes; of 3 minutes two thirds are over; steps know no plan."""
    length = Length(config())
    length.make_plan(2, 300)
    shorter = Length(config(minutes=3.0))
    shorter.load_state_dict(length.state_dict(100), 100, 120.0)
    assert shorter.plans == [Plan(100, pytest.approx(2 / 3), 150)]
    over = Length(config(minutes=1.0))
    over.load_state_dict(length.state_dict(100), 100, 120.0)
    assert over.ended(100)
    from_steps = Length(config())
    from_steps.load_state_dict(None, 100, 120.0)
    assert from_steps.plans == [Plan(100, pytest.approx(1 / 3), 300)]
    in_steps = Length(config(minutes=None))
    in_steps.load_state_dict(length.state_dict(100), 100, 120.0)
    assert in_steps.plans == [] and in_steps.end_at(100) == 2000


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_minutes_are_refused(minutes: float) -> None:
    with pytest.raises(ValueError, match="minutes: expected more than 0, found"):
        config(minutes=minutes)
