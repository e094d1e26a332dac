"""Duplicates among samples: exact copies, and near copies by pixel difference.

Exact copies have equal 8-bit pixels (SHA-256). Near copies are pairs for which the root mean square
difference of 8-bit thumbnails, or of one thumbnail and the mirror image of the other, is at most a
threshold on the 0..255 scale. Thumbnails are box averages of at most 32 x 32 pixels, so images up
to that size are compared as they are, and larger images that differ in fine texture alone count as
near copies. Plain backgrounds lower the difference: judge a threshold by the pairs that it finds.
The arithmetic is exact in integers and sorted by image number, so the result does not depend on
batches, order or processes.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

THUMBNAIL_SIDE = 32
"""Largest side of a thumbnail in pixels; 3 kB an image."""
DEFAULT_THRESHOLD = 4.0
"""Root mean square difference of near copies on the 0..255 scale."""
_COARSE_SIDE = 8
_BLOCK = 1024
_SLACK = 1.0  # above the rounding of coarse sums, about 1e-7, in squared pixel values


@dataclass(frozen=True, kw_only=True, order=True)
class DuplicatePair:
    """Two samples that resemble each other.

    Attributes:
        distance: Root mean square difference of the thumbnails, in [0, 255].
        first: Number of the earlier sample.
        second: Number of the later one.
        mirrored: Whether the mirror image of one is the nearer one.
    """

    distance: float
    first: int
    second: int
    mirrored: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Duplicates:
    """Result of a `DuplicateFinder`.

    Attributes:
        threshold: Largest root mean square difference of near copies, in [0, 255].
        numbers: Numbers of all samples, rising, int64, shape (n,).
        has_twin: Whether an earlier sample is a near copy, bool, shape (n,).
        has_exact_twin: Whether an earlier sample has the same pixels, bool, shape (n,).
        groups: Numbers of samples linked by near copies, largest group first; groups of one
            are left out.
        pairs: The closest pairs of all, near copies or not, closest first.
    """

    threshold: float
    numbers: Tensor
    has_twin: Tensor
    has_exact_twin: Tensor
    groups: tuple[tuple[int, ...], ...]
    pairs: tuple[DuplicatePair, ...]

    @property
    def share(self) -> float:
        """Share of samples with an earlier near copy, in [0, 1)."""
        return float(self.has_twin.double().mean())

    @property
    def exact_share(self) -> float:
        """Share of samples whose pixels an earlier one has, in [0, 1)."""
        return float(self.has_exact_twin.double().mean())

    def to_dict(self) -> dict[str, Any]:
        """All results for JSON, without the per-sample tensors."""
        return {
            "num_samples": len(self.numbers),
            "threshold": self.threshold,
            "duplicate_share": self.share,
            "exact_duplicate_share": self.exact_share,
            "groups": [list(group) for group in self.groups],
            "closest_pairs": [vars(pair) for pair in self.pairs],
        }


class DuplicateFinder:
    """Streaming collection of thumbnails and hashes of samples; `result` compares all pairs.

    Memory is about 3.1 kB per image, and twice that during `result`, which takes O(n^2) time in
    blocks of 1024 x 1024 pairs; a lower bound from sums over 8 x 8 boxes excludes most pairs.
    Objects can be pickled.

    Args:
        threshold: Largest root mean square difference of near copies, in [0, 255].

    Raises:
        ValueError: If the threshold is outside [0, 255].
    """

    def __init__(self, *, threshold: float = DEFAULT_THRESHOLD) -> None:
        if not 0 <= threshold <= 255:
            raise ValueError(f"threshold: expected 0..255 (8-bit pixel values), found {threshold}")
        self.threshold = float(threshold)
        self.image_shape: tuple[int, ...] | None = None
        self._seen: set[int] = set()
        self._numbers: list[Tensor] = []
        self._thumbnails: list[Tensor] = []
        self._hashes: list[bytes] = []

    def __len__(self) -> int:
        return len(self._seen)

    @torch.no_grad()
    def update(self, pixels: Tensor, numbers: Tensor) -> None:
        """Add a batch.

        Args:
            pixels: uint8, shape (B, 3, H, W), one size for all batches.
            numbers: Number of each sample, int64, shape (B,); each number only once.

        Raises:
            ValueError: If shapes or dtypes are wrong, or a number was seen before.
        """
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
            found = f"{pixels.dtype} {tuple(pixels.shape)}"
            raise ValueError(f"pixels: expected uint8 (B, 3, H, W), found {found}")
        if numbers.dtype != torch.int64 or numbers.shape != pixels.shape[:1]:
            found = f"{numbers.dtype} {tuple(numbers.shape)}"
            raise ValueError(f"numbers: expected int64 ({len(pixels)},), found {found}")
        if not len(pixels):
            return
        pixels = pixels.detach().cpu().contiguous()
        hashes = [hashlib.sha256(image.numpy().tobytes()).digest() for image in pixels]
        self._add(tuple(pixels.shape[1:]), numbers.cpu().clone(), _thumbnails(pixels), hashes)

    def merge(self, other: "DuplicateFinder") -> None:
        """Add the samples of another object.

        Raises:
            ValueError: If threshold or image size differ, or a sample is in both.
        """
        if other.threshold != self.threshold:
            raise ValueError(f"thresholds differ: {self.threshold} and {other.threshold}")
        if other.image_shape is not None:
            numbers, thumbnails = torch.cat(other._numbers), torch.cat(other._thumbnails)
            self._add(other.image_shape, numbers, thumbnails, other._hashes)

    @torch.no_grad()
    def result(self, *, num_pairs: int = 8) -> Duplicates:
        """Compare all samples with all others.

        Args:
            num_pairs: Number of closest pairs to return, >= 0; among equally close pairs those
                with the smallest sample numbers.

        Raises:
            ValueError: If there is no sample or `num_pairs` is negative.
        """
        if self.image_shape is None or num_pairs < 0:
            raise ValueError(
                f"expected at least 1 sample and num_pairs >= 0, found {len(self)} and {num_pairs}"
            )
        numbers = torch.cat(self._numbers)
        order = numbers.argsort()
        numbers, thumbnails = numbers[order], torch.cat(self._thumbnails)[order]
        hashes = [self._hashes[i] for i in order.tolist()]
        first_of: dict[bytes, int] = {}
        exact = [first_of.setdefault(digest, i) < i for i, digest in enumerate(hashes)]
        search = _Search(thumbnails, self.threshold, num_pairs)
        search.run()
        names = numbers.tolist()
        groups = [tuple(names[i] for i in group) for group in search.groups()]
        pairs = (
            DuplicatePair(
                distance=(squared / search.num_values) ** 0.5,
                first=names[i],
                second=names[j],
                mirrored=mirrored,
            )
            for squared, i, j, mirrored in search.closest
        )
        return Duplicates(
            threshold=self.threshold,
            numbers=numbers,
            has_twin=search.has_twin,
            has_exact_twin=torch.tensor(exact),
            groups=tuple(sorted(groups, key=lambda group: (-len(group), group))),
            pairs=tuple(pairs),
        )

    def _add(
        self, shape: tuple[int, ...], numbers: Tensor, thumbnails: Tensor, hashes: list[bytes]
    ) -> None:
        """Add values whose shapes and types were checked."""
        if self.image_shape not in (None, shape):
            raise ValueError(f"pixels: expected images of shape {self.image_shape}, found {shape}")
        new = set(numbers.tolist())
        repeated = sorted(new & self._seen)
        if repeated or len(new) < len(numbers):
            which = f", e.g. {repeated[0]}" if repeated else ""
            raise ValueError(f"numbers: a sample is here more than once{which}")
        self.image_shape = shape
        self._seen |= new
        self._numbers.append(numbers)
        self._thumbnails.append(thumbnails)
        self._hashes += hashes


class _Search:
    """Comparison of all pairs i < j of sorted thumbnails, block by block.

    Only near copies and the closest pairs are kept.
    """

    def __init__(self, thumbnails: Tensor, threshold: float, num_pairs: int) -> None:
        self.thumbnails = thumbnails
        self.num_values = thumbnails[0].numel()
        self.limit = threshold**2 * self.num_values  # limit of summed squared differences
        self.num_pairs = num_pairs
        self.has_twin = torch.zeros(len(thumbnails), dtype=torch.bool)
        self.closest: list[tuple[float, int, int, bool]] = []
        self._components = torch.arange(len(thumbnails))
        parts = torch.split(thumbnails, _BLOCK)
        self._coarse = torch.cat([_coarse(part) for part in parts])
        self._coarse_mirrored = torch.cat([_coarse(part.flip(3)) for part in parts])

    def run(self) -> None:
        """Compare all pairs."""
        starts = range(0, len(self.thumbnails), _BLOCK)
        for start in starts:
            for first in starts[start // _BLOCK :]:
                self._block(slice(start, start + _BLOCK), slice(first, first + _BLOCK))

    def groups(self) -> Iterator[list[int]]:
        """Row numbers of the samples of each connected component of at least two."""
        members: dict[int, list[int]] = {}
        for place, component in enumerate(self._components.tolist()):
            members.setdefault(component, []).append(place)
        return (group for group in members.values() if len(group) > 1)

    def _block(self, rows: slice, columns: slice) -> None:
        """Compare one block of pairs: exclude pairs by the lower bound, then measure the rest."""
        bound = self.limit
        if len(self.closest) < self.num_pairs:
            bound = torch.inf
        elif self.closest:
            bound = max(bound, self.closest[-1][0])
        coarse = self._coarse[columns]
        passed = _squared_distances(self._coarse[rows], coarse) <= bound + _SLACK
        passed |= _squared_distances(self._coarse_mirrored[rows], coarse) <= bound + _SLACK
        if rows == columns:
            passed = passed.triu(diagonal=1)
        places = passed.any(1).nonzero()[:, 0] + rows.start
        others = passed.any(0).nonzero()[:, 0] + columns.start
        if not len(places):
            return
        left, right = self.thumbnails[places], self.thumbnails[others].flatten(1).double()
        plain_squared = _squared_distances(left.flatten(1).double(), right)
        mirror_squared = _squared_distances(left.flip(3).flatten(1).double(), right)
        squared = torch.minimum(plain_squared, mirror_squared)
        squared.masked_fill_(places[:, None] >= others, torch.inf)
        near = squared <= self.limit
        self.has_twin[others] |= near.any(0)
        self._link(places, others, near)
        self._note_closest(places, others, squared, mirror_squared < plain_squared)

    def _note_closest(
        self, places: Tensor, others: Tensor, squared: Tensor, mirrored: Tensor
    ) -> None:
        """Keep the `num_pairs` closest pairs among those known and those of a block."""
        count = min(self.num_pairs, squared.numel())
        if not count:
            return
        last = squared.flatten().topk(count, largest=False).values.max()
        if len(self.closest) == self.num_pairs and float(last) > self.closest[-1][0]:
            last = torch.tensor(self.closest[-1][0], dtype=torch.float64)
        if torch.isinf(last):
            last = squared[~squared.isinf()].max() if bool((~squared.isinf()).any()) else last
        below = (squared < last).nonzero()
        equal = (squared == last).nonzero()[: self.num_pairs]  # row-major: smallest numbers first
        for row, column in torch.cat([below, equal]).tolist():
            if not torch.isinf(squared[row, column]):
                pair = (int(places[row]), int(others[column]))
                entry = (float(squared[row, column]), *pair, bool(mirrored[row, column]))
                self.closest.append(entry)
        self.closest = sorted(self.closest)[: self.num_pairs]

    def _link(self, places: Tensor, others: Tensor, near: Tensor) -> None:
        """Join the components of all near pairs; a component has the number of its first row."""
        count = len(self._components)
        of_rows, of_columns = self._components[places], self._components[others]
        apart = near & (of_rows[:, None] != of_columns)
        codes = torch.unique((of_rows[:, None] * count + of_columns)[apart])  # one number a pair
        parents: dict[int, int] = {}

        def root(component: int) -> int:
            while (parent := parents.get(component, component)) != component:
                parents[component] = parents.get(parent, parent)
                component = parent
            return component

        for code in codes.tolist():
            low, high = sorted((root(code // count), root(code % count)))
            parents[high] = low
        if parents:
            renamed = torch.arange(count)
            for component in parents:
                renamed[component] = root(component)
            self._components = renamed[self._components]


def _thumbnails(pixels: Tensor) -> Tensor:
    """Box averages of at most 32 x 32 pixels, rounded to uint8; smaller sides are kept."""
    height, width = (min(side, THUMBNAIL_SIDE) for side in pixels.shape[2:])
    if (height, width) == tuple(pixels.shape[2:]):
        return pixels.clone()
    # Sums of integers in float64 are exact: the thumbnail of a mirror image is the mirror image.
    return F.adaptive_avg_pool2d(pixels.double(), (height, width)).round().to(torch.uint8)


def _coarse(thumbnails: Tensor) -> Tensor:
    """Sums over disjoint boxes divided by the root of their sizes, float64, shape (B, boxes).

    Their squared distance is at most that of the thumbnails (Cauchy-Schwarz, box by box).
    """
    boxes = [
        box.double().sum((2, 3)) / (box.shape[2] * box.shape[3]) ** 0.5
        for band in thumbnails.tensor_split(min(_COARSE_SIDE, thumbnails.shape[2]), 2)
        for box in band.tensor_split(min(_COARSE_SIDE, thumbnails.shape[3]), 3)
    ]
    return torch.cat(boxes, 1)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances of all pairs of rows, (len(a), len(b)); exact if the rows are integers."""
    squares_a, squares_b = a.square().sum(1, keepdim=True), b.square().sum(1)
    return (a @ b.T).mul_(-2).add_(squares_a).add_(squares_b)
