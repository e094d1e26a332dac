"""The bank gives back what went in, sorted by number, whatever the order of batches."""

import pickle

import pytest
import torch
from torch import Tensor

from tessella.metrics.feature_bank import FeatureBank


def vectors(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))


def test_sorted_by_number() -> None:
    features, numbers, labels = vectors(6), torch.tensor([9, 2, 5, 0, 7, 3]), torch.arange(6)
    bank = FeatureBank(5, extractor_id="random#0")
    bank.update(features[:2], numbers[:2], labels[:2])
    assert bank.numbers.tolist() == [2, 9]
    bank.update(features[2:].double(), numbers[2:], labels[2:])
    order = numbers.argsort()
    assert len(bank) == 6
    assert bank.numbers.tolist() == [0, 2, 3, 5, 7, 9]
    assert torch.equal(bank.features, features[order])
    assert bank.labels is not None
    assert torch.equal(bank.labels, order)
    assert bank.features.dtype == torch.float32


def test_merge_in_any_order_equals_one_bank() -> None:
    features, numbers = vectors(10), torch.randperm(10, generator=torch.Generator().manual_seed(1))
    whole = FeatureBank(5)
    whole.update(features, numbers)
    assert whole.labels is None
    parts = []
    for part in (slice(0, 3), slice(3, 3), slice(3, 10)):
        parts.append(FeatureBank(5))
        parts[-1].update(features[part], numbers[part])
    for order in ((0, 1, 2), (2, 1, 0)):
        merged = FeatureBank(5)
        for place in order:
            merged.merge(pickle.loads(pickle.dumps(parts[place])))
        assert torch.equal(merged.features, whole.features)
        assert torch.equal(merged.numbers, whole.numbers)
    assert len(parts[0]) == 3, "a merge changes the receiver only"


def test_the_bank_keeps_copies() -> None:
    features = vectors(3)
    bank = FeatureBank(5)
    bank.update(features, torch.arange(3))
    features.zero_()
    assert float(bank.features.abs().min()) > 0


def test_wrong_use_is_refused() -> None:
    bank = FeatureBank(5)
    bank.update(vectors(2), torch.tensor([4, 6]))
    with pytest.raises(ValueError, match=r"expected \(B, 5\), found \(2, 4\)"):
        bank.update(torch.zeros(2, 4), torch.arange(2))
    with pytest.raises(ValueError, match=r"numbers: expected int64 \(2,\), found torch.int32"):
        bank.update(vectors(2), torch.arange(2, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"labels: expected int64 \(2,\)"):
        bank.update(vectors(2), torch.arange(2), torch.arange(3))
    with pytest.raises(ValueError, match="1 of 2 vectors are not finite"):
        bank.update(torch.tensor([[0.0] * 5, [1e300] * 5], dtype=torch.float64), torch.arange(2))
    with pytest.raises(ValueError, match=r"more than once, e\.g\. 6"):
        bank.update(vectors(2), torch.tensor([1, 6]))
    with pytest.raises(ValueError, match="more than once"):
        bank.update(vectors(2), torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="some vectors have one"):
        bank.update(vectors(2), torch.arange(2), torch.arange(2))
    with pytest.raises(ValueError, match=r"more than once, e\.g\. 4"):
        bank.merge(bank)
    with pytest.raises(ValueError, match="different networks"):
        bank.merge(FeatureBank(5, extractor_id="random#0"))
    with pytest.raises(ValueError, match="sizes differ: 5 and 4"):
        bank.merge(FeatureBank(4))
    with pytest.raises(ValueError, match="num_features"):
        FeatureBank(0)
    assert bank.numbers.tolist() == [4, 6], "a refused batch leaves nothing behind"
