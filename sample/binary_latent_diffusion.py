"""The sampler of Bernoulli diffusion over all bits of an image (arXiv:2304.04820).

It starts from fair coins, and every step flips each bit with the probability that the reverse
kernel of the process gives it (`generators/processes/bernoulli.py`). Editing is the same loop with
the bits of some positions put back, without noise, after every step.

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
from ..generators.binary_latent_diffusion import BinaryLatentDiffusion
from ..generators.noise import uniform
from ..tokens.tokens import Tokens, TokenSpec
from .guidance import check_guidance, guided_prediction
from .known import find_start

_START = 0  # draw of the fair coins; step i, from 1, is draw i


@dataclass(frozen=True, kw_only=True)
class BernoulliSampling:
    """How tokens are drawn from binary latent diffusion.

    Args:
        num_steps: Steps, at most those of the training; None: as many.
        guidance: Scale of classifier-free guidance; 1 = off. The reference's omega is this less 1.
        temperature: Divides the predicted logits, > 0. Below 1, fewer bits are in doubt.
        final: The last step: `sample` draws it, as all others; `map` takes the likelier value of
            each bit; `reference` flips where the predicted logit is positive, as the published
            code. For the balanced loss that is not the likelier value: it leaves out what the bit's
            own value says, and narrows the distribution.
    """

    __pydantic_config__ = STRICT
    num_steps: int | None = None
    guidance: float = 1.0
    temperature: float = 1.0
    final: Literal["sample", "map", "reference"] = "sample"

    def __post_init__(self) -> None:
        if self.num_steps is not None and self.num_steps < 1:
            raise ValueError(f"num_steps: expected at least 1, found {self.num_steps}")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance: expected at least 0, found {self.guidance}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature: must be > 0, found {self.temperature}")


@torch.no_grad()
def sample_bernoulli(
    generator: BinaryLatentDiffusion,
    labels: Tensor,
    seeds: Tensor,
    config: BernoulliSampling,
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
        ValueError: If there are more steps than in the training, known and mask do not fit,
            guidance is asked of an unconditional model, or a prediction was not finite.

    Source: arXiv:2304.04820 and its code.
    """
    diffusion, predict = generator.diffusion, predict or generator.predict
    steps = diffusion.steps(config.num_steps)
    check_guidance(generator, config.guidance)
    spec = generator.spec
    binary = TokenSpec(spec.shape, (2,) * generator.num_bits, spec.ordered)
    start = find_start(spec, binary.codebook_sizes, seeds, known, mask, lengths)
    shape, hidden = start.codes.shape[1:], start.hidden[..., None]
    coins = (uniform(seeds, _START, shape) < 0.5).long()
    bits = torch.where(hidden, coins, start.codes)
    failed = torch.zeros((), dtype=torch.int64, device=seeds.device)
    for number, (time, earlier) in enumerate(steps, 1):
        t, s = torch.full_like(labels, time), torch.full_like(labels, earlier)
        predicted = guided_prediction(
            *(predict, bits, t, labels, start.valid),
            no_label=generator.num_classes,
            scale=config.guidance,
        )
        logits = predicted / config.temperature
        if earlier or config.final == "sample":
            flip, _ = diffusion.reverse(logits, s, t)
            flips = uniform(seeds, number, shape) < flip
        else:
            scores = logits if config.final == "reference" else diffusion.calibrated(logits, t)
            flips = scores > 0
        bits = torch.where(hidden, bits ^ flips, start.codes)
        failed = torch.where(~predicted.isfinite().all() & (failed == 0), number, failed)
    if number := int(failed):
        raise ValueError(f"sampling: the predicted logits are not finite in step {number}")
    return Tokens(bits, binary, start.lengths).regroup(spec.codebook_sizes)
