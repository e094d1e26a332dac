"""The step loop: what is due when, seeds, first batch, pauses, and batches left over."""

import itertools
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tessella.files import atomic_folder
from tessella.train import steps
from tessella.train.engine import RunConfig, seed_step
from tessella.train.length import Length
from tessella.train.steps import training_steps, trial
from tessella.unfinished import sweep

ACCELERATOR: Any = SimpleNamespace(
    is_main_process=False, num_processes=1, process_index=0, device=torch.device("cpu")
)

ACCELERATOR_OF_MAIN: Any = SimpleNamespace(**(vars(ACCELERATOR) | {"is_main_process": True}))


class Log:
    """Stands in for a run folder; keeps the records."""

    def __init__(self) -> None:
        self.writes, self.records = False, list[dict[str, Any]]()

    def log(self, record: dict[str, Any]) -> None:
        self.records.append(record)


FOLDER: Any = Log()


def state_of(run: RunConfig, step: int = 0) -> Any:
    return SimpleNamespace(step=step, seconds=0.0, length=Length(run))


def config(**fields: Any) -> RunConfig:
    every = {"log_every": 2, "preview_every": 3, "evaluate_every": 4, "checkpoint_every": 5}
    return RunConfig(**{"steps": 7, "batch_size_per_device": 2, **every, **fields})


def test_what_is_due_at_multiples_and_at_the_end() -> None:
    due: dict[str, list[int]] = {"logs": [], "previews": [], "evaluates": [], "saves": []}
    state = state_of(config())
    for step in training_steps(range(7), state, config(), ACCELERATOR, FOLDER):
        assert list(step.batches) == [step.number - 1] and state.step == step.number
        for name, numbers in due.items():
            numbers += [step.number] if getattr(step, name) else []
        assert step.last == (step.number == 7)
    # The last measurement and picture come after the loop, when the model is saved.
    expected = {"logs": [2, 4, 6, 7], "previews": [3, 6], "evaluates": [4], "saves": [5, 7]}
    assert due == expected


def test_a_resumed_loop_seeds_its_steps_alike_and_knows_its_first_batch() -> None:
    """Two batches a step; the seed is that of the step, set once the first batch has been read."""

    def draws(start: int) -> list[tuple[int, float, bool]]:
        run = config(gradient_accumulation_steps=2)
        state = state_of(run, start)
        found = []
        for step in training_steps(range(2 * start, 14), state, run, ACCELERATOR, FOLDER):
            for batch in step.batches:
                found.append((batch, torch.rand(()).item(), step.first_batch))
        return found

    whole, resumed = draws(0), draws(3)
    assert [d[:2] for d in whole[6:]] == [d[:2] for d in resumed]
    assert [d[2] for d in whole] == [d[2] for d in draws(0)] == [True] + [False] * 13
    assert [d[2] for d in resumed] == [True] + [False] * 7
    seed_step(0, 3, 0)
    assert resumed[0][1] == torch.rand(()).item()


def test_pauses_are_no_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 images in 2 + 3 of 12 seconds, then 4 in 1; the run had 100 seconds before the resume."""
    times = iter([0.0, 0.0, 2.0, 9.0, 12.0, 13.0, 20.0])
    monkeypatch.setattr(steps, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    clock = steps.Clock(SimpleNamespace(step=3, seconds=100.0), images_per_step=4)
    clock.pause()
    clock.go_on()
    clock.go_on()
    assert clock.images_per_second(5) == 8 / 5
    assert clock.images_per_second(6) == 4 / 1
    assert clock.seconds() == 120 and clock.paused == 7


def test_a_run_in_minutes_ends_in_time_and_spares_slow_measurements(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steps of one second in one minute; a measurement, due at every quarter, takes 18 of them."""
    now = [0.0]
    monkeypatch.setattr(steps, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    run, log = config(minutes=1.0, steps=400, evaluate_every=100, checkpoint_every=100), Log()
    measured, saved, state = [], [], state_of(run)
    for step in training_steps(itertools.count(), state, run, ACCELERATOR_OF_MAIN, log):
        for _ in step.batches:
            now[0] += 1
        step.pause_clock()
        if step.evaluates:
            measured.append(state.length.share(step.number))
            now[0] += 18
        if step.saves:
            saved.append(step.number)
    assert 55 <= now[0] <= 63 and step.last and state.length.ended(state.step)
    assert len(measured) == 1 and measured[0] == pytest.approx(0.25, abs=0.03)
    assert len(saved) == 4 and saved[-1] == state.step  # checkpoints are not left out
    plans = [record for record in log.records if "plan" in record]
    assert plans[-1]["plan"]["end"] == state.step and plans[0]["step"] == 2


def test_batches_left_over_are_an_error() -> None:
    loop = training_steps(range(7), state_of(config()), config(), ACCELERATOR, FOLDER)
    next(loop)
    with pytest.raises(RuntimeError, match="step 1: some of its batches were not used"):
        next(loop)


def test_a_kill_in_the_trial_of_the_end_leaves_nothing(tmp_path: Path) -> None:
    """The model of a trial is half written when the process is killed."""
    model = tmp_path / "tokenizer"
    child = os.fork()
    if not child:
        with trial(model) as place, atomic_folder(place, kind="tokenizer") as folder:
            (folder / "card.json").write_text("{}")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    left = [path.name for path in tmp_path.rglob("*")]
    assert "card.json" in left and "tokenizer.writer" in left
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_trial_is_removed(tmp_path: Path) -> None:
    with trial(tmp_path / "tokenizer") as place:
        with atomic_folder(place, kind="tokenizer") as folder:
            (folder / "card.json").write_text("{}")
        assert (place / "card.json").is_file() and place.name == "tokenizer"
    assert not list(tmp_path.iterdir())
