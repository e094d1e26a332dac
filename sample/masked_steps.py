"""Settings of the masked samplers, and the table of all steps, computed before the first one.

The published arccos schedule hides floor(gamma(t) M) of M slots after a share t of the steps. Near
t = 1, arccos falls like a square root: with 64 steps and 512 slots the last step alone must reveal
57 of them independently of each other. `schedule=linear` reveals equally many slots in every step
(counts differ by at most 1); with `cosine` the last steps reveal the fewest.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..config import STRICT
from ..generators.processes.masking import MaskSchedule, masked_share
from .guidance import GuidanceSchedule, guidance_at

DEFAULT_STEPS = 16

Order = Literal["confidence", "halton", "entropy"]
HaltonGroups = Literal["passes", "together"]
Counts = Literal["exact", "published"]
_CHOICES: dict[str, Any] = {
    "sampler": Order,
    "schedule": MaskSchedule,
    "guidance_schedule": GuidanceSchedule,
    "halton_groups": HaltonGroups,
    "counts": Counts,
}


@dataclass(frozen=True, kw_only=True)
class MaskedSampling:
    """Settings of the sampler of masked generators.

    Args:
        sampler: Order of revealing: `confidence` takes the slots predicted with most confidence
            (MaskGIT, MaskBit), `halton` follows a fixed spread-out order, `entropy` takes the
            distributions of least entropy first.
        num_steps: Number of steps, at most the slots to reveal; None: 16, or fewer where there
            are fewer slots.
        schedule: Share of slots still hidden over the steps: `arccos`, `cosine`, `linear`, ...
        guidance: Guidance scale at the end of its ramp; 1 = off. A ramp starts at 1, so a single
            step is guided with `guidance_schedule=constant` only.
        guidance_schedule: Ramp of the guidance over the steps: `constant`, `linear` or `cosine`.
        guidance_power: Exponent of the cosine ramp, > 0.
        temperature: Temperature of the distributions; 0 takes the likeliest entry.
        temperature_end: Temperature after the last step, reached linearly; None: constant.
        randomness: Scale of the Gumbel noise on the order, in nats, falling linearly to 0
            (`confidence` and `entropy`); small values give safe and similar pictures.
        halton_groups: Order of the groups: `passes` makes one pass over the positions per group, so
            that later groups see the earlier ones of their position; `together` reveals all groups
            of a position at once.
        halton_roll: Whether to roll the order by a random offset per image and group.
        counts: Arithmetic of the numbers of slots: `exact`, or `published`, the float32 of the
            public codes of MaskBit and Halton-MaskGIT. They differ by a slot in a few steps, where
            the share times the slots is a whole number: 2/3 of 192 is 128, in float32 127.
    """

    __pydantic_config__ = STRICT
    sampler: Order = "confidence"
    num_steps: int | None = None
    schedule: MaskSchedule = "arccos"
    guidance: float = 1.0
    guidance_schedule: GuidanceSchedule = "cosine"
    guidance_power: float = 1.0
    temperature: float = 1.0
    temperature_end: float | None = None
    randomness: float = 4.0
    halton_groups: HaltonGroups = "passes"
    halton_roll: bool = True
    counts: Counts = "exact"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"{name}: expected {', '.join(get_args(choices))}, "
                    f"found {getattr(self, name)!r}"
                )
        if self.num_steps is not None and self.num_steps < 1:
            raise ValueError(f"num_steps: expected at least 1, found {self.num_steps}")
        for name in ("guidance", "temperature", "temperature_end", "randomness"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected at least 0, found {value}")
        if not 0 < self.guidance_power < math.inf:
            raise ValueError(f"guidance_power: must be > 0, found {self.guidance_power}")

    def steps_for(self, num_slots: int) -> int:
        """Number of steps for an image with `num_slots` slots to reveal."""
        return min(DEFAULT_STEPS, num_slots) if self.num_steps is None else self.num_steps

    def unit(self, num_groups: int) -> int:
        """Slots that the table counts as one: all of a position if groups go together, else 1."""
        return num_groups if self.sampler == "halton" and self.halton_groups == "together" else 1


@dataclass(frozen=True)
class SamplingStep:
    """One row of the table.

    Args:
        step: Number of the step, from 1.
        revealed: Number of slots that the step reveals.
        hidden: Number of slots still hidden afterwards.
        guidance: Guidance scale; at 1 the step costs one forward pass, not two.
        temperature: Temperature of the distributions.
        randomness: Factor of the Gumbel noise on the order.
    """

    step: int
    revealed: int
    hidden: int
    guidance: float
    temperature: float
    randomness: float


DONE = SamplingStep(step=0, revealed=0, hidden=0, guidance=1.0, temperature=1.0, randomness=0.0)
"""Row of a finished image while other images of its batch still have steps to go."""


def sampling_table(config: MaskedSampling, num_slots: int) -> tuple[SamplingStep, ...]:
    """Table of all steps of one image.

    Example:
        >>> from tessella.sample.masked_steps import MaskedSampling, sampling_table
        >>> table = sampling_table(MaskedSampling(num_steps=4), num_slots=64)
        >>> [row.revealed for row in table]
        [11, 11, 13, 29]
        >>> table = sampling_table(MaskedSampling(num_steps=4, schedule="linear"), num_slots=64)
        >>> [row.hidden for row in table]
        [48, 32, 16, 0]

    Args:
        config: Settings of the sampler.
        num_slots: Number of slots to reveal: positions times groups, or the hidden ones when
            editing.

    Raises:
        ValueError: If there are more steps than slots.
    """
    steps = config.steps_for(num_slots)
    if steps > num_slots:
        raise ValueError(
            f"num_steps: {steps} steps for {num_slots} slots to reveal; expected at most one step "
            "per slot"
        )
    end = config.temperature if config.temperature_end is None else config.temperature_end
    table, hidden = [], num_slots
    for i in range(steps):
        t = (i + 1) / steps
        left = min(_hidden_after(config, t, num_slots), hidden - 1)
        left = max(left, steps - (i + 1))  # one slot for every later step
        table.append(
            SamplingStep(
                step=i + 1,
                revealed=hidden - left,
                hidden=left,
                guidance=guidance_at(
                    i, steps, config.guidance, config.guidance_schedule, config.guidance_power
                ),
                temperature=end + (config.temperature - end) * (1 - t),
                randomness=0.0 if config.sampler == "halton" else config.randomness * (1 - t),
            )
        )
        hidden = left
    return tuple(table)


def steps_of_part(num_steps: int | None, num_slots: int, whole: int) -> int | None:
    """Number of steps that draw a part of an image: at most one per hidden slot.

    Args:
        num_steps: Steps of the settings; None: the table decides.
        num_slots: Number of slots to reveal.
        whole: Number of slots in a whole image.

    Raises:
        ValueError: If there are more steps than slots in a whole image.
    """
    if num_steps is None:
        return None
    if num_steps > whole:
        raise ValueError(
            f"num_steps: {num_steps} steps for {whole} slots to reveal; expected at most one step "
            "per slot"
        )
    return min(num_steps, num_slots)


def _hidden_after(config: MaskedSampling, t: float, num_slots: int) -> int:
    """Hidden slots at t: floor(gamma M), with Halton M - floor((1 - gamma) M); 0 at t = 1."""
    if t >= 1:
        return 0
    if config.counts == "published":
        share = _published_share(t, config.schedule)
        if config.sampler == "halton":
            return num_slots - int((1 - share) * num_slots)
        return int(torch.floor(share.clamp(1e-6, 1.0) * num_slots))
    gamma = float(masked_share(torch.tensor(t, dtype=torch.float64), config.schedule))
    exact = 1e-9  # so that rounding in acos(0.5) / (pi / 2) = 2/3 does not change a count
    if config.sampler == "halton":
        return num_slots - math.floor((1 - gamma) * num_slots + exact)
    return math.floor(gamma * num_slots + exact)


def _published_share(t: float, schedule: MaskSchedule) -> Tensor:
    """gamma(t) in float32, by the operations of the public codes in their order.

    Source: the codes of arXiv:2409.16211 (all schedules) and arXiv:2503.17076 (arccos).
    """
    r = torch.tensor(t, dtype=torch.float32)
    match schedule:
        case "arccos":
            return torch.acos(r) / (math.pi * 0.5)
        case "cosine":
            return torch.cos(r * math.pi * 0.5)
        case "linear":
            return 1 - r
        case "square":
            return 1 - r**2


def format_table(table: tuple[SamplingStep, ...]) -> str:
    """Text of a table, one line per step below a line of headings."""
    lines = ["step  revealed  hidden  guidance  temperature  randomness"]
    for row in table:
        lines.append(
            f"{row.step:4}  {row.revealed:8}  {row.hidden:6}  {row.guidance:8.3f}  "
            f"{row.temperature:11.3f}  {row.randomness:10.3f}"
        )
    return "\n".join(lines)
