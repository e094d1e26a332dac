"""Bernoulli bits: every position holds independent coins whose logits are read off the latent.

The quantizer of Binary Latent Diffusion (arXiv:2304.04820) and of BiGR (arXiv:2410.14672). There is
no vocabulary: the bits that are set add up their rows of an embedding. The gradient passes straight
through to the probabilities, not to the logits. The public code's regulariser takes the sigmoid of
what already is a probability; here it is the variance that was meant. Bit k is channel k and weighs
2**k.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ...collectives import mean_over_processes
from ...config import STRICT
from ..base import Quantizer, QuantizerOutput
from .entropy import binary_entropy


@dataclass(frozen=True, kw_only=True)
class BernoulliConfig:
    """Settings of `Bernoulli`.

    Args:
        bits: Bits K of a token, at least 1.
        dim: Width of the latents and of the embedding.
        draw: When bits are drawn with their probabilities instead of being set where these exceed
            1/2: in training steps alone, `always` (encoding too, wherever it gets an rng, as the
            public code), or `never` (its `deterministic`).
        free_nats: Adds the loss `kl` to a fair coin; a bit whose divergence, on average over the
            batch, is below this many nats costs nothing. None: no such loss.
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
                f"free_nats: expected 0 to below ln 2, all that a bit has; found {self.free_nats}"
            )


class Bernoulli(Quantizer):
    """Latents (B, N, D) to K coins and back to the sum of the rows of those that show 1.

    The rows are `embedding`, (K, D). The number of set bits shows in the size of the sum, so the
    decoder should normalise it first (`latent_norm` of the autoencoder).
    """

    def __init__(self, config: BernoulliConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.codebook_sizes = (2,) * config.bits
        self.loss_names = ("commitment",) if config.free_nats is None else ("commitment", "kl")
        self.proj = nn.Linear(config.dim, config.bits)
        self.embedding = nn.Parameter(torch.randn(config.bits, config.dim))

    def forward(self, latents: Tensor, *, rng: torch.Generator | None = None) -> QuantizerOutput:
        """Bits, the sum of their rows and the losses; drawn in eval mode as well.

        `commitment` is the mean variance p (1 - p), in [0, 1/4]; `kl` the mean over bits of the
        divergence from a fair coin beyond `free_nats`, in nats, ln 2 - h(p) being averaged over the
        positions of all processes first.

        Args:
            latents: (B, N, D).
            rng: Where draws come from, on any device; None: the global generator.
        """
        with torch.autocast(latents.device.type, enabled=False):
            logits = self.logits(latents)
            p = torch.sigmoid(logits)
            bits = threshold(p) if self.config.draw == "never" else draw(p.detach(), rng)
            losses = {"commitment": (p * (1 - p)).mean()}
            if self.config.free_nats is not None:
                divergence = math.log(2) - binary_entropy(logits).flatten(0, 1).mean(0)
                excess = mean_over_processes(divergence) - self.config.free_nats
                losses["kl"] = excess.clamp_min(0).mean()
            passed = bits + (p - p.detach())  # exactly the bits, with the gradient of p
            return QuantizerOutput(passed @ self.embedding.float(), bits.long(), losses)

    def logits(self, latents: Tensor) -> Tensor:
        """Logits (B, N, K) float32 of the bits of latents (B, N, D)."""
        weight, bias = self.proj.weight.float(), self.proj.bias.float()
        return nn.functional.linear(latents.float(), weight, bias)

    @torch.no_grad()
    def probabilities(self, latents: Tensor) -> Tensor:
        """Probability of 1 of every bit, (B, N, K) float32, without gradient."""
        with torch.autocast(latents.device.type, enabled=False):
            return torch.sigmoid(self.logits(latents))

    def encode(self, latents: Tensor) -> Tensor:
        """The more probable value of each bit, (B, N, K); 0 where both are equally probable."""
        return threshold(self.probabilities(latents)).long()

    def lookup(self, indices: Tensor) -> Tensor:
        """Sums of rows (B, N, D) float32 of bits (B, N, K)."""
        with torch.autocast(indices.device.type, enabled=False):
            return indices.float() @ self.embedding.float()


def threshold(probabilities: Tensor) -> Tensor:
    """1. where a probability exceeds 1/2, else 0."""
    return (probabilities > 0.5).to(probabilities.dtype)


def draw(probabilities: Tensor, rng: torch.Generator | None = None) -> Tensor:
    """One draw of every coin, {0., 1.} in the shape of `probabilities`.

    The uniforms are drawn where `rng` lives, so that a generator on the CPU gives every device the
    same ones; None: the global generator of the probabilities' device.
    """
    device = probabilities.device if rng is None else rng.device
    uniforms = torch.rand(probabilities.shape, generator=rng, device=device)
    return (uniforms.to(probabilities.device) < probabilities).to(probabilities.dtype)
