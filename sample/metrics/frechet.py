"""Frechet distance between feature sets, from streaming float64 statistics.

The word FID is reserved for the genuine Inception network with its own resize rule; with any other
network the number is an `FD@name`. At a few thousand images the value is dominated by its bias:
compare at one fixed number of images only.
"""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .extractor import FeatureExtractor

_FID_EXTRACTOR = "inception_fid"


class FrechetStatistics:
    """Mean and centred scatter matrix of a stream of feature vectors.

    Batches are folded in by the pairwise update of means and scatters (Chan, Golub and LeVeque,
    1979), which never subtracts large numbers: order and batch sizes do not matter to about 1e-12.

    Args:
        num_features: D, length of the vectors.
        extractor_id: Which network and weights the features come from, e.g. `efflite0#57934424`.
            Statistics of different ids are neither merged nor compared; "" matches only "".
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
            ValueError: If the shape is wrong or a value is not finite.
        """
        if features.ndim != 2 or features.shape[1] != self.num_features:
            expected = f"(B, {self.num_features})"
            raise ValueError(f"features: expected {expected}, found {tuple(features.shape)}")
        features = features.detach().cpu().double()
        if not bool(torch.isfinite(features).all()):
            bad = int((~torch.isfinite(features)).any(1).sum())
            raise ValueError(f"features: {bad} of {len(features)} vectors are not finite")
        if not len(features):
            return
        mean = features.mean(0)
        centred = features - mean
        self._fold(len(features), mean, centred.T @ centred)

    def merge(self, other: "FrechetStatistics") -> None:
        """Add what another object saw.

        Raises:
            ValueError: If the other one is of another size or network.
        """
        _check_same(self, other)
        if other.count:
            self._fold(other.count, other.mean, other.scatter)

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance, float64, shape (D, D); needs two vectors.

        Raises:
            ValueError: If fewer than two vectors were seen.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 vectors, found {self.count}")
        return self.scatter / (self.count - 1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write count, mean and scatter to a safetensors file."""
        tensors = {"count": torch.tensor(self.count), "mean": self.mean, "scatter": self.scatter}
        save_file(tensors, Path(path), metadata={"extractor_id": self.extractor_id})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "FrechetStatistics":
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is damaged or holds something else.
        """
        try:
            with safe_open(Path(path), framework="pt") as file:
                extractor_id = (file.metadata() or {}).get("extractor_id", "")
                count, mean, scatter = (file.get_tensor(k) for k in ("count", "mean", "scatter"))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: not readable Frechet statistics ({error})") from error
        if mean.ndim != 1 or scatter.shape != (len(mean), len(mean)):
            found = f"{tuple(mean.shape)} and {tuple(scatter.shape)}"
            raise ValueError(f"{path}: mean and scatter do not fit: {found}")
        statistics = cls(len(mean), extractor_id=extractor_id)
        statistics.count, statistics.mean, statistics.scatter = int(count), mean, scatter
        return statistics

    def _fold(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        shift = mean - self.mean
        self.scatter = self.scatter + scatter
        self.scatter += torch.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total


def frechet_distance(a: FrechetStatistics, b: FrechetStatistics) -> float:
    """Squared Frechet (2-Wasserstein) distance of the Gaussians fitted to two feature sets.

    |mean_a - mean_b|^2 + tr A + tr B - 2 tr (A^1/2 B A^1/2)^1/2. With A = L L^T and B = M M^T from
    symmetric eigendecompositions (negative eigenvalues, which are rounding, become 0), the last
    trace is the sum of the singular values of L^T M. Unlike a square root of the product it needs
    no inverse, keeps full precision for fewer samples than dimensions, and is never complex.

    Args:
        a: At least two vectors.
        b: At least two vectors, of the same network.

    Returns:
        A number >= 0 in squared feature units.

    Raises:
        ValueError: If the two do not fit, have fewer than two vectors, or are not finite.

    Source: arXiv:1706.08500, equation 6.
    """
    _check_same(a, b)
    covariance_a, covariance_b = a.covariance, b.covariance
    for statistics in (a, b):
        if not bool(torch.isfinite(statistics.scatter).all() & statistics.mean.isfinite().all()):
            raise ValueError("statistics hold NaN or infinite values")
    cross = torch.linalg.svdvals(_factor(covariance_a).T @ _factor(covariance_b)).sum()
    shift = (a.mean - b.mean).square().sum()
    distance = shift + covariance_a.trace() + covariance_b.trace() - 2 * cross
    return max(0.0, float(distance))


def metric_name(extractor: FeatureExtractor | str) -> str:
    """What a Frechet distance on these features may be called: `FID`, or `FD@efflite0`."""
    name = extractor if isinstance(extractor, str) else extractor.name
    return "FID" if name == _FID_EXTRACTOR else f"FD@{name}"


def require_fid(extractor: FeatureExtractor | str) -> None:
    """Refuse to let a number be called FID unless it is one.

    Raises:
        ValueError: If the extractor is not the FID Inception network; says the right name.
    """
    if metric_name(extractor) != "FID":
        raise ValueError(
            f"this is not FID: FID means the {_FID_EXTRACTOR!r} network; "
            f"report it as {metric_name(extractor)!r}"
        )


def _factor(covariance: Tensor) -> Tensor:
    """L with L L^T = covariance, shape (D, rank)."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1].clamp_min(0) * len(values) * torch.finfo(torch.float64).eps
    return vectors[:, kept] * values[kept].sqrt()


def _check_same(a: FrechetStatistics, b: FrechetStatistics) -> None:
    if a.num_features != b.num_features:
        raise ValueError(f"feature sizes differ: {a.num_features} and {b.num_features}")
    if a.extractor_id != b.extractor_id:
        raise ValueError(
            f"statistics of different networks: {a.extractor_id!r} and {b.extractor_id!r}"
        )
