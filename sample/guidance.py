"""Classifier-free guidance in one convention: `uncond + scale * (cond - uncond)`, 1 = off.

Papers that write `cond + s * (cond - uncond)` mean scale 1 + s: MaskBit's s = 7.1 is 8.1 here.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..generators.base import Generator
from ..generators.conditions import TextTokens
from .request import Request

GuidanceSchedule = Literal["constant", "linear", "cosine"]


def guidance_at(
    step: int, num_steps: int, scale: float, schedule: GuidanceSchedule, power: float
) -> float:
    """Guidance scale of a step: 1 + (scale - 1) * ramp(step / num_steps).

    Args:
        step: Number of the step, 0 to num_steps - 1.
        num_steps: Number of steps.
        scale: Guidance scale at the end of the ramp; 1 = off.
        schedule: Ramp over x = step / num_steps: 1 (`constant`), x (`linear`) or
            (1 - cos(pi x**power)) / 2 (`cosine`). The last two start at 0, so the first step is
            unguided.
        power: Exponent of `cosine`, > 0; with a large value guidance sets in late.

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
    """Refuse a guidance scale other than 1 for an unconditional generator.

    Raises:
        ValueError: If the generator has neither classes nor text and the scale is not 1.
    """
    if not generator.conditional and scale != 1:
        raise ValueError(
            "guidance: this generator is unconditional, there is nothing to guide; "
            f"expected 1, found {scale:g}"
        )


class Conditions(NamedTuple):
    """Labels (B,) int64 in [0, num_classes] and texts of a batch; None: there are no texts."""

    labels: Tensor
    text: TextTokens | None


@torch.no_grad()
def conditions_of(generator: Generator, request: Request) -> tuple[Conditions, Conditions]:
    """Conditions of a request, and those of a batch of twice its size for guidance.

    The second half of the larger batch has no labels, and the negative prompts as texts.
    """
    labels, whole = request.labels, request.whole_texts
    text = generator.read_text(request.prompts, whole=whole)
    against = generator.read_text(request.negative_prompts, whole=whole)
    if text is None and against is not None:
        text = against.kept(torch.zeros_like(labels, dtype=torch.bool))
    both = torch.cat([labels, torch.full_like(labels, generator.num_classes)])
    halves = None if text is None else text.before(against)
    return Conditions(labels, text), Conditions(both, halves)


def guide(cond: Tensor, uncond: Tensor, scale: float | Tensor) -> Tensor:
    """Guided logits `uncond + scale * (cond - uncond)`.

    Example:
        >>> import torch
        >>> from tessella.sample.guidance import guide
        >>> cond, uncond = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0])
        >>> guide(cond, uncond, 3.0)
        tensor([4., 0.])
        >>> guide(cond, uncond, 1.0)
        tensor([2., 0.])

    Args:
        cond: Logits with the label, of any shape.
        uncond: Logits without a condition, or with what guidance leads away from, of that shape.
        scale: Guidance scale; 1 gives `cond`, 0 gives `uncond`. A tensor must broadcast.

    Returns:
        Logits of the same shape. Where both inputs are equal, also at -inf, the result equals them
        exactly.
    """
    return torch.where(cond == uncond, cond, uncond + scale * (cond - uncond))


def guided_prediction(
    predict: Callable[..., Tensor],
    values: Tensor,
    t: Tensor,
    conditions: tuple[Conditions, Conditions],
    valid: Tensor | None,
    scale: float,
) -> Tensor:
    """Guided logits of a network that reads a time; one forward pass, of twice the batch if guided.

    Args:
        predict: Network, (values, t, labels, valid, text) to logits (B, ...).
        values: Input of the network, (B, ...).
        t: Time of each image, (B,).
        conditions: Conditions of the images, and of both halves, from `conditions_of`.
        valid: True at real positions, (B, N) bool; None: all.
        scale: Guidance scale; 1 = off.
    """
    one, halves = conditions
    if scale == 1:
        return predict(values, t, one.labels, valid, one.text)
    both = predict(
        torch.cat([values] * 2),
        torch.cat([t] * 2),
        halves.labels,
        None if valid is None else torch.cat([valid] * 2),
        halves.text,
    )
    cond, uncond = both.chunk(2)
    return guide(cond, uncond, scale)
