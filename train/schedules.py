"""Quantities that depend on the step: pure functions, so a resume needs only the counter."""

import math
from dataclasses import dataclass
from typing import Literal

from ..config import STRICT


@dataclass(frozen=True, kw_only=True)
class LearningRateConfig:
    """Learning rate over the run.

    Args:
        peak: Highest value, > 0.
        schedule: `constant`, or `cosine` from the peak to `final_share` of it where the run ends.
        warmup_steps: Optimizer steps of linear rise from 0, at least 0.
        final_share: Last value over the peak, in [0, 1].
    """

    __pydantic_config__ = STRICT
    peak: float
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int = 0
    final_share: float = 0.1

    def __post_init__(self) -> None:
        if not self.peak > 0:
            raise ValueError(f"peak: must be > 0, found {self.peak}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps: must be >= 0, found {self.warmup_steps}")
        if not 0 <= self.final_share <= 1:
            raise ValueError(f"final_share: expected 0 to 1, found {self.final_share}")


def lr_at(step: float, num_steps: int, config: LearningRateConfig) -> float:
    """Learning rate of optimizer step `step` (the first is 0) in a run of `num_steps`.

    A run in minutes is at a place between two steps of its schedule.
    """
    if step < config.warmup_steps:
        return min(config.peak, config.peak * (step + 1) / config.warmup_steps)
    if config.schedule == "constant":
        return config.peak
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    share = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return config.peak * (config.final_share + (1 - config.final_share) * share)


@dataclass(frozen=True, kw_only=True)
class BoostConfig:
    """Loss weight that starts higher and falls linearly to its value.

    Args:
        extra: Multiple of the weight added at step 0; MaskBit's entropy loss uses 2 (so 3x).
        steps: Steps until the weight is 1x.
    """

    __pydantic_config__ = STRICT
    extra: float = 0.0
    steps: int = 1

    def __post_init__(self) -> None:
        if self.extra < 0 or self.steps < 1:
            raise ValueError(
                f"extra >= 0 and steps >= 1 expected, found {self.extra}, {self.steps}"
            )


def boost_at(step: float, config: BoostConfig) -> float:
    """Multiplier of the boosted weight at `step`: 1 + extra at step 0, 1 from `steps` on."""
    return 1 + config.extra * max(0.0, 1 - step / config.steps)


def ema_decay_at(num_updates: int, max_decay: float) -> float:
    """Decay of the weight average at its n-th update (the first is 0): min((1+n)/(10+n), max).

    The very first update copies the weights, as in the MaskBit reference.
    """
    return 0.0 if num_updates == 0 else min((1 + num_updates) / (10 + num_updates), max_decay)
