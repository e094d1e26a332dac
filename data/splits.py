"""Splits by the names that people give them, and images held out where there is no such split."""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from .image_source import DataError, ImageSource, Sample

SPLITS = ("train", "val", "test")
_NAMES = {
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validation": "val", "dev": "val"},
    **{"test": "test", "testing": "test"},
}
VAL_SHARE = 0.05
"""Share of the images that a training holds out where no other is given."""
LEAST_HELD_OUT = 16
"""Least number of held out images, as long as they are no more than a quarter of all."""


def split_named(name: str) -> str | None:
    """Split that a name stands for, such as `val` for `Validation`; None if it is no such name."""
    return _NAMES.get(name.casefold())


def split_names(names: Iterable[str], where: str) -> dict[str, str]:
    """Name of each split among names of folders, archives or splits of the Hub.

    Raises:
        DataError: If two names stand for the same split.
    """
    found: dict[str, str] = {}
    for name in sorted(names):
        split = split_named(name)
        if split is None:
            continue
        if split in found:
            raise DataError(
                f"{where}: both {found[split]!r} and {name!r} stand for the split {split!r}; "
                "rename one"
            )
        found[split] = name
    return found


def split_folders(names: Collection[str], others: Collection[str], where: str) -> dict[str, str]:
    """Folder of each split, or nothing if the folders are not splits.

    Folders are splits if one stands for `train` or `val`, and either another one stands for another
    split, or no other folder holds images.

    Args:
        names: Names of all folders that may be splits or classes.
        others: Those that hold images and whose names stand for no split.
        where: Place for messages.

    Raises:
        DataError: If two folders stand for the same split, or if `train` or `val` alone stands
            beside other folders with images, so that it may be a class.
    """
    found = split_names(names, where)
    if not {"train", "val"} & found.keys():
        return {}
    if len(found) == 1 and others:
        (name,) = found.values()
        if name in ("train", "val"):
            some = ", ".join(sorted(others)[:3])
            raise DataError(
                f"{where}: {name} may be a split or a class, beside {len(others)} other folders "
                f"with images ({some}); name {name} itself as the source, or rename it"
            )
        return {}
    return found


class PartSource(ImageSource):
    """Some images of a source, under the name of another split.

    Args:
        whole: Source of all images.
        split: Name of the split.
        indices: Indices of the images in the source.
    """

    def __init__(self, whole: ImageSource, split: str, indices: Sequence[int]) -> None:
        self.name, self.split, self.licence = whole.name, split, whole.licence
        self.whole, self._indices = whole, list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def id_of(self, index: int) -> str:
        """Stable name of one image, without reading it."""
        return self.whole.id_of(self._indices[index])

    def stable_name(self, index: int) -> str:
        """Name by which an image is held out."""
        return self.whole.stable_name(self._indices[index])

    def places(self) -> list[Path]:
        """Files and folders that the images are read from."""
        return self.whole.places()

    def _sizes(self) -> Iterable[int]:
        sizes = list(self.whole._sizes())
        return (sizes[index] for index in self._indices)

    def read(self, index: int) -> Sample:
        """Decode one image; see `ImageSource.read`."""
        self._check(index)
        return self.whole.read(self._indices[index])

    def read_near(self, index: int, side: int) -> Sample:
        """Decode one image, perhaps reduced; see `ImageSource.read_near`."""
        self._check(index)
        return self.whole.read_near(self._indices[index], side)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of the whole source, so that both parts have the same labels."""
        return self.whole.classes


def hold_out(whole: ImageSource, share: float) -> tuple[PartSource, PartSource]:
    """Divide a source into training images and held out ones, by a hash of their names.

    An image is held out if the hash of its name is below `share` of all hashes. Where these are
    fewer than 16, the 16 smallest hashes are held out, but never more than a quarter of the images
    (of 12 images 3) and at least one. So an image stays where it is when others are added; only in
    a small set one of the 16 may give way to a new one.

    Args:
        whole: Source of all images.
        share: Share to hold out, above 0 to 0.5.

    Returns:
        The parts `train` and `val`: every image is in exactly one, in the order of the source.

    Raises:
        DataError: If there are fewer than two images.
    """
    count = len(whole)
    if count < 2:
        raise DataError(
            f"{whole.name}: {count} image and no split 'val'; expected at least 2, of which one is "
            "held out, or a source of validation images (data.val_source)"
        )
    hashes = [_hash(whole.stable_name(index)) for index in range(count)]
    order = sorted(range(count), key=lambda index: (hashes[index], index))
    below = sum(value < share * 2**64 for value in hashes)
    least = min(LEAST_HELD_OUT, max(1, count // 4))
    held = set(order[: min(max(below, least), count - 1)])
    train = [index for index in range(count) if index not in held]
    return PartSource(whole, "train", train), PartSource(whole, "val", sorted(held))


def _hash(name: str) -> int:
    """The first 64 bits of SHA-256 of a name."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")
