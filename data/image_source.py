"""Interface of all image sources: a length, a stable order, and one sample per index.

A source locates and decodes images; resolution, batches and randomness belong to
`tessella.data.loader`. Sources are map-style and picklable, so they work in DataLoader workers
started by fork or by spawn.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image


class DataError(ValueError):
    """Raised for a data source that cannot be used: missing, empty, truncated or misnamed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image with its label and caption.

    Attributes:
        image: PIL image, mode RGB, in its stored size.
        id: Stable name inside the source, for example `train/000017` or `cat/001.png`.
        label: Class index in [0, num_classes), or None.
        caption: One line of text, or None.
    """

    image: Image.Image
    id: str
    label: int | None = None
    caption: str | None = None


class ImageSource(ABC):
    """Map-style images in a stable sorted order.

    Attributes:
        name: Short name for logs and reports, for example `emoji`.
        split: Name of the split, `train`, `val` or `test`.
        licence: Licence statement of the images, or None when unknown.
    """

    name: str
    split: str
    licence: str | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of images, broken ones included."""

    @abstractmethod
    def read(self, index: int) -> Sample:
        """Decode one image.

        Args:
            index: Position in [0, len(self)).

        Raises:
            IndexError: If `index` is outside the range.
            BrokenImage: If the image cannot be decoded; the other images stay readable.
        """

    @abstractmethod
    def id_of(self, index: int) -> str:
        """Stable name of one image, without reading it."""

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Class names in label order; empty when the images carry no labels."""

    def places(self) -> list[Path]:
        """Files and folders on this machine that the images are read from."""
        return []

    @abstractmethod
    def _sizes(self) -> Iterable[int]:
        """Stored size of each image in bytes, in order."""

    @cached_property
    def _fingerprint(self) -> str:
        """SHA-256 over ids and stored sizes, computed once."""
        digest = hashlib.sha256()
        for index, size in enumerate(self._sizes()):
            digest.update(f"{self.id_of(index)}\0{size}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) over ids and stored sizes; no image is read.

        Equal for a copy of the same data elsewhere, different when an image was added, removed,
        renamed or changed in size.
        """
        return self._fingerprint

    def _check(self, index: int) -> None:
        """Refuse an index outside the source."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {self.name}: expected 0..{len(self) - 1}")
