"""The closed list of tokenizers: config in, module out."""

from functools import partial
from typing import Annotated, Any, assert_never, cast

from pydantic import Discriminator, Tag

from ..building import check_size
from ..config import build_config
from .base import Tokenizer
from .binary_autoencoder import BinaryAutoencoder, BinaryAutoencoderConfig
from .vqgan import VQGAN, VQGANConfig


def _type_of(data: Any) -> str | None:
    """Type of a tokenizer's config, whose class decides what is built.

    Files of version 0.5 have no word of its own for a binary autoencoder: they say `vqgan`, or
    nothing, with a Bernoulli quantizer.
    """
    if not isinstance(data, dict):
        return getattr(data, "type", None)
    found, quantizer = data.get("type", "vqgan"), data.get("quantizer")
    if found == "vqgan" and isinstance(quantizer, dict) and quantizer.get("type") == "bernoulli":
        return "binary_autoencoder"
    return found if isinstance(found, str) else None


TokenizerConfig = Annotated[
    Annotated[VQGANConfig, Tag("vqgan")]
    | Annotated[BinaryAutoencoderConfig, Tag("binary_autoencoder")],
    Discriminator(_type_of),
]
"""Union of every tokenizer's config, discriminated by `type`."""


def tokenizer_config(data: Any, *, name: str) -> TokenizerConfig:
    """Config of a tokenizer from plain values; `name` is what messages call it.

    Raises:
        ConfigError: If a key is unknown or missing, or a value is refused.
    """
    config: TokenizerConfig = build_config(cast(Any, TokenizerConfig), data, name=name)
    return config


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer that a config describes, freshly initialized from the global torch RNG.

    Raises:
        TooLarge: If this machine cannot hold it; see `building.py`.
    """
    check_size(partial(_build, config))
    return _build(config)


def _build(config: TokenizerConfig) -> Tokenizer:
    match config:
        case BinaryAutoencoderConfig():
            return BinaryAutoencoder(config)
        case VQGANConfig():
            return VQGAN(config)
        case _:
            assert_never(config)
