"""Sampler of BiGR (arXiv:2410.14672): tokens are revealed in the order of their certainty.

Every step runs the trunk once over the picture, and the head through a whole chain of Bernoulli
diffusion over the hidden tokens, from fair coins to bits; the tokens whose bits are most certain
are revealed and never change. Editing is the same loop with some tokens known beforehand.

Every random number is a function of (seed of the image, draw, slot), so an image does not depend on
the batch or the process that draws it, up to the networks' rounding. The number of hidden tokens in
every step is known before the first one, so the loop never waits for the device; predictions that
are not finite are reported after it.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..config import STRICT
from ..generators.bigr import BiGR, BigrConfig
from ..generators.conditions import TextTokens
from ..generators.noise import gumbel, uniform
from ..generators.processes.masking import MaskSchedule
from ..tokens.tokens import Tokens, TokenSpec
from .guidance import Conditions, check_guidance, conditions_of, guidance_at, guide
from .known import KnownTokens, known_tokens
from .masked import first
from .masked_steps import DONE, MaskedSampling, SamplingStep, sampling_table, steps_of_part
from .request import Request
from .sampler import Sampler, check_settings
from .steps import Unfinished, counted

DEFAULT_STEPS = 20
DEFAULT_HEAD_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class BigrSampling:
    """Settings of the sampler of BiGR.

    Args:
        num_steps: Number of steps, at most the tokens to reveal; None: 20, or fewer where there
            are fewer tokens.
        schedule: Share of tokens still hidden over the steps; published: `cosine`, and `linear`
            for editing.
        guidance: Scale of classifier-free guidance; 1 = off. Published: 2.5.
        guidance_schedule: Ramp of the guidance over the steps: `constant`, or `linear` from 1 to
            the scale in the last step.
        temperature: Divisor of the predicted logits, > 0; below 1 predictions are sharper.
        randomness: Scale of the Gumbel noise on the order, in units of the confidence. Published:
            0.17, 0.25 and 0.3 for the sizes L, XL and XXL; 0.01 gives safe pictures.
        randomness_schedule: Ramp of the randomness: `constant`, `down` to 0 in the last step, or
            `up` from 0.
        confidence: Certainty of a token from the probabilities p of its bits: `linear`, the mean
            of |2p - 1| (published); `entropy`, ln 2 less their mean entropy, in nats.
        head_steps: Number of steps of the head's chain, at most those of the training; None: 100,
            or fewer if the training had fewer.
        final: Last step of the chain: `reference` draws each bit from p (published), `threshold`
            takes the likelier value, `sample` draws from the reverse kernel as in all other steps.
            With the balanced loss, p does not use the bit's own value.
    """

    __pydantic_config__ = STRICT
    num_steps: int | None = None
    schedule: MaskSchedule = "cosine"
    guidance: float = 1.0
    guidance_schedule: Literal["constant", "linear"] = "constant"
    temperature: float = 1.0
    randomness: float = 0.17
    randomness_schedule: Literal["constant", "down", "up"] = "constant"
    confidence: Literal["linear", "entropy"] = "linear"
    head_steps: int | None = None
    final: Literal["reference", "threshold", "sample"] = "reference"

    def __post_init__(self) -> None:
        check_settings(self, counts=("num_steps", "head_steps"))
        if not 0 <= self.randomness < math.inf:
            raise ValueError(f"randomness: expected at least 0, found {self.randomness}")


def bigr_table(settings: BigrSampling, num_tokens: int) -> tuple[SamplingStep, ...]:
    """Table of all steps of one image.

    Every step reveals at least one token, where the reference may reveal none in some.

    Args:
        settings: Settings of the sampler.
        num_tokens: Number of tokens to reveal: when editing, the hidden ones (the reference counts
            the known ones as well, and then overwrites some).

    Raises:
        ValueError: If there are more steps than tokens.
    """
    steps = min(DEFAULT_STEPS, num_tokens) if settings.num_steps is None else settings.num_steps
    counts = sampling_table(MaskedSampling(num_steps=steps, schedule=settings.schedule), num_tokens)
    table = []
    for row in counts:
        done = row.step / steps
        ramp = {"constant": 1.0, "down": 1 - done, "up": done}[settings.randomness_schedule]
        guidance = guidance_at(row.step, steps, settings.guidance, settings.guidance_schedule, 1.0)
        table.append(
            dataclasses.replace(
                row,
                guidance=guidance,
                temperature=settings.temperature,
                randomness=settings.randomness * ramp,
            )
        )
    return tuple(table)


def head_chain(generator: BiGR, settings: BigrSampling) -> tuple[tuple[int, int], ...]:
    """Pairs of times (t, s) of the steps of the head's chain, from t back to s.

    Raises:
        ValueError: If the chain would have more steps than in training.
    """
    most = generator.diffusion.num_steps
    steps = min(DEFAULT_HEAD_STEPS, most) if settings.head_steps is None else settings.head_steps
    if steps > most:
        raise ValueError(f"head_steps: expected 1 to the {most} of training, found {steps}")
    return generator.diffusion.steps(steps)


def sample_bigr(
    generator: BiGR,
    request: Request,
    settings: BigrSampling,
    *,
    predict: Callable[..., Tensor] | None = None,
    predict_flips: Callable[..., Tensor] | None = None,
) -> Tokens:
    """Draw tokens with BiGR.

    Args:
        generator: Generator in eval mode.
        request: Images to draw: conditions, seeds, known tokens, lengths.
        settings: Settings of the sampler.
        predict: Replacement of `generator.predict`, e.g. a compiled one; None: the method.
        predict_flips: Replacement of `generator.predict_flips`; None: the method.

    Returns:
        Tokens of the generator's spec; known positions are unchanged.

    Raises:
        ValueError: If there are more steps than tokens in a whole image, or more steps of the head
            than in training, if the generator is unconditional and guidance is not 1, or if a
            prediction is not finite.

    Source: arXiv:2410.14672 section 3.2 and its code.
    """
    sampler = BigrSampler(generator, request.seeds, settings, predict, predict_flips)
    start = known_tokens(request, generator.spec, sampler.binary.codebook_sizes)
    return sampler.run(start, conditions_of(generator, request))


class BigrSampler:
    """Sampling loop of BiGR, with everything that is the same in all steps.

    Args:
        generator: Generator in eval mode.
        seeds: Seed of each image, (B,) int64.
        settings: Settings of the sampler.
        predict: Replacement of `generator.predict`; None: the method.
        predict_flips: Replacement of `generator.predict_flips`; None: the method.

    Raises:
        ValueError: If the generator is unconditional and guidance is not 1, or the head has more
            steps than in training.
    """

    def __init__(
        self,
        generator: BiGR,
        seeds: Tensor,
        settings: BigrSampling,
        predict: Callable[..., Tensor] | None,
        predict_flips: Callable[..., Tensor] | None,
    ) -> None:
        check_guidance(generator, settings.guidance)
        self.generator, self.diffusion, self.settings = generator, generator.diffusion, settings
        self.seeds = seeds
        self.predict = predict or generator.predict
        self.predict_flips = predict_flips or generator.predict_flips
        self.chain = head_chain(generator, settings)
        self.times = torch.tensor(self.chain, device=seeds.device)
        self.shape = (generator.spec.num_tokens, generator.num_bits)
        spec = generator.spec
        self.binary = TokenSpec(spec.shape, (2,) * generator.num_bits, spec.ordered)

    @torch.no_grad()
    def run(self, start: KnownTokens, conditions: tuple[Conditions, Conditions]) -> Tokens:
        """Run all steps and return the tokens.

        Args:
            start: Known bits and hidden positions.
            conditions: Conditions of the images, and of both halves.

        Raises:
            ValueError: If there are more steps than tokens in a whole image, or a prediction is
                not finite.
        """
        hidden, bits = start.hidden, start.codes
        one, _ = conditions
        asked = one.text is not None or bool((one.labels < self.generator.num_classes).any())
        guided = self.settings.guidance != 1 and asked
        embedded = [(self.generator.embed_classes(labels), text) for labels, text in conditions]
        steps = self._tables(hidden.sum(1).tolist())
        revealed, guidance, randomness = (
            torch.tensor([[getattr(row, name) for row in rows] for rows in steps])
            .to(self.seeds.device)
            .unsqueeze(-1)  # (I, B, 1)
            for name in ("revealed", "guidance", "randomness")
        )
        failed = torch.zeros((), dtype=torch.int64, device=self.seeds.device)
        draws = len(self.chain) + 2

        def present() -> Unfinished:
            guess = bits.scatter(1, order[..., None].expand_as(drawn), drawn)
            shown = torch.where(hidden[..., None], guess, bits)
            tokens = Tokens(shown, self.binary, start.lengths)
            tokens = tokens.regroup(self.generator.spec.codebook_sizes)
            return Unfinished(tokens, hidden, guessed=True)

        for step, rows in enumerate(counted(steps, present)):
            draw = step * draws
            acts = guided and any(row.guidance != 1 for row in rows)
            outputs = self._conditions(bits, hidden, *embedded[acts], start.valid)
            width = max(row.hidden + row.revealed for row in rows)
            # Hidden positions of each image first; known ones fill up to the largest number.
            order = (~hidden).byte().argsort(dim=1, stable=True)[:, :width]
            outputs = _at(outputs, order.repeat(len(outputs) // len(order), 1))
            drawn, p, bad = self._denoise(outputs, order, guidance[step][..., None], draw)
            noise = _at(gumbel(self.seeds, draw + draws - 1, self.shape[:1])[..., None], order)
            priority = self._confidence(p) + randomness[step] * noise[..., 0]
            here = hidden.gather(1, order)
            chosen = first(priority.masked_fill(~here, -torch.inf), revealed[step]) & here
            revealed_bits = torch.where(chosen[..., None], drawn, _at(bits, order))
            bits = bits.scatter(1, order[..., None].expand_as(drawn), revealed_bits)
            hidden = hidden.scatter(1, order, here & ~chosen)
            failed = torch.where(bad & (failed == 0), step + 1, failed)
        if step := int(failed):
            raise ValueError(f"sampling: the predicted logits are not finite in step {step}")
        return present().tokens

    def _tables(self, counts: list[int]) -> list[tuple[SamplingStep, ...]]:
        """Table rows of all images, step by step; an image has one table row per step.

        The part of an image that is edited has at most as many steps as tokens.
        """
        tables = {}
        for count in set(counts):
            steps = steps_of_part(self.settings.num_steps, count, self.generator.spec.num_tokens)
            tables[count] = bigr_table(dataclasses.replace(self.settings, num_steps=steps), count)
        longest = max(len(table) for table in tables.values())
        padded = {n: table + (DONE,) * (longest - len(table)) for n, table in tables.items()}
        return list(zip(*(padded[count] for count in counts), strict=True))

    def _conditions(
        self,
        bits: Tensor,
        hidden: Tensor,
        classes: Tensor,
        text: TextTokens | None,
        valid: Tensor | None,
    ) -> Tensor:
        """Conditions of all positions, (B, N, D), for each half of the batch of `classes`."""
        halves = len(classes) // len(bits)
        if halves == 1:
            return self.predict(bits, hidden, classes, valid, text)
        valid = None if valid is None else torch.cat([valid] * halves)
        bits, hidden = torch.cat([bits] * halves), torch.cat([hidden] * halves)
        return self.predict(bits, hidden, classes, valid, text)

    def _denoise(
        self, conditions: Tensor, order: Tensor, guidance: Tensor, draw: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the head's chain, from fair coins to bits.

        Args:
            conditions: Conditions (B, M, D), or (2B, M, D) from `_conditions` if guided.
            order: Positions, (B, M) int64; random numbers belong to the position.
            guidance: Guidance scale, (B, 1, 1).
            draw: Number of the first random draw: one for the start, one for each step.

        Returns:
            Bits (B, M, K); p, (B, M, K) float32, the probability that a bit is 1, not using its own
            value; and whether a prediction is not finite, a scalar bool.
        """
        diffusion, final = self.diffusion, self.settings.final
        x = (_at(uniform(self.seeds, draw, self.shape), order) < 0.5).long()
        bad = torch.zeros((), dtype=torch.bool, device=x.device)
        for number, (t, s) in enumerate(self.times[:-1], 1):
            logits = self._logits(x, t, conditions, guidance)
            bad = bad | ~logits.isfinite().all()
            flip, _ = diffusion.reverse(logits, s, t)
            x = x ^ (_at(uniform(self.seeds, draw + number, self.shape), order) < flip)
        t, s = self.times[-1]
        logits = self._logits(x, t, conditions, guidance)
        cavity = logits if diffusion.loss == "balanced" else logits + diffusion.evidence(t).float()
        p = torch.where(x == 1, -cavity, cavity).sigmoid()
        noise = _at(uniform(self.seeds, draw + len(self.times), self.shape), order)
        match final:
            case "reference":
                drawn = noise < p
            case "threshold":
                drawn = p > 0.5
            case "sample":
                drawn = (noise < diffusion.reverse(logits, s, t)[0]) ^ (x == 1)
        return drawn.long(), p, bad | ~logits.isfinite().all()

    def _logits(self, x: Tensor, t: Tensor, conditions: Tensor, guidance: Tensor) -> Tensor:
        """Guided logits (B, M, K) of the flips, divided by the temperature; t is a scalar."""
        if len(conditions) == len(x):
            return self.predict_flips(x, t, conditions) / self.settings.temperature
        cond, uncond = self.predict_flips(torch.cat([x] * 2), t, conditions).chunk(2)
        return guide(cond, uncond, guidance) / self.settings.temperature

    def _confidence(self, p: Tensor) -> Tensor:
        """Certainty of tokens, (B, M), from the probabilities of their bits, (B, M, K)."""
        if self.settings.confidence == "linear":
            return (2 * p - 1).abs().mean(-1)
        entropy: Tensor = torch.special.entr(p) + torch.special.entr(1 - p)
        return math.log(2) - entropy.mean(-1)


def _at(x: Tensor, order: Tensor) -> Tensor:
    """Rows (B, M, C) of x (B, N, C) at the positions `order` (B, M)."""
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))


def _table(generator: BiGR, settings: BigrSampling) -> tuple[SamplingStep, ...]:
    return bigr_table(settings, generator.spec.num_tokens)


def _resolve(generator: BiGR, settings: BigrSampling) -> BigrSampling:
    return dataclasses.replace(
        settings,
        num_steps=len(_table(generator, settings)),
        head_steps=len(head_chain(generator, settings)),
    )


_PUBLISHED = {(1024, 24): (20, 0.17), (1280, 36): (25, 0.25), (1536, 48): (25, 0.3)}
"""Steps and randomness by width and layers (arXiv:2410.14672)."""


def _published(config: BigrConfig) -> BigrSampling | None:
    size = (config.transformer.width, config.transformer.num_layers)
    if size not in _PUBLISHED:
        return None
    steps, randomness = _PUBLISHED[size]
    return BigrSampling(num_steps=steps, guidance=2.5, randomness=randomness, head_steps=100)


SAMPLER = Sampler(
    types=("bigr",),
    settings=BigrSampling,
    draw=sample_bigr,
    resolve=_resolve,
    table=_table,
    published=_published,
)
