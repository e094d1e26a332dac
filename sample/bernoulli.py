"""The sampler of Bernoulli diffusion over all bits of an image (arXiv:2304.04820).

It starts from fair coins, and every step flips each bit with the probability that the reverse
kernel of the process gives it (`generators/bernoulli_diffusion.py`). Editing is the same loop with
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
from ..tokenizers.tokens import Tokens, TokenSpec
from .guidance import guided_prediction

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
    if generator.num_classes == 0 and config.guidance != 1:
        raise ValueError("guidance: this generator is unconditional, there is nothing to guide")
    start = find_start(generator.spec, len(seeds), seeds.device, known, mask, lengths)
    shape = start.bits.shape[1:]
    coins = (uniform(seeds, _START, shape) < 0.5).long()
    bits = torch.where(start.hidden, coins, start.bits)
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
        bits = torch.where(start.hidden, bits ^ flips, start.bits)
        failed = torch.where(~predicted.isfinite().all() & (failed == 0), number, failed)
    if number := int(failed):
        raise ValueError(f"sampling: the predicted logits are not finite in step {number}")
    binary = TokenSpec(generator.spec.shape, (2,) * shape[-1], generator.spec.ordered)
    return Tokens(bits, binary, start.lengths).regroup(generator.spec.codebook_sizes)


@dataclass(frozen=True, eq=False)
class Start:
    """What a sampler of bits begins with.

    Args:
        bits: Known bits, (B, N, K) int64; 0 where none is known.
        hidden: True at positions to draw, (B, N, 1) bool.
        valid: True at real positions, (B, N) bool; None: all.
        lengths: Real positions of each image, (B,) int64; None: all.
    """

    bits: Tensor
    hidden: Tensor
    valid: Tensor | None
    lengths: Tensor | None


def find_start(
    spec: TokenSpec,
    batch: int,
    device: torch.device,
    known: Tokens | None,
    mask: Tensor | None,
    lengths: Tensor | None,
) -> Start:
    """Which positions a sampler of bits draws and which it knows; arguments as of its caller.

    Raises:
        ValueError: If known tokens and mask do not fit each other or the batch, or an image has
            nothing to draw.
    """
    hidden = torch.ones(batch, spec.num_tokens, dtype=torch.bool, device=device)
    num_bits = spec.vocab_size.bit_length() - 1
    bits = torch.zeros(batch, spec.num_tokens, num_bits, dtype=torch.int64, device=device)
    valid = None
    if (known is None) != (mask is None):
        raise ValueError("known tokens and the mask of positions to redraw go together")
    if known is not None and mask is not None:
        if mask.shape != hidden.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"mask: expected ({batch}, {spec.num_tokens}) bool, found {tuple(mask.shape)} "
                f"{mask.dtype}"
            )
        known.require(spec, reader="the generator")
        if len(known) != batch:
            raise ValueError(f"known: expected {batch} images, found {len(known)}")
        known = known.to(device)
        hidden = mask.to(device) | ~known.valid  # what a longer result adds was never known
        bits = known.bits()
        lengths = known.lengths if lengths is None else lengths
    if lengths is not None:
        valid = torch.arange(spec.num_tokens, device=device) < lengths[:, None]
        hidden = hidden & valid
        bits = bits * valid[..., None]
    if not hidden.any(1).all():
        raise ValueError("mask: nothing to draw anew in at least one image")
    return Start(bits.masked_fill(hidden[..., None], 0), hidden[..., None], valid, lengths)
