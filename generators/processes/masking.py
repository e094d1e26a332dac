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
