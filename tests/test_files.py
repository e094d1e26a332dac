"""Whole files or nothing: after an exception, an interrupt, a full disk."""

import errno
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tessella import files
from tessella.files import (
    MARKER,
    SaveError,
    add_to_marker,
    atomic_file,
    atomic_folder,
    check_replaceable,
    read_marker,
    remove_folder,
    sha256_file,
)


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
    with atomic_folder(path, kind="thing") as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "a.txt").write_text("new")
        assert not path.exists()
    assert (path / "deep" / "a.txt").read_text() == "new"
    assert names(path.parent) == ["folder"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("")
    with atomic_folder(tmp_path / "b", kind="thing") as folder:
        (folder / "c").write_text("")
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_the_old_content_alone(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.txt").write_text("old")
    with atomic_folder(tmp_path / "folder", kind="thing") as temporary:
        (temporary / "b.txt").write_text("old")
    with pytest.raises(error), atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise error
    with (
        pytest.raises(error),
        atomic_folder(tmp_path / "folder", overwrite=True, kind="thing") as temporary,
    ):
        (temporary / "b.txt").write_text("half")
        raise error
    with pytest.raises(error), atomic_folder(tmp_path / "new", kind="thing") as temporary:
        (temporary / "b.txt").write_text("half")
        raise error
    assert (tmp_path / "a.txt").read_text() == "old"
    assert (tmp_path / "folder" / "b.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt", "folder"]


def test_folder_is_replaced_whole_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for content in ("old", "new"):
        with atomic_folder(path, overwrite=True, kind="thing") as temporary:
            (temporary / content).write_text("")
    assert names(path) == [MARKER, "new"]
    assert names(tmp_path) == ["folder"]
    with pytest.raises(FileExistsError, match="exists already"), atomic_folder(path, kind="thing"):
        pass


def test_folder_never_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    folder = atomic_folder(tmp_path / "a", overwrite=True, kind="thing")
    with pytest.raises(FileExistsError, match="is a file"), folder:
        pass
    assert (tmp_path / "a").read_text() == "old"


def test_folder_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with (
        pytest.raises(FileExistsError, match="exists already"),
        atomic_folder(path, kind="thing") as temporary,
    ):
        (temporary / "ours").write_text("")
        path.mkdir()
        (path / "theirs").write_text("")
    assert names(path) == ["theirs"]
    assert names(tmp_path) == ["folder"]


def test_old_folder_returns_if_the_swap_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchange", lambda one, two: False)
    path = tmp_path / "folder"
    with atomic_folder(path, kind="thing") as temporary:
        (temporary / "old").write_text("")
    replace = os.replace

    def fail_on_the_new(source: Path, target: Path) -> None:
        if ".partial" in str(source):
            raise OSError(errno.EIO, "Input/output error", str(source))
        replace(source, target)

    folder = atomic_folder(path, overwrite=True, kind="thing")
    with pytest.raises(SaveError, match="Input/output error"), folder as temporary:
        (temporary / "new").write_text("")
        monkeypatch.setattr(os, "replace", fail_on_the_new)
    assert names(path) == [MARKER, "old"]
    assert names(tmp_path) == ["folder"]


def test_read_errors_of_the_block_keep_their_name(tmp_path: Path) -> None:
    for atomic in (atomic_file, functools.partial(atomic_folder, kind="thing")):
        with pytest.raises(FileNotFoundError, match=r"source\.tar"), atomic(tmp_path / "a"):
            (tmp_path / "source.tar").read_bytes()
        with pytest.raises(ConnectionResetError), atomic(tmp_path / "a"):
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    assert not names(tmp_path)


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for atomic in (atomic_file, functools.partial(atomic_folder, kind="thing")):
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
from tessella.tokens.store import TokenStoreWriter
from tessella.tokens.tokens import Tokens, TokenSpec
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
    with atomic_folder(tmp_path / "folder", kind="thing") as folder:
        (folder / "private").write_text("x")
        (folder / "private").chmod(0o600)
    mode = (tmp_path / "folder" / "private").stat().st_mode
    assert mode == (tmp_path / "plain").stat().st_mode


def thing(path: Path, *names: str, kind: str = "thing", **options: Any) -> Path:
    """A folder of ours with a few files."""
    with atomic_folder(path, kind=kind, **options) as folder:
        for name in names or ("a.txt",):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"ours {name}")
    return path


def contents(root: Path) -> dict[str, bytes]:
    """Every file below a folder, byte for byte."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_the_marker_says_kind_files_and_facts(tmp_path: Path) -> None:
    path = thing(tmp_path / "out", "b", "sub/a", facts={"run": "7", "none": None})
    assert json.loads((path / MARKER).read_text()) == {
        "kind": "thing",
        "files": {"b": len("ours b"), "sub/a": len("ours sub/a")},
        "run": "7",
        "sha256": {name: sha256_file(path / name) for name in ("b", "sub/a")},
    }
    (path / "probe").write_text("later")
    add_to_marker(path, "probe")
    sizes = {"b": 6, "sub/a": 10, "probe": len("later")}
    sums = {name: sha256_file(path / name) for name in sizes}
    assert read_marker(path) == {"kind": "thing", "files": sizes, "run": "7", "sha256": sums}
    thing(path, "c", overwrite=True, facts={"run": "7"})
    assert names(path) == [MARKER, "c"] and names(tmp_path) == ["out"]
    (tmp_path / "plain").mkdir()
    add_to_marker(tmp_path / "plain", "probe")
    assert names(tmp_path / "plain") == []


def no_marker(path: Path) -> None:
    (path / "album").mkdir(parents=True)
    for name in ("1.png", "2.png", "3.png", "album/4.png", "album/5.png"):
        (path / name).write_bytes(b"photograph " + name.encode())


def broken_marker(path: Path) -> None:
    no_marker(path)
    (path / MARKER).write_text('{"kind": "thing", "files"')


def another_kind(path: Path) -> None:
    thing(path, "x.png", kind="report")


def more_files(path: Path) -> None:
    thing(path)
    (path / "sub").mkdir()
    for name in ("1", "2", "3", "4"):
        (path / "sub" / name).write_bytes(b"mine")


def more_folders(path: Path) -> None:
    thing(path)
    (path / "for later").mkdir()


def a_link_inside(path: Path) -> None:
    thing(path)
    (path / "link").symlink_to(path.parent / "away")


def a_marked_folder_inside(path: Path) -> None:
    thing(path)
    thing(path / "inner", "b")


def another_run(path: Path) -> None:
    thing(path, facts={"run": "other"})


def a_file(path: Path) -> None:
    path.write_bytes(b"mine")


def a_link(path: Path) -> None:
    path.symlink_to(thing(path.with_name("target")))


STAYS = {
    no_marker: ["holds no thing written by tessella", "version 0.5", "1.png, 2.png, 3.png and 2"],
    broken_marker: ["holds no thing written by tessella", "1.png, 2.png, 3.png and 2 more"],
    another_kind: ["holds no thing but a report written by tessella", "x.png"],
    more_files: ["did not write there: sub/1, sub/2, sub/3 and 1 more"],
    more_folders: ["did not write there: for later/"],
    a_link_inside: ["did not write there: link"],
    a_marked_folder_inside: [f"did not write there: inner/{MARKER}, inner/b"],
    another_run: ["holds a thing of another run", "a.txt"],
    a_file: ["out is a file"],
    a_link: ["out is a symbolic link to ", "target"],
}


@pytest.mark.parametrize("make", STAYS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("when", ["before", "meanwhile", "between check and swap", "without both"])
def test_what_is_not_ours_stays(
    make: Callable[[Path], None], when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found at the start, or put there while the new one was made, or in the last moment."""
    out, late = tmp_path / "out", when in ("between check and swap", "without both")
    if late and make in (a_file, a_link, another_run):
        pytest.skip("nothing can become that in between")
    if when == "without both":
        monkeypatch.setattr(files, "_exchange", lambda one, two: False)
    facts = {"run": "mine"} if make is another_run else None
    block = atomic_folder(out, kind="thing", overwrite=True, facts=facts)
    before: dict[str, bytes] = {}
    if when == "before":
        make(out)
        before = contents(tmp_path)
    with pytest.raises(FileExistsError) as caught, block as temporary:
        assert when != "before"
        (temporary / "new").write_text("new")
        if late:
            thing(out)
            swap = files._swap

            def put(*given: Any) -> None:
                shutil.rmtree(out)
                make(out)
                before.update(contents(tmp_path))
                swap(*given)

            monkeypatch.setattr(files, "_swap", put)
        else:
            make(out)
            before = contents(tmp_path)
    for part in STAYS[make]:
        assert part in str(caught.value)
    kept = {name: blob for name, blob in before.items() if ".partial" not in name}
    assert contents(tmp_path) == kept and kept
    assert not [name for name in names(tmp_path) if name.startswith(".out")]


def test_a_folder_stays_without_overwrite(tmp_path: Path) -> None:
    out = thing(tmp_path / "out")
    before = contents(out)
    with pytest.raises(FileExistsError, match=r"out exists already; choose another name or"):
        thing(out, "new")
    assert contents(out) == before
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        thing(tmp_path / "empty")
    thing(tmp_path / "empty", overwrite=True)
    assert names(tmp_path / "empty") == [MARKER, "a.txt"]


def test_special_places_stay_even_with_a_marker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A marker does not help the home folder, the current one, or what holds either."""
    home, here = thing(tmp_path / "home", "me/x"), thing(tmp_path / "here", "deep/x")
    monkeypatch.setenv("HOME", str(home / "me"))
    monkeypatch.chdir(here / "deep")
    for path, message in (
        (home / "me", "is the home folder"),
        (home, f"holds the home folder {home / 'me'}"),
        (Path("."), "is the current folder"),
        (here, f"holds the current folder {here / 'deep'}"),
        (Path("/"), "is the root of a file system"),
    ):
        with pytest.raises(FileExistsError, match=re.escape(message)):
            check_replaceable(path, "thing", overwrite=True)
    assert (home / "me" / "x").read_text() == "ours me/x"


def test_inputs_and_what_holds_them_stay(tmp_path: Path) -> None:
    out = thing(tmp_path / "out", "sub/a.txt")
    (tmp_path / "link").symlink_to(out / "sub" / "a.txt")
    before = contents(tmp_path)
    for given, message in (
        (out, "is an input of this command"),
        (out / "sub", "out/sub, an input of this command"),
        (out / "sub" / "a.txt", "a.txt, an input"),
        (out / ".." / "link", "link, an input"),
    ):
        with pytest.raises(FileExistsError, match=message):
            thing(out, overwrite=True, inputs=[given])
    assert contents(tmp_path) == before
    thing(out, "new", overwrite=True, inputs=[tmp_path, tmp_path / "out2"])
    assert names(out) == [MARKER, "new"]


@pytest.mark.parametrize("as_link", [False, True])
def test_what_a_user_put_in_the_place_of_a_file_of_ours_stays(
    tmp_path: Path, as_link: bool
) -> None:
    out = thing(tmp_path / "out", "a.png", "b")
    (tmp_path / "photo").write_bytes(b"a photograph")
    (out / "a.png").unlink()
    if as_link:
        (out / "a.png").symlink_to(tmp_path / "photo")
    else:
        (tmp_path / "photo").rename(out / "a.png")
    with pytest.raises(FileExistsError, match=r"did not write there: a\.png;"):
        thing(out, overwrite=True)
    assert (out / "a.png").read_bytes() == b"a photograph" and (
        out / "a.png"
    ).is_symlink() == as_link
    assert names(out) == [MARKER, "a.png", "b"]


def test_a_file_of_ours_that_is_gone_is_no_hindrance(tmp_path: Path) -> None:
    out = thing(tmp_path / "out", "big/a", "b")
    shutil.rmtree(out / "big")
    thing(out, overwrite=True)
    assert names(out) == [MARKER, "a.txt"]


def test_nothing_is_lost_if_the_exchange_cannot_be_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A photograph appears at the last moment, and then the names cannot be exchanged again."""
    out = thing(tmp_path / "out", "a")
    real, calls = files._exchange, []

    def exchange(one: Path, two: Path) -> bool:
        calls.append(one)
        if len(calls) > 1:
            raise OSError(errno.EIO, "Input/output error")
        (two / "photo").write_bytes(b"mine")
        return real(one, two)

    monkeypatch.setattr(files, "_exchange", exchange)
    with pytest.raises(FileExistsError, match="did not write there: photo"):
        thing(out, overwrite=True)
    if len(calls) > 1:  # a file system that exchanges names
        kept = [path for path in tmp_path.iterdir() if ".kept-" in path.name]
        assert len(kept) == 1 and (kept[0] / "photo").read_bytes() == b"mine"


def test_readers_never_miss_the_folder(tmp_path: Path) -> None:
    """Where names can be exchanged, an opened path is there at every moment of 200 swaps."""
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        path.mkdir()
    if not files._exchange(one, two):
        pytest.skip("this file system exchanges no names")
    out, missing, done = thing(tmp_path / "out"), 0, threading.Event()
    looks = 0

    def look() -> None:
        nonlocal missing, looks
        while not done.is_set():
            looks += 1
            missing += not os.path.exists(out)

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(200):
        thing(out, overwrite=True, flush=False)
    done.set()
    reader.join()
    assert missing == 0 and looks > 200
    assert names(tmp_path) == ["one", "out", "two"]


def test_replaced_without_exchange_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_exchange", lambda one, two: False)
    out = thing(tmp_path / "out", "old")
    thing(out, "new", overwrite=True)
    assert names(out) == [MARKER, "new"] and names(tmp_path) == ["out"]


@pytest.mark.parametrize("make", [more_files, another_kind, no_marker, another_run])
def test_only_our_folders_are_removed(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "out")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError):
        remove_folder(tmp_path / "out", "thing", {"run": "mine"})
    assert contents(tmp_path) == before
    ours = thing(tmp_path / "ours", facts={"run": "mine"})
    remove_folder(ours, "thing", {"run": "mine"})
    assert names(tmp_path) == ["out"]
