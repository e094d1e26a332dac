"""Rules of attention: which fits first, rules measured on the machine, and what is logged."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tessella.config import ConfigError, to_yaml
from tessella.generators.networks import attention_rules
from tessella.generators.networks.attention_rules import (
    HEADS,
    LENGTHS,
    RULES,
    AttentionRule,
    RuleFile,
    choose_kernel,
    class_of,
    measured_rules,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
NAME = "NVIDIA H200"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing remembered, and a Hopper GPU for those who ask."""
    monkeypatch.delenv(attention_rules.RULES_VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: NAME)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for cached in (choose_kernel, measured_rules):
        cached.cache_clear()
    yield
    for cached in (choose_kernel, measured_rules):
        cached.cache_clear()


def write(path: Path, *rules: AttentionRule) -> str:
    path.write_text(to_yaml(RuleFile(about="a test", rules=rules)), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("tokens", "expected"), [(1, 1), (128, 1), (129, 129), (1023, 769), (10**6, 3073)]
)
def test_length_classes(tokens: int, expected: int) -> None:
    assert class_of(tokens, LENGTHS) == expected


@pytest.mark.parametrize(
    ("tokens", "head_dim", "training", "dtype", "expected"),
    [
        (257, 64, False, torch.bfloat16, "sdpa"),
        (576, 64, False, torch.bfloat16, "sdpa"),
        (1024, 64, False, torch.bfloat16, "cudnn"),
        (1024, 64, False, torch.float32, "sdpa"),
        (576, 128, False, torch.float16, "cudnn"),
        (257, 64, True, torch.bfloat16, "cudnn"),
    ],
)
def test_hopper(
    tokens: int, head_dim: int, training: bool, dtype: torch.dtype, expected: str
) -> None:
    length, head = class_of(tokens, LENGTHS), class_of(head_dim, HEADS)
    way = choose_kernel(GPU, dtype, length, head, training=training)
    assert way == expected


def test_other_gpus_keep_the_order_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert choose_kernel(GPU, torch.bfloat16, 3073, 65, training=True) == "sdpa"


def test_no_built_in_rule_quantizes() -> None:
    assert not [rule for rule in RULES if rule.way == "low_bit"]
    assert all(rule.source for rule in RULES)


def test_measured_rules_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lossy = AttentionRule(way="low_bit", device=NAME, tokens=(769, 3073), source="measured")
    exact = AttentionRule(way="flash", device=NAME, tokens=(769, 3073), source="measured")
    other = AttentionRule(way="efficient", device="another GPU", source="measured")
    path = write(tmp_path / "rules.yaml", other, lossy, exact)
    monkeypatch.setenv(attention_rules.RULES_VARIABLE, path)
    half = torch.bfloat16
    assert choose_kernel(GPU, half, 769, 33, training=False) == "flash"
    assert choose_kernel(GPU, half, 769, 33, training=False, lossy=True) == "low_bit"
    assert choose_kernel(GPU, half, 769, 33, training=True, lossy=True) == "flash"
    assert choose_kernel(GPU, half, 385, 65, training=False) == "cudnn"
    assert choose_kernel(CPU, half, 1, 33, training=True) == "plain"


def test_a_rule_for_xformers_waits_until_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = AttentionRule(way="xformers", device="cuda", source="measured")
    monkeypatch.setenv(attention_rules.RULES_VARIABLE, write(tmp_path / "rules.yaml", rule))
    installed = {"xformers": None}
    monkeypatch.setattr(attention_rules.importlib.util, "find_spec", installed.get)
    assert choose_kernel(GPU, torch.float32, 129, 33, training=False) == "sdpa"
    choose_kernel.cache_clear()
    installed["xformers"] = object()  # type: ignore[assignment]
    assert choose_kernel(GPU, torch.float32, 129, 33, training=False) == "xformers"


def test_a_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tessella"):
        for _ in range(3):
            choose_kernel(CPU, torch.bfloat16, 1, 33, training=True)
        choose_kernel(CPU, torch.float32, 129, 33, training=False)
    assert len(caplog.records) == 2
    assert (
        "1 tokens or more, head dimension 33 or more, bfloat16 on cpu: plain (benchmarks"
        in caplog.text
    )
    assert "sdpa (no rule)" in caplog.text


def test_bad_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(attention_rules.RULES_VARIABLE, str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match="cannot read the config"):
        measured_rules()
    path = tmp_path / "rules.yaml"
    path.write_text("{about: x, rules: [{way: fast, source: x, device: cpu}]}", encoding="utf-8")
    monkeypatch.setenv(attention_rules.RULES_VARIABLE, str(path))
    with pytest.raises(ConfigError, match=r"rules\.0\.way"):
        measured_rules()
    with pytest.raises(ValueError, match=r"tokens: expected two of \(1, 129,.*found \(2, 129\)"):
        AttentionRule(way="sdpa", device="cpu", source="x", tokens=(2, LENGTHS[1]))
    with pytest.raises(ValueError, match=r"head_dims: .* in order, found \(33, 1\)"):
        AttentionRule(way="sdpa", device="cpu", source="x", head_dims=(33, 1))
