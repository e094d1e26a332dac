"""Frechet distance between feature sets, from streaming float64 statistics.

The name FID is reserved for the genuine Inception network with its own resize rule, and sFID for
its spatial map; the distance on any other network is called `FD@name`. At a few thousand images the
value is dominated by its bias: compare values of one fixed number of images only.
"""

import math

import torch
from torch import Tensor

from .checks import check_vectors
from .networks.extractor import FeatureExtractor

_FID_EXTRACTOR = "inception_fid"


class FrechetStatistics:
    """Mean and centred scatter matrix of a stream of feature vectors.

    Batches are folded in by the pairwise update of means and scatters (Chan, Golub and LeVeque,
    1979), which never subtracts large numbers: order and batch sizes change the result by at most
    about 1e-12. Memory is D^2 float64 numbers, 34 MB at D = 2048. Objects can be pickled, so that
    processes send them to one another and `merge` them in the order of their ranks.

    Args:
        num_features: Length D of the vectors.
        extractor_id: Network and weights that the features come from, e.g. `efflite0#57934424`.
            Statistics of different ids can be neither merged nor compared; "" matches only "".
    """

    def __init__(self, num_features: int, *, extractor_id: str = "") -> None:
        if num_features < 1:
            raise ValueError(f"num_features: expected >= 1, found {num_features}")
        self.num_features = num_features
        self.extractor_id = extractor_id
        self.count = 0
        self.mean = torch.zeros(num_features, dtype=torch.float64)
        self.scatter = torch.zeros(num_features, num_features, dtype=torch.float64)

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Add a batch.

        Args:
            features: Shape (B, D), any float dtype, any device; summed in float64 on the CPU.

        Raises:
            ValueError: If shape or dtype are wrong, or a value is not finite.
        """
        check_vectors(features, "features", self.num_features)
        features = features.detach().cpu().double()
        if not len(features):
            return
        mean = features.mean(0)
        centred = features - mean
        shift = self._move(len(features), mean)
        rows = torch.cat([centred, shift[None]])  # (B + 1, D): one pass over the scatter
        self.scatter.addmm_(rows.T, rows)

    def merge(self, other: "FrechetStatistics") -> None:
        """Add the vectors of another object.

        Raises:
            ValueError: If the other object has another vector size or network.
        """
        _check_same(self, other)
        if other.count:
            shift = self._move(other.count, other.mean)
            self.scatter = self.scatter + other.scatter
            self.scatter.addr_(shift, shift)

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance, float64, shape (D, D).

        Raises:
            ValueError: If fewer than two vectors were seen.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 vectors, found {self.count}")
        return self.scatter / (self.count - 1)

    def _move(self, count: int, mean: Tensor) -> Tensor:
        """Add `count` vectors of mean `mean` to count and mean, but not to the scatter.

        Returns:
            The vector v, shape (D,), whose v v^T must be added to the scatter: the shift of the
            means times the root of count_1 count_2 / (count_1 + count_2).
        """
        total = self.count + count
        shift = mean - self.mean
        weight = math.sqrt(self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total
        return shift * weight


def frechet_distance(a: FrechetStatistics, b: FrechetStatistics) -> float:
    """Squared Frechet (2-Wasserstein) distance of the Gaussians fitted to two feature sets.

    |mean_a - mean_b|^2 + tr A + tr B - 2 tr (A^1/2 B A^1/2)^1/2. With A = L L^T and B = M M^T the
    last trace is the sum of the singular values of L^T M for any choice of factors. Unlike a square
    root of the product this needs no inverse, is never complex, and keeps full precision for fewer
    samples than dimensions: L has no more columns than the largest possible rank.
    `benchmarks/frechet.py` compares time and error with those of the eigenvalues of the product.

    Args:
        a: Statistics of at least two vectors.
        b: Statistics of at least two vectors of the same network.

    Returns:
        The distance, >= 0, in squared feature units.

    Raises:
        ValueError: If the vector sizes or networks differ, there are fewer than two vectors, or the
            statistics are not finite.

    Source: arXiv:1706.08500, equation 6.
    """
    _check_same(a, b)
    covariance_a, covariance_b = a.covariance, b.covariance
    for statistics in (a, b):
        if not bool(torch.isfinite(statistics.scatter).all() & statistics.mean.isfinite().all()):
            raise ValueError("statistics hold NaN or infinite values")
    factor_a, factor_b = _factor(covariance_a, a.count - 1), _factor(covariance_b, b.count - 1)
    cross = torch.linalg.svdvals(factor_a.T @ factor_b).sum()
    shift = (a.mean - b.mean).square().sum()
    distance = shift + covariance_a.trace() + covariance_b.trace() - 2 * cross
    return max(0.0, float(distance))


def metric_name(extractor: FeatureExtractor | str) -> str:
    """Name of the Frechet distance on these features: `FID`, or for example `FD@efflite0`."""
    name = extractor if isinstance(extractor, str) else extractor.name
    return "FID" if name == _FID_EXTRACTOR else f"FD@{name}"


def _factor(covariance: Tensor, max_rank: int) -> Tensor:
    """Factor L with L L^T = covariance, shape (D, rank), rank <= max_rank.

    The cheapest exact method is taken: pivoted Cholesky for few samples, plain Cholesky for a
    matrix of full rank, otherwise a symmetric eigendecomposition.
    """
    size = len(covariance)
    negligible = (
        size * torch.finfo(torch.float64).eps
    )  # relative to the largest diagonal element or eigenvalue
    if 2 * max_rank <= size:
        return _pivoted_cholesky(covariance, max_rank, negligible)
    if max_rank >= size:
        factor, failed = torch.linalg.cholesky_ex(covariance)
        pivots = factor.diagonal().square()
        if not int(failed) and float(pivots.min()) > negligible * float(pivots.max()):
            full: Tensor = factor
            return full
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1].clamp_min(0) * negligible  # negative values are rounding errors
    kept[: max(0, size - max_rank)] = False
    low_rank: Tensor = vectors[:, kept] * values[kept].sqrt()
    return low_rank


def _pivoted_cholesky(matrix: Tensor, max_rank: int, negligible: float) -> Tensor:
    """Factor L with L L^T = matrix, shape (D, rank), pivoting on the largest remaining diagonal."""
    remaining = matrix.diagonal().clone()
    smallest = float(remaining.max()) * negligible
    rows = matrix.new_zeros(max_rank, len(matrix))  # L^T
    for k in range(max_rank):
        pivot = int(remaining.argmax())
        if float(remaining[pivot]) <= smallest:
            return rows[:k].T
        row = (matrix[pivot] - rows[:k, pivot] @ rows[:k]) / remaining[pivot].sqrt()
        rows[k] = row
        remaining -= row.square()
        remaining[pivot] = 0
    return rows.T


def _check_same(a: FrechetStatistics, b: FrechetStatistics) -> None:
    """Refuse statistics of different vector sizes or networks."""
    if a.num_features != b.num_features:
        raise ValueError(f"feature sizes differ: {a.num_features} and {b.num_features}")
    if a.extractor_id != b.extractor_id:
        raise ValueError(
            f"statistics of different networks: {a.extractor_id!r} and {b.extractor_id!r}"
        )
