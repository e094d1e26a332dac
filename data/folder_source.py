"""Images in folders: `root/SPLIT/CLASS/*.png`, `root/CLASS/*.png`, or all in one folder.

Class indices follow the sorted names of the class folders with images of the `train` split, so that
they are the same in all splits. A text file with the name of an image is its caption.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from .image_source import WHOLE, DataError, ImageSource, NoSplit, Sample, SourceSettings, Undivided
from .images import IMAGE_SUFFIXES, READ_SUFFIXES, BrokenImage, read_image
from .splits import split_folders, split_named

_OF_SYSTEMS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})
"""Folders that operating systems make; what they hold are no images of the person."""


class FolderSource(ImageSource):
    """Image files below a folder, in sorted order.

    Hidden files, files of other types and folders of operating systems are ignored. A folder that
    cannot be listed is an error, since nobody knows what is lost with it.

    Args:
        root: Folder with the images.
        split: `train`, `val` or `test`: a folder below `root` of this name, or of another name of
            the split such as `validation` (see `splits.split_folders`). If there are no such
            folders, all images are `train`.
        licence: Licence statement of the images.
        settings: Settings of reading.
        whole: Whether all images below `root` are the split, whatever the names of the folders.
        classes: Class names in label order; None: those of the `train` split.

    Raises:
        NoSplit: If there is no such split.
        DataError: If there is no image, images lie both beside and inside class folders, a folder
            cannot be listed, or a class is none of those of `train`, or of `classes`.
    """

    def __init__(
        self,
        root: Path,
        *,
        split: str,
        licence: str | None = None,
        settings: SourceSettings = WHOLE,
        whole: bool = False,
        classes: tuple[str, ...] | None = None,
    ) -> None:
        self.name, self.split, self.licence = root.name, split, licence
        self._max_pixels = settings.max_pixels
        root = root.absolute()
        folders = {} if whole else _splits(root)
        self._base = root if whole else _base(root, split, folders)
        self._files: list[tuple[str, int]] = []  # path relative to the base, bytes
        self._captioned: set[str] = set()
        self._scan()
        if not self._files:
            kinds = " ".join(sorted(READ_SUFFIXES))
            raise DataError(
                f"{self._base}: no images found; expected {kinds} files in this folder or below"
            )
        found = {path.split("/", 1)[0] for path, _ in self._files if "/" in path}
        loose = [path for path, _ in self._files if "/" not in path]
        if found and loose:
            raise DataError(
                f"{self._base}: {len(loose)} images (first {loose[0]}) beside {len(found)} "
                "folders of images; expected class folders only, or images only"
            )
        where = "the training data"
        if classes is None and split != "train" and "train" in folders and found:
            train = root / folders["train"]
            classes, where = tuple(sorted(_with_images(train))), str(train)
        if found and classes:
            if unknown := found - set(classes):
                raise DataError(
                    f"{self._base}: classes {sorted(unknown)[:5]} have no images in {where}; "
                    "class numbers would not agree"
                )
            self._classes = classes
        else:
            self._classes = tuple(sorted(found))
        self._label = {name: label for label, name in enumerate(self._classes)}

    def _scan(self) -> None:
        """List image files and captions below the base folder."""
        texts: set[str] = set()
        for path, size in walk(self._base):
            suffix = os.path.splitext(path)[1]
            if suffix.lower() in IMAGE_SUFFIXES:
                self._files.append((path, size))
            elif suffix == ".txt":
                texts.add(path)
        self._files.sort()
        stems = {os.path.splitext(path)[0] for path, _ in self._files}
        self._captioned = {text for text in texts if text[: -len(".txt")] in stems}

    def __len__(self) -> int:
        return len(self._files)

    def id_of(self, index: int) -> str:
        """Stable name of one image, without reading it."""
        return self._files[index][0]

    def places(self) -> list[Path]:
        """Files and folders that the images are read from."""
        folders = {os.path.dirname(path) for path, _ in self._files}
        return [self._base, *(self._base / folder for folder in sorted(folders - {""}))]

    def _sizes(self) -> Iterable[int]:
        return (size for _, size in self._files)

    def read(self, index: int) -> Sample:
        """Decode one image; see `ImageSource.read`."""
        return self._decode(index, None)

    def read_near(self, index: int, side: int) -> Sample:
        """Decode one image, perhaps reduced; see `ImageSource.read_near`."""
        return self._decode(index, side)

    def _decode(self, index: int, side: int | None) -> Sample:
        self._check(index)
        path = self._files[index][0]
        image = read_image(self._base / path, name=path, max_pixels=self._max_pixels, side=side)
        caption = None
        text = f"{os.path.splitext(path)[0]}.txt"
        if text in self._captioned:
            try:
                caption = (self._base / text).read_text(encoding="utf-8-sig").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise BrokenImage(path, f"caption {text}: {error}") from error
        label = self._label[path.split("/", 1)[0]] if self._classes else None
        return Sample(image=image, id=path, label=label, caption=caption)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order; empty when the images carry no labels."""
        return self._classes


def walk(folder: Path) -> Iterator[tuple[str, int]]:
    """Files below a folder: path relative to it, with `/` between the parts, and size in bytes.

    Links to folders are followed, except to one that holds the link. Hidden files and folders, and
    those of operating systems, are left out.

    Raises:
        DataError: If a folder cannot be listed, or a link without a suffix, which may have been to
            a folder, leads nowhere.
    """
    waiting: list[tuple[str, str, frozenset[tuple[int, int]]]] = [(str(folder), "", frozenset())]
    while waiting:
        place, prefix, above = waiting.pop()
        try:
            status = os.stat(place)
            with os.scandir(place) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(
                f"{place}: this folder cannot be listed ({error.strerror}), and its images would "
                "be missing"
            ) from error
        key = (status.st_dev, status.st_ino)
        if key in above:  # a link to a folder above
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _OF_SYSTEMS:
                continue
            mode, size = _status(entry)
            if stat.S_ISDIR(mode):
                waiting.append((entry.path, f"{prefix}{entry.name}/", above | {key}))
            elif mode or os.path.splitext(entry.name)[1]:
                yield f"{prefix}{entry.name}", size
            elif entry.is_symlink():
                raise DataError(
                    f"{entry.path}: a link to {os.readlink(entry.path)}, which does not exist; "
                    "the images of a folder would be missing"
                )


def _status(entry: os.DirEntry[str]) -> tuple[int, int]:
    """Mode and size of what an entry is or links to; zeros for a link that leads nowhere."""
    try:
        status = entry.stat()
    except OSError:
        return 0, 0
    return status.st_mode, status.st_size


def _with_images(folder: Path) -> list[str]:
    """Names of the folders inside a folder that hold images."""
    return [
        entry.name
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and _shown(entry) and _holds_images(entry)
    ]


def _holds_images(folder: Path) -> bool:
    return any(os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES for path, _ in walk(folder))


def _shown(path: Path) -> bool:
    return not path.name.startswith(".") and path.name not in _OF_SYSTEMS


def _splits(root: Path) -> dict[str, str]:
    """Folder of each split below a folder; empty if all images are of one split."""
    try:
        folders = [entry for entry in root.iterdir() if entry.is_dir() and _shown(entry)]
    except OSError as error:
        raise DataError(f"{root}: cannot be listed ({error.strerror})") from error
    named = [folder.name for folder in folders if split_named(folder.name)]
    unnamed = [folder for folder in folders if not split_named(folder.name)]
    others = [f.name for f in unnamed if len(named) == 1 and _holds_images(f)]
    return split_folders(named, others, str(root))


def _base(root: Path, split: str, folders: dict[str, str]) -> Path:
    """Folder with the images of a split."""
    if split in folders:
        return root / folders[split]
    if folders:
        raise NoSplit(f"{root}: no split {split!r}, found the folders {sorted(folders.values())}")
    if split == "train":
        return root
    entries = [entry for entry in root.iterdir() if _shown(entry)]
    count = sum(entry.is_dir() for entry in entries)
    raise Undivided(
        f"{root}: no split {split!r}; found {count} folders and {len(entries) - count} files but "
        f"no train/ or val/, so all images are train. Name that split, or move the images of "
        f"{split} to {root / split} and the others to {root / 'train'}"
    )
