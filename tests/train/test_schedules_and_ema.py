"""Schedules by their tables; the weight average by its recurrence."""

import pytest
import torch
from torch import nn

from tessella.tokenizers.quantizers.ema_vq import EMAVQ, EMAVQConfig
from tessella.train.ema import EMA
from tessella.train.schedules import (
    BoostConfig,
    LearningRateConfig,
    boost_at,
    ema_decay_at,
    lr_at,
)


def test_warmup_rises_linearly_to_the_peak() -> None:
    config = LearningRateConfig(peak=1e-4, warmup_steps=4)
    found = [lr_at(step, 100, config) for step in range(5)]
    assert found == pytest.approx([0.25e-4, 0.5e-4, 0.75e-4, 1e-4, 1e-4])


def test_cosine_from_the_peak_to_its_share() -> None:
    config = LearningRateConfig(peak=2.0, warmup_steps=10, final_share=0.1)
    assert lr_at(10, 110, config) == pytest.approx(2.0)
    assert lr_at(60, 110, config) == pytest.approx(2.0 * 0.55)
    assert lr_at(35, 110, config) == pytest.approx(2.0 * (0.1 + 0.9 * (1 + 0.5**0.5) / 2))
    assert lr_at(110, 110, config) == pytest.approx(0.2)
    assert lr_at(500, 110, config) == pytest.approx(0.2)
    falling = [lr_at(step, 110, config) for step in range(10, 111)]
    assert falling == sorted(falling, reverse=True)


def test_constant_stays_at_the_peak() -> None:
    config = LearningRateConfig(peak=3.0, schedule="constant", warmup_steps=2)
    assert [lr_at(step, 5, config) for step in (0, 1, 2, 4, 99)] == [1.5, 3.0, 3.0, 3.0, 3.0]


def test_a_run_of_warmup_only_divides_by_nothing() -> None:
    config = LearningRateConfig(peak=1.0, warmup_steps=5)
    assert lr_at(5, 5, config) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "settings",
    [{"peak": 0.0}, {"peak": 1.0, "warmup_steps": -1}, {"peak": 1.0, "final_share": 2.0}],
)
def test_impossible_rates_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match="found"):
        LearningRateConfig(**settings)


def test_entropy_boost_falls_from_three_to_one() -> None:
    config = BoostConfig(extra=2.0, steps=2000)
    found = [boost_at(step, config) for step in (0, 500, 1000, 1999, 2000, 10**6)]
    assert found == pytest.approx([3.0, 2.5, 2.0, 1.001, 1.0, 1.0])
    assert boost_at(0, BoostConfig()) == 1.0


def test_ema_decay_table() -> None:
    """Update 1 copies, update 2 uses 2/11, the cap 0.999 is reached at update 8991."""
    assert ema_decay_at(0, 0.999) == 0.0
    assert ema_decay_at(1, 0.999) == pytest.approx(2 / 11)
    assert ema_decay_at(2, 0.999) == pytest.approx(3 / 12)
    assert ema_decay_at(8989, 0.999) < 0.999
    assert ema_decay_at(8990, 0.999) == 0.999
    assert ema_decay_at(10**6, 0.999) == 0.999
    assert ema_decay_at(10, 0.5) == 0.5


def test_ema_follows_the_recurrence() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    ema = EMA(model, 0.999)
    expected = model.weight.detach().double()
    for update in range(5):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        decay = ema_decay_at(update, 0.999)
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
        ema.update(model)
        torch.testing.assert_close(ema.module.weight.double(), expected, rtol=1e-6, atol=1e-6)
        if update == 0:
            assert torch.equal(ema.module.weight, model.weight)
    assert ema.num_updates == 5


def test_ema_is_a_frozen_float32_copy_in_eval_mode() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).to(torch.bfloat16).train()
    ema = EMA(model, 0.9)
    ema.update(model)
    assert not ema.module.training
    assert model.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in ema.module.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_ema_copies_buffers_instead_of_averaging() -> None:
    """An EMA codebook is a running mean already, and its update count an integer."""
    quantizer = EMAVQ(EMAVQConfig(codebook_size=4, dim=2))
    model = nn.Sequential(nn.Linear(2, 2), quantizer)
    ema = EMA(model, 0.999)
    for step in range(3):
        quantizer(torch.randn(1, 8, 2, generator=torch.Generator().manual_seed(step)))
        ema.update(model)
    for name, value in quantizer.state_dict().items():
        assert torch.equal(ema.module[1].state_dict()[name], value), name
    assert ema.module[1].num_updates.item() == 3
    quantizer(torch.zeros(1, 8, 2))
    assert not torch.equal(ema.module[1].codebook, quantizer.codebook)
