"""Image source that reads samples written earlier."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ..data.image_source import DataError, ImageSource, Sample
from ..data.images import read_image
from ..data.sources import open_source
from ..documents import read_json_lines
from ..manifest import check_files
from .folder import RECORDS


@dataclass(frozen=True)
class _Record:
    """What is read of a line of `images.jsonl`."""

    file: str
    label: int | None = None
    class_name: Annotated[str | None, Field(alias="class")] = None
    prompt: str | None = None
    caption: str | None = None


class SampleFolder(ImageSource):
    """Source of the pictures that `sample_to_folder` or `decode_store` wrote.

    They have the labels and prompts that they were drawn by, or the labels and captions of the
    images that were encoded.

    Args:
        folder: Folder with an `images.jsonl`.

    Raises:
        DataError: If `images.jsonl` cannot be read, is empty, or names files that do not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.name, self.split, self.licence = folder, folder.name, "train", None
        try:
            check_files(folder, (RECORDS,), error=DataError)
            records = list(read_json_lines(folder / RECORDS, _Record, error=DataError))
        except FileNotFoundError as error:
            raise DataError(str(error)) from None
        self._files: list[Path] = []
        self._labels: list[int | None] = []
        self._names: list[str | None] = []
        self._captions: list[str | None] = []
        for record in records:
            if isinstance(record, ValueError):
                raise record
            self._files.append(folder / record.file)
            known = record.label is not None and record.label >= 0
            self._labels.append(record.label if known else None)
            self._names.append(record.class_name)
            self._captions.append(record.prompt or record.caption or None)
        missing = [file for file in self._files if not file.is_file()]
        if missing or not self._files:
            raise DataError(
                f"{folder / RECORDS}: {len(missing)} of {len(self._files)} pictures are missing; "
                "expected at least one picture and none missing"
            )

    def __len__(self) -> int:
        return len(self._files)

    def id_of(self, index: int) -> str:
        """File name of one picture."""
        return str(self._files[index].name)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by label; empty for a label that no picture has."""
        pairs = zip(self._labels, self._names, strict=True)
        known = {label: str(name) for label, name in pairs if label is not None}
        return tuple(known.get(label, "") for label in range(max(known, default=-1) + 1))

    def places(self) -> list[Path]:
        """Files and folders that the images are read from."""
        return [self.folder]

    def _sizes(self) -> Iterable[int]:
        return (file.stat().st_size for file in self._files)

    def read(self, index: int) -> Sample:
        """Decode one picture; see `ImageSource.read`."""
        self._check(index)
        file = self._files[index]
        image = read_image(file, name=file.name)
        label, caption = self._labels[index], self._captions[index]
        return Sample(image=image, id=file.name, label=label, caption=caption)


def open_samples(path: str) -> ImageSource:
    """Open existing samples: a folder from `tessella sample`, or any source of images.

    Raises:
        DataError: If the folder or source cannot be read or has no images.
    """
    folder = Path(path)
    return SampleFolder(folder) if (folder / RECORDS).is_file() else open_source(path, "train")
