"""The closed list of tokenizers: config in, module out."""

from .base import Tokenizer
from .binary_autoencoder import BinaryAutoencoder
from .quantizers.bernoulli import BernoulliConfig
from .vqgan import VQGAN, VQGANConfig

TokenizerConfig = VQGANConfig
"""Union of every tokenizer's config, discriminated by `type`."""


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer that a config describes, freshly initialized from the global torch RNG."""
    match config:
        case VQGANConfig(quantizer=BernoulliConfig()):
            return BinaryAutoencoder(config)
        case VQGANConfig():
            return VQGAN(config)
