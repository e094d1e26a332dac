"""Image sources by name: bundled, a folder, webdataset tars, an .npz file, or the Hub.

`open_source` determines the kind of source and checks it before any work starts; any fault is a
`DataError` that says what was found and what was expected.
"""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..documents import read_json
from .folder_source import FolderSource
from .hub_source import open_hub
from .image_source import WHOLE, DataError, ImageSource, NoSplit, Sample, SourceSettings
from .images import BrokenImage
from .npz_source import NpzSource
from .patterns import expand_pattern, given_path, is_reserved
from .splits import SPLITS, hold_out, split_named, split_names
from .tar_source import TarSource

__all__ = ["BrokenImage", "DataError", "ImageSource", "Sample", "open_source"]

_BUNDLED_FOLDER = Path(__file__).parent / "bundled"
_BUNDLED = {
    "emoji": (
        "emoji/noto_emoji64.tar",
        "Apache-2.0 (Noto Emoji v2.048; flattened on white, a subset, PNG re-encoded)",
    )
}
_FORMS = "bundled:emoji, a folder, a .tar file or pattern, an .npz file, or hf:owner/name"
_TAR = re.compile(r"\.tar(\.\w+)?$|\.tgz$", re.IGNORECASE)


def open_source(
    source: str | Path, split: str = "train", settings: SourceSettings = WHOLE
) -> ImageSource:
    """Open an image source by its name.

    Args:
        source: `bundled:emoji`; a folder in ImageFolder layout (`SPLIT/CLASS/*.png`,
            `CLASS/*.png`) or flat; a folder with `train.tar` and `val.tar` as `prepare` writes it;
            a tar, a brace range (`shards/{000..009}.tar`) or a glob of tars; an `.npz` file of
            images, which stands for every split; `hf:owner/name`, with a revision
            `hf:owner/name@revision`. A path that exists is that path, whatever its characters.
        split: `train`, `val` or `test`.
        settings: Settings of reading. With a `val_share`, a source without a split `val` is divided
            by `splits.hold_out`: its `train` and `val` have no image in common.

    Returns:
        A source with at least one image; single images may still be found broken when read.

    Raises:
        NoSplit: If the source has no such split, but others.
        DataError: If the source does not exist, or holds no images.
    """
    if split not in SPLITS:
        named = split_named(split)
        hint = f"; did you mean {named}?" if named else ""
        raise DataError(f"split {split!r}, expected one of {', '.join(SPLITS)}{hint}")
    if not settings.val_share or split == "test":
        return open_divided(source, split, settings)
    try:
        val = open_divided(source, "val", settings)
        if not isinstance(val, NpzSource):
            return val if split == "val" else open_divided(source, "train", settings)
    except NoSplit:
        pass
    train, held = hold_out(open_divided(source, "train", settings), settings.val_share)
    return held if split == "val" else train


def open_divided(
    source: str | Path,
    split: str,
    settings: SourceSettings,
    classes: tuple[str, ...] = (),
) -> ImageSource:
    """Open a source of which nothing is held out; as `open_source` without a `val_share`.

    Args:
        source: Name of the source.
        split: Split of it.
        settings: Settings of reading.
        classes: Class names in label order for a folder; empty: those of its split `train`.
    """
    text = str(source)
    if is_reserved(text):
        text = text.strip()
        if text.startswith("bundled:"):
            return _open_bundled(text.removeprefix("bundled:"), split, settings)
        if text.startswith("hf:"):
            return open_hub(text.removeprefix("hf:"), split, settings)
    if not text.strip() or is_reserved(text):
        raise DataError(f"data source {text!r}: unknown form, expected {_FORMS}")
    path = given_path(text)
    if os.path.isdir(path):
        return _open_folder(path, split, settings, classes)
    if os.path.isfile(path) and path.suffix.lower() == ".npz":
        return NpzSource(path, split=split)
    if _TAR.search(path.name) or (re.search(r"[{*?\[]", text) and not os.path.exists(path)):
        paths = expand_pattern(str(path))
        licence = _licence(paths[0].parent)
        return TarSource(paths, name=path.stem, split=split, licence=licence, settings=settings)
    if os.path.exists(path):
        raise DataError(f"{text}: a single file that is neither .tar nor .npz, expected {_FORMS}")
    known = difflib.get_close_matches(text, _BUNDLED, n=1, cutoff=0.6)
    hint = f"; did you mean bundled:{known[0]}?" if known else f", expected {_FORMS}"
    raise DataError(f"{text}: no such file or folder{hint}")


def _open_bundled(name: str, split: str, settings: SourceSettings) -> ImageSource:
    """Open a bundled data set."""
    if name not in _BUNDLED:
        close = difflib.get_close_matches(name, _BUNDLED, n=1, cutoff=0.4)
        hint = f"; did you mean bundled:{close[0]}?" if close else ""
        raise DataError(f"bundled:{name}: unknown, available: {', '.join(_BUNDLED)}{hint}")
    file, licence = _BUNDLED[name]
    path = _BUNDLED_FOLDER / file
    return TarSource([path], name=name, split=split, licence=licence, settings=settings)


def _open_folder(
    folder: Path, split: str, settings: SourceSettings, classes: tuple[str, ...]
) -> ImageSource:
    """Open a folder of tars named after splits, or of image files."""
    name, licence = folder.resolve().name, _licence(folder)
    tars = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    words = [(path, _word(path)) for path in tars]
    found = split_names({word for _, word in words if word is not None}, str(folder))
    chosen = [path for path, word in words if split in found and word == found[split]]
    if chosen:
        return TarSource(
            chosen, name=name, split=split, whole=True, licence=licence, settings=settings
        )
    if tars and not any(entry.is_dir() for entry in folder.iterdir()):
        raise (NoSplit if found else DataError)(
            f"{folder}: no split {split!r}, found {', '.join(path.name for path in tars[:5])}; "
            f"expected {split}.tar, or name the archives: '{folder}/*.tar'"
        )
    return FolderSource(
        folder, split=split, licence=licence, settings=settings, classes=classes or None
    )


def _word(archive: Path) -> str | None:
    """Word before the number in the name of an archive: `train` of `train-000.tar`."""
    match = re.fullmatch(r"([A-Za-z]+)([-_.]?\d+)?", archive.stem)
    return match.group(1) if match else None


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
