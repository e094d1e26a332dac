"""Alignment of images and captions: known ranks, known maps, chance, and what changes nothing."""

import math

import pytest
import torch
from torch import Tensor

from tessella.metrics.alignment import (
    FOLDS,
    METRICS,
    RIDGES,
    CaptionMaps,
    fit_maps,
    next_ones,
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def identity(size: int) -> CaptionMaps:
    """Maps that leave features of `size` numbers as they are."""
    zeros = torch.zeros(FOLDS, size, dtype=torch.float64)
    eye = torch.eye(size, dtype=torch.float64).expand(FOLDS, size, size)
    return CaptionMaps(ridge=1.0, feature_means=zeros, vector_means=zeros, weights=eye)


def fan(*degrees: float) -> Tensor:
    """Vectors in a plane at these angles to the first axis, of various lengths."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    lengths = torch.linspace(0.5, 3, len(degrees), dtype=torch.float64)[:, None]
    return torch.stack([angles.cos(), angles.sin()], 1) * lengths


def scored(
    maps: CaptionMaps, features: Tensor, own: Tensor, others: Tensor, among: bool
) -> list[float]:
    folds = torch.arange(len(features)) % FOLDS
    values = maps.score(features, own, folds, others, torch.full((len(features),), among))
    return [float(values[name].mean()) for name in METRICS]


def test_ranks_are_those_of_the_angles() -> None:
    """An image at 0 degrees, its caption the third nearest of twelve."""
    angles = [5.0, -10.0, 20.0, *range(30, 120, 10)]
    candidates, image = fan(*angles), fan(0.0)
    found = scored(identity(2), image, candidates[2:3], candidates, True)
    assert found == pytest.approx([0, 1, math.comb(9, 7) / math.comb(11, 7)])
    # The same caption as a thirteenth: it is at its own place, beside an equal one.
    found = scored(identity(2), image, candidates[2:3], candidates, False)
    wins = [math.comb(13 - rank, 7) / math.comb(12, 7) for rank in (3, 4)]
    assert found == pytest.approx([0, 1, sum(wins) / 2])
    last = scored(identity(2), image, fan(170.0), candidates, False)
    assert last == [0, 0, 0]


def test_of_equal_captions_each_order_counts() -> None:
    """Three equal captions are the nearest of fourteen: one of three times the own one is first."""
    candidates = fan(5.0, 5.0, 5.0, *range(30, 140, 10))
    found = scored(identity(2), fan(0.0), candidates[1:2], candidates, True)
    wins = [math.comb(14 - rank, 7) / math.comb(13, 7) for rank in (1, 2, 3)]
    assert found == pytest.approx([1 / 3, 1, sum(wins) / 3])
    nine = fan(*range(1, 10), 50.0, 50.0, 50.0, 50.0)
    found = scored(identity(2), fan(0.0), nine[-1:], nine, True)
    assert found[1] == pytest.approx(1 / 4), "one of four equal ones is the tenth"


def test_a_perfect_map_has_one_and_blind_features_have_chance() -> None:
    features = randn(60, 20)
    vectors, folds = features @ randn(20, 12, seed=1) + 3, torch.arange(60) % FOLDS
    maps = fit_maps(features, vectors, folds)
    assert maps.ridge == RIDGES[0]
    among = torch.ones(60, dtype=torch.bool)
    values = maps.score(features, vectors, folds, vectors, among)
    assert [float(values[name].min()) for name in METRICS] == pytest.approx([1, 1, 1])
    blind = torch.zeros(60, 20)
    values = fit_maps(blind, vectors, folds).score(blind, vectors, folds, vectors, among)
    for name, chance in zip(METRICS, (1 / 60, 10 / 60, 1 / 8), strict=True):
        assert values[name].tolist() == pytest.approx([chance] * 60)


def test_captions_by_heart_do_not_count() -> None:
    """More features than pairs, which say nothing: one map of all pairs would know every caption.

    Of 300 independent images the choice of 8 has a standard error of .013, the recalls of .0033
    and .010.
    """
    features, vectors, folds = randn(300, 400), randn(300, 8, seed=1), torch.arange(300) % FOLDS
    among = torch.ones(300, dtype=torch.bool)
    maps = fit_maps(features, vectors, folds)
    values = maps.score(features, vectors, folds, vectors, among)
    chances = ((1 / 300, 0.0033), (10 / 300, 0.010), (1 / 8, 0.013))
    for name, (chance, error) in zip(METRICS, chances, strict=True):
        assert abs(float(values[name].mean()) - chance) < 4 * error, name
    seen = maps.score(features, vectors, (folds + 1) % FOLDS, vectors, among)
    assert float(seen[METRICS[-1]].mean()) > 0.9


def test_weights_are_those_of_the_formula() -> None:
    features, folds = randn(50, 6), torch.arange(50) % FOLDS
    vectors = features @ randn(6, 3, seed=1) + randn(50, 3, seed=2)
    maps = fit_maps(features, vectors, folds)
    for fold in range(FOLDS):
        rest = folds != fold
        x = features[rest] - features[rest].mean(0)
        y = vectors[rest] - vectors[rest].mean(0)
        gram = x.T @ x
        strength = maps.ridge * gram.trace() / 6
        expected = torch.linalg.solve(gram + strength * torch.eye(6, dtype=gram.dtype), x.T @ y)
        torch.testing.assert_close(maps.weights[fold], expected)
    assert RIDGES[0] < maps.ridge < RIDGES[-1]


def test_shift_rotation_scale_and_order_of_features_change_nothing() -> None:
    features, folds = randn(50, 6), torch.arange(50) % FOLDS
    vectors = features @ randn(6, 3, seed=1) + 2 * randn(50, 3, seed=2)
    among = torch.ones(50, dtype=torch.bool)
    turn = torch.linalg.qr(randn(6, 6, seed=3))[0]
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    expected = fit_maps(features, vectors, folds).score(features, vectors, folds, vectors, among)
    turned = 7 * (features @ turn) + 5
    maps = fit_maps(turned[order], vectors[order], folds[order])
    found = maps.score(turned, vectors, folds, vectors, among)
    for name in METRICS:
        torch.testing.assert_close(found[name], expected[name])
        assert 0 < float(found[name].mean()) < 1, name


def test_a_shuffle_leaves_nothing_in_its_place() -> None:
    for count in (2, 3, 50):
        replaced = next_ones(count, seed=4)
        assert sorted(replaced.tolist()) == list(range(count))
        assert not (replaced == torch.arange(count)).any()
    assert torch.equal(next_ones(50, 4), next_ones(50, 4))
    assert not torch.equal(next_ones(50, 4), next_ones(50, 5))


def test_what_cannot_be_fitted_or_ranked_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two folds, found one"):
        fit_maps(randn(9, 3), randn(9, 2), torch.zeros(9).long())
    with pytest.raises(ValueError, match="features: 1 of 9 vectors are not finite"):
        fit_maps(randn(9, 3).index_fill(0, torch.tensor([2]), torch.nan), randn(9, 2),
                 torch.arange(9) % FOLDS)  # fmt: skip
    with pytest.raises(ValueError, match="at least 11 captions, found 10"):
        scored(identity(2), fan(0.0), fan(1.0), fan(*range(10)), False)
