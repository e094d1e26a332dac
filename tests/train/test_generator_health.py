"""What the alarms of generator training see, and the sums behind them."""

import math
from typing import Any

import pytest
import torch

from tessella.train.engine import MetricWindow
from tessella.train.health import SETTLING_STEPS, memorization_alarms, prediction_alarms

GOOD = {
    "step": 1000,
    "masked_loss": 3.0,
    "uniform_loss": math.log(256),
    "masked_loss_0_25": 2.0,
    "masked_loss_75_100": 3.5,
}


def test_a_good_record_is_quiet() -> None:
    assert not prediction_alarms(GOOD, 100)
    assert not prediction_alarms({"step": 1000, "loss": 2.0}, 100)  # a generator without masks


def test_worse_than_knowing_nothing() -> None:
    (alarm,) = prediction_alarms(GOOD | {"masked_loss": 5.6}, 100)
    assert "5.600; knowing nothing gives 5.545" in alarm.what and "learning rate" in alarm.advice
    causal = {"step": 1000, "cross_entropy": 5.6, "uniform_loss": math.log(256)}
    assert prediction_alarms(causal, 100) == [alarm]
    assert not prediction_alarms(causal | {"cross_entropy": 5.5}, 100)


def test_visible_tokens_of_no_use() -> None:
    """As with tokens in another bit order: seeing nearly all of them helps no more than none."""
    (alarm,) = prediction_alarms(GOOD | {"masked_loss_0_25": 3.6}, 100)
    assert "of no use" in alarm.what and "wrong store or bit order" in alarm.advice
    missing = {name: value for name, value in GOOD.items() if name != "masked_loss_0_25"}
    assert not prediction_alarms(missing, 100)


def test_nothing_is_judged_before_it_can_be() -> None:
    bad = GOOD | {"masked_loss": 9.0, "masked_loss_0_25": 9.0}
    assert len(prediction_alarms(bad, 100)) == 2
    assert not prediction_alarms(bad | {"step": 100 + SETTLING_STEPS - 1}, 100)


def _log(validations: list[float], training: list[float]) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for i, (val, train) in enumerate(zip(validations, training, strict=True), 1):
        records.append({"step": 10 * i, "masked_loss": train})
        records.append({"step": 10 * i, "val_masked_loss": val})
        records.append({"step": 10 * i, "alarm": "something else"})
    return records


def test_memorization() -> None:
    """Three validations in a row 3 % above the best while training improves."""
    falling = [3.0, 2.9, 2.8, 2.7, 2.6]
    (alarm,) = memorization_alarms(_log([3.2, 3.0, 3.1, 3.2, 3.3], falling))
    assert "best at step 20 (3.000, now 3.300)" in alarm.what and "views" in alarm.advice
    assert not memorization_alarms(_log([3.2, 3.0, 3.08, 3.1, 3.2], falling))  # 3.08 is within 3 %
    assert not memorization_alarms(_log([3.2, 3.0, 3.1, 3.2], falling[:4]))  # two in a row
    assert not memorization_alarms(_log([3.2, 3.0, 3.1, 3.2, 3.3], [3.0, 2.9, 3.0, 3.1, 3.2]))
    assert not memorization_alarms(_log([3.5, 3.4, 3.3, 3.2, 3.1], falling))
    assert not memorization_alarms([])


def test_metrics_are_sums_over_counts() -> None:
    """One division at the end: 10 of 2 and 2 of 4 are 12 of 6; an empty bucket is left out."""
    window = MetricWindow()
    assert window.means() == {}
    window.add({"a": torch.tensor([10.0, 2.0]), "b": torch.tensor([0.0, 0.0])})
    state = window.state_dict()
    resumed = MetricWindow()
    resumed.load_state_dict(state, torch.device("cpu"))
    for metrics in (window, resumed):
        metrics.add({"a": torch.tensor([2.0, 4.0]), "b": torch.tensor([0.0, 0.0])})
        assert metrics.means() == {"a": 2.0}
        assert metrics.means() == {}


def test_counts_are_exact() -> None:
    """float32 sums would lose single slots beyond 2**24 of them."""
    window = MetricWindow()
    window.add({"a": torch.tensor([2.0**24, 2.0**24])})
    window.add({"a": torch.tensor([1.0, 1.0])})
    assert window.state_dict()["a"] == pytest.approx([2**24 + 1] * 2, rel=0, abs=0)
