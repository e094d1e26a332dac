"""Losses by hand: reconstruction, hinge, non-saturating, LeCam, adaptive weight."""

import math

import pytest
import torch
from torch import nn

from tessella.train.losses import (
    LeCam,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    reconstruction_loss,
)

LOGITS = torch.tensor([-2.0, 0.0, 0.5, 3.0])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize("kind,expected", [("mse", (0.25 + 1.0) / 2), ("l1", (0.5 + 1.0) / 2)])
def test_reconstruction_is_in_unit_pixels(kind: str, expected: float) -> None:
    images = torch.tensor([[-1.0, 1.0]])
    found = reconstruction_loss(torch.tensor([[0.0, -1.0]]), images, kind)
    assert found.item() == pytest.approx(expected)


def test_hinge() -> None:
    assert generator_loss(LOGITS, "hinge").item() == pytest.approx(-0.375)
    # real: relu(1 - x) = 3, 1, 0.5, 0; fake: relu(1 + x) = 0, 1, 1.5, 4
    assert discriminator_loss(LOGITS, LOGITS, "hinge").item() == pytest.approx((1.125 + 1.625) / 2)


def test_non_saturating() -> None:
    up = sum(softplus(x) for x in LOGITS.tolist()) / 4
    down = sum(softplus(-x) for x in LOGITS.tolist()) / 4
    assert generator_loss(LOGITS, "non_saturating").item() == pytest.approx(down)
    found = discriminator_loss(LOGITS, LOGITS, "non_saturating").item()
    assert found == pytest.approx(up + down)  # the sum, not its half: MAGVIT's and MaskBit's form


@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_losses_push_the_right_way(kind: str) -> None:
    real, fake = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    discriminator_loss(real, fake, kind).backward()
    assert real.grad.sum() < 0 < fake.grad.sum()
    fake.grad = None
    generator_loss(fake, kind).backward()
    assert fake.grad.sum() < 0


def test_lecam_worked_example() -> None:
    """(0.5 + 0.2)**2 + (0.4 + 0.3)**2 = 0.98; the means move only after use."""
    lecam = LeCam(0.999)
    lecam.real.fill_(0.4)
    lecam.fake.fill_(-0.2)
    real = torch.tensor([0.25, 0.75], requires_grad=True)
    loss = lecam(real, torch.tensor([-0.3]))
    assert loss.item() == pytest.approx(0.98)
    assert lecam.real.item() == pytest.approx(0.999 * 0.4 + 0.001 * 0.5)
    assert lecam.fake.item() == pytest.approx(0.999 * -0.2 + 0.001 * -0.3)
    loss.backward()
    assert real.grad.tolist() == pytest.approx([0.7, 0.7])
    assert not lecam.real.requires_grad


def test_lecam_is_silent_when_the_discriminator_is_fooled() -> None:
    lecam = LeCam()
    assert lecam(torch.tensor([-1.0]), torch.tensor([1.0])).item() == 0
    assert set(lecam.state_dict()) == {"real", "fake"}


def test_adaptive_weight_on_a_linear_layer() -> None:
    """y = W x with x = (3, 4): d mean(y)/dW has norm |x| = 5, d mean(2 y)/dW has norm 10."""
    layer = nn.Linear(2, 1, bias=False)
    y = layer(torch.tensor([[3.0, 4.0]]))
    found = adaptive_weight(2 * y.mean(), y.mean(), layer.weight, 1e4)
    assert found.item() == pytest.approx(10 / (5 + 1e-4))
    assert not found.requires_grad
    assert adaptive_weight(2 * y.mean(), y.mean(), layer.weight, 1.5).item() == 1.5
    assert adaptive_weight(2 * y.mean(), 0 * y.mean(), layer.weight, 1e4).item() == 1e4
    assert layer.weight.grad is None
    (y.mean() * found).backward()  # the graph is still there
