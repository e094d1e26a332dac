"""The binary autoencoder of Binary Latent Diffusion and BiGR: a VQGAN whose bits may be drawn.

Sources: arXiv:2304.04820, arXiv:2410.14672. Its networks are those of every other VQGAN; only the
randomness is its own. Two parts of the public
models that compute nothing are left out: the 1x1 shortcut of residual blocks whose channels match,
and the head `logsigma`. As parameters without gradient they would stop training on several
processes.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..config import STRICT
from ..tokens.tokens import Tokens
from .base import TokenizerOutput
from .quantizers.bernoulli import Bernoulli, BernoulliConfig, draw
from .vqgan import VQGAN, ConvTokenizerConfig


@dataclass(frozen=True, kw_only=True)
class BinaryAutoencoderConfig(ConvTokenizerConfig):
    """Settings of `BinaryAutoencoder`: those of `ConvTokenizerConfig`, with Bernoulli bits.

    Files of version 0.5 say `vqgan` for it; they are read as they are, fingerprints included.
    """

    __pydantic_config__ = STRICT
    type: Literal["binary_autoencoder", "vqgan"] = "binary_autoencoder"
    quantizer: BernoulliConfig


class BinaryAutoencoder(VQGAN):
    """Images to a grid of (resolution / stride)**2 tokens of K bits and back."""

    quantizer: Bernoulli

    def forward(self, images: Tensor, *, rng: torch.Generator | None = None) -> TokenizerOutput:
        """One training step on images (B, 3, H, W) in [-1, 1].

        Bits are drawn from `rng` (None: the global generator) unless the config says `never`.
        """
        out = self.quantizer(self._latents(images), rng=rng)
        return TokenizerOutput(
            self._images(out.quantized, self.spec), Tokens(out.indices, self.spec), out.losses
        )

    @torch.no_grad()
    def encode(
        self, images: Tensor, *, rng: torch.Generator | None = None, any_size: bool = False
    ) -> Tokens:
        """Tokens of images (B, 3, H, W) in [-1, 1]; the same images give the same tokens.

        With `draw: always` and an `rng` they are those of `sample_bits`. `any_size` is as for
        `VQGAN.encode`.

        Raises:
            ValueError: If size, type or range is wrong, or the network's output is not finite.
        """
        if rng is not None and self.quantizer.config.draw == "always":
            return self.sample_bits(images, rng, any_size=any_size)
        return super().encode(images, any_size=any_size)

    @torch.no_grad()
    def sample_bits(
        self, images: Tensor, rng: torch.Generator | None = None, *, any_size: bool = False
    ) -> Tokens:
        """Tokens whose bits are drawn with their probabilities, whatever the config says.

        What the public generators over these bits were trained on. The draws of a batch follow one
        another: give one image at a time for bits that do not depend on the batch.

        Raises:
            ValueError: If size, type or range is wrong, or the network's output is not finite.
        """
        latents, spec = self._read(images, any_size)
        return Tokens(draw(self.quantizer.probabilities(latents), rng).long(), spec)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Probability of 1 of every bit of images (B, 3, H, W) in [-1, 1]: (B, N, K) float32.

        Raises:
            ValueError: If size, type or range is wrong, or the network's output is not finite.
        """
        return self.quantizer.probabilities(self._read(images, any_size=False)[0])
