"""Frechet distance against closed forms and other formulas for the same trace."""

import pickle

import pytest
import torch
from torch import Tensor
from torchmetrics.image.fid import _compute_fid

from tessella.metrics.frechet import FrechetStatistics, frechet_distance, metric_name
from tessella.metrics.networks.build import build_features


def features(count: int, size: int, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=rng, dtype=torch.float64) / size**0.5
    draw = torch.randn(count, size, generator=rng, dtype=torch.float64)
    return draw @ mixing + 0.3 * seed


def statistics(values: Tensor) -> FrechetStatistics:
    result = FrechetStatistics(values.shape[1])
    result.update(values)
    return result


def by_eigvals(a: Tensor, b: Tensor) -> float:
    """Trace of the square root of the plain product: general, complex eigenvalues."""
    cov_a, cov_b = a.T.cov(), b.T.cov()
    cross = torch.linalg.eigvals(cov_a @ cov_b).sqrt().real.sum()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return float(shift + cov_a.trace() + cov_b.trace() - 2 * cross)


def by_eigh(a: Tensor, b: Tensor) -> float:
    """Trace of the square root of A^1/2 B A^1/2, symmetric throughout."""
    cov_a, cov_b = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return float(shift + cov_a.trace() + cov_b.trace() - 2 * cross)


def network_like(count: int, size: int, seed: int, shift: float = 0.0) -> Tensor:
    """Rectified, correlated vectors whose variances fall over three orders, as networks give."""
    mixing = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    mixing *= torch.arange(1, size + 1)[:, None] ** -0.7
    draw = torch.randn(count, size, generator=torch.Generator().manual_seed(seed))
    return (draw @ mixing + 0.4 + shift).clamp_min(0).double()


def by_torchmetrics(a: Tensor, b: Tensor) -> float:
    return float(_compute_fid(a.mean(0), a.T.cov(), b.mean(0), b.T.cov()))


def truth(a: Tensor, b: Tensor) -> float:
    """From the vectors themselves: tr (A^1/2 B A^1/2)^1/2 = |X Y^T|_* / sqrt((n - 1)(m - 1)).

    X and Y are the centred vectors; no covariance is formed, so nothing is squared.
    """
    x, y = a - a.mean(0), b - b.mean(0)
    n, m = len(a) - 1, len(b) - 1
    cross = torch.linalg.svdvals(x @ y.T).sum() / (n * m) ** 0.5
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return float(shift + x.square().sum() / n + y.square().sum() / m - 2 * cross)


@pytest.mark.parametrize("count", [40, 100, 127, 129, 600])
def test_equals_the_truth_of_any_number_of_samples(count: int) -> None:
    """Every factorisation: far fewer samples than dimensions, somewhat fewer, and more."""
    a, b = network_like(count, 128, seed=1), network_like(count + 20, 128, seed=2, shift=0.1)
    for first, second in ((a, b), (b, a)):
        found = frechet_distance(statistics(first), statistics(second))
        assert found == pytest.approx(truth(a, b), rel=1e-9)


def test_equals_torchmetrics_for_more_samples_than_dimensions() -> None:
    a, b = network_like(900, 128, seed=1), network_like(1000, 128, seed=2, shift=0.1)
    found = frechet_distance(statistics(a), statistics(b))
    assert found == pytest.approx(by_torchmetrics(a, b), rel=1e-6)


def test_fewer_samples_than_dimensions() -> None:
    """Eigenvalues of the product are rounding noise in its null space; their roots are not small.

    The square root of the product is worse: it is singular, and what SciPy returns is complex.
    """
    from scipy.linalg import sqrtm

    a, b = network_like(100, 256, seed=1), network_like(100, 256, seed=2)
    exact = truth(a, b)
    found = frechet_distance(statistics(a), statistics(b))
    other = by_torchmetrics(a, b)
    assert abs(found - exact) < 1e-9 * exact
    assert 1e-8 * exact < abs(other - exact) < 1e-3 * exact
    root = sqrtm((a.T.cov() @ b.T.cov()).numpy())
    by_root = float((a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace())
    by_root -= 2 * root.trace().real
    assert abs(by_root - exact) > 100 * abs(found - exact)


@pytest.mark.parametrize("count", [300, 2000])
def test_self_distance_at_the_scale_of_a_network(count: int) -> None:
    own = statistics(network_like(count, 512, seed=3))
    assert 0 <= frechet_distance(own, own) < 1e-6


def test_features_that_never_change() -> None:
    """Dead channels and repeated ones make the covariance singular whatever the count is."""
    a, b = network_like(300, 64, seed=1), network_like(300, 64, seed=2)
    for values in (a, b):
        values[:, 5] = 0
        values[:, 6] = values[:, 7]
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(truth(a, b), rel=1e-8)
    repeated = statistics(a[:10].repeat(30, 1))
    assert frechet_distance(repeated, repeated) < 1e-6


def test_pickled_parts_merge_to_the_whole() -> None:
    values = network_like(700, 32, seed=4)
    whole = statistics(values)
    merged = FrechetStatistics(32)
    for part in (values[::3], values[1::3], values[2::3]):
        merged.merge(pickle.loads(pickle.dumps(statistics(part))))
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(merged.covariance, whole.covariance, rtol=1e-12, atol=1e-14)
    other = statistics(network_like(500, 32, seed=5))
    expected = frechet_distance(whole, other)
    assert frechet_distance(merged, other) == pytest.approx(expected, rel=1e-10)
    doubled = statistics(values)
    doubled.merge(doubled)
    torch.testing.assert_close(doubled.scatter, 2 * whole.scatter)
    assert doubled.count == 1400


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("factor", [0.5, 4.0])
def test_equals_other_forms(size: int, factor: float) -> None:
    count = int(size * factor)
    a, b = features(count, size, seed=1), features(count + 3, size, seed=2)
    value = frechet_distance(statistics(a), statistics(b))
    assert value == pytest.approx(by_eigvals(a, b), rel=1e-5)
    assert value == pytest.approx(by_eigh(a, b), rel=1e-5)


def test_closed_form_of_commuting_gaussians() -> None:
    """Diagonal covariances: sum of (difference of means)^2 + (difference of deviations)^2."""
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    unit = signs * (3 / 4) ** 0.5  # exact unbiased covariance = identity
    a = unit * torch.tensor([2.0, 0.5]) + torch.tensor([1.0, -1.0])
    b = unit * torch.tensor([1.0, 3.0]) + torch.tensor([0.0, 1.0])
    expected = 1 + 4 + (2 - 1) ** 2 + (0.5 - 3) ** 2
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [20, 400])
def test_self_distance_is_zero(count: int) -> None:
    own = statistics(features(count, 64, seed=3))
    assert 0 <= frechet_distance(own, own) < 1e-6


def test_constant_features_have_zero_distance() -> None:
    own = statistics(torch.ones(5, 4))
    assert frechet_distance(own, own) == 0.0


def test_order_and_batch_size_do_not_matter() -> None:
    values = features(50, 16, seed=4) + 1000.0  # a large mean ruins naive sums of squares
    whole = statistics(values)
    parts = FrechetStatistics(16)
    for batch in values.flip(0).split(7):
        parts.update(batch)
    halves = [statistics(values[:20]), statistics(values[20:])]
    halves[0].merge(halves[1])
    empty = FrechetStatistics(16)
    empty.merge(whole)
    for other in (parts, halves[0], empty):
        assert other.count == 50
        torch.testing.assert_close(other.mean, whole.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(other.covariance, whole.covariance, rtol=1e-6, atol=1e-9)
        assert frechet_distance(other, whole) < 1e-6
    torch.testing.assert_close(whole.covariance, values.T.cov(), rtol=1e-6, atol=1e-9)


def test_wrong_use_is_refused() -> None:
    single = FrechetStatistics(4)
    single.update(torch.ones(1, 4))
    with pytest.raises(ValueError, match="at least 2 vectors, found 1"):
        frechet_distance(single, single)
    with pytest.raises(ValueError, match="1 of 2 vectors are not finite"):
        single.update(torch.tensor([[1.0, 2, 3, 4], [1, 2, torch.nan, 4]]))
    assert single.count == 1
    broken = statistics(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    broken.scatter[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        frechet_distance(broken, broken)
    with pytest.raises(ValueError, match=r"expected \(B, 4\)"):
        single.update(torch.ones(2, 5))
    with pytest.raises(ValueError, match="sizes differ"):
        single.merge(FrechetStatistics(5))
    with pytest.raises(ValueError, match="different networks"):
        single.merge(FrechetStatistics(4, extractor_id="random#0"))


def test_only_the_inception_network_is_called_fid() -> None:
    assert metric_name("inception_fid") == "FID"
    assert metric_name("efflite0") == "FD@efflite0"
    assert metric_name(build_features("random")) == "FD@random"
