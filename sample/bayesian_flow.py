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
from ..generators.bayesian_flow import normal
from ..generators.bayesian_flow_network import BayesianFlowNetwork
from ..generators.noise import uniform
from ..tokenizers.tokens import Tokens
from .guidance import guided_prediction

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
        if self.num_steps < 1:
            raise ValueError(f"num_steps: expected at least 1, found {self.num_steps}")
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
    if generator.num_classes == 0 and config.guidance != 1:
        raise ValueError("guidance: this generator is unconditional, there is nothing to guide")
    flow, predict = generator.flow, predict or generator.predict
    start = find_start(generator, len(seeds), seeds.device, known, mask, lengths)
    shape, no_label, steps = generator.belief_shape, generator.num_classes, config.num_steps
    silent = torch.zeros(len(seeds), *shape, dtype=torch.float64, device=seeds.device)
    told = flow.message(start.values, flow.beta(torch.ones_like(seeds)), silent)
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
            drawn = flow.draw(logits, uniform(seeds, _DRAWS * step, start.values.shape[1:]))
        if step < steps:
            message = flow.message(drawn, alphas[step], normal(seeds, _DRAWS * step + 1, shape))
            beliefs = torch.where(start.hidden[..., None], beliefs + message, beliefs)
    if number := int(failed):
        raise ValueError(f"sampling: the predicted logits are not finite in step {number}")
    over = start.hidden.view(*start.hidden.shape, *(1,) * (start.values.ndim - 2))
    return generator.tokens(torch.where(over, drawn, start.values), start.lengths)


@dataclass(frozen=True, eq=False)
class Start:
    """What the sampler begins with.

    Args:
        values: Known variables, as of `BayesianFlowNetwork.variables`; anything at hidden ones.
        hidden: True at positions to draw, (B, N) bool.
        valid: True at real positions, (B, N) bool; None: all.
        lengths: Real positions of each image, (B,) int64; None: all.
    """

    values: Tensor
    hidden: Tensor
    valid: Tensor | None
    lengths: Tensor | None


def find_start(
    generator: BayesianFlowNetwork,
    batch: int,
    device: torch.device,
    known: Tokens | None,
    mask: Tensor | None,
    lengths: Tensor | None,
) -> Start:
    """Which positions are drawn and which are known; arguments as of `sample_flow`.

    Raises:
        ValueError: If known tokens and mask do not fit each other or the batch, or an image has
            nothing to draw.
    """
    spec = generator.spec
    hidden = torch.ones(batch, spec.num_tokens, dtype=torch.bool, device=device)
    none = torch.zeros(batch, spec.num_tokens, spec.num_codebooks, dtype=torch.int64, device=device)
    values = generator.variables(Tokens(none, spec))
    valid = None
    if (known is None) != (mask is None):
        raise ValueError("known tokens and the mask of positions to redraw go together")
    if known is not None and mask is not None:
        if mask.shape != hidden.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"mask: expected ({batch}, {spec.num_tokens}) bool, found {tuple(mask.shape)} "
                f"{mask.dtype}"
            )
        if len(known) != batch:
            raise ValueError(f"known: expected {batch} images, found {len(known)}")
        known = known.to(device)
        values = generator.variables(known)
        hidden = mask.to(device) | ~known.valid  # what a longer result adds was never known
        lengths = known.lengths if lengths is None else lengths
    if lengths is not None:
        valid = torch.arange(spec.num_tokens, device=device) < lengths[:, None]
        hidden = hidden & valid
        values = values * valid.view(*valid.shape, *(1,) * (values.ndim - 2))
    if not hidden.any(1).all():
        raise ValueError("mask: nothing to draw anew in at least one image")
    return Start(values, hidden, valid, lengths)
