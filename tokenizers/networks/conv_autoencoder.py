"""Convolutional encoder and decoder of the VQGAN family.

The config of this pair of networks covers VQGAN+ / MaskBit (arXiv:2409.16211, the default),
MaskGIT-VQ (arXiv:2202.04200), the original VQGAN (arXiv:2012.09841), LlamaGen's VQ
(arXiv:2406.06525), Open-MAGVIT2 (arXiv:2409.04410) and the binary autoencoder of Binary Latent
Diffusion (arXiv:2304.04820). They are independent of pixel ranges and quantizers: the encoder maps
images to latents, the decoder latents to images.
"""

from dataclasses import dataclass
from itertools import chain, pairwise, repeat
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from ...config import STRICT


@dataclass(frozen=True, kw_only=True)
class ConvAutoencoderConfig:
    """Settings of `Encoder` and `Decoder`. The defaults are VQGAN+ at published size.

    Args:
        base_channels: Number of channels of the finest level.
        channel_multipliers: Channels of each level over `base_channels`, finest level first. Every
            level but the last halves the resolution.
        num_res_blocks: Number of residual blocks per encoder level.
        num_res_blocks_decoder: Number of residual blocks per decoder level; None: that of the
            encoder.
        norm_groups: Number of groups of every GroupNorm; must divide all numbers of channels.
        conv_bias: Use biases in the stem and the residual blocks (the original VQGAN has them).
        shortcut: Shortcut of blocks that change channels: `projection` adds a 1x1 convolution of
            the input of the block; `legacy` adds one of the output of the residual branch, as the
            original MaskGIT code and every public VQGAN+ checkpoint do (such a block has no skip
            path).
        downsample: Downsampling: a strided 3x3 convolution, padded at right and bottom (`conv`) or
            on all sides (`conv_symmetric`, Open-MAGVIT2), or 2x2 average pooling (`avg_pool`,
            MaskGIT-VQ).
        upsample: Upsampling: nearest neighbors, then a 3x3 convolution (`nearest`); or a 3x3
            convolution to four times the channels, rearranged to twice the height and width
            (`depth_to_space`, Open-MAGVIT2).
        adaptive_norm: Use a GroupNorm before every decoder level whose scale and bias depend on the
            standard deviation and mean of the latents over all positions (Open-MAGVIT2).
        attention_levels: Numbers of the levels with single-head attention after each residual
            block, 0 the finest.
        num_mid_blocks: Number of residual blocks at the coarsest resolution, between levels and
            head.
        mid_attention: Use attention after the first of these blocks.
        head_kernel_size: Kernel size of the last convolution of the encoder, in latent positions.
        head_activation: Use SiLU before the last convolution of both networks (the binary
            autoencoder has none).
        latent_norm: Use a GroupNorm of the latents before the first convolution of the decoder
            (`norm_first` of the binary autoencoder).
        latent_channels: Number of channels between the networks and the 1x1 convolutions around the
            quantizer (quant_conv and post_quant_conv); None: no such convolutions.
    """

    __pydantic_config__ = STRICT
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    num_res_blocks_decoder: int | None = None
    norm_groups: int = 32
    conv_bias: bool = False
    shortcut: Literal["projection", "legacy"] = "projection"
    downsample: Literal["conv", "conv_symmetric", "avg_pool"] = "conv"
    upsample: Literal["nearest", "depth_to_space"] = "nearest"
    adaptive_norm: bool = False
    attention_levels: tuple[int, ...] = ()
    num_mid_blocks: int = 2
    mid_attention: bool = False
    head_kernel_size: Literal[1, 3] = 1
    head_activation: bool = True
    latent_norm: bool = False
    latent_channels: int | None = None

    def __post_init__(self) -> None:
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise ValueError(
                "channel_multipliers: expected one of at least 1 per level, "
                f"found {self.channel_multipliers}"
            )
        for name in ("base_channels", "num_res_blocks", "norm_groups", "num_mid_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.num_res_blocks_decoder is not None and self.num_res_blocks_decoder < 1:
            raise ValueError(
                f"num_res_blocks_decoder: expected at least 1, found {self.num_res_blocks_decoder}"
            )
        for width in self.widths:
            if width % self.norm_groups:
                raise ValueError(
                    f"norm_groups: {self.norm_groups} does not divide the width {width}"
                )
        for level in self.attention_levels:
            if not 0 <= level < len(self.widths):
                raise ValueError(
                    f"attention_levels: expected 0 to {len(self.widths) - 1}, found {level}"
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of channels of each level, finest first."""
        return tuple(self.base_channels * m for m in self.channel_multipliers)

    @property
    def stride(self) -> int:
        """Number of pixels per latent position along one side."""
        return 1 << (len(self.channel_multipliers) - 1)


class ResBlock(nn.Module):
    """Residual block: GroupNorm, SiLU and 3x3 convolution, twice, plus the shortcut."""

    def __init__(self, in_channels: int, out_channels: int, config: ConvAutoencoderConfig) -> None:
        super().__init__()
        self.legacy = config.shortcut == "legacy"
        self.norm1 = nn.GroupNorm(config.norm_groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=config.conv_bias)
        self.norm2 = nn.GroupNorm(config.norm_groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=config.conv_bias)
        self.shortcut: nn.Conv2d | None = None
        if in_channels != out_channels:
            shortcut_in = out_channels if self.legacy else in_channels
            self.shortcut = nn.Conv2d(shortcut_in, out_channels, 1, bias=config.conv_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, `out_channels`, H, W) of features (B, `in_channels`, H, W)."""
        h: Tensor = self.conv1(nn.functional.silu(self.norm1(x)))
        h = self.conv2(nn.functional.silu(self.norm2(h)))
        shortcut: Tensor = x
        if self.shortcut is not None:
            shortcut = self.shortcut(h if self.legacy else x)
        return h + shortcut


class Attention(nn.Module):
    """Single-head attention over all positions, with a residual connection."""

    def __init__(self, channels: int, config: ConvAutoencoderConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_groups, channels, eps=1e-6)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W) of features (B, C, H, W)."""
        h = self.norm(x)
        q, k, v = (to_positions(p(h)) for p in (self.q, self.k, self.v))
        h = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(to_grid(h, (x.shape[2], x.shape[3])))
        return x + out


class Downsample(nn.Module):
    """Halve the resolution; see `ConvAutoencoderConfig.downsample`.

    The convolution pads at right and bottom only ("SAME" for even sizes), unless it is symmetric.
    """

    def __init__(self, channels: int, config: ConvAutoencoderConfig) -> None:
        super().__init__()
        self.conv: nn.Conv2d | None = None
        self.padding = (1, 1, 1, 1) if config.downsample == "conv_symmetric" else (0, 1, 0, 1)
        if config.downsample != "avg_pool":
            self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H / 2, W / 2) of features (B, C, H, W)."""
        if self.conv is None:
            return nn.functional.avg_pool2d(x, 2)
        h: Tensor = self.conv(nn.functional.pad(x, self.padding))
        return h


class Upsample(nn.Module):
    """Double the resolution; see `ConvAutoencoderConfig.upsample`.

    `depth_to_space` reads channel (2 i + j) C + c as channel c at row i, column j of a 2x2 cell.
    """

    def __init__(self, channels: int, config: ConvAutoencoderConfig) -> None:
        super().__init__()
        self.rearranges = config.upsample == "depth_to_space"
        self.conv = nn.Conv2d(channels, 4 * channels if self.rearranges else channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, 2 H, 2 W) of features (B, C, H, W)."""
        h: Tensor
        if self.rearranges:
            h = rearrange(self.conv(x), "b (i j c) h w -> b c (h i) (w j)", i=2, j=2)
        else:
            h = self.conv(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return h


class AdaptiveNorm(nn.Module):
    """GroupNorm scaled and shifted per channel by statistics of the latents over all positions.

    Source: arXiv:2409.04410, after MAGVIT-v2; scale = Linear(std), bias = Linear(mean), with the
    unbiased variance plus 1e-6 under the root, as in the public code.
    """

    def __init__(self, channels: int, latent_width: int, config: ConvAutoencoderConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_groups, channels, eps=1e-6, affine=False)
        self.scale = nn.Linear(latent_width, channels)
        self.bias = nn.Linear(latent_width, channels)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """Normalized features (B, C, H, W), by statistics of latents (B, D, h, w)."""
        flat = latents.flatten(2)  # (B, D, N)
        scale, bias = self.scale((flat.var(-1) + 1e-6).sqrt()), self.bias(flat.mean(-1))
        h: Tensor = self.norm(x) * scale[:, :, None, None] + bias[:, :, None, None]
        return h


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention if `attention` is set.

    Args:
        in_channels: Number of channels of the input.
        out_channels: Number of channels of the blocks.
        num_blocks: Number of residual blocks.
        attention: Use attention after each block.
        resample: Module applied after the blocks, or None.
        config: Settings of the blocks.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        attention: bool,
        resample: nn.Module | None,
        config: ConvAutoencoderConfig,
    ) -> None:
        super().__init__()
        widths = chain([in_channels], repeat(out_channels, num_blocks))
        self.blocks = nn.ModuleList(ResBlock(a, b, config) for a, b in pairwise(widths))
        self.attention = nn.ModuleList(
            Attention(out_channels, config) for _ in range(num_blocks if attention else 0)
        )
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        """Features of the next level of features (B, `in_channels`, H, W)."""
        for i, block in enumerate(self.blocks):
            x = block(x)
            if len(self.attention):
                x = self.attention[i](x)
        return x if self.resample is None else self.resample(x)


def _mid(channels: int, config: ConvAutoencoderConfig) -> nn.Sequential:
    """Residual blocks at the coarsest resolution, with attention after the first if configured."""
    attention = [Attention(channels, config)] if config.mid_attention else []
    first, *others = (ResBlock(channels, channels, config) for _ in range(config.num_mid_blocks))
    return nn.Sequential(first, *attention, *others)


class Encoder(nn.Module):
    """Images (B, 3, H, W) to latents (B, `out_channels`, H / stride, W / stride)."""

    def __init__(self, config: ConvAutoencoderConfig, out_channels: int) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1, bias=config.conv_bias)
        self.levels = nn.ModuleList()
        for i, width in enumerate(widths):
            resample = Downsample(width, config) if i < len(widths) - 1 else None
            attention = i in config.attention_levels
            before = widths[max(i - 1, 0)]
            self.levels.append(
                Level(before, width, config.num_res_blocks, attention, resample, config)
            )
        self.mid = _mid(widths[-1], config)
        self.norm_out = nn.GroupNorm(config.norm_groups, widths[-1], eps=1e-6)
        self.head_activation = nn.SiLU() if config.head_activation else nn.Identity()
        kernel = config.head_kernel_size
        self.conv_out = nn.Conv2d(widths[-1], out_channels, kernel, padding=kernel // 2)

    def forward(self, images: Tensor) -> Tensor:
        """Latents (B, `out_channels`, H / stride, W / stride) of images (B, 3, H, W)."""
        h: Tensor = self.conv_in(images)
        for level in self.levels:
            h = level(h)
        h = self.conv_out(self.head_activation(self.norm_out(self.mid(h))))
        return h


class Decoder(nn.Module):
    """Latents (B, `in_channels`, h, w) to images (B, 3, h * stride, w * stride), unbounded.

    Levels are in the order of execution, coarsest first. `adaptive_norm` needs two positions.
    """

    def __init__(self, config: ConvAutoencoderConfig, in_channels: int) -> None:
        super().__init__()
        widths = config.widths
        num_blocks = config.num_res_blocks_decoder or config.num_res_blocks
        if config.latent_norm and in_channels % config.norm_groups:
            raise ValueError(
                f"latent_norm: norm_groups {config.norm_groups} does not divide the latents' "
                f"{in_channels} channels"
            )
        self.latent_norm: nn.Module = nn.Identity()
        if config.latent_norm:
            self.latent_norm = nn.GroupNorm(config.norm_groups, in_channels, eps=1e-6)
        self.conv_in = nn.Conv2d(in_channels, widths[-1], 3, padding=1)
        self.mid = _mid(widths[-1], config)
        self.levels = nn.ModuleList()
        self.adaptive_norms = nn.ModuleList()
        for i in reversed(range(len(widths))):
            resample = Upsample(widths[i], config) if i else None
            attention = i in config.attention_levels
            before = widths[min(i + 1, len(widths) - 1)]
            if config.adaptive_norm:
                self.adaptive_norms.append(AdaptiveNorm(before, in_channels, config))
            self.levels.append(Level(before, widths[i], num_blocks, attention, resample, config))
        self.norm_out = nn.GroupNorm(config.norm_groups, widths[0], eps=1e-6)
        self.head_activation = nn.SiLU() if config.head_activation else nn.Identity()
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Images (B, 3, h * stride, w * stride) of latents (B, `in_channels`, h, w), unbounded."""
        h: Tensor = self.mid(self.conv_in(self.latent_norm(latents)))
        for i, level in enumerate(self.levels):
            if len(self.adaptive_norms):
                h = self.adaptive_norms[i](h, latents)
            h = level(h)
        h = self.conv_out(self.head_activation(self.norm_out(h)))
        return h


def to_positions(grid: Tensor) -> Tensor:
    """Rearrange a grid (B, D, h, w) to positions (B, N, D), row-major."""
    return rearrange(grid, "b d h w -> b (h w) d")


def to_grid(positions: Tensor, shape: tuple[int, int]) -> Tensor:
    """Rearrange positions (B, N, D) to a grid (B, D, h, w); inverse of `to_positions`."""
    return rearrange(positions, "b (h w) d -> b d h w", h=shape[0], w=shape[1])


def channels_last(module: nn.Module) -> nn.Module:
    """Move convolution weights to channels-last memory, in place; activations follow them."""
    # torch has no overload of `to` for a memory format alone.
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module
