"""The sampler of BiGR (arXiv:2410.14672): tokens are revealed in the order of their certainty.

Every step runs the trunk once over the picture, and the head through a whole chain of Bernoulli
diffusion over the hidden tokens, from fair coins to bits; the tokens whose bits are most certain
are revealed and never change. Editing is the same loop with some tokens known beforehand.

Every random number belongs to (seed of the image, draw, slot), so an image is the same in whatever
batch or process it is made, as far as the networks compute it the same. How many tokens are hidden
in which step is known before the first one, so the loop never waits for the device; predictions
that are not finite are reported after it.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..config import STRICT
from ..generators.bigr import BiGR
from ..generators.noise import gumbel, uniform
from ..generators.processes.masking import MaskSchedule
from ..tokens.tokens import Tokens, TokenSpec
from .guidance import check_guidance, guidance_at, guide
from .known import Start, find_start
from .masked import first
from .masked_steps import DONE, SamplingConfig, SamplingStep, sampling_table, steps_of_part

DEFAULT_STEPS = 20
DEFAULT_HEAD_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class BigrSampling:
    """How tokens are drawn from BiGR.

    Args:
        num_steps: Steps, at most the tokens to reveal; None: 20, or fewer where there are fewer.
        schedule: Share of tokens still hidden over the steps; published: `cosine`, and `linear`
            for editing.
        guidance: Scale of classifier-free guidance; 1 = off. Published: 2.5.
        guidance_schedule: `constant`, or `linear` from 1 up to the scale in the last step.
        temperature: Divides the predicted logits, > 0. Below 1, fewer bits are in doubt.
        randomness: Gumbel noise on the order, in units of the confidence. Published: 0.17, 0.25
            and 0.3 for the sizes L, XL and XXL; 0.01 gives safe pictures.
        randomness_schedule: `constant`, `down` to 0 in the last step, or `up` from 0.
        confidence: Certainty of a token from the probabilities p of its bits: `linear`, the mean
            of |2p - 1| (published); `entropy`, ln 2 less their mean entropy, in nats.
        head_steps: Steps of the head's chain, at most those of the training; None: 100, or fewer
            where there are fewer.
        final: The last step of the chain: `reference` draws each bit from p (published),
            `threshold` takes the likelier value, `sample` draws from the reverse kernel as in all
            other steps. With the balanced loss, p leaves out what the bit's own value says.
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
        for name in ("num_steps", "head_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, found {value}")
        for name in ("guidance", "randomness"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected at least 0, found {getattr(self, name)}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature: must be > 0, found {self.temperature}")


def bigr_table(config: BigrSampling, num_tokens: int) -> tuple[SamplingStep, ...]:
    """What each step does to one image.

    Every step reveals at least one token, where the reference may reveal none in some.

    Args:
        config: The sampler's settings.
        num_tokens: Tokens to reveal: when editing, the hidden ones. (The reference counts the known
            ones there, and then overwrites some.)

    Raises:
        ValueError: If there are more steps than tokens.
    """
    steps = min(DEFAULT_STEPS, num_tokens) if config.num_steps is None else config.num_steps
    counts = sampling_table(SamplingConfig(num_steps=steps, schedule=config.schedule), num_tokens)
    table = []
    for row in counts:
        done = row.step / steps
        ramp = {"constant": 1.0, "down": 1 - done, "up": done}[config.randomness_schedule]
        guidance = guidance_at(row.step, steps, config.guidance, config.guidance_schedule, 1.0)
        table.append(
            dataclasses.replace(
                row,
                guidance=guidance,
                temperature=config.temperature,
                randomness=config.randomness * ramp,
            )
        )
    return tuple(table)


def bigr_steps(generator: BiGR, config: BigrSampling) -> int:
    """Steps for a whole image.

    Raises:
        ValueError: If there are more of them than tokens, or more steps of the head than in the
            training.
    """
    head_chain(generator, config)
    return len(bigr_table(config, generator.spec.num_tokens))


def head_chain(generator: BiGR, config: BigrSampling) -> tuple[tuple[int, int], ...]:
    """Pairs of times (t, s) of the head's chain.

    Raises:
        ValueError: If it has more steps than the training.
    """
    most = generator.diffusion.num_steps
    steps = min(DEFAULT_HEAD_STEPS, most) if config.head_steps is None else config.head_steps
    if steps > most:
        raise ValueError(f"head_steps: expected 1 to the {most} of training, found {steps}")
    return generator.diffusion.steps(steps)


def sample_bigr(
    generator: BiGR,
    labels: Tensor,
    seeds: Tensor,
    config: BigrSampling,
    *,
    known: Tokens | None = None,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    predict: Callable[..., Tensor] | None = None,
    predict_flips: Callable[..., Tensor] | None = None,
) -> Tokens:
    """Draw tokens.

    Args:
        generator: In eval mode.
        labels: (B,) int64 in [0, num_classes]; `num_classes` = no label, where guidance has no
            effect.
        seeds: One per image, (B,) int64.
        config: Settings.
        known: Tokens to keep where `mask` is False, of the generator's spec; None: all are new.
        mask: True at positions to draw anew, (B, N) bool; goes with `known`.
        lengths: Valid positions of each image, (B,) int64, for ordered specs; None: all.
        predict: Stands in for `generator.predict`, e.g. a compiled one.
        predict_flips: Stands in for `generator.predict_flips`.

    Returns:
        Tokens of the generator's spec; known positions are unchanged.

    Raises:
        ValueError: If there are more steps than tokens in a whole image, or more steps of
            the head than in the training, known and mask do not fit, guidance is asked of an
            unconditional model, or a prediction was not finite.

    Source: arXiv:2410.14672 section 3.2 and its code.
    """
    sampler = BigrSampler(generator, seeds, config, predict, predict_flips)
    sizes = sampler.binary.codebook_sizes
    return sampler.run(find_start(generator.spec, sizes, seeds, known, mask, lengths), labels)


class BigrSampler:
    """The loop, and what stays the same over its steps.

    Args:
        generator: In eval mode.
        seeds: One per image, (B,) int64.
        config: Settings.
        predict: As of `sample_bigr`.
        predict_flips: As of `sample_bigr`.

    Raises:
        ValueError: If guidance is asked of an unconditional model, or the head has more steps than
            in the training.
    """

    def __init__(
        self,
        generator: BiGR,
        seeds: Tensor,
        config: BigrSampling,
        predict: Callable[..., Tensor] | None,
        predict_flips: Callable[..., Tensor] | None,
    ) -> None:
        check_guidance(generator, config.guidance)
        self.generator, self.diffusion, self.config = generator, generator.diffusion, config
        self.seeds = seeds
        self.predict = predict or generator.predict
        self.predict_flips = predict_flips or generator.predict_flips
        self.chain = head_chain(generator, config)
        self.times = torch.tensor(self.chain, device=seeds.device)
        self.shape = (generator.spec.num_tokens, generator.num_bits)
        spec = generator.spec
        self.binary = TokenSpec(spec.shape, (2,) * generator.num_bits, spec.ordered)

    @torch.no_grad()
    def run(self, start: Start, labels: Tensor) -> Tokens:
        """All steps, then one look at whether every prediction was finite.

        Args:
            start: Known bits and hidden positions.
            labels: (B,) int64 in [0, num_classes].

        Raises:
            ValueError: If there are more steps than tokens in a whole image, or a prediction
                was not finite.
        """
        hidden, bits = start.hidden, start.codes
        labeled = bool((labels < self.generator.num_classes).any())
        guided = self.config.guidance != 1 and labeled
        classes = self.generator.embed_classes(labels)
        steps = self._tables(hidden.sum(1).tolist())
        revealed, guidance, randomness = (
            torch.tensor([[getattr(row, name) for row in rows] for rows in steps])
            .to(self.seeds.device)
            .unsqueeze(-1)  # (I, B, 1)
            for name in ("revealed", "guidance", "randomness")
        )
        failed = torch.zeros((), dtype=torch.int64, device=self.seeds.device)
        draws = len(self.chain) + 2
        for step, rows in enumerate(steps):
            draw = step * draws
            acts = guided and any(row.guidance != 1 for row in rows)
            conditions = self._conditions(bits, hidden, classes, start.valid, acts)
            width = max(row.hidden + row.revealed for row in rows)
            # The hidden positions of each image first; where others have more, known ones follow.
            order = (~hidden).byte().argsort(dim=1, stable=True)[:, :width]
            conditions = _at(conditions, order.repeat(len(conditions) // len(order), 1))
            drawn, p, bad = self._denoise(conditions, order, guidance[step][..., None], draw)
            noise = _at(gumbel(self.seeds, draw + draws - 1, self.shape[:1])[..., None], order)
            priority = self._confidence(p) + randomness[step] * noise[..., 0]
            here = hidden.gather(1, order)
            chosen = first(priority.masked_fill(~here, -torch.inf), revealed[step]) & here
            drawn = torch.where(chosen[..., None], drawn, _at(bits, order))
            bits = bits.scatter(1, order[..., None].expand_as(drawn), drawn)
            hidden = hidden.scatter(1, order, here & ~chosen)
            failed = torch.where(bad & (failed == 0), step + 1, failed)
        if step := int(failed):
            raise ValueError(f"sampling: the predicted logits are not finite in step {step}")
        return Tokens(bits, self.binary, start.lengths).regroup(self.generator.spec.codebook_sizes)

    def _tables(self, counts: list[int]) -> list[tuple[SamplingStep, ...]]:
        """The rows of all images, step by step: each image has a table of its own.

        Where a part of an image is drawn there are at most as many steps as tokens in it.
        """
        tables = {}
        for count in set(counts):
            steps = steps_of_part(self.config.num_steps, count, self.generator.spec.num_tokens)
            tables[count] = bigr_table(dataclasses.replace(self.config, num_steps=steps), count)
        longest = max(len(table) for table in tables.values())
        padded = {n: table + (DONE,) * (longest - len(table)) for n, table in tables.items()}
        return list(zip(*(padded[count] for count in counts), strict=True))

    def _conditions(
        self, bits: Tensor, hidden: Tensor, classes: Tensor, valid: Tensor | None, guided: bool
    ) -> Tensor:
        """Conditions at every position, (B, N, D); with guidance those without a class after them,
        (2B, N, D)."""
        if not guided:
            return self.predict(bits, hidden, classes, valid)
        nothing = torch.full_like(self.seeds, self.generator.num_classes)
        return self.predict(
            torch.cat([bits] * 2),
            torch.cat([hidden] * 2),
            torch.cat([classes, self.generator.embed_classes(nothing)]),
            None if valid is None else torch.cat([valid] * 2),
        )

    def _denoise(
        self, conditions: Tensor, order: Tensor, guidance: Tensor, draw: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The head's chain, from fair coins to bits.

        Args:
            conditions: (B, M, D), or (2B, M, D) as of `_conditions`.
            order: Positions, (B, M) int64: the numbers of a slot are those of its position.
            guidance: Scale, (B, 1, 1).
            draw: Number of the first draw: one for the start, one for each step.

        Returns:
            Bits (B, M, K); p, (B, M, K) float32, the probability that a bit is 1 without what its
            own value says; and whether a prediction was not finite, a scalar.
        """
        diffusion, final = self.diffusion, self.config.final
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
        """Guided logits (B, M, K) of the flips, over the temperature; t is a scalar."""
        if len(conditions) == len(x):
            return self.predict_flips(x, t, conditions) / self.config.temperature
        cond, uncond = self.predict_flips(torch.cat([x] * 2), t, conditions).chunk(2)
        return guide(cond, uncond, guidance) / self.config.temperature

    def _confidence(self, p: Tensor) -> Tensor:
        """Certainty of tokens, (B, M), from the probabilities of their bits, (B, M, K)."""
        if self.config.confidence == "linear":
            return (2 * p - 1).abs().mean(-1)
        entropy = torch.special.entr(p) + torch.special.entr(1 - p)
        return math.log(2) - entropy.mean(-1)


def _at(x: Tensor, order: Tensor) -> Tensor:
    """The rows (B, M, C) of (B, N, C) at these positions, (B, M)."""
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))
