"""Byte offsets of the files in a tar archive, so that images are read in place and at random.

Only headers are read (one read and one seek per member). Understands ustar, GNU long names and
pax; compressed, truncated and overwritten archives are refused with the byte where they stop
making sense.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from .image_source import DataError

_BLOCK = 512
_ZERO = bytes(_BLOCK)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive: its path, and where its bytes lie."""

    path: str
    offset: int
    size: int


def index_tar(path: str | Path) -> dict[str, Member]:
    """Members of an uncompressed tar by path, without `./`; of equal paths the last one counts.

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
    members: dict[str, Member] = {}
    try:
        with path.open("rb", buffering=_BLOCK) as file:
            _scan(file, size, members)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except _Corrupt as error:
        where = f"readable up to byte {error.offset} of {size} ({len(members)} files)"
        raise DataError(f"{path}: {error}; {where}") from None
    return members


class _Corrupt(Exception):
    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(reason)
        self.offset = offset


def _scan(file: BinaryIO, size: int, members: dict[str, Member]) -> None:
    position = 0
    override: dict[str, str] = {}
    while True:
        file.seek(position)
        header = file.read(_BLOCK)
        if header == _ZERO:
            return
        if position == 0 and header[:2] in _COMPRESSED:
            compressor = _COMPRESSED[header[:2]]
            raise _Corrupt(f"compressed with {compressor}; unpack it to a plain .tar first", 0)
        if len(header) < _BLOCK:
            raise _Corrupt("truncated tar, the end-of-archive block is missing", position)
        length = _header_size(header, position)
        kind = header[156:157]
        if kind not in b"xLKg" and "size" in override:
            length = int(override["size"])
        offset = position + _BLOCK
        if offset + length > size:
            raise _Corrupt(f"truncated tar, file {len(members)} is cut off", position)
        if kind == b"L":
            override["path"] = _text(file.read(length))
        elif kind == b"x":
            override |= _pax(file.read(length))
        elif kind not in b"Kg":
            if kind in b"0\x007":
                name = os.path.normpath(override.get("path") or _name(header))
                members[name] = Member(name, offset, length)
            override = {}
        position = offset + -(-length // _BLOCK) * _BLOCK


def _header_size(header: bytes, position: int) -> int:
    checksum = sum(header[:148]) + 8 * 32 + sum(header[156:])
    try:
        stored = int(header[148:156].strip(b" \0") or b"0", 8)
        field = header[124:136]
        if field[0] & 0x80:  # base-256, for files of 8 GiB and more
            length = int.from_bytes(field, "big") & ((1 << 95) - 1)
        else:
            length = int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise _Corrupt("not a tar header", position) from None
    if stored != checksum:
        raise _Corrupt("not a tar header (checksum differs)", position)
    return length


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _pax(block: bytes) -> dict[str, str]:
    """The `path` and `size` records of a pax header: lines of `LENGTH KEY=VALUE`."""
    records: dict[str, str] = {}
    while block.strip(b"\0"):
        length = int(block.split(b" ", 1)[0])
        key, _, value = block[:length].split(b" ", 1)[1].partition(b"=")
        if key in (b"path", b"size"):
            records[key.decode()] = value.rstrip(b"\n").decode("utf-8", "surrogateescape")
        block = block[length:]
    return records
