"""Masked fraction gamma(t): of training (t uniform) and of sampling (t = share of steps done).

gamma(0) = 1, gamma(1) = 0. `arccos` is MaskBit's, `cosine` MaskGIT's; with `linear` every sampling
step reveals the same number of slots.
"""

import math
from typing import Literal

import torch
from torch import Tensor

MaskSchedule = Literal["arccos", "cosine", "linear", "square"]

MEAN_SHARE: dict[MaskSchedule, float] = {
    "arccos": 2 / math.pi,
    "cosine": 2 / math.pi,
    "linear": 1 / 2,
    "square": 2 / 3,
}
"""Mean of gamma over uniform t."""


def masked_share(t: Tensor, schedule: MaskSchedule) -> Tensor:
    """gamma(t) of t in [0, 1], elementwise, in [0, 1].

    Source: arXiv:2202.04200 section 3.3 (cosine, linear, square); arXiv:2409.16211's code (arccos).
    """
    match schedule:
        case "arccos":
            share = torch.acos(t) * (2 / math.pi)
        case "cosine":
            share = torch.cos(t * (math.pi / 2))
        case "linear":
            share = 1 - t
        case "square":
            share = 1 - t.square()
    return share.clamp(0, 1)


def hide_exactly(count: Tensor, real: Tensor, noise: Tensor) -> Tensor:
    """Slots with the smallest noise among the real ones, bool of the shape of `real`.

    Args:
        count: Slots to hide in each image, (B,), whole numbers of any type.
        real: True at real slots, (B, ...) bool; no other slot is hidden.
        noise: Uniform numbers below 2, of the shape of `real`.
    """
    flat = noise.masked_fill(~real, 2.0).flatten(1)
    rank = flat.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return (rank < count[:, None]).view_as(real) & real
