"""Foreign files become model folders, whole; whatever is wrong with one is said in one line."""

import json
import os
import pickle
import re
import sys
import types
from argparse import Namespace
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import Tensor, nn

from tessella.checkpoints import load_generator, load_tokenizer, save_tokenizer
from tessella.cli.import_command import import_command
from tessella.config import build_config, to_yaml
from tessella.files import sha256_file
from tessella.generators.bigr import BigrConfig
from tessella.generators.binary_latent_diffusion import BinaryLatentDiffusionConfig
from tessella.generators.masked import MaskBitConfig, MaskGITConfig
from tessella.generators.networks.bert import TransformerConfig
from tessella.importers.import_checkpoint import import_checkpoint, published_sampling
from tessella.sample.generate import generate
from tessella.tests.importers import test_bigr as bigr
from tessella.tests.importers import test_binary_latent_diffusion as bld
from tessella.tokenizers.base import Tokenizer
from tessella.tokenizers.build import build_tokenizer
from tessella.tokenizers.networks.conv_autoencoder import ConvAutoencoderConfig
from tessella.tokenizers.quantizers.lfq import LFQConfig
from tessella.tokenizers.vqgan import VQGANConfig

State = dict[str, Tensor]
CONFIG = build_config(
    VQGANConfig,
    {
        "resolution": 16,
        "pixel_range": "unit",
        "autoencoder": {
            "base_channels": 32,
            "channel_multipliers": [1, 2],
            "num_res_blocks": 1,
            "shortcut": "legacy",
        },
        "quantizer": {"type": "lfq", "bits": 6},
    },
)


def tokenizer(seed: int = 0) -> Tokenizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_tokenizer(CONFIG).eval()


def published(model: Tokenizer) -> State:
    """The weights as a MaskBit tokenizer file has them, with the tables that it stores."""
    renamed = {}
    for name, tensor in model.state_dict().items():
        for pattern, replacement in (
            (r"encoder\.levels\.(\d)\.resample\.conv", r"encoder.down.\1.down_conv"),
            (r"decoder\.levels\.(\d)\.resample\.conv", r"decoder.up.\1.upsample_conv"),
            (r"encoder\.levels\.(\d)\.blocks", r"encoder.down.\1.res_blocks"),
            (r"decoder\.levels\.(\d)\.blocks", r"decoder.up.\1.res_blocks"),
            (r"\.mid\.", ".mid.res_blocks."),
            (r"\.shortcut\.", ".nin_shortcut."),
        ):
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor.clone(memory_format=torch.contiguous_format)
    return renamed | {"quantize.bits_to_indices": torch.tensor([1, 2, 4, 8, 16, 32])}


def same_weights(folder: Path, model: Tokenizer) -> bool:
    loaded = load_tokenizer(folder).state_dict()
    return all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_a_file_becomes_a_model_folder(tmp_path: Path) -> None:
    model, file = tokenizer(), tmp_path / "maskbit_tokenizer_6bit.bin"
    torch.save(published(model), file)
    before = torch.random.get_rng_state()
    result = import_checkpoint("maskbit-tokenizer", file, tmp_path / "out", resolution=16)
    assert torch.equal(torch.random.get_rng_state(), before)
    loaded = load_tokenizer(tmp_path / "out")
    assert loaded.config == CONFIG
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = model.encode(images)
    assert loaded.encode(images).equal(tokens)
    assert torch.equal(loaded.decode(tokens), model.decode(tokens))
    assert result == {
        "kind": "tokenizer",
        "format": "maskbit-tokenizer",
        "out": str(tmp_path / "out"),
        "tokens": "8x8 tokens of (6x2)",
        "parameters": model.num_parameters(),
        "container": "PyTorch file",
        "sections": {"": len(published(model))},
        "section": "",
        "weights": "as stored",
        "stored_as": ["float32", "int64"],
        "fingerprint": loaded.fingerprint,
        "missing": [],
        "unexpected": [],
        "dropped": {"quantize.bits_to_indices": "table that follows from the number of bits"},
    }
    imported = loaded.card["imported"]
    assert imported["format"] == "maskbit-tokenizer" and imported["file"] == file.name
    assert imported["sha256"] == sha256_file(file)


def test_every_container_is_read(tmp_path: Path) -> None:
    model, state = tokenizer(), published(tokenizer())
    other = published(tokenizer(1))
    save_file(state, tmp_path / "safetensors")
    torch.save(state, tmp_path / "flat")
    torch.save(state, tmp_path / "old", _use_new_zipfile_serialization=False)
    torch.save({"model": state, "steps": 3}, tmp_path / "model")
    torch.save({"state_dict": state, "optimizer_states": [{}]}, tmp_path / "state_dict")
    torch.save({"model": other, "ema": state}, tmp_path / "averaged")
    ignored = {
        "model": {"steps.*": "not weights"},
        "state_dict": {"optimizer_states.*": "not weights"},
        "averaged": {"model.*": "another copy of the weights"},
    }
    for name in ("safetensors", "flat", "old", "model", "state_dict", "averaged"):
        out = tmp_path / f"{name}_out"
        result = import_checkpoint("maskbit-tokenizer", tmp_path / name, out, resolution=16)
        assert same_weights(out, model), name
        assert result["weights"] == ("running average" if name == "averaged" else "as stored")
        del result["dropped"]["quantize.bits_to_indices"]
        assert result["dropped"] == ignored.get(name, {})


def test_weights_of_the_last_step_can_be_asked_for(tmp_path: Path) -> None:
    model = tokenizer()
    torch.save({"model": published(model), "ema": published(tokenizer(1))}, tmp_path / "file")
    words = ("maskbit-tokenizer", tmp_path / "file", tmp_path / "out")
    result = import_checkpoint(*words, resolution=16, average=False)
    assert same_weights(tmp_path / "out", model)
    assert result["dropped"]["ema.*"] == "another copy of the weights"


def test_training_state_beside_the_weights_is_inert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning names classes of its own in a checkpoint; they need not be installed."""
    made = []
    for name, base in (("ModelCheckpoint", object), ("AttributeDict", dict)):
        module = types.ModuleType(f"pytorch_lightning.{name.lower()}")
        kind = type(name, (base,), {"__module__": module.__name__})
        setattr(module, name, kind)
        made.append(kind)
        monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    callback, hyperparameters = made
    instance = callback()
    instance.best = 3
    content = {
        "state_dict": published(tokenizer()),
        "callbacks": {callback: {"best": 1}, "instance": instance},
        "hyper_parameters": hyperparameters(lr=1.0),
        "args": Namespace(lr=1.0),
    }
    torch.save(content, tmp_path / "last.ckpt")
    monkeypatch.undo()
    result = import_checkpoint(
        "maskbit-tokenizer", tmp_path / "last.ckpt", tmp_path / "out", resolution=16
    )
    assert same_weights(tmp_path / "out", tokenizer())
    assert {"callbacks.*", "hyper_parameters.*", "args.*"} <= result["dropped"].keys()


class Malicious:
    """Runs a command when a careless program unpickles it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "old", "plain"])
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, form: str) -> None:
    file, trace = tmp_path / "file.pt", tmp_path / "trace"
    content = {"state_dict": published(tokenizer()), "extra": Malicious(f"touch {trace}")}
    if form == "plain":
        file.write_bytes(pickle.dumps({"extra": content["extra"]}, protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    message = rf"an unsafe pickle, refused: it names {os.name}\.system"
    if form == "plain":
        message = r"a pickle that torch\.save did not write; it is not read"
    with pytest.raises(ValueError, match=rf"file\.pt: .*{message}"):
        import_checkpoint("maskbit-tokenizer", file, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == [file]


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "file.pt")
    with pytest.raises(ValueError, match=r"it names torch\.nn\.modules\.linear\.Linear; expected"):
        import_checkpoint("maskbit-tokenizer", tmp_path / "file.pt", tmp_path / "out")


def broken(kind: str, folder: Path) -> Path:
    """A file with something wrong with it."""
    file = folder / "file"
    if kind == "missing":
        return file
    if kind == "folder":
        file.mkdir()
    elif kind == "text":
        file.write_text("epoch: 3\n")
    elif kind == "empty":
        file.touch()
    elif kind == "protocol":
        file.write_bytes(pickle.dumps({"a": 1}, protocol=4))
    elif kind.startswith("truncated"):
        whole = folder / "whole"
        if kind == "truncated_safetensors":
            save_file(published(tokenizer()), whole)
        else:
            new = kind == "truncated_zip"
            torch.save(published(tokenizer()), whole, _use_new_zipfile_serialization=new)
        content = whole.read_bytes()
        whole.unlink()
        file.write_bytes(content[: len(content) // 2])
    else:
        contents = {"list": [torch.ones(1)], "nothing": {"epoch": 3, "config": {"a": 1}}}
        torch.save(contents[kind], file)
    return file


@pytest.mark.parametrize(
    "kind,message",
    [
        ("missing", "no such file"),
        ("folder", "a folder; expected the checkpoint file in it"),
        ("text", "not a checkpoint but a text; expected safetensors"),
        ("empty", "not a checkpoint but an empty file; expected safetensors"),
        ("protocol", "a pickle that torch.save did not write"),
        ("truncated_zip", "truncated, damaged"),
        ("truncated_old", "truncated, damaged"),
        ("truncated_safetensors", "truncated or damaged"),
        ("list", "holds a list, not named tensors"),
        ("nothing", "holds no weights: .*found config, epoch"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, kind: str, message: str) -> None:
    file = broken(kind, tmp_path)
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: ") as caught:
        import_checkpoint("maskbit-tokenizer", file, tmp_path / "out")
    assert re.search(message, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)
    assert [p for p in tmp_path.iterdir() if p != file] == []


def test_keys_that_do_not_fit_are_listed_and_nothing_is_written(tmp_path: Path) -> None:
    state = published(tokenizer())
    del state["encoder.conv_out.bias"]
    torch.save(state | {"stray": torch.ones(1)}, tmp_path / "file")
    found = r"file: does not fit the format maskbit-tokenizer: missing: encoder\.conv_out\.bias; "
    with pytest.raises(ValueError, match=found + "unexpected: stray"):
        import_checkpoint("maskbit-tokenizer", tmp_path / "file", tmp_path / "out", resolution=16)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    torch.save(published(tokenizer()), tmp_path / "file")
    (tmp_path / "out").mkdir()
    words = ("maskbit-tokenizer", tmp_path / "file", tmp_path / "out")
    with pytest.raises(FileExistsError, match="exists already"):
        import_checkpoint(*words, resolution=16)
    import_checkpoint(*words, resolution=16, overwrite=True)
    assert same_weights(tmp_path / "out", tokenizer())


@pytest.mark.parametrize("training", [True, False])
def test_the_config_may_be_a_section_or_a_whole_recipe(tmp_path: Path, training: bool) -> None:
    torch.save(published(tokenizer()), tmp_path / "file")
    text = to_yaml(CONFIG)
    if training:
        text = "run: {steps: 3}\ntokenizer:\n" + re.sub("^", "  ", text, flags=re.MULTILINE)
    (tmp_path / "config.yaml").write_text(text)
    words = ("maskbit-tokenizer", tmp_path / "file")
    config = tmp_path / "config.yaml"
    import_checkpoint(*words, tmp_path / "a", config=config)
    import_checkpoint(*words, tmp_path / "b", config=config, resolution=32)
    assert load_tokenizer(tmp_path / "a").resolution == 16
    assert load_tokenizer(tmp_path / "b").resolution == 32


def test_options_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="expected one of maskbit-tokenizer, maskgit-vq"):
        import_checkpoint("maskbit-vq", "file", out)
    with pytest.raises(ValueError, match="resolution: a generator has none"):
        import_checkpoint("maskbit", "file", out, resolution=256)
    with pytest.raises(ValueError, match="tokenizer: llamagen-vq is a tokenizer itself"):
        import_checkpoint("llamagen-vq", "file", out, tokenizer="bundled:bits-emoji-64")


def maskbit_state(num_tokens: int, num_bits: int, width: int = 8) -> State:
    """A generator of one layer, two groups and five classes as its public file has it."""
    shapes = {
        "token_emb.weight": (width, num_bits),
        "token_emb.bias": (width,),
        "class_emb.weight": (6, width),
        "pos_emb": (1, num_tokens + 1, width),
        "first_layer.0.weight": (width,),
        "first_layer.0.bias": (width,),
        "transformer.layers.0.0.mha.in_proj_weight": (3 * width, width),
        "transformer.layers.0.0.mha.in_proj_bias": (3 * width,),
        "transformer.layers.0.0.mha.out_proj.weight": (width, width),
        "transformer.layers.0.0.mha.out_proj.bias": (width,),
        "transformer.layers.0.0.norm.weight": (width,),
        "transformer.layers.0.0.norm.bias": (width,),
        "transformer.layers.0.1.net.0.weight": (4 * width, width),
        "transformer.layers.0.1.net.0.bias": (4 * width,),
        "transformer.layers.0.1.net.2.weight": (width, 4 * width),
        "transformer.layers.0.1.net.2.bias": (width,),
        "transformer.layers.0.1.norm.weight": (width,),
        "transformer.layers.0.1.norm.bias": (width,),
        "last_layer.0.weight": (width, width),
        "last_layer.0.bias": (width,),
        "last_layer.2.weight": (width,),
        "last_layer.2.bias": (width,),
        "prediction_layer.weight": (2 * 2 ** (num_bits // 2), width),
        "prediction_layer.bias": (2 * 2 ** (num_bits // 2),),
    }
    rng = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}


GENERATOR = "generator: {type: maskbit, transformer: {width: 8, num_layers: 1, num_heads: 2}}\n"


def test_a_generator_finds_its_tokenizer_again(tmp_path: Path) -> None:
    save_tokenizer(tokenizer(), tmp_path / "tokenizer")
    state = maskbit_state(64, 6)
    torch.save(state, tmp_path / "maskbit_generator_6bit.bin")
    (tmp_path / "config.yaml").write_text(GENERATOR)
    result = import_checkpoint(
        "maskbit",
        tmp_path / "maskbit_generator_6bit.bin",
        tmp_path / "out",
        config=tmp_path / "config.yaml",
        tokenizer=tmp_path / "tokenizer",
    )
    assert result["kind"] == "generator" and result["dropped"] == {}
    generator = load_generator(tmp_path / "out")
    assert generator.tokenizer.fingerprint == load_tokenizer(tmp_path / "tokenizer").fingerprint
    assert generator.num_classes == 5 and generator.codebook_sizes == (8, 8)
    assert result["parameters"]["total"] == sum(tensor.numel() for tensor in state.values())
    assert torch.equal(generator.input.project.weight, state["token_emb.weight"])
    assert torch.equal(generator.head.bias, state["prediction_layer.bias"])


def test_a_generator_without_its_tokenizer_takes_one_later(tmp_path: Path) -> None:
    torch.save(maskbit_state(256, 6), tmp_path / "file")
    (tmp_path / "config.yaml").write_text(GENERATOR)
    words = ("maskbit", tmp_path / "file", tmp_path / "out")
    result = import_checkpoint(*words, config=tmp_path / "config.yaml")
    assert result["tokens"] == "16x16 tokens of (6x2)"
    with pytest.raises(ValueError, match="names no tokenizer; give its folder"):
        load_generator(tmp_path / "out")


@pytest.mark.parametrize("kind", ["bld", "bigr"])
def test_generators_of_bits_come_through_and_sample(kind: str, tmp_path: Path) -> None:
    if kind == "bld":
        model: Any = bld.diffusion(num_classes=5, shape=(2, 2))
        state = bld.published_diffusion(model)
    else:
        model = bigr.build()
        state = bigr.published(model)
    torch.save(state, tmp_path / "file.pt")
    section = f"generator:\n{indent(to_yaml(model.config), '  ')}"
    (tmp_path / "config.yaml").write_text(section)
    networks = ConvAutoencoderConfig(
        base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1, norm_groups=4
    )
    quantizer = LFQConfig(bits=len(model.spec.codebook_sizes))
    resolution = 2 * model.spec.shape[0]
    torch.manual_seed(0)
    save_tokenizer(
        build_tokenizer(
            VQGANConfig(resolution=resolution, autoencoder=networks, quantizer=quantizer)
        ),
        tmp_path / "tokenizer",
    )
    import_checkpoint(
        kind,
        tmp_path / "file.pt",
        tmp_path / "out",
        config=tmp_path / "config.yaml",
        tokenizer=tmp_path / "tokenizer",
    )
    loaded = load_generator(tmp_path / "out")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    tokens = generate(loaded, [0, -1], num_steps=2)
    assert loaded.tokenizer.decode(tokens).shape == (2, 3, resolution, resolution)


def test_published_models_sample_as_published() -> None:
    """14 bits, 64 steps: s 7.1 (our scale is one more), noise 7.8, power 3."""
    config = MaskBitConfig(num_classes=1000, codebook_sizes=(128, 128))
    sampling = published_sampling(config)["sampling"]
    assert sampling["num_steps"] == 64 and sampling["schedule"] == "arccos"
    assert sampling["guidance"] == pytest.approx(8.1) and sampling["guidance_power"] == 3.0
    assert sampling["guidance_schedule"] == "cosine" and sampling["randomness"] == 7.8
    small = MaskBitConfig(transformer=TransformerConfig(width=64), codebook_sizes=(128, 128))
    assert published_sampling(small) == {}
    assert published_sampling(MaskGITConfig(codebook_sizes=(128, 128))) == {}
    assert published_sampling(BigrConfig())["sampling"]["randomness"] == 0.17
    diffused = published_sampling(BinaryLatentDiffusionConfig())["sampling"]
    assert diffused["temperature"] == 0.9 and diffused["final"] == "reference"


def run(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(import_command, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def test_the_command_tells_what_it_did(tmp_path: Path) -> None:
    torch.save({"model": published(tokenizer()), "steps": 3}, tmp_path / "file")
    words = ("maskbit-tokenizer", tmp_path / "file", "--resolution", 16, "--out", tmp_path / "out")
    said = run(*words).stdout
    assert re.search(r"total +[\d,]+\n", said)
    assert re.search(r"number of bits +1: quantize\.bits_to_indices\n", said)
    assert re.search(r"not weights +1: steps\.\*\n", said)
    told = json.loads(run(*words, "--overwrite", "--json").stdout)
    assert told["fingerprint"] == load_tokenizer(tmp_path / "out").fingerprint
    assert told["dropped"]["steps.*"] == "not weights"


def test_a_config_without_bounds_is_refused(tmp_path: Path) -> None:
    torch.save(published(tokenizer()), tmp_path / "file")
    text = to_yaml(CONFIG).replace("num_res_blocks: 1", "num_res_blocks: 1000000000")
    assert "1000000000" in text
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match="more than 10,000 tensors and modules"):
        import_checkpoint(
            "maskbit-tokenizer",
            tmp_path / "file",
            tmp_path / "out",
            config=tmp_path / "config.yaml",
        )
    (tmp_path / "config.yaml").write_text(GENERATOR.replace("width: 8", "width: 100000000"))
    torch.save(maskbit_state(256, 6), tmp_path / "file")
    with pytest.raises(ValueError, match="the memory of this machine"):
        import_checkpoint(
            "maskbit", tmp_path / "file", tmp_path / "out", config=tmp_path / "config.yaml"
        )
    assert not (tmp_path / "out").exists()


def test_the_command_shows_sections_and_takes_the_one_named(tmp_path: Path) -> None:
    """A training file with an average, and one whose sections have names of their own."""
    model, average = tokenizer(), tokenizer(1)
    wrapped = {f"module.{n}": t for n, t in published(average).items()}
    torch.save({"model": published(model), "model_ema": wrapped, "step": 3}, tmp_path / "file")
    words = ("maskbit-tokenizer", tmp_path / "file", "--resolution", 16, "--overwrite", "--out")
    told = json.loads(run(*words, tmp_path / "out", "--json").stdout)
    count = len(published(model))
    assert told["sections"] == {"model": count, "model_ema": count}
    assert (told["section"], told["weights"]) == ("model_ema", "running average")
    assert same_weights(tmp_path / "out", average)
    assert load_tokenizer(tmp_path / "out").card["licence"] == "not stated"
    run(*words, tmp_path / "out", "--no-average")
    assert same_weights(tmp_path / "out", model)
    torch.save({"one": published(model), "two": published(average)}, tmp_path / "file")
    assert "(--section)" in run(*words, tmp_path / "out", code=1).stderr
    run(*words, tmp_path / "out", "--section", "two")
    assert same_weights(tmp_path / "out", average)


def test_a_checkpoint_in_parts_says_what_it_came_from(tmp_path: Path) -> None:
    model, folder = tokenizer(), tmp_path / "parts"
    folder.mkdir()
    state, places = published(model), {}
    for number, names in enumerate((list(state)[:9], list(state)[9:])):
        file = f"model-{number}.safetensors"
        save_file({name: state[name] for name in names}, folder / file)
        places |= dict.fromkeys(names, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    import_checkpoint("maskbit-tokenizer", folder, tmp_path / "out", resolution=16)
    assert same_weights(tmp_path / "out", model)
    imported = load_tokenizer(tmp_path / "out").card["imported"]
    assert (imported["file"], imported["sha256"]) == (index.name, sha256_file(index))
    parts = {name: sha256_file(folder / name) for name in sorted(set(places.values()))}
    assert imported["parts"] == parts


def test_the_command_fails_in_one_line(tmp_path: Path) -> None:
    words = ("maskgit-vq", tmp_path / "file", "--out", tmp_path / "out")
    assert run(*words, code=1).stderr == f"Error: {tmp_path / 'file'}: no such file\n"
    torch.save(published(tokenizer()), tmp_path / "file")
    said = run(*words, code=1).stderr
    assert said.count("\n") == 1 and "the format maskbit-tokenizer" in said
    assert "'maskbit-vq' is not one of" in run("maskbit-vq", *words[1:], code=2).stderr
