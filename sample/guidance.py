"""Classifier-free guidance in one convention: `uncond + scale * (cond - uncond)`, 1 = off.

Papers that write `cond + s * (cond - uncond)` mean scale 1 + s: MaskBit's s = 7.1 is 8.1 here.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ..generators.base import Generator

GuidanceSchedule = Literal["constant", "linear", "cosine"]


def guidance_at(
    step: int, num_steps: int, scale: float, schedule: GuidanceSchedule, power: float
) -> float:
    """Guidance scale of a step: 1 + (scale - 1) * ramp(step / num_steps).

    Args:
        step: 0 to num_steps - 1.
        num_steps: Steps of the sampler.
        scale: Value at the end of the ramp; 1 = off.
        schedule: ramp(x) = 1 (`constant`), x (`linear`), (1 - cos(pi x**power)) / 2 (`cosine`).
            The ramps start at 0, so the first step is unguided.
        power: Exponent p of `cosine`, > 0; large values guide late.

    Source: arXiv:2409.16211's code, "cosine" annealing with s = scale - 1.
    """
    x = step / num_steps
    match schedule:
        case "constant":
            ramp = 1.0
        case "linear":
            ramp = x
        case "cosine":
            ramp = (1 - math.cos(math.pi * x**power)) / 2
    return 1 + (scale - 1) * ramp


def check_guidance(generator: Generator, scale: float) -> None:
    """Refuse a guidance scale where there is nothing to guide; 1 = off.

    Raises:
        ValueError: If the generator is unconditional.
    """
    if generator.num_classes == 0 and scale != 1:
        raise ValueError("guidance: this generator is unconditional, there is nothing to guide")


def guide(cond: Tensor, uncond: Tensor, scale: float | Tensor) -> Tensor:
    """Guided logits; where both agree (also in -inf) they are the result, exactly."""
    return torch.where(cond == uncond, cond, uncond + scale * (cond - uncond))


def guided_prediction(
    predict: Callable[..., Tensor],
    values: Tensor,
    t: Tensor,
    labels: Tensor,
    valid: Tensor | None,
    *,
    no_label: int,
    scale: float,
) -> Tensor:
    """Logits of a network over time: one forward pass, twice the batch where guidance acts.

    Args:
        predict: (values, t, labels, valid) to logits, (B, ...).
        values: What the network sees, (B, ...).
        t: Times, (B,).
        labels: (B,) int64.
        valid: Real positions, (B, N) bool; None: all.
        no_label: The label that means none.
        scale: 1 = off.
    """
    if scale == 1:
        return predict(values, t, labels, valid)
    both = predict(
        torch.cat([values] * 2),
        torch.cat([t] * 2),
        torch.cat([labels, torch.full_like(labels, no_label)]),
        None if valid is None else torch.cat([valid] * 2),
    )
    cond, uncond = both.chunk(2)
    return guide(cond, uncond, scale)
