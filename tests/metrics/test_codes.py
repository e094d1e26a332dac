"""Code statistics against brute-force counting in plain Python."""

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from tessella.metrics.codes import CodeStatistics


def draw(sizes: tuple[int, ...], batch: int = 4, num_tokens: int = 16, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    columns = [torch.randint(size, (batch, num_tokens, 1), generator=rng) for size in sizes]
    return torch.cat(columns, 2)


def counted(sizes: tuple[int, ...], *batches: Tensor) -> CodeStatistics:
    statistics = CodeStatistics(sizes)
    for batch in batches:
        statistics.update(batch)
    return statistics


def entropy_bits(values: list[object]) -> float:
    total = len(values)
    return -sum(n / total * math.log2(n / total) for n in Counter(values).values())


@pytest.mark.parametrize("sizes", [(7,), (2, 2, 2), (3, 5, 2), (1024,)])
def test_small_vocabulary_equals_brute_force(sizes: tuple[int, ...]) -> None:
    indices = draw(sizes)
    result = counted(sizes, indices[:1], indices[1:]).compute()
    rows = [tuple(row) for row in indices.flatten(0, 1).tolist()]
    entropy = entropy_bits(list(rows))
    assert result["num_tokens"] == len(rows)
    assert result["num_distinct"] == len(set(rows))
    assert result["codebook_usage"] == pytest.approx(len(set(rows)) / math.prod(sizes))
    assert result["entropy_bits"] == pytest.approx(entropy)
    assert result["perplexity"] == pytest.approx(2**entropy)
    marginals = [entropy_bits([row[g] for row in rows]) for g in range(len(sizes))]
    assert result["entry_entropy_min_bits"] == pytest.approx(min(marginals))
    assert result["entry_entropy_mean_bits"] == pytest.approx(sum(marginals) / len(marginals))


def test_uniform_and_collapsed_codes() -> None:
    uniform = counted((16,), torch.arange(16).view(1, 16, 1)).compute()
    assert uniform["codebook_usage"] == 1.0
    assert uniform["entropy_bits"] == pytest.approx(4.0)
    assert uniform["perplexity"] == pytest.approx(16.0)
    collapsed = counted((16,), torch.full((1, 16, 1), 3)).compute()
    assert collapsed["entropy_bits"] == 0.0
    assert collapsed["perplexity"] == 1.0
    assert math.copysign(1, collapsed["entropy_bits"]) == 1


@pytest.mark.parametrize("sizes", [(2,) * 18, (2**18,), (2**31, 2**31)])
def test_large_vocabulary_has_distinct_codes_only(sizes: tuple[int, ...]) -> None:
    indices = draw(sizes)
    indices[1] = indices[0]
    result = counted(sizes, indices, indices).compute()
    assert "codebook_usage" not in result
    assert "entropy_bits" not in result
    assert result["num_distinct"] == len({tuple(r) for r in indices.flatten(0, 1).tolist()})
    assert ("entry_entropy_min_bits" in result) == (max(sizes) <= 2**20)


def test_beyond_62_bits_there_is_no_joint_index() -> None:
    result = counted((2,) * 63, draw((2,) * 63)).compute()
    assert "num_distinct" not in result
    assert 0.8 < result["entry_entropy_mean_bits"] <= 1
    assert "num_distinct" in counted((2,) * 62, draw((2,) * 62)).compute()


def test_first_codebook_is_least_significant() -> None:
    statistics = counted((3, 4), torch.tensor([[[2, 1]]]))
    assert statistics.state_dict()["joint"].nonzero().flatten().tolist() == [2 + 3 * 1]


def test_bits() -> None:
    sizes = (2, 5, 2, 2)
    indices = draw(sizes, batch=2, num_tokens=200)
    indices[..., 2] = 0
    indices[0, 0, 3] = 0
    indices[..., 3] = 1
    indices[0, 0, 3] = 0  # 399 of 400 ones: stuck
    statistics = counted(sizes, indices)
    means = statistics.bit_means()
    expected = indices.flatten(0, 1)[:, [0, 2, 3]].double().mean(0)
    torch.testing.assert_close(means, expected)
    result = statistics.compute()
    assert result["num_stuck_bits"] == 2
    assert result["bit_mean_min"] == 0.0
    assert result["bit_mean_max"] == pytest.approx(399 / 400)


def test_padding_is_not_counted() -> None:
    indices = draw((9,))
    valid = torch.zeros(4, 16, dtype=torch.bool)
    valid[:, :5] = True
    statistics = CodeStatistics((9,))
    statistics.update(indices, valid)
    assert statistics.compute() == counted((9,), indices[:, :5]).compute()


@pytest.mark.parametrize("sizes", [(6, 3), (2,) * 20, (2**40,)])
def test_merge_and_state_dict_equal_one_object(sizes: tuple[int, ...]) -> None:
    first, second = draw(sizes, seed=1), draw(sizes, seed=2)
    whole = counted(sizes, first, second).compute()
    merged = counted(sizes, first)
    merged.merge(counted(sizes, second))
    assert merged.compute() == whole
    resumed = CodeStatistics(sizes)
    resumed.load_state_dict(counted(sizes, first).state_dict())
    resumed.update(second)
    assert resumed.compute() == whole
    resumed.reset()
    with pytest.raises(ValueError, match="call update first"):
        resumed.compute()


def test_state_is_a_copy() -> None:
    statistics = counted((4,), draw((4,)))
    state = statistics.state_dict()
    statistics.update(draw((4,)))
    assert int(state["num_tokens"]) == int(state["joint"].sum()) == 64


def test_distinct_codes_survive_compaction() -> None:
    statistics = CodeStatistics((2**40,))
    for start in range(0, 200_000, 50_000):
        statistics.update(torch.arange(start, start + 60_000).view(1, -1, 1))
    assert statistics.compute()["num_distinct"] == 210_000


def test_wrong_use_is_refused() -> None:
    statistics = CodeStatistics((4, 4))
    with pytest.raises(ValueError, match=r"codebook 1: found 0\.\.4, size is 4"):
        statistics.update(torch.tensor([[[0, 0], [0, 4]]]))
    with pytest.raises(ValueError, match="found -1"):
        statistics.update(torch.tensor([[[-1, 0]]]))
    with pytest.raises(ValueError, match=r"expected int64 \(B, N, 2\)"):
        statistics.update(torch.zeros(1, 4, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected int64"):
        statistics.update(torch.zeros(1, 4, 2))
    with pytest.raises(ValueError, match="expected bool"):
        statistics.update(torch.zeros(1, 4, 2, dtype=torch.int64), torch.ones(1, 4))
    with pytest.raises(ValueError, match="sizes differ"):
        statistics.merge(CodeStatistics((4, 5)))
    with pytest.raises(ValueError, match="sizes differ"):
        statistics.load_state_dict(CodeStatistics((4, 5)).state_dict())
    with pytest.raises(ValueError, match="wrong keys"):
        statistics.load_state_dict({})
    with pytest.raises(ValueError, match="sizes >= 1"):
        CodeStatistics(())
    statistics.update(torch.zeros(0, 4, 2, dtype=torch.int64))
    assert statistics.num_tokens == 0
