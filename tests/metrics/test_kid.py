"""Kernel distance against loops, torchmetrics and a closed form."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from tessella.metrics.kid import KernelDistance, kernel_distance, kernel_distance_full


def vectors(count: int, size: int, seed: int, shift: float = 0.0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=rng, dtype=torch.float64) + shift


def by_loops(samples: Tensor, reference: Tensor) -> float:
    """The U-statistic, pair by pair."""

    def kernel(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / len(x) + 1) ** 3

    def within(rows: Tensor) -> float:
        n = len(rows)
        pairs = ((i, j) for i in range(n) for j in range(n) if i != j)
        return sum(kernel(rows[i], rows[j]) for i, j in pairs) / (n * (n - 1))

    across = sum(kernel(x, y) for x in samples for y in reference)
    return within(samples) + within(reference) - 2 * across / (len(samples) * len(reference))


@pytest.mark.parametrize("block", [1, 4, 100])
def test_full_estimate_equals_loops(block: int) -> None:
    samples, reference = vectors(9, 4, seed=1), vectors(7, 4, seed=2, shift=0.3)
    found = kernel_distance_full(samples, reference, block=block)
    assert found == pytest.approx(by_loops(samples, reference), rel=1e-12)
    assert kernel_distance_full(reference, samples, block=block) == pytest.approx(found, rel=1e-12)


def test_closed_form_of_one_dimension() -> None:
    """Constants a and b: k(a, a) + k(b, b) - 2 k(a, b)."""
    found = kernel_distance_full(torch.full((3, 1), 2.0), torch.full((5, 1), -1.0))
    assert found == pytest.approx(5**3 + 2**3 - 2 * (-1) ** 3, rel=1e-15)


def test_equals_torchmetrics() -> None:
    reference, samples = vectors(60, 16, seed=3).float(), vectors(50, 16, seed=4, shift=0.2).float()

    class Given(nn.Module):
        num_features = 16

        def forward(self, features: Tensor) -> Tensor:
            return features

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it keeps all features in memory and says so
        metric = KernelInceptionDistance(feature=Given(), subsets=20, subset_size=30)
    metric.set_dtype(torch.float64)
    metric.update(reference.double(), real=True)
    metric.update(samples.double(), real=False)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        mean, std = metric.compute()
    rng = torch.Generator().manual_seed(7)
    found = kernel_distance(samples, reference, subsets=20, subset_size=30, rng=rng)
    assert isinstance(found, KernelDistance)
    assert found.mean == pytest.approx(float(mean), rel=1e-6)
    assert found.std == pytest.approx(float(std), rel=1e-6)
    other = torch.Generator().manual_seed(8)
    changed = kernel_distance(samples, reference, subsets=20, subset_size=30, rng=other)
    assert changed.mean != found.mean


def test_whole_sets_as_subsets_equal_the_full_estimate() -> None:
    samples, reference = vectors(20, 8, seed=5), vectors(20, 8, seed=6)
    rng = torch.Generator().manual_seed(0)
    found = kernel_distance(samples, reference, subsets=3, subset_size=20, rng=rng)
    assert found.mean == pytest.approx(kernel_distance_full(samples, reference), rel=1e-12)
    assert found.std == pytest.approx(0, abs=1e-12)


def test_unbiased() -> None:
    """200 pairs of sets of 20 from one normal distribution: mean 0 within 4 standard errors."""
    rng = torch.Generator().manual_seed(0)
    values = torch.tensor(
        [
            kernel_distance_full(*torch.randn(2, 20, 8, generator=rng, dtype=torch.float64))
            for _ in range(200)
        ]
    )
    assert abs(float(values.mean())) < 4 * float(values.std()) / 200**0.5
    assert (values < 0).any()
    assert kernel_distance_full(vectors(50, 8, seed=1), vectors(50, 8, seed=2, shift=1.0)) > 1


def test_order_of_rows_does_not_matter_to_the_full_estimate() -> None:
    samples, reference = vectors(40, 8, seed=7), vectors(30, 8, seed=8)
    found = kernel_distance_full(samples, reference, block=16)
    flipped = kernel_distance_full(samples.flip(0), reference.flip(0), block=16)
    assert flipped == pytest.approx(found, rel=1e-12)


def test_wrong_use_is_refused() -> None:
    rng = torch.Generator().manual_seed(0)
    samples, reference = vectors(12, 4, seed=1), vectors(9, 4, seed=2)
    with pytest.raises(ValueError, match="10 is more than there are: 12 samples and 9 reference"):
        kernel_distance(samples, reference, subset_size=10, rng=rng)
    with pytest.raises(ValueError, match="subsets=0"):
        kernel_distance(samples, reference, subsets=0, subset_size=5, rng=rng)
    with pytest.raises(ValueError, match=r"found \(12, 4\) and \(9, 3\)"):
        kernel_distance_full(samples, reference[:, :3])
    with pytest.raises(ValueError, match="at least 2 vectors on each side, found 12 and 1"):
        kernel_distance_full(samples, reference[:1])
    reference[3, 1] = torch.nan
    with pytest.raises(ValueError, match="reference: 1 of 9 vectors are not finite"):
        kernel_distance_full(samples, reference)
