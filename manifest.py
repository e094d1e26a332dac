"""Markers: the file `.tessella.json` in every folder that tessella wrote.

It says the kind of the folder, and lists its files with their sizes; what is not listed there,
tessella did not write. Of files that are small it has the SHA-256 as well, so that a changed bit in
a card, a config, the header of a store or a list of samples is an error when that file is read.
Large files of tensors carry a hash of their own: weights have the fingerprint in the card, shards
their entry in the header, checkpoints `checksums.json`, token files a digest in their metadata.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .documents import check, read_json

MARKER = ".tessella.json"
"""File in every folder that tessella wrote: its kind, its files, and facts such as the run."""
CHECKSUMS = "checksums.json"
"""File of a checkpoint with the SHA-256 of each other file."""
MOST_HASHED = 2**24
"""Largest file whose SHA-256 the marker has, in bytes; pictures have none."""
StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class _Marker:
    """What every marker has; facts of its kind stand beside it."""

    kind: str
    files: dict[str, int]
    sha256: dict[str, str] | None = None


def read_marker(folder: StrPath) -> dict[str, Any] | None:
    """Content of a folder's marker; None if missing or unreadable."""
    try:
        marker = read_json(Path(folder) / MARKER, dict[str, Any])
        check(marker, _Marker, name=MARKER)
    except (OSError, ValueError):
        return None
    return marker


def unlisted(folder: StrPath, marker: Mapping[str, Any] | None = None) -> list[str]:
    """Names of files, links and empty folders that the marker of a folder does not list.

    Args:
        folder: Folder of ours.
        marker: Its marker; None: read it, and where there is none, nothing is unlisted.
    """
    marker = marker or read_marker(folder)
    if marker is None:
        return []
    listed = marker["files"]
    kept = {f"{parent}/" for name in listed for parent in Path(name).parents}
    found = entries_of(Path(folder))
    return [name for name, size in found.items() if name not in kept and listed.get(name) != size]


def marker_text(kind: str, files: Mapping[str, int], facts: Mapping[str, Any]) -> str:
    """Text of a marker."""
    return json.dumps({"kind": kind, "files": files, **facts}, indent=1) + "\n"


def hashes_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of those files of a folder that get one, by name."""
    return {name: sha256_file(folder / name) for name in names if _is_hashed(folder / name)}


def _is_hashed(path: Path) -> bool:
    """Whether the marker has the hash of a file: not of large ones, pictures, links and folders."""
    if path.is_symlink() or not path.is_file() or path.suffix == ".png":
        return False
    return path.stat().st_size <= MOST_HASHED


def check_files(folder: StrPath, names: Iterable[str], *, error: type[ValueError]) -> bool:
    """Compare files with the hashes in the marker of their folder.

    Args:
        folder: Folder of the files.
        names: Names of the files; one that does not exist is not looked at.
        error: Type of the error that is raised.

    Returns:
        Whether there are hashes: folders of older versions, and those that lost their marker, have
        none, and nothing is compared.

    Raises:
        ValueError: Of the type `error`, if a file or the marker was changed since it was written.
    """
    folder = Path(folder)
    try:
        marker = read_json(folder / MARKER, dict[str, Any], error=error)
    except FileNotFoundError:
        return False
    sums = check(marker, _Marker, name=str(folder / MARKER), error=error).sha256
    if sums is None:
        return False
    for name in names:
        path = folder / name
        if not path.is_file() or not (name in sums or _is_hashed(path)):
            continue
        if sha256_file(path) != sums.get(name):
            raise error(
                f"{path}: changed or damaged since it was written, its SHA-256 is not that in "
                f"{MARKER}; if you changed it yourself, remove {folder / MARKER}"
            )
    return True


def entries_of(folder: Path) -> dict[str, int]:
    """Relative paths of all files and links to their sizes; empty subfolders end in a slash."""
    found: dict[str, int] = {}
    waiting = [(folder, "")]
    while waiting:
        place, prefix = waiting.pop()
        with os.scandir(place) as scan:
            inside = sorted(scan, key=lambda entry: entry.name)
        if not inside and prefix:
            found[prefix] = 0
        for entry in inside:
            if entry.is_dir(follow_symlinks=False):
                waiting.append((Path(entry.path), f"{prefix}{entry.name}/"))
            elif f"{prefix}{entry.name}" != MARKER:
                found[f"{prefix}{entry.name}"] = entry.stat(follow_symlinks=False).st_size
    return dict(sorted(found.items()))


def some_of(found: Iterable[str]) -> str:
    """The first three names and the number of the others, for messages."""
    names = list(found)
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return (", ".join(names[:3]) or "nothing else") + more


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def told(checked: bool) -> str:
    """Whether the files of a folder could be checked, in words for the user."""
    return "agree" if checked else f"none (of an older version, or without its {MARKER})"


def write_sums(folder: Path) -> None:
    """Write `checksums.json`, the SHA-256 of every other file in a folder."""
    sums = {file.name: sha256_file(file) for file in sorted(folder.iterdir())}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=2), encoding="utf-8")


def check_sums(folder: Path, *, error: type[ValueError]) -> None:
    """Compare every file of a folder that decides a number with its `checksums.json`.

    Raises:
        FileNotFoundError: If the checksums, or a file that they list, are missing.
        ValueError: Of the type `error`, if a file is truncated or changed, if the checksums are, or
            if a file of tensors is not listed.
    """
    path = folder / CHECKSUMS
    sums = read_json(path, dict[str, str], error=error)
    tensors = [name for name in entries_of(folder) if name.endswith((".safetensors", ".pt"))]
    if strange := [name for name in sums if name != os.path.basename(name)]:
        raise error(f"{path}: truncated or changed, it lists {strange[0]!r}")
    if bare := [name for name in tensors if name not in sums]:
        raise error(f"{path}: truncated or changed, it has no checksum of {some_of(bare)}")
    for name, expected in sums.items():
        file = folder / name
        if os.path.lexists(file) and not file.is_file():  # a pipe would never answer
            raise error(f"{file}: no regular file")
        if sha256_file(file) != expected:
            raise error(f"{folder / name}: truncated or changed")
