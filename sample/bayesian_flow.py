"""The sampler of Bayesian flow networks (arXiv:2308.07037, algorithm 9).

It starts from beliefs that know nothing. Every step predicts the data, draws a value of each
variable, and takes in a message about it as if it were the truth; the last prediction gives the
tokens. n steps cost n + 1 forward passes.

Editing is the same loop with the beliefs about known positions standing, from the start, where all
messages about their true values lead on average; they get no more of them, and in the end are what
they were. What follows from beliefs does not depend on the time, so with a perfect network this is
conditioning exactly, as far as the messages leave no doubt. A trained network never saw positions
of two accuracies at once, and profits all the same. Known positions that hear of their true values
at the pace of the others would look as in training; but then new ones are drawn before they know of
them, and fit them badly, whatever the network.

Every random number belongs to (seed of the image, step, slot), so an image is the same in whatever
batch or process it is made, as far as the network computes it the same. The loop never waits for
the device: predictions that are not finite are reported after it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..config import STRICT
from ..generators.bayesian_flow_network import BayesianFlowNetwork
from ..generators.noise import normal, uniform
from ..generators.processes.bayesian_flow import MAX_STEPS
from ..tokens.tokens import Tokens
from .guidance import check_guidance, guided_prediction
from .known import find_start

_DRAWS = 2  # of every step: values, messages


@dataclass(frozen=True, kw_only=True)
class FlowSampling:
    """How tokens are drawn from a Bayesian flow network.

    Args:
        num_steps: Messages, at any number; there is one more forward pass.
        guidance: Scale of classifier-free guidance, on logits; 1 = off.
        temperature: Divides the predicted logits, > 0. Below 1, fewer values are in doubt.
        final: The tokens are the likeliest values (`mode`, published) of the last prediction, or a
            draw of it (`sample`: the distribution that the bounds on bits are about).
    """

    __pydantic_config__ = STRICT
    num_steps: int = 32
    guidance: float = 1.0
    temperature: float = 1.0
    final: Literal["mode", "sample"] = "mode"

    def __post_init__(self) -> None:
        if not 1 <= self.num_steps <= MAX_STEPS:
            raise ValueError(f"num_steps: expected 1 to {MAX_STEPS:,}, found {self.num_steps}")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance: expected at least 0, found {self.guidance}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature: must be > 0, found {self.temperature}")


@torch.no_grad()
def sample_flow(
    generator: BayesianFlowNetwork,
    labels: Tensor,
    seeds: Tensor,
    config: FlowSampling,
    *,
    known: Tokens | None = None,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    predict: Callable[..., Tensor] | None = None,
) -> Tokens:
    """Draw tokens.

    Args:
        generator: In eval mode.
        labels: (B,) int64 in [0, num_classes]; `num_classes` = no label.
        seeds: One per image, (B,) int64.
        config: Settings.
        known: Tokens to keep where `mask` is False, of the generator's spec; None: all are new.
        mask: True at positions to draw anew, (B, N) bool; goes with `known`.
        lengths: Valid positions of each image, (B,) int64, for ordered specs; None: all.
        predict: Stands in for `generator.predict`, e.g. a compiled one.

    Returns:
        Tokens of the generator's spec; known positions are unchanged.

    Raises:
        ValueError: If known and mask do not fit, guidance is asked of an unconditional model, or a
            prediction was not finite.
    """
    check_guidance(generator, config.guidance)
    flow, predict = generator.flow, predict or generator.predict
    spec = generator.spec
    start = find_start(spec, spec.codebook_sizes, seeds, known, mask, lengths)
    values = generator.variables(Tokens(start.codes, spec))
    shape, no_label, steps = generator.belief_shape, generator.num_classes, config.num_steps
    silent = torch.zeros(len(seeds), *shape, dtype=torch.float64, device=seeds.device)
    told = flow.message(values, flow.beta(torch.ones_like(seeds)), silent)
    beliefs = torch.where(start.hidden[..., None], silent, told)
    failed = torch.zeros((), dtype=torch.int64, device=seeds.device)
    alphas = flow.alphas(steps, seeds.device)
    for step in range(steps + 1):
        t = torch.full_like(seeds, step, dtype=torch.float64) / steps
        predicted = guided_prediction(
            *(predict, beliefs, t, labels, start.valid), no_label=no_label, scale=config.guidance
        )
        logits = predicted.double() / config.temperature
        failed = torch.where(~logits.isfinite().all() & (failed == 0), step + 1, failed)
        if step == steps and config.final == "mode":
            drawn = flow.mode(logits)
        else:
            drawn = flow.draw(logits, uniform(seeds, _DRAWS * step, values.shape[1:]))
        if step < steps:
            message = flow.message(drawn, alphas[step], normal(seeds, _DRAWS * step + 1, shape))
            beliefs = torch.where(start.hidden[..., None], beliefs + message, beliefs)
    if number := int(failed):
        raise ValueError(f"sampling: the predicted logits are not finite in step {number}")
    hidden = start.hidden.view(*start.hidden.shape, *(1,) * (values.ndim - 2))
    return generator.tokens(torch.where(hidden, drawn, values), start.lengths)
