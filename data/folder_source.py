"""Images in folders: `root/SPLIT/CLASS/*.png`, `root/CLASS/*.png`, or all in one folder.

Class indices follow the sorted names of the class folders of the `train` split, so that they are
the same in all splits. A text file with the name of an image is its caption.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from .image_source import DataError, ImageSource, Sample
from .images import BrokenImage, read_image
from .tar_source import IMAGE_SUFFIXES, SPLITS


class FolderSource(ImageSource):
    """Image files below a folder, in sorted order; hidden files and other types are ignored.

    Args:
        root: Folder with the images.
        split: `train`, `val` or `test`: a folder below `root` where `root/train` or `root/val`
            exists. Otherwise all images are `train`.
        licence: Licence statement of the images.

    Raises:
        DataError: If there is no such split or no image, or if images lie both beside and inside
            class folders.
    """

    def __init__(self, root: Path, *, split: str, licence: str | None = None) -> None:
        self.name, self.split, self.licence = root.name, split, licence
        self._base, has_splits = self._find_base(root.absolute(), split)
        self._files: list[tuple[str, int]] = []  # path relative to the base, bytes
        self._captioned: set[str] = set()
        self._scan()
        if not self._files:
            kinds = " ".join(sorted(IMAGE_SUFFIXES))
            raise DataError(
                f"{self._base}: no images found; expected {kinds} files in this folder or below"
            )
        folders = {path.split("/", 1)[0] for path, _ in self._files if "/" in path}
        loose = [path for path, _ in self._files if "/" not in path]
        if folders and loose:
            raise DataError(
                f"{self._base}: {len(loose)} images (first {loose[0]}) beside {len(folders)} "
                "folders of images; expected class folders only, or images only"
            )
        if has_splits and split != "train" and folders and (root / "train").is_dir():
            known = {entry.name for entry in (root / "train").iterdir() if entry.is_dir()}
            known = {name for name in known if not name.startswith(".")}
            if unknown := folders - known:
                raise DataError(
                    f"{self._base}: classes {sorted(unknown)[:5]} have no folder in "
                    f"{root / 'train'}; class numbers would not agree"
                )
            folders = known
        self._classes = tuple(sorted(folders))
        self._label = {name: label for label, name in enumerate(self._classes)}

    @staticmethod
    def _find_base(root: Path, split: str) -> tuple[Path, bool]:
        """Folder of the split, and whether the images are divided into split folders."""
        found = [name for name in SPLITS if (root / name).is_dir()]
        if "train" in found or "val" in found:
            if split not in found:
                raise DataError(f"{root}: no split {split!r}, found the folders {found}")
            return root / split, True
        if split != "train":
            entries = [entry for entry in root.iterdir() if not entry.name.startswith(".")]
            folders = sum(entry.is_dir() for entry in entries)
            raise DataError(
                f"{root}: no split {split!r}; found {folders} folders and "
                f"{len(entries) - folders} files but no train/ or val/, so all images are train. "
                f"Move the images of this split to {root / split} and the others to "
                f"{root / 'train'}"
            )
        return root, False

    def _scan(self) -> None:
        """List image files and captions below the base folder."""
        visited: set[str] = set()
        texts: set[str] = set()
        for folder, subfolders, names in os.walk(self._base, followlinks=True):
            real = os.path.realpath(folder)
            if real in visited:  # a link to a folder above
                subfolders.clear()
                continue
            visited.add(real)
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            for name in names:
                stem, suffix = os.path.splitext(name)
                relative = os.path.relpath(os.path.join(folder, name), self._base)
                path = relative.replace(os.sep, "/")
                if suffix.lower() in IMAGE_SUFFIXES and not stem.startswith("."):
                    full = os.path.join(folder, name)
                    size = os.stat(full).st_size if os.path.exists(full) else 0
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
        self._check(index)
        path = self._files[index][0]
        image = read_image(self._base / path, name=path)
        caption = None
        text = f"{os.path.splitext(path)[0]}.txt"
        if text in self._captioned:
            try:
                caption = (self._base / text).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise BrokenImage(path, f"caption {text}: {error}") from error
        label = self._label[path.split("/", 1)[0]] if self._classes else None
        return Sample(image=image, id=path, label=label, caption=caption)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order; empty when the images carry no labels."""
        return self._classes
