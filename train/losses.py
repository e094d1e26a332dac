"""Image-space losses: reconstruction, adversarial, LeCam, and the adaptive adversarial weight.

All are unweighted scalars. Images are (B, 3, H, W) in [-1, 1]; reconstruction losses are measured
in [0, 1] pixel units, as published recipes count them.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from ..collectives import mean_over_processes
from ..tokenizers.base import KeepsBuffers

GANLoss = Literal["hinge", "non_saturating"]


def reconstruction_loss(
    reconstructions: Tensor, images: Tensor, kind: Literal["mse", "l1"]
) -> Tensor:
    """Mean squared or absolute difference per channel value, with pixels scaled to [0, 1]."""
    difference = (reconstructions - images) / 2
    return difference.square().mean() if kind == "mse" else difference.abs().mean()


def generator_loss(fake_logits: Tensor, kind: GANLoss) -> Tensor:
    """Adversarial loss of the autoencoder: -mean D(fake), or mean softplus(-D(fake))."""
    return -fake_logits.mean() if kind == "hinge" else softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, kind: GANLoss) -> Tensor:
    """Loss of the discriminator: the mean of its real and fake half, or their sum.

    `hinge` is the mean, `non_saturating` the sum, as in MAGVIT's losses and in the code of
    arXiv:2409.16211; half of that sum goes by the name of the vanilla loss.
    """
    if kind == "hinge":
        return (relu(1 - real_logits).mean() + relu(1 + fake_logits).mean()) / 2
    return softplus(-real_logits).mean() + softplus(fake_logits).mean()


class LeCam(KeepsBuffers):
    """LeCam regularization of the discriminator (arXiv:2104.03310) by running mean logits.

    Args:
        decay: Decay of the running means, in [0, 1). The means start at 0.
    """

    real: Tensor
    fake: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    def forward(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """relu(m_real - ema_fake)**2 + relu(ema_real - m_fake)**2, with the means m of the batch.

        Batch means run over all processes; afterwards the running means are updated.
        """
        real = mean_over_processes(real_logits.float().mean())
        fake = mean_over_processes(fake_logits.float().mean())
        loss = relu(real - self.fake).square() + relu(self.real - fake).square()
        with torch.no_grad():
            self.real.lerp_(real.detach(), 1 - self.decay)
            self.fake.lerp_(fake.detach(), 1 - self.decay)
        return loss


def adaptive_weight(
    image_loss: Tensor, adversarial: Tensor, last_layer: Tensor, maximum: float
) -> Tensor:
    """Ratio of the two losses' gradient norms at the last decoder layer, without gradient.

    |d image_loss| / (|d adversarial| + 1e-4), clamped to [0, maximum]: with this weight both
    gradients are equally large there. The gradients are averaged over processes first.

    Source: arXiv:2012.09841, eq. 7.
    """
    norms = []
    for loss in (image_loss, adversarial):
        (gradient,) = torch.autograd.grad(loss, last_layer, retain_graph=True)
        norms.append(mean_over_processes(gradient.detach()).float().norm())
    ratio: Tensor = (norms[0] / (norms[1] + 1e-4)).clamp(0, maximum)
    return ratio
