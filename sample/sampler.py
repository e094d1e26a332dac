"""What a sampler is: the settings of a way to draw, the function that draws, and what it publishes.

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
    """How tokens come out of a kind of generator.

    Args:
        types: Types of generator configs that it draws from, e.g. ("maskbit", "maskgit").
        settings: Frozen dataclass of its settings; it has `num_steps`, `guidance` and
            `temperature`.
        draw: (generator, request, settings, *, predict=None) to Tokens.
        resolve: (generator, settings) to the settings with every number that None left open;
            raises a ValueError if they cannot be followed.
        table: (generator, settings) to the rows of what each step does; None: there is no table.
        published: Config of a generator to the settings of its authors, or None.
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
        counts: Names of the fields that are whole numbers of at least 1, or None.

    Raises:
        ValueError: Naming the field, what was expected and what was found.
    """
    for name in counts:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, found {value}")
    if not 0 <= settings.guidance < math.inf:
        raise ValueError(f"guidance: expected at least 0, found {settings.guidance}")
    if not 0 < settings.temperature < math.inf:
        raise ValueError(f"temperature: must be > 0, found {settings.temperature}")
