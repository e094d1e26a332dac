"""Which sampler draws from which generator, and the choice of its settings."""

import dataclasses
import difflib
from typing import Any

from ..config import build_config
from ..generators.base import Generator
from ..generators.build import GeneratorConfig
from . import autoregressive, bayesian_flow, bigr, binary_latent_diffusion, masked
from .sampler import Sampler, Sampling

SAMPLERS: dict[str, Sampler] = {
    kind: module.SAMPLER
    for module in (masked, binary_latent_diffusion, bigr, bayesian_flow, autoregressive)
    for kind in module.SAMPLER.types
}
"""Samplers by the type of a generator's config."""


def sampler_of(generator: Generator) -> Sampler:
    """The sampler of a generator.

    Raises:
        TypeError: If there is none.
    """
    kind = getattr(getattr(generator, "config", None), "type", None)
    if kind not in SAMPLERS:
        raise TypeError(f"generate: no sampler for {type(generator).__name__}")
    return SAMPLERS[kind]


def choose_sampling(
    generator: Generator, sampling: Sampling | None, knobs: dict[str, Any]
) -> Sampling:
    """The settings given, or the generator's own, with some fields replaced.

    Raises:
        TypeError: If a field does not exist for this generator, with what there is, or the settings
            are those of another sampler.
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
        if isinstance(stored, dict):  # of a later version, perhaps: unknown settings do not matter
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
    """The settings with every number that they leave open, such as the steps, for records.

    Raises:
        ValueError: If the generator cannot follow them, with the reason.
    """
    if sampling.guidance != 1 and not generator.num_classes:
        raise ValueError(
            f"guidance {sampling.guidance:g}: this generator is unconditional, there is nothing to "
            "guide; expected 1"
        )
    resolved: Sampling = sampler_of(generator).resolve(generator, sampling)
    return resolved


def build_sampling(config: GeneratorConfig, values: dict[str, Any], *, name: str) -> Sampling:
    """Settings of the sampler of such a generator from plain values.

    Args:
        config: Config of the generator.
        values: Values by the names of the settings.
        name: What to call the settings in messages.

    Raises:
        ConfigError: If a setting does not exist or has a wrong value.
    """
    settings: Sampling = build_config(SAMPLERS[config.type].settings, values, name=name)
    return settings


def published_sampling(config: GeneratorConfig) -> dict[str, Any]:
    """The card's `sampling` of a generator of published size: the settings of its authors.

    Empty for other sizes and for generators without published settings.
    """
    settings = SAMPLERS[config.type].published(config)
    return {} if settings is None else {"sampling": dataclasses.asdict(settings)}
