"""Configs: what YAML means, what overrides do, and that every fault is named."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from tessella.config import (
    STRICT,
    ConfigError,
    apply_overrides,
    build_config,
    load_config,
    parse_yaml,
    read_yaml,
    to_dict,
    to_yaml,
)
from tessella.tests.cases import over
from tessella.tokenizers.quantizers.bsq import BSQConfig
from tessella.tokenizers.quantizers.build import QuantizerConfig
from tessella.tokenizers.quantizers.lfq import LFQConfig
from tessella.tokenizers.vqgan import VQGANConfig

LFQ = {"type": "lfq", "bits": 6}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run, as the entry points have them."""

    __pydantic_config__ = STRICT
    tokenizer: VQGANConfig
    lr: float = 1e-4
    steps: int = 10
    name: str = "run"
    shuffle: bool = True


def run(**changes: Any) -> dict[str, Any]:
    return {"tokenizer": {"quantizer": LFQ}} | changes


@over(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        ("-2E+3", -2000.0),
        (".5", 0.5),
        ("1_000.5", 1000.5),
        ("5_000", 5000),
        ("no", "no"),
        ("off", "off"),
        ("False", False),
        ("TRUE", True),
        ('"no"', "no"),
        ('"1e-4"', "1e-4"),
        ("e4", "e4"),
        ("2026-11-21", "2026-11-21"),
        ("", None),
    ],
)
def test_yaml_scalars(text: str, value: Any) -> None:
    found = parse_yaml(f"a: {text}")["a"]
    assert found == value
    assert type(found) is type(value)


def test_exponents_reach_float_fields(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("tokenizer: {quantizer: {type: lfq, bits: 6}}\nlr: 1e-4\n")
    assert load_config(RunConfig, path).lr == 1e-4
    assert load_config(RunConfig, path, ["lr=3e-5", "steps=7"]).lr == 3e-5


def test_exponents_and_whole_floats_reach_integer_fields(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("tokenizer: {quantizer: {type: lfq, bits: 6.0}}\nsteps: 2e3\n")
    found = load_config(RunConfig, path)
    assert (found.steps, type(found.steps)) == (2000, int)
    assert found.tokenizer.quantizer.bits == 6
    assert load_config(RunConfig, path, ["steps=1e4"]).steps == 10_000
    built = build_config(RunConfig, run(steps=1e3, lr=1.0))
    assert (built.steps, built.lr, type(built.lr)) == (1000, 1.0, float)
    for wrong in (1e-3, 1e300, True):
        with pytest.raises(ConfigError, match="steps: Input should be a valid integer"):
            build_config(RunConfig, run(steps=wrong))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", r"here: .*'a' appears twice[\s\S]*line 3"),
        ("a: {b: 1, b: 2}", "'b' appears twice"),
        ("a: [1", "here: not valid YAML"),
        ("[1]: 2", "a key must be a word, found list"),
        ("a: !!python/object:os.system {}", "not valid YAML"),
    ],
)
def test_yaml_faults(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_yaml(text, name="here")


def test_files_that_are_no_configs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the config"):
        read_yaml(tmp_path / "nothing.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match=r"expected `key: value` lines, found list"):
        read_yaml(tmp_path / "list.yaml")


def test_every_wrong_type_is_listed_at_once() -> None:
    quantizer = {"type": "lfq", "bits": True, "entropy_temperature": "1e-4"}
    autoencoder = {"channel_multipliers": [1, "2"]}
    tokenizer = {"quantizer": quantizer, "resolution": "256", "autoencoder": autoencoder}
    with pytest.raises(ConfigError) as caught:
        build_config(RunConfig, run(tokenizer=tokenizer, lr="fast", steps=1.5), name="mine.yaml")
    message = str(caught.value)
    assert message.startswith("mine.yaml: ")
    for part in (
        "tokenizer.quantizer.bits: Input should be a valid integer (found True)",
        "tokenizer.quantizer.entropy_temperature: Input should be a valid number (found '1e-4')",
        "tokenizer.resolution: Input should be a valid integer (found '256')",
        "tokenizer.autoencoder.channel_multipliers.1: Input should be a valid integer (found '2')",
        "lr: Input should be a valid number (found 'fast')",
        "steps: Input should be a valid integer (found 1.5)",
    ):
        assert part in message


@over(
    ("data", "message"),
    [
        (run(stepz=1), r"stepz: unknown key; did you mean 'steps'\?"),
        (run(zzz=1), "zzz: unknown key; known keys: lr, name, shuffle, steps, tokenizer"),
        (
            run(tokenizer={"quantizer": LFQ | {"bitz": 3}}),
            r"tokenizer\.quantizer\.bitz: unknown key; did you mean 'bits'\?",
        ),
        (
            run(tokenizer={"quantizer": {"type": "fsq", "levels": [5], "bits": 3}}),
            r"tokenizer\.quantizer\.bits: unknown key; known keys: levels, symmetric, type",
        ),
        (
            run(tokenizer={"quantizer": {"type": "lfqq", "bits": 3}}),
            r"tokenizer\.quantizer\.type: unknown 'lfqq'; did you mean 'lfq'\? .*'fsq'",
        ),
        (
            run(tokenizer={"quantizer": {"type": "zzz"}}),
            r"quantizer\.type: unknown 'zzz'; there are 'vq', 'ema_vq'",
        ),
        (
            run(tokenizer={"quantizer": {"bits": 3}}),
            r"tokenizer\.quantizer\.type: required, not given",
        ),
        (run(tokenizer={"quantizer": {"type": "lfq"}}), r"quantizer\.bits: required, not given"),
        ({}, "tokenizer: required, not given"),
        (run(tokenizer={"quantizer": 3}), r"tokenizer\.quantizer: .*object \(found 3\)"),
        (
            run(tokenizer={"quantizer": LFQ, "resolution": 100}),
            "tokenizer: resolution: expected a multiple of the stride 16, found 100",
        ),
        (run(shuffle=1), r"shuffle: Input should be a valid boolean \(found 1\)"),
        ([], "top level: Input should be an object"),
    ],
)
def test_faults_say_where_and_what(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(RunConfig, data)


def test_values_that_json_lacks_are_refused() -> None:
    with pytest.raises(ConfigError, match="bytes"):
        build_config(RunConfig, apply_overrides(run(name=b"x"), ["lr=1"]))


def test_overrides_set_nested_values_and_keep_the_original() -> None:
    data = run()
    changed = apply_overrides(data, ["tokenizer.quantizer.bits=8", "a.b.c=[1, 2]", "name=x=y"])
    assert changed["tokenizer"]["quantizer"] == {"type": "lfq", "bits": 8}
    assert changed["a"] == {"b": {"c": [1, 2]}}
    assert changed["name"] == "x=y"
    assert data == run()


def test_override_switches_the_quantizer() -> None:
    data = apply_overrides(run(), ["tokenizer.quantizer={type: bsq, bits: 12}"])
    assert build_config(RunConfig, data).tokenizer.quantizer == BSQConfig(bits=12)
    lfq = {"quantizer": LFQ | {"entropy_temperature": 0.5}}
    merged = apply_overrides(run(tokenizer=lfq), ["tokenizer.quantizer={bits: 12}"])
    expected = LFQConfig(bits=12, entropy_temperature=0.5)
    assert build_config(RunConfig, merged).tokenizer.quantizer == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "'steps': expected key=value"),
        ("=3", "expected key=value"),
        ("steps.x=3", "'steps' holds a value, not a section"),
        ("steps=[1", "override 'steps=.1': not valid YAML"),
    ],
)
def test_override_faults(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_overrides(run(steps=3), [override])


@pytest.mark.parametrize(
    "quantizer",
    [
        {"type": "vq", "codebook_size": 8, "dim": 4, "entropy_temperature": 1e-7},
        {"type": "ema_vq", "codebook_size": 8, "dim": 4},
        LFQ,
        {"type": "bsq", "bits": 6},
        {"type": "fsq", "levels": [8, 5, 5, 5]},
    ],
    ids=lambda quantizer: quantizer["type"],
)
def test_yaml_round_trip(quantizer: dict[str, Any]) -> None:
    data = run(tokenizer={"quantizer": quantizer}, name="1e4", lr=1e-7, shuffle=False)
    config = build_config(RunConfig, data)
    assert build_config(RunConfig, parse_yaml(to_yaml(config))) == config
    assert to_dict(config)["tokenizer"]["autoencoder"]["channel_multipliers"] == [1, 1, 2, 2, 4]


@over("name", ["1e4", "no", "12", "2026-11-21", "null", "", "a: b", "#", "1.5"])
def test_strings_stay_strings(name: str) -> None:
    config = build_config(RunConfig, run(name=name))
    assert build_config(RunConfig, parse_yaml(to_yaml(config))).name == name
    if name[:4] != "2026":  # others read a date
        assert yaml.safe_load(to_yaml(config))["name"] == name


def test_configs_are_frozen_and_union_builds_alone() -> None:
    config = build_config(QuantizerConfig, LFQ)
    assert config == LFQConfig(bits=6)
    with pytest.raises(AttributeError):
        config.bits = 7
    assert TypeAdapter(QuantizerConfig).json_schema()["discriminator"]["propertyName"] == "type"


def test_null_removes_a_key_so_that_its_default_applies() -> None:
    data = {"loss_weights": {"reconstruction": 1.0, "entropy": 0.1}, "ema_decay": 0.5}
    changed = apply_overrides(data, ["loss_weights.entropy=null", "ema_decay=null"])
    assert changed == {"loss_weights": {"reconstruction": 1.0}}
    assert apply_overrides(data, ["adversarial=null"]) == data
