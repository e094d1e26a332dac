"""The class score: closed forms, brute force, streaming, and the library that has its formula."""

import math
import warnings

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.inception import InceptionScore

from tessella.metrics.class_score import ClassScore, class_score_name
from tessella.metrics.networks.build import available_features, build_features


def draw(count: int, num_classes: int, seed: int = 0) -> Tensor:
    return torch.randn(count, num_classes, generator=torch.Generator().manual_seed(seed)) * 3


def score(*batches: Tensor) -> ClassScore:
    result = ClassScore(batches[0].shape[1])
    for batch in batches:
        result.update(batch)
    return result


def brute_force(logits: Tensor) -> float:
    """exp of the mean over images of sum_k p log(p / q), one image and class at a time."""
    rows = logits.double().softmax(1).tolist()
    q = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    divergences = [sum(p * math.log(p / q[k]) for k, p in enumerate(row)) for row in rows]
    return math.exp(sum(divergences) / len(divergences))


@pytest.mark.parametrize(("count", "num_classes"), [(1, 5), (2, 1), (37, 11), (200, 3)])
def test_equals_brute_force(count: int, num_classes: int) -> None:
    logits = draw(count, num_classes)
    assert score(logits).compute() == pytest.approx(brute_force(logits), rel=1e-12)


def test_closed_forms() -> None:
    assert score(torch.zeros(7, 10)).compute() == pytest.approx(1.0, abs=1e-12)
    same = draw(1, 10).repeat(50, 1)
    assert score(same).compute() == pytest.approx(1.0, abs=1e-12), "sure, but never varied"
    sure = torch.eye(10).repeat(4, 1) * 1e4
    assert score(sure).compute() == pytest.approx(10.0, rel=1e-12)
    two = torch.eye(10)[[0, 0, 0, 3]] * 1e4  # classes of shares 3/4 and 1/4
    expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert score(two).compute() == pytest.approx(expected, rel=1e-12)


def test_order_batches_and_merging_do_not_matter() -> None:
    logits = draw(64, 20)
    whole = score(logits).compute()
    assert score(logits.flip(0)).compute() == pytest.approx(whole, rel=1e-12)
    assert score(*logits.split(5), logits[:0]).compute() == pytest.approx(whole, rel=1e-12)
    first, second = score(logits[:40]), score(logits[40:])
    summed = ClassScore.from_state(first.state() + second.state())
    first.merge(second)
    assert first.count == summed.count == 64
    assert first.compute() == pytest.approx(whole, rel=1e-12)
    assert summed.compute() == pytest.approx(whole, rel=1e-12)
    assert torch.equal(ClassScore.from_state(first.state()).state(), first.state())
    assert second.count == 24, "the other one is left as it was"


def test_is_one_vector_of_float64() -> None:
    state = score(draw(3, 4)).state()
    assert state.shape == (6,) and state.dtype == torch.float64
    assert state[0] == 3 and state[2:].sum() == pytest.approx(3)
    shared = state.clone()
    ClassScore.from_state(shared).update(draw(1, 4))
    assert torch.equal(shared, state), "a score keeps its own numbers"


def test_half_precision_logits_are_summed_in_float64() -> None:
    logits = draw(100, 50).half()
    assert score(logits).compute() == pytest.approx(brute_force(logits.double()), rel=1e-12)


def test_wrong_input() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        logits = draw(4, 3)
        logits[1, 2] = bad
        result = score(draw(4, 3))
        before = result.state()
        with pytest.raises(ValueError, match="1 of 4 vectors are not finite"):
            result.update(logits)
        assert torch.equal(result.state(), before)
    with pytest.raises(ValueError, match=r"\(B, 3\), found \(4, 5\)"):
        ClassScore(3).update(draw(4, 5))
    with pytest.raises(ValueError, match="at least 1 image"):
        ClassScore(3).compute()
    with pytest.raises(ValueError, match="expected >= 1, found 0"):
        ClassScore(0)
    with pytest.raises(ValueError, match="numbers of classes differ: 3 and 4"):
        ClassScore(3).merge(ClassScore(4))
    with pytest.raises(ValueError, match="different networks"):
        ClassScore(3, extractor_id="a").merge(ClassScore(3, extractor_id="b"))
    for state in (torch.zeros(2).double(), torch.zeros(5), torch.zeros(2, 3).double()):
        with pytest.raises(ValueError, match="state: expected"):
            ClassScore.from_state(state)
    with pytest.raises(ValueError, match="NaN"):
        ClassScore.from_state(torch.full((5,), math.nan).double())


def test_equals_the_inception_score_of_the_same_logits() -> None:
    """torchmetrics, one split, with a network that hands on its input."""

    class Given(nn.Module):
        def forward(self, logits: Tensor) -> Tensor:
            return logits

    logits = draw(120, 30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it keeps all logits in memory and says so
        other = InceptionScore(feature=Given(), splits=1)
    for batch in logits.split(50):
        other.update(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the deviation over one split does not exist
        mean = float(other.compute()[0])
    assert score(logits).compute() == pytest.approx(mean, rel=1e-5)  # float32 there


def test_it_is_never_called_inception_score() -> None:
    assert class_score_name("efflite0") == "class_score@efflite0"
    assert class_score_name(build_features("random")) == "class_score@random"


@pytest.mark.skipif(not available_features()["efflite0"], reason="needs efflite0's weights")
def test_one_pass_gives_features_and_classes() -> None:
    extractor = build_features("efflite0")
    rng = torch.Generator().manual_seed(0)
    pooled = extractor.pooled(torch.rand(4, 3, 64, 64, generator=rng))
    result = ClassScore(extractor.num_classes, extractor_id=extractor.id)
    result.update(extractor.class_logits(pooled))
    assert 1 < result.compute() < 4
