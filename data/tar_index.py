"""Byte offsets of the files in a tar archive, so that images are read in place and at random.

Only headers are read. Compressed, truncated and overwritten archives are refused; the error names
the byte up to which they are readable.
"""

import os
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .image_source import DataError

_BLOCK = 512
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive.

    Attributes:
        path: Path inside the archive.
        offset: Position of the first byte of the file in the archive.
        size: Size in bytes.
    """

    path: str
    offset: int
    size: int


def index_tar(path: str | Path) -> dict[str, Member]:
    """Index the members of an uncompressed tar by path, without `./`; the last of equal paths wins.

    The result is kept in memory until the file changes.

    Raises:
        DataError: If the file is missing, compressed, not a tar, or truncated.
    """
    path = Path(path)
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return _index(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _index(path: Path, size: int, _mtime: int) -> dict[str, Member]:
    """Index an archive of this size and modification time."""
    members: dict[str, Member] = {}
    end = 0
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                if info.offset_data + info.size > size:
                    raise tarfile.ReadError(f"file {len(members)} is cut off")
                end = info.offset_data + info.size
                if info.isreg():
                    name = os.path.normpath(info.name)
                    members[name] = Member(name, info.offset_data, info.size)
            if size - tar.offset < _BLOCK:
                raise tarfile.ReadError("the end-of-archive block is missing")
    except tarfile.TarError as error:
        with path.open("rb") as file:
            start = file.read(4)
        for magic, compressor in _COMPRESSED.items():
            if start.startswith(magic):
                reason = f"compressed with {compressor}; unpack it to a plain .tar first"
                raise DataError(f"{path}: {reason}") from None
        where = f"readable up to byte {end} of {size} ({len(members)} files)"
        what = "truncated or damaged tar" if end else "not a tar, or cut off in its first file"
        raise DataError(f"{path}: {what}, {error}; {where}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return members
