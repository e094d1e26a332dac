"""Atomic writing of files and folders, which never replaces what tessella did not write.

Content is made in a hidden folder beside the target (`unfinished.py`), flushed and renamed, so the
final name never holds half of it. A folder carries a marker, `.tessella.json`: its kind, its files
and their sizes. It is replaced or removed only if its marker is of the same kind and lists its
content.
"""

import contextlib
import ctypes
import errno
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .manifest import (
    MARKER,
    StrPath,
    entries_of,
    hashes_of,
    marker_text,
    read_marker,
    sha256_file,
    some_of,
    unlisted,
)
from .unfinished import Workshop, sweep, workshop

__all__ = [
    "MARKER",
    "SaveError",
    "add_to_marker",
    "atomic_file",
    "atomic_folder",
    "check_file",
    "check_replaceable",
    "read_marker",
    "remove_folder",
    "sha256_file",
    "some_of",
    "write_marker",
]

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}
_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2


class SaveError(OSError):
    """Something could not be written (disk full, no permission); what was there is intact."""


@contextlib.contextmanager
def atomic_file(path: StrPath) -> Iterator[Path]:
    """Yield a temporary file, renamed to `path` when the block ends without error.

    An existing file is replaced: call `check_file` first, unless tessella made the folder.

    Raises:
        SaveError: If writing fails; the temporary file is removed.
    """
    path = Path(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, path.name)
        with workshop(path) as place:
            place.item.touch()
            yield place.item
            _flush(place.item)
            place.item.chmod(0o666 & ~_umask())  # safetensors makes files private
            os.replace(place.item, path)


@contextlib.contextmanager
def atomic_folder(
    path: StrPath,
    *,
    kind: str,
    overwrite: bool = False,
    inputs: Iterable[StrPath] = (),
    flush: bool = True,
    facts: Mapping[str, Any] | None = None,
) -> Iterator[Path]:
    """Yield a temporary folder, renamed to `path` when the block ends without error.

    What a killed writer of the same path left is put back or removed first.

    Args:
        path: Final path of the folder.
        kind: Kind of the content in plain words, such as "token store", stored in the marker.
        overwrite: Whether to replace an existing folder of tessella's; see `check_replaceable`.
        inputs: Files and folders that are being read and are never replaced.
        flush: Whether to sync every file to disk first; False for thousands of replaceable files.
        facts: Further entries of the marker, which a folder to be replaced must have as well;
            entries that are None are ignored.

    Raises:
        FileExistsError: If `path` exists and must stay, on entering or leaving the block.
        SaveError: If writing fails; the temporary folder is removed.
    """
    path, inputs = Path(path), list(inputs)
    facts = {name: fact for name, fact in (facts or {}).items() if fact is not None}
    check = functools.partial(
        check_replaceable, path, kind, overwrite=overwrite, inputs=inputs, facts=facts
    )
    with _explained(path):
        sweep(path.parent, path.name)
        check()
        path.parent.mkdir(parents=True, exist_ok=True)
        with workshop(path) as place:
            place.item.mkdir()
            yield place.item
            entries = entries_of(place.item)
            sums = {"sha256": hashes_of(place.item, entries)}
            text = marker_text(kind, entries, facts | sums)
            (place.item / MARKER).write_text(text, encoding="utf-8")
            for file in place.item.rglob("*"):
                if file.is_file():
                    file.chmod(0o666 & ~_umask())
                    if flush:
                        _flush(file)
            check()  # again: something may have been put there in the meantime
            if path.exists():
                _swap(place, path, kind)
            else:
                os.replace(place.item, path)  # refuses a folder that appeared meanwhile


def check_replaceable(
    path: StrPath,
    kind: str,
    *,
    overwrite: bool,
    inputs: Iterable[StrPath] = (),
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Refuse a path at which writing a folder would destroy files that tessella did not write.

    A path that does not exist passes. With `overwrite`, so does an empty folder, and one whose
    marker is of the same kind, has the same facts and lists all files and empty subfolders.

    Args:
        path: Folder to write.
        kind: Kind of the new content, as in `atomic_folder`.
        overwrite: Whether a folder that tessella wrote may be replaced.
        inputs: Files and folders that are being read.
        facts: Entries that the marker must have.

    Raises:
        FileExistsError: If the existing folder must stay; the message names its content.
    """
    path = Path(path)
    if not os.path.lexists(path):
        return
    if path.is_symlink():
        raise FileExistsError(
            f"{path} is a symbolic link to {os.readlink(path)}; name the folder itself, or choose "
            "another --out"
        )
    if not path.is_dir():
        raise FileExistsError(f"{path} is a file; a folder of that name cannot be written")
    if not overwrite:
        raise FileExistsError(f"{path} exists already; choose another name or --overwrite it")
    if reason := _irreplaceable(path, inputs):
        raise FileExistsError(f"{path} {reason}, which is never replaced; choose another --out")
    _check_ours(path, path, kind, facts or {})


def _irreplaceable(path: Path, inputs: Iterable[StrPath]) -> str | None:
    """Reason why a folder is never replaced, whatever its content; None if there is none."""
    found = path.resolve()
    if found.parent == found or os.path.ismount(path):
        return "is the root of a file system"
    home = Path(os.path.expanduser("~")).resolve()
    for kept, name in ((home, "home folder"), (Path.cwd(), "current folder")):
        if found == kept:
            return f"is the {name}"
        if found in kept.parents:
            return f"holds the {name} {kept}"
    for place in inputs:
        read = Path(place).expanduser().resolve()
        if found == read:
            return "is an input of this command"
        if found in read.parents:
            return f"holds {place}, an input of this command"
    return None


def _check_ours(folder: Path, shown: Path, kind: str, facts: Mapping[str, Any]) -> None:
    """Refuse a folder with content that tessella did not write; messages call it `shown`."""
    entries = entries_of(folder)
    marker = read_marker(folder)
    if marker is None:
        if entries or os.path.lexists(folder / MARKER):
            raise FileExistsError(
                f"{shown} holds no {kind} written by tessella (no {MARKER}; version 0.5 wrote "
                f"none): there is {some_of(entries or [MARKER])}; remove it yourself or choose "
                "another --out"
            )
        return
    if marker["kind"] != kind:
        raise FileExistsError(
            f"{shown} holds no {kind} but a {marker['kind']} written by tessella: there is "
            f"{some_of(entries)}; remove it yourself or choose another --out"
        )
    if any(marker.get(name) != value for name, value in facts.items()):
        raise FileExistsError(
            f"{shown} holds a {kind} of another run: there is {some_of(entries)}; move it away or "
            "choose another --out"
        )
    foreign = unlisted(folder, marker)
    if foreign:
        raise FileExistsError(
            f"{shown} holds what tessella did not write there: {some_of(foreign)}; move it away or "
            "choose another --out"
        )


def check_file(
    path: StrPath,
    kind: str,
    *,
    overwrite: bool,
    ours: Callable[[Path], bool],
    inputs: Iterable[StrPath] = (),
) -> None:
    """Refuse a path at which writing a file would destroy one that tessella did not write.

    Args:
        path: File to write.
        kind: Kind of the new file, for messages.
        overwrite: Whether a file that tessella wrote may be replaced.
        ours: Test of whether tessella wrote the file at a path.
        inputs: Files that are being read.

    Raises:
        FileExistsError: If the existing file must stay.
    """
    path = Path(path)
    if not os.path.lexists(path):
        return
    if path.is_dir() or not overwrite:
        raise FileExistsError(f"{path} exists already; choose another name or --overwrite it")
    if path.is_symlink():
        raise FileExistsError(
            f"{path} is a symbolic link to {os.readlink(path)}; name the file itself, or choose "
            "another name"
        )
    if any(os.path.exists(read) and path.samefile(read) for read in inputs):
        raise FileExistsError(
            f"{path} is an input of this command, which is never replaced; choose another name"
        )
    if not path.is_file() or not ours(path):
        raise FileExistsError(
            f"{path} is no {kind} written by tessella; remove it yourself or choose another name"
        )


def write_marker(folder: StrPath, kind: str, files: Mapping[str, int], **facts: Any) -> None:
    """Write the marker of a folder that is filled in place; `atomic_folder` writes its own."""
    with atomic_file(Path(folder) / MARKER) as temporary:
        temporary.write_text(marker_text(kind, files, facts), encoding="utf-8")


def add_to_marker(folder: StrPath, name: str) -> None:
    """Note a new or changed file in the marker of a finished folder; without one, do nothing."""
    marker = read_marker(folder)
    if marker is not None:
        facts = {key: value for key, value in marker.items() if key not in ("kind", "files")}
        if "sha256" in facts:
            facts["sha256"] |= hashes_of(Path(folder), [name])
        size = (Path(folder) / name).stat().st_size
        write_marker(folder, marker["kind"], marker["files"] | {name: size}, **facts)


def remove_folder(path: StrPath, kind: str, facts: Mapping[str, Any] | None = None) -> None:
    """Remove a folder that tessella wrote; readers see all of it or nothing.

    Raises:
        FileExistsError: If it is no folder of this kind and facts, or has other content as well.
    """
    path = Path(path)
    check_replaceable(path, kind, overwrite=True, facts=facts)
    with workshop(path) as place:
        os.replace(path, place.item)
        try:
            _check_ours(place.item, path, kind, facts or {})
        except FileExistsError:
            os.replace(place.item, path)
            raise


def _swap(place: Workshop, path: Path, kind: str) -> None:
    """Replace the folder at `path` by the one that was made, or leave it unchanged on failure.

    Where the system can exchange two names at once, no reader finds the name missing. The old
    folder is checked once more before it is removed with the workshop, now that nobody can add to
    it by its name.
    """
    if _exchange(place.item, path):
        try:
            _check_ours(place.item, path, kind, {})
        except BaseException:
            back = False
            with contextlib.suppress(OSError):
                back = _exchange(place.item, path)
            if not back:  # else it would be removed with the workshop
                os.replace(place.item, f"{path}.kept-{os.getpid()}")
            raise
        return
    os.replace(path, place.replaced)
    try:
        _check_ours(place.replaced, path, kind, {})
        os.replace(place.item, path)
    except BaseException:
        os.replace(place.replaced, path)
        raise


def _exchange(one: Path, two: Path) -> bool:
    """Exchange the names of two folders atomically; False where the system cannot."""
    library, names = ctypes.CDLL(None, use_errno=True), (os.fsencode(one), os.fsencode(two))
    if (linux := getattr(library, "renameat2", None)) is not None:
        failed = linux(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    elif (mac := getattr(library, "renamex_np", None)) is not None:
        failed = mac(*names, _RENAME_SWAP)
    else:
        return False
    if not failed:
        return True
    if (number := ctypes.get_errno()) not in _NO_EXCHANGE:
        raise OSError(number, os.strerror(number), str(two))
    return False


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn errors of writing into `SaveError`; other errors of the block pass unchanged."""
    try:
        yield
    except SaveError:
        raise
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and not _is_ours(error, path):
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SaveError(f"cannot write {path}: {reason}; nothing was left behind") from error


def _is_ours(error: OSError, path: Path) -> bool:
    """Whether an error comes from writing `path`, not from reading another file in the block."""
    if error.errno is None:
        return False
    if error.filename is None:  # raised by a write, or by something without a file
        return error.errno in _DISK_ERRORS
    found, ours = Path(os.fsdecode(error.filename)).absolute(), path.absolute()
    partial = any(part.startswith(f".{path.name}.") for part in found.parts)
    return partial or found == ours or found in ours.parents


def _flush(path: Path) -> None:
    """Sync a file's content to disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
