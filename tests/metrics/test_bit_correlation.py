"""Bit correlations against NumPy and closed forms."""

import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from tessella.metrics.bit_correlation import BitStatistics
from tessella.metrics.codes import CodeStatistics


def draw(num_bits: int, batch: int = 4, num_tokens: int = 50, seed: int = 0) -> Tensor:
    """Bits of which each repeats the one before in some positions."""
    rng = torch.Generator().manual_seed(seed)
    bits = (torch.rand(batch, num_tokens, num_bits, generator=rng) < 0.4).long()
    for g in range(1, num_bits):
        kept = torch.rand(batch, num_tokens, generator=rng) < 0.1 * g
        bits[..., g] = torch.where(kept, bits[..., g - 1], bits[..., g])
    return bits


def counted(num_bits: int, *batches: Tensor) -> BitStatistics:
    statistics = BitStatistics(num_bits)
    for batch in batches:
        statistics.update(batch)
    return statistics


def test_equals_numpy() -> None:
    bits = draw(7)
    statistics = counted(7, bits[:1], bits[1:].bool())
    expected = np.corrcoef(bits.flatten(0, 1).T.numpy())
    np.testing.assert_allclose(statistics.correlation.numpy(), expected, rtol=0, atol=1e-12)
    above = np.abs(expected[np.triu_indices(7, 1)])
    result = statistics.compute()
    assert result["bit_correlation_mean_abs"] == pytest.approx(above.mean(), rel=1e-12)
    assert result["bit_correlation_max_abs"] == pytest.approx(above.max(), rel=1e-12)
    assert 0.3 < above.max() < 0.9
    flat = bits.flatten(0, 1)
    assert torch.equal(statistics.joint_ones, flat.T @ flat)
    codes = CodeStatistics((2,) * 7)
    codes.update(bits)
    assert torch.equal(statistics.means, codes.bit_means())


def test_closed_forms() -> None:
    every = torch.tensor([[[i >> g & 1 for g in range(4)] for i in range(16)]])
    assert counted(4, every).compute() == {
        "bit_correlation_mean_abs": 0.0,
        "bit_correlation_max_abs": 0.0,
    }
    copied = torch.cat([every[..., :1], every[..., :1], 1 - every[..., :1]], 2)
    found = counted(3, copied)
    assert found.correlation.tolist() == [[1, 1, -1], [1, 1, -1], [-1, -1, 1]]
    assert found.compute()["bit_correlation_mean_abs"] == 1.0


def test_constant_bits() -> None:
    bits = draw(4)
    bits[..., 1], bits[..., 3] = 0, 1
    statistics = counted(4, bits)
    correlation = statistics.correlation
    assert torch.isfinite(correlation).all()
    assert correlation[1].tolist() == [0, 1, 0, 0]
    expected = abs(np.corrcoef(bits[..., [0, 2]].flatten(0, 1).T.numpy())[0, 1])
    result = statistics.compute()
    assert result["bit_correlation_mean_abs"] == pytest.approx(expected, rel=1e-12)
    bits[..., 0] = 1
    assert counted(4, bits).compute()["bit_correlation_max_abs"] == 0.0
    assert counted(1, bits[..., :1]).compute()["bit_correlation_mean_abs"] == 0.0


def test_padding_is_not_counted() -> None:
    bits = draw(3)
    valid = torch.zeros(4, 50, dtype=torch.bool)
    valid[:, :20] = True
    statistics = BitStatistics(3)
    statistics.update(bits, valid)
    assert torch.equal(statistics.joint_ones, counted(3, bits[:, :20]).joint_ones)
    assert statistics.num_tokens == 80


def test_many_tokens_are_counted_exactly() -> None:
    """More than float32 can count one by one."""
    bits = torch.ones(1, 2**24 + 3, 1, dtype=torch.bool)
    assert counted(1, bits, bits).joint_ones.tolist() == [[2**25 + 6]]


def test_merge_equals_one_object() -> None:
    first, second = draw(5, seed=1), draw(5, seed=2)
    whole = counted(5, first, second)
    merged = pickle.loads(pickle.dumps(counted(5, second)))
    merged.merge(counted(5, first))
    assert merged.num_tokens == whole.num_tokens == 400
    assert torch.equal(merged.joint_ones, whole.joint_ones)
    assert torch.equal(merged.correlation, whole.correlation)
    assert merged.compute() == whole.compute()
    whole.reset()
    with pytest.raises(ValueError, match="call update first"):
        whole.compute()


def test_counts_beyond_two_to_the_31st() -> None:
    """Products of such counts leave int64; the correlation stays right."""
    statistics = BitStatistics(2)
    scale = 10**9
    statistics.joint_ones = torch.tensor([[4, 1], [1, 2]]) * scale
    statistics.num_tokens = 8 * scale
    assert float(statistics.correlation[0, 1]) == pytest.approx(0.0, abs=1e-12)
    statistics.joint_ones[0, 1] = statistics.joint_ones[1, 0] = 2 * scale
    expected = (8 * 2 - 4 * 2) / (16 * 12) ** 0.5
    assert float(statistics.correlation[0, 1]) == pytest.approx(expected, rel=1e-12)


def test_wrong_use_is_refused() -> None:
    statistics = BitStatistics(3)
    with pytest.raises(ValueError, match=r"expected 0 and 1, found 0\.\.2"):
        statistics.update(torch.tensor([[[0, 1, 2]]]))
    with pytest.raises(ValueError, match=r"expected int64 or bool \(B, N, 3\), found torch.float"):
        statistics.update(torch.zeros(1, 4, 3))
    with pytest.raises(ValueError, match=r"found torch.int64 \(1, 4, 2\)"):
        statistics.update(torch.zeros(1, 4, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="valid: expected bool"):
        statistics.update(torch.zeros(1, 4, 3, dtype=torch.int64), torch.ones(1, 4))
    with pytest.raises(ValueError, match="numbers of bits differ"):
        statistics.merge(BitStatistics(4))
    with pytest.raises(ValueError, match="num_bits"):
        BitStatistics(0)
    statistics.update(torch.zeros(0, 4, 3, dtype=torch.int64))
    assert statistics.num_tokens == 0
