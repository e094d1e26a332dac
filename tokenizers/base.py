"""Base classes `Quantizer` and `Tokenizer`, and the results of their training steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..config import build_config
from ..tokens.code_arrays import tokens_of_codes
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


class KeepsBuffers(nn.Module):
    """A module whose own buffers keep their dtype, whatever it is converted to or loads.

    Running counts and means need float32: a bfloat16 count of 256 no longer grows by 1. `to`,
    `half`, `bfloat16`, `double` convert the parameters only; buffers move between devices, and
    loading converts the file's values, also with `assign=True`.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch has no type for it
        for name, buffer in kept.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name, buffer in self._buffers.items():
            stored = state_dict.get(prefix + name)
            if buffer is not None and stored is not None:
                state_dict[prefix + name] = stored.to(buffer.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class Quantizer(KeepsBuffers):
    """Latents (B, N, D) to codes (B, N, G) and back.

    Attributes:
        dim: Width D of the latents read and of the quantized latents returned.
        codebook_sizes: Sizes of the G entries of a position.
        loss_names: Names of the losses of `forward`, fixed at construction.

    Numerics, the same for every quantizer (`tests/tokenizers/test_numerics.py`):

    - Everything is computed in float32 or wider, outside autocast, for latents and weights of any
      dtype. Running statistics are buffers and stay float32 (`KeepsBuffers`).
    - The decoder reads exactly `lookup(indices)`; an estimator adds a gradient, never a rounding.
    - A latent half-way between two codes gets the lower one: bit 0, the lower index of a codebook
      (equal rows included), the even one of two levels (as `torch.round`).
    - The codes of a latent do not depend on the rest of its batch: sums whose order depends on it
      (distances, logits) are made again, or at all, in float64 where their rounding could decide.
    - Latents from 1e-30 to 1e15, zero included, give finite losses and gradients. A latent without
      a direction passes its gradient unchanged wherever a method would divide by its length.
    - Batches of one position, of equal latents, and codebooks with one code in use are no special
      cases; a batch of none has codes, and means over nothing (NaN) as losses.
    - A latent that is not finite makes `encode` raise a ValueError. `forward` does not wait for the
      device to see it: the codes stay in range, the quantized latent and the losses become NaN,
      upon which the training scripts stop, and running statistics do not take it in.
    """

    dim: int
    codebook_sizes: tuple[int, ...]
    loss_names: tuple[str, ...] = ()

    def forward(self, latents: Tensor) -> QuantizerOutput:
        """Training step: quantized latents with gradient, codes, losses."""
        raise NotImplementedError

    def encode(self, latents: Tensor) -> Tensor:
        """Codes (B, N, G) int64 of latents (B, N, D), without gradient or change of state.

        Raises:
            ValueError: If a latent is not finite.
        """
        raise NotImplementedError

    def lookup(self, indices: Tensor) -> Tensor:
        """Quantized latents (B, N, D) float32 of codes (B, N, G) int64, exactly."""
        raise NotImplementedError


def float_latents(latents: Tensor) -> Tensor:
    """Latents in float32, with NaN in the place of what is not finite; the gradient passes."""
    z = latents.float()
    return z + (z - z).detach()


def finite_latents(latents: Tensor) -> Tensor:
    """Latents in float32 without gradient, checked.

    Raises:
        ValueError: If a latent is not finite.
    """
    z = latents.detach().float()
    if not z.isfinite().all():
        count = int((~z.isfinite()).sum())
        raise ValueError(
            f"encode: {count} of {z.numel()} latents of the encoder are not finite; expected all"
        )
    return z


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
        stride: Pixels of a token along one side, of which `any_size` takes every multiple; None:
            images of its resolution only.
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
    stride: int | None = None
    loss_names: tuple[str, ...] = ()

    def forward(self, images: Tensor, *, rng: torch.Generator | None = None) -> TokenizerOutput:
        """Encode, quantize and decode with gradients.

        Args:
            images: Images, (B, 3, H, W) in [-1, 1].
            rng: Generator of stochastic quantizers; None: the global generator.
        """
        raise NotImplementedError

    def encode(
        self, images: Tensor, *, rng: torch.Generator | None = None, any_size: bool = False
    ) -> Tokens:
        """Tokens of images (B, 3, H, W) in [-1, 1].

        Args:
            images: Images of one size: the tokenizer's resolution, or with `any_size` any.
            rng: Generator of stochastic quantizers.
            any_size: Whether H and W may be any multiples of `stride`; the spec of the tokens is
                then `spec_of(H, W)`.
        """
        raise NotImplementedError

    def decode(
        self, tokens: Tokens, *, rng: torch.Generator | None = None, any_size: bool = False
    ) -> Tensor:
        """Images (B, 3, H, W) float32 of tokens, clamped to [-1, 1].

        Args:
            tokens: Tokens of the tokenizer's spec, or with `any_size` of a grid of any size.
            rng: Generator of random decoders.
            any_size: Whether the tokens may be those of images of any size.
        """
        raise NotImplementedError

    def spec_of(self, height: int, width: int) -> TokenSpec:
        """Spec of the tokens of images of a size: a grid of (H / stride, W / stride).

        Raises:
            ValueError: If the tokenizer has one size only, or the sides are no multiples of its
                stride.
        """
        if self.stride is None:
            raise ValueError(
                f"any_size: this tokenizer reads {self.resolution}x{self.resolution} pixels only"
            )
        if height < 1 or width < 1 or height % self.stride or width % self.stride:
            raise ValueError(
                f"images: found {height}x{width} pixels (height x width), expected multiples of "
                f"the stride {self.stride}"
            )
        shape = (height // self.stride, width // self.stride)
        return TokenSpec(shape, self.spec.codebook_sizes)

    def tokens_of(self, codes: Tensor | np.ndarray) -> Tokens:
        """Tokens of an array of codes that another program computed; see `tokens_of_codes`."""
        return tokens_of_codes(codes, self.spec)

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

    def check_tokens(self, tokens: Tokens, *, any_size: bool = False) -> Tokens:
        """Check that `decode` got tokens of this tokenizer, and return them.

        Args:
            tokens: What `decode` got.
            any_size: Whether a grid of any size will do.

        Raises:
            TypeError: If they are no `Tokens`; the message says how to make some.
            SpecMismatch: If they are another tokenizer's.
        """
        if not isinstance(tokens, Tokens):
            shape = getattr(tokens, "shape", None)
            found = type(tokens).__name__ + (f" {tuple(shape)}" if shape is not None else "")
            raise TypeError(
                f"decode: expected Tokens ({self.spec}), found {found}; for an array of codes, "
                "decode(tokenizer.tokens_of(codes))"
            )
        shape = tokens.spec.shape
        if any_size and self.stride is not None and len(shape) == 2:
            return tokens.require(self.spec_of(shape[0] * self.stride, shape[1] * self.stride))
        return tokens.require(self.spec)

    def check_images(self, images: Tensor, *, any_size: bool = False) -> None:
        """Check that images have the shape, type and range that `encode` reads.

        Args:
            images: What `encode` got.
            any_size: Whether the sides may be any multiples of the stride.

        Raises:
            ValueError: If they do not; the message has what was found and what was expected.
        """
        size = (3, self.resolution, self.resolution)
        if any_size and images.ndim == 4:
            self.spec_of(*images.shape[2:])
            size = (3, *images.shape[2:])
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
