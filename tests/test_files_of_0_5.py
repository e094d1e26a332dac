"""Model folders, stores, tokens, configs and samples of version 0.5 are read unchanged."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import tessella
from tessella.cli.main import main
from tessella.config import ConfigError, build_config, read_yaml
from tessella.tokenizers.binary_autoencoder import BinaryAutoencoder, BinaryAutoencoderConfig
from tessella.tokenizers.build import TokenizerConfig, build_tokenizer, tokenizer_config
from tessella.tokenizers.probe import check_store, verify_probe, verify_store_probe
from tessella.tokenizers.quantizers.bernoulli import BernoulliConfig
from tessella.tokenizers.quantizers.lfq import LFQ, LFQConfig
from tessella.tokenizers.vqgan import VQGANConfig
from tessella.train.tokenizer_recipe import TrainTokenizerConfig

FILES = Path(__file__).parent / "files_of_0_5"


@pytest.mark.parametrize("name", ["bits", "binary"])
def test_tokenizers_load_with_their_fingerprints_and_reconstruct_as_they_did(name: str) -> None:
    tokenizer = tessella.load_tokenizer(FILES / name)
    card = json.loads((FILES / name / "card.json").read_text())
    assert tokenizer.fingerprint == card["fingerprint"]
    assert verify_probe(tokenizer, FILES / name).largest_difference < 1e-3
    assert isinstance(tokenizer, BinaryAutoencoder) == (name == "binary")


def test_a_model_that_is_saved_again_keeps_its_fingerprint(tmp_path: Path) -> None:
    tokenizer = tessella.load_tokenizer(FILES / "binary")
    card = tessella.save_tokenizer(tokenizer, tmp_path / "again")
    assert card["fingerprint"] == tokenizer.fingerprint
    assert isinstance(tessella.load_tokenizer(tmp_path / "again"), BinaryAutoencoder)


def test_a_generator_draws_the_tokens_that_it_drew() -> None:
    generator = tessella.load_generator(FILES / "generator")
    tokens = tessella.generate(generator, [0, 1, -1], seeds=[5, 6, 7])
    assert tokens.equal(tessella.load_tokens(FILES / "tokens.safetensors"))


def test_a_store_is_read_and_verified() -> None:
    store, tokenizer = tessella.TokenStore(FILES / "store"), tessella.load_tokenizer(FILES / "bits")
    check_store(store, tokenizer)
    assert len(verify_store_probe(store, tokenizer)) == 4
    images = tessella.read_images(FILES / "pictures" / "train", resolution=16)
    by_id = {name: row for row, name in enumerate(store.ids)}
    assert len(images) == len(store) == 4 and set(by_id) == {
        *("square/1.png", "square/3.png", "stripes/0.png", "stripes/2.png")
    }
    assert store[:].equal(tokenizer.encode(images))


def test_info_reads_each_of_them() -> None:
    kinds = {"bits": "tokenizer", "generator": "generator", "store": "token store"}
    for name, kind in (kinds | {"tokens.safetensors": "tokens"}).items():
        result = CliRunner().invoke(main, ["info", str(FILES / name), "--json"])
        assert result.exit_code == 0, result.output
        assert json.loads(result.output)["kind"] == kind


def test_recipes_of_0_5_build_what_they_built() -> None:
    """0.5 had no type of its own for binary autoencoders, and `type` could be left out."""
    section = read_yaml(FILES / "binary" / "config.yaml")
    assert section["type"] == "vqgan"
    config = tokenizer_config(section, name="recipe")
    assert isinstance(config, BinaryAutoencoderConfig)
    assert isinstance(build_tokenizer(config), BinaryAutoencoder)
    bits = {key: v for key, v in read_yaml(FILES / "bits" / "config.yaml").items() if key != "type"}
    assert isinstance(tokenizer_config(bits, name="recipe"), VQGANConfig)
    run = {"steps": 1, "batch_size_per_device": 1}
    data = {"tokenizer": section, "data": {"source": "bundled:emoji"}, "run": run}
    data |= {"loss_weights": {"reconstruction": 1.0}, "optimizer": {"lr": {"peak": 1e-3}}}
    recipe = build_config(TrainTokenizerConfig, data)
    assert isinstance(recipe.tokenizer, BinaryAutoencoderConfig)


def test_a_vqgan_of_bernoulli_bits_is_refused_and_the_type_named() -> None:
    with pytest.raises(ValueError, match="expected type: binary_autoencoder in place of vqgan"):
        VQGANConfig(quantizer=BernoulliConfig(bits=4, dim=4))
    for data, message in (
        ({"type": "vqgun", "quantizer": {"type": "lfq", "bits": 4}}, "unknown 'vqgun'; did you"),
        ({"type": "binary_autoencoder", "quantizer": {"type": "lfq", "bits": 4}}, "quantizer"),
        ({"type": 3, "quantizer": {"type": "lfq", "bits": 4}}, "type: required, not given"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_config(TokenizerConfig, data, name="recipe")


def test_quantizers_take_settings_in_place_of_a_config() -> None:
    assert LFQ(bits=6).config == LFQConfig(bits=6)
    assert LFQ(LFQConfig(bits=6))(torch.zeros(1, 2, 6)).indices.shape == (1, 2, 6)
    with pytest.raises(ConfigError, match="bitz: unknown key; did you mean 'bits'"):
        LFQ(bitz=6)
    with pytest.raises(TypeError, match="give a LFQConfig or settings, not both"):
        LFQ(LFQConfig(bits=6), bits=6)
