"""Model folders: exact round trips, and every kind of damage named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from tessella import model_folders
from tessella.checkpoints import CheckpointError, fingerprint, load_tokenizer, save_tokenizer
from tessella.config import ConfigError, build_config, read_yaml, to_dict
from tessella.tests.folders import sign
from tessella.tokenizers.vqgan import VQGAN, VQGANConfig

QUANTIZERS = [
    {"type": "vq", "codebook_size": 8, "dim": 4},
    {"type": "ema_vq", "codebook_size": 8, "dim": 4},
    {"type": "lfq", "bits": 4},
    {"type": "bsq", "bits": 4},
    {"type": "fsq", "levels": [8, 5, 5]},
]


def tiny(quantizer: dict[str, Any] = QUANTIZERS[2], *, seed: int = 0) -> VQGAN:
    autoencoder = {
        "base_channels": 8,
        "channel_multipliers": [1, 2],
        "num_res_blocks": 1,
        "norm_groups": 4,
    }
    config = {"resolution": 16, "autoencoder": autoencoder, "quantizer": quantizer}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VQGAN(build_config(VQGANConfig, config)).eval()


def some_images(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tokenizer(tiny(), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda quantizer: quantizer["type"])
def test_save_and_load_is_exact(quantizer: dict[str, Any], tmp_path: Path) -> None:
    tokenizer, images = tiny(quantizer), some_images()
    tokenizer.train()(images)  # running means move
    tokenizer.eval()
    card = save_tokenizer(tokenizer, tmp_path / "model", card={"data": "noise"})
    loaded = load_tokenizer(tmp_path / "model")
    assert loaded.config == tokenizer.config
    assert not loaded.training
    for name, tensor in tokenizer.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    tokens = tokenizer.encode(images)
    assert loaded.encode(images).equal(tokens)
    assert torch.equal(loaded.decode(tokens), tokenizer.decode(tokens))
    assert loaded.card == card
    assert loaded.fingerprint == card["fingerprint"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_card_says_what_it_is(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    assert card["kind"] == "tokenizer"
    assert card["system"] == "vqgan"
    assert card["tokens"] == "8x8 tokens of (4x2)"
    assert card["bits_per_image"] == 256
    assert card["resolution"] == 16
    assert card["parameters"]["total"] == tiny().num_parameters()["total"]
    assert len(card["fingerprint"]) == 32


def test_card_of_a_loaded_model_can_be_passed_on(folder: Path, tmp_path: Path) -> None:
    loaded = load_tokenizer(folder)
    with torch.no_grad():
        loaded.last_layer.add_(1)
    save_tokenizer(loaded, tmp_path / "next", card=loaded.card | {"steps": 5})
    again = load_tokenizer(tmp_path / "next")
    assert again.card["steps"] == 5
    assert again.fingerprint != loaded.fingerprint


def test_fingerprint_depends_on_config_and_weights_only() -> None:
    first, second = tiny(), tiny()
    same = fingerprint(to_dict(first.config), first.state_dict())
    assert fingerprint(to_dict(second.config), dict(reversed(second.state_dict().items()))) == same
    other = tiny({"type": "bsq", "bits": 4})
    assert fingerprint(to_dict(other.config), first.state_dict()) != same
    with torch.no_grad():
        second.last_layer[0, 0, 0, 0] += 1e-6
    assert fingerprint(to_dict(second.config), second.state_dict()) != same


def test_a_config_without_a_later_field_keeps_its_fingerprint(folder: Path) -> None:
    """A model written before a field existed loads with its default, undamaged."""
    config = read_yaml(folder / "config.yaml")
    del config["autoencoder"]["mid_attention"]
    state = load_file(folder / "model.safetensors")
    (folder / "config.yaml").write_text(json.dumps(config))
    sign(folder)
    assert load_tokenizer(folder).fingerprint == fingerprint(config, state)


def test_half_precision_files_load_as_float32(tmp_path: Path) -> None:
    tokenizer = tiny()
    save_tokenizer(tokenizer, tmp_path / "full")
    save_tokenizer(tokenizer, tmp_path / "half", dtype=torch.float16)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.65 * sizes[0]
    loaded = load_tokenizer(tmp_path / "half")
    for name, tensor in tokenizer.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.half().float()), name


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "card.json"])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_tokenizer(folder)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def flip_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    blob = bytearray(path.read_bytes())
    blob[-3] ^= 1
    path.write_bytes(blob)


def change_config(folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("symmetric", "unit"))


def change_weights(
    change: Callable[[dict[str, torch.Tensor]], None], *, signed: bool = True
) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")
        if signed:
            sign(folder)

    return damage


def transpose(state: dict[str, torch.Tensor]) -> None:
    """Turn a square matrix, which leaves every name and shape as it was."""
    name = next(n for n, t in state.items() if t.ndim == 4 and t.shape[0] == t.shape[1])
    state[name] = state[name].transpose(0, 1).contiguous()


def swap(state: dict[str, torch.Tensor]) -> None:
    """Exchange two tensors of one shape."""
    one, two = "encoder.levels.0.blocks.0.conv1.weight", "encoder.levels.0.blocks.0.conv2.weight"
    state[one], state[two] = state[two], state[one]


def change_kind(folder: Path) -> None:
    (folder / "card.json").write_text(json.dumps({"kind": "generator"}))


NAME = "decoder.conv_out.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"model\.safetensors: truncated or damaged"),
        (empty, r"model\.safetensors: truncated or damaged"),
        (flip_byte, r"changed or damaged; fingerprint \w+, the card says \w+"),
        (change_config, r"changed or damaged; fingerprint"),
        (change_weights(transpose, signed=False), r"changed or damaged; fingerprint"),
        (change_weights(swap, signed=False), r"changed or damaged; fingerprint"),
        (change_weights(lambda s: s.pop(NAME)), rf"missing \['{NAME}'\], unexpected none"),
        (
            change_weights(lambda s: s.update(extra=torch.ones(1))),
            r"missing none, unexpected \['extra'\], other shape none",
        ),
        (
            change_weights(lambda s: s.update({NAME: torch.ones(1)})),
            rf"missing none, unexpected none, other shape \['{NAME}'\]",
        ),
        (lambda f: (f / "card.json").write_text("{"), r"card\.json: not valid JSON"),
        (
            lambda f: (f / "card.json").write_text("[]"),
            r"card\.json: .* an object \(found a list",
        ),
        (change_kind, "holds a generator, not a tokenizer"),
    ],
)
def test_damage_is_named(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(folder)


def test_config_faults_name_the_file(folder: Path) -> None:
    (folder / "config.yaml").write_text("quantizer: {type: lfq, bitz: 4}")
    with pytest.raises(ConfigError, match=r"config\.yaml: .*did you mean 'bits'"):
        load_tokenizer(folder)


def test_paths_that_are_no_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load_tokenizer(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="a file, not a folder"):
        load_tokenizer(tmp_path / "file")


def test_bundled_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folders, "_BUNDLED", folder.parent)
    assert load_tokenizer("bundled:model").spec == tiny().spec
    with pytest.raises(CheckpointError, match="did you mean bundled:model"):
        load_tokenizer("bundled:modle")
    with pytest.raises(CheckpointError, match="no such bundled model; there are: model"):
        load_tokenizer("bundled:zzz")
    monkeypatch.setattr(model_folders, "_BUNDLED", folder / "nothing")
    with pytest.raises(CheckpointError, match="no such bundled model"):
        load_tokenizer("bundled:model")


def test_a_revision_of_a_repository(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for name in ("hub:owner/name", "hub:owner/name@v1.0", "hub:owner/name@" + "0f" * 20):
        assert load_tokenizer(name).spec == tiny().spec
    assert asked == [("owner/name", None), ("owner/name", "v1.0"), ("owner/name", "0f" * 20)]
    for wrong in ("hub:", "hub:owner/name@", "hub:@v1"):
        with pytest.raises(CheckpointError, match="expected hub:owner/name or hub:owner/name@rev"):
            load_tokenizer(wrong)


def test_loading_leaves_the_global_rng_alone(folder: Path) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    load_tokenizer(folder)
    assert torch.equal(torch.get_rng_state(), state)


def test_existing_folder_needs_permission(folder: Path) -> None:
    with pytest.raises(FileExistsError, match="exists already"):
        save_tokenizer(tiny(seed=1), folder)
    assert torch.equal(load_tokenizer(folder).last_layer, tiny().last_layer)
    save_tokenizer(tiny(seed=1), folder, overwrite=True)
    assert torch.equal(load_tokenizer(folder).last_layer, tiny(seed=1).last_layer)
