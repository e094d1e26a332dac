"""Samplers of all generators, and the choice of their settings."""

import dataclasses
import difflib
from typing import Any

from ..config import build_config
from ..generators.base import Generator
from ..generators.build import GeneratorConfig
from . import (
    autoregressive,
    bayesian_flow,
    bigr,
    binary_latent_diffusion,
    masked,
)
from .sampler import Sampler, Sampling

_MODULES = (
    autoregressive,
    bayesian_flow,
    bigr,
    binary_latent_diffusion,
    masked,
)
SAMPLERS: dict[str, Sampler] = {
    kind: module.SAMPLER for module in _MODULES for kind in module.SAMPLER.types
}
"""Samplers by the type of a generator's config."""


def sampler_of(generator: Generator) -> Sampler:
    """The sampler of a generator.

    Raises:
        TypeError: If no sampler draws from generators of its type.
    """
    kind = getattr(getattr(generator, "config", None), "type", None)
    if kind not in SAMPLERS:
        raise TypeError(f"generate: no sampler for {type(generator).__name__}")
    return SAMPLERS[kind]


def choose_sampling(
    generator: Generator, sampling: Sampling | None, knobs: dict[str, Any]
) -> Sampling:
    """Settings for a generator, with some fields replaced.

    Args:
        generator: Generator that will draw.
        sampling: Settings of its sampler; None: those in the generator's card, or the defaults.
        knobs: Values by field name that replace those of `sampling`.

    Raises:
        TypeError: If the generator's sampler has no such field (the message suggests or lists
            fields), or `sampling` belongs to another sampler.
        ConfigError: If a value is of another type or out of range.
    """
    settings = sampler_of(generator).settings
    names = [field.name for field in dataclasses.fields(settings)]
    for name in knobs:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            all_names = f"generators of type {generator.config.type} have: {', '.join(names)}"
            hint = f"did you mean {near[0]!r}?" if near else all_names
            raise TypeError(f"generate: unknown argument {name!r}; {hint}")
    if sampling is None:
        stored = (generator.card or {}).get("sampling", {})
        if isinstance(stored, dict):  # a later version may have stored settings unknown here
            stored = {name: stored[name] for name in names if name in stored}
        sampling = build_config(settings, stored, name="sampling in the generator's card")
    if not isinstance(sampling, settings):
        raise TypeError(
            f"sampling: expected {settings.__name__} for type {generator.config.type}, "
            f"found {type(sampling).__name__}"
        )
    values = dataclasses.asdict(sampling) | knobs
    chosen: Sampling = build_config(settings, values, name="sampling")
    return chosen


def with_steps(generator: Generator, sampling: Sampling) -> Sampling:
    """Settings in which defaults that depend on the generator, such as the steps, are numbers.

    Raises:
        ValueError: If the generator cannot follow the settings; the message says why.
    """
    if sampling.guidance != 1 and not generator.conditional:
        raise ValueError(
            f"guidance {sampling.guidance:g}: this generator is unconditional, there is nothing to "
            "guide; expected 1"
        )
    resolved: Sampling = sampler_of(generator).resolve(generator, sampling)
    return resolved


def build_sampling(config: GeneratorConfig, values: dict[str, Any], *, name: str) -> Sampling:
    """Sampler settings for a generator's config, from plain values.

    Args:
        config: Config of the generator.
        values: Values by field name.
        name: Name of the settings in error messages.

    Raises:
        ConfigError: If a setting does not exist or has a wrong value.
    """
    settings: Sampling = build_config(SAMPLERS[config.type].settings, values, name=name)
    return settings


def published_sampling(config: GeneratorConfig) -> dict[str, Any]:
    """Entry `sampling` of the card of a generator of published size: the settings of its authors.

    The result is empty for other sizes and for generators without published settings.
    """
    settings = SAMPLERS[config.type].published(config)
    return {} if settings is None else {"sampling": dataclasses.asdict(settings)}
