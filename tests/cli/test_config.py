"""`tessella config`: every key has a meaning, defaults are the real ones, the page is current."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import tessella
from tessella.cli.config_keys import REQUIRED, keys_of, sampler_sections, sections_of
from tessella.cli.main import main
from tessella.config import ConfigError, build_config, parse_yaml, to_dict
from tessella.sample.samplers import SAMPLERS
from tessella.train.generator_recipe import TrainGeneratorConfig
from tessella.train.tokenizer_recipe import TrainTokenizerConfig

ROOTS = {"tokenizer": TrainTokenizerConfig, "generator": TrainGeneratorConfig}
PAGE = Path(tessella.__file__).parent / "docs" / "configuration.md"


def run(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["config", *words])
    assert result.exit_code == code, result.output
    return result


def classes_of(root: type) -> set[type]:
    """Every config class of a tree."""
    found = {root}
    for key in keys_of(root):
        for config in key.configs.values():
            found |= classes_of(config)
    return found


@pytest.mark.parametrize("what", ROOTS)
def test_every_key_has_a_meaning_and_its_real_default(what: str) -> None:
    for cls in classes_of(ROOTS[what]):
        fields = {item.name: item for item in dataclasses.fields(cls)}
        keys = {key.name: key for key in keys_of(cls)}
        assert keys.keys() == fields.keys()
        for name, key in keys.items():
            where, item = f"{cls.__name__}.{name}", fields[name]
            assert len(key.about) > 5, f"{where} has no line in the docstring"
            assert key.kind, where
            if item.default_factory is not dataclasses.MISSING:
                usual = [_built(config) for config in key.configs.values()] or [{}]
                assert item.default_factory() in usual, where
            elif item.default is dataclasses.MISSING:
                assert key.default == REQUIRED, where
            else:
                assert parse_yaml(key.default) == json.loads(json.dumps(item.default)), where


def _built(cls: type) -> Any:
    """A config with its defaults; None if it has keys without one."""
    required = any(key.default == REQUIRED for key in keys_of(cls))
    return None if required else cls()


def test_sections_stand_once_with_all_their_places() -> None:
    titles = [section.title for section in sections_of(TrainTokenizerConfig)]
    assert titles[0] == "top level"
    assert "optimizer.lr, adversarial.optimizer.lr" in titles
    assert "tokenizer.quantizer (tokenizer type: vqgan), type: fsq" in titles
    around = "tokenizer type: vqgan or binary_autoencoder"
    assert f"tokenizer.quantizer ({around}), type: bernoulli" in titles
    assert len(titles) == len(set(titles)) == len(classes_of(TrainTokenizerConfig))
    kinds = {kind for s in sampler_sections() for kind in s.places["samples"]["generator"]}
    assert kinds == SAMPLERS.keys()


def test_the_text_names_types_defaults_and_inherited_meanings() -> None:
    text = " ".join(run("generator").output.split())
    assert "unmasked_weight=0.0 Weight of visible slots in the loss, relative to 1" in text
    assert "section with type maskbit, maskgit, bld, bigr, bfn, ar" in text
    assert "tokens=store" in text and "(store or images)" in text
    assert "betas=[0.9, 0.999] Decay of the two moments. (list of 2 numbers)" in text
    assert "halton_groups=passes" in text
    only = run("generator", "generator.type=ar").output
    assert "num_depth_layers=1" in only and "unmasked_weight" not in only
    assert "halton_groups" not in only and "data.augment:" in only


@pytest.mark.parametrize(
    ("what", "types", "filled"),
    [
        (
            "tokenizer",
            ["tokenizer.quantizer.type=lfq"],
            {
                "tokenizer": {"quantizer": {"bits": 14}},
                "loss_weights": {"reconstruction": 1.0},
                "optimizer": {"lr": {"peak": 1e-4}},
                "run": {"steps": 10, "batch_size_per_device": 4},
            },
        ),
        (
            "generator",
            ["generator.type=maskgit"],
            {
                "tokenizer": "bundled:bits-emoji-64",
                "optimizer": {"lr": {"peak": 1e-4}},
                "run": {"steps": 10, "batch_size_per_device": 4},
            },
        ),
    ],
)
def test_the_yaml_is_a_config_with_all_defaults(
    what: str, types: list[str], filled: dict[str, Any]
) -> None:
    text = run(what, "--yaml", *types).output
    data = parse_yaml(text)
    with pytest.raises(ConfigError, match=r"run\.steps"):
        build_config(ROOTS[what], data)

    def fill(section: dict[str, Any], values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, dict) and isinstance(section.get(name), dict):
                fill(section[name], value)
            else:
                assert section[name] is None, f"{name} is required, so it has no value"
                section[name] = value

    fill(data, filled)
    built = build_config(ROOTS[what], data)
    short = {**filled}
    for word in types:
        path, _, name = word.partition(".type=")
        first, *rest = path.split(".")
        short[first] = short.get(first, {})
        inner = short[first]
        for part in rest:
            inner = inner[part]
        inner["type"] = name
    if what == "tokenizer":
        short["tokenizer"]["type"] = "vqgan"
    assert to_dict(built) == to_dict(build_config(ROOTS[what], short))
    assert "# Optimizer steps. (whole number)\n  steps:\n" in text


def test_the_page_of_the_documentation_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == run("--markdown").output, (
        "a key was changed: tessella config --markdown > docs/configuration.md"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "expected tokenizer or generator, or --markdown"),
        (("tokenizer", "tokenizer.type=vqgam"), "expected one of vqgan, binary_autoencoder"),
        (("tokenizer", "data.type=x"), "tokenizer.quantizer.type=NAME"),
        (("generator", "generator"), "expected one of generator.type=NAME"),
        (("generator", "--markdown"), "expected nothing else with it"),
    ],
)
def test_wrong_use_is_refused(words: tuple[str, ...], message: str) -> None:
    assert message in run(*words, code=1).stderr
