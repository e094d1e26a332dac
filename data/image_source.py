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

from .images import MAX_PIXELS, MOST_PIXELS

MAX_CLASSES = 100_000
"""Labels are 0 to this number - 1; a sample with a larger one is broken."""


class DataError(ValueError):
    """Raised for a data source that cannot be used: missing, empty, truncated or misnamed."""


class NoSplit(DataError):
    """Raised for a split that a source does not have, while it has images of another split."""


class Undivided(NoSplit):
    """Raised for another split than `train` of a source without splits."""


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """How image sources are read.

    Args:
        val_share: Share of the images that is held out as split `val` where a source has no such
            split, 0 to 0.5; 0: nothing is held out, and all images are `train`.
        image_member: Which member of a sample in a tar is the image, by the end of its name after
            the first dot, e.g. `left.png`; `*`: every image member is a sample of its own. None:
            the only one, or the one without a second dot (`0001.jpg` beside `0001.seg.png`).
        max_pixels: Largest number of pixels of a decoded image; larger ones are broken.
    """

    val_share: float = 0.0
    image_member: str | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if not 0 <= self.val_share <= 0.5:
            raise ValueError(f"val_share: expected 0 to 0.5, found {self.val_share}")
        if self.image_member is not None and not self.image_member.strip("."):
            raise ValueError(
                "image_member: expected the end of a name such as left.png, or *, found "
                f"{self.image_member!r}"
            )
        if not 1 <= self.max_pixels <= MOST_PIXELS:
            raise ValueError(
                f"max_pixels: expected 1 to {MOST_PIXELS:,} (Pillow reads no larger image), found "
                f"{self.max_pixels:,}"
            )


WHOLE = SourceSettings()
"""Settings of a source of which nothing is held out."""


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

    def read_near(self, index: int, side: int) -> Sample:
        """Decode one image, perhaps at a reduced scale; by default as `read` does.

        Args:
            index: Position in [0, len(self)).
            side: Least shorter side of a reduced image in pixels. A JPEG of which a half, a quarter
                or an eighth is that large is decoded at this scale, which is faster by far and
                differs slightly from resizing the whole image.
        """
        return self.read(index)

    @abstractmethod
    def id_of(self, index: int) -> str:
        """Stable name of one image, without reading it."""

    def stable_name(self, index: int) -> str:
        """Name by which an image is held out; other images of the source have no influence."""
        return self.id_of(index)

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
