"""Precision, recall, density and coverage of samples, from nearest neighbours of features.

Precision and density measure how many samples lie in the manifold of the real images; recall and
coverage measure how much of that manifold the samples cover. Features are rounded to integers of
about 20 bits at D = 2048, so that float64 computes every squared distance exactly: equal vectors
have distance 0, ties are exact, and the order of rows does not matter. That rounding is small
compared with the precision of float32 features.

Source: arXiv:1904.06991 (improved precision and recall), arXiv:2002.09797 (density and coverage).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_pair

_EXACT_BITS = 51  # sums of squares stay below 2^51, squared distances below 2^53


@dataclass(frozen=True, kw_only=True, eq=False)
class ManifoldResult:
    """Precision, recall, density and coverage of two feature sets, with the values of each vector.

    Attributes:
        precision: Share of samples within the neighbourhood of a reference vector, in [0, 1].
        recall: Share of reference vectors within the neighbourhood of a sample, in [0, 1].
        density: Mean over samples of the number of neighbourhoods that hold it, over k; >= 0, about
            1 for equal distributions.
        coverage: Share of reference vectors whose neighbourhood holds a sample, in [0, 1].
        in_manifold: Whether each sample counts for precision, bool; `precision` is the mean.
        sample_density: Density of each sample, float64; `density` is the mean.
        recalled: Whether each reference vector counts for recall, bool; `recall` is the mean.
        covered: Whether each reference vector is covered, bool; `coverage` is the mean.
        nearest_reference: Row of the reference vector nearest to each sample, int64; the first one
            of several at equal distance.
        nearest_distance: Euclidean distance of each sample to that vector, float64.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    in_manifold: Tensor
    sample_density: Tensor
    recalled: Tensor
    covered: Tensor
    nearest_reference: Tensor
    nearest_distance: Tensor


@torch.no_grad()
def manifold_metrics(
    samples: Tensor,
    reference: Tensor,
    *,
    pr_neighbors: int = 3,
    dc_neighbors: int = 5,
    block: int = 4096,
) -> ManifoldResult:
    """Precision and recall (k = 3), density and coverage (k = 5) of two feature sets.

    The neighbourhood of a vector is the ball with the distance to its k-th neighbour in its own
    set, not counting itself, as radius. As in the authors' code the ball is closed for precision
    and recall and open for density and coverage, which matters for copies only. Time is
    O((n + m)^2 D), memory O((n + m) D + block^2); computed on the device of the features, in
    float64.

    Args:
        samples: Features, shape (n, D), any float dtype.
        reference: Features of the real images, shape (m, D).
        pr_neighbors: Number k of neighbours for precision and recall.
        dc_neighbors: Number k of neighbours for density and coverage.
        block: Number of vectors compared at once on either side; 128 MiB per matrix at 4096.

    Returns:
        The metrics, with all tensors on the CPU.

    Raises:
        ValueError: If shapes or dtypes do not fit, values are not finite, or a set is not larger
            than k.
    """
    _check(samples, reference, pr_neighbors, dc_neighbors)
    samples, reference, scale = _whole_numbers(samples, reference)
    deepest = max(pr_neighbors, dc_neighbors)
    own = _neighbor_distances(reference, deepest, block)  # (m, k), rising
    pr_radii, dc_radii = own[:, pr_neighbors - 1], own[:, dc_neighbors - 1]
    sample_radii = _neighbor_distances(samples, pr_neighbors, block)[:, -1]

    n, m = len(samples), len(reference)
    place = samples.device
    in_manifold, recalled, covered = (
        torch.zeros(size, dtype=torch.bool, device=place) for size in (n, m, m)
    )
    balls, nearest = (torch.zeros(n, dtype=torch.int64, device=place) for _ in range(2))
    distance = torch.full((n,), torch.inf, dtype=torch.float64, device=place)
    for start in range(0, n, block):
        rows = slice(start, start + block)
        for first in range(0, m, block):
            columns = slice(first, first + block)
            squared = _squared_distances(samples[rows], reference[columns])
            in_manifold[rows] |= (squared <= pr_radii[columns]).any(1)
            recalled[columns] |= (squared <= sample_radii[rows, None]).any(0)
            inside = squared < dc_radii[columns]
            balls[rows] += inside.sum(1)
            covered[columns] |= inside.any(0)
            values, places = squared.min(1)
            nearer = values < distance[rows]  # not <=: of equal distances the first block's is kept
            distance[rows] = torch.where(nearer, values, distance[rows])
            nearest[rows] = torch.where(nearer, places + first, nearest[rows])
    in_manifold, recalled, covered = in_manifold.cpu(), recalled.cpu(), covered.cpu()
    balls, nearest, distance = balls.cpu(), nearest.cpu(), distance.cpu()
    density = balls.double() / dc_neighbors
    return ManifoldResult(
        precision=float(in_manifold.double().mean()),
        recall=float(recalled.double().mean()),
        density=float(balls.sum()) / (dc_neighbors * n),
        coverage=float(covered.double().mean()),
        in_manifold=in_manifold,
        sample_density=density,
        recalled=recalled,
        covered=covered,
        nearest_reference=nearest,
        nearest_distance=distance.sqrt() / scale,
    )


def _whole_numbers(samples: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, float]:
    """Shift both sets and round them to int32 after multiplication by a power of 2.

    Sums of D squares stay below 2^51. The shift is the middle of each feature's range, which does
    not depend on the order of rows.

    Returns:
        Samples and reference as int32, and the factor.
    """
    both = (samples, reference.to(samples.device))
    low = torch.minimum(*(vectors.amin(0) for vectors in both)).double()
    high = torch.maximum(*(vectors.amax(0) for vectors in both)).double()
    middle = (low + high) / 2
    largest = float((high - low).max()) / 2
    bits = min(30, (_EXACT_BITS - math.ceil(math.log2(len(middle)))) // 2)
    scale = 2.0 ** (bits - math.frexp(largest)[1])  # largest < 2^exponent
    numbers = [
        torch.cat(
            [
                ((part.double() - middle) * scale).round().int()
                for part in torch.split(vectors, 4096)
            ]
        )
        for vectors in both
    ]
    return numbers[0], numbers[1], scale


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances of all pairs of integer rows, exact in float64, (len(a), len(b))."""
    a, b = a.double(), b.double()
    products = a @ b.T
    squares_a, squares_b = a.square().sum(1, keepdim=True), b.square().sum(1)
    return products.mul_(-2).add_(squares_a).add_(squares_b)


def _neighbor_distances(vectors: Tensor, count: int, block: int) -> Tensor:
    """Squared distances to the `count` nearest other vectors of the set, rising, (n, count)."""
    found = []
    for start in range(0, len(vectors), block):
        rows = vectors[start : start + block]
        nearest = torch.full((len(rows), count), torch.inf, dtype=torch.float64, device=rows.device)
        for first in range(0, len(vectors), block):
            squared = _squared_distances(rows, vectors[first : first + block])
            if first == start:
                squared.fill_diagonal_(
                    torch.inf
                )  # excludes the vector itself, not vectors equal to it
            candidates = torch.cat([nearest, squared], 1)
            nearest = candidates.topk(count, 1, largest=False).values
        found.append(nearest)
    return torch.cat(found)


def _check(samples: Tensor, reference: Tensor, pr_neighbors: int, dc_neighbors: int) -> None:
    """Refuse features of wrong shapes or values, and sets that are not larger than k."""
    check_pair(samples, reference)
    if min(pr_neighbors, dc_neighbors) < 1:
        raise ValueError(
            f"pr_neighbors, dc_neighbors: expected >= 1, found {pr_neighbors} and {dc_neighbors}"
        )
    for name, vectors, k in (
        ("samples", samples, pr_neighbors),
        ("reference", reference, max(pr_neighbors, dc_neighbors)),
    ):
        if len(vectors) <= k:
            raise ValueError(
                f"{name}: {k} neighbours need more than {k} vectors, found {len(vectors)}"
            )
