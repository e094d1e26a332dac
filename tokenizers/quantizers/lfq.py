"""LFQ, lookup-free quantization: each latent channel is one bit, its sign (arXiv:2310.05737).

The default quantizer of bit tokens, in the convention of MaskBit (arXiv:2409.16211): identity
straight-through gradient, no projection, no parameters; bit k is channel k and has the weight 2**k.
The entropy terms are exact, of a factorized form without a table of all codes. The reference code
clamps probabilities at 1e-5 in the logarithm (which stops rewarding diversity at 2**17 codes), and
its batch entropy is that of one process's tokens; ours is of the tokens of all processes.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...config import STRICT
from ..base import Quantizer, QuantizerOutput, finite_latents, float_latents, settled
from .entropy import batch_entropy, sample_entropy
from .vector import straight_through

MAX_JOINT_BITS = 18
"""Most bits whose joint entropy is computed without being asked for: the largest published LFQ."""


@dataclass(frozen=True, kw_only=True)
class LFQConfig:
    """Settings of `LFQ`.

    Args:
        bits: Number of bits of a token, 1 to 4096; also the latent width.
        entropy_temperature: Temperature of the soft assignments in the entropy loss, > 0.
        batch_entropy_weight: Weight gamma in the entropy loss H_sample - gamma * H_batch.
        entropy_group_bits: Largest group of bits whose joint batch entropy is computed, 1 to 24.
            None: all bits, the exact joint entropy of the published loss, for up to 18 bits. The
            sum over smaller groups is an upper bound that does not see a bit copy another group's;
            more than 18 bits must say which groups.
    """

    __pydantic_config__ = STRICT
    type: Literal["lfq"] = "lfq"
    bits: int
    entropy_temperature: float = 0.01
    batch_entropy_weight: float = 1.0
    entropy_group_bits: int | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits, self.entropy_group_bits)
        if not self.entropy_temperature > 0:
            raise ValueError(f"entropy_temperature: must be > 0, found {self.entropy_temperature}")

    @property
    def group_bits(self) -> int:
        """Largest group of bits: `entropy_group_bits`, or all."""
        return self.bits if self.entropy_group_bits is None else self.entropy_group_bits


class LFQ(Quantizer):
    """Signs of latents (B, N, n) as n bits per token; quantized values are -1 and +1.

    Example:
        >>> lfq = LFQ(LFQConfig(bits=3))
        >>> indices = lfq.encode(torch.tensor([[[0.3, -2.0, 0.1]]]))
        >>> indices.tolist(), lfq.lookup(indices).tolist()
        ([[[1, 0, 1]]], [[[1.0, -1.0, 1.0]]])
    """

    loss_names = ("commitment", "entropy")

    def __init__(self, config: LFQConfig | None = None, **settings: Any) -> None:
        super().__init__()
        self.config = config = settled(LFQConfig, config, settings)
        self.dim = config.bits
        self.codebook_sizes = (2,) * config.bits

    def forward(self, latents: Tensor) -> QuantizerOutput:
        """Signs with the identity gradient, and the losses of section 3.2 of the MaskBit paper.

        `commitment` is the mean of (z - sign z)**2 over all elements; `entropy` is
        H_sample - gamma H_batch in nats.
        """
        with torch.autocast(latents.device.type, enabled=False):
            z = float_latents(latents)
            indices = (z > 0).long()
            signs = self.lookup(indices)
            logits = z * (4 / self.config.entropy_temperature)
            diversity = batch_entropy(logits, max_group_bits=self.config.group_bits)
            losses = {
                "commitment": (z - signs).square().mean(),
                "entropy": sample_entropy(logits) - self.config.batch_entropy_weight * diversity,
            }
            return QuantizerOutput(straight_through(z, signs), indices, losses)

    def encode(self, latents: Tensor) -> Tensor:
        """Bits (B, N, n): 1 where the latent is positive; 0 maps to bit 0."""
        return (finite_latents(latents) > 0).long()

    def lookup(self, indices: Tensor) -> Tensor:
        """Signs (B, N, n) float32 in {-1, +1} of bits (B, N, n)."""
        return indices.float() * 2 - 1


def check_bits(bits: int, group_bits: int | None) -> None:
    """Check the sizes of a binary quantizer; a group of g bits takes 2**g floats of memory.

    Raises:
        ValueError: If `bits` is not in [1, 4096] or `group_bits` not in [1, 24], or if no groups
            are given for more than 18 bits.
    """
    if not 1 <= bits <= 4096:
        raise ValueError(f"bits: expected 1 to 4096, found {bits}")
    if group_bits is None:
        if bits > MAX_JOINT_BITS:
            raise ValueError(
                f"entropy_group_bits: required beyond {MAX_JOINT_BITS} bits, found none for {bits} "
                "bits; expected the largest group of bits whose joint entropy counts, e.g. 8"
            )
        return
    if not 1 <= group_bits <= 24:
        raise ValueError(f"entropy_group_bits: expected 1 to 24, found {group_bits}")
