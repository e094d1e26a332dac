"""The memory layout is the faster one where it runs, and the same on a resume."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from click.testing import Result

import tessella.train.layout
from tessella.config import load_config
from tessella.data.sources import open_source
from tessella.tokenizers.build import build_tokenizer
from tessella.train.engine import build_accelerator
from tessella.train.layout import fix_layout, time_layouts
from tessella.train.tokenizer_recipe import TrainTokenizerConfig, resolve
from tessella.train.tokenizer_run import TokenizerRun

AUTO = "run.memory_format=auto"


@pytest.fixture
def config(debug_config: Path) -> TrainTokenizerConfig:
    return load_config(TrainTokenizerConfig, debug_config, [AUTO])


@pytest.fixture
def accelerator(
    reset_accelerate: None, config: TrainTokenizerConfig, tmp_path: Path
) -> Accelerator:
    return build_accelerator(config.run, tmp_path)


def in_layout(config: TrainTokenizerConfig, layout: Any) -> TrainTokenizerConfig:
    return dataclasses.replace(config, run=dataclasses.replace(config.run, memory_format=layout))


@pytest.mark.parametrize("fast", ["contiguous", "channels_last"])
def test_auto_takes_the_faster_layout(
    fast: str,
    config: TrainTokenizerConfig,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def measured(tokenizer: Any, images: torch.Tensor, accelerator: Any) -> dict[str, float]:
        seen.append(images.shape)
        return {name: 1.0 + (name != fast) for name in ("channels_last", "contiguous")}

    monkeypatch.setattr(tessella.train.layout, "time_layouts", measured)
    source = open_source("bundled:emoji", "train")
    fixed = fix_layout(config, accelerator, source)
    assert fixed == in_layout(config, fast) and seen == [(4, 3, 32, 32)]
    assert fix_layout(fixed, accelerator, source) is fixed and len(seen) == 1
    run = TokenizerRun(fixed, accelerator)
    weight = next(p for p in run.tokenizer.parameters() if p.dim() == 4 and p.shape[1] > 1)
    assert weight.is_contiguous() == (fast == "contiguous")


def test_both_layouts_are_timed(config: TrainTokenizerConfig, accelerator: Accelerator) -> None:
    seconds = time_layouts(
        build_tokenizer(config.tokenizer), torch.zeros(1, 3, 32, 32), accelerator
    )
    assert set(seconds) == {"channels_last", "contiguous"} and min(seconds.values()) > 0


def test_a_resume_takes_the_layout_that_the_run_began_with(config: TrainTokenizerConfig) -> None:
    for layout in ("contiguous", "channels_last"):
        assert resolve(config, in_layout(config, layout)).run.memory_format == layout
    given = in_layout(config, "contiguous")
    assert resolve(given, in_layout(config, "channels_last")).run.memory_format == "contiguous"
    # Runs of earlier versions followed a rule: channels-last, but for bf16 on a CPU.
    assert resolve(config, config).run.memory_format == "channels_last"
    bf16 = dataclasses.replace(config.run, mixed_precision="bf16")
    old = dataclasses.replace(config, run=bf16)
    expected = "channels_last" if torch.cuda.is_available() else "contiguous"
    assert resolve(old, old).run.memory_format == expected


def test_the_choice_stands_in_the_runs_config_and_a_resume_does_not_time(
    command: Callable[..., Result],
    debug_config: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = {"channels_last": 2.0, "contiguous": 1.0}
    monkeypatch.setattr(tessella.train.layout, "time_layouts", lambda *_: times)
    out, words = tmp_path / "run", (AUTO, "run.steps=1", f"data.source={pictures}")
    start = ("--config", debug_config, "--out", out, *words)
    assert command(*start).exit_code == 0
    stored = load_config(TrainTokenizerConfig, out / "config.yaml")
    assert stored.run.memory_format == "contiguous"
    times["contiguous"] = 3.0
    result = command(*start, "--resume")
    assert result.exit_code == 0 and "contiguous memory" in result.output, result.output
    assert load_config(TrainTokenizerConfig, out / "config.yaml") == stored
