"""BSQ, binary spherical quantization: signs of the normalized latent (arXiv:2406.07548).

Like LFQ, but the latent is first projected onto the unit sphere, and the codes are the corners
+-1/sqrt(n) on it, so that the quantization error is bounded without a commitment loss. Bit k is
channel k and has the weight 2**k (the reference code is most significant first: reverse the channel
axis).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...config import STRICT
from ..base import Quantizer, QuantizerOutput, finite_latents, float_latents, settled
from .entropy import batch_entropy, sample_entropy
from .lfq import check_bits
from .vector import straight_through, unit


@dataclass(frozen=True, kw_only=True)
class BSQConfig:
    """Settings of `BSQ`.

    Args:
        bits: Number of bits of a token, 1 to 4096; also the latent width.
        inverse_temperature: Inverse temperature tau of the soft assignments, > 0.
        sample_entropy_weight: Weight gamma_0 of the sample entropy in the entropy loss.
        batch_entropy_weight: Weight gamma of the batch entropy in the entropy loss.
        entropy_group_bits: Largest group of bits whose joint batch entropy is computed, 1 to 24; 1
            is the sum of marginal bit entropies, which the authors found better and cheaper than 9.
        ste_scale: Straight-through gradient d value / d unit latent. None: 1 / sqrt(bits), as in
            the reference code; 1 is that of lucidrains' spherical option.
    """

    __pydantic_config__ = STRICT
    type: Literal["bsq"] = "bsq"
    bits: int
    inverse_temperature: float = 1.0
    sample_entropy_weight: float = 1.0
    batch_entropy_weight: float = 1.0
    entropy_group_bits: int = 1
    ste_scale: float | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits, self.entropy_group_bits)
        if not self.inverse_temperature > 0:
            raise ValueError(f"inverse_temperature: must be > 0, found {self.inverse_temperature}")


class BSQ(Quantizer):
    """Corners of the unit sphere nearest to latents (B, N, n); values are +-1/sqrt(n).

    Example:
        >>> bsq = BSQ(BSQConfig(bits=4))
        >>> indices = bsq.encode(torch.tensor([[[0.3, -2.0, 0.1, -0.7]]]))
        >>> indices.tolist(), bsq.lookup(indices).tolist()
        ([[[1, 0, 1, 0]]], [[[0.5, -0.5, 0.5, -0.5]]])
    """

    loss_names = ("commitment", "entropy")

    def __init__(self, config: BSQConfig | None = None, **settings: Any) -> None:
        super().__init__()
        self.config = config = settled(BSQConfig, config, settings)
        self.dim = config.bits
        self.codebook_sizes = (2,) * config.bits
        scale = config.ste_scale
        self.ste_scale = 1 / math.sqrt(config.bits) if scale is None else scale

    def forward(self, latents: Tensor) -> QuantizerOutput:
        """Corners with the scaled straight-through gradient, and the losses of the paper.

        `commitment` is the mean over tokens of |u - v|**2; `entropy` is
        (gamma_0 H_sample - gamma H_batch) / tau with bit logits 4 u tau / sqrt(n) (eq. 8 for
        groups of 1).
        """
        with torch.autocast(latents.device.type, enabled=False):
            z = float_latents(latents)
            direction = unit(z)
            indices = (z > 0).long()
            corners = self.lookup(indices)
            tau = self.config.inverse_temperature
            logits = direction * (4 * tau / math.sqrt(self.dim))
            diversity = batch_entropy(logits, max_group_bits=self.config.entropy_group_bits)
            entropy = self.config.sample_entropy_weight * sample_entropy(logits)
            entropy = entropy - self.config.batch_entropy_weight * diversity
            losses = {
                "commitment": (direction - corners).square().sum(-1).mean(),
                "entropy": entropy / tau,
            }
            quantized = straight_through(self.ste_scale * direction, corners)
            return QuantizerOutput(quantized, indices, losses)

    def encode(self, latents: Tensor) -> Tensor:
        """Bits (B, N, n): 1 where the latent is positive; 0 maps to bit 0."""
        return (finite_latents(latents) > 0).long()

    def lookup(self, indices: Tensor) -> Tensor:
        """Unit vectors (B, N, n) float32 of bits (B, N, n)."""
        return (indices.float() * 2 - 1) / math.sqrt(self.dim)
