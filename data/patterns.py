"""Paths and patterns that a person named: a path that exists is that path."""

import glob
import itertools
import math
import os
import re
from pathlib import Path

from .image_source import DataError

_MOST_FILES = 1_000_000


def is_reserved(name: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a data source such as `bundled:emoji`, and of no path here."""
    text = os.fspath(name)
    if text.strip().startswith(("bundled:", "hf:", "hub:")):
        return True
    return bool(re.match(r"[a-z0-9+]{2,}:", text.strip())) and not os.path.exists(text)


def given_path(name: str | os.PathLike[str]) -> Path:
    """Path that a person named: exactly that one if it exists, else without spaces around it.

    Raises:
        DataError: If it starts with `~NAME` and there is no such user.
    """
    text = os.fspath(name)
    if os.path.exists(text):
        return Path(text)
    try:
        return Path(text.strip()).expanduser()
    except RuntimeError as error:
        raise DataError(f"{text}: {error}") from error


def expand_pattern(pattern: str) -> list[Path]:
    """Expand a pattern with brace ranges `{000..009}`, brace lists `{a,b}` and globs to files.

    A file that exists is that file, and folders at the beginning that exist are those folders,
    whatever their characters.

    Raises:
        DataError: If a file is missing, a range is empty, or there are more than a million files.
    """
    if os.path.isfile(pattern):
        return [Path(pattern)]
    base, rest = _existing(pattern)
    parts = re.split(r"\{([^{}]*)\}", rest)
    choices = [_alternatives(part) if odd % 2 else [part] for odd, part in enumerate(parts)]
    if math.prod(map(len, choices)) > _MOST_FILES:
        raise DataError(f"{pattern}: stands for more than {_MOST_FILES:,} archives")
    names = [os.path.join(base, "".join(choice)) for choice in itertools.product(*choices)]
    paths: list[Path] = []
    missing: list[str] = []
    for name in names:
        found = files_that_fit(name, must=False)
        if not found or not os.path.isfile(found[0]):
            missing.append(name)
        paths += [Path(path) for path in found]
    if missing:
        raise DataError(
            f"{pattern}: {len(missing)} of {len(names)} archives not found, first {missing[0]}"
        )
    return paths


def files_that_fit(name: str, *, must: bool = True) -> list[str]:
    """Files that fit a glob pattern, sorted; what exists under that name is that file.

    Args:
        name: Path or pattern.
        must: Whether a pattern that nothing fits is an error.

    Raises:
        DataError: If nothing fits a pattern, with `must`.
    """
    if os.path.exists(name) or not glob.has_magic(name):
        return [name]
    base, rest = _existing(name)
    found = sorted(glob.glob(os.path.join(glob.escape(base), rest)))
    if must and not found:
        raise DataError(f"{name}: no file fits this pattern")
    return found


def _existing(pattern: str) -> tuple[str, str]:
    """Longest part at the beginning of a path that is an existing folder, and the rest."""
    parts = Path(pattern).parts
    base = ""
    for number, part in enumerate(parts):
        if not os.path.isdir(os.path.join(base, part)):
            return base, os.path.join(*parts[number:])
        base = os.path.join(base, part)
    return base, ""


def _alternatives(text: str) -> list[str]:
    """Words of a brace range or list."""
    if match := re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", text):
        first, last = match.groups()
        if int(first) > int(last):
            raise DataError(f"range {{{text}}} is empty")
        if int(last) - int(first) >= _MOST_FILES:
            raise DataError(f"range {{{text}}} has more than {_MOST_FILES:,} numbers")
        return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return text.split(",")
