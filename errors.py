"""Which errors are told in one line, and how: for the commands and the training scripts alike.

An error that the input, the settings or the system caused is for whoever called; its message is
enough. Any other exception is a fault of ours, and shows where it happened.
"""

import binascii
import json
import lzma
import pickle
import struct
import tarfile
import tokenize
import unicodedata
import zipfile
import zlib

from safetensors import SafetensorError


class UserError(Exception):
    """Base of errors for whoever called that are no `ValueError` and no `OSError`."""


_DAMAGED: tuple[type[Exception], ...] = (
    SafetensorError,
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    binascii.Error,
    struct.error,
    pickle.UnpicklingError,
    EOFError,
)
"""Errors of libraries that read a truncated or changed file; their messages do not say so."""
DAMAGED_ARRAY: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    SyntaxError,
    RecursionError,
    MemoryError,
    NotImplementedError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Errors of numpy for a damaged `.npy` or `.npz` file, whose header it reads as a Python value."""
_JOINERS = "\u200c\u200d"
"""Invisible characters that belong to words and emoji."""


def clear_message(error: BaseException) -> str | None:
    """What to tell about an error, in one line of printable text; None: a fault of ours.

    Args:
        error: Error that ended a command or a training, with its notes.
    """
    message = _message(error)
    return None if message is None else "; ".join([message, *map(one_line, notes_of(error))])


def notes_of(error: BaseException) -> list[str]:
    """What was added to an error on its way, such as the place of finished work."""
    return list(getattr(error, "__notes__", []))


def _message(error: BaseException) -> str | None:
    if isinstance(error, _DAMAGED):
        return one_line(f"a file is truncated or damaged: {str(error) or type(error).__name__}")
    if isinstance(error, RecursionError):
        return "a file of the input is nested too deep to be read"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        names = [name for name in (error.filename, error.filename2) if name is not None]
        return one_line(f"{' -> '.join(map(_name, names))}: {error.strerror}")
    if isinstance(error, ValueError | OSError | UserError):
        return one_line(str(error) or type(error).__name__)
    return None


def _name(name: object) -> str:
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name)


def one_line(text: str) -> str:
    """Text with its lines joined by spaces, and with `printable` characters."""
    return printable(" ".join(line.strip(" ") for line in text.split("\n")).strip(" "))


def printable(text: str) -> str:
    r"""Text of a file as it is safe on a terminal: control characters become `\u001b`.

    Names of files and classes, cards and captions may hold sequences that move the cursor, change
    colours or reverse the direction of writing, or bytes that are no characters at all. Line feeds
    stay. The form is that of JSON, so that JSON text keeps its meaning.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if _is_plain(c) else json.dumps(c)[1:-1] for c in text)


def _is_plain(character: str) -> bool:
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return not hidden or character in _JOINERS or character == "\n"
