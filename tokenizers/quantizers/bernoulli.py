"""Bernoulli bits: independent bits whose logits are a linear function of the latent.

The quantizer of Binary Latent Diffusion (arXiv:2304.04820) and of BiGR (arXiv:2410.14672). There is
no codebook: the quantized latent is the sum of the embedding rows of the set bits. The gradient
passes straight through to the probabilities, not to the logits. The regularizer of the public code
takes the sigmoid of a value that is a probability already; here it is the variance that was meant.
Bit k is channel k and has the weight 2**k.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...collectives import mean_over_processes
from ...config import STRICT
from ..base import Quantizer, QuantizerOutput, finite_latents, float_latents, settled
from .entropy import binary_entropy
from .vector import straight_through


@dataclass(frozen=True, kw_only=True)
class BernoulliConfig:
    """Settings of `Bernoulli`.

    Args:
        bits: Number of bits K of a token, 1 to 4096.
        dim: Width of the latents and of the embedding.
        draw: Steps in which bits are drawn with their probabilities instead of being set where
            these exceed 1/2: `training` steps only, `always` (also encoding with an rng, as in the
            public code), or `never` (`deterministic` in the public code).
        free_nats: Threshold of the loss `kl`, the divergence from a fair coin, in nats per bit: a
            bit whose divergence, on average over the batch, is below it adds no loss. None: no such
            loss.
    """

    __pydantic_config__ = STRICT
    type: Literal["bernoulli"] = "bernoulli"
    bits: int
    dim: int = 256
    draw: Literal["training", "always", "never"] = "training"
    free_nats: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 4096:
            raise ValueError(f"bits: expected 1 to 4096, found {self.bits}")
        if self.dim < 1:
            raise ValueError(f"dim: expected at least 1, found {self.dim}")
        if self.free_nats is not None and not 0 <= self.free_nats < math.log(2):
            raise ValueError(
                f"free_nats: expected 0 to below ln 2, the largest divergence of a bit, "
                f"found {self.free_nats}"
            )


class Bernoulli(Quantizer):
    """Latents (B, N, D) to K random bits, and back to the sum of the rows of the set bits.

    The rows are `embedding`, (K, D). The magnitude of the sum grows with the number of set bits, so
    the decoder should normalize it first (`latent_norm` of the autoencoder).

    Example:
        >>> bernoulli = Bernoulli(BernoulliConfig(bits=2, dim=3))
        >>> bernoulli.encode(torch.zeros(1, 4, 3)).shape
        torch.Size([1, 4, 2])
        >>> rows = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
        >>> _ = bernoulli.embedding.data.copy_(rows)
        >>> bernoulli.lookup(torch.tensor([[[1, 1]]])).tolist()
        [[[11.0, 22.0, 33.0]]]
    """

    def __init__(self, config: BernoulliConfig | None = None, **settings: Any) -> None:
        super().__init__()
        self.config = config = settled(BernoulliConfig, config, settings)
        self.dim = config.dim
        self.codebook_sizes = (2,) * config.bits
        self.loss_names = ("commitment",) if config.free_nats is None else ("commitment", "kl")
        self.proj = nn.Linear(config.dim, config.bits)
        self.embedding = nn.Parameter(torch.randn(config.bits, config.dim))

    def forward(self, latents: Tensor, *, rng: torch.Generator | None = None) -> QuantizerOutput:
        """Bits, the sum of their rows and the losses; bits are drawn in eval mode as well.

        `commitment` is the mean variance p (1 - p), in [0, 1/4]; `kl` is the mean over bits of the
        divergence from a fair coin above `free_nats`, in nats, where the divergence ln 2 - h(p) is
        first averaged over the positions of all processes.

        Args:
            latents: Latents, (B, N, D).
            rng: Generator of the draws, on any device; None: the global generator.
        """
        with torch.autocast(latents.device.type, enabled=False):
            logits = self.logits(float_latents(latents))
            p = torch.sigmoid(logits)
            bits = threshold(p) if self.config.draw == "never" else draw(p.detach(), rng)
            losses = {"commitment": (p * (1 - p)).mean()}
            if self.config.free_nats is not None:
                divergence = math.log(2) - binary_entropy(logits).flatten(0, 1).mean(0)
                excess = mean_over_processes(divergence) - self.config.free_nats
                losses["kl"] = excess.clamp_min(0).mean()
            passed = straight_through(p, bits)
            return QuantizerOutput(passed @ self.embedding.float(), bits.long(), losses)

    def logits(self, latents: Tensor) -> Tensor:
        """Logits (B, N, K) float32 of the bits of latents (B, N, D).

        They are summed in float64, so that the order of the sums, which depends on the batch, does
        not reach a bit.
        """
        weight, bias = self.proj.weight.double(), self.proj.bias.double()
        return nn.functional.linear(latents.double(), weight, bias).float()

    @torch.no_grad()
    def probabilities(self, latents: Tensor) -> Tensor:
        """Probability that each bit is 1, (B, N, K) float32, without gradient.

        Raises:
            ValueError: If a latent is not finite.
        """
        with torch.autocast(latents.device.type, enabled=False):
            return torch.sigmoid(self.logits(finite_latents(latents)))

    def encode(self, latents: Tensor) -> Tensor:
        """More probable value of each bit, (B, N, K); 0 where both are equally probable."""
        return threshold(self.probabilities(latents)).long()

    def lookup(self, indices: Tensor) -> Tensor:
        """Sums of rows (B, N, D) float32 of bits (B, N, K)."""
        with torch.autocast(indices.device.type, enabled=False):
            return indices.float() @ self.embedding.float()


def threshold(probabilities: Tensor) -> Tensor:
    """Values 1. where a probability exceeds 1/2, otherwise 0., in the type of the probabilities."""
    return (probabilities > 0.5).to(probabilities.dtype)


def draw(probabilities: Tensor, rng: torch.Generator | None = None) -> Tensor:
    """Draw every bit once, {0., 1.} in the shape of `probabilities`.

    Uniform numbers are drawn on the device of `rng`, so that a generator on the CPU gives the same
    ones for every device; None: the global generator of the device of the probabilities.
    """
    device = probabilities.device if rng is None else rng.device
    uniforms = torch.rand(probabilities.shape, generator=rng, device=device)
    return (uniforms.to(probabilities.device) < probabilities).to(probabilities.dtype)
