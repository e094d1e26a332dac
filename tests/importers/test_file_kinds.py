"""A file that is no checkpoint is called what it is; none takes more memory than it has bytes."""

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tessella.checkpoints import CheckpointError
from tessella.importers.checkpoint_file import read_weights
from tessella.tests.cases import over

STATE = {"a.weight": torch.ones(64, 64), "b.bias": torch.zeros(3)}


def torch_file(*, old: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(STATE, stream, _use_new_zipfile_serialization=not old)
    return stream.getvalue()


def packed(method: int = zipfile.ZIP_DEFLATED, size: int = 30_000_000) -> bytes:
    """A file of torch whose entries are compressed: a thousand times its size."""
    stream, state = io.BytesIO(), {"a.weight": torch.zeros(size // 4)}
    plain = io.BytesIO()
    torch.save(state, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(stream, "w", method) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry.filename))
    return stream.getvalue()


def archive_of_text() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as target:
        target.writestr("readme.txt", "hello")
    return stream.getvalue()


def arrays() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.ones(3))
    return stream.getvalue()


def tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as target:
        target.addfile(tarfile.TarInfo("x"), io.BytesIO(b""))
    return stream.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n"
HUGE = struct.pack("<Q", 2**60) + b'{"a":{}}'
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "pointer": (lambda: POINTER, r"a Git LFS pointer of 65 bytes, .*git lfs pull"),
    "page": (lambda: b"\n<!DOCTYPE html><html>Sign in</html>", r"a web page \(HTML\)"),
    "error": (lambda: b"<?xml version='1.0'?><Error/>", "an XML text"),
    "json": (lambda: b'{"error": "Not found"}', "a JSON text"),
    "text": (lambda: b"Not found", "a text"),
    "empty": (lambda: b"", "an empty file"),
    "zeros": (lambda: bytes(5000), "a file of zeros"),
    "gzip": (lambda: gzip.compress(b"x"), "a gzip archive"),
    "tar": (tar, "a tar archive"),
    "npz": (arrays, r"NumPy arrays \(\.npz\)"),
    "zip": (archive_of_text, "a zip archive of other files"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
    "gguf": (lambda: b"GGUF\3\0\0\0" + b"x" * 100, "a GGUF file"),
    "picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG picture"),
    "pickle": (lambda: pickle.dumps({"a": 1}), "a pickle that torch.save did not write"),
    "noise": (lambda: bytes(range(256)), "of an unknown kind"),
    "half": (lambda: torch_file()[:-4000], r"without its end, as half a download is"),
    "half of an old one": (lambda: torch_file(old=True)[:-4000], "truncated, damaged"),
    "long header": (lambda: HUGE, r"its header has [\d,]+ bytes, the file 16"),
    "compressed": (packed, r"\d+ of its \d+ entries are compressed and .* torch\.save compresses"),
    "bzip": (lambda: packed(zipfile.ZIP_BZIP2, 300_000), "entries are compressed"),
}


@over("name", FILES)
@over("ending", ["bin", "safetensors"])
def test_a_file_is_called_what_it_is(name: str, ending: str, tmp_path_factory: object) -> None:
    make, message = FILES[name]
    path = tmp_path_factory.mktemp("case") / f"model.{ending}"  # type: ignore[attr-defined]
    path.write_bytes(make())
    with pytest.raises(CheckpointError, match=message) as caught:
        read_weights(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_half_a_safetensors_file(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for length in (20, 100, len(whole) - 1):
        (tmp_path / "half").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            read_weights(tmp_path / "half")


@over("form", ["zip", "old", "safetensors"])
def test_the_name_of_a_file_does_not_matter(form: str, tmp_path_factory: object) -> None:
    """A zip of torch that is called .safetensors is read as what it is, and the other way round."""
    folder = tmp_path_factory.mktemp("case")  # type: ignore[attr-defined]
    path = folder / ("model.bin" if form == "safetensors" else "model.safetensors")
    if form == "safetensors":
        save_file(STATE, path)
    else:
        path.write_bytes(torch_file(old=form == "old"))
    found = read_weights(path)
    assert torch.equal(found.tensors["a.weight"], STATE["a.weight"])
    kinds = {"zip": "PyTorch file", "old": "PyTorch file (before 1.6)"}
    assert found.container == kinds.get(form, "safetensors")


def test_entries_that_overlap_are_refused(tmp_path: Path) -> None:
    """Many names of one stretch of a zip archive, each as long as the file."""
    content = bytearray(torch_file())
    place = content.rindex(b"PK\x01\x02")
    struct.pack_into("<II", content, place + 20, 2**30, 2**30)  # sizes in the directory
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"unpack to 1,07\d,\d+,\d+ bytes, from a file of"):
        read_weights(tmp_path / "file")


def test_an_index_that_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    for text in ("{", json.dumps([1]), "[" * 100_000):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"index\.json: ") as caught:
            read_weights(path)
        assert "\n" not in str(caught.value)
