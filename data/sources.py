"""Image sources by name: bundled, a folder, webdataset tars, an .npz file, or the Hub.

`open_source` determines the kind of source and checks it before any work starts; any fault is a
`DataError` that says what was found and what was expected.
"""

import difflib
import glob
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from ..documents import read_json
from .folder_source import FolderSource
from .hub_source import open_hub
from .image_source import DataError, ImageSource, Sample
from .images import BrokenImage
from .npz_source import NpzSource
from .tar_source import SPLITS, TarSource

__all__ = ["BrokenImage", "DataError", "ImageSource", "Sample", "open_source"]

_BUNDLED_FOLDER = Path(__file__).parent / "bundled"
_BUNDLED = {
    "emoji": (
        "emoji/noto_emoji64.tar",
        "Apache-2.0 (Noto Emoji v2.048; flattened on white, a subset, PNG re-encoded)",
    )
}
_FORMS = "bundled:emoji, a folder, a .tar file or pattern, an .npz file, or hf:owner/name"


def open_source(source: str | Path, split: str = "train") -> ImageSource:
    """Open an image source by its name.

    Args:
        source: `bundled:emoji`; a folder in ImageFolder layout (`SPLIT/CLASS/*.png`,
            `CLASS/*.png`) or flat; a folder with `train.tar` and `val.tar` as `prepare` writes it;
            a tar, a brace range (`shards/{000..009}.tar`) or a glob of tars; an `.npz` file of
            images, which stands for every split; `hf:owner/name`.
        split: `train`, `val` or `test`.

    Returns:
        A source with at least one image; single images may still be found broken when read.

    Raises:
        DataError: If the source or the split does not exist, or holds no images.
    """
    text = str(source).strip()
    if split not in SPLITS:
        raise DataError(f"split {split!r}, expected one of {', '.join(SPLITS)}")
    if text.startswith("bundled:"):
        return _open_bundled(text.removeprefix("bundled:"), split)
    if text.startswith("hf:"):
        return open_hub(text.removeprefix("hf:"), split)
    if not text or re.match(r"[a-z0-9+]{2,}:", text):
        raise DataError(f"data source {text!r}: unknown form, expected {_FORMS}")
    path = Path(text).expanduser()
    if path.is_dir():
        return _open_folder(path, split)
    if re.search(r"[{*?]|\.tar(\.\w+)?$|\.tgz$", text):
        paths = expand_pattern(str(path))
        return TarSource(paths, name=path.stem, split=split, licence=_licence(paths[0].parent))
    if path.suffix == ".npz" and path.is_file():
        return NpzSource(path, split=split)
    if path.exists():
        raise DataError(f"{text}: a single file that is neither .tar nor .npz, expected {_FORMS}")
    known = difflib.get_close_matches(text, _BUNDLED, n=1, cutoff=0.6)
    hint = f"; did you mean bundled:{known[0]}?" if known else f", expected {_FORMS}"
    raise DataError(f"{text}: no such file or folder{hint}")


def _open_bundled(name: str, split: str) -> ImageSource:
    """Open a bundled data set."""
    if name not in _BUNDLED:
        close = difflib.get_close_matches(name, _BUNDLED, n=1, cutoff=0.4)
        hint = f"; did you mean bundled:{close[0]}?" if close else ""
        raise DataError(f"bundled:{name}: unknown, available: {', '.join(_BUNDLED)}{hint}")
    file, licence = _BUNDLED[name]
    return TarSource([_BUNDLED_FOLDER / file], name=name, split=split, licence=licence)


def _open_folder(folder: Path, split: str) -> ImageSource:
    """Open a folder of tars named after splits, or of image files."""
    name, licence = folder.resolve().name, _licence(folder)
    tars = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    chosen = [path for path in tars if re.fullmatch(rf"{split}([-_.]?\d+)?", path.stem)]
    if chosen:
        return TarSource(chosen, name=name, split=split, whole=True, licence=licence)
    if tars and not any(entry.is_dir() for entry in folder.iterdir()):
        raise DataError(
            f"{folder}: no split {split!r}, found {', '.join(path.name for path in tars[:5])}; "
            f"expected {split}.tar, or name the archives: '{folder}/*.tar'"
        )
    return FolderSource(folder, split=split, licence=licence)


@dataclass(frozen=True)
class _Record:
    """What is read of a `dataset.json`."""

    licence: str | None = None


def _licence(folder: Path) -> str | None:
    """Licence stated in the `dataset.json` that `prepare` writes; None if there is no such file."""
    try:
        return read_json(folder / "dataset.json", _Record, error=DataError).licence
    except FileNotFoundError:
        return None


def expand_pattern(pattern: str) -> list[Path]:
    """Expand a pattern with brace ranges `{000..009}`, brace lists `{a,b}` and globs to files."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [_alternatives(part) if odd % 2 else [part] for odd, part in enumerate(parts)]
    names = ["".join(choice) for choice in itertools.product(*choices)]
    paths: list[Path] = []
    missing: list[str] = []
    for name in names:
        found = sorted(glob.glob(name)) if re.search(r"[*?\[]", name) else [name]
        if not found or not Path(found[0]).is_file():
            missing.append(name)
        paths += [Path(path) for path in found]
    if missing:
        raise DataError(
            f"{pattern}: {len(missing)} of {len(names)} archives not found, first {missing[0]}"
        )
    return paths


def _alternatives(text: str) -> list[str]:
    """Words of a brace range or list."""
    if match := re.fullmatch(r"(\d+)\.\.(\d+)", text):
        first, last = match.groups()
        if int(first) > int(last):
            raise DataError(f"range {{{text}}} is empty")
        return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return text.split(",")
