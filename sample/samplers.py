"""Which sampler draws from which generator: its settings, its function, its number of steps."""

import dataclasses
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..config import build_config
from ..generators.base import Generator
from ..generators.bayesian_flow_network import BayesianFlowNetwork
from ..generators.bigr import BiGR
from ..generators.binary_latent_diffusion import BinaryLatentDiffusion
from ..generators.build import GeneratorConfig
from ..generators.masked import MaskedGenerator
from ..tokens.tokens import Tokens
from .autoregressive import AutoregressiveSampling, autoregressive_steps, sample_autoregressive
from .bayesian_flow import FlowSampling, sample_flow
from .bigr import BigrSampling, bigr_steps, head_chain, sample_bigr
from .binary_latent_diffusion import BernoulliSampling, sample_bernoulli
from .masked import sample_masked
from .masked_steps import SamplingConfig, SamplingStep, sampling_table

Sampling = SamplingConfig | BernoulliSampling | BigrSampling | FlowSampling | AutoregressiveSampling
"""Settings of any sampler. All have `num_steps`, `guidance` and `temperature`."""


@dataclass(frozen=True)
class Sampler:
    """How tokens come out of a kind of generator.

    Args:
        settings: Dataclass of its settings.
        draw: (generator, labels, seeds, settings, *, known, mask, lengths, predict) to Tokens.
        num_steps: (generator, settings) to the steps that it takes for a whole image; a ValueError
            if they cannot be taken.
    """

    settings: type[Any]
    draw: Callable[..., Tokens]
    num_steps: Callable[[Any, Any], int]


def table_of(generator: MaskedGenerator, sampling: SamplingConfig) -> tuple[SamplingStep, ...]:
    """What each step of a masked generator does when a whole image is drawn."""
    slots = generator.spec.num_tokens * generator.num_groups
    return sampling_table(sampling, slots // sampling.unit(generator.num_groups))


def _masked_steps(generator: MaskedGenerator, sampling: SamplingConfig) -> int:
    return len(table_of(generator, sampling))


def _bernoulli_steps(generator: BinaryLatentDiffusion, sampling: BernoulliSampling) -> int:
    return len(generator.diffusion.steps(sampling.num_steps))


def _flow_steps(generator: BayesianFlowNetwork, sampling: FlowSampling) -> int:
    return sampling.num_steps


_MASKED = Sampler(SamplingConfig, sample_masked, _masked_steps)
SAMPLERS = {
    "maskbit": _MASKED,
    "maskgit": _MASKED,
    "bld": Sampler(BernoulliSampling, sample_bernoulli, _bernoulli_steps),
    "bigr": Sampler(BigrSampling, sample_bigr, bigr_steps),
    "bfn": Sampler(FlowSampling, sample_flow, _flow_steps),
    "ar": Sampler(AutoregressiveSampling, sample_autoregressive, autoregressive_steps),
}
"""By the type of a generator's config."""


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
    return build_config(settings, dataclasses.asdict(sampling) | knobs, name="sampling")


def with_steps(generator: Generator, sampling: Sampling) -> Sampling:
    """The settings with the number of steps that they come to, for records.

    Raises:
        ValueError: If the generator cannot follow them, with the reason.
    """
    if sampling.guidance != 1 and not generator.num_classes:
        raise ValueError(
            f"guidance {sampling.guidance:g}: this generator is unconditional, there is nothing to "
            "guide; expected 1"
        )
    steps = sampler_of(generator).num_steps(generator, sampling)
    if isinstance(sampling, BigrSampling) and isinstance(generator, BiGR):
        head_steps = len(head_chain(generator, sampling))
        sampling = dataclasses.replace(sampling, head_steps=head_steps)
    return dataclasses.replace(sampling, num_steps=steps)


def build_sampling(config: GeneratorConfig, values: dict[str, Any], *, name: str) -> Sampling:
    """Settings of the sampler of such a generator from plain values.

    Raises:
        ConfigError: If a setting does not exist or has a wrong value; `name` is what to call them.
    """
    return build_config(SAMPLERS[config.type].settings, values, name=name)
