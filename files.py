"""Whole files or nothing: write beside, flush, rename. Nothing half-written gets the final name."""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


class SaveError(OSError):
    """Something could not be written (disk full, no permission); what was there is intact."""


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed onto it when the block ends well.

    Raises:
        SaveError: If writing fails; the temporary file is removed.
    """
    path = Path(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            _flush(temporary)
            temporary.chmod(0o666 & ~_umask())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(
    path: str | os.PathLike[str], *, overwrite: bool = False, flush: bool = True
) -> Iterator[Path]:
    """A temporary folder beside `path` to fill; renamed to it when the block ends well.

    Args:
        path: The final folder.
        overwrite: Replace a folder that is already there; otherwise it is refused at once.
        flush: Push every file to the disk first; False for thousands of small, replaceable ones.

    Raises:
        FileExistsError: If `path` exists and `overwrite` is False, or if it is a file.
        SaveError: If writing fails; the temporary folder is removed.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file; a folder of that name cannot be written")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already; choose another name or ask to overwrite it")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(
            tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        )
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    file.chmod(0o666 & ~_umask())  # safetensors makes files private
                    if flush:
                        _flush(file)
            temporary.chmod(0o777 & ~_umask())
            if overwrite and path.exists():
                _swap(temporary, path)
            else:
                os.replace(temporary, path)  # refuses a folder that appeared meanwhile
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _swap(temporary: Path, path: Path) -> None:
    """Put the new folder in the place of the old one, or leave the old one there."""
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    os.replace(path, old)
    try:
        os.replace(temporary, path)
    except BaseException:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Faults of writing as `SaveError`; other errors of the caller's block pass unchanged."""
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
    """Whether an error comes from writing `path`, not from a file that the block was reading."""
    if error.errno is None:
        return False
    if error.filename is None:  # raised by a write, or by something without a file
        return error.errno in _DISK_ERRORS
    found, ours = Path(os.fsdecode(error.filename)).absolute(), path.absolute()
    partial = any(part.startswith(f".{path.name}.") for part in found.parts)
    return partial or found == ours or found in ours.parents


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Push a file's content to the disk before its name is made final."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
