"""A run that was killed or interrupted and resumed equals one that was not, bit for bit.

The runs are debug.yaml, 20 steps: the discriminator trains from step 4, the adversarial term counts
from step 6, so weights, EMA, discriminator, LeCam and both optimizers are all in use at step 10.
Log lines come every 4 steps, so the checkpoint of step 10 lies inside a window of means and code
counts that must survive.
"""

import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tessella.data.loader import ImageDataset, make_loader
from tessella.data.sources import open_source
from tessella.data.transforms import AugmentConfig
from tessella.train.run_folder import read_log

TIMES = ("images_per_second",)


def _assert_same_end(ended: Any, straight: Any, step: int = 20) -> None:
    weights = straight.weights(step)
    modules = {name.split(".")[0] for name in weights}
    assert modules == {"tokenizer", "ema", "discriminator", "lecam"}
    assert ended.differences(ended.weights(step), weights) == []
    state = straight.state(step)
    assert len(state["optimizer"]["state"]) and len(state["d_optimizer"]["state"])
    assert ended.differences(ended.state(step), state) in ([], [".seconds"])  # wall time
    assert ended.records(*TIMES) == straight.records(*TIMES)


@pytest.fixture(scope="module")
def arguments(pictures: Path) -> tuple[str, ...]:
    """Overrides of debug.yaml; with few validation pictures its measurements are short."""
    return ("run.log_every=4", "run.preview_every=20", f"data.val_source={pictures}")


@pytest.fixture(scope="module")
def straight(
    script: Any, arguments: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Any]:
    """`straight(processes)`: the uninterrupted run, made once."""
    runs: dict[int, Any] = {}

    def get(processes: int) -> Any:
        if processes not in runs:
            out = tmp_path_factory.mktemp("straight") / "run"
            runs[processes] = script(out, *arguments, processes=processes)
            assert runs[processes].statuses == [0] * processes, runs[processes].output
        return runs[processes]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_run_resumes_bit_for_bit(
    processes: int,
    script: Any,
    straight: Callable[[int], Any],
    arguments: tuple[str, ...],
    tmp_path: Path,
) -> None:
    """SIGKILL in step 13, after the checkpoint of step 10 and two log lines."""
    out = tmp_path / "run"
    kill = {rank: ("SIGKILL", 13) for rank in range(processes)}
    killed = script(out, *arguments, processes=processes, signals=kill)
    assert killed.statuses == [-9] * processes, killed.output
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step_10"]
    assert [r["step"] for r in killed.records()] == [4, 8, 10, 12]
    resumed = script(out, *arguments, "--resume", processes=processes)
    assert resumed.statuses == [0] * processes, resumed.output
    _assert_same_end(resumed, straight(processes))
    assert killed.differences(killed.weights(10), straight(processes).weights(10)) == []


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_interrupted_run_saves_says_how_to_go_on_and_resumes(
    processes: int,
    script: Any,
    straight: Callable[[int], Any],
    arguments: tuple[str, ...],
    tmp_path: Path,
) -> None:
    """SIGINT in step 13, on the last rank only: all ranks finish the step, save and stop."""
    out = tmp_path / "run"
    stop = {processes - 1: ("SIGINT", 13)}
    stopped = script(out, *arguments, processes=processes, signals=stop)
    assert stopped.statuses == [130] * processes, stopped.output
    assert "stopped and saved at step 14; " in stopped.output
    assert ("as 2 processes again" in stopped.output) == (processes == 2)
    hint = stopped.output.split("continue with: ")[1].splitlines()[0]
    assert hint.startswith("accelerate launch train/tokenizer.py --config ")
    assert f"--out {out}" in hint and hint.endswith(" --resume")
    assert "Traceback" not in stopped.output
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step_10", "step_14"]
    assert not (out / "tokenizer").exists()
    assert not [p for p in out.rglob("*") if ".partial" in p.name or p.name.endswith(".old")]
    resumed = script(out, *arguments, "--resume", processes=processes)
    assert resumed.statuses == [0] * processes, resumed.output
    _assert_same_end(resumed, straight(processes))


def test_killed_before_the_first_checkpoint_starts_over(
    script: Any, pictures: Path, tmp_path: Path
) -> None:
    """A resume without a checkpoint begins at step 0 and forgets the old log lines."""
    out, small = tmp_path / "run", ("run.steps=3", "run.log_every=1", f"data.val_source={pictures}")
    killed = script(out, *small, signals={0: ("SIGKILL", 2)})
    assert killed.statuses == [-9] and [r["step"] for r in killed.records()] == [1, 2]
    resumed = script(out, *small, "--resume")
    assert resumed.statuses == [0], resumed.output
    assert [r["step"] for r in resumed.records() if "loss" in r] == [1, 2, 3]
    assert resumed.records()[0]["loss"] == killed.records()[0]["loss"]


def test_a_finished_run_resumes_to_nothing(debug_run: Any, script: Any) -> None:
    """--resume on a finished run trains no step and leaves the same weights and log."""
    before, log = debug_run.weights(20), debug_run.records()
    card = debug_run.out / "tokenizer" / "card.json"
    measured = json.loads(card.read_text())["validation"]
    again = script(debug_run.out, "run.log_every=1", "--resume")
    assert again.statuses == [0], again.output
    assert json.loads(card.read_text())["validation"] == measured and "psnr" in measured
    assert again.differences(again.weights(20), before) == [] and again.records() == log


def test_two_writers_of_one_run_are_refused(debug_run: Any, script: Any) -> None:
    """A run still held by another process, e.g. one that is saving, is not resumed."""
    with (debug_run.out / ".lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        second = script(debug_run.out, "run.log_every=1", "--resume")
    assert second.statuses == [1]
    assert "another process is writing to this run" in second.output


def test_the_next_batch_is_the_one_that_would_have_come() -> None:
    """Step 10 of a loader started there equals step 10 of one started at 0, on either rank."""
    source = open_source("bundled:emoji", "train")
    augment = AugmentConfig(random_crop=0.8, aspect=1.1, flip=True)
    for rank in range(2):
        batches = []
        for start in (0, 10):
            loader = make_loader(
                ImageDataset(source, 32, augment, seed=3),
                4,
                num_steps=11,
                start_step=start,
                process_index=rank,
                num_processes=2,
            )
            batches.append(list(loader)[-1])
        assert batches[0]["ids"] == batches[1]["ids"]
        assert torch.equal(batches[0]["images"], batches[1]["images"])


def test_a_log_line_cut_by_a_crash_is_dropped(tmp_path: Path) -> None:
    """Whole lines are read, the torn one is not."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert read_log(path) == [{"step": 1, "loss": 0.5}]
