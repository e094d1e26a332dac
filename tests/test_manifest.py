"""One changed bit in any file of ours that decides a number is an error, never another number."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import tessella
from tessella.checkpoints import load_tokenizer, save_tokenizer
from tessella.cli.main import main
from tessella.config import build_config
from tessella.files import MARKER, atomic_folder
from tessella.manifest import MOST_HASHED, check_files
from tessella.sample.samples import SampleFolder
from tessella.tests.cases import over
from tessella.tokenizers.probe import verify_probe
from tessella.tokenizers.vqgan import VQGAN, VQGANConfig
from tessella.tokens.store import TokenStore, TokenStoreWriter, load_tokens
from tessella.tokens.token_file import TOKENS_KEY, load_tensors, save_tensors
from tessella.tokens.tokens import Tokens, TokenSpec

AUTOENCODER = {"base_channels": 8, "channel_multipliers": [1, 2], "norm_groups": 4}
CONFIG = {"resolution": 16, "autoencoder": AUTOENCODER, "quantizer": {"type": "lfq", "bits": 4}}
OLD = Path(__file__).parent / "files_of_0_5"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with a probe, a store, a token file and samples."""
    root = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (2, 3, 16, 16), dtype=np.uint8))
    save_tokenizer(
        VQGAN(build_config(VQGANConfig, CONFIG)), root / "model", probe=(images, "noise")
    )
    tokenizer = load_tokenizer(root / "model")
    tokens = tokenizer.encode(images.float() / 127.5 - 1)
    assert tokenizer.fingerprint is not None
    facts = {"fingerprint": tokenizer.fingerprint, "tokenizer": "model", "source": "noise"}
    with TokenStoreWriter(root / "store", tokens.spec, resolution=16, **facts) as writer:
        writer.add(tokens, ["a", "b"])
        writer.add_probe(images[:1], [0], [20.0])
    tokens.save(root / "tokens.safetensors")
    with atomic_folder(root / "samples", kind="samples", flush=False) as folder:
        records = [{"file": f"{i}.png", "label": i, "class": "abc"[i]} for i in range(3)]
        for record in records:
            (folder / str(record["file"])).write_bytes(b"a picture")
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "images.jsonl").write_text(text)
    return root


def read_model(root: Path) -> Any:
    tokenizer = load_tokenizer(root / "model")
    verify_probe(tokenizer, root / "model")
    return tokenizer.card, tokenizer.state_dict()


def read_store(root: Path) -> Any:
    store = TokenStore(root / "store")
    return store.header, store.tokens().indices.tolist(), store.ids


def read_samples(root: Path) -> Any:
    folder = SampleFolder(root / "samples")
    return folder.classes, [folder.id_of(i) for i in range(len(folder))], folder._labels


READ: dict[str, Callable[[Path], Any]] = {
    "model/card.json": read_model,
    "model/config.yaml": read_model,
    "model/model.safetensors": read_model,
    "model/probe.safetensors": read_model,
    "store/store.json": read_store,
    "store/probe.safetensors": read_store,
    "store/shard-00000.safetensors": read_store,
    "tokens.safetensors": lambda root: load_tokens(root / "tokens.safetensors").indices.tolist(),
    "samples/images.jsonl": read_samples,
}
FLIPS = 24


@pytest.mark.parametrize("name", READ)
def test_a_changed_bit_is_an_error(name: str, files: Path, tmp_path: Path) -> None:
    root = tmp_path / "files"
    shutil.copytree(files, root)
    path, whole = root / name, (root / name).read_bytes()
    READ[name](root)
    rng = np.random.default_rng(1)
    for place in rng.integers(0, len(whole), FLIPS).tolist():
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=path.name.split(".")[0]) as caught:
            READ[name](root)
        assert "\n" not in str(caught.value), place
    path.write_bytes(whole)
    READ[name](root)


@pytest.mark.parametrize("name", ["model", "store", "samples"])
def test_a_changed_bit_in_the_marker_is_an_error_or_changes_nothing(
    name: str, files: Path, tmp_path: Path
) -> None:
    root = tmp_path / "files"
    shutil.copytree(files, root)
    path, whole = root / name / MARKER, (root / name / MARKER).read_bytes()
    read = {"model": read_model, "store": read_store, "samples": read_samples}[name]
    before = str(read(root))
    for place in range(0, len(whole), 11):
        changed = bytearray(whole)
        changed[place] ^= 2
        path.write_bytes(changed)
        try:
            assert str(read(root)) == before
        except ValueError as error:
            assert MARKER in str(error)


def test_files_without_hashes_are_read_as_before_and_it_is_said(
    files: Path, tmp_path: Path
) -> None:
    root = tmp_path / "files"
    shutil.copytree(files, root)
    said: dict[bool, list[str]] = {}
    for old in (False, True):
        if old:
            for marker in root.rglob(MARKER):
                content = json.loads(marker.read_text())
                del content["sha256"]
                marker.write_text(json.dumps(content))
            for path in (root / "tokens.safetensors", root / "model" / "probe.safetensors"):
                tensors, about = load_tensors(path, error=ValueError)
                save_file(tensors, path, about)
        said[old] = [
            json.loads(CliRunner().invoke(main, [*words, "--json"]).output)["checksums"]
            for words in (
                ["info", str(root / "model")],
                ["info", str(root / "store")],
                ["info", str(root / "tokens.safetensors")],
                ["verify", str(root / "model")],
            )
        ]
    assert said[False] == ["agree"] * 4
    assert all(text.startswith("none") for text in said[True])
    for name in ("store", "tokens.safetensors", "bits"):
        result = CliRunner().invoke(main, ["info", str(OLD / name), "--json"])
        assert json.loads(result.output)["checksums"].startswith("none"), name


def test_pictures_and_large_files_are_not_hashed(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out", kind="thing", flush=False) as folder:
        for number in range(50):
            (folder / f"{number}.png").write_bytes(b"picture")
        (folder / "small").write_bytes(b"x")
        with (folder / "large").open("wb") as file:
            file.truncate(MOST_HASHED + 1)
    marker = json.loads((tmp_path / "out" / MARKER).read_text())
    assert list(marker["sha256"]) == ["small"] and len(marker["files"]) == 52
    assert check_files(tmp_path / "out", ["small", "large", "0.png"], error=ValueError)
    assert not check_files(tmp_path, ["small"], error=ValueError)


@over("content", ["", "{", "[]", '{"kind": 3, "files": {}}', '{"kind": "a", "files": {"b": "1"}}'])
def test_a_damaged_marker_does_not_switch_the_check_off(content: str, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text("{}")
    (tmp_path / MARKER).write_text(content)
    with pytest.raises(ValueError, match=r"\.tessella\.json: "):
        check_files(tmp_path, ["card.json"], error=ValueError)


def test_files_of_tensors_are_written_to_the_same_bytes(tmp_path: Path) -> None:
    tokens = Tokens(torch.zeros(3, 4, 1, dtype=torch.int64), TokenSpec((2, 2), (5,)))
    tokens.save(tmp_path / "a.safetensors")
    tokens.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert tessella.load_tokens(tmp_path / "a.safetensors").equal(tokens)
    tensors = {"empty": torch.zeros(0, 3), "one": torch.tensor(True), "half": torch.ones(2).half()}
    save_tensors(tensors, tmp_path / "c.safetensors", {"about": "x"})
    found, about = load_tensors(tmp_path / "c.safetensors", error=ValueError, digest=True)
    assert about == {"about": "x"} and found.keys() == tensors.keys()
    renamed = load_file(tmp_path / "a.safetensors")
    renamed["sha257"] = renamed.pop("sha256")  # else it would be a file without a digest
    save_file(renamed, tmp_path / "a.safetensors", {TOKENS_KEY: json.dumps(tokens.spec.to_dict())})
    with pytest.raises(ValueError, match="it has a tensor 'sha257'"):
        load_tokens(tmp_path / "a.safetensors")
    changed = load_file(tmp_path / "c.safetensors") | {"half": torch.ones(2)}
    save_file(changed, tmp_path / "c.safetensors", about)
    with pytest.raises(ValueError, match="its digest is another one"):
        load_tensors(tmp_path / "c.safetensors", error=ValueError)
