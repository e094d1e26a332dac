"""The base classes `Quantizer` and `Tokenizer`, and what their training steps return."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..tokens.tokens import Tokens, TokenSpec


@dataclass(frozen=True, eq=False)
class QuantizerOutput:
    """One training step of a quantizer.

    Args:
        quantized: What the decoder reads, (B, N, D), with the gradient path of the method.
        indices: Codes, (B, N, G) int64.
        losses: Scalars by name, unweighted, the names being `Quantizer.loss_names`.
    """

    quantized: Tensor
    indices: Tensor
    losses: dict[str, Tensor]


class Quantizer(nn.Module):
    """Latents (B, N, D) to codes (B, N, G) and back.

    Attributes:
        dim: Width D of the latents read and of the quantized latents returned.
        codebook_sizes: Sizes of the G entries of a position.
        loss_names: Names that `forward` emits, fixed at construction.

    Quantization maths is float32 outside autocast, whatever the dtype of the latents.
    """

    dim: int
    codebook_sizes: tuple[int, ...]
    loss_names: tuple[str, ...] = ()

    def forward(self, latents: Tensor) -> QuantizerOutput:
        """The training step: quantized latents with gradient, codes, losses."""
        raise NotImplementedError

    def encode(self, latents: Tensor) -> Tensor:
        """Codes (B, N, G) int64 of latents (B, N, D): no gradient, no state changed."""
        raise NotImplementedError

    def lookup(self, indices: Tensor) -> Tensor:
        """Quantized latents (B, N, D) float32 of codes (B, N, G) int64, exactly."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class TokenizerOutput:
    """One training step of a tokenizer.

    Args:
        images: Reconstructions, (B, 3, H, W) float32, not clamped.
        tokens: The codes behind them.
        losses: Quantizer losses by name, unweighted.
    """

    images: Tensor
    tokens: Tokens
    losses: dict[str, Tensor]


class Tokenizer(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to `Tokens` and back.

    `forward` is the training step, always: only it synchronises gradients between processes.

    Attributes:
        spec: What it emits.
        resolution: Height and width of its images, in pixels.
        loss_names: Names of the losses that `forward` emits.
        config: The dataclass it was built from.
        fingerprint: Hash of config and weights, once loaded from a folder.
        card: What the folder says of the model, once loaded.
    """

    config: Any
    fingerprint: str | None = None
    card: dict[str, Any] | None = None
    spec: TokenSpec
    resolution: int
    loss_names: tuple[str, ...] = ()

    def forward(self, images: Tensor, *, rng: torch.Generator | None = None) -> TokenizerOutput:
        """Encode, quantize and decode with gradients; `rng` drives stochastic quantizers."""
        raise NotImplementedError

    def encode(self, images: Tensor, *, rng: torch.Generator | None = None) -> Tokens:
        """Tokens of images (B, 3, H, W) in [-1, 1]."""
        raise NotImplementedError

    def decode(self, tokens: Tokens, *, rng: torch.Generator | None = None) -> Tensor:
        """Images (B, 3, H, W) float32, clamped to [-1, 1]."""
        raise NotImplementedError

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last decoder layer, where the adaptive adversarial weight is measured."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def num_parameters(self) -> dict[str, int]:
        """Trainable and frozen parameters of each direct child, and the `total`."""
        counts = {
            name: sum(p.numel() for p in child.parameters())
            for name, child in self.named_children()
        }
        return counts | {"total": sum(p.numel() for p in self.parameters())}

    def check_images(self, images: Tensor) -> None:
        """Refuse images that are not what `encode` reads.

        Raises:
            ValueError: Saying what was found and what was expected.
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
            check_range(low.item(), high.item())


def check_range(low: float, high: float) -> None:
    """Refuse pixel values outside [-1, 1] (a 1 % margin admits resampling overshoot).

    Raises:
        ValueError: With a hint for images in [0, 255]; also for NaN.
    """
    if not (low >= -1.01 and high <= 1.01):
        hint = "; divide by 127.5 and subtract 1" if low >= 0 and high > 2 else ""
        raise ValueError(f"images: expected values in [-1, 1], found [{low:.4g}, {high:.4g}]{hint}")
