"""Images in webdataset tars, read in place: `NAME.png` beside `NAME.json`, `NAME.cls`, `NAME.txt`.

The name of a sample is the member path without its extension. The JSON file contains `class_id`,
`class_name` and `caption`, `.cls` a class number and `.txt` a caption. Members below `train/` or
`val/` form splits inside one archive. `classes.json` (a list of names, or an object with the key
`classes`) names the classes; without it they are collected from the samples on first use.
"""

import os
import weakref
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from ..documents import check, parse_json
from .image_source import DataError, ImageSource, Sample
from .images import BrokenImage, read_image
from .tar_index import Member, index_tar

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)
SPLITS = ("train", "val", "test")
_METADATA_SUFFIXES = (".json", ".cls", ".txt")
_Entry = tuple[str, int, Member, dict[str, Member]]  # id, archive number, image, metadata


class TarSource(ImageSource):
    """Images of one or more uncompressed tar archives.

    Args:
        paths: Paths of the archives; if there are several, ids start with the archive's name.
        name: Short name for logs.
        split: `train`, `val` or `test`; a folder of this name inside the archives is the split,
            if it exists.
        whole: Whether the archives hold this split only; folders inside them are then ignored.
        licence: Licence statement of the images.

    Raises:
        DataError: If an archive is missing or truncated, or holds no image of this split.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        name: str,
        split: str,
        whole: bool = False,
        licence: str | None = None,
    ) -> None:
        self.name, self.split, self.licence = name, split, licence
        self._paths = [Path(path).absolute() for path in paths]
        self._class_members: list[tuple[int, Member]] = []
        entries: list[_Entry] = []
        stems = [path.stem for path in self._paths]
        if len(set(stems)) < len(stems):
            raise DataError(f"{name}: two archives of the same name among {sorted(stems)}")
        for number, path in enumerate(self._paths):
            prefix = f"{stems[number]}/" if len(stems) > 1 else ""
            entries += self._entries(index_tar(path), number, prefix)
        found: set[str] = set()
        if not whole:
            found = {entry[2].path.split("/", 1)[0] for entry in entries} & set(SPLITS)
        if found:
            entries = [entry for entry in entries if entry[2].path.startswith(f"{split}/")]
        if not entries or not (found or whole or split == "train"):
            has = f"splits {sorted(found)}" if found else f"{len(entries)} images without splits"
            raise DataError(
                f"{name}: no split {split!r} in {_listed(self._paths)}, found {has}; expected "
                f"image members (.png, .jpg, .webp) below {split}/"
            )
        self._entries_sorted = sorted(entries, key=lambda entry: entry[0])
        self._files: dict[int, int] = {}
        self._files_pid = os.getpid()

    def _entries(self, members: dict[str, Member], number: int, prefix: str) -> list[_Entry]:
        """Images of an archive with their metadata files."""
        entries: list[_Entry] = []
        for path, member in members.items():
            stem, suffix = os.path.splitext(path)
            base = os.path.basename(path)
            if base == "classes.json":
                self._class_members.append((number, member))
            elif suffix.lower() in IMAGE_SUFFIXES and not base.startswith("."):
                metadata = {}
                for kind in _METADATA_SUFFIXES:
                    found = members.get(stem + kind)
                    if found is not None:
                        metadata[kind] = found
                entries.append((prefix + stem, number, member, metadata))
        return entries

    def __len__(self) -> int:
        return len(self._entries_sorted)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    def id_of(self, index: int) -> str:
        """Stable name of one image, without reading it."""
        return self._entries_sorted[index][0]

    def places(self) -> list[Path]:
        """Files and folders that the images are read from."""
        return self._paths

    def _sizes(self) -> Iterable[int]:
        return (entry[2].size for entry in self._entries_sorted)

    def read(self, index: int) -> Sample:
        """Decode one image; see `ImageSource.read`."""
        self._check(index)
        name, number, member, metadata = self._entries_sorted[index]
        blob = self._read(number, member)
        if len(blob) < member.size:
            raise BrokenImage(name, f"only {len(blob)} of {member.size} bytes are in the archive")
        image = read_image(blob, name=name)
        record = self._record(name, number, metadata)
        return Sample(
            image=image, id=name, label=record.get("class_id"), caption=record.get("caption")
        )

    def _record(self, name: str, number: int, metadata: dict[str, Member]) -> dict[str, Any]:
        """Known values among `class_id`, `class_name` and `caption` of one sample."""
        record: dict[str, Any] = {}
        try:
            if ".json" in metadata:
                text = self._read(number, metadata[".json"])
                parsed = parse_json(text, name="json", non_finite=True)
                record = check(parsed, dict[str, Any], name="json")
            if ".cls" in metadata:
                record["class_id"] = int(self._read(number, metadata[".cls"]))
            if ".txt" in metadata:
                record["caption"] = self._read(number, metadata[".txt"]).decode().strip()
            label = record.get("class_id")
            if label is not None and (type(label) is not int or label < 0):
                raise ValueError(f"class_id {label!r}, expected an integer >= 0")
        except ValueError as error:
            raise BrokenImage(name, f"metadata: {error}") from error
        return record

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        """Class names from `classes.json`, or else from the metadata of all samples."""
        if self._class_members:
            number, member = self._class_members[0]
            try:
                names = parse_json(self._read(number, member), name="classes.json")
                names = names.get("classes") if isinstance(names, dict) else names
                return tuple(map(str, check(names, list[Any], name="classes.json")))
            except ValueError as error:
                raise DataError(f"{self.name}: cannot be read ({error})") from error
        names_by_id: dict[int, str] = {}
        for name, number, _, metadata in self._entries_sorted:
            if ".json" in metadata or ".cls" in metadata:
                record = self._record(name, number, metadata)
                if (label := record.get("class_id")) is not None:
                    names_by_id.setdefault(label, str(record.get("class_name", label)))
        count = max(names_by_id, default=-1) + 1
        return tuple(names_by_id.get(label, str(label)) for label in range(count))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order; empty when the images carry no labels."""
        return self._classes

    def _read(self, number: int, member: Member) -> bytes:
        """Read a member of an archive."""
        if self._files_pid != os.getpid():  # opened by the parent; each process uses its own
            self._files, self._files_pid = {}, os.getpid()
        if number not in self._files:
            descriptor = os.open(self._paths[number], os.O_RDONLY)
            self._files[number] = descriptor
            weakref.finalize(self, _close, descriptor, os.getpid())
        return os.pread(self._files[number], member.size, member.offset)


def _close(descriptor: int, pid: int) -> None:
    """Close a file in the process that opened it."""
    if os.getpid() == pid:
        os.close(descriptor)


def _listed(paths: Sequence[Path]) -> str:
    """First path and the number of the others, for messages."""
    first = str(PurePosixPath(paths[0]))
    return first if len(paths) == 1 else f"{first} and {len(paths) - 1} more"
