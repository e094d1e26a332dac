"""`init: FOLDER` starts from trained weights, names what does not fit, and the card tells it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from tessella.checkpoints import load_generator, load_tokenizer
from tessella.config import load_config
from tessella.train.engine import build_accelerator
from tessella.train.initial import is_named
from tessella.train.run_folder import RunError
from tessella.train.tokenizer_recipe import TrainTokenizerConfig
from tessella.train.tokenizer_run import TokenizerRun

from .conftest import make_tokenizer

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
    assert other.exit_code == 1 and not (tmp_path / "c").exists()
    assert other.output.endswith(
        "does not fit the config; settings: quantizer.bits 8, here 9; tensors of other shapes: "
        "decoder.conv_in.weight [32, 8, 3, 3], here [32, 9, 3, 3], encoder.conv_out.bias [8], here "
        "[9], encoder.conv_out.weight [8, 32, 1, 1], here [9, 32, 1, 1]; make the config that of "
        "the model, or let these parts start from random weights by "
        "init_ignore=[decoder.conv_in, encoder.conv_out]\n"
    )
    ignore = "init_ignore=[decoder.conv_in, encoder.conv_out]"
    result = command(*words, "--out", tmp_path / "c", "tokenizer.quantizer.bits=9", ignore)
    assert result.exit_code == 0, result.output
    assert "but from random weights in encoder.conv_out.weight" in result.output
    third = load_tokenizer(tmp_path / "c" / "tokenizer")
    for name, tensor in first.state_dict().items():
        new = name.startswith(("decoder.conv_in.", "encoder.conv_out."))
        found = third.state_dict()[name]
        assert new or torch.allclose(found, tensor, atol=1e-12), name
    assert third.card is not None
    assert third.card["init"]["settings"] == {"quantizer.bits": [8, 9]}
    assert sorted(third.card["init"]["new"]) == [
        f"{part}.{name}"
        for part in ("decoder.conv_in", "encoder.conv_out")
        for name in ("bias", "weight")
    ]


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
    assert second.card["init"]["new"] == [] and second.card["init"]["settings"] == {}


def test_a_generator_of_other_classes_starts_from_a_trained_one(
    generator_command: Command, tmp_path: Path
) -> None:
    """A new class table by a pattern; other settings of the same weights are told."""
    assert generator_command("--out", tmp_path / "a", *ONE, "run.seed=1").exit_code == 0
    first = load_generator(tmp_path / "a" / "generator")
    words = (*ONE, f"init={tmp_path / 'a' / 'generator'}", "generator.num_classes=5")
    refused = generator_command("--out", tmp_path / "b", *words)
    assert refused.exit_code == 1 and not (tmp_path / "b").exists()
    assert "settings: num_classes 3, here 5; tensors of other shapes: " in refused.output
    part = refused.output.partition("init_ignore=[")[2].partition("]")[0]
    words = (*words, "generator.transformer.dropout=0.3")
    for pattern in (part, f"{part[:-1]}?*"):
        out = tmp_path / f"b{len(pattern)}"
        result = generator_command("--out", out, *words, f"init_ignore=['{pattern}']")
        assert result.exit_code == 0, result.output
        assert "num_classes 3, here 5, transformer.dropout 0.1, here 0.3" in result.output
        second = load_generator(out / "generator")
        for name, tensor in first.state_dict().items():
            found = second.state_dict()[name]
            assert name.startswith(part) or torch.allclose(found, tensor, atol=1e-12), name


def test_a_generator_of_another_tokenizer_is_taken_if_that_is_named(
    generator_command: Command, tmp_path: Path
) -> None:
    other = make_tokenizer(tmp_path / "other", seed=1)
    assert generator_command("--out", tmp_path / "a", *ONE).exit_code == 0
    words = (*ONE, f"init={tmp_path / 'a' / 'generator'}", f"tokenizer={other}")
    refused = generator_command("--out", tmp_path / "b", *words)
    assert refused.exit_code == 1 and not (tmp_path / "b").exists()
    assert "init_ignore=[tokenizer] takes its weights anyway" in refused.output
    result = generator_command("--out", tmp_path / "b", *words, "init_ignore=[tokenizer]")
    assert result.exit_code == 0, result.output
    first, second = (load_generator(tmp_path / name / "generator") for name in "ab")
    assert second.tokenizer.fingerprint != first.tokenizer.fingerprint
    for name, tensor in first.state_dict().items():
        assert torch.allclose(second.state_dict()[name], tensor, atol=1e-12), name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["init_ignore=[head]"], "init_ignore: found ['head'] without init, to which it belongs"),
        (["init=MODEL", "init_ignore=['']"], "expected names of weights or patterns, found ''"),
        (["init=MODEL", "init_ignore=[hed]"], "init_ignore: hed: no weights have this name; the"),
        (["init=MODEL", "init_ignore=['*']"], "init_ignore: *: leaves no weights of "),
        (["init=MODEL", "init_ignore=head"], "init_ignore: Input should be a valid "),
    ],
)
def test_parts_that_cannot_be_left_out_are_one_message(
    command: Command,
    generator_command: Command,
    debug_config: Path,
    small_tokenizer: Path,
    words: list[str],
    message: str,
    tmp_path: Path,
) -> None:
    small = "tokenizer.autoencoder={channel_multipliers: [1, 1, 2]}"
    words = [word.replace("MODEL", str(small_tokenizer)) for word in words]
    result = command("--config", debug_config, "--out", tmp_path / "run", small, *words)
    assert result.exit_code == 1 and message in result.output, result.output
    assert result.output.count("\n") == 1 and not (tmp_path / "run").exists()
    if len(words) == 1:
        result = generator_command("--out", tmp_path / "run", *words)
        assert result.exit_code == 1 and message in result.output, result.output


def test_names_and_patterns_of_weights() -> None:
    names = ["head.weight", "head_norm.weight", "trunk.0.head.bias"]
    found = {
        pattern: [name for name in names if is_named(name, [pattern])]
        for pattern in ("head", "head.weight", "head*", "*.head", "trunk.?", "weight")
    }
    assert found == {
        "head": names[:1],
        "head.weight": names[:1],
        "head*": names[:2],
        "*.head": names[2:],
        "trunk.?": names[2:],
        "weight": [],
    }


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
    with pytest.raises(RunError, match=r"init: .*: does not fit the config; settings: .*missing: "):
        run.start_from(str(small_tokenizer))
    assert all(torch.equal(t, before[name]) for name, t in run.tokenizer.state_dict().items())
    assert run.init is None
