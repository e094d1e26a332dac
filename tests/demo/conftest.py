"""A tiny generator with its tokenizer, of the resolution at which the demo's losses work."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from click.testing import CliRunner

from tessella.checkpoints import save_generator, save_tokenizer
from tessella.cli.main import main
from tessella.demo import tuning
from tessella.generators.conditions import TextConfig
from tessella.generators.masked import MaskBitConfig, MaskedGenerator
from tessella.generators.networks.bert import TransformerConfig
from tessella.tokenizers.build import build_tokenizer
from tessella.tokenizers.networks.conv_autoencoder import ConvAutoencoderConfig
from tessella.tokenizers.quantizers.lfq import LFQConfig
from tessella.tokenizers.vqgan import VQGANConfig

CLASSES = ("face", "animal")


def save_models(root: Path, *, reads_text: bool) -> Path:
    """Write a tokenizer of 64 pixels, 4x4 tokens of 4 bits, and a generator; return its folder."""
    networks = ConvAutoencoderConfig(
        base_channels=4, channel_multipliers=(1, 1, 1, 1, 2), num_res_blocks=1, norm_groups=4
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = build_tokenizer(
            VQGANConfig(
                resolution=64,
                autoencoder=networks,
                quantizer=LFQConfig(bits=4, entropy_group_bits=4),
            )
        )
        card = save_tokenizer(tokenizer, root / "tokenizer")
        trunk = TransformerConfig(width=16, num_layers=1, num_heads=2, dropout=0.0)
        text = TextConfig() if reads_text else None
        config = MaskBitConfig(transformer=trunk, num_classes=len(CLASSES), text=text)
        generator = MaskedGenerator(config, tokenizer.spec)
    generator.classes = CLASSES
    save_generator(
        generator,
        root / "generator",
        tokenizer_path=root / "tokenizer",
        tokenizer_fingerprint=card["fingerprint"],
        card={"sampling": {"num_steps": 2, "guidance": 2.0}},
    )
    return root / "generator"


@pytest.fixture(scope="session")
def with_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a generator with two classes that reads no text."""
    return save_models(tmp_path_factory.mktemp("with_classes"), reads_text=False)


@pytest.fixture(scope="session")
def with_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a generator with two classes that reads text."""
    return save_models(tmp_path_factory.mktemp("with_words"), reads_text=True)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Commands of the demo run in this process; yields those that were run."""
    commands: list[str] = []

    def run(*words: str) -> None:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
        commands.append(" ".join(words))

    monkeypatch.setattr(tuning, "tessella", run)
    yield commands
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    PartialState._reset_state()
