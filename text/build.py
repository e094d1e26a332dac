"""The closed list of text encoders: config in, module out."""

from functools import partial
from typing import Annotated, assert_never

from pydantic import Field

from ..building import check_size
from .byte_text import BytesConfig, BytesEncoder
from .encoder import TextEncoder
from .minilm import MiniLMConfig, MiniLMEncoder
from .words import WordsConfig, WordsEncoder

TextEncoderConfig = Annotated[WordsConfig | MiniLMConfig | BytesConfig, Field(discriminator="type")]
"""Union of every text encoder's config, discriminated by `type`."""


def build_text_encoder(config: TextEncoderConfig) -> TextEncoder:
    """The text encoder that a config describes; what is trained is new, from the global torch RNG.

    Raises:
        TooLarge: If this machine cannot hold it; see `building.py`.
        TextWeightsError: If its files are not on this machine, or are damaged.
    """
    check_size(partial(_build, config))
    return _build(config)


def _build(config: TextEncoderConfig) -> TextEncoder:
    match config:
        case WordsConfig():
            return WordsEncoder(config)
        case MiniLMConfig():
            return MiniLMEncoder(config)
        case BytesConfig():
            return BytesEncoder(config)
        case _:
            assert_never(config)
