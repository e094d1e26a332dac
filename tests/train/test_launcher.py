"""What the launcher's environment asks for is obeyed or refused, never passed over."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

import tessella.train.launcher
from tessella.config import ConfigError
from tessella.train.launcher import check_environment, choose_precision, slow_precision


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "run.gradient_accumulation_steps is 1"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto", "is 1; set that key"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "set run.compile=true"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "cannot use DeepSpeed"),
        ("ACCELERATE_USE_FSDP", "true", "cannot use FSDP"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "expected no or bf16"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "run.mixed_precision is 'no'; change one"),
    ],
)
def test_what_contradicts_the_config_stops_the_run_before_it_writes(
    name: str,
    value: str,
    message: str,
    command: Callable[..., Result],
    debug_config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(name, value)
    result = command("--config", debug_config, "--out", tmp_path / "run")
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert result.exit_code == 1 and f"{name}={value}" in line and message in line
    assert not list(tmp_path.iterdir())


def test_what_agrees_with_the_config_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    check_environment(4)
    with pytest.raises(ConfigError, match="gradient_accumulation_steps is 2"):
        check_environment(2)


def test_precision_is_the_configs_then_the_launchers_then_the_machines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr(tessella.train.launcher, "native_precision", lambda: "no")
    assert [choose_precision(asked) for asked in ("auto", "no", "bf16")] == ["no", "no", "bf16"]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert [choose_precision(asked) for asked in ("auto", "bf16")] == ["bf16", "bf16"]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # what the launcher always says
    monkeypatch.setattr(tessella.train.launcher, "native_precision", lambda: "bf16")
    assert [choose_precision(asked) for asked in ("auto", "bf16")] == ["bf16", "bf16"]


def test_emulated_bf16_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tessella.train.launcher, "native_precision", lambda: "no")
    assert "bf16 has no units" in slow_precision("bf16") and slow_precision("no") == ""
    monkeypatch.setattr(tessella.train.launcher, "native_precision", lambda: "bf16")
    assert slow_precision("bf16") == ""
