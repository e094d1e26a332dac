"""The closed list of generators, their builder, and the config stored in their folders."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

from pydantic import Field

from ..building import check_size
from ..config import STRICT
from ..tokens.tokens import TokenSpec
from .autoregressive import AutoregressiveConfig
from .base import Generator
from .bayesian_flow_network import BayesianFlowNetworkConfig
from .bigr import BigrConfig
from .binary_latent_diffusion import BinaryLatentDiffusionConfig
from .masked import MaskBitConfig, MaskGITConfig

GeneratorConfig = Annotated[
    MaskBitConfig
    | MaskGITConfig
    | BinaryLatentDiffusionConfig
    | BigrConfig
    | BayesianFlowNetworkConfig
    | AutoregressiveConfig,
    Field(discriminator="type"),
]
"""Union of every generator's config, discriminated by `type`."""


@dataclass(frozen=True, kw_only=True)
class TokensConfig:
    """A token spec in a config file; see `TokenSpec`."""

    __pydantic_config__ = STRICT
    shape: tuple[int, ...]
    codebook_sizes: tuple[int, ...]
    ordered: bool = False

    def spec(self) -> TokenSpec:
        """The `TokenSpec` that the config describes."""
        return TokenSpec(self.shape, self.codebook_sizes, self.ordered)


@dataclass(frozen=True, kw_only=True)
class GeneratorFileConfig:
    """Content of a generator folder's `config.yaml`: all that rebuilds and decodes it.

    Args:
        generator: Config of the generator.
        tokens: Spec of the tokens that it emits.
        tokenizer: Fingerprint of the tokenizer that decodes them; None: it came from no folder.
        classes: Class names by label; empty if the training data had none.
        text: Hash of what the text encoder reads besides its weights in the folder; None: nothing.
    """

    __pydantic_config__ = STRICT
    generator: GeneratorConfig
    tokens: TokensConfig
    tokenizer: str | None = None
    classes: tuple[str, ...] = ()
    text: str | None = None


def build_generator(config: GeneratorConfig, spec: TokenSpec) -> Generator:
    """The generator that a config describes, freshly initialized from the global torch RNG.

    Raises:
        ValueError: If it cannot learn tokens of `spec`, with the reason.
        TooLarge: If this machine cannot hold it; see `building.py`.
    """
    check_size(partial(config.build, spec))
    return config.build(spec)
