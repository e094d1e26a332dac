"""Image source that reads samples written earlier."""

import json
from collections.abc import Iterable
from pathlib import Path

from ..data.image_source import DataError, ImageSource, Sample
from ..data.images import read_image
from ..data.sources import open_source
from .folder import RECORDS


class SampleFolder(ImageSource):
    """Source of the pictures that `sample_to_folder` or `decode_store` wrote, with their labels.

    Args:
        folder: Folder with an `images.jsonl`.

    Raises:
        DataError: If `images.jsonl` cannot be read, is empty, or names files that do not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.name, self.split, self.licence = folder, folder.name, "train", None
        try:
            lines = (folder / RECORDS).read_text(encoding="utf-8").splitlines()
            records = [json.loads(line) for line in lines]
            self._files = [folder / record["file"] for record in records]
            labels = [record.get("label") for record in records]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{folder / RECORDS}: cannot be read ({error})") from None
        self._labels = [
            label if isinstance(label, int) and label >= 0 else None for label in labels
        ]
        self._names = [record.get("class") for record in records]
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
        return Sample(image=image, id=file.name, label=self._labels[index])


def open_samples(path: str) -> ImageSource:
    """Open existing samples: a folder from `tessella sample`, or any source of images.

    Raises:
        DataError: If the folder or source cannot be read or has no images.
    """
    folder = Path(path)
    return SampleFolder(folder) if (folder / RECORDS).is_file() else open_source(path, "train")
