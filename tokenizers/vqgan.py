"""VQGAN: a convolutional autoencoder around a quantizer; the home of VQ grids and of bit tokens.

With `quantizer: {type: lfq}` this is the bit tokenizer of MaskBit, with `vq` the VQGAN+ of the
same paper (arXiv:2409.16211), both at stride 16 and published size by default. With other
autoencoder settings it is MaskGIT-VQ (arXiv:2202.04200), the original VQGAN (arXiv:2012.09841),
LlamaGen's VQ (arXiv:2406.06525) or Open-MAGVIT2 (arXiv:2409.04410); with `bsq` or `fsq` the same
networks around those quantizers.
The YAML files in `configs/tokenizer/` spell each out. The networks of the VQGAN+ checkpoints read
and write pixels in [0, 1] (`pixel_range: unit`); the tokenizer itself speaks [-1, 1], like all.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ..config import STRICT
from ..tokens.tokens import Tokens, TokenSpec
from .base import Tokenizer, TokenizerOutput
from .networks.conv_autoencoder import (
    ConvAutoencoderConfig,
    Decoder,
    Encoder,
    channels_last,
    to_grid,
    to_positions,
)
from .quantizers.build import QuantizerConfig, build_quantizer


@dataclass(frozen=True, kw_only=True)
class ConvTokenizerConfig:
    """Settings that `VQGAN` and `BinaryAutoencoder` share.

    Args:
        type: Type of the tokenizer.
        resolution: Height and width of the images, in pixels; a multiple of the stride.
        pixel_range: Range of pixels inside the networks: `symmetric` is [-1, 1], `unit` is [0, 1].
        autoencoder: Settings of encoder and decoder.
        quantizer: Settings of the quantizer; latent width and token sizes follow from it.
    """

    __pydantic_config__ = STRICT
    type: str
    resolution: int = 256
    pixel_range: Literal["symmetric", "unit"] = "symmetric"
    autoencoder: ConvAutoencoderConfig = field(default_factory=ConvAutoencoderConfig)
    quantizer: QuantizerConfig

    def __post_init__(self) -> None:
        stride = self.autoencoder.stride
        if self.resolution < stride or self.resolution % stride:
            raise ValueError(
                f"resolution: expected a multiple of the stride {stride}, found {self.resolution}"
            )
        if self.autoencoder.adaptive_norm and self.resolution == stride:
            raise ValueError(
                f"adaptive_norm: needs two positions or more; resolution {stride} has one"
            )


@dataclass(frozen=True, kw_only=True)
class VQGANConfig(ConvTokenizerConfig):
    """Settings of `VQGAN`: those of `ConvTokenizerConfig`; any quantizer but Bernoulli bits."""

    __pydantic_config__ = STRICT
    type: Literal["vqgan"] = "vqgan"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantizer.type == "bernoulli":
            raise ValueError(
                "quantizer: Bernoulli bits make a binary autoencoder; expected type: "
                "binary_autoencoder in place of vqgan"
            )


class VQGAN(Tokenizer):
    """Images to a grid of (resolution / stride)**2 tokens and back."""

    def __init__(self, config: ConvTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.resolution, self.stride = config.resolution, config.autoencoder.stride
        self.quantizer = build_quantizer(config.quantizer)
        self.loss_names = self.quantizer.loss_names
        side = config.resolution // config.autoencoder.stride
        self.spec = TokenSpec((side, side), self.quantizer.codebook_sizes)
        dim, channels = self.quantizer.dim, config.autoencoder.latent_channels
        self.encoder = Encoder(config.autoencoder, dim if channels is None else channels)
        self.decoder = Decoder(config.autoencoder, dim if channels is None else channels)
        self.quant_conv = None if channels is None else nn.Conv2d(channels, dim, 1)
        self.post_quant_conv = None if channels is None else nn.Conv2d(dim, channels, 1)
        channels_last(self)

    @property
    def last_layer(self) -> Tensor:
        """Weights of the decoder's last convolution."""
        return self.decoder.conv_out.weight

    def forward(self, images: Tensor, *, rng: torch.Generator | None = None) -> TokenizerOutput:
        """One training step on images (B, 3, H, W) in [-1, 1]."""
        out = self.quantizer(self._latents(images))
        return TokenizerOutput(
            self._images(out.quantized, self.spec), Tokens(out.indices, self.spec), out.losses
        )

    @torch.no_grad()
    def encode(
        self, images: Tensor, *, rng: torch.Generator | None = None, any_size: bool = False
    ) -> Tokens:
        """Tokens of images (B, 3, H, W) in [-1, 1]; the same images give the same tokens.

        With `any_size` H and W are any multiples of the stride. Convolutions reach as far as they
        do at the resolution of the training, but the normalizations are over the whole image (and
        attention, where the autoencoder has it, looks at all of it, at a quadratic cost): tokens of
        a crop are only nearly those of the image, and quality far from the trained resolution is
        to be measured.

        Raises:
            ValueError: If size, type or range is wrong, or the network's output is not finite.
        """
        latents, spec = self._read(images, any_size)
        return Tokens(self.quantizer.encode(latents), spec)

    @torch.no_grad()
    def decode(
        self, tokens: Tokens, *, rng: torch.Generator | None = None, any_size: bool = False
    ) -> Tensor:
        """Images (B, 3, H, W) float32 in [-1, 1] of tokens of this tokenizer's spec.

        With `any_size` the grid of the tokens may have any height and width.

        Raises:
            TypeError: If they are no `Tokens`.
            SpecMismatch: If the tokens are another tokenizer's.
            ValueError: If a code is out of range; checked for tokens on the CPU only, where that
                waits for nothing.
        """
        if self.check_tokens(tokens, any_size=any_size).device.type == "cpu":
            tokens.validate()
        indices = tokens.indices.to(self.device)
        return self._images(self.quantizer.lookup(indices), tokens.spec).clamp(-1, 1)

    def _read(self, images: Tensor, any_size: bool) -> tuple[Tensor, TokenSpec]:
        """Latents of checked images, (B, N, D), and the spec of their tokens."""
        self.check_images(images, any_size=any_size)
        spec = self.spec_of(*images.shape[2:]) if any_size else self.spec
        return self._latents(images.to(self.device, self.encoder.conv_in.weight.dtype)), spec

    def _latents(self, images: Tensor) -> Tensor:
        """Encoder output as positions, (B, N, D)."""
        if self.config.pixel_range == "unit":
            images = (images + 1) / 2
        latents = self.encoder(images)
        return to_positions(latents if self.quant_conv is None else self.quant_conv(latents))

    def _images(self, quantized: Tensor, spec: TokenSpec) -> Tensor:
        """Decoder output in [-1, 1] units, float32, not clamped, of latents of a grid."""
        latents = to_grid(quantized, (spec.shape[0], spec.shape[1])).to(
            self.decoder.conv_in.weight.dtype
        )
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        images: Tensor = self.decoder(latents).float()
        return images * 2 - 1 if self.config.pixel_range == "unit" else images
