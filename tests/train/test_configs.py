"""Every YAML in configs/tokenizer/ is a run that could start."""

from pathlib import Path

import pytest
import torch

import tessella
from tessella.config import build_config, load_config, parse_yaml, to_yaml
from tessella.sample.metrics.features import FEATURE_NAMES
from tessella.tokenizers.build import build_tokenizer
from tessella.train.discriminator import build_discriminator
from tessella.train.recipe import TrainTokenizerConfig, check_weights

FOLDER = Path(tessella.__file__).parent / "configs" / "tokenizer"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))


def test_there_are_configs() -> None:
    assert {"bits_emoji_64.yaml", "debug.yaml"} <= set(FILES)


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


@pytest.mark.parametrize("name", FILES)
def test_config_says_how_to_run_it(name: str) -> None:
    """The first line is the command, with this file's own name."""
    first = (FOLDER / name).read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ") and f"--config configs/tokenizer/{name}" in first
