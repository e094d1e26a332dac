"""Blocks of images for `encode_source`: read, resized and augmented, perhaps in reader processes.

Block b of a source is its images b * size .. (b + 1) * size - 1 less those that cannot be read, so
what is in a block, and with what it is encoded at once, does not depend on where the work begins.
"""

import collections
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.image_source import ImageSource, Sample
from ..data.loader import ImageDataset, eval_batches
from ..data.transforms import AugmentConfig


@dataclass(frozen=True, eq=False)
class Block:
    """Images of a block.

    Args:
        views: Images (B, 3, H, W) in [-1, 1] of each view, the plain one first; empty if no image
            of the block can be read.
        ids: Name of each image.
        labels: Class of each image, (B,) int64; -1 = none.
        captions: Caption of each image, or None.
        broken: Reason for each image that cannot be read, by name.
        sizes: What happened to the sizes of the others; see `SIZES`.
    """

    views: list[Tensor]
    ids: list[str]
    labels: Tensor | None
    captions: list[str | None]
    broken: dict[str, str]
    sizes: dict[str, int]


SIZES = ("unchanged", "enlarged", "shrunk", "cropped")
"""What happens to the size of an image: resizing of its shorter side, and cropping of the centre,
which an image may have besides."""


class Blocks(Dataset[Block]):
    """Blocks of a source by number.

    Args:
        source: Images.
        resolution: Side of the images in pixels.
        size: Number of images of a block, at least 1.
        limit: Number of images that are taken, from the first; None: all.
        flip: Whether the second view is the mirror image.
        augment: Random augmentation of the views after the first; None: none.
        views: Number of views without `flip`.
        seed: Seed of the views.
    """

    def __init__(
        self,
        source: ImageSource,
        resolution: int,
        size: int,
        *,
        limit: int | None = None,
        flip: bool = False,
        augment: AugmentConfig | None = None,
        views: int = 1,
        seed: int = 0,
    ) -> None:
        self.source, self.resolution, self.size = source, resolution, size
        self.count = len(source) if limit is None else min(limit, len(source))
        self._flip, self._augment, self._views, self._seed = flip, augment, views, seed

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def __getitem__(self, number: int) -> Block:
        """Read a block.

        Raises:
            IndexError: If there is no such block.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"block {number}: expected 0 to {len(self) - 1}")
        start = number * self.size
        indices = range(start, min(start + self.size, self.count))
        broken: dict[str, str] = {}
        measured = _Measured(self.source, self.resolution)
        batches = eval_batches(
            measured, self.resolution, self.size, broken=broken, indices=indices, reduced=True
        )
        batch = next(batches, None)
        if batch is None:
            return Block([], [], None, [], broken, {})
        views = [batch["images"]]
        if self._flip:
            views.append(batch["images"].flip(3))
        if self._views > 1:
            views += self._augmented(batch["numbers"].tolist())
        captions = [caption or None for caption in batch["captions"]]
        sizes = dict(measured.sizes)
        return Block(views, batch["ids"], batch["labels"], captions, broken, sizes)

    def _augmented(self, indices: Sequence[int]) -> Iterator[Tensor]:
        """Views after the first; every image is decoded once for all of them."""
        dataset = ImageDataset(
            self.source, self.resolution, self._augment, self._seed, cache="always"
        )
        for view in range(1, self._views):
            keys = [(i, view * len(self.source) + i) for i in indices]
            yield dataset.__getitems__(keys)["images"]


def read_blocks(blocks: Blocks, numbers: range, workers: int) -> Iterable[Block]:
    """Blocks of the given numbers, in order.

    Args:
        blocks: Blocks of a source.
        numbers: Numbers of the blocks.
        workers: Number of reader processes; 0: this process reads.
    """
    if not workers or not numbers:
        return map(blocks.__getitem__, numbers)
    return DataLoader(
        blocks, batch_size=None, sampler=numbers, num_workers=workers, collate_fn=_as_it_is
    )


def _as_it_is(block: Any) -> Any:
    return block


class _Measured(ImageSource):
    """A source that counts what happens to the sizes of its images at a resolution."""

    def __init__(self, source: ImageSource, resolution: int) -> None:
        self.name, self.split, self.licence = source.name, source.split, source.licence
        self._source, self._resolution = source, resolution
        self.sizes = collections.Counter[str]()

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int) -> Sample:
        """Decode one image; see `ImageSource.read`."""
        return self._counted(self._source.read(index))

    def read_near(self, index: int, side: int) -> Sample:
        """Decode one image, perhaps reduced; see `ImageSource.read_near`."""
        return self._counted(self._source.read_near(index, side))

    def _counted(self, sample: Sample) -> Sample:
        self.sizes.update(changes_of(sample.image.size, self._resolution))
        return sample

    def id_of(self, index: int) -> str:
        """Stable name of one image, without reading it."""
        return self._source.id_of(index)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self._source.classes

    def places(self) -> list[Path]:
        """Files and folders that the images are read from."""
        return self._source.places()

    def _sizes(self) -> Iterable[int]:
        return self._source._sizes()


def changes_of(size: tuple[int, int], resolution: int) -> list[str]:
    """What happens to an image of a size (width, height) at a resolution, words of `SIZES`."""
    short, long = sorted(size)
    found = []
    if short != resolution:
        found.append("enlarged" if short < resolution else "shrunk")
    if long != short:
        found.append("cropped")
    return found or ["unchanged"]


def count_sizes(sizes: dict[str, int], more: dict[str, int]) -> dict[str, int]:
    """Sum of two counts, in the order of `SIZES`; what did not happen is left out."""
    total = {name: sizes.get(name, 0) + more.get(name, 0) for name in SIZES}
    return {name: count for name, count in total.items() if count}
