"""What a generator cannot be trained on is refused with one message and leaves nothing behind."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file

from tessella.checkpoints import load_generator, load_tokenizer, save_tokenizer
from tessella.data.images import to_uint8
from tessella.data.loader import eval_batches
from tessella.data.sources import open_source
from tessella.files import add_to_marker
from tessella.metrics.image import psnr
from tessella.tokenizers.build import build_tokenizer
from tessella.tokenizers.networks.conv_autoencoder import ConvAutoencoderConfig
from tessella.tokenizers.probe import PROBE, choose_probe, store_probe
from tessella.tokenizers.quantizers.fsq import FSQConfig
from tessella.tokenizers.quantizers.lfq import LFQConfig
from tessella.tokenizers.vqgan import VQGANConfig
from tessella.tokens.store import TokenStore, TokenStoreWriter
from tessella.tokens.token_file import save_tensors

Command = Callable[..., Result]

MASKGIT = "{type: maskgit, transformer: {width: 32, num_layers: 2, num_heads: 2}}"

REFUSED = {
    "missing tokenizer": (["tokenizer=/nowhere"], ["/nowhere: no such folder"]),
    "unknown bundled tokenizer": (
        ["tokenizer=bundled:bits-emoji-46"],
        ["did you mean bundled:bits-emoji-64?"],
    ),
    "missing data": (["data.source=/nowhere/at/all"], ["/nowhere/at/all: no such file"]),
    "missing store": (["data.store=/nowhere/at/all"], ["store.json is missing"]),
    "store and images": (["data.store=x", "data.tokens=images"], ["not read with tokens: images"]),
    "views without augmentation": (["data.views=4"], ["views: 4 with augmentation off"]),
    "augmentation without views": (["data.augment={flip: true}"], ["views: 1 with augmentation"]),
    "too few classes": (["generator.num_classes=2"], ["num_classes: 2, but the data has 3"]),
    "unknown generator": (["generator={type: maskbitt}"], ["unknown 'maskbitt'", "maskbit"]),
    "groups that do not fit": (["generator.codebook_sizes=[16, 4]"], ["256", "joint values"]),
    "more steps than slots": (["samples.num_steps=40"], ["40 steps for 32 slots"]),
    "unknown sampler setting": (["samples.steps=4"], ["samples: steps: unknown key"]),
    "no samples": (["samples_per_class=0"], ["samples_per_class: expected at least 1"]),
    "wrong average": (["ema_decay=1.0"], ["ema_decay: expected 0 to below 1"]),
    "not installed": (
        ["generator.transformer.attention=xformers"],
        ["xformers is not installed"],
    ),
}


def _assert_one_message(result: Result, *parts: str) -> None:
    """Exit status 1 and a single `Error:` line that holds every part."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exc_info
    lines = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1 and "Traceback" not in result.output, result.output
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize("what", REFUSED)
def test_refused_before_anything_is_written(
    what: str, generator_command: Command, tmp_path: Path
) -> None:
    overrides, parts = REFUSED[what]
    result = generator_command("--out", tmp_path / "run", *overrides)
    _assert_one_message(result, *parts)
    assert not list(tmp_path.iterdir())


def _tokenizer(folder: Path, quantizer: Any, *, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    networks = ConvAutoencoderConfig(
        base_channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1, norm_groups=4
    )
    config = VQGANConfig(resolution=16, autoencoder=networks, quantizer=quantizer)
    save_tokenizer(build_tokenizer(config), folder, overwrite=True)
    return folder


def test_a_place_that_cannot_be_written(generator_command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    result = generator_command("--out", tmp_path / "file" / "run")
    _assert_one_message(result, "cannot write", "Not a directory")


def test_store_of_another_tokenizer(
    generator_command: Command, store: Path, tmp_path: Path
) -> None:
    """Of the same tokens, so that only the fingerprint tells."""
    other = _tokenizer(tmp_path / "other", LFQConfig(bits=8), seed=1)
    words = [f"tokenizer={other}", f"data.store={store}"]
    result = generator_command("--out", tmp_path / "run", *words)
    _assert_one_message(result, str(store), "made by the tokenizer", "this tokenizer has")
    assert not (tmp_path / "run").exists()


def test_store_of_other_tokens(generator_command: Command, store: Path, tmp_path: Path) -> None:
    other = _tokenizer(tmp_path / "other", LFQConfig(bits=6))
    words = [f"tokenizer={other}", f"data.store={store}"]
    result = generator_command("--out", tmp_path / "run", *words)
    _assert_one_message(result, "4x4 tokens of (6x2)", "4x4 tokens of (8x2)")


def test_a_tokenizer_that_reconstructs_otherwise(
    generator_command: Command, tmp_path: Path, classes: Path
) -> None:
    """Weights as stored, but the PSNR beside them was another: nothing is trained on it."""
    folder = _tokenizer(tmp_path / "tokenizer", LFQConfig(bits=8))
    tokenizer = load_tokenizer(folder)
    images, source = choose_probe(open_source(classes, "val"), 16)
    store_probe(tokenizer, folder, images, source=source)
    tensors = load_file(folder / PROBE)
    tensors["psnr"] += 0.2
    about = {"source": source, "fingerprint": tokenizer.fingerprint or ""}
    save_tensors(tensors, folder / PROBE, about)
    add_to_marker(folder, PROBE)
    result = generator_command("--out", tmp_path / "run", f"tokenizer={folder}")
    _assert_one_message(result, "probe image 0 comes back at", "do not train on this tokenizer")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["shard", "probe", "decodes otherwise"])
def test_damaged_store(
    damage: str,
    generator_command: Command,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    parts = {
        "shard": ["shard-00000.safetensors: damaged, its SHA-256 is"],
        "probe": ["probe.safetensors is missing"],
        "decodes otherwise": ["row 0 decodes at", "dB when it was written"],
    }
    if damage == "shard":
        path = copy / "shard-00000.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "probe":
        (copy / "probe.safetensors").unlink()
    else:
        rows = TokenStore.rows

        def inverted(self: TokenStore, numbers: Any) -> Any:
            tokens = rows(self, numbers)
            return type(tokens)(1 - tokens.indices, tokens.spec)

        monkeypatch.setattr(TokenStore, "rows", inverted)
    result = generator_command("--out", tmp_path / "run", f"data.store={copy}")
    _assert_one_message(result, *parts[damage])
    assert not (tmp_path / "run").exists()


def test_tokens_that_are_not_bits(
    generator_command: Command, small_tokenizer: Path, tmp_path: Path
) -> None:
    """MaskBit refuses FSQ's five levels and names the generator that reads them."""
    other = _tokenizer(tmp_path / "other", FSQConfig(levels=(8, 5, 5)))
    result = generator_command("--out", tmp_path / "run", f"tokenizer={other}")
    _assert_one_message(result, "MaskBit reads bits", "use {type: maskgit}")
    words = [f"tokenizer={other}", f"generator={MASKGIT}", "run.steps=1"]
    assert generator_command("--out", tmp_path / "run", *words).exit_code == 0


def test_labels_out_of_range_in_a_store(
    generator_command: Command, small_tokenizer: Path, classes: Path, tmp_path: Path
) -> None:
    """Labels count even where the store does not name its classes."""
    tokenizer, path = load_tokenizer(small_tokenizer), tmp_path / "store"
    batch = next(eval_batches(open_source(classes, "train"), 16, 30))
    with TokenStoreWriter(
        path, tokenizer.spec, fingerprint=tokenizer.fingerprint or "", tokenizer="small",
        source=classes.name, resolution=16,
    ) as writer:  # fmt: skip
        tokens = tokenizer.encode(batch["images"])
        writer.add(tokens, batch["ids"], batch["labels"])
        decoded = tokenizer.decode(tokens[:1])
        writer.add_probe(to_uint8(batch["images"][:1]), [0], psnr(batch["images"][:1], decoded))
    words = ["--out", tmp_path / "run", f"data.store={path}", "run.steps=1"]
    result = generator_command(*words, "generator.num_classes=2")
    _assert_one_message(result, "num_classes: 2, but the data has 3 classes")
    assert not (tmp_path / "run").exists()
    result = generator_command(*words)
    assert result.exit_code == 0, result.output
    assert load_generator(tmp_path / "run" / "generator").num_classes == 3


def test_validation_of_other_data(
    generator_command: Command, store: Path, pictures: Path, tmp_path: Path
) -> None:
    """A store of one data set is not silently judged on another one."""
    words = [f"data.store={store}", f"data.source={pictures}", "run.steps=1"]
    result = generator_command("--out", tmp_path / "run", *words)
    _assert_one_message(result, "data.store is of 'classes0'", "data.val_source")
    words += [f"data.val_source={pictures}"]
    assert generator_command("--out", tmp_path / "run", *words).exit_code == 0


@pytest.mark.parametrize("what", ["tokenizer", "data"])
def test_another_tokenizer_or_other_data_on_resume(
    what: str, generator_command: Command, store: Path, classes: Path, tmp_path: Path
) -> None:
    """The folders have the same names as before, with something else in them."""
    model, data, out = tmp_path / "model", tmp_path / "data", tmp_path / "run"
    _tokenizer(model, LFQConfig(bits=8))
    shutil.copytree(classes, data)
    words = [f"tokenizer={model}", f"data.source={data}", "data.tokens=images", "run.steps=2"]
    assert generator_command("--out", out, *words).exit_code == 0
    if what == "tokenizer":
        _tokenizer(model, LFQConfig(bits=8), seed=1)
    else:
        (data / "train" / "dot" / "03.png").unlink()
    words[-1] = "run.steps=3"
    result = generator_command("--out", out, *words, "--resume")
    expected = {
        "tokenizer": ["would not be exact", "fingerprint of the tokenizer: was '"],
        "data": ["would not be exact", "images.count: was 30, now 29", "tokens.hash: was '"],
    }
    _assert_one_message(result, *expected[what])


def test_a_store_without_a_run_is_not_taken_for_ones_own(
    generator_command: Command, store: Path, tmp_path: Path
) -> None:
    shutil.copytree(store, tmp_path / "run" / "store")
    result = generator_command("--out", tmp_path / "run")
    _assert_one_message(result, "what a run would write, but no run: store", "data.store")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_only_broken_images(generator_command: Command, classes: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(classes, data)
    for path in (data / "train").rglob("*.png"):
        path.write_bytes(b"no picture")
    result = generator_command("--out", out, f"data.source={data}")
    _assert_one_message(result, "none of 30 images can be read")
    assert not out.exists()


@pytest.mark.parametrize("log_every", [1, 50])
def test_non_finite_loss_stops_the_run(
    log_every: int, generator_command: Command, store: Path, tmp_path: Path
) -> None:
    """With step and images of the batch; no checkpoint of spoilt weights replaces a good one."""
    out = tmp_path / "run"
    words = ["optimizer.lr.peak=1e30", "optimizer.lr.warmup_steps=0", f"run.log_every={log_every}"]
    words += ["run.steps=8", "run.checkpoint_every=1", "run.keep_checkpoints=1"]
    words += [f"data.store={store}", "optimizer.lr.schedule=constant"]
    result = generator_command("--out", out, *words)
    _assert_one_message(result, "not finite at step ", "last batch: ", ".png", "loss")
    step = int(result.output.split("not finite at step ")[1].split(";")[0])
    (kept,) = (out / "checkpoints").iterdir()
    assert int(kept.name.removeprefix("step_")) == step - 1
    assert not (out / "generator").exists()
