"""Settings of the masked samplers, and the table of what each step does, computed beforehand.

The published arccos schedule hides floor(gamma(t) M) of M slots after a share t of the steps. Near
t = 1, arccos falls like a square root: with 64 steps and 512 slots the last step alone must reveal
57 of them independently of each other. `schedule: linear` reveals equally many in every step
(counts differ by at most 1), `cosine` ends most gently.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from ..config import STRICT
from ..generators.processes.masking import MaskSchedule, masked_share
from .guidance import GuidanceSchedule, guidance_at

DEFAULT_STEPS = 16

Order = Literal["confidence", "halton", "entropy"]
HaltonGroups = Literal["passes", "together"]
_CHOICES: dict[str, Any] = {
    "sampler": Order,
    "schedule": MaskSchedule,
    "guidance_schedule": GuidanceSchedule,
    "halton_groups": HaltonGroups,
}


@dataclass(frozen=True, kw_only=True)
class MaskedSampling:
    """How tokens are drawn from a masked generator.

    Args:
        sampler: Order of revealing: `confidence` takes the slots predicted with most confidence
            (MaskGIT, MaskBit), `halton` follows a fixed spread-out order, `entropy` takes the most
            certain distributions first.
        num_steps: Number of steps, at most the slots to reveal; None: 16, or fewer where there
            are fewer slots.
        schedule: Share of slots still hidden over the steps: `arccos`, `cosine`, `linear`, ...
        guidance: Guidance scale that its ramp approaches; 1 = off. A ramp starts at 1, so a single
            step is guided by a `constant` schedule only.
        guidance_schedule: Ramp of the guidance over the steps: `constant`, `linear` or `cosine`.
        guidance_power: Exponent of the cosine ramp.
        temperature: Temperature of the distributions; 0 takes the likeliest entry.
        temperature_end: Temperature after the last step, reached linearly; None: constant.
        randomness: Gumbel noise on the order, in nats, falling linearly to 0 (`confidence` and
            `entropy`): small values give safe and similar pictures.
        halton_groups: Order of the groups: `passes`: one pass over the positions per group, so that
            later groups see the earlier ones of their position; `together`: all groups of a
            position at once.
        halton_roll: Whether to roll the order by a random offset per image and group.
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
        """Steps for an image with that many slots to reveal."""
        return min(DEFAULT_STEPS, num_slots) if self.num_steps is None else self.num_steps

    def unit(self, num_groups: int) -> int:
        """Slots that the table counts as one: a whole position where groups go together, else 1."""
        return num_groups if self.sampler == "halton" and self.halton_groups == "together" else 1


@dataclass(frozen=True)
class SamplingStep:
    """One line of the table.

    Args:
        step: Number, from 1.
        revealed: Slots that it reveals.
        hidden: Slots still hidden afterwards.
        guidance: Guidance scale; at 1 the step costs one forward pass, not two.
        temperature: Of the distributions.
        randomness: Factor of the Gumbel noise on the order.
    """

    step: int
    revealed: int
    hidden: int
    guidance: float
    temperature: float
    randomness: float


DONE = SamplingStep(step=0, revealed=0, hidden=0, guidance=1.0, temperature=1.0, randomness=0.0)
"""What an image does while others in its batch still have steps to go."""


def sampling_table(config: MaskedSampling, num_slots: int) -> tuple[SamplingStep, ...]:
    """The whole schedule of one image.

    Args:
        config: The sampler's settings.
        num_slots: Slots to reveal: positions times groups, or just the hidden ones when editing.

    Raises:
        ValueError: If there are more steps than slots.
    """
    steps = config.steps_for(num_slots)
    if steps > num_slots:
        raise ValueError(
            f"num_steps: {steps} steps for {num_slots} slots to reveal; expected at most one each"
        )
    end = config.temperature if config.temperature_end is None else config.temperature_end
    table, hidden = [], num_slots
    for i in range(steps):
        t = (i + 1) / steps
        left = min(_hidden_after(config, t, num_slots), hidden - 1)
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
    """Steps where a part of an image is drawn: at most one for each of its slots.

    Args:
        num_steps: Of the settings; None: left to the table.
        num_slots: Slots to reveal.
        whole: Slots of a whole image.

    Raises:
        ValueError: If there are more steps than slots of a whole image.
    """
    if num_steps is None:
        return None
    if num_steps > whole:
        raise ValueError(
            f"num_steps: {num_steps} steps for {whole} slots to reveal; expected at most one each"
        )
    return min(num_steps, num_slots)


def _hidden_after(config: MaskedSampling, t: float, num_slots: int) -> int:
    """floor(gamma(t) M) slots, or M less floor((1 - gamma) M) in the Halton reference; 0 at 1."""
    if t >= 1:
        return 0
    gamma = float(masked_share(torch.tensor(t, dtype=torch.float64), config.schedule))
    exact = 1e-9  # acos(0.5) / (pi / 2) is two thirds, whatever its last bit says
    if config.sampler == "halton":
        return num_slots - math.floor((1 - gamma) * num_slots + exact)
    return math.floor(gamma * num_slots + exact)


def format_table(table: tuple[SamplingStep, ...]) -> str:
    """The table as text."""
    lines = ["step  revealed  hidden  guidance  temperature  randomness"]
    for row in table:
        lines.append(
            f"{row.step:4}  {row.revealed:8}  {row.hidden:6}  {row.guidance:8.3f}  "
            f"{row.temperature:11.3f}  {row.randomness:10.3f}"
        )
    return "\n".join(lines)
