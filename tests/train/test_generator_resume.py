"""Generator training: interrupted equals uninterrupted, two processes equal one, bit for bit.

The runs are debug.yaml with dropout, 20 steps on a store of three views. Log lines come every 4
steps, so the checkpoint of step 10 lies inside a window of means that must survive.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tessella.tests.train.conftest import KINDS, make_tokenizer, quick_samples

TIMES = ("images_per_second",)
ARGUMENTS = ("run.log_every=4", "run.preview_every=20")
PROCESSES_ATOL = 1e-5
"""Sums over ranks in another order differ in the last float32 digit, 6e-8 of a weight of 1, each
step (measured after 20 steps: 1.2e-7). The weights themselves move by more than 5e-3."""


@pytest.fixture(scope="module")
def straight(
    generator_script: Any, store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int, str], Any]:
    """`straight(processes, tokens)`: the uninterrupted run, made once."""
    runs: dict[tuple[int, str], Any] = {}

    def get(processes: int, tokens: str = "store") -> Any:
        if (processes, tokens) not in runs:
            out = tmp_path_factory.mktemp("straight") / "run"
            words = _data(tokens, store)
            run = generator_script(out, *ARGUMENTS, *words, processes=processes)
            assert run.statuses == [0] * processes, run.output
            runs[processes, tokens] = run
        return runs[processes, tokens]

    return get


def _data(tokens: str, store: Path) -> tuple[str, ...]:
    if tokens == "store":
        return (f"data.store={store}",)
    return ("data.tokens=images", "data.augment={random_crop: 0.5, flip: true}")


def _assert_same_end(ended: Any, straight: Any, step: int = 20) -> None:
    weights = straight.weights(step)
    assert {name.split(".")[0] for name in weights} == {"generator", "ema"}
    assert ended.differences(ended.weights(step), weights) == []
    state = straight.state(step)
    facts = state["facts"]
    assert len(state["optimizer"]["state"]) and facts["tokens"]["hash"]
    assert facts["fingerprint of the tokenizer"]
    assert ended.differences(ended.state(step), state) in ([], [".seconds"])  # wall time
    assert ended.records(*TIMES) == straight.records(*TIMES)


@pytest.mark.parametrize("tokens", ["store", "images"])
def test_killed_run_resumes_bit_for_bit(
    tokens: str, generator_script: Any, straight: Callable, store: Path, tmp_path: Path
) -> None:
    """SIGKILL in step 13, after the checkpoint of step 10 and two log lines."""
    out, words = tmp_path / "run", (*ARGUMENTS, *_data(tokens, store))
    killed = generator_script(out, *words, signals={0: ("SIGKILL", 13)})
    assert killed.statuses == [-9], killed.output
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step_10"]
    assert [r["step"] for r in killed.records() if "loss" in r] == [4, 8, 12]
    assert killed.state(10)["metrics"][0]["masked_loss"][1] > 0  # inside a window
    resumed = generator_script(out, *words, "--resume")
    assert resumed.statuses == [0], resumed.output
    _assert_same_end(resumed, straight(1, tokens))
    assert killed.differences(killed.weights(10), straight(1, tokens).weights(10)) == []


@pytest.mark.slow
def test_hashes_are_fitted_once_and_resume_with_the_rest(
    generator_script: Any, tmp_path: Path
) -> None:
    """Hashed attention wants more than 4 x 4 tokens."""
    tokenizer = make_tokenizer(tmp_path / "tokenizer", resolution=24)
    words = (
        f"tokenizer={tokenizer}",
        "data.tokens=images",
        "generator.transformer={binarized_attention: hashed, attention_dropout: 0}",
        "run={steps: 4, checkpoint_every: 2, log_every: 1, preview_every: 4, evaluate_every: 4}",
    )
    straight = generator_script(tmp_path / "straight", *words)
    assert straight.statuses == [0], straight.output
    killed = generator_script(tmp_path / "run", *words, signals={0: ("SIGKILL", 3)})
    assert killed.statuses == [-9], killed.output
    resumed = generator_script(tmp_path / "run", *words, "--resume")
    assert resumed.statuses == [0], resumed.output
    weights = [run.weights(4) for run in (straight, resumed)]
    assert resumed.differences(weights[1], weights[0]) == []
    anchors = "trunk.blocks.0.hash.anchors"
    for name in ("generator", "ema"):
        (found,) = [v for key, v in weights[0].items() if key.startswith(name) and anchors in key]
        assert found.any()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_interrupted_run_saves_says_how_to_go_on_and_resumes(
    processes: int, generator_script: Any, straight: Callable, store: Path, tmp_path: Path
) -> None:
    """SIGINT in step 13, on the last rank only: all ranks finish the step, save and stop."""
    out, words = tmp_path / "run", (*ARGUMENTS, *_data("store", store))
    stop = {processes - 1: ("SIGINT", 13)}
    stopped = generator_script(out, *words, processes=processes, signals=stop)
    assert stopped.statuses == [130] * processes, stopped.output
    assert "stopped and saved at step 14; " in stopped.output
    hint = stopped.output.split("continue with: ")[1].splitlines()[0]
    assert hint.startswith("accelerate launch train/generator.py --config ")
    assert f"--out {out}" in hint and hint.endswith(" --resume")
    assert "Traceback" not in stopped.output
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step_10", "step_14"]
    assert not (out / "generator").exists()
    resumed = generator_script(out, *words, "--resume", processes=processes)
    assert resumed.statuses == [0] * processes, resumed.output
    _assert_same_end(resumed, straight(processes))


def test_killed_while_it_writes_its_store_starts_over(
    generator_script: Any, tmp_path: Path
) -> None:
    """A config without store and checkpoint: the resumed run encodes, and begins at step 0."""
    out, small = tmp_path / "run", ("run.steps=2", "run.log_every=1")
    killed = generator_script(out, *small, signals={0: ("SIGKILL", 1)})
    assert killed.statuses == [-9] and (out / "store").is_dir()
    shutil.rmtree(out / "store")
    resumed = generator_script(out, *small, "--resume")
    assert resumed.statuses == [0], resumed.output
    assert [r["step"] for r in resumed.records() if "loss" in r] == [1, 2]
    assert resumed.records()[0]["loss"] == killed.records()[0]["loss"]


def test_a_finished_run_resumes_to_nothing(generator_run: Any, generator_script: Any) -> None:
    """--resume on a finished run trains no step and leaves the same weights, log and card."""
    before, log = generator_run.weights(20), generator_run.records()
    card = generator_run.out / "generator" / "card.json"
    measured = json.loads(card.read_text())["validation"]
    views = ("data.views=2", "data.augment={random_crop: 0.5, flip: true}")
    again = generator_script(generator_run.out, "run.log_every=1", *views, "--resume")
    assert again.statuses == [0], again.output
    assert json.loads(card.read_text())["validation"] == measured
    assert again.differences(again.weights(20), before) == [] and again.records() == log


def _assert_two_processes_equal_one(
    generator_script: Any, out: Path, words: tuple[str, ...]
) -> Any:
    """Weights, averages and log after 20 steps of 8 images; label dropout goes by sample number.

    Adam divides a gradient by its own size; with eps = 1e-3 vanishing ones are not blown up.
    """
    words += ("optimizer.eps=1e-3", "run.log_every=10")
    runs = []
    for processes in (1, 2):
        batch = f"run.batch_size_per_device={8 // processes}"
        run = generator_script(out / f"{processes}", *words, batch, processes=processes)
        assert run.statuses == [0] * processes, run.output
        runs.append(run)
    one, two, early = runs[0].weights(20), runs[1].weights(20), runs[0].weights(10)
    assert one.keys() == two.keys()
    assert max(float((one[n] - two[n]).abs().max()) for n in one) < PROCESSES_ATOL
    assert max(float((one[n] - early[n]).abs().max()) for n in one) > 1e-3
    for ours, theirs in zip(runs[0].records(*TIMES), runs[1].records(*TIMES), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokens", "unmasked_weight"), [("store", 1.0), ("images", 1.0), ("store", 0.0)]
)
def test_two_processes_equal_one_with_the_double_batch(
    tokens: str, unmasked_weight: float, generator_script: Any, store: Path, tmp_path: Path
) -> None:
    words = ("generator.transformer.dropout=0.0", f"generator.unmasked_weight={unmasked_weight}")
    _assert_two_processes_equal_one(generator_script, tmp_path, (*words, *_data(tokens, store)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bld", "bigr", "bfn", "ar"])
def test_two_processes_equal_one_for_other_generators(
    kind: str, generator_script: Any, store: Path, tmp_path: Path
) -> None:
    words = (KINDS[kind], "generator.transformer.dropout=0.0", f"data.store={store}")
    words += (quick_samples(kind),)
    _assert_two_processes_equal_one(generator_script, tmp_path, words)


@pytest.mark.slow
def test_two_half_batches_equal_a_whole_one(
    generator_script: Any, store: Path, tmp_path: Path
) -> None:
    """Accumulating 2 x 4 images equals 8: with visible slots counted the loss is a plain mean."""
    words = ("generator.transformer.dropout=0.0", "optimizer.eps=1e-3", f"data.store={store}")
    runs = []
    for batch, accumulation in ((8, 1), (4, 2)):
        parts = (f"run.batch_size_per_device={batch}",)
        parts += (f"run.gradient_accumulation_steps={accumulation}",)
        runs.append(generator_script(tmp_path / f"{accumulation}", *words, *parts))
        assert runs[-1].statuses == [0], runs[-1].output
    one, two = (run.weights(20) for run in runs)
    assert max(float((one[n] - two[n]).abs().max()) for n in one) < PROCESSES_ATOL


def test_only_reporting_and_sampling_may_change_on_resume(
    generator_command: Callable[..., Result], generator_run: Any
) -> None:
    views = ("data.views=2", "data.augment={random_crop: 0.5, flip: true}")
    words = ("samples.num_steps=4", "run.log_every=7", "ema_decay=0.5", "data.views=3")
    result = generator_command("--out", generator_run.out, "--resume", *views, *words)
    assert result.exit_code == 1
    assert "data.views: was 2, now 3; ema_decay: was 0.9, now 0.5" in result.output
    assert "num_steps" not in result.output and "log_every" not in result.output
