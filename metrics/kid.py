"""Kernel distance between feature sets (KID on the FID Inception): unbiased at any sample size.

The squared maximum mean discrepancy with the kernel (x.y / D + 1)^3. Being unbiased it does not
fall with the number of samples as the Frechet distance does, and it may be slightly negative.
The name KID is reserved for the FID Inception, like FID.

Source: arXiv:1801.01401.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_pair

DEFAULT_SUBSETS, DEFAULT_SUBSET_SIZE = 100, 1000
"""Number and size of the subsets of published values and of torchmetrics."""


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """Kernel distance over random subsets.

    Attributes:
        mean: Mean over the subsets.
        std: Standard deviation over the subsets, divided by n as in torchmetrics.
    """

    mean: float
    std: float


@torch.no_grad()
def kernel_distance(
    samples: Tensor,
    reference: Tensor,
    *,
    subsets: int = DEFAULT_SUBSETS,
    subset_size: int = DEFAULT_SUBSET_SIZE,
    rng: torch.Generator,
) -> KernelDistance:
    """Kernel distance as published: the mean over pairs of random subsets.

    Subsets are drawn without replacement, the reference's first, in the order of torchmetrics 1.9:
    equal states of the generators give equal numbers. Values are computed in float64.

    Args:
        samples: Features, shape (n, D), any float dtype; the subsets depend on the order of the
            rows, which `FeatureBank` fixes.
        reference: Features of the real images, shape (m, D).
        subsets: Number of pairs of subsets, >= 1.
        subset_size: Vectors in a subset, >= 2.
        rng: Random generator on the CPU that draws the subsets.

    Raises:
        ValueError: If shapes or dtypes do not fit, values are not finite, or a side has fewer
            vectors than `subset_size`.

    Source: arXiv:1801.01401, section 4.
    """
    check_pair(samples, reference)
    if subsets < 1 or subset_size < 2:
        found = f"subsets={subsets}, subset_size={subset_size}"
        raise ValueError(f"expected subsets >= 1 and subset_size >= 2, found {found}")
    if min(len(samples), len(reference)) < subset_size:
        found = f"{len(samples)} samples and {len(reference)} reference vectors"
        raise ValueError(f"subset_size: {subset_size} is more than there are: {found}")
    values = []
    for _ in range(subsets):
        drawn = [
            vectors[torch.randperm(len(vectors), generator=rng)[:subset_size].to(vectors.device)]
            for vectors in (reference, samples)
        ]
        values.append(kernel_distance_full(drawn[1], drawn[0]))
    spread = torch.tensor(values, dtype=torch.float64)
    return KernelDistance(mean=float(spread.mean()), std=float(spread.std(correction=0)))


@torch.no_grad()
def kernel_distance_full(samples: Tensor, reference: Tensor, *, block: int = 2048) -> float:
    """Unbiased squared maximum mean discrepancy over all pairs of vectors.

    It draws nothing at random, so it has no seed; O(n^2 D) time, O(n D + block^2) memory.

    Args:
        samples: Features, shape (n, D), any float dtype, n >= 2.
        reference: Features, shape (m, D), m >= 2.
        block: Number of vectors compared at once on either side.

    Returns:
        The estimate; it may be negative when the sets are equally distributed.

    Raises:
        ValueError: If shapes or dtypes do not fit, values are not finite, or a side has fewer than
            2 vectors.

    Source: arXiv:1801.01401, equation 4, the U-statistic.
    """
    check_pair(samples, reference)
    n, m = len(samples), len(reference)
    if min(n, m) < 2:
        raise ValueError(f"expected at least 2 vectors on each side, found {n} and {m}")
    within_samples = _kernel_sum(samples, block) / (n * (n - 1))
    within_reference = _kernel_sum(reference, block) / (m * (m - 1))
    across = sum(
        float(_kernel(part, other).sum())
        for part in torch.split(samples, block)
        for other in torch.split(reference, block)
    )
    return within_samples + within_reference - 2 * across / (n * m)


def _kernel_sum(vectors: Tensor, block: int) -> float:
    """Sum of the kernel over all ordered pairs of different rows."""
    parts = torch.split(vectors, block)
    total = 0.0
    for i, part in enumerate(parts):
        own = _kernel(part, part)
        total += float(own.sum() - own.trace())
        total += sum(2 * float(_kernel(part, other).sum()) for other in parts[:i])
    return total


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Kernel (x.y / D + 1)^3 of all pairs of rows, float64, shape (len(a), len(b))."""
    return (a.double() @ b.double().T / a.shape[1] + 1).pow(3)
