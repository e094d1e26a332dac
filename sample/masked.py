"""Samplers of masked generators: confidence, Halton and entropy order over one unmasking loop.

Every step predicts all slots, draws an entry for each hidden one, ranks the hidden slots, and
reveals as many as the table says (`sampling.py`); revealed slots never change. The samplers differ
in the ranking. Editing is the same loop with some slots known beforehand.

Every random number belongs to (seed of the image, step, slot), so an image is the same in whatever
batch or process it is made, as far as the network computes it the same. The loop has static
shapes and never waits for the device: counts, scales and temperatures are uploaded before it
starts, and predictions that are not finite are reported after it.
"""

import dataclasses
from collections.abc import Callable
from typing import assert_never

import torch
from torch import Tensor

from ..generators.masked import MaskedGenerator
from ..generators.noise import gumbel, uniform
from ..tokens.tokens import Tokens
from .guidance import check_guidance, guide
from .halton import halton_order
from .known import find_start
from .masked_steps import DONE, SamplingConfig, sampling_table, steps_of_part

Ranking = Callable[[Tensor, Tensor, int], Tensor]
"""(distributions (B, N, G, K), drawn entries (B, N, G), step) to priorities (B, N, G)."""
_DRAWS = 2  # of every step: entries, order
_SETUP = 2**31  # draws before the first step, apart from those of the steps


def sample_masked(
    generator: MaskedGenerator,
    labels: Tensor,
    seeds: Tensor,
    config: SamplingConfig,
    *,
    known: Tokens | None = None,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    predict: Callable[..., Tensor] | None = None,
) -> Tokens:
    """Draw tokens with the sampler that the config names.

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
        ValueError: If there are more steps than slots of a whole image, known and mask do not fit,
            guidance is asked of an unconditional model, or a prediction was not finite.
    """
    state = SamplingState(
        generator, labels, seeds, config, known, mask, lengths, predict or generator.predict
    )
    match config.sampler:
        case "confidence":
            return state.run(confidence_ranking(state))
        case "entropy":
            return state.run(entropy_ranking(state))
        case "halton":
            return state.run(halton_ranking(state))
        case _:
            assert_never(config.sampler)


def confidence_ranking(state: "SamplingState") -> Ranking:
    """log p of the drawn entry plus Gumbel noise.

    Source: arXiv:2202.04200 section 3.2, in the form of arXiv:2409.16211's code: noise times 1 - t,
    in nats. Ties go to the first slot; the reference then reveals too few, or all.
    """

    def rank(p: Tensor, drawn: Tensor, step: int) -> Tensor:
        confidence = p.gather(-1, drawn[..., None])[..., 0].log()
        noise = gumbel(state.seeds, _DRAWS * step + 1, confidence.shape[1:])
        return confidence + state.randomness[step] * noise

    return rank


def entropy_ranking(state: "SamplingState") -> Ranking:
    """Least entropy of the predicted distribution first, whatever entry was drawn.

    Source: arXiv:2410.14672 (BiGR) orders bits so; here it is the entropy of a group, in nats, less
    Gumbel noise times 1 - t.
    """

    def rank(p: Tensor, drawn: Tensor, step: int) -> Tensor:
        certainty = torch.special.entr(p).sum(-1).neg()
        noise = gumbel(state.seeds, _DRAWS * step + 1, certainty.shape[1:])
        return certainty + state.randomness[step] * noise

    return rank


def halton_ranking(state: "SamplingState") -> Ranking:
    """Halton order: neither confidence nor noise, every step spread over the picture.

    Source: arXiv:2503.17076. Its temperature is an inverse one; ours divides the logits. With
    several groups the order runs over the slots, see `SamplingConfig.halton_groups`.
    """
    config, seeds = state.config, state.seeds
    num_tokens, num_groups = state.generator.spec.num_tokens, state.generator.num_groups
    place = torch.empty(num_tokens, dtype=torch.int64)
    place[halton_order(state.generator.spec.shape)] = torch.arange(num_tokens)
    place = place.to(seeds.device)[None, :, None].expand(len(seeds), -1, num_groups)
    groups = torch.arange(num_groups, device=seeds.device)
    together = config.halton_groups == "together"
    if config.halton_roll:
        offsets = uniform(seeds, _SETUP, (1, num_groups)).mul(num_tokens).long()
        place = (place + (offsets[..., :1] if together else offsets)) % num_tokens
    order = place * num_groups + groups if together else groups * num_tokens + place
    return lambda p, drawn, step: -order.float()


class SamplingState:
    """What the loop carries: slots, hidden slots, and the table on the device."""

    def __init__(
        self,
        generator: MaskedGenerator,
        labels: Tensor,
        seeds: Tensor,
        config: SamplingConfig,
        known: Tokens | None,
        mask: Tensor | None,
        lengths: Tensor | None,
        predict: Callable[..., Tensor],
    ) -> None:
        self.generator, self.config, self.predict = generator, config, predict
        self.labels, self.seeds = labels, seeds
        start = find_start(generator.spec, generator.codebook_sizes, seeds, known, mask, lengths)
        self.indices, self.valid, self.lengths = start.codes, start.valid, start.lengths
        self.hidden = start.hidden[..., None].expand_as(start.codes)
        self._tabulate(config, start.hidden.sum(1).tolist())

    def _tabulate(self, config: SamplingConfig, positions: list[int]) -> None:
        """Upload the table of every image: each has its own, from its own number of slots."""
        groups = self.generator.num_groups
        unit = config.unit(groups)
        check_guidance(self.generator, config.guidance)
        whole, tables = self.generator.spec.num_tokens * groups // unit, {}
        for n in set(positions):
            slots = n * groups // unit
            part = dataclasses.replace(
                config, num_steps=steps_of_part(config.num_steps, slots, whole)
            )
            tables[n] = sampling_table(part, slots)
        longest = max(len(table) for table in tables.values())
        padded = {n: table + (DONE,) * (longest - len(table)) for n, table in tables.items()}
        steps = list(zip(*(padded[n] for n in positions), strict=True))  # (T, B)
        self.guided = [any(row.guidance != 1 for row in rows) for rows in steps]
        self.greedy = config.temperature == 0 and not config.temperature_end

        def column(name: str, scale: int = 1) -> Tensor:
            values = [[getattr(row, name) * scale for row in rows] for rows in steps]
            return torch.tensor(values, device=self.seeds.device)[..., None]  # (T, B, 1)

        self.revealed = column("revealed", unit)
        self.randomness = column("randomness")[..., None]
        self.guidance = column("guidance")[..., None, None]
        self.temperature = column("temperature")[..., None, None]

    @torch.no_grad()
    def run(self, rank: Ranking) -> Tokens:
        """All steps, then one look at whether every prediction was finite."""
        sizes = torch.tensor(self.generator.codebook_sizes, device=self.seeds.device)
        failed = torch.zeros((), dtype=torch.int64, device=self.seeds.device)
        for step, guided in enumerate(self.guided):
            logits = self._logits(step, guided)
            if self.greedy:
                p, drawn = logits.softmax(-1), logits.argmax(-1)
            else:
                # At temperature 0, where some annealing ends, the likeliest entry has p = 1.
                p = (logits / self.temperature[step].clamp(min=1e-6)).softmax(-1)
                drawn = draw(p, uniform(self.seeds, _DRAWS * step, p.shape[1:3]))
                drawn = torch.minimum(drawn, sizes - 1)  # whatever a parallel cumsum rounds to
            bad = p.isnan().any() & (failed == 0)
            failed = torch.where(bad, step + 1, failed)
            priority = rank(p, drawn, step).masked_fill(~self.hidden, -torch.inf)
            chosen = first(priority.flatten(1), self.revealed[step]).view_as(self.hidden)
            chosen = chosen & self.hidden
            self.indices = torch.where(chosen, drawn, self.indices)
            self.hidden = self.hidden & ~chosen
        if number := int(failed):
            raise ValueError(f"sampling: the predicted logits are not finite in step {number}")
        tokens = Tokens(self.indices, self.generator.masked_spec, self.lengths)
        return tokens.regroup(self.generator.spec.codebook_sizes)

    def _logits(self, step: int, guided: bool) -> Tensor:
        """Guided logits (B, N, G, K): one forward pass, twice the batch where guidance acts."""
        if not guided:
            return self.predict(self.indices, self.hidden, self.labels, self.valid)
        nothing = torch.full_like(self.labels, self.generator.num_classes)
        both = self.predict(
            torch.cat([self.indices] * 2),
            torch.cat([self.hidden] * 2),
            torch.cat([self.labels, nothing]),
            None if self.valid is None else torch.cat([self.valid] * 2),
        )
        cond, uncond = both.chunk(2)
        return guide(cond, uncond, self.guidance[step])


def draw(p: Tensor, u: Tensor) -> Tensor:
    """Entries drawn by inverting the cumulative distribution.

    Args:
        p: Distributions over the last dimension, (..., K); they need not sum to 1.
        u: One number in (0, 1) each, (...).

    Returns:
        The first entry whose cumulative share reaches u, (...) int64; never one with p = 0.
    """
    cumulative = p.cumsum(-1)
    target = (u * cumulative[..., -1])[..., None]
    return torch.searchsorted(cumulative, target)[..., 0].clamp(max=p.shape[-1] - 1)


def first(priority: Tensor, count: Tensor) -> Tensor:
    """True at the `count` (B, 1) highest priorities of each row (B, M); ties: the first ones."""
    order = priority.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(priority.shape[1], device=priority.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places) < count
