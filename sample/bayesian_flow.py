"""Sampler of Bayesian flow networks (arXiv:2308.07037, algorithm 9).

It starts from the prior beliefs. Every step predicts the data, draws a value of each variable, and
updates the beliefs with a noisy message about the drawn value, as if it were the true one; the last
prediction gives the tokens. n steps cost n + 1 forward passes.

When editing, the beliefs about known positions are set, before the first step, to the mean of the
beliefs after all messages about their true values, and are not updated. What follows from beliefs
does not depend on the time, so with a perfect network this is exact conditioning, as far as all
messages together determine a value. A trained network never saw positions of two accuracies at
once, but profits all the same. If known positions received messages at the pace of the others,
beliefs would look as in training, but new positions would be drawn before those messages determine
the known values, and would fit them badly, whatever the network.

Every random number is a function of (seed of the image, step, slot), so an image does not depend on
the batch or the process that draws it, up to the network's rounding. The loop never waits for the
device: predictions that are not finite are reported after it.
"""

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
from .guidance import check_guidance, conditions_of, guided_prediction
from .known import known_tokens
from .request import Request
from .sampler import Sampler, check_settings
from .steps import Unfinished, counted

_DRAWS = 2  # random draws per step: values, messages


@dataclass(frozen=True, kw_only=True)
class FlowSampling:
    """Settings of the sampler of Bayesian flow networks.

    Args:
        num_steps: Number of messages, at least 1; there is one more forward pass.
        guidance: Scale of classifier-free guidance, on logits; 1 = off.
        temperature: Divisor of the predicted logits, > 0; below 1 predictions are sharper.
        final: Tokens from the last prediction: `mode` (published) takes the likeliest values,
            `sample` draws from it, the distribution that bits per dimension measure.
    """

    __pydantic_config__ = STRICT
    num_steps: int = 32
    guidance: float = 1.0
    temperature: float = 1.0
    final: Literal["mode", "sample"] = "mode"

    def __post_init__(self) -> None:
        if not 1 <= self.num_steps <= MAX_STEPS:
            raise ValueError(f"num_steps: expected 1 to {MAX_STEPS:,}, found {self.num_steps}")
        check_settings(self)


@torch.no_grad()
def sample_flow(
    generator: BayesianFlowNetwork,
    request: Request,
    settings: FlowSampling,
    *,
    predict: Callable[..., Tensor] | None = None,
) -> Tokens:
    """Draw tokens with a Bayesian flow network.

    Args:
        generator: Generator in eval mode.
        request: Images to draw: conditions, seeds, known tokens, lengths.
        settings: Settings of the sampler.
        predict: Replacement of `generator.predict`, e.g. a compiled one; None: the method.

    Returns:
        Tokens of the generator's spec; known positions are unchanged.

    Raises:
        ValueError: If the generator is unconditional and guidance is not 1, or a prediction is not
            finite.
    """
    check_guidance(generator, settings.guidance)
    flow, predict = generator.flow, predict or generator.predict
    spec, seeds, conditions = generator.spec, request.seeds, conditions_of(generator, request)
    start = known_tokens(request, spec, spec.codebook_sizes)
    values = generator.variables(Tokens(start.codes, spec))
    shape, steps = generator.belief_shape, settings.num_steps
    silent = torch.zeros(len(seeds), *shape, dtype=torch.float64, device=seeds.device)
    told = flow.message(values, flow.beta(torch.ones_like(seeds)), silent)
    beliefs = torch.where(start.hidden[..., None], silent, told)
    failed = torch.zeros((), dtype=torch.int64, device=seeds.device)
    alphas = flow.alphas(steps, seeds.device)
    hidden = start.hidden.view(*start.hidden.shape, *(1,) * (values.ndim - 2))

    def present() -> Unfinished:
        tokens = generator.tokens(torch.where(hidden, drawn, values), start.lengths)
        return Unfinished(tokens, torch.zeros_like(start.hidden), guessed=True)

    for step in counted(range(steps + 1), present):
        t = torch.full_like(seeds, step, dtype=torch.float64) / steps
        predicted = guided_prediction(
            predict, beliefs, t, conditions, start.valid, settings.guidance
        )
        logits = predicted.double() / settings.temperature
        failed = torch.where(~logits.isfinite().all() & (failed == 0), step + 1, failed)
        if step == steps and settings.final == "mode":
            drawn = flow.mode(logits)
        else:
            drawn = flow.draw(logits, uniform(seeds, _DRAWS * step, values.shape[1:]))
        if step < steps:
            message = flow.message(drawn, alphas[step], normal(seeds, _DRAWS * step + 1, shape))
            beliefs = torch.where(start.hidden[..., None], beliefs + message, beliefs)
    if number := int(failed):
        raise ValueError(f"sampling: the predicted logits are not finite in step {number}")
    return present().tokens


def _resolve(generator: BayesianFlowNetwork, settings: FlowSampling) -> FlowSampling:
    return settings  # none of them depends on the generator


SAMPLER = Sampler(types=("bfn",), settings=FlowSampling, draw=sample_flow, resolve=_resolve)
