"""Sampler of Bernoulli diffusion over all bits of an image (arXiv:2304.04820).

It starts from fair coins, and every step flips each bit with the probability that the reverse
kernel of the process gives it (`generators/processes/bernoulli.py`). Editing is the same loop with
the bits of known positions restored, without noise, after every step.

Every random number is a function of (seed of the image, step, slot), so an image does not depend on
the batch or the process that draws it, up to the network's rounding. The loop never waits for the
device: predictions that are not finite are reported after it.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..config import STRICT
from ..generators.binary_latent_diffusion import (
    BinaryLatentDiffusion,
    BinaryLatentDiffusionConfig,
)
from ..generators.noise import uniform
from ..tokens.tokens import Tokens, TokenSpec
from .guidance import check_guidance, conditions_of, guided_prediction
from .known import known_tokens
from .request import Request
from .sampler import Sampler, check_settings
from .steps import Unfinished, counted

_START = 0  # number of the random draw of the fair coins; step i, from 1, has draw i


@dataclass(frozen=True, kw_only=True)
class BernoulliSampling:
    """Settings of the sampler of binary latent diffusion.

    Args:
        num_steps: Number of steps, at most those of the training; None: as many.
        guidance: Scale of classifier-free guidance; 1 = off. The reference's omega is this minus 1.
        temperature: Divisor of the predicted logits, > 0; below 1 predictions are sharper.
        final: Last step: `sample` draws each bit, as all other steps; `map` takes the likelier
            value of each bit; `reference` flips where the predicted logit is positive, as the
            published code does. With the balanced loss that is not the likelier value, since the
            logit does not use the bit's own value; it narrows the distribution.
    """

    __pydantic_config__ = STRICT
    num_steps: int | None = None
    guidance: float = 1.0
    temperature: float = 1.0
    final: Literal["sample", "map", "reference"] = "sample"

    def __post_init__(self) -> None:
        check_settings(self)


@torch.no_grad()
def sample_bernoulli(
    generator: BinaryLatentDiffusion,
    request: Request,
    settings: BernoulliSampling,
    *,
    predict: Callable[..., Tensor] | None = None,
) -> Tokens:
    """Draw tokens with binary latent diffusion.

    Args:
        generator: Generator in eval mode.
        request: Images to draw: conditions, seeds, known tokens, lengths.
        settings: Settings of the sampler.
        predict: Replacement of `generator.predict`, e.g. a compiled one; None: the method.

    Returns:
        Tokens of the generator's spec; known positions are unchanged.

    Raises:
        ValueError: If there are more steps than in training, the generator is unconditional and
            guidance is not 1, or a prediction is not finite.

    Source: arXiv:2304.04820 and its code.
    """
    diffusion, predict = generator.diffusion, predict or generator.predict
    steps = diffusion.steps(settings.num_steps)
    check_guidance(generator, settings.guidance)
    spec, seeds, conditions = generator.spec, request.seeds, conditions_of(generator, request)
    binary = TokenSpec(spec.shape, (2,) * generator.num_bits, spec.ordered)
    start = known_tokens(request, spec, binary.codebook_sizes)
    shape, hidden = start.codes.shape[1:], start.hidden[..., None]
    coins = (uniform(seeds, _START, shape) < 0.5).long()
    bits = torch.where(hidden, coins, start.codes)
    failed = torch.zeros((), dtype=torch.int64, device=seeds.device)

    def present() -> Unfinished:
        tokens = Tokens(bits, binary, start.lengths).regroup(spec.codebook_sizes)
        return Unfinished(tokens, torch.zeros_like(start.hidden), guessed=True)

    for number, (time, earlier) in enumerate(counted(steps, present), 1):
        t, s = torch.full_like(seeds, time), torch.full_like(seeds, earlier)
        predicted = guided_prediction(predict, bits, t, conditions, start.valid, settings.guidance)
        logits = predicted / settings.temperature
        if earlier or settings.final == "sample":
            flip, _ = diffusion.reverse(logits, s, t)
            flips = uniform(seeds, number, shape) < flip
        else:
            scores = logits if settings.final == "reference" else diffusion.calibrated(logits, t)
            flips = scores > 0
        bits = torch.where(hidden, bits ^ flips, start.codes)
        failed = torch.where(~predicted.isfinite().all() & (failed == 0), number, failed)
    if number := int(failed):
        raise ValueError(f"sampling: the predicted logits are not finite in step {number}")
    return present().tokens


def _resolve(generator: BinaryLatentDiffusion, settings: BernoulliSampling) -> BernoulliSampling:
    steps = generator.diffusion.steps(settings.num_steps)
    return dataclasses.replace(settings, num_steps=len(steps))


def _published(config: BinaryLatentDiffusionConfig) -> BernoulliSampling | None:
    """Settings in the commands of ZeWang95/BinaryLatentDiffusion, for models of its size."""
    if (config.transformer.width, config.transformer.num_layers) != (768, 24):
        return None
    return BernoulliSampling(temperature=0.9, final="reference")


SAMPLER = Sampler(
    types=("bld",),
    settings=BernoulliSampling,
    draw=sample_bernoulli,
    resolve=_resolve,
    published=_published,
)
