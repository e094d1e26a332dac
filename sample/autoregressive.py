"""Sampler of autoregressive generators: positions in raster order, the codes of each one by one.

The trunk computes every position once; keys and values of earlier positions are kept in caches
allocated before the first one. The depth head does the same with the codes of a position. Guidance
acts on the logits of every code, and both halves of the batch continue with the same drawn code.

Editing keeps known codes. A drawn position sees what comes before it in raster order, known or
drawn, and nothing of what comes after it: what is drawn above or to the left of known parts does
not depend on them. The loop ends after the last position to draw.

Every random number is a function of (seed of the image, position, group, entry), so an image does
not depend on the batch or the process that draws it, up to the network's rounding. The loop never
waits for the device: predictions that are not finite are reported after it.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import STRICT
from ..generators.autoregressive import AutoregressiveGenerator
from ..generators.networks.llama import KVCache
from ..generators.noise import gumbel
from ..tokens.tokens import Tokens, TokenSpec
from .guidance import check_guidance, conditions_of, guide
from .known import known_tokens
from .request import Request
from .sampler import Sampler, check_settings
from .steps import Unfinished, counted


@dataclass(frozen=True, kw_only=True)
class AutoregressiveSampling:
    """Settings of the sampler of autoregressive generators.

    Args:
        num_steps: Number of positions, the only number of steps possible; None: the same.
        guidance: Scale of classifier-free guidance, on logits; 1 = off. Published: 1.5 to 2 for
            LlamaGen, 1 for UniTok's generator.
        temperature: Divisor of the guided logits, > 0.
        top_k: Number of likeliest codes to draw from; None: all.
        top_p: Probability mass of the likeliest codes to draw from, in (0, 1], with the code that
            reaches it included; 1: all. Applied after `top_k`.
    """

    __pydantic_config__ = STRICT
    num_steps: int | None = None
    guidance: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_settings(self, counts=("num_steps", "top_k"))
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected above 0 to 1, found {self.top_p}")


def autoregressive_steps(
    generator: AutoregressiveGenerator, settings: AutoregressiveSampling
) -> int:
    """Number of steps for a whole image, which is its number of positions.

    Raises:
        ValueError: If the settings have another number of steps.
    """
    positions = generator.spec.num_tokens
    if settings.num_steps not in (None, positions):
        raise ValueError(
            f"num_steps: an ar generator draws position by position, here {positions}; expected "
            f"{positions} or none, found {settings.num_steps}"
        )
    return positions


@torch.no_grad()
def sample_autoregressive(
    generator: AutoregressiveGenerator,
    request: Request,
    settings: AutoregressiveSampling,
    *,
    predict: None = None,
) -> Tokens:
    """Draw tokens with an autoregressive generator.

    Args:
        generator: Generator in eval mode.
        request: Images to draw: conditions, seeds, known tokens, lengths.
        settings: Settings of the sampler.
        predict: Always None: the network cannot be replaced, e.g. by a compiled one.

    Returns:
        Tokens of the generator's spec; known positions are unchanged.

    Raises:
        ValueError: If `num_steps` is not the number of positions, the generator is unconditional
            and guidance is not 1, or a prediction is not finite.

    Source: arXiv:2406.06525 section 2.2; over groups arXiv:2502.20321's code.
    """
    check_guidance(generator, settings.guidance)
    positions = autoregressive_steps(generator, settings)
    spec, sizes = generator.spec, generator.codebook_sizes
    seeds = request.seeds
    start = known_tokens(request, spec, sizes)
    codes, drawn_anew = start.codes.clone(), start.hidden.any(0).tolist()
    halves = 1 if settings.guidance == 1 else 2
    labels, text = conditions_of(generator, request)[halves - 1]
    prefix = 0 if text is None else text.valid.shape[1]
    caches = generator.trunk.new_caches(prefix + positions)
    depth_caches = generator.head.new_caches()
    failed = torch.zeros((), dtype=torch.int64, device=seeds.device)
    read_spec = TokenSpec(spec.shape, sizes, spec.ordered)

    def present() -> Unfinished:
        later = torch.arange(positions, device=seeds.device) > n
        tokens = Tokens(codes, read_spec, start.lengths).regroup(spec.codebook_sizes)
        return Unfinished(tokens, start.hidden & later, guessed=False)

    x, valid = generator.embed_condition(labels, text), None
    if text is not None:
        generator.trunk.read_prefix(text.tokens.to(x.dtype), caches, text.valid)
        valid = F.pad(text.valid, (0, positions), value=True)
    for n in counted(range(positions), present):
        if not any(drawn_anew[n:]):
            break
        seen = None if valid is None else valid[:, : prefix + n + 1]
        h = generator.trunk.step(x, caches, n, prefix, seen)
        if drawn_anew[n]:
            bad = _draw_position(
                generator, h, depth_caches, codes[:, n], start.hidden[:, n], seeds, n, settings
            )
            failed = torch.where(bad & (failed == 0), n + 1, failed)
        x = generator.input(codes[:, n]).repeat(halves, 1)
    if step := int(failed):
        raise ValueError(f"sampling: the predicted logits are not finite in step {step}")
    return present().tokens


def _draw_position(
    generator: AutoregressiveGenerator,
    h: Tensor,
    caches: Sequence[KVCache],
    codes: Tensor,
    hidden: Tensor,
    seeds: Tensor,
    position: int,
    settings: AutoregressiveSampling,
) -> Tensor:
    """Draw the codes of one position into `codes`.

    Args:
        generator: Generator in eval mode.
        h: Output of the trunk, (B, D); with guidance followed by that without a label, (2B, D).
        caches: Caches of the head, which are overwritten.
        codes: Codes of the position, (B, G) int64; known ones are kept.
        hidden: True for images in which the position is drawn, (B,) bool.
        seeds: Seed of each image, (B,) int64.
        position: Number of the position.
        settings: Settings of the sampler.

    Returns:
        Whether a logit is not finite, a scalar bool.
    """
    head, halves = generator.head, len(h) // len(codes)
    bad = torch.zeros((), dtype=torch.bool, device=h.device)
    x = h
    for g, size in enumerate(generator.codebook_sizes):
        logits = head.step(x, caches, g)
        if halves == 2:
            cond, uncond = logits.chunk(2)
            logits = guide(cond, uncond, settings.guidance)
        bad = bad | ~logits.isfinite().all()
        noise = gumbel(seeds, position * len(head.sizes) + g, (size,))
        scores = (
            keep_likeliest(logits / settings.temperature, settings.top_k, settings.top_p) + noise
        )
        codes[:, g] = torch.where(hidden, scores.argmax(-1), codes[:, g])
        if g + 1 < len(head.sizes):
            x = head.embed(codes[:, g], g).repeat(halves, 1)
    return bad


def keep_likeliest(logits: Tensor, top_k: int | None, top_p: float) -> Tensor:
    """Logits with -inf in place of unlikely entries; of equal entries the first are kept.

    Args:
        logits: Logits (B, K).
        top_k: Number of likeliest entries to keep; None: all.
        top_p: Smallest probability mass of the entries kept of those, the last one included; 1:
            all.

    Source: nucleus sampling, arXiv:1904.09751.
    """
    if (top_k is None or top_k >= logits.shape[-1]) and top_p == 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered = ordered[:, :top_k]
    before = F.pad(ordered.softmax(-1).cumsum(-1)[:, :-1], (1, 0))
    ordered = ordered.masked_fill(before >= top_p, -torch.inf)
    rest = torch.full_like(logits, -torch.inf)
    return rest.scatter(-1, order[:, : ordered.shape[-1]], ordered)


def _resolve(
    generator: AutoregressiveGenerator, settings: AutoregressiveSampling
) -> AutoregressiveSampling:
    return dataclasses.replace(settings, num_steps=autoregressive_steps(generator, settings))


SAMPLER = Sampler(
    types=("ar",),
    settings=AutoregressiveSampling,
    draw=sample_autoregressive,
    resolve=_resolve,
)
