"""The closed list of generators: config and token spec in, module out."""

from typing import Annotated, assert_never

from pydantic import Field

from ..tokenizers.tokens import TokenSpec
from .base import Generator
from .masked import MaskBitConfig, MaskedGenerator, MaskGITConfig

GeneratorConfig = Annotated[MaskBitConfig | MaskGITConfig, Field(discriminator="type")]
"""Union of every generator's config, discriminated by `type`."""


def build_generator(config: GeneratorConfig, spec: TokenSpec) -> Generator:
    """The generator that a config describes, freshly initialised from the global torch RNG.

    Raises:
        ValueError: If it cannot learn tokens of `spec`, with the reason.
    """
    match config:
        case MaskBitConfig() | MaskGITConfig():
            return MaskedGenerator(config, spec)
        case _:
            assert_never(config)
