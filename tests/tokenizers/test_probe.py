"""Probe images: a tokenizer folder proves that it still computes what was measured."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from tessella.checkpoints import find_folder, load_tokenizer, read_card, save_tokenizer
from tessella.cli.main import main
from tessella.data.sources import open_source
from tessella.metrics.image import psnr
from tessella.tokenizers.base import Tokenizer
from tessella.tokenizers.build import build_tokenizer
from tessella.tokenizers.networks.conv_autoencoder import ConvAutoencoderConfig
from tessella.tokenizers.probe import (
    PROBE,
    NoProbe,
    ProbeError,
    choose_probe,
    store_probe,
    synthetic_probe,
    verify_probe,
)
from tessella.tokenizers.quantizers.lfq import LFQConfig
from tessella.tokenizers.vqgan import VQGANConfig

CONFIG = VQGANConfig(
    resolution=32,
    autoencoder=ConvAutoencoderConfig(
        base_channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1, norm_groups=4
    ),
    quantizer=LFQConfig(bits=4),
)


def built(seed: int = 0) -> Tokenizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_tokenizer(CONFIG).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    probe = choose_probe(open_source("bundled:emoji", "val"), 32)
    save_tokenizer(built(), tmp_path / "tokenizer", probe=probe, dtype=torch.float16)
    return tmp_path / "tokenizer"


def run(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def rewrite(folder: Path, **changes: torch.Tensor) -> None:
    from safetensors import safe_open

    with safe_open(folder / PROBE, "pt") as file:
        about = file.metadata()
    save_file(load_file(folder / PROBE) | changes, folder / PROBE, about)


def test_stored_values_are_those_of_the_weights_in_the_file(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    stored = load_file(folder / PROBE)
    assert stored["images"].shape == (8, 3, 32, 32)
    images = stored["images"].float() / 127.5 - 1
    expected = psnr(images, tokenizer.decode(tokenizer.encode(images)))
    torch.testing.assert_close(stored["psnr"], expected)
    result = verify_probe(tokenizer, folder)
    assert result.source == "emoji (val)"
    assert result.largest_difference < 1e-9
    source = open_source("bundled:emoji", "val")
    spread = [source.read(i * len(source) // 8).id for i in range(8)]
    assert len(set(spread)) == 8


def test_the_command(folder: Path) -> None:
    told = json.loads(run("verify", folder, "--json").stdout)
    assert told["verified"] and told["images"] == 8 and told["largest_difference_db"] < 1e-9
    assert "verified" in run("verify", folder).stdout
    (folder / PROBE).unlink()
    result = run("verify", folder, code=1)
    assert f"tessella verify {folder} --store" in result.stderr
    run("verify", folder, "--store", "--split", "train")
    assert "emoji (train)" in run("verify", folder).stdout


def test_weights_that_compute_something_else_are_found(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    with torch.no_grad():
        tokenizer.last_layer.mul_(1.5)
    with pytest.raises(ProbeError, match=r"probe image \d comes back at .* dB, it was .* dB"):
        verify_probe(tokenizer, folder)
    assert verify_probe(tokenizer, folder, tolerance_db=50).largest_difference > 0.1


def test_a_probe_of_nan_proves_nothing(folder: Path) -> None:
    rewrite(folder, psnr=torch.full((8,), torch.nan, dtype=torch.float64))
    assert "stored values of PSNR are not finite" in run("verify", folder, code=1).stderr


def test_stored_images_are_not_replaced_unasked(folder: Path) -> None:
    before = (folder / PROBE).read_bytes()
    result = run("verify", folder, "--store", code=1)
    assert "exists already" in result.stderr and "--overwrite" in result.stderr
    assert (folder / PROBE).read_bytes() == before
    run("verify", folder, "--store", "--overwrite", "--split", "train")
    assert (folder / PROBE).read_bytes() != before
    result = run("verify", "bundled:bits-emoji-64", "--store", code=1)
    assert "in folders of your own only" in result.stderr


def test_damaged_and_foreign_probes(folder: Path, tmp_path: Path) -> None:
    whole = (folder / PROBE).read_bytes()
    other = tmp_path / "other"
    save_tokenizer(built(seed=1), other)
    with pytest.raises(NoProbe):
        verify_probe(load_tokenizer(other), other)
    (other / PROBE).write_bytes(whole)
    with pytest.raises(ProbeError, match="measured with the tokenizer"):
        verify_probe(load_tokenizer(other), other)
    tokenizer = load_tokenizer(folder)
    (folder / PROBE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ProbeError, match="truncated or damaged"):
        verify_probe(tokenizer, folder)
    (folder / PROBE).write_bytes(whole)
    rewrite(folder, psnr=torch.zeros(3))
    with pytest.raises(ProbeError, match=r"8 images, \(3,\) values"):
        verify_probe(tokenizer, folder)
    rewrite(folder, images=torch.zeros(8, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ProbeError, match="expected uint8 images of 32 pixels"):
        verify_probe(tokenizer, folder)


def test_a_generator_is_verified_with_its_tokenizer(folder: Path) -> None:
    told = json.loads(run("verify", "maskbit-emoji-64", "--json").stdout)
    assert told["verified"] and told["tokenizer"] == "bundled:bits-emoji-64"
    assert told["generator"] == "maskbit-emoji-64"
    assert (
        told["generator_fingerprint"] == read_card(find_folder("maskbit-emoji-64"))["fingerprint"]
    )


def test_changed_weights_of_the_same_shapes_are_found(folder: Path) -> None:
    """A square matrix that is transposed, or two weights exchanged, fit the network."""
    weights = folder / "model.safetensors"
    state = load_file(weights)
    square = next(n for n, t in state.items() if t.ndim == 4 and t.shape[0] == t.shape[1])
    save_file(state | {square: state[square].transpose(0, 1).contiguous()}, weights)
    said = run("verify", folder, code=1).stderr
    assert "changed or damaged; fingerprint" in said and said.count("\n") == 1


def test_photographs_need_not_be_stored(folder: Path) -> None:
    (folder / PROBE).unlink()
    said = run("verify", folder, "--store").stderr
    assert "holds 8 images of emoji (val)" in said and "whoever gets the folder sees them" in said
    assert "--no-probe-images stores synthetic ones" in said
    said = run("verify", folder, "--store", "--overwrite", "--no-probe-images").stderr
    assert "holds 8 synthetic images" in said
    assert "synthetic" in run("verify", folder).stdout
    assert "give --store with it" in run("verify", folder, "--no-probe-images", code=1).stderr


def test_synthetic_images_find_other_weights(folder: Path) -> None:
    tokenizer, (images, source) = load_tokenizer(folder), synthetic_probe(32)
    assert images.shape == (8, 3, 32, 32) and images.dtype == torch.uint8
    assert source == "synthetic" and len(images.flatten(1).unique(dim=0)) == 8
    assert synthetic_probe(1)[0].shape == (8, 3, 1, 1)
    store_probe(tokenizer, folder, images, source=source)
    assert verify_probe(tokenizer, folder).largest_difference < 1e-9
    with torch.no_grad():
        tokenizer.last_layer.mul_(1.5)
    with pytest.raises(ProbeError, match=r"probe image \d comes back"):
        verify_probe(tokenizer, folder)


def test_the_shipped_tokenizer_computes_what_was_measured() -> None:
    tokenizer = load_tokenizer("bundled:bits-emoji-64")
    assert verify_probe(tokenizer, find_folder("bundled:bits-emoji-64")).largest_difference < 0.1
