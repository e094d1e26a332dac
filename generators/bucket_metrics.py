"""Metrics of a training step by quarters: of the masked share of an image, or of its time."""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

BUCKETS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Edges of the buckets."""


def bucket_name(name: str, low: float, high: float) -> str:
    """Name of a metric of the images whose share is between two edges, given in percent."""
    return f"{name}_{100 * low:.0f}_{100 * high:.0f}"


def bucket_names(name: str) -> list[str]:
    """Names of a metric in all buckets, lowest first."""
    return [bucket_name(name, low, high) for low, high in pairwise(BUCKETS)]


def bucket_metrics(
    name: str,
    share: Tensor,
    sums: Tensor,
    counts: Tensor,
    *,
    edge: Literal["lower", "upper"] = "upper",
) -> dict[str, Tensor]:
    """Sum and count, (2,) each, of the images in every bucket, by `bucket_name`.

    Args:
        name: Name of the metric.
        share: Share by which an image falls into a bucket, (B,) in [0, 1].
        sums: Sum of the metric over each image, (B,) float.
        counts: Number of addends of each sum, (B,) float.
        edge: Edge of a bucket that belongs to it; with `lower` the last bucket has its upper edge
            too.
    """
    metrics = {}
    for low, high in pairwise(BUCKETS):
        if edge == "upper":
            inside = (share > low) & (share <= high)
        else:
            inside = (share >= low) & (share < high if high < 1 else share <= high)
        here = inside.float()
        metrics[bucket_name(name, low, high)] = torch.stack(
            [(sums * here).sum(), (counts * here).sum()]
        )
    return metrics
