"""Two processes equal one with the double batch; accumulated gradients equal one large batch.

Adam divides a gradient by its own size, so where a gradient vanishes it would amplify rounding
noise to the size of the learning rate. With eps = 1e-3 the update is smooth there, and what is
compared are the gradients. Sign quantizers amplify too (a latent at 0, an entropy at temperature
0.01), tenfold a step at the rates of debug.yaml until a bit flips; with a fifth of those rates and
temperature 0.1 nothing flips in 8 steps.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SAME_STEPS = ("run.steps=8", "run.log_every=8", "run.keep_checkpoints=8", "run.preview_every=8")
SMOOTH = ("optimizer.eps=1e-3", "adversarial.optimizer.eps=1e-3")
SMOOTH = (*SMOOTH, "optimizer.lr.peak=2e-4", "adversarial.optimizer.lr.peak=2e-4")
PROCESSES_ATOL = 1e-5
"""Sums over ranks in another order differ in the last float32 digit, 6e-8 of a weight of 1, each
step (measured after 8 steps: below 1e-6). The weights themselves move by more than 5e-4. With seed
4 no latent lies so near half-way between two codes that this digit decides; one costs 1e-5."""

SOFT = "tokenizer.quantizer.entropy_temperature=0.1"
VECTOR_WEIGHTS = "{reconstruction: 4.0, perceptual: 0.1, commitment: 0.25, adversarial: 0.02, %s}"
TOKENIZERS = {
    "lfq": (SOFT,),
    "lfq_adaptive": (SOFT, "adversarial.adaptive=true", "adversarial.loss=non_saturating"),
    "ema_vq": (
        "tokenizer.quantizer={type: ema_vq, codebook_size: 32, dim: 8}",
        "loss_weights=" + VECTOR_WEIGHTS % "lecam: 0.001",
    ),
    "vq": (
        "tokenizer.quantizer={type: vq, codebook_size: 32, dim: 8}",
        "loss_weights=" + VECTOR_WEIGHTS % "codebook: 1.0, lecam: 0.001",
        "adversarial.discriminator={type: patch, base_channels: 8, num_layers: 2, norm: group}",
    ),
}


@pytest.fixture(scope="module")
def replaced_weights(tmp_path_factory: pytest.TempPathFactory, debug_config: Path) -> Callable:
    """Overrides merge mappings; this writes debug.yaml without its loss weights for those that
    bring their own."""
    folder = tmp_path_factory.mktemp("configs")

    def config(overrides: tuple[str, ...]) -> Path:
        if not any(o.startswith("loss_weights=") for o in overrides):
            return debug_config
        lines = debug_config.read_text().splitlines()
        at = lines.index("loss_weights:")
        path = folder / "own_weights.yaml"
        path.write_text("\n".join([*lines[:at], "loss_weights: {}", *lines[at + 2 :]]))
        return path

    return config


def _largest_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[n].double() - theirs[n].double()).abs().max()) for n in ours)


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_two_processes_equal_one_with_the_double_batch(
    name: str, script: Any, replaced_weights: Callable, pictures: Path, tmp_path: Path
) -> None:
    """All weights, averages and LeCam means after 8 steps, 4 of them with the adversarial loss."""
    overrides = TOKENIZERS[name]
    words = (*SAME_STEPS, *SMOOTH, *overrides, "adversarial.start_step=4", "run.seed=4")
    words = (*words, f"data.val_source={pictures}", "run.checkpoint_every=1")
    config = replaced_weights(overrides)
    runs = {}
    for processes in (1, 2):
        batch = f"run.batch_size_per_device={8 // processes}"
        out = tmp_path / f"{processes}"
        runs[processes] = script(out, *words, batch, config=config, processes=processes)
        assert runs[processes].statuses == [0] * processes, runs[processes].output
    one, two = runs[1].weights(8), runs[2].weights(8)
    assert any(key.startswith("lecam.") for key in one)
    assert _largest_difference(one, two) < PROCESSES_ATOL
    assert _largest_difference(one, runs[1].weights(1)) > 5e-4
    logged = [ended.records("images_per_second")[0] for ended in runs.values()]
    assert logged[1] == pytest.approx(logged[0], rel=1e-3)  # the log's means run over all ranks
    assert logged[0]["images"] == 64 and logged[0]["num_tokens"] == 8 * 8 * 64


@pytest.mark.slow
def test_two_half_batches_equal_a_whole_one(
    script: Any, replaced_weights: Callable, pictures: Path, tmp_path: Path
) -> None:
    """Accumulating 2 x 4 images equals 8: every loss of this config is a mean over images.

    VQ, hinge, group norm; no entropy, LeCam or adaptive weight, which are not linear in the batch.
    The tolerance is that of two processes, for the same reason: sums in another order.
    """
    overrides = (
        "tokenizer.quantizer={type: vq, codebook_size: 32, dim: 8}",
        "loss_weights=" + VECTOR_WEIGHTS % "codebook: 1.0",
    )
    words = (*SAME_STEPS, *SMOOTH, *overrides, "adversarial.start_step=4", "run.seed=1")
    words = (*words, f"data.val_source={pictures}")
    config = replaced_weights(overrides)
    ended = []
    for batch, accumulation in ((8, 1), (4, 2)):
        parts = (f"run.batch_size_per_device={batch}",)
        parts += (f"run.gradient_accumulation_steps={accumulation}",)
        ended.append(script(tmp_path / f"{accumulation}", *words, *parts, config=config))
        assert ended[-1].statuses == [0], ended[-1].output
    assert _largest_difference(ended[0].weights(8), ended[1].weights(8)) < PROCESSES_ATOL
    first, second = (run.records("images_per_second")[0] for run in ended)
    assert second == pytest.approx(first, rel=1e-3)  # gradient norms included


@pytest.mark.slow
def test_launched_with_torchrun_stopped_with_ctrl_c(
    script: Any, pictures: Path, debug_config: Path, tmp_path: Path
) -> None:
    """The real command with two processes, Ctrl-C from outside, resumed: the same end.

    `accelerate launch --cpu --num_processes 2` would start a single process (accelerate 1.15).
    """
    out = tmp_path / "run"
    # With constant rates a run does not depend on its length, which then can be chosen afterwards.
    words = ("optimizer.lr.schedule=constant", "adversarial.optimizer.lr.schedule=constant")
    words = (*words, f"data.val_source={pictures}", "run.batch_size_per_device=2")
    words = (*words, "run.log_every=1", "run.evaluate_every=300", "run.preview_every=300")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    launch += ["--standalone", str(debug_config.parents[2] / "train" / "tokenizer.py")]
    launch += ["--config", str(debug_config), "--out", str(out), *words, "run.steps=300"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with (tmp_path / "output.txt").open("w") as output:
        launcher = subprocess.Popen(
            launch, stdout=output, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
        log, deadline = out / "log.jsonl", time.monotonic() + 120
        while not log.exists() and launcher.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(launcher.pid, signal.SIGINT)  # as a terminal does
        code = launcher.wait(timeout=60)
    text = (tmp_path / "output.txt").read_text()
    assert log.exists(), text
    assert code != 0 and "stopped and saved at step " in text, text
    (saved,) = (out / "checkpoints").iterdir()
    stopped_at = int(saved.name.removeprefix("step_"))
    assert 1 <= stopped_at < 300 and f"saved at step {stopped_at};" in text
    length = f"run.steps={stopped_at + 2}"
    resumed = script(out, *words, length, "--resume", processes=2)
    straight = script(tmp_path / "straight", *words, length, processes=2)
    assert resumed.statuses == straight.statuses == [0, 0], resumed.output + straight.output
    ours, theirs = (run.weights(stopped_at + 2) for run in (resumed, straight))
    assert _largest_difference(ours, theirs) == 0
    assert resumed.records("images_per_second") == straight.records("images_per_second")
