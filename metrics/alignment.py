"""How well features of images point to the images' own captions, among other captions.

Linear maps from features to vectors of captions are learned on real images by ridge regression, and
an image is ranked by the cosine of its mapped feature with the vector of every caption. There are
as many maps as folds of captions, and an image is mapped by the one that has not seen its caption:
with more features than pairs, a map knows the captions that it was fitted to by heart, so that
copies of training images would rank above new real ones. Nothing here comes from CLIP, and values
are not comparable with CLIP scores.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import check_vectors

FOLDS = 5
"""Number of folds of captions, and of maps."""
RIDGES = tuple(10 ** (exponent / 2) for exponent in range(-8, 5))
"""Strengths of the ridge to choose from, in units of the mean variance of a feature's direction."""
RECALLS = (1, 10)
"""Numbers of captions among which the own one is looked for."""
CHOICES = 8
"""Number of captions of a choice, the own one among them."""
MIN_CAPTIONS = RECALLS[-1] + 1
"""Smallest number of captions: among fewer, the largest recall is always 1."""
METRICS = (*(f"alignment_recall_{k}" for k in RECALLS), f"alignment_{CHOICES}")
_EQUAL = 1e-9  # cosines that differ by rounding alone are ties


@dataclass(frozen=True, kw_only=True, eq=False)
class CaptionMaps:
    """Linear maps from features of D numbers to vectors of E numbers, one per fold.

    Attributes:
        ridge: Strength of the ridge, in units of the mean variance of a feature's direction.
        feature_means: Means of the features that each map was fitted to, (FOLDS, D) float64.
        vector_means: Means of the vectors that each map was fitted to, (FOLDS, E) float64.
        weights: Maps from deviations of features to deviations of vectors, (FOLDS, D, E) float64.
    """

    ridge: float
    feature_means: Tensor
    vector_means: Tensor
    weights: Tensor

    def score(
        self, features: Tensor, own: Tensor, folds: Tensor, candidates: Tensor, among: Tensor
    ) -> dict[str, Tensor]:
        """How an image's own caption ranks among others, by the map that has not seen it.

        Cosines are those of deviations from the mean vector of the map's pairs. Of captions with
        equal cosines each order is equally likely, and values are the means over all orders.

        Args:
            features: Features of B images, (B, D).
            own: Vectors of their own captions, (B, E).
            folds: Folds of their own captions, (B,) int64 in [0, FOLDS).
            candidates: Vectors of C captions, (C, E).
            among: Whether the own caption is one of the candidates, (B,) bool; if not, it is ranked
                among C + 1.

        Returns:
            Values in [0, 1] by name, (B,) float64: `alignment_recall_K`, probability that the own
            caption is one of the K with the largest cosines; `alignment_8`, that it has the largest
            one beside 7 others, of which all choices are equally likely.

        Raises:
            ValueError: If there are fewer than `MIN_CAPTIONS` candidates.
        """
        if len(candidates) < MIN_CAPTIONS:
            raise ValueError(
                f"alignment: expected at least {MIN_CAPTIONS} captions, found {len(candidates)}"
            )
        found = {name: torch.zeros(len(features), dtype=torch.float64) for name in METRICS}
        for fold in range(FOLDS):
            for rows in torch.split((folds == fold).nonzero()[:, 0], 256):
                mapped = (features[rows].double() - self.feature_means[fold]) @ self.weights[fold]
                mean = self.vector_means[fold]
                values = _ranked(mapped, own[rows] - mean, candidates - mean, among[rows])
                for name in METRICS:
                    found[name][rows] = values[name]
        return found


def fit_maps(features: Tensor, vectors: Tensor, folds: Tensor) -> CaptionMaps:
    """Fit the map of each fold to the pairs of all other folds, in float64.

    With X and Y the deviations of n features and vectors from their means, the map is
    (X'X + r s I)^-1 X'Y, where s is the mean eigenvalue of X'X. The strength r is that of `RIDGES`
    with the largest mean cosine between the mapped features of held-out pairs and their vectors.
    Shifts, rotations and one common scale of all features change nothing.

    Args:
        features: Features of n images, (n, D).
        vectors: Vectors of their captions, (n, E).
        folds: Fold of each caption, (n,) int64 in [0, FOLDS); equal captions have equal ones.

    Raises:
        ValueError: If all pairs are of one fold, or a value is not finite.
    """
    check_vectors(features, "features")
    check_vectors(vectors, "vectors")
    if len(torch.unique(folds)) < 2:
        raise ValueError("alignment: expected captions of at least two folds, found one")
    features, vectors = features.double(), vectors.double()
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
    cosines = torch.zeros(len(RIDGES), dtype=torch.float64)
    for fold in range(FOLDS):
        rest = folds != fold
        feature_mean, vector_mean = features[rest].mean(0), vectors[rest].mean(0)
        x, y = features[rest] - feature_mean, vectors[rest] - vector_mean
        values, basis = torch.linalg.eigh(x.T @ x)
        values = values.clamp_min(0)
        products = basis.T @ (x.T @ y)
        parts.append((feature_mean, vector_mean, values, basis, products))
        turned = (features[~rest] - feature_mean) @ basis
        for place, ridge in enumerate(RIDGES):
            mapped = turned @ _shrunk(products, values, ridge)
            cosines[place] += F.cosine_similarity(mapped, vectors[~rest] - vector_mean).sum()
    ridge = RIDGES[int(cosines.argmax())]
    return CaptionMaps(
        ridge=ridge,
        feature_means=torch.stack([part[0] for part in parts]),
        vector_means=torch.stack([part[1] for part in parts]),
        weights=torch.stack([p[3] @ _shrunk(p[4], p[2], ridge) for p in parts]),
    )


def _shrunk(products: Tensor, values: Tensor, ridge: float) -> Tensor:
    """Coefficients (D, E) in the basis of eigenvectors; 0 where no feature varies."""
    denominators = values + ridge * values.mean()
    return products / denominators.clamp_min(torch.finfo(torch.float64).tiny)[:, None]


def _ranked(mapped: Tensor, own: Tensor, candidates: Tensor, among: Tensor) -> dict[str, Tensor]:
    """Values of `CaptionMaps.score` of deviations from the mean."""
    mapped, own, candidates = (F.normalize(part.double()) for part in (mapped, own, candidates))
    cosines, mine = mapped @ candidates.T, (mapped * own).sum(1, keepdim=True)
    above = (cosines > mine + _EQUAL).sum(1)
    equal = ((cosines - mine).abs() <= _EQUAL).sum(1) + (~among).long()
    values = {
        f"alignment_recall_{k}": (k - above).clamp_min(0).minimum(equal) / equal.double()
        for k in RECALLS
    }
    total = len(candidates) + 1
    # Row 0: the own caption is a candidate; row 1: it is one more. Column r: ranks 1 to r together.
    tables = torch.zeros(2, total + 1, dtype=torch.float64)
    for extra in range(2):
        count = len(candidates) + extra
        ranks = torch.arange(1, count + 1, dtype=torch.float64)
        wins = torch.ones_like(ranks)
        for i in range(CHOICES - 1):  # the others are all of lower rank
            wins *= (count - ranks - i).clamp_min(0) / (count - 1 - i)
        tables[extra, 1 : count + 1] = wins.cumsum(0)
    rows = (~among).long()
    values[METRICS[-1]] = (tables[rows, above + equal] - tables[rows, above]) / equal
    return values


def next_ones(count: int, seed: int) -> Tensor:
    """A shuffle in which nothing keeps its place: the number that replaces each, (count,) int64.

    Numbers stand in a circle in random order, and each is replaced by the next one.

    Args:
        count: Number of things, at least 2.
        seed: Seed of the order.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    replaced = torch.empty_like(order)
    replaced[order] = order.roll(-1)
    return replaced
