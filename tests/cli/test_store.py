"""Token stores on the command line: interrupted, resumed, shared, joined, limited."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from tessella.checkpoints import load_tokenizer, save_tokenizer
from tessella.cli.main import main
from tessella.cli.store import FORMATS
from tessella.data.images import to_tensor
from tessella.sample.samples import open_samples
from tessella.tokenizers.build import build_tokenizer
from tessella.tokenizers.networks.conv_autoencoder import ConvAutoencoderConfig
from tessella.tokenizers.quantizers.lfq import LFQConfig
from tessella.tokenizers.vqgan import VQGAN, VQGANConfig
from tessella.tokens import row_files, store_writer
from tessella.tokens.store import StoreError, TokenStore
from tessella.tokens.tokens import Tokens


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny bit tokenizer: 16 x 16 pixels, 8 x 8 tokens of 5 bits."""
    torch.manual_seed(0)
    networks = ConvAutoencoderConfig(
        base_channels=8, channel_multipliers=(1, 1), num_res_blocks=1, norm_groups=4
    )
    config = VQGANConfig(resolution=16, autoencoder=networks, quantizer=LFQConfig(bits=5))
    folder = tmp_path_factory.mktemp("model") / "tokenizer"
    save_tokenizer(build_tokenizer(config), folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight pictures of 16, 20, 24, 12 pixels in turn, the last four wider than high."""
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for i in range(8):
        side = (16, 20, 24, 12)[i % 4]
        pixels = rng.integers(0, 256, (side, side + i // 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def run(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by name."""
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts, also where a shell has started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_finished_work_and_says_how_to_continue(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: int
) -> None:
    words = ["encode", "--tokenizer", model, pictures, "--batch-size", 2]
    run(*words, "--out", tmp_path / "quiet")
    encode, calls, before = VQGAN.encode, iter(range(9)), signal.getsignal(signal.SIGTERM)

    def interrupted(self: VQGAN, images: torch.Tensor, **options: Any) -> Tokens:
        if next(calls) == 2:
            os.kill(os.getpid(), sent)
        return encode(self, images, **options)

    monkeypatch.setattr(VQGAN, "encode", interrupted)
    out = tmp_path / "store"
    result = run(*words, "--out", out, code=1)
    assert signal.getsignal(signal.SIGTERM) is before
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"Error: interrupted; 4 rows are kept in {out}.unfinished; ")
    assert "--resume" in last and not out.exists()
    facts = json.loads(run("info", f"{out}.unfinished", "--json").stdout)
    assert (facts["kind"], facts["images"]) == ("unfinished token store", 4)
    for name in (out, f"{out}.unfinished"):
        result = run("decode", "--tokenizer", model, name, "--out", tmp_path / "no", code=1)
        assert "no such file" in result.stderr or "the store is unfinished" in result.stderr
    with pytest.raises(StoreError, match=r"store\.json is missing; the store is unfinished"):
        TokenStore(out)
    made = json.loads(run(*words, "--out", out, "--resume", "--json").stdout)
    assert made["resumed"] == 4 and made["images"] == 8
    assert contents(out) == contents(tmp_path / "quiet")
    assert not (tmp_path / "store.unfinished").exists()


def test_sizes_are_told_in_one_line(model: Path, pictures: Path, tmp_path: Path) -> None:
    words = ["encode", "--tokenizer", model, pictures, "--workers", 1]
    text = run(*words, "--out", tmp_path / "a").stdout
    (line,) = (line for line in text.splitlines() if line.startswith("sizes"))
    told = line.removeprefix("sizes").strip()
    assert told == "1 unchanged, 2 enlarged, 4 shrunk, 4 cropped (to 16 x 16 pixels)"
    found = json.loads(run(*words, "--out", tmp_path / "b", "--limit", 4, "--json").stdout)
    assert found["images"] == 4
    assert found["sizes"] == {"unchanged": 1, "enlarged": 1, "shrunk": 2}


def test_parts_are_joined_in_any_order(model: Path, pictures: Path, tmp_path: Path) -> None:
    words = ["encode", "--tokenizer", model, pictures, "--batch-size", 2, "--out"]
    run(*words, tmp_path / "whole")
    parts = [tmp_path / f"part-{i}" for i in range(3)]
    for i, part in enumerate(parts):
        run(*words, part, "--shard", f"{i}/3")
    facts = json.loads(run("info", parts[1], "--json").stdout)
    assert facts["part"] == "1 of 0 to 2"
    missing = run("store", "merge", *parts[:2], "--out", tmp_path / "merged", code=1)
    assert "found 2 of 3 parts; 2 missing" in missing.stderr
    run("store", "merge", parts[2], parts[0], parts[1], "--out", tmp_path / "merged")
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")
    for wrong in ("3/3", "1", "-1/3", "0/0", "a/b"):
        result = run(*words, tmp_path / "x", "--shard", wrong, code=2)
        assert "expected 0/n to n-1/n" in result.stderr
    assert not (tmp_path / "x").exists()


def test_a_second_writer_is_told_at_once(model: Path, pictures: Path, tmp_path: Path) -> None:
    facts = {"tokenizer": "t", "source": "s", "resolution": 16}
    run("encode", "--tokenizer", model, pictures, "--out", tmp_path / "first")
    store = TokenStore(tmp_path / "first")
    with store_writer.TokenStoreWriter(
        tmp_path / "store", store.spec, fingerprint="f", **facts
    ) as first:
        first.add(store[:1], ["0"])
        for more in ([], ["--resume"], ["--overwrite"]):
            words = ["encode", "--tokenizer", model, pictures, "--out", tmp_path / "store"]
            result = run(*words, *more, code=1)
            assert "another process is writing this token store" in result.stderr
    assert len(TokenStore(tmp_path / "store")) == 1


def test_decode_takes_stores_token_files_and_arrays(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    store_path = tmp_path / "store"
    run("encode", "--tokenizer", model, pictures, "--out", store_path)
    tokens = TokenStore(store_path).tokens()
    tokens.save(tmp_path / "t.safetensors")
    joint = tokens.regroup((32,)).indices.reshape(8, 8, 8).numpy()
    np.save(tmp_path / "joint.npy", joint.astype(np.uint8))
    np.save(tmp_path / "bits.npy", tokens.indices.numpy())
    words, files = ["decode", "--tokenizer", model], {}
    for name in ("store", "t.safetensors", "joint.npy", "bits.npy"):
        out = tmp_path / f"out-{name}"
        run(*words, tmp_path / name, "--out", out, "--workers", 2)
        files[name] = [(out / line["file"]).read_bytes() for line in records(out)]
        assert len(files[name]) == 8 and files[name] == files["store"]
    assert [line["file"] for line in records(tmp_path / "out-joint.npy")][:2] == [
        *("000000.png", "000001.png"),
    ]
    out = tmp_path / "some"
    assert json.loads(run(*words, store_path, "--out", out, "--limit", 3, "--json").stdout) | {
        "images_per_second": 0
    } == {"folder": str(out), "images": 3, "bits_per_image": 320.0, "images_per_second": 0}
    assert [p.read_bytes() for p in sorted(out.glob("[0-9].png"))] == files["store"][:3]
    np.save(tmp_path / "wrong.npy", joint[:, :4])
    (tmp_path / "notes.txt").write_text("no tokens")
    for name, message in (
        ("wrong.npy", r"expected (B, 64, 5), (B, 8, 8, 5), (B, 64) or (B, 8, 8)"),
        ("nothing", "no such file or folder"),
        ("pictures", "this is not a token store"),
        ("pictures/0.png", "an image; expected tokens"),
        ("notes.txt", "notes.txt"),
    ):
        result = run(*words, tmp_path / name, "--out", tmp_path / "no", code=1)
        assert message in result.stderr and not (tmp_path / "no").exists()


def test_export_and_import_on_the_command_line(model: Path, pictures: Path, tmp_path: Path) -> None:
    assert FORMATS == row_files.FORMATS == tuple(row_files.READERS) == tuple(row_files.WRITERS)
    run("encode", "--tokenizer", model, pictures, "--out", tmp_path / "store")
    words = ["store", "export", tmp_path / "store", "--to", "npy", "--out", tmp_path / "out"]
    words += ["--offset", 1000, "--bos", 998, "--eos", 999, "--order", "hilbert"]
    facts = json.loads(run(*words, "--json").stdout)
    assert facts["ids_per_image"] == 66 and facts["vocabulary"] == 1032
    assert (facts["first_id"], facts["last_id"]) == (1000, 1031)
    ids = np.load(tmp_path / "out" / "ids.npy")
    assert ids.shape == (8, 66) and (ids[:, 0] == 998).all() and (ids[:, -1] == 999).all()
    run("store", "import", tmp_path / "out", "--out", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "store")
    np.save(tmp_path / "out" / "ids.npy", np.roll(ids, 1, axis=0))
    result = run("store", "import", tmp_path / "out", "--out", tmp_path / "new", code=1)
    assert "ids.npy: damaged, its SHA-256" in result.stderr
    run("store", "import", tmp_path / "out", "--out", tmp_path / "new", "--changed")
    assert TokenStore(tmp_path / "new")[1:].equal(TokenStore(tmp_path / "store")[:-1])
    wrong = run(*words[:-6], "--bos", 1001, "--overwrite", code=1)
    assert "bos: found 1001, expected an id >= 0 outside" in wrong.stderr


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "images.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.skipif(sys.platform == "darwin", reason="names there are UTF-8")
def test_names_that_are_not_utf8_are_encoded_and_decoded(model: Path, tmp_path: Path) -> None:
    """Files, a class folder and the data folder with names in Latin-1."""
    root = Path(os.fsdecode(b"\xe9t\xe9"))
    names = [os.fsdecode(name) for name in (b"caf\xe9/1.png", b"caf\xe9/\xff.png", b"tea/2.png")]
    for number, name in enumerate(names):
        path = tmp_path / root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (90 * number, 9, 9)).save(path)
    store, out = tmp_path / "store", tmp_path / "out"
    run("encode", "--tokenizer", model, tmp_path / root, "--out", store)
    opened = TokenStore(store)
    assert opened.ids == names and opened.classes == (names[0].split("/")[0], "tea")
    assert opened.header.source == str(root)
    run("info", store)
    run("decode", "--tokenizer", model, store, "--out", out)
    assert [line["id"] for line in records(out)] == names
    assert [line["file"] for line in records(out)] == names
    assert all((out / name).is_file() for name in names)
    assert len(open_samples(str(out))) == 3


def test_decoded_files_stay_in_the_folder_and_never_collide(model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(model)
    ids = ["../../up.png", "/abs.png", "a.jpg", "A.png", "a", "x", "x.png/y", "", "grid.png"]
    codes = np.random.default_rng(0).integers(0, 2, (len(ids), 64, 5))
    tokens, facts = tokenizer.tokens_of(codes), {"tokenizer": "t", "source": "s", "resolution": 16}
    with store_writer.TokenStoreWriter(
        tmp_path / "in" / "store", tokens.spec, fingerprint=tokenizer.fingerprint, **facts
    ) as out:
        out.add(tokens, ids)
    run("decode", "--tokenizer", model, tmp_path / "in" / "store", "--out", tmp_path / "in" / "out")
    files = [line["file"] for line in records(tmp_path / "in" / "out")]
    assert files == [
        *("up.png", "abs.png", "a.png", "A_1.png", "a_2.png", "x.png", "x.png_/y.png"),
        *("image.png", "grid_1.png"),
    ]
    for name, image in zip(files, tokenizer.decode(tokens), strict=True):
        pixels = to_tensor(Image.open(tmp_path / "in" / "out" / name))
        assert (pixels - image).abs().max() <= 1 / 255 + 1e-6
    assert {p.name for p in tmp_path.iterdir()} == {"in"}
    assert {p.name for p in (tmp_path / "in").iterdir()} == {"store", "out"}
