"""Base classes `Quantizer` and `Tokenizer`, and the results of their training steps."""

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..config import build_config
from ..tokens.tokens import Tokens, TokenSpec

C = TypeVar("C")


@dataclass(frozen=True, eq=False)
class QuantizerOutput:
    """Result of a training step of a quantizer.

    Args:
        quantized: Quantized latents, the decoder's input, (B, N, D), with the gradient path of the
            method.
        indices: Codes, (B, N, G) int64.
        losses: Unweighted scalar losses by name; the names are `Quantizer.loss_names`.
    """

    quantized: Tensor
    indices: Tensor
    losses: dict[str, Tensor]


class Quantizer(nn.Module):
    """Latents (B, N, D) to codes (B, N, G) and back.

    Attributes:
        dim: Width D of the latents read and of the quantized latents returned.
        codebook_sizes: Sizes of the G entries of a position.
        loss_names: Names of the losses of `forward`, fixed at construction.

    Quantization is computed in float32 outside autocast for any dtype of the latents.
    """

    dim: int
    codebook_sizes: tuple[int, ...]
    loss_names: tuple[str, ...] = ()

    def forward(self, latents: Tensor) -> QuantizerOutput:
        """Training step: quantized latents with gradient, codes, losses."""
        raise NotImplementedError

    def encode(self, latents: Tensor) -> Tensor:
        """Codes (B, N, G) int64 of latents (B, N, D), without gradient or change of state."""
        raise NotImplementedError

    def lookup(self, indices: Tensor) -> Tensor:
        """Quantized latents (B, N, D) float32 of codes (B, N, G) int64, exactly."""
        raise NotImplementedError


def settled(kind: type[C], config: C | None, settings: dict[str, Any]) -> C:
    """The config given, or one made of settings: `LFQ(bits=14)` is `LFQ(LFQConfig(bits=14))`.

    Args:
        kind: Config dataclass of the quantizer.
        config: Config, or None where settings are given.
        settings: Fields of the config by name.

    Raises:
        TypeError: If both are given.
        ConfigError: If a setting does not exist, is missing or has a wrong value.
    """
    if config is None:
        return build_config(kind, settings, name=kind.__name__)
    if not isinstance(config, kind):
        raise TypeError(f"expected a {kind.__name__} or settings by name, found {config!r}")
    if settings:
        raise TypeError(f"give a {kind.__name__} or settings, not both; found {sorted(settings)}")
    return config


@dataclass(frozen=True, eq=False)
class TokenizerOutput:
    """Result of a training step of a tokenizer.

    Args:
        images: Reconstructions, (B, 3, H, W) float32, not clamped.
        tokens: Tokens from which they were decoded.
        losses: Unweighted quantizer losses by name.
    """

    images: Tensor
    tokens: Tokens
    losses: dict[str, Tensor]


class Tokenizer(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to `Tokens` and back.

    `forward` is always the training step: no other method synchronizes gradients between processes.

    Attributes:
        spec: Description of its tokens.
        resolution: Height and width of its images, in pixels.
        loss_names: Names of the losses of `forward`.
        config: Config dataclass from which it was built.
        fingerprint: Hash of config and weights; None until it is loaded from a folder.
        card: Model card of the folder; None until it is loaded from a folder.
        origin: Folder, `bundled:NAME` or `hub:owner/name` that it was loaded from; else None.
    """

    config: Any
    fingerprint: str | None = None
    card: dict[str, Any] | None = None
    origin: str | None = None
    spec: TokenSpec
    resolution: int
    loss_names: tuple[str, ...] = ()

    def forward(self, images: Tensor, *, rng: torch.Generator | None = None) -> TokenizerOutput:
        """Encode, quantize and decode with gradients.

        Args:
            images: Images, (B, 3, H, W) in [-1, 1].
            rng: Generator of stochastic quantizers; None: the global generator.
        """
        raise NotImplementedError

    def encode(self, images: Tensor, *, rng: torch.Generator | None = None) -> Tokens:
        """Tokens of images (B, 3, H, W) in [-1, 1]; `rng` is for stochastic quantizers."""
        raise NotImplementedError

    def decode(self, tokens: Tokens, *, rng: torch.Generator | None = None) -> Tensor:
        """Images (B, 3, H, W) float32 of tokens, clamped to [-1, 1]; `rng` for random decoders."""
        raise NotImplementedError

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last decoder layer, which the adaptive adversarial weight depends on."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def num_parameters(self) -> dict[str, int]:
        """Numbers of parameters, trainable and frozen, of each direct child, and the `total`."""
        counts = {
            name: sum(p.numel() for p in child.parameters())
            for name, child in self.named_children()
        }
        return counts | {"total": sum(p.numel() for p in self.parameters())}

    def check_images(self, images: Tensor) -> None:
        """Check that images have the shape, type and range that `encode` reads.

        Raises:
            ValueError: If they do not; the message has what was found and what was expected.
        """
        size = (3, self.resolution, self.resolution)
        if images.ndim != 4 or tuple(images.shape[1:]) != size:
            raise ValueError(
                f"images: expected (B, {', '.join(map(str, size))}), found {tuple(images.shape)}"
            )
        if not images.is_floating_point():
            raise ValueError(f"images: expected floats in [-1, 1], found {images.dtype}")
        if len(images):
            low, high = images.detach().float().aminmax()
            check_pixel_range(low.item(), high.item())


def check_pixel_range(low: float, high: float) -> None:
    """Check that pixel values are in [-1, 1], with a margin of 1 % for overshoot of resampling.

    Raises:
        ValueError: If they are not, or are NaN; for images in [0, 255] with a hint.
    """
    if not (low >= -1.01 and high <= 1.01):
        hint = "; divide by 127.5 and subtract 1" if low >= 0 and high > 2 else ""
        raise ValueError(f"images: expected values in [-1, 1], found [{low:.4g}, {high:.4g}]{hint}")
