"""Masked shares over time: the formulas, their ends and their means."""

import math

import pytest
import torch

from tessella.generators.processes.masking import MEAN_SHARE, MaskSchedule, masked_share

SCHEDULES: tuple[MaskSchedule, ...] = ("arccos", "cosine", "linear", "square")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gamma_falls_from_1_to_0(schedule: MaskSchedule) -> None:
    t = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    share = masked_share(t, schedule)
    assert share[0] == 1
    assert abs(share[-1].item()) < 1e-15
    assert (share[1:] < share[:-1]).all()
    assert share.mean().item() == pytest.approx(MEAN_SHARE[schedule], abs=1e-5)


def test_gamma_is_the_formula() -> None:
    t = torch.tensor([0.0, 0.25, 0.5, 0.8], dtype=torch.float64)
    expected = {
        "arccos": [math.acos(x) * 2 / math.pi for x in t.tolist()],
        "cosine": [math.cos(math.pi * x / 2) for x in t.tolist()],
        "linear": [1 - x for x in t.tolist()],
        "square": [1 - x * x for x in t.tolist()],
    }
    for schedule in SCHEDULES:
        assert masked_share(t, schedule).tolist() == pytest.approx(expected[schedule], abs=1e-12)
