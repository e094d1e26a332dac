"""Byte offsets of the files in a tar archive, so that images are read in place and at random.

Only headers are read. Compressed, truncated and overwritten archives are refused; the error names
the byte up to which they are readable.
"""

import os
import tarfile
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from .image_source import DataError

_BLOCK = 512
_MOST_LINKS = 40  # from link to link, as the system follows them
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive, or a link to one.

    Attributes:
        path: Path inside the archive.
        offset: Position of the first byte of the file in the archive.
        size: Size in bytes.
        problem: Reason why it cannot be read, such as a link out of the archive; "": none.
    """

    path: str
    offset: int
    size: int
    problem: str = ""


def index_tar(path: str | Path) -> dict[str, Member]:
    """Index the members of an uncompressed tar by path, without `./`; the last of equal paths wins.

    Hard and symbolic links have the content of the member that they link to. The result is kept in
    memory until the file changes.

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
    links: dict[str, str] = {}  # from path to path
    end = 0
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                if info.offset_data + info.size > size:
                    raise tarfile.ReadError(f"file {len(members)} is cut off")
                end = info.offset_data + info.size
                if info.isdir():
                    continue
                name = os.path.normpath(info.name)
                links.pop(name, None)
                if info.islnk() or info.issym():
                    place = os.path.dirname(name) if info.issym() else ""
                    links[name] = os.path.normpath(os.path.join(place, info.linkname))
                problem = "" if info.isreg() else f"a tar member of type {info.type!r}, not a file"
                if info.issparse():
                    problem = "a sparse file, whose content is not in one piece"
                members[name] = Member(name, info.offset_data, info.size, problem)
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
    for name in links:
        members[name] = _linked(name, links, members)
    return members


def _linked(name: str, links: dict[str, str], members: dict[str, Member]) -> Member:
    """The member that a link leads to, perhaps by further links, under the name of the link."""
    target = links[name]
    for _ in range(_MOST_LINKS):
        if target not in links:
            break
        target = links[target]
    found = members.get(target)
    if found is None or target in links:
        return Member(name, 0, 0, f"a link to {links[name]}, which is not in the archive")
    return replace(found, path=name)
