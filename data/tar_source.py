"""Images in webdataset tars, read in place: `NAME.png` beside `NAME.json`, `NAME.cls`, `NAME.txt`.

`tessella.data.tar_samples` says which members form a sample. The JSON file contains `class_id`,
`class_name` and `caption`, `.cls` a class number and `.txt` a caption. Members below `train/` or
`val/` form splits inside one archive. `classes.json` (a list of names, or an object with the key
`classes`) names the classes; without it they are collected from the samples on first use. A sample
with metadata that cannot be understood is broken; it is skipped, counted and named.
"""

import os
import weakref
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from ..documents import check, parse_json
from .image_source import (
    MAX_CLASSES,
    WHOLE,
    DataError,
    ImageSource,
    NoSplit,
    Sample,
    SourceSettings,
    Undivided,
)
from .images import BrokenImage, read_image
from .splits import split_folders, split_named
from .tar_index import Member, index_tar
from .tar_samples import TarSample, samples_of

_MOST_METADATA = 1 << 20  # bytes of a metadata file
_Entry = tuple[str, int, TarSample]  # id, archive number, sample


class TarSource(ImageSource):
    """Images of one or more uncompressed tar archives.

    Args:
        paths: Paths of the archives; if there are several, ids start with the archive's name.
        name: Short name for logs.
        split: `train`, `val` or `test`; a folder of this name inside the archives, or of another
            name of the split such as `validation`, is the split, if there are such folders.
        whole: Whether the archives hold this split only; folders inside them are then ignored.
        licence: Licence statement of the images.
        settings: Settings of reading.

    Raises:
        NoSplit: If the archives hold images, but none of this split.
        DataError: If an archive is missing or truncated, or holds no image, or none of its samples
            has one that is not ambiguous.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        name: str,
        split: str,
        whole: bool = False,
        licence: str | None = None,
        settings: SourceSettings = WHOLE,
    ) -> None:
        self.name, self.split, self.licence = name, split, licence
        self._max_pixels = settings.max_pixels
        self._paths = [Path(path).absolute() for path in paths]
        self._class_members: list[tuple[int, Member]] = []
        entries: list[_Entry] = []
        stems = [path.stem for path in self._paths]
        if len(set(stems)) < len(stems):
            raise DataError(f"{name}: two archives of the same name among {sorted(stems)}")
        for number, path in enumerate(self._paths):
            prefix = f"{stems[number]}/" if len(stems) > 1 else ""
            members = index_tar(path)
            self._class_members += [
                (number, member)
                for place, member in members.items()
                if os.path.basename(place) == "classes.json"
            ]
            samples = samples_of(members, settings.image_member)
            entries += [(prefix + sample.path, number, sample) for sample in samples]
        found = {} if whole else _splits(entries, _listed(self._paths))
        if found:
            folder = found.get(split)
            entries = [entry for entry in entries if _top(entry) == folder]
        if not entries or not (found or whole or split == "train"):
            names = sorted(found.values())
            has = f"splits {names}" if found else f"{len(entries)} images without splits"
            fault = NoSplit if found else Undivided if entries else DataError
            raise fault(
                f"{name}: no split {split!r} in {_listed(self._paths)}, found {has}; expected "
                f"image members (.png, .jpg, .webp) below {split}/"
            )
        if all(entry[2].image is None for entry in entries):
            first = entries[0]
            raise DataError(
                f"{name}: none of {len(entries)} samples has an image; {first[0]}: "
                f"{first[2].problem}"
            )
        self._entries_sorted = sorted(entries, key=lambda entry: entry[0])
        self._stems = stems
        self._files: dict[int, int] = {}
        self._files_pid = os.getpid()

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

    def stable_name(self, index: int) -> str:
        """Archive and path of an image; unlike its id, the same beside any other archives."""
        _, number, sample = self._entries_sorted[index]
        return f"{self._stems[number]}/{sample.path}"

    def _sizes(self) -> Iterable[int]:
        images = (entry[2].image for entry in self._entries_sorted)
        return (image.size if image is not None else 0 for image in images)

    def read(self, index: int) -> Sample:
        """Decode one image; see `ImageSource.read`."""
        return self._decode(index, None)

    def read_near(self, index: int, side: int) -> Sample:
        """Decode one image, perhaps reduced; see `ImageSource.read_near`."""
        return self._decode(index, side)

    def _decode(self, index: int, side: int | None) -> Sample:
        self._check(index)
        name, number, sample = self._entries_sorted[index]
        if sample.image is None:
            raise BrokenImage(name, sample.problem)
        try:
            blob = self._read(number, sample.image, most=16 * self._max_pixels)
        except ValueError as error:
            raise BrokenImage(name, str(error)) from error
        image = read_image(blob, name=name, max_pixels=self._max_pixels, side=side)
        record = self._record(name, number, sample.metadata)
        label, caption = record.get("class_id"), record.get("caption")
        return Sample(image=image, id=name, label=label, caption=caption)

    def _record(self, name: str, number: int, metadata: dict[str, Member]) -> dict[str, Any]:
        """Checked values among `class_id`, `class_name` and `caption` of one sample."""
        record: dict[str, Any] = {}
        try:
            if ".json" in metadata:
                text = self._read(number, metadata[".json"])
                parsed = parse_json(text, name="json", non_finite=True)
                record = check(parsed, dict[str, Any], name="json")
            if ".cls" in metadata:
                number_of_class = int(self._read(number, metadata[".cls"]))
                other = record.get("class_id")
                if other is not None and other != number_of_class:
                    raise ValueError(f"class_id {other!r} in .json, but {number_of_class} in .cls")
                record["class_id"] = number_of_class
            if ".txt" in metadata:
                record["caption"] = self._read(number, metadata[".txt"]).decode("utf-8-sig").strip()
            label, caption = record.get("class_id"), record.get("caption")
            most = len(self._named) if self._named is not None else MAX_CLASSES
            if label is not None and not (type(label) is int and 0 <= label < most):
                which = "the classes of classes.json" if self._named is not None else "the limit"
                raise ValueError(f"class_id {label!r}, expected 0 to {most - 1} ({which})")
            if caption is not None and not isinstance(caption, str):
                raise ValueError(f"caption of type {type(caption).__name__}, expected text")
        except ValueError as error:
            raise BrokenImage(name, f"metadata: {error}") from error
        return record

    @cached_property
    def _named(self) -> tuple[str, ...] | None:
        """Class names from `classes.json`; None if there is none."""
        found: tuple[str, ...] | None = None
        for number, member in self._class_members:
            try:
                content = self._read(number, member, most=MAX_CLASSES << 8)
                names = parse_json(content, name="classes.json")
                names = names.get("classes") if isinstance(names, dict) else names
                names = tuple(map(str, check(names, list[Any], name="classes.json")))
                if len(names) > MAX_CLASSES:
                    raise ValueError(
                        f"classes.json: {len(names)} names, expected at most {MAX_CLASSES}"
                    )
            except ValueError as error:
                raise DataError(f"{self.name}: cannot be read ({error})") from error
            if found is not None and names != found:
                raise DataError(
                    f"{self.name}: two classes.json differ, so that class numbers do not agree "
                    f"({self._paths[number]} has another one)"
                )
            found = names or None
        return found

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        """Class names from `classes.json`, or else from the metadata of all readable samples."""
        if self._named is not None:
            return self._named
        names_by_id: dict[int, str] = {}
        for name, number, sample in self._entries_sorted:
            if ".json" in sample.metadata or ".cls" in sample.metadata:
                try:
                    record = self._record(name, number, sample.metadata)
                except BrokenImage:  # reported where the image is read
                    continue
                if (label := record.get("class_id")) is not None:
                    names_by_id.setdefault(label, str(record.get("class_name", label)))
        count = max(names_by_id, default=-1) + 1
        return tuple(names_by_id.get(label, str(label)) for label in range(count))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order; empty when the images carry no labels."""
        return self._classes

    def _read(self, number: int, member: Member, *, most: int = _MOST_METADATA) -> bytes:
        """Read a member of an archive.

        Raises:
            ValueError: If it is a link that leads nowhere, too large, or not all there.
        """
        if member.problem or member.size > most:
            raise ValueError(member.problem or f"{member.size} bytes, expected at most {most}")
        if self._files_pid != os.getpid():  # opened by the parent; each process uses its own
            self._files, self._files_pid = {}, os.getpid()
        if number not in self._files:
            descriptor = os.open(self._paths[number], os.O_RDONLY)
            self._files[number] = descriptor
            weakref.finalize(self, _close, descriptor, os.getpid())
        blob = os.pread(self._files[number], member.size, member.offset)
        if len(blob) < member.size:
            raise ValueError(f"only {len(blob)} of {member.size} bytes are in the archive")
        return blob


def _top(entry: _Entry) -> str:
    """First folder of a sample's path; "": it is in none."""
    return entry[2].path.rpartition("/")[0].partition("/")[0]


def _splits(entries: Sequence[_Entry], where: str) -> dict[str, str]:
    """Folder of each split among the first folders of samples."""
    tops = {_top(entry) for entry in entries}
    named = {top for top in tops if split_named(top)}
    others = [top or "no folder" for top in tops - named]
    return split_folders(named, others, where)


def _close(descriptor: int, pid: int) -> None:
    """Close a file in the process that opened it."""
    if os.getpid() == pid:
        os.close(descriptor)


def _listed(paths: Sequence[Path]) -> str:
    """First path and the number of the others, for messages."""
    first = str(PurePosixPath(paths[0]))
    return first if len(paths) == 1 else f"{first} and {len(paths) - 1} more"
