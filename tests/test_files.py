"""Whole files or nothing: after an exception, an interrupt, a full disk."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tessella.files import SaveError, atomic_file, atomic_folder, sha256_file


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(path.parent) == ["a.txt"]


def test_folder_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "folder"
    with atomic_folder(path) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "a.txt").write_text("new")
        assert not path.exists()
    assert (path / "deep" / "a.txt").read_text() == "new"
    assert names(path.parent) == ["folder"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("")
    with atomic_folder(tmp_path / "b") as folder:
        (folder / "c").write_text("")
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_the_old_content_alone(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b.txt").write_text("old")
    with pytest.raises(error), atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise error
    with pytest.raises(error), atomic_folder(tmp_path / "folder", overwrite=True) as temporary:
        (temporary / "b.txt").write_text("half")
        raise error
    with pytest.raises(error), atomic_folder(tmp_path / "new") as temporary:
        (temporary / "b.txt").write_text("half")
        raise error
    assert (tmp_path / "a.txt").read_text() == "old"
    assert (tmp_path / "folder" / "b.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt", "folder"]


def test_folder_is_replaced_whole_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for content in ("old", "new"):
        with atomic_folder(path, overwrite=True) as temporary:
            (temporary / content).write_text("")
    assert names(path) == ["new"]
    assert names(tmp_path) == ["folder"]
    with pytest.raises(FileExistsError, match="exists already"), atomic_folder(path):
        pass


def test_folder_never_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    folder = atomic_folder(tmp_path / "a", overwrite=True)
    with pytest.raises(FileExistsError, match="is a file"), folder:
        pass
    assert (tmp_path / "a").read_text() == "old"


def test_folder_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with pytest.raises(SaveError, match="not empty"), atomic_folder(path) as temporary:
        (temporary / "ours").write_text("")
        path.mkdir()
        (path / "theirs").write_text("")
    assert names(path) == ["theirs"]
    assert names(tmp_path) == ["folder"]


def test_old_folder_returns_if_the_swap_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder"
    with atomic_folder(path) as temporary:
        (temporary / "old").write_text("")
    replace = os.replace

    def fail_on_the_new(source: Path, target: Path) -> None:
        if str(source).endswith(".partial"):
            raise OSError(errno.EIO, "Input/output error", str(source))
        replace(source, target)

    folder = atomic_folder(path, overwrite=True)
    with pytest.raises(SaveError, match="Input/output error"), folder as temporary:
        (temporary / "new").write_text("")
        monkeypatch.setattr(os, "replace", fail_on_the_new)
    assert names(path) == ["old"]
    assert names(tmp_path) == ["folder"]


def test_read_errors_of_the_block_keep_their_name(tmp_path: Path) -> None:
    for atomic in (atomic_file, atomic_folder):
        with pytest.raises(FileNotFoundError, match=r"source\.tar"), atomic(tmp_path / "a"):
            (tmp_path / "source.tar").read_bytes()
        with pytest.raises(ConnectionResetError), atomic(tmp_path / "a"):
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    assert not names(tmp_path)


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for atomic in (atomic_file, atomic_folder):
        block = atomic(tmp_path / "file" / "sub" / "a")
        with pytest.raises(SaveError, match=r"cannot write .*file/sub/a: ") as caught, block:
            pass
        assert isinstance(caught.value.__cause__, OSError)


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")


FULL_DISK = """
import json, resource, signal, sys
from pathlib import Path
import torch
from tessella.checkpoints import save_tokenizer
from tessella.config import build_config
from tessella.files import SaveError, atomic_file
from tessella.tokenizers.token_store import TokenStoreWriter
from tessella.tokenizers.tokens import Tokens, TokenSpec
from tessella.tokenizers.vqgan import VQGAN, VQGANConfig

root = Path(sys.argv[1])
autoencoder = {"base_channels": 8, "channel_multipliers": [1, 2], "norm_groups": 4}
quantizer = {"type": "lfq", "bits": 4}
config = {"resolution": 16, "autoencoder": autoencoder, "quantizer": quantizer}
tokenizer = VQGAN(build_config(VQGANConfig, config))
tokens = Tokens(torch.zeros(50, 64, 4, dtype=torch.int64), tokenizer.spec)

def write_file():
    with atomic_file(root / "a.txt") as path:
        path.write_bytes(bytes(10_000))

def write_tokens():
    tokens.regroup((2,) * 4).save(root / "a.safetensors")

def write_store():
    facts = dict(fingerprint="f", tokenizer="t", source="s", resolution=16, rows_per_shard=50)
    with TokenStoreWriter(root / "store", tokens.spec, **facts) as writer:
        writer.add(tokens[:1], ["0"])
        writer.add(tokens, list(map(str, range(50))))

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))
found = {}
for write in (write_file, write_tokens, write_store, lambda: save_tokenizer(tokenizer, root / "m")):
    try:
        write()
        message = "nothing was raised"
    except SaveError as error:
        message = str(error)
    found[write.__name__] = [message, sorted(p.name for p in root.iterdir())]
sys.stdout.write(json.dumps(found))
"""


def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", FULL_DISK, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 4
    for message, left in found.values():
        assert message.startswith(f"cannot write {tmp_path}")
        assert "File too large" in message
        assert message.endswith("nothing was left behind")
        assert not left


def test_folders_are_as_readable_as_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "private").write_text("x")
        (folder / "private").chmod(0o600)
    mode = (tmp_path / "folder" / "private").stat().st_mode
    assert mode == (tmp_path / "plain").stat().st_mode
