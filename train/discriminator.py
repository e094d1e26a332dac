"""The two discriminators of the VQGAN family: images (B, 3, H, W) in [-1, 1] to logit maps.

With `pixel_range: unit` the network itself reads [0, 1], as the discriminators of MaskBit, VQGAN+,
Binary Latent Diffusion and BiGR do, like their tokenizers: the zeros that pad a convolution are
black there, and grey in [-1, 1].
"""

from dataclasses import dataclass
from typing import Annotated, Literal, assert_never

import torch
from pydantic import Field
from torch import Tensor, nn

from ..config import STRICT
from ..tokenizers.networks.conv_autoencoder import channels_last

PixelRange = Literal["symmetric", "unit"]


def scaled(images: Tensor, pixel_range: PixelRange) -> Tensor:
    """Images in [-1, 1] in the range that a network reads."""
    return (images + 1) / 2 if pixel_range == "unit" else images


@dataclass(frozen=True, kw_only=True)
class PatchDiscriminatorConfig:
    """Settings of `PatchDiscriminator`; the defaults are taming-transformers'.

    Args:
        base_channels: Width of the first layer; it doubles per layer up to 8x.
        num_layers: Stride-2 layers, at least 1.
        norm: `batch` as published; its statistics are per process. `group` does not depend on the
            batch and is the better choice for small batches and several processes.
        pixel_range: Range of pixels inside the network: `symmetric` is [-1, 1], `unit` is [0, 1].
    """

    __pydantic_config__ = STRICT
    type: Literal["patch"] = "patch"
    base_channels: int = 64
    num_layers: int = 3
    norm: Literal["batch", "group"] = "batch"
    pixel_range: PixelRange = "symmetric"

    def __post_init__(self) -> None:
        if self.base_channels < 1 or self.num_layers < 1:
            raise ValueError(
                "base_channels and num_layers: expected at least 1, "
                f"found {self.base_channels} and {self.num_layers}"
            )


class PatchDiscriminator(nn.Module):
    """PatchGAN (arXiv:1611.07004) as in VQGAN (arXiv:2012.09841): 30x30 logits at 256 pixels."""

    def __init__(self, config: PatchDiscriminatorConfig) -> None:
        super().__init__()
        self.pixel_range = config.pixel_range
        width = config.base_channels
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i in range(1, config.num_layers + 1):
            before, width = width, config.base_channels * min(2**i, 8)
            stride = 2 if i < config.num_layers else 1
            layers.append(nn.Conv2d(before, width, 4, stride, 1, bias=False))
            layers.append(
                nn.BatchNorm2d(width)
                if config.norm == "batch"
                else nn.GroupNorm(min(32, width), width)
            )
            layers.append(nn.LeakyReLU(0.2))
        layers.append(nn.Conv2d(width, 1, 4, 1, 1))
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, *batches: Tensor) -> Tensor:
        """Logits of each batch by itself, concatenated: batch statistics must not mix them."""
        return torch.cat([self.layers(scaled(images, self.pixel_range)) for images in batches])


@dataclass(frozen=True, kw_only=True)
class BlurDiscriminatorConfig:
    """Settings of `BlurDiscriminator`; the defaults are VQGAN+'s.

    Args:
        base_channels: Width of the first stage; it doubles per stage.
        num_stages: Halvings of the resolution, at least 1.
        output_size: Height and width of the logit map; finer features are max-pooled to it.
        norm_groups: Groups of every GroupNorm.
        pixel_range: Range of pixels inside the network: `symmetric` is [-1, 1], `unit` is [0, 1].
    """

    __pydantic_config__ = STRICT
    type: Literal["blur"] = "blur"
    base_channels: int = 128
    num_stages: int = 4
    output_size: int = 16
    norm_groups: int = 32
    pixel_range: PixelRange = "symmetric"

    def __post_init__(self) -> None:
        if min(self.num_stages, self.output_size, self.norm_groups) < 1:
            raise ValueError("num_stages, output_size, norm_groups: expected at least 1 each")
        if self.base_channels < 1 or self.base_channels % self.norm_groups:
            raise ValueError(
                f"base_channels: expected a multiple of norm_groups {self.norm_groups}, "
                f"found {self.base_channels}"
            )


class BlurDownsample(nn.Module):
    """Depthwise blur by the outer product of (1, 3, 3, 1) / 8, stride 2; even sizes halve."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(taps, taps)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Blurred images or features (B, C, H / 2, W / 2) of (B, C, H, W)."""
        kernel = self.kernel.to(x.dtype).expand(self.channels, 1, 4, 4)
        return nn.functional.conv2d(x, kernel, stride=2, padding=1, groups=self.channels)


class BlurDiscriminator(nn.Module):
    """The discriminator of VQGAN+ (arXiv:2409.16211): 16x16 logits at 256 pixels."""

    def __init__(self, config: BlurDiscriminatorConfig) -> None:
        super().__init__()
        self.pixel_range = config.pixel_range
        width = config.base_channels
        layers: list[nn.Module] = [nn.Conv2d(3, width, 5, padding=2), nn.LeakyReLU(0.1)]
        for i in range(config.num_stages):
            before, width = width, config.base_channels * 2**i
            layers += [
                nn.Conv2d(before, width, 3, padding=1),
                BlurDownsample(width),
                nn.GroupNorm(config.norm_groups, width),
                nn.LeakyReLU(0.1),
            ]
        layers += [
            nn.AdaptiveMaxPool2d(config.output_size),
            nn.Conv2d(width, width, 1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(width, 1, 5, padding=2),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, *batches: Tensor) -> Tensor:
        """Logits of each batch, concatenated."""
        return torch.cat([self.layers(scaled(images, self.pixel_range)) for images in batches])


DiscriminatorConfig = Annotated[
    PatchDiscriminatorConfig | BlurDiscriminatorConfig, Field(discriminator="type")
]


def build_discriminator(config: DiscriminatorConfig) -> nn.Module:
    """The discriminator that a config describes."""
    match config:
        case PatchDiscriminatorConfig():
            model: nn.Module = PatchDiscriminator(config)
        case BlurDiscriminatorConfig():
            model = BlurDiscriminator(config)
        case _:
            assert_never(config)
    return channels_last(model)
