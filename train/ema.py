"""Running average of a model's weights, in float32, as a second module that can be evaluated."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from .schedules import ema_decay_at

M = TypeVar("M", bound=nn.Module)


class EMA(Generic[M]):
    """Exponential moving average of the float parameters; every buffer of the state is copied.

    Codebooks that are running means themselves are buffers, hence copied and not averaged twice.
    Buffers outside of the state dict are constants, such as tables of positions or of words.

    Args:
        model: Model whose weights are averaged; a copy is made.
        max_decay: Highest decay, in [0, 1); the decay warms up as in `ema_decay_at`.
    """

    def __init__(self, model: M, max_decay: float) -> None:
        self.max_decay = max_decay
        self.num_updates = 0
        self.module: M = copy.deepcopy(model).float().eval().requires_grad_(False)
        stored = self.module.state_dict()
        self._state_buffers = [(n, b) for n, b in self.module.named_buffers() if n in stored]

    @torch.no_grad()
    def update(self, model: M) -> None:
        """Move the average towards the model's present weights."""
        decay = ema_decay_at(self.num_updates, self.max_decay)
        shadow: list[Tensor] = list(self.module.parameters())
        live = [parameter.detach().float() for parameter in model.parameters()]
        torch._foreach_lerp_(shadow, live, 1 - decay)
        for name, ours in self._state_buffers:
            ours.copy_(model.get_buffer(name))
        self.num_updates += 1
