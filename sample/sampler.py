"""Interface of a sampler: its settings, the function that draws, and published settings.

Every sampler module of this folder ends with one `SAMPLER`; `samplers.py` lists them.
"""

import math
from collections.abc import Callable
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Protocol

from ..tokens.tokens import Tokens


class Sampling(Protocol):
    """Settings of any sampler: a frozen dataclass with these fields among others."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def num_steps(self) -> int | None:
        """Number of steps; None: left to the sampler."""
        ...

    @property
    def guidance(self) -> float:
        """Guidance scale; 1 = off."""
        ...

    @property
    def temperature(self) -> float:
        """Temperature of the predictions."""
        ...


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Sampler of one kind of generator.

    Args:
        types: Types of the generator configs that it draws from, e.g. ("maskbit", "maskgit").
        settings: Frozen dataclass of its settings, with the fields `num_steps`, `guidance` and
            `temperature` among others.
        draw: Function (generator, request, settings, *, predict=None) to Tokens.
        resolve: Function (generator, settings) to settings in which no number is None that the
            generator decides; raises a ValueError if the generator cannot follow them.
        table: Function (generator, settings) to one row per step; None: there is no table.
        published: Function from a generator's config to the settings of its authors, or None.
    """

    types: tuple[str, ...]
    settings: type[Any]
    draw: Callable[..., Tokens]
    resolve: Callable[[Any, Any], Any]
    table: Callable[[Any, Any], tuple[Any, ...]] | None = None
    published: Callable[[Any], Any] = lambda config: None


def check_settings(settings: Any, *, counts: tuple[str, ...] = ("num_steps",)) -> None:
    """Refuse counts below 1, a negative guidance and a temperature of 0 or less.

    Args:
        settings: Settings of a sampler.
        counts: Names of the fields that must be at least 1, or None.

    Raises:
        ValueError: If a value is out of range; the message names the field.
    """
    for name in counts:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, found {value}")
    if not 0 <= settings.guidance < math.inf:
        raise ValueError(f"guidance: expected at least 0, found {settings.guidance}")
    if not 0 < settings.temperature < math.inf:
        raise ValueError(f"temperature: must be > 0, found {settings.temperature}")
