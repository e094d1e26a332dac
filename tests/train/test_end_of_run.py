"""The end of a run is tried before its first step; a failing measurement costs no model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import tessella.train.generator
import tessella.train.tokenizer
from tessella.checkpoints import load_generator, load_tokenizer

Command = Callable[..., Result]
SMALL = ("run.steps=2", "run.batch_size_per_device=2")


def test_a_measurement_that_cannot_be_made_is_found_before_the_first_step(
    command: Command, debug_config: Path, tmp_path: Path
) -> None:
    """SSIM needs 11 pixels: at 8 a run used to train to its end and leave no model."""
    out = tmp_path / "run"
    words = ["tokenizer.resolution=8", "losses.perceptual=[]", "loss_weights.perceptual=null"]
    result = command("--config", debug_config, "--out", out, *SMALL, *words)
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert result.exit_code == 1 and "SSIM" in line and "before the first step" in line
    assert sorted(p.name for p in out.iterdir()) == [".lock", ".tessella.json", "config.yaml"]


def fail_after(calls: int, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Let a function work so many times, and then raise."""
    original, left = getattr(owner, name), [calls]

    def fails(*args: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise ValueError("this cannot be measured")
        return original(*args, **options)

    monkeypatch.setattr(owner, name, fails)


def test_a_failing_measurement_of_a_tokenizer_leaves_the_model(
    command: Command,
    debug_config: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    start = ("--config", debug_config, "--out", out, *SMALL, f"data.source={pictures}")
    with monkeypatch.context() as patch:
        fail_after(1, patch, tessella.train.tokenizer, "evaluate")  # the trial works
        result = command(*start)
    assert result.exit_code == 1 and "this cannot be measured; wrote " in result.output
    assert "which is whole but not measured" in result.output and "Traceback" not in result.output
    saved = load_tokenizer(out / "tokenizer")
    assert saved.card is not None and "psnr" not in saved.card["validation"]
    assert command(*start, "--resume").exit_code == 0
    measured = load_tokenizer(out / "tokenizer")
    assert measured.fingerprint == saved.fingerprint
    assert measured.card is not None and "psnr" in measured.card["validation"]
    assert len(list((out / "previews").iterdir())) == 1


def test_a_failing_measurement_of_a_generator_leaves_the_model(
    generator_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        fail_after(1, patch, tessella.train.generator.GeneratorRun, "evaluate")
        result = generator_command("--out", out, *SMALL)
    assert result.exit_code == 1 and "which is whole but not measured" in result.output
    saved = load_generator(out / "generator")
    assert generator_command("--out", out, *SMALL, "--resume").exit_code == 0
    measured = load_generator(out / "generator")
    assert measured.fingerprint == saved.fingerprint
    assert measured.card is not None and len(measured.card["validation"]) > 2


def test_a_picture_that_cannot_be_drawn_is_found_before_the_first_step(
    command: Command, debug_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_after(0, monkeypatch, tessella.train.tokenizer, "draw_reconstructions")
    result = command("--config", debug_config, "--out", tmp_path / "run", *SMALL)
    assert result.exit_code == 1 and "before the first step" in result.output
    assert not (tmp_path / "run" / "log.jsonl").exists()
