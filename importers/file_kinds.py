"""What kind of file somebody handed over, told by its first bytes, before anything reads it.

A download that failed leaves a web page, a pointer or half a file under the right name; the name
alone says nothing. Sizes are bounded by the size of the file: `torch.save` compresses nothing, so
compressed or overlapping entries of a zip archive are no weights.
"""

import zipfile
from pathlib import Path
from typing import Literal

from ..checkpoints import CheckpointError

Container = Literal["safetensors", "PyTorch file", "PyTorch file (before 1.6)"]

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number of torch.save
_HEADER_BYTES = 100_000_000  # longest header of a safetensors file
_KINDS = (
    (b"\x1f\x8b", "a gzip archive; unpack it"),
    (b"BZh", "a bzip2 archive; unpack it"),
    (b"\xfd7zXZ", "an xz archive; unpack it"),
    (b"7z\xbc\xaf", "a 7-zip archive; unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive; unpack it"),
    (b"Rar!", "a rar archive; unpack it"),
    (b"\x89HDF", "an HDF5 file, as TensorFlow and Keras write them"),
    (b"GGUF", "a GGUF file, as language models for llama.cpp are"),
    (b"\x93NUMPY", "a single NumPy array"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"%PDF", "a PDF document"),
    (b"version https://git-lfs", "a Git LFS pointer of {size} bytes, not the file that it stands "
     "for; get that one with git lfs pull"),
)  # fmt: skip


def container_of(path: Path) -> Container:
    """Kind of a file of weights.

    Raises:
        CheckpointError: If it is none, or not whole; the message says what it is.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(1024)
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path)
        return "PyTorch file"
    if head[8:9] == b"{":
        _check_safetensors(path, int.from_bytes(head[:8], "little"), size)
        return "safetensors"
    if head.startswith(_LEGACY):
        return "PyTorch file (before 1.6)"
    raise CheckpointError(
        f"{path}: not a checkpoint but {_described(head, size)}; expected safetensors or a file "
        "written by torch.save"
    )


def _described(head: bytes, size: int) -> str:
    """What a file is that holds no weights, by its first bytes."""
    for start, kind in _KINDS:
        if head.startswith(start):
            return kind.format(size=size)
    if not head:
        return "an empty file"
    if not head.strip(b"\0"):
        return "a file of zeros, as an interrupted download leaves it"
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it"
    if head.startswith(b"\x80") and head[1] <= 5:
        return "a pickle that torch.save did not write; it is not read"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "a web page (HTML), as a site sends it in place of a file that needs a login"
    if text.startswith(b"<"):
        return "an XML text, as a server sends it with an error"
    if text.startswith((b"{", b"[")):
        return "a JSON text"
    if all(byte in b"\t\r\n" or byte >= 32 for byte in head):
        return "a text"
    return "of an unknown kind"


def _check_safetensors(path: Path, header: int, size: int) -> None:
    """Refuse a file whose header says that there should be more, or that there are terabytes."""
    if header > min(size - 8, _HEADER_BYTES):
        raise CheckpointError(
            f"{path}: truncated or damaged: its header has {header:,} bytes, the file {size:,}"
        )


def _check_zip(path: Path) -> None:
    """Refuse a zip archive that is not whole, or that `torch.save` did not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise CheckpointError(
            f"{path}: truncated, damaged, or not written by torch.save: a zip archive without its "
            f"end, as half a download is ({error})"
        ) from None
    names = [entry.filename for entry in entries]
    if not any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        arrays = names and all(name.endswith(".npy") for name in names)
        what = "NumPy arrays (.npz)" if arrays else "a zip archive of other files; unpack it"
        raise CheckpointError(
            f"{path}: not a checkpoint but {what}; expected safetensors or a file written by "
            "torch.save"
        )
    packed = sum(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    total = sum(entry.file_size for entry in entries)
    if packed or total > path.stat().st_size:
        raise CheckpointError(
            f"{path}: {packed} of its {len(entries)} entries are compressed and they unpack to "
            f"{total:,} bytes, from a file of {path.stat().st_size:,}; torch.save compresses none, "
            "so this one is not read"
        )
