"""Generator folders: exact round trips, the tokenizer found wherever it is, every damage named."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tessella
from tessella import model_folders
from tessella.checkpoints import (
    CheckpointError,
    describe_model,
    load_generator,
    load_tokenizer,
    save_generator,
    save_tokenizer,
)
from tessella.config import ConfigError, build_config
from tessella.files import add_to_marker
from tessella.generators.masked import MaskBitConfig, MaskedGenerator, MaskGITConfig
from tessella.generators.networks.bert import TransformerConfig
from tessella.sample.generate import generate
from tessella.tests.folders import sign
from tessella.tokenizers.vqgan import VQGAN, VQGANConfig
from tessella.tokens.tokens import Tokens

CLASSES = ("grinning face", "cat, sleeping", "日本")


def tiny_tokenizer(*, seed: int = 0, bits: int = 4) -> VQGAN:
    autoencoder = {
        "base_channels": 8,
        "channel_multipliers": [1, 2],
        "num_res_blocks": 1,
        "norm_groups": 4,
    }
    quantizer = {"type": "lfq", "bits": bits}
    config = {"resolution": 16, "autoencoder": autoencoder, "quantizer": quantizer}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VQGAN(build_config(VQGANConfig, config)).eval()


def tiny_generator(kind: str = "maskbit", *, seed: int = 0, **fields: Any) -> MaskedGenerator:
    trunk = TransformerConfig(width=16, num_layers=1, num_heads=2)
    config = {"maskbit": MaskBitConfig, "maskgit": MaskGITConfig}[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = MaskedGenerator(
            config(transformer=trunk, num_classes=3, **fields), tiny_tokenizer().spec
        )
    generator.classes = CLASSES
    return generator.eval()


def save_pair(
    root: Path, generator: MaskedGenerator | None = None, **fields: Any
) -> tuple[Path, Path]:
    """Folders of a generator and of its tokenizer, side by side."""
    card = save_tokenizer(tiny_tokenizer(), root / "tokenizer")
    fields = {"tokenizer_path": root / "tokenizer"} | fields
    save_generator(
        generator or tiny_generator(),
        root / "models" / "generator",
        tokenizer_fingerprint=card["fingerprint"],
        **fields,
    )
    return root / "models" / "generator", root / "tokenizer"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return save_pair(tmp_path)


def edit_card(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    card = json.loads((folder / "card.json").read_text())
    change(card)
    (folder / "card.json").write_text(json.dumps(card))
    add_to_marker(folder, "card.json")


@pytest.mark.parametrize(
    "generator",
    [
        tiny_generator(),
        tiny_generator("maskgit", codebook_sizes=(4, 4), mask_count="exact", unmasked_weight=0.1),
        tiny_generator("maskgit"),
    ],
    ids=["maskbit", "maskgit_groups", "maskgit"],
)
def test_save_and_load_is_exact(generator: MaskedGenerator, tmp_path: Path) -> None:
    folder, place = save_pair(tmp_path, generator, card={"data": "noise"})
    before = torch.get_rng_state()
    loaded = load_generator(folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.config == generator.config and loaded.spec == generator.spec
    assert loaded.codebook_sizes == generator.codebook_sizes
    assert loaded.classes == CLASSES
    assert not loaded.training and not loaded.tokenizer.training
    assert loaded.state_dict().keys() == generator.state_dict().keys()
    for name, tensor in generator.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    card = json.loads((folder / "card.json").read_text())
    assert loaded.card == card and loaded.fingerprint == card["fingerprint"]
    assert loaded.tokenizer.fingerprint == load_tokenizer(place).fingerprint
    tokens = generate(generator, [0, 1], num_steps=2)
    assert generate(loaded, [0, 1], num_steps=2).equal(tokens)
    assert torch.equal(loaded.tokenizer.decode(tokens), load_tokenizer(place).decode(tokens))
    assert sorted(p.name for p in folder.parent.iterdir()) == ["generator"]


def test_the_card_says_what_it_is(pair: tuple[Path, Path]) -> None:
    card = describe_model(pair[0])
    assert card["kind"] == "generator" and card["system"] == "maskbit"
    assert card["tokens"] == "8x8 tokens of (4x2)" and card["bits_per_image"] == 256
    assert card["num_classes"] == 3
    assert card["parameters"]["total"] == sum(p.numel() for p in tiny_generator().parameters())
    assert card["tokenizer"]["path"] == str(pair[1])
    assert card["tokenizer"]["relative_path"] == "../../tokenizer"
    assert card["tokenizer"]["fingerprint"] == describe_model(pair[1])["fingerprint"]


def test_what_is_computed_wins_over_the_card_given(tmp_path: Path) -> None:
    folder, _ = save_pair(tmp_path, card={"kind": "cake", "num_classes": 7, "steps": 5})
    card = describe_model(folder)
    assert (card["kind"], card["num_classes"], card["steps"]) == ("generator", 3, 5)


def test_the_weights_hold_nothing_of_the_tokenizer(tmp_path: Path) -> None:
    generator = tiny_generator()
    generator.tokenizer = tiny_tokenizer()
    folder, _ = save_pair(tmp_path, generator)
    assert load_file(folder / "model.safetensors").keys() == tiny_generator().state_dict().keys()


def test_half_precision_files_load_as_float32(tmp_path: Path) -> None:
    folder, _ = save_pair(tmp_path, dtype=torch.float16)
    loaded = load_generator(folder)
    for name, tensor in tiny_generator().state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.half().float()), name


def test_existing_folders_are_not_overwritten_unasked(pair: tuple[Path, Path]) -> None:
    before = describe_model(pair[0])["fingerprint"]
    with pytest.raises(FileExistsError):
        save_generator(tiny_generator(seed=1), pair[0])
    assert describe_model(pair[0])["fingerprint"] == before
    save_generator(tiny_generator(seed=1), pair[0], overwrite=True)
    assert describe_model(pair[0])["fingerprint"] != before


def test_the_tokenizer_is_found_where_the_card_says(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """The generator alone moves: its relative path leads nowhere, the one given still does."""
    moved = tmp_path / "far" / "away" / "generator"
    shutil.copytree(pair[0], moved)
    assert load_generator(moved).tokenizer.fingerprint is not None


def test_both_folders_can_move_together(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    shutil.move(tmp_path / "tokenizer", tmp_path / "new" / "tokenizer")
    with pytest.raises(CheckpointError, match="was not found"):
        load_generator(pair[0])
    shutil.move(tmp_path / "models", tmp_path / "new" / "models")
    loaded = load_generator(tmp_path / "new" / "models" / "generator")
    assert loaded.tokenizer.fingerprint == loaded.card["tokenizer"]["fingerprint"]


def test_paths_may_be_relative_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    card = save_tokenizer(tiny_tokenizer(), "runs/tokenizer")
    save_generator(
        tiny_generator(),
        "runs/x/generator",
        tokenizer_path="runs/tokenizer",
        tokenizer_fingerprint=card["fingerprint"],
    )
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_generator("../runs/x/generator").tokenizer.fingerprint == card["fingerprint"]


def test_a_bundled_tokenizer_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name, or by its fingerprint alone; bundled generators are passed over."""
    bundled = tmp_path / "bundled"
    other = save_tokenizer(tiny_tokenizer(seed=9), bundled / "a-tokenizer")
    card = save_tokenizer(tiny_tokenizer(), bundled / "b-tokenizer")
    save_generator(tiny_generator(), bundled / "a-generator")
    monkeypatch.setattr(model_folders, "_BUNDLED", bundled)
    for number, place in enumerate(("bundled:b-tokenizer", "")):
        folder = tmp_path / f"generator-{number}"
        fields = {"tokenizer_path": place, "tokenizer_fingerprint": card["fingerprint"]}
        saved = save_generator(tiny_generator(), folder, **fields)
        assert "relative_path" not in saved["tokenizer"]
        assert load_generator(folder).tokenizer.fingerprint == card["fingerprint"]
    assert other["fingerprint"] != card["fingerprint"]


def test_a_tokenizer_can_be_given(pair: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.move(pair[1], tmp_path / "moved")
    with pytest.raises(CheckpointError, match="its tokenizer"):
        load_generator(pair[0])
    tokenizer = load_tokenizer(tmp_path / "moved")
    assert load_generator(pair[0], tokenizer=tokenizer).tokenizer is tokenizer
    assert load_generator(pair[0], tokenizer=tmp_path / "moved").tokenizer.fingerprint
    assert load_generator(pair[0], tokenizer=str(tmp_path / "moved")).tokenizer.fingerprint


def test_the_public_names(pair: tuple[Path, Path]) -> None:
    generator = tessella.load_generator(pair[0])
    tokens = tessella.generate(generator, [2, 0], num_steps=2, guidance=3.0, seeds=[0, 1])
    assert isinstance(generator, tessella.Generator)
    assert generator.tokenizer.decode(tokens).shape == (2, 3, 16, 16)


def test_a_missing_tokenizer_is_named_with_all_places(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    expected = describe_model(pair[1])["fingerprint"]
    shutil.rmtree(pair[1])
    with pytest.raises(CheckpointError) as error:
        load_generator(pair[0])
    message = str(error.value)
    assert f"its tokenizer {expected} was not found" in message
    assert f"{pair[1]}: not there" in message
    assert "--tokenizer" in message
    assert "bundled:bits-emoji-64: is " in message


def test_a_generator_that_names_no_tokenizer_needs_one(tmp_path: Path) -> None:
    save_generator(tiny_generator(), tmp_path / "generator")
    with pytest.raises(CheckpointError, match=r"names no tokenizer; give its folder \(--tokenizer"):
        load_generator(tmp_path / "generator")
    tokenizer = tiny_tokenizer()
    assert load_generator(tmp_path / "generator", tokenizer=tokenizer).tokenizer is tokenizer
    with pytest.raises(ValueError, match=r"the generator emits .*\(4x2\), the tokenizer reads"):
        load_generator(tmp_path / "generator", tokenizer=tiny_tokenizer(bits=5))


def test_another_tokenizer_is_refused_by_fingerprint(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    expected = describe_model(pair[1])["fingerprint"]
    other = save_tokenizer(tiny_tokenizer(seed=1), tmp_path / "other")["fingerprint"]
    with pytest.raises(CheckpointError, match=f"tokenizer {expected}; this one is {other}"):
        load_generator(pair[0], tokenizer=tmp_path / "other")
    with pytest.raises(CheckpointError, match="this one is of no folder"):
        load_generator(pair[0], tokenizer=tiny_tokenizer())
    save_tokenizer(tiny_tokenizer(seed=1), pair[1], overwrite=True)  # trained on in place
    with pytest.raises(CheckpointError, match=f"{expected} was not found .*: is {other}"):
        load_generator(pair[0])


def test_a_damaged_tokenizer_is_named(pair: tuple[Path, Path]) -> None:
    truncate(pair[1])
    with pytest.raises(CheckpointError, match=r"tokenizer/model\.safetensors: truncated"):
        load_generator(pair[0])


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "card.json"])
def test_missing_file_is_named(pair: tuple[Path, Path], name: str) -> None:
    (pair[0] / name).unlink()
    for read in (load_generator, describe_model):
        with pytest.raises(CheckpointError, match=f"{name} is missing"):
            read(pair[0])


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def flip_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    blob = bytearray(path.read_bytes())
    blob[-3] ^= 1
    path.write_bytes(blob)


def change_config(old: str, new: str, *, signed: bool = False) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "config.yaml"
        text = path.read_text()
        assert old in text, text
        path.write_text(text.replace(old, new))
        if signed:
            sign(folder)

    return damage


def change_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")
        sign(folder)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"model\.safetensors: truncated or damaged"),
        (flip_byte, r"changed or damaged; fingerprint \w+, the card says \w+"),
        (change_config("arccos", "linear"), "changed or damaged; fingerprint"),
        (change_config("cat, sleeping", "dog"), "changed or damaged; fingerprint"),
        (
            change_config("num_classes: 3", "num_classes: 4", signed=True),
            r"other shape \['class_embedding",
        ),
        (
            change_config("num_classes: 3", "num_classes: null", signed=True),
            "config.yaml: num_classes: not",
        ),
        (
            change_config("type: maskbit", "type: maskgit", signed=True),
            r"does not fit config\.yaml; missing",
        ),
        (
            change_config(
                "codebook_sizes: [2, 2, 2, 2]", "codebook_sizes: [3, 2, 2, 2]", signed=True
            ),
            r"config\.yaml: MaskBit reads bits",
        ),
        (change_weights(lambda s: s.pop("position")), r"missing \['position'\], unexpected none"),
        (change_weights(lambda s: s.update(extra=torch.ones(1))), r"unexpected \['extra'\]"),
        (lambda f: edit_card(f, lambda c: c.pop("fingerprint")), "has no fingerprint"),
        (lambda f: edit_card(f, lambda c: c.update(kind="tokenizer")), "holds a tokenizer, not a"),
        (lambda f: (f / "card.json").write_text("["), r"card\.json: not valid JSON"),
    ],
)
def test_damage_is_named(
    pair: tuple[Path, Path], damage: Callable[[Path], None], message: str
) -> None:
    damage(pair[0])
    with pytest.raises(CheckpointError, match=message):
        load_generator(pair[0])


@pytest.mark.parametrize("named", ["abc", {"path": 3}])
def test_a_card_that_names_its_tokenizer_wrongly(pair: tuple[Path, Path], named: Any) -> None:
    edit_card(pair[0], lambda card: card.update(tokenizer=named))
    with pytest.raises(CheckpointError, match=r"card\.json: tokenizer: expected paths"):
        load_generator(pair[0])


def test_config_faults_name_the_file(pair: tuple[Path, Path]) -> None:
    change_config("label_dropout", "label_dropuot")(pair[0])
    with pytest.raises(ConfigError, match=r"config\.yaml: .*did you mean 'label_dropout'"):
        load_generator(pair[0])


def test_kinds_are_told_apart(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a tokenizer, not a generator"):
        load_generator(pair[1])
    with pytest.raises(CheckpointError, match="holds a generator, not a tokenizer"):
        load_tokenizer(pair[0])
    with pytest.raises(CheckpointError, match="holds a generator, not a tokenizer"):
        load_generator(pair[0], tokenizer=pair[0])
    with pytest.raises(CheckpointError, match="no such folder"):
        load_generator(tmp_path / "nothing")


def test_a_backend_that_is_missing_here_is_named_with_the_file(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    change_config("attention: auto", "attention: xformers", signed=True)(pair[0])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    with pytest.raises(CheckpointError, match=r"config\.yaml: attention: xformers is not insta"):
        load_generator(pair[0])


def test_describing_reads_the_weights(pair: tuple[Path, Path]) -> None:
    shutil.rmtree(pair[1])
    assert describe_model(pair[0])["kind"] == "generator"  # it needs no tokenizer
    flip_byte(pair[0])
    with pytest.raises(CheckpointError, match="changed or damaged"):
        describe_model(pair[0])


def test_tokens_of_another_shape_do_not_pass_as_ours(pair: tuple[Path, Path]) -> None:
    loaded = load_generator(pair[0])
    foreign = Tokens(torch.zeros(1, 64, 4, dtype=torch.int64), loaded.spec)
    assert loaded(foreign).loss.isfinite()
    other = tiny_tokenizer(bits=5).encode(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="this generator reads"):
        loaded(other)
