"""Losses of one training step: from a tokenizer's output to the two sums that are minimized."""

import torch
from torch import Tensor, nn

from ..metrics.perceptual import PerceptualDistance, build_perceptual
from ..tokenizers.base import TokenizerOutput
from .losses import (
    LeCam,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    reconstruction_loss,
)
from .schedules import boost_at
from .tokenizer_recipe import TrainTokenizerConfig


class Objective:
    """The losses of one step, from a tokenizer's output to two weighted sums."""

    def __init__(self, config: TrainTokenizerConfig, device: torch.device) -> None:
        self.config, self.weights = config, config.loss_weights
        self.perceptual: PerceptualDistance | None = None
        if config.losses.perceptual:
            self.perceptual = build_perceptual(config.losses.perceptual[0]).to(device)
        self.lecam: LeCam | None = None
        if config.adversarial is not None and "lecam" in self.weights:
            self.lecam = LeCam(config.adversarial.lecam_decay).to(device)

    def for_tokenizer(
        self,
        output: TokenizerOutput,
        images: Tensor,
        step: float,
        discriminator: nn.Module | None,
        last_layer: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum to minimize, and every unweighted loss by name."""
        kind = self.config.losses.reconstruction
        losses = {"reconstruction": reconstruction_loss(output.images, images, kind)}
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual(output.images, images).mean()
        image_loss = sum_weighted(losses, self.weights)
        losses |= output.losses
        weights = dict(self.weights)
        if "entropy" in weights:
            weights["entropy"] *= boost_at(step, self.config.losses.entropy_boost)
        total = image_loss + sum_weighted(output.losses, weights)
        adversarial = self.config.adversarial
        if adversarial is not None and discriminator is not None and step >= adversarial.start_step:
            losses["adversarial"] = generator_loss(
                discriminator(output.images).float(), adversarial.loss
            )
            factor: Tensor | float = weights["adversarial"] * adversarial.share_at(step)
            if adversarial.adaptive:
                losses["adaptive_weight"] = adaptive_weight(
                    image_loss, losses["adversarial"], last_layer, adversarial.adaptive_max
                )
                factor = factor * losses["adaptive_weight"]
            total = total + factor * losses["adversarial"]
        return total, losses

    def for_discriminator(
        self, real_logits: Tensor, fake_logits: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum that the discriminator minimizes, and its unweighted losses by name."""
        assert self.config.adversarial is not None
        real_logits, fake_logits = real_logits.float(), fake_logits.float()
        loss = discriminator_loss(real_logits, fake_logits, self.config.adversarial.loss)
        losses = {
            "discriminator": loss,
            "real_logits": real_logits.mean(),
            "fake_logits": fake_logits.mean(),
        }
        if self.lecam is not None:
            losses["lecam"] = self.lecam(real_logits, fake_logits)
            loss = loss + self.weights["lecam"] * losses["lecam"]
        return loss, losses


def sum_weighted(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Sum of losses times their weights."""
    total = torch.zeros(())
    for name, loss in losses.items():
        total = total + weights[name] * loss
    return total
