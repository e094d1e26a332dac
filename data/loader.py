"""Batches for training and evaluation, decoded and resized once and cached in memory if they fit.

`tessella.data.step_sampler` decides the image at each position of each batch; augmentation is
seeded by the sample number, so a batch is the same for any number of workers or processes and after
a restart.
"""

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .image_source import DataError, ImageSource
from .images import BrokenImage, to_float
from .step_sampler import StepSampler, epoch_order
from .transforms import AugmentConfig, ResizeRule, augment, fit, shrink

CACHE_BYTES = 1 << 30
"""Largest size of a set of decoded images that `cache="auto"` keeps in memory."""
_REDUCED = 2
"""Least shorter side of an image that is decoded at a reduced scale, in multiples of the side that
is needed: resizing then still halves it, as it would the whole image."""


@dataclass(frozen=True, slots=True)
class _Decoded:
    """A decoded image; label -1 is no label, an empty caption no caption."""

    pixels: np.ndarray  # (H, W, 3), uint8
    id: str
    label: int
    caption: str


class ImageDataset(Dataset[dict[str, Any]]):
    """Images of a source at one resolution, addressed by (image index, sample number).

    A broken image is replaced by the next readable one and recorded in `broken`. A JPEG with at
    least twice the pixels per side that are needed is decoded at a reduced scale; see
    `ImageSource.read_near`.

    Args:
        source: Source of the images.
        resolution: Side of the images in pixels; other sizes are resized and centre-cropped.
        augment: Random augmentation; None = off.
        seed: Seed of augmentation and order, >= 0.
        cache: Keep decoded images in memory: `auto` if all of them fit in 1 GiB, else `always` or
            `never`.

    Raises:
        ValueError: If `resolution`, `seed` or `cache` is out of range.
    """

    def __init__(
        self,
        source: ImageSource,
        resolution: int,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        cache: Literal["auto", "always", "never"] = "auto",
    ) -> None:
        if resolution < 1 or seed < 0:
            raise ValueError(f"resolution={resolution}, seed={seed}; expected >= 1 and >= 0")
        if cache not in ("auto", "always", "never"):
            raise ValueError(f"cache={cache!r}, expected auto, always or never")
        self.source, self.resolution, self.seed = source, resolution, seed
        self.augment = augment or AugmentConfig()
        self.broken: dict[str, str] = {}
        self._broken_indices: set[int] = set()
        # A random crop needs pixels beyond the resolution: enough for the smallest one.
        area = self.augment.random_crop
        self._stored_side = int(np.ceil(resolution / area**0.5))
        total = len(source) * 3 * self._stored_side**2
        self.cached = cache == "always" or (cache == "auto" and total <= CACHE_BYTES)
        self._cache: dict[int, _Decoded] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = self.__dict__
        return state | {"_cache": {}}  # spawned workers fill their own

    def sample(self, number: int) -> dict[str, Any]:
        """One sample of the run by its number, as a batch of one."""
        epoch, place = divmod(number, len(self.source))
        index = int(epoch_order(len(self.source), self.seed, epoch)[place])
        return self.__getitems__([(index, number)])

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """Load a whole batch at once; see `make_loader` for its content.

        Args:
            keys: Pairs of image index and sample number.
        """
        items = [self._readable(index) for index, _ in keys]
        size = self.resolution
        pixels = np.empty((len(keys), size, size, 3), np.uint8)
        for row, (item, (_, number)) in enumerate(zip(items, keys, strict=True)):
            if self.augment.enabled:
                rng = np.random.default_rng((self.seed, number))
                pixels[row] = augment(item.pixels, size, self.augment, rng)
            else:
                pixels[row] = item.pixels
        return _batch(pixels, items, [number for _, number in keys])

    def preload(self) -> None:
        """Decode every image into the cache now, so that forked workers share it."""
        for index in range(len(self.source)):
            self._readable(index)

    def _readable(self, index: int) -> _Decoded:
        """Load the image at `index`, or the next one that can be read."""
        for candidate in range(index, index + len(self.source)):
            candidate %= len(self.source)
            if candidate in self._broken_indices:
                continue
            try:
                return self._load(candidate)
            except BrokenImage as error:
                self.broken[self.source.id_of(candidate)] = error.reason
                self._broken_indices.add(candidate)
        name, reason = next(iter(self.broken.items()))
        raise DataError(
            f"{self.source.name}: none of {len(self.source)} images can be read; {name}: {reason}"
        )

    def _load(self, index: int) -> _Decoded:
        """Load one image from the cache or the source."""
        if index in self._cache:
            return self._cache[index]
        side, crops = self._stored_side, self.augment.crops
        item = _decode(self.source, index, self.resolution, side, crops, reduced=True)
        if self.cached:
            self._cache[index] = item
        return item


class StepLoader(DataLoader[dict[str, Any]]):
    """DataLoader over steps that collects the broken images found by workers in the dataset."""

    dataset: ImageDataset

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        for batch in super().__iter__():
            self.dataset.broken.update(batch.pop("broken"))
            yield batch


class _CollectBroken:
    """Collate function that adds the broken images of this worker to an already complete batch."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __call__(self, batch: Any) -> dict[str, Any]:
        info = torch.utils.data.get_worker_info()
        dataset = self.dataset if info is None else cast(ImageDataset, info.dataset)
        whole: dict[str, Any] = batch | {"broken": dict(dataset.broken)}
        return whole


def make_loader(
    dataset: ImageDataset,
    batch_size_per_process: int,
    *,
    num_steps: int,
    start_step: int = 0,
    process_index: int = 0,
    num_processes: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> StepLoader:
    """Build the loader of steps start_step .. num_steps - 1, one batch each.

    A batch holds `images` float32 (B, 3, H, W) in [-1, 1], `labels` int64 (B,) with -1 = none,
    `captions` (list of B texts, empty = none), `ids` (list of B names) and `numbers` int64 (B,).
    Images found broken are listed in `dataset.broken` with the reason.

    Args:
        dataset: Images, augmentation and seed.
        batch_size_per_process: Samples per step on this process.
        num_steps: Length of the whole run in steps.
        start_step: Number of steps already done.
        process_index: Rank of this process.
        num_processes: Number of processes of the run.
        num_workers: Number of reader processes; 0 is fastest for a small cached set.
        pin_memory: Whether tensors are page-locked for faster copies to a GPU.

    Raises:
        ValueError: If a count is out of range.
        DataError: While iterating, if no image can be read.
    """
    sampler = StepSampler(
        len(dataset),
        batch_size_per_process,
        process_index,
        num_processes,
        dataset.seed,
        start_step,
        num_steps,
    )
    methods = multiprocessing.get_all_start_methods()  # the default comes first
    method = multiprocessing.get_start_method(allow_none=True) or methods[0]
    if num_workers and dataset.cached and method == "fork":
        dataset.preload()
    return StepLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=_CollectBroken(dataset),
        num_workers=num_workers,
        pin_memory=pin_memory,
    )


def eval_batches(
    source: ImageSource,
    resolution: int,
    batch_size: int,
    limit: int | None = None,
    *,
    broken: dict[str, str] | None = None,
    resize: ResizeRule = "bicubic",
    indices: Iterable[int] | None = None,
    reduced: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield every readable image once, in order, resized and centre-cropped, never augmented.

    Args:
        source: Source of the images.
        resolution: Side of the images in pixels.
        batch_size: Images per batch; the last one may be smaller.
        limit: Largest number of images to yield; None = all.
        broken: Dict that is filled with the reason for each skipped image, by id.
        resize: Rule of `transforms.fit` for images of other sizes.
        indices: Indices of the images in the source; None = all. Only in the latter case it is an
            error if none can be read.
        reduced: Whether JPEGs may be decoded at a reduced scale, as in training. What is measured
            is decoded in full: a reduced image is another one than the rule of resizing gives.

    Yields:
        Batches as from `make_loader`; `numbers` are indices into the source.

    Raises:
        ValueError: If `resolution`, `batch_size` or `limit` is below 1.
        DataError: If no image of the source can be read, or `resize` refuses the size of an image.
    """
    if resolution < 1 or batch_size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"{resolution=}, {batch_size=}, {limit=}; expected at least 1")
    broken = {} if broken is None else broken
    items: list[_Decoded] = []
    numbers: list[int] = []
    delivered = 0
    for index in range(len(source)) if indices is None else indices:
        if limit is not None and delivered + len(items) >= limit:
            break
        try:
            item = _decode(source, index, resolution, resolution, False, resize, reduced=reduced)
            items.append(item)
            numbers.append(index)
        except BrokenImage as error:
            broken[source.id_of(index)] = error.reason
        if len(items) == batch_size:
            yield _batch(np.stack([item.pixels for item in items]), items, numbers)
            delivered, items, numbers = delivered + len(items), [], []
    if items:
        yield _batch(np.stack([item.pixels for item in items]), items, numbers)
        delivered += len(items)
    if not delivered and indices is None:
        name, reason = next(iter(broken.items()))
        raise DataError(f"{source.name}: no image can be read; {name}: {reason}")


def evenly_spaced(count: int, most: int) -> list[int]:
    """At most `most` of the indices 0 .. count - 1, evenly spaced and starting with 0."""
    chosen = min(count, most)
    return [i * count // chosen for i in range(chosen)]


def _decode(
    source: ImageSource,
    index: int,
    resolution: int,
    stored_side: int,
    crops: bool,
    resize: ResizeRule = "bicubic",
    *,
    reduced: bool,
) -> _Decoded:
    """Decode one image and bring it to the resolution, or to `stored_side` for random crops."""
    sample = source.read_near(index, _REDUCED * stored_side) if reduced else source.read(index)
    if crops:
        image = shrink(sample.image, stored_side)
    else:
        try:
            image = fit(sample.image, resolution, resize)
        except ValueError as error:
            raise DataError(f"{source.name}: {sample.id} has {error}") from None
    label = -1 if sample.label is None else sample.label
    return _Decoded(np.asarray(image), sample.id, label, sample.caption or "")


def _batch(pixels: np.ndarray, items: Sequence[_Decoded], numbers: Sequence[int]) -> dict[str, Any]:
    """Build a batch from pixels (B, H, W, 3) and the decoded images they belong to."""
    return {
        "images": to_float(pixels),
        "labels": torch.tensor([item.label for item in items], dtype=torch.int64),
        "captions": [item.caption for item in items],
        "ids": [item.id for item in items],
        "numbers": torch.tensor(numbers, dtype=torch.int64),
    }
