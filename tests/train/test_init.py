"""`init: FOLDER` starts from trained weights, names what does not fit, and the card tells it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from tessella.checkpoints import load_generator, load_tokenizer
from tessella.config import load_config
from tessella.train.engine import build_accelerator
from tessella.train.run_folder import RunError
from tessella.train.tokenizer_recipe import TrainTokenizerConfig
from tessella.train.tokenizer_run import TokenizerRun

Command = Callable[..., Result]
STILL = "optimizer.lr={peak: 1.0e-30, schedule: constant}"
"""A rate at which no weight moves, so that the end shows the start."""
ONE = ("run.steps=1", "run.batch_size_per_device=2", STILL, "optimizer.weight_decay=0.0")


def test_a_tokenizer_starts_from_a_trained_one(
    command: Command, debug_config: Path, pictures: Path, tmp_path: Path
) -> None:
    words = ("--config", debug_config, *ONE, f"data.source={pictures}")
    assert command(*words, "--out", tmp_path / "a", "run.seed=1").exit_code == 0
    first = load_tokenizer(tmp_path / "a" / "tokenizer")
    words = (*words, f"init={tmp_path / 'a' / 'tokenizer'}")
    result = command(*words, "--out", tmp_path / "b")
    assert result.exit_code == 0, result.output
    second = load_tokenizer(tmp_path / "b" / "tokenizer")
    for name, tensor in first.state_dict().items():
        assert torch.allclose(second.state_dict()[name], tensor, atol=1e-12), name
    assert second.card is not None
    assert second.card["init"]["fingerprint"] == first.fingerprint
    other = command(*words, "--out", tmp_path / "c", "tokenizer.quantizer.bits=9")
    assert other.exit_code == 1 and "does not fit the config" in other.output
    assert "weight: [8, " in other.output and not (tmp_path / "c").exists()


def test_a_generator_starts_from_a_trained_one(generator_command: Command, tmp_path: Path) -> None:
    assert generator_command("--out", tmp_path / "a", *ONE, "run.seed=1").exit_code == 0
    first = load_generator(tmp_path / "a" / "generator")
    words = (*ONE, f"init={tmp_path / 'a' / 'generator'}")
    result = generator_command("--out", tmp_path / "b", *words)
    assert result.exit_code == 0, result.output
    second = load_generator(tmp_path / "b" / "generator")
    for name, tensor in first.state_dict().items():
        assert torch.allclose(second.state_dict()[name], tensor, atol=1e-12), name
    assert second.card is not None
    assert second.card["init"]["fingerprint"] == first.fingerprint


@pytest.mark.parametrize("path", ["nowhere", "bundled:maskbit-emoji-64"])
def test_what_is_no_tokenizer_is_refused(
    path: str, command: Command, debug_config: Path, tmp_path: Path
) -> None:
    result = command("--config", debug_config, "--out", tmp_path / "run", f"init={path}")
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert not (tmp_path / "run").exists()


def test_nothing_is_taken_of_weights_that_do_not_fit(
    reset_accelerate: None, debug_config: Path, small_tokenizer: Path, tmp_path: Path
) -> None:
    config = load_config(TrainTokenizerConfig, debug_config)
    run = TokenizerRun(config, build_accelerator(config.run, tmp_path))
    before = {name: tensor.clone() for name, tensor in run.tokenizer.state_dict().items()}
    with pytest.raises(RunError, match=r"init: .*: does not fit the config; tokenizer\."):
        run.start_from(str(small_tokenizer))
    assert all(torch.equal(t, before[name]) for name, t in run.tokenizer.state_dict().items())
    assert run.init is None
