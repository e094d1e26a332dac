"""Unfinished work: the hidden folder beside an output in which it is made, and what a kill leaves.

A writer of `NAME` works in `.NAME.xxxxxxxx.partial/`, which holds `NAME` until it is renamed to its
place, `NAME.replaced`, the folder that was there before, where a system cannot exchange two names
at once, and `NAME.writer`, which the writer keeps locked. The system lets go of the lock when the
process ends, however it ends. So a lock that can be had means a dead writer, and the next writer of
the same name (`sweep`) puts back what was replaced and removes the rest. A folder without the file
of a writer of ours, or with anything else in it, is left as it is; so is one of another machine
that changed in the last day, as some network file systems lock for one machine only.

Work that another command goes on with after an interruption is in `NAME.unfinished/` instead, whose
only writer holds its lock (`UnfinishedFolder`).
"""

import contextlib
import errno
import fcntl
import json
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .documents import read_json
from .manifest import some_of, unlisted

_FORM = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.partial", re.DOTALL)
_OLD_FORM = re.compile(r"\.(?P<name>.+)\.(?P<process>[0-9]+)\.old", re.DOTALL)
"""Folders that version 0.5 was replacing where two names cannot be exchanged."""
_DAY = 24 * 60 * 60
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_held: set[int] = set()
"""Descriptors of the locks of this process; a forked child must not keep them held."""


def _let_go() -> None:
    """Close the copies of the parent's locks, which would outlive it in its children."""
    for descriptor in list(_held):
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


@dataclass(frozen=True)
class _Writer:
    """Content of `NAME.writer`."""

    tessella: str
    machine: str
    process: int


@dataclass(frozen=True)
class Workshop:
    """A folder in which an output is made.

    Args:
        folder: The hidden folder.
        item: Path in it of what is made.
        replaced: Path in it of what was at the place of the output before.
    """

    folder: Path
    item: Path
    replaced: Path


@contextlib.contextmanager
def workshop(path: Path) -> Iterator[Workshop]:
    """Yield an empty workshop for an output, and remove it with what is still in it afterwards.

    Args:
        path: Final path of the output; its folder exists.

    Raises:
        OSError: If it cannot be made.
    """
    descriptor, place = _open(path)
    try:
        yield place
    finally:
        _restore(place, path)
        _remove(place)
        if descriptor in _held:  # not in a forked child, where the number may be another file
            _held.discard(descriptor)
            os.close(descriptor)


def _open(path: Path) -> tuple[int, Workshop]:
    """Make and lock a workshop; again if a sweep took it before it was locked."""
    while True:
        folder = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        place = _workshop(folder, path.name)
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            folder.mkdir(mode=0o700)
            descriptor = open_lock(_writer_file(place), new=True)
            if lock(descriptor) is not False:
                _held.add(descriptor)
                os.write(descriptor, _about_us())
                if os.path.exists(_writer_file(place)):
                    return descriptor, place
                _held.discard(descriptor)
            os.close(descriptor)


def _about_us() -> bytes:
    """Content of the file that this process keeps locked."""
    us = {"tessella": "writer", "machine": platform.node(), "process": os.getpid()}
    return json.dumps(us).encode()


def _workshop(folder: Path, name: str) -> Workshop:
    return Workshop(folder, folder / name, folder / f"{name}.replaced")


def _writer_file(place: Workshop) -> Path:
    return place.folder / f"{place.item.name}.writer"


def open_lock(path: Path, *, new: bool = False) -> int:
    """Open a file to lock it; a symbolic link is never followed, and nothing is written.

    Args:
        path: The file; made if it does not exist.
        new: Whether the file must not exist yet.

    Returns:
        A descriptor.

    Raises:
        OSError: If the path is a link or no regular file, or cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, flags | (os.O_EXCL if new else 0), 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no regular file, so it is not used as a lock", str(path))
    return descriptor


def lock(descriptor: int) -> bool | None:
    """Lock an open file for as long as it stays open.

    Returns:
        False if another writer holds it, None where the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def sweep(folder: Path, name: str | None = None) -> list[Path]:
    """Put back or remove what dead writers left in a folder.

    Args:
        folder: Folder of the outputs; nothing happens if it cannot be listed.
        name: Name of the output; None: of every output.

    Returns:
        Paths of outputs that are back in their place.
    """
    try:
        with os.scandir(folder) as entries:
            hidden = sorted(entry.name for entry in entries if entry.name.startswith("."))
    except OSError:
        return []
    back = []
    for entry in hidden:
        if (found := _FORM.fullmatch(entry)) and name in (None, found["name"]):
            back += _sweep_one(folder / entry, found["name"])
        elif (found := _OLD_FORM.fullmatch(entry)) and name == found["name"]:
            back += _put_back(folder / entry, folder / found["name"], int(found["process"]))
    return back


def _sweep_one(folder: Path, name: str) -> list[Path]:
    """Sweep one workshop if its writer is dead; returns the output that is back in its place."""
    place, path = _workshop(folder, name), folder.with_name(name)
    if folder.is_symlink():
        return []
    with contextlib.suppress(OSError):
        folder.rmdir()  # empty: the writer was killed before it had its lock, or after its last act
        return []
    try:
        descriptor = os.open(_writer_file(place), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return []
    try:
        if lock(descriptor) is not True or not _is_abandoned(place):
            return []
        back = _restore(place, path)
        for number, left in enumerate((place.item, place.replaced)):
            if unlisted(left):  # put there in the moment before the kill
                os.rename(left, f"{path}.kept-{os.getpid()}-{number}")
        _remove(place)
        return [path] if back else []
    except OSError:
        return []  # of another user, or no longer there
    finally:
        os.close(descriptor)


def _is_abandoned(place: Workshop) -> bool:
    """Whether a workshop whose lock we hold is one of ours, and its writer surely dead."""
    writer = _writer_file(place)
    inside = {entry.name for entry in os.scandir(place.folder)}
    if not inside <= {writer.name, place.item.name, place.replaced.name}:
        return False
    if inside == {writer.name} and not writer.stat().st_size:
        return True  # killed before it wrote its name
    try:
        found = read_json(writer, _Writer, most=4096)
    except (OSError, ValueError):
        return False
    changed = max(os.lstat(path).st_mtime for path in (place.folder, *place.folder.rglob("*")))
    return found.machine == platform.node() or time.time() - changed > _DAY


def _restore(place: Workshop, path: Path) -> bool:
    """Put the replaced folder back if nothing has taken its place; returns whether it did."""
    if os.path.lexists(place.replaced) and not os.path.lexists(path):
        os.rename(place.replaced, path)
        return True
    return False


def _put_back(old: Path, path: Path, process: int) -> list[Path]:
    """Put back a folder that version 0.5 was replacing when it was killed; nothing is removed."""
    try:
        os.kill(process, 0)
        return []
    except ProcessLookupError:
        if not os.path.lexists(path) and old.is_dir() and not old.is_symlink():
            os.rename(old, path)
            return [path]
        return []
    except OSError:
        return []


def _remove(place: Workshop) -> None:
    """Remove a workshop whose lock we hold.

    The writer's file goes last, so that a kill in between leaves a workshop that a sweep knows.
    """
    for path in (place.item, place.replaced):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    if not os.path.lexists(place.item) and not os.path.lexists(place.replaced):
        with contextlib.suppress(OSError):
            _writer_file(place).unlink()
            place.folder.rmdir()


class UnfinishedFolder:
    """The folder `NAME.unfinished` beside an output, for one writer at a time.

    It stays when its writer is interrupted or killed, and the next one goes on with it. The writer
    holds a lock on `LOCK` in it.

    Args:
        path: Path of the folder.
        ours: Form of the names that its writers make. A folder with another name in it, or with
            something in it but no `LOCK`, is not ours.
    """

    LOCK = "writer.json"

    def __init__(self, path: Path, ours: re.Pattern[str]) -> None:
        self.path = path
        self._ours = ours
        self._descriptor: int | None = None

    def take(self) -> str | None:
        """Make the folder and hold its lock until `release`, or until this process ends.

        Returns:
            None, or who holds the lock, in words.

        Raises:
            FileExistsError: If something that is not ours stands there.
            OSError: If it cannot be made.
        """
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_dir()):
            raise FileExistsError(f"{self.path}: is in the way; expected a folder or nothing")
        while self._descriptor is None:
            with contextlib.suppress(FileNotFoundError):  # its last writer has just removed it
                self.path.mkdir(parents=True, exist_ok=True)
                if foreign := self._foreign():
                    raise FileExistsError(
                        f"{self.path}: holds what tessella did not write there: "
                        f"{some_of(foreign)}; move it away"
                    )
                descriptor = open_lock(self.path / self.LOCK)
                if lock(descriptor) is False:
                    os.close(descriptor)
                    return self._owner()
                if self._is_there(descriptor):
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, _about_us())
                    _held.add(descriptor)
                    self._descriptor = descriptor
                else:
                    os.close(descriptor)
        return None

    def release(self) -> None:
        """Give the lock back; without a lock, do nothing."""
        if self._descriptor in _held:  # not in a forked child, where the number may be another file
            _held.discard(self._descriptor)
            os.close(self._descriptor)
        self._descriptor = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def remove(self) -> None:
        """Remove the lock's file and the folder, if nothing else is in it; while it is held."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path / self.LOCK)
        with contextlib.suppress(OSError):  # something else is in it, or a writer has just come
            os.rmdir(self.path)

    def _foreign(self) -> list[str]:
        names = sorted(os.listdir(self.path))
        return [n for n in names if not self._ours.fullmatch(n)] if self.LOCK in names else names

    def _is_there(self, descriptor: int) -> bool:
        """Whether the lock's file was not removed before it was locked."""
        try:
            return os.path.samestat(os.stat(self.path / self.LOCK), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def _owner(self) -> str:
        try:
            found = read_json(self.path / self.LOCK, _Writer, most=4096)
        except (OSError, ValueError):
            return "a process that has just begun"
        if (found.process, found.machine) == (os.getpid(), platform.node()):
            return "this one, with another writer"
        return f"process {found.process} on {found.machine!r}"
