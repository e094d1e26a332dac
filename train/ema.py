"""Running average of a model's weights, in float32, as a second module that can be evaluated."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from .schedules import ema_decay_at

M = TypeVar("M", bound=nn.Module)


class EMA(Generic[M]):
    """Exponential moving average of the float parameters; every buffer is copied.

    Codebooks that are running means themselves are buffers, hence copied and not averaged twice.

    Args:
        model: Model whose weights are averaged; a copy is made.
        max_decay: Highest decay, in [0, 1); the decay warms up as in `ema_decay_at`.
    """

    def __init__(self, model: M, max_decay: float) -> None:
        self.max_decay = max_decay
        self.num_updates = 0
        self.module: M = copy.deepcopy(model).float().eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: M) -> None:
        """Move the average towards the model's present weights."""
        decay = ema_decay_at(self.num_updates, self.max_decay)
        shadow: list[Tensor] = list(self.module.parameters())
        live = [parameter.detach().float() for parameter in model.parameters()]
        torch._foreach_lerp_(shadow, live, 1 - decay)
        for ours, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
            ours.copy_(theirs)
        self.num_updates += 1
