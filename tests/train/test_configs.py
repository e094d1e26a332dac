"""Every YAML in configs/tokenizer/ and configs/generator/ is a run that could start."""

from pathlib import Path

import pytest
import torch

import tessella
from tessella.checkpoints import find_folder, read_config
from tessella.config import build_config, load_config, parse_yaml, to_yaml
from tessella.generators.build import build_generator
from tessella.metrics.networks.build import FEATURE_NAMES
from tessella.sample.samplers import with_steps
from tessella.tests.cases import over
from tessella.tokenizers.build import TokenizerConfig, build_tokenizer
from tessella.tokens.tokens import TokenSpec
from tessella.train.discriminator import build_discriminator
from tessella.train.generator_recipe import TrainGeneratorConfig, resolve_generator
from tessella.train.tokenizer_recipe import TrainTokenizerConfig, check_weights

CONFIGS = Path(tessella.__file__).parent / "configs"
FOLDER = CONFIGS / "tokenizer"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))
GENERATORS = sorted(path.name for path in (CONFIGS / "generator").glob("*.yaml"))


def test_there_are_configs() -> None:
    assert {"bits_emoji_64.yaml", "debug.yaml"} <= set(FILES)
    assert {"maskbit_emoji_64.yaml", "maskgit_emoji_64.yaml", "debug.yaml"} <= set(GENERATORS)


@pytest.mark.parametrize("name", FILES)
def test_config_loads_and_builds(name: str) -> None:
    """Validates, weighs every loss, builds both networks on the meta device, survives YAML."""
    config = load_config(TrainTokenizerConfig, FOLDER / name)
    with torch.device("meta"):
        tokenizer = build_tokenizer(config.tokenizer)
        if config.adversarial is not None:
            logits = build_discriminator(config.adversarial.discriminator)(
                torch.empty(1, 3, tokenizer.resolution, tokenizer.resolution)
            )
            assert logits.ndim == 4 and logits.shape[:2] == (1, 1)
    assert set(config.losses.perceptual) <= set(FEATURE_NAMES)
    check_weights(config, tokenizer.loss_names)
    assert tokenizer.num_parameters()["total"] > 0
    again = build_config(TrainTokenizerConfig, parse_yaml(to_yaml(config)))
    assert again == config
    assert load_config(TrainTokenizerConfig, FOLDER / name, ["run.minutes=6"]).run.minutes == 6


@pytest.mark.parametrize("name", GENERATORS)
def test_generator_config_loads_and_builds(name: str) -> None:
    """For the tokens of its tokenizer, on the meta device; its samples are possible."""
    config = load_config(TrainGeneratorConfig, CONFIGS / "generator" / name)
    side = 16 if "_256" in name else 8
    sizes = getattr(config.generator, "codebook_sizes", None)  # masked generators regroup
    spec = TokenSpec((side, side), sizes or (2,) * 24)
    tokenizer = None
    recipe = FOLDER / f"{Path(config.tokenizer).parent.name}.yaml"  # runs/NAME/tokenizer
    if config.tokenizer.startswith("bundled:"):
        tokenizer = build_config(TokenizerConfig, read_config(find_folder(config.tokenizer)))
    elif recipe.is_file():
        tokenizer = load_config(TrainTokenizerConfig, recipe).tokenizer
    if tokenizer is not None:
        with torch.device("meta"):
            spec = build_tokenizer(tokenizer).spec
    resolved = resolve_generator(config, config.generator.num_classes or 10)
    with torch.device("meta"):
        generator = build_generator(resolved.generator, spec)
    assert generator.num_parameters()["total"] > 0
    assert all(parameter.is_meta for parameter in generator.parameters())
    assert with_steps(generator, config.sampling).num_steps
    again = build_config(TrainGeneratorConfig, parse_yaml(to_yaml(config)))
    assert again == config


def test_published_sizes() -> None:
    """Parameters of the published MaskBit models, by bits (arXiv:2409.16211 and its code)."""
    published = {10: 304_728_128, 12: 304_795_776, 14: 304_929_024, 16: 305_193_472}
    for bits, parameters in (published | {18: 305_720_320}).items():
        path = CONFIGS / "generator" / f"maskbit_{bits}bit_256.yaml"
        config = load_config(TrainGeneratorConfig, path)
        with torch.device("meta"):
            generator = build_generator(config.generator, TokenSpec((16, 16), (2,) * bits))
        assert generator.num_parameters()["total"] == parameters


@over(
    "name", [f"tokenizer/{name}" for name in FILES] + [f"generator/{name}" for name in GENERATORS]
)
def test_config_says_how_to_run_it(name: str) -> None:
    """The first line is the command, with this file's own name."""
    first = (CONFIGS / name).read_text(encoding="utf-8").splitlines()[0]
    script = f"accelerate launch train/{name.split('/')[0]}.py --config configs/{name}"
    assert first.startswith("# ") and script in first
