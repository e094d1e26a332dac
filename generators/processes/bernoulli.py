"""Bernoulli diffusion: bits are flipped with growing probability until they are fair coins.

The mathematics of arXiv:2304.04820 and of the head of BiGR (arXiv:2410.14672): no network, and no
random numbers of its own. Bit x_t differs from x_0 with probability rho_t = (1 - k_t) / 2, where
the keep factor k falls from k_0 = 1 to k_T = 0; between times s < t the keep factor is k_t / k_s,
the flip probability delta = (1 - k_t / k_s) / 2. A network predicts the flip y = x_0 XOR x_t as a
logit. Two losses, each with the reverse kernel that belongs to it:

- `plain`: cross-entropy. Its optimum is the posterior, logit P(y = 1 | x_t): calibrated. The kernel
  is the exact marginal, the sum over x_0 of q(x_s | x_t, x_0) p(x_0 | x_t).
- `balanced` (published): cross-entropy with weight 1 - rho_t on flipped and rho_t on unflipped
  bits. Its optimum is the calibrated logit plus log((1 - rho_t) / rho_t): the posterior without
  what the bit's own value says (the cavity). The kernel is p(x_s) ~ q(x_t | x_s) p(x_s | cavity),
  which brings that evidence in.

The two pairs are one and the same reverse process. A crossed pair counts the evidence twice or not
at all, so the kernel follows from the loss and cannot be chosen.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...config import STRICT

_STEEP = 3.75
"""End of the logistic curve of the sigmoid schedule, from the reference: 3 at temperature 0.8."""


@dataclass(frozen=True, kw_only=True)
class BernoulliDiffusion:
    """One Bernoulli diffusion process: its schedule, its loss, and the kernel of that loss.

    Times are int64 tensors of shape (B,) or (B, N), for bits of shape (B, N, K). Everything that
    follows from the schedule is computed in float64 and rounded last.

    Args:
        num_steps: Number of steps T.
        schedule: k_t: `linear` is 1 - t / T (published), `cos` is cos^2(pi t / 2T), `sigmoid` a
            falling logistic curve.
        loss: `balanced` (published) or `plain`; the module's docstring says what follows from it.
        weights: Origin of rho_t in the balanced loss: the `schedule`, or the share of bits
            that really were flipped, of an `image` (published) or of a `token` (BiGR, which adds
            1 / K to both weights). The optimum of `image` is that of `schedule` for many bits; for
            small t the logits of `token` stay below what the kernel expects.

    Raises:
        ValueError: If there is no step, or weights are chosen for a loss that has none.
    """

    __pydantic_config__ = STRICT
    num_steps: int = 256
    schedule: Literal["linear", "cos", "sigmoid"] = "linear"
    loss: Literal["balanced", "plain"] = "balanced"
    weights: Literal["schedule", "image", "token"] = "schedule"

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps: expected at least 1, found {self.num_steps}")
        if self.loss == "plain" and self.weights != "schedule":
            raise ValueError(f"weights: {self.weights} of the plain loss, which has none")

    def keep(self, t: Tensor) -> Tensor:
        """Keep factor k_t, float64 in [0, 1]; exactly 1 at t = 0 and 0 at t = T.

        Args:
            t: Times in [0, T], any shape.
        """
        u = t.double() / self.num_steps
        match self.schedule:
            case "linear":
                return 1 - u
            case "cos":
                return 0.5 + 0.5 * torch.cos(math.pi * u)
            case "sigmoid":
                end = torch.full_like(u, _STEEP).sigmoid()
                return (end - (_STEEP * u).sigmoid()) / (end - 0.5)

    def flip_rate(self, t: Tensor) -> Tensor:
        """rho_t = (1 - k_t) / 2, float64 in [0, 0.5]."""
        return (1 - self.keep(t)) / 2

    def evidence(self, t: Tensor) -> Tensor:
        """log((1 - rho_t) / rho_t), float64: what a bit of x_t says of itself, in nats."""
        rate = self.flip_rate(t)
        return torch.log1p(-rate) - rate.log()

    def draw_time(self, u: Tensor) -> Tensor:
        """Times 1 to T, int64, from uniform numbers in (0, 1)."""
        return 1 + (u * self.num_steps).long().clamp(max=self.num_steps - 1)

    def corrupt(self, bits: Tensor, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """A draw of q(x_t | x_0).

        Args:
            bits: x_0, (B, N, K) int64 in {0, 1}.
            t: Times.
            u: Uniform numbers in (0, 1), (B, N, K).

        Returns:
            x_t, of the shape and type of `bits`, and what was flipped, bool.
        """
        flips = u < _over(self.flip_rate(t), u)
        return bits ^ flips, flips

    def loss_per_bit(
        self, logits: Tensor, flips: Tensor, t: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """The loss of every bit, in nats, (B, N, K).

        Args:
            logits: Predicted flips, (B, N, K).
            flips: True at flipped bits, (B, N, K) bool.
            t: Times.
            valid: True at real positions, (B, N) bool; None: all. The others do not count for the
                weights of an image.
        """
        loss = F.binary_cross_entropy_with_logits(logits, flips.to(logits.dtype), reduction="none")
        if self.loss == "plain":
            return loss
        share: Tensor
        match self.weights:
            case "schedule":
                share = _over(self.flip_rate(t), logits)
            case "image":
                real = (
                    torch.ones_like(flips) if valid is None else valid[..., None].expand_as(flips)
                )
                share = (flips & real).sum((1, 2), True) / real.sum((1, 2), True)
            case "token":
                share = flips.float().mean(-1, True)
        weight = torch.where(flips, 1 - share, share)
        if self.weights == "token":
            weight = weight + 1 / flips.shape[-1]
        return weight * loss

    def calibrated(self, logits: Tensor, t: Tensor) -> Tensor:
        """Logits of the posterior P(y = 1 | x_t) from those that this loss leads to."""
        if self.loss == "plain":
            return logits
        return logits - _over(self.evidence(t), logits)

    def reverse(self, logits: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """One step back: P(x_s != x_t | x_t) and P(x_s = x_t | x_t), by the kernel of the loss.

        Args:
            logits: Predicted flips at time t, (B, N, K), in the sense of the loss.
            s: Earlier times, at least 0; any stride is exact.
            t: Times, of the shape of `s`.

        Returns:
            Two tensors of the shape and type of `logits`, each with its own relative precision.
        """
        flip, stay = logits.sigmoid(), (-logits).sigmoid()
        if self.loss == "plain":
            flip, stay = self._cavity(flip, stay, t)
        return self._transition(flip, stay, s, t)

    def posterior(self, flips: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """P(x_s != x_t | x_t, x_0) and P(x_s = x_t | x_t, x_0), float64, arguments as above."""
        flip = flips.double()
        return self._transition(*self._cavity(flip, 1 - flip, t), s, t)

    def step_divergence(self, logits: Tensor, flips: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) of every bit, in nats, (B, N, K) float64.

        At s = 0 it is -log p(x_0 | x_t). The expected sum over the steps of a chain from T to 0
        bounds -log p(x_0) of that chain from above; the term of the start is 0, since k_T = 0.
        """
        true, predicted = self.posterior(flips, s, t), self.reverse(logits.double(), s, t)
        pairs = zip(true, predicted, strict=True)
        return torch.stack([torch.xlogy(q, q) - torch.xlogy(q, p) for q, p in pairs]).sum(0)

    def steps(self, num_steps: int | None = None) -> tuple[tuple[int, int], ...]:
        """Pairs (t, s) of a chain: from T over evenly spaced times to 1, then to 0.

        A single step goes from T to 0. The times are 1 + floor(i (T - 1) / (S - 1)), in whole
        numbers; the reference, in floating point, falls one short at a few of them.

        Args:
            num_steps: S; None: T.

        Raises:
            ValueError: If S is not in [1, T].
        """
        last, count = self.num_steps, self.num_steps if num_steps is None else num_steps
        if not 1 <= count <= last:
            raise ValueError(f"num_steps: expected 1 to the {last} of training, found {count}")
        times = [1 + i * (last - 1) // max(count - 1, 1) for i in reversed(range(count))]
        times[0] = last
        return tuple(zip(times, [*times[1:], 0], strict=True))

    def _cavity(self, flip: Tensor, stay: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """P(y = 1 | x_t) and P(y = 0 | x_t) without the bit's own evidence, not normalized."""
        rate = _over(self.flip_rate(t), flip)
        return flip / rate, stay / (1 - rate)

    def _transition(
        self, flip: Tensor, stay: Tensor, s: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`reverse` of the cavity's P(y = 1) and P(y = 0), which need not be normalized.

        With the cavity of the posterior this is the sum of q(x_s | x_t, x_0) p(x_0 | x_t) over x_0.
        """
        early, late = self.keep(s), self.keep(t)
        rate = _over((1 - early) / 2, flip)
        delta = _over((1 - late / early) / 2, flip)
        differs = (flip * (1 - rate) + stay * rate) * delta
        equals = (flip * rate + stay * (1 - rate)) * (1 - delta)
        total = differs + equals
        return differs / total, equals / total


def _over(rate: Tensor, bits: Tensor) -> Tensor:
    """A number per image or token, of the type of `bits` and broadcasting over them."""
    return rate.to(bits.dtype).reshape(*rate.shape, *(1,) * (bits.ndim - rate.ndim))
