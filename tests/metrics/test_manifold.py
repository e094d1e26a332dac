"""Precision, recall, density, coverage against loops in plain Python and cases by hand."""

import pytest
import torch
from torch import Tensor

from tessella.metrics.manifold import ManifoldResult, manifold_metrics


def vectors(count: int, size: int, seed: int) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def small_integers(count: int, seed: int) -> Tensor:
    """Points of a small grid: many equal ones and many ties."""
    return torch.randint(4, (count, 2), generator=torch.Generator().manual_seed(seed)).float()


def by_loops(
    samples: Tensor, reference: Tensor, pr: int, dc: int
) -> dict[str, list[float] | list[bool]]:
    """One distance at a time, in float64."""

    def squared(x: Tensor, y: Tensor) -> float:
        return float((x.double() - y.double()).square().sum())

    def radius(rows: Tensor, i: int, k: int) -> float:
        return sorted(squared(rows[i], rows[j]) for j in range(len(rows)) if j != i)[k - 1]

    n, m = range(len(samples)), range(len(reference))
    pr_radii = [radius(reference, j, pr) for j in m]
    dc_radii = [radius(reference, j, dc) for j in m]
    own_radii = [radius(samples, i, pr) for i in n]
    d = [[squared(samples[i], reference[j]) for j in m] for i in n]
    return {
        "in_manifold": [any(d[i][j] <= pr_radii[j] for j in m) for i in n],
        "recalled": [any(d[i][j] <= own_radii[i] for i in n) for j in m],
        "sample_density": [sum(d[i][j] < dc_radii[j] for j in m) / dc for i in n],
        "covered": [any(d[i][j] < dc_radii[j] for i in n) for j in m],
        "nearest_reference": [min(m, key=d[i].__getitem__) for i in n],
        "nearest_distance": [min(d[i]) ** 0.5 for i in n],
    }


def check(found: ManifoldResult, expected: dict[str, list[float] | list[bool]]) -> None:
    for name, values in expected.items():
        own = getattr(found, name)
        torch.testing.assert_close(
            own, torch.tensor(values, dtype=own.dtype), rtol=1e-5, atol=0, msg=name
        )
    for name, details in (
        ("precision", "in_manifold"),
        ("recall", "recalled"),
        ("density", "sample_density"),
        ("coverage", "covered"),
    ):
        mean = sum(expected[details]) / len(expected[details])
        assert getattr(found, name) == pytest.approx(mean, rel=1e-12), name


@pytest.mark.parametrize("block", [3, 7, 4096])
@pytest.mark.parametrize("shift", [0.0, 0.8, 1000.0])
def test_equals_loops(block: int, shift: float) -> None:
    samples, reference = vectors(30, 6, seed=1) * 0.7 + shift, vectors(25, 6, seed=2)
    found = manifold_metrics(samples, reference, block=block)
    check(found, by_loops(samples, reference, 3, 5))
    assert 0 <= found.precision <= 1
    if shift == 1000.0:
        assert (found.precision, found.recall, found.density, found.coverage) == (0, 0, 0, 0)


@pytest.mark.parametrize("block", [4, 4096])
@pytest.mark.parametrize(("pr", "dc"), [(1, 1), (3, 5), (6, 2)])
def test_ties_and_equal_points(block: int, pr: int, dc: int) -> None:
    samples, reference = small_integers(20, seed=3), small_integers(15, seed=4)
    found = manifold_metrics(samples, reference, pr_neighbors=pr, dc_neighbors=dc, block=block)
    check(found, by_loops(samples, reference, pr, dc))


def test_by_hand_on_a_line() -> None:
    """Reference 0 1 2 3, neighbourhoods of one neighbour: all of radius 1."""
    reference = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    samples = torch.tensor([[-1.0], [0.5], [4.5]])
    found = manifold_metrics(samples, reference, pr_neighbors=1, dc_neighbors=1)
    assert found.in_manifold.tolist() == [True, True, False]  # -1 lies on the border of 0's
    assert found.sample_density.tolist() == [0, 2, 0]  # where the ball is open
    assert found.covered.tolist() == [True, True, False, False]
    assert found.recalled.tolist() == [True, True, True, True]  # radii 1.5, 1.5 and 4
    assert (found.precision, found.density, found.coverage) == (
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
        0.5,
    )
    assert found.nearest_reference.tolist() == [0, 0, 3]
    assert found.nearest_distance.tolist() == [1.0, 0.5, 1.5]


def test_copies_of_the_reference() -> None:
    """Their distances are exactly 0, so even closed balls of radius 0 hold them; open ones not."""
    reference = vectors(40, 128, seed=5) * 13.7
    found = manifold_metrics(reference.flip(0), reference, block=16)
    assert (found.precision, found.recall, found.coverage) == (1.0, 1.0, 1.0)
    assert found.density >= 1
    assert found.nearest_distance.tolist() == [0.0] * 40
    assert found.nearest_reference.tolist() == list(range(39, -1, -1))
    twins = reference[:10].repeat(6, 1)  # every radius is 0
    collapsed = manifold_metrics(twins, twins, block=16)
    assert (collapsed.precision, collapsed.recall) == (1.0, 1.0)
    assert (collapsed.density, collapsed.coverage) == (0.0, 0.0)
    assert manifold_metrics(vectors(40, 128, seed=6), twins).precision == 0


def test_collapse_shows_as_recall_and_coverage() -> None:
    reference = vectors(200, 8, seed=7)
    centre = vectors(200, 8, seed=8) * 0.1
    found = manifold_metrics(centre, reference)
    assert found.precision == 1.0
    assert found.density > 1
    assert found.recall < 0.05
    same = manifold_metrics(vectors(200, 8, seed=9), reference)
    assert same.recall > 0.7
    assert same.coverage > 0.8
    assert same.density == pytest.approx(1, abs=0.3)


def test_order_of_rows_does_not_matter() -> None:
    samples, reference = vectors(50, 33, seed=10) * 1.1, vectors(60, 33, seed=11)
    found = manifold_metrics(samples, reference, block=16)
    rng = torch.Generator().manual_seed(0)
    rows, columns = torch.randperm(50, generator=rng), torch.randperm(60, generator=rng)
    other = manifold_metrics(samples[rows].double(), reference[columns], block=23)
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(other, name) == getattr(found, name), name
    for name in ("in_manifold", "sample_density", "nearest_distance"):
        assert torch.equal(getattr(other, name), getattr(found, name)[rows]), name
    assert torch.equal(other.covered, found.covered[columns])
    assert torch.equal(columns[other.nearest_reference], found.nearest_reference[rows])


def test_rounding_is_small_at_2048_features() -> None:
    samples, reference = vectors(12, 2048, seed=12).relu(), vectors(12, 2048, seed=13).relu()
    found = manifold_metrics(samples, reference)
    exact = torch.cdist(samples.double(), reference.double()).min(1).values
    torch.testing.assert_close(found.nearest_distance, exact, rtol=1e-6, atol=0)


def test_wrong_use_is_refused() -> None:
    samples, reference = vectors(8, 4, seed=1), vectors(5, 4, seed=2)
    with pytest.raises(ValueError, match="reference: 5 neighbours need more than 5 vectors, found"):
        manifold_metrics(samples, reference)
    with pytest.raises(ValueError, match="samples: 3 neighbours need more than 3 vectors, found 3"):
        manifold_metrics(samples[:3], reference, dc_neighbors=4)
    with pytest.raises(ValueError, match=r"found \(8, 4\) and \(5, 3\)"):
        manifold_metrics(samples, reference[:, :3])
    with pytest.raises(ValueError, match="expected >= 1, found 0"):
        manifold_metrics(samples, reference, pr_neighbors=0)
    samples[2, 1] = torch.inf
    with pytest.raises(ValueError, match="samples: 1 of 8 vectors are not finite"):
        manifold_metrics(samples, reference, dc_neighbors=2)
