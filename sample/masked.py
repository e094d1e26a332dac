"""Samplers of masked generators: confidence, Halton and entropy order over one unmasking loop.

All slots (positions times groups) start hidden, except known ones when editing. One step:

    logits = guide(predict(indices, hidden, label), predict(indices, hidden, none), guidance)
    p = softmax(logits / temperature)                # predict an entry for every slot
    drawn = draw(p)                                  # draw an entry for every slot
    chosen = the `revealed` highest of rank(p, drawn) among the hidden slots
    indices[chosen], hidden[chosen] = drawn[chosen], False

Revealed slots never change; after the last step none is hidden, and the tokenizer decodes the
picture. The samplers differ in `rank` alone: confidence, entropy or Halton order. The table of
`masked_steps.py` gives `revealed`, `guidance` and `temperature` of each step.

Every random number is a function of (seed of the image, step, slot), so an image does not depend on
the batch or the process that draws it, up to the network's rounding. The loop has static shapes and
never waits for the device: counts, scales and temperatures are uploaded before it starts, and
predictions that are not finite are reported after it.
"""

import dataclasses
from collections.abc import Callable
from typing import assert_never

import torch
from torch import Tensor

from ..generators.masked import MaskBitConfig, MaskedGenerator, MaskGITConfig
from ..generators.noise import gumbel, uniform
from ..tokens.tokens import Tokens
from .guidance import check_guidance, conditions_of, guide
from .halton import halton_order
from .known import known_tokens
from .masked_steps import DONE, MaskedSampling, SamplingStep, sampling_table, steps_of_part
from .request import Request
from .sampler import Sampler
from .steps import Unfinished, counted

Ranking = Callable[[Tensor, Tensor, int], Tensor]
"""(distributions (B, N, G, K), drawn entries (B, N, G), step) to priorities (B, N, G)."""
_DRAWS = 2  # random draws per step: entries, order
_SETUP = 2**31  # number of the draw before the first step, apart from those of the steps


def sample_masked(
    generator: MaskedGenerator,
    request: Request,
    settings: MaskedSampling,
    *,
    predict: Callable[..., Tensor] | None = None,
) -> Tokens:
    """Draw tokens with a masked generator, in the order that `settings.sampler` names.

    Args:
        generator: Generator in eval mode.
        request: Images to draw: conditions, seeds, known tokens, lengths.
        settings: Settings of the sampler.
        predict: Replacement of `generator.predict`, e.g. a compiled one; None: the method.

    Returns:
        Tokens of the generator's spec; known positions are unchanged.

    Raises:
        ValueError: If there are more steps than slots in a whole image, the generator is
            unconditional and guidance is not 1, or a prediction is not finite.
    """
    state = SamplingState(generator, request, settings, predict or generator.predict)
    match settings.sampler:
        case "confidence":
            return state.run(confidence_ranking(state))
        case "entropy":
            return state.run(entropy_ranking(state))
        case "halton":
            return state.run(halton_ranking(state))
        case _:
            assert_never(settings.sampler)


def confidence_ranking(state: "SamplingState") -> Ranking:
    """Rank slots by log p of the drawn entry plus Gumbel noise, the highest first.

    Source: arXiv:2202.04200 section 3.2, in the form of arXiv:2409.16211's code: noise times 1 - t,
    in nats. Of equal slots the first is revealed; the reference then reveals too few, or all.
    """

    def rank(p: Tensor, drawn: Tensor, step: int) -> Tensor:
        confidence = p.gather(-1, drawn[..., None])[..., 0].log()
        noise = gumbel(state.seeds, _DRAWS * step + 1, confidence.shape[1:])
        return confidence + state.randomness[step] * noise

    return rank


def entropy_ranking(state: "SamplingState") -> Ranking:
    """Rank slots by the entropy of the predicted distribution, the lowest first.

    Source: arXiv:2410.14672 (BiGR) orders bits in this way; here the order is by the entropy of a
    group, in nats, less Gumbel noise times 1 - t.
    """

    def rank(p: Tensor, drawn: Tensor, step: int) -> Tensor:
        certainty: Tensor = torch.special.entr(p).sum(-1).neg()
        noise = gumbel(state.seeds, _DRAWS * step + 1, certainty.shape[1:])
        return certainty + state.randomness[step] * noise

    return rank


def halton_ranking(state: "SamplingState") -> Ranking:
    """Rank slots in Halton order, which spreads every step over the picture, without noise.

    Source: arXiv:2503.17076, whose temperature multiplies the logits; ours divides them. With
    several groups the order runs over the slots; see `MaskedSampling.halton_groups`.
    """
    settings, seeds = state.settings, state.seeds
    num_tokens, num_groups = state.generator.spec.num_tokens, state.generator.num_groups
    place = torch.empty(num_tokens, dtype=torch.int64)
    place[halton_order(state.generator.spec.shape)] = torch.arange(num_tokens)
    place = place.to(seeds.device)[None, :, None].expand(len(seeds), -1, num_groups)
    groups = torch.arange(num_groups, device=seeds.device)
    together = settings.halton_groups == "together"
    if settings.halton_roll:
        offsets = uniform(seeds, _SETUP, (1, num_groups)).mul(num_tokens).long()
        place = (place + (offsets[..., :1] if together else offsets)) % num_tokens
    order = place * num_groups + groups if together else groups * num_tokens + place
    return lambda p, drawn, step: -order.float()


class SamplingState:
    """State of the loop: indices, hidden slots, and the table on the device.

    Args:
        generator: Generator in eval mode.
        request: Images to draw: conditions, seeds, known tokens, lengths.
        settings: Settings of the sampler.
        predict: `generator.predict`, or a replacement of it.
    """

    def __init__(
        self,
        generator: MaskedGenerator,
        request: Request,
        settings: MaskedSampling,
        predict: Callable[..., Tensor],
    ) -> None:
        self.generator, self.settings, self.predict = generator, settings, predict
        self.conditions, self.seeds = conditions_of(generator, request), request.seeds
        start = known_tokens(request, generator.spec, generator.codebook_sizes)
        self.indices, self.valid, self.lengths = start.codes, start.valid, start.lengths
        self.hidden, self.guess = start.hidden[..., None].expand_as(start.codes), start.codes
        self._tabulate(settings, start.hidden.sum(1).tolist())

    def _tabulate(self, settings: MaskedSampling, positions: list[int]) -> None:
        """Upload the table of every image, which depends on its number of hidden positions."""
        groups = self.generator.num_groups
        unit = settings.unit(groups)
        check_guidance(self.generator, settings.guidance)
        whole, tables = self.generator.spec.num_tokens * groups // unit, {}
        for n in set(positions):
            slots = n * groups // unit
            part = dataclasses.replace(
                settings, num_steps=steps_of_part(settings.num_steps, slots, whole)
            )
            tables[n] = sampling_table(part, slots)
        longest = max(len(table) for table in tables.values())
        padded = {n: table + (DONE,) * (longest - len(table)) for n, table in tables.items()}
        steps = list(zip(*(padded[n] for n in positions), strict=True))  # (T, B)
        self.guided = [any(row.guidance != 1 for row in rows) for rows in steps]
        self.greedy = settings.temperature == 0 and not settings.temperature_end

        def column(name: str, scale: int = 1) -> Tensor:
            values = [[getattr(row, name) * scale for row in rows] for rows in steps]
            return torch.tensor(values, device=self.seeds.device)[..., None]  # (T, B, 1)

        self.revealed = column("revealed", unit)
        self.randomness = column("randomness")[..., None]
        self.guidance = column("guidance")[..., None, None]
        self.temperature = column("temperature")[..., None, None]

    @torch.no_grad()
    def run(self, rank: Ranking) -> Tokens:
        """Run all steps and return the tokens.

        Args:
            rank: Ranking of the hidden slots.

        Raises:
            ValueError: If a prediction is not finite.
        """
        sizes = torch.tensor(self.generator.codebook_sizes, device=self.seeds.device)
        failed = torch.zeros((), dtype=torch.int64, device=self.seeds.device)
        for step, guided in enumerate(counted(self.guided, self._present)):
            logits = self._logits(step, guided)
            if self.greedy:
                p, drawn = logits.softmax(-1), logits.argmax(-1)
            else:
                # Annealing may end at temperature 0, where the likeliest entry has p = 1.
                p = (logits / self.temperature[step].clamp(min=1e-6)).softmax(-1)
                drawn = draw(p, uniform(self.seeds, _DRAWS * step, p.shape[1:3]))
                drawn = torch.minimum(drawn, sizes - 1)  # a parallel cumsum may round beyond it
            bad = p.isnan().any() & (failed == 0)
            failed = torch.where(bad, step + 1, failed)
            priority = rank(p, drawn, step).masked_fill(~self.hidden, -torch.inf)
            chosen = first(priority.flatten(1), self.revealed[step]).view_as(self.hidden)
            chosen = chosen & self.hidden
            self.indices, self.guess = torch.where(chosen, drawn, self.indices), drawn
            self.hidden = self.hidden & ~chosen
        if number := int(failed):
            raise ValueError(f"sampling: the predicted logits are not finite in step {number}")
        return self._present().tokens

    def _present(self) -> Unfinished:
        """The tokens as they are, with what was last drawn in hidden slots."""
        indices = torch.where(self.hidden, self.guess, self.indices)
        tokens = Tokens(indices, self.generator.masked_spec, self.lengths)
        tokens = tokens.regroup(self.generator.spec.codebook_sizes)
        return Unfinished(tokens, self.hidden.any(-1), guessed=True)

    def _logits(self, step: int, guided: bool) -> Tensor:
        """Guided logits (B, N, G, K) from one forward pass, of twice the batch if guided."""
        one, halves = self.conditions
        if not guided:
            return self.predict(self.indices, self.hidden, one.labels, self.valid, one.text)
        both = self.predict(
            torch.cat([self.indices] * 2),
            torch.cat([self.hidden] * 2),
            halves.labels,
            None if self.valid is None else torch.cat([self.valid] * 2),
            halves.text,
        )
        cond, uncond = both.chunk(2)
        return guide(cond, uncond, self.guidance[step])


def draw(p: Tensor, u: Tensor) -> Tensor:
    """Draw entries by inverting the cumulative distribution.

    Args:
        p: Distributions over the last dimension, (..., K); they need not sum to 1.
        u: Uniform random number in (0, 1) for each distribution, (...).

    Returns:
        The first entry whose cumulative share reaches u, (...) int64; never one with p = 0.
    """
    cumulative = p.cumsum(-1)
    target = (u * cumulative[..., -1])[..., None]
    return torch.searchsorted(cumulative, target)[..., 0].clamp(max=p.shape[-1] - 1)


def first(priority: Tensor, count: Tensor) -> Tensor:
    """Mask of the highest priorities in each row, (B, M) bool.

    Args:
        priority: Priorities (B, M); of equal ones, those of lower index come first.
        count: Number of entries to mark in each row, (B, 1) int64.
    """
    order = priority.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(priority.shape[1], device=priority.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places) < count


def masked_table(generator: MaskedGenerator, settings: MaskedSampling) -> tuple[SamplingStep, ...]:
    """Table of the steps that draw a whole image.

    Raises:
        ValueError: If there are more steps than slots.
    """
    slots = generator.spec.num_tokens * generator.num_groups
    return sampling_table(settings, slots // settings.unit(generator.num_groups))


def _resolve(generator: MaskedGenerator, settings: MaskedSampling) -> MaskedSampling:
    return dataclasses.replace(settings, num_steps=len(masked_table(generator, settings)))


_PUBLISHED = {  # number of bits: guidance s, noise on the order, power of the guidance ramp
    10: (6.4, 10.5, 2.5),
    12: (7.1, 8.2, 3.0),
    14: (7.1, 7.8, 3.0),
    16: (6.5, 7.5, 2.5),
    18: (5.7, 8.5, 2.5),
}


def _published(config: MaskBitConfig | MaskGITConfig) -> MaskedSampling | None:
    """Settings of markweberdev/maskbit's table of results: 64 steps, guidance s + 1."""
    sizes, trunk = config.codebook_sizes or (), config.transformer
    num_bits = sum(size.bit_length() - 1 for size in sizes)
    published_size = (trunk.width, trunk.num_layers, len(sizes)) == (1024, 24, 2)
    if config.type != "maskbit" or not published_size or num_bits not in _PUBLISHED:
        return None
    scale, noise, power = _PUBLISHED[num_bits]
    return MaskedSampling(
        num_steps=64,
        guidance=1 + scale,
        guidance_power=power,
        randomness=noise,
        counts="published",
    )


SAMPLER = Sampler(
    types=("maskbit", "maskgit"),
    settings=MaskedSampling,
    draw=sample_masked,
    resolve=_resolve,
    table=masked_table,
    published=_published,
)
