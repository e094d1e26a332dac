"""Entropies of soft assignments against closed forms and full-table brute force in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tessella.tests.cases import over
from tessella.tokenizers.quantizers import entropy as entropies
from tessella.tokenizers.quantizers.entropy import (
    batch_entropy,
    binary_entropy,
    categorical_entropies,
    distribution_entropy,
    mean_distribution,
    outcome_table,
    sample_entropy,
)
from tessella.tokens.packing import group_sizes

RELATIVE = 1e-6
"""float32 sums of a few thousand terms against float64."""


def random_logits(*shape: int, scale: float = 3.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def entropy_64(probabilities: Tensor) -> Tensor:
    return -torch.special.xlogy(probabilities, probabilities).sum(-1)


def test_binary_entropy_is_accurate_where_naive_forms_vanish() -> None:
    logits = torch.cat([torch.linspace(-80, 80, 3201), torch.tensor([1e-6, -1e-3, 20.0, 79.9])])
    exact = logits.double().abs()
    exact = torch.log1p(torch.exp(-exact)) + exact * torch.sigmoid(-exact)
    found = binary_entropy(logits)
    torch.testing.assert_close(found.double(), exact, rtol=RELATIVE, atol=0)
    assert (found > 0).all()
    assert (torch.nn.functional.softplus(logits) - logits * torch.sigmoid(logits))[-2] < 1e-6


def test_binary_entropy_gradient() -> None:
    logits = random_logits(1000).requires_grad_()
    binary_entropy(logits).sum().backward()
    z = logits.detach().double()
    p = torch.sigmoid(z)
    torch.testing.assert_close(logits.grad.double(), -z * p * (1 - p), rtol=1e-5, atol=1e-7)
    zero = torch.zeros(1, requires_grad=True)
    binary_entropy(zero).sum().backward()
    assert zero.grad.item() == 0


@pytest.mark.parametrize("bits", [1, 2, 5, 8, 12])
def test_sample_entropy_is_that_of_the_full_softmax(
    bits: int, code_softmax: Callable[[Tensor], Tensor]
) -> None:
    logits = random_logits(2, 16, bits)
    expected = entropy_64(code_softmax(logits)).mean()
    torch.testing.assert_close(sample_entropy(logits).double(), expected, rtol=RELATIVE, atol=0)


@pytest.mark.parametrize("bits", [1, 2, 7, 10])
def test_batch_entropy_and_its_gradient_are_exact_in_one_group(
    bits: int, code_softmax: Callable[[Tensor], Tensor]
) -> None:
    logits = random_logits(4, 32, bits)
    ours, same_dtype, exact = (
        logits.to(dtype, copy=True).requires_grad_()
        for dtype in (torch.float32, torch.float64, torch.float64)
    )
    found = batch_entropy(ours, max_group_bits=bits)
    found_64 = batch_entropy(same_dtype, max_group_bits=bits)
    expected = entropy_64(code_softmax(exact).flatten(0, 1).mean(0))
    torch.testing.assert_close(found.double(), expected, rtol=RELATIVE, atol=0)
    torch.testing.assert_close(found_64, expected, rtol=1e-12, atol=0)
    for entropy in (found, found_64, expected):
        entropy.backward()
    largest = exact.grad.abs().max()
    assert (same_dtype.grad - exact.grad).abs().max() <= 1e-10 * largest
    # The gradient is a difference of logarithms that nearly cancel: a few float32 digits go.
    assert (ours.grad.double() - exact.grad).abs().max() <= 2e-5 * largest


@pytest.mark.parametrize("bits", [5, 12])
def test_chunks_of_samples_change_nothing(
    bits: int, code_softmax: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tables of a few samples at once, value and gradient are those of the full table."""
    logits = random_logits(1, 100, bits).double()
    ours, whole, exact = (logits.clone().requires_grad_() for _ in range(3))
    expected = entropy_64(code_softmax(exact).flatten(0, 1).mean(0))
    at_once = batch_entropy(whole, max_group_bits=bits)
    monkeypatch.setattr(entropies, "_TABLE_ELEMENTS", 7 * 2 ** (bits - bits // 2 + 2))
    found = batch_entropy(ours, max_group_bits=bits)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(found, at_once, rtol=1e-12, atol=0)
    for value in (found, at_once, expected):
        value.backward()
    largest = exact.grad.abs().max()
    assert (ours.grad - exact.grad).abs().max() <= 1e-10 * largest
    assert (ours.grad - whole.grad).abs().max() <= 1e-12 * largest


def test_memory_of_a_joint_entropy_does_not_grow_with_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What autograd keeps of 16 times as many samples is their probabilities, not their tables."""
    monkeypatch.setattr(entropies, "_TABLE_ELEMENTS", 2**14)
    kept = []
    for samples in (64, 1024):
        sizes: dict[int, int] = {}

        def note(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        logits = random_logits(1, samples, 12).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            batch_entropy(logits, max_group_bits=12)
        kept.append(sum(sizes.values()))
    assert kept[1] - kept[0] <= 4 * 1024 * 12 * 8


def test_group_bounds_are_ordered() -> None:
    logits = random_logits(1, 16, 18, seed=3)
    bounds = [batch_entropy(logits, max_group_bits=g).item() for g in (18, 9, 6, 3, 1)]
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[-1] - 1e-3
    marginal = torch.sigmoid(logits.double()).mean((0, 1))
    marginal = entropy_64(torch.stack([marginal, 1 - marginal], -1)).sum().item()
    assert bounds[-1] == pytest.approx(marginal, rel=RELATIVE)


def test_batch_entropy_obeys_both_caps() -> None:
    logits = random_logits(1, 16, 12, scale=50)  # confident: 16 tokens cannot fill 4096 codes
    joint = batch_entropy(logits, max_group_bits=12).item()
    assert joint <= min(12 * math.log(2), math.log(16) + sample_entropy(logits).item()) + 1e-5


@pytest.mark.parametrize("bits,group", [(1, 1), (10, 10), (17, 17), (18, 18), (18, 9), (36, 12)])
def test_uniform_bits_have_n_ln_2_nats(bits: int, group: int) -> None:
    """A 1e-5 clamp inside the logarithm would report 11.51 for 18 bits instead of 12.477."""
    logits = torch.zeros(2, 8, bits)
    expected = bits * math.log(2)
    assert batch_entropy(logits, max_group_bits=group).item() == pytest.approx(expected, rel=1e-6)
    assert sample_entropy(logits).item() == pytest.approx(expected, rel=1e-6)


def test_diversity_gradient_survives_at_18_bits() -> None:
    """One dead bit among 18: its logits must still be pushed to balance."""
    logits = torch.zeros(1, 64, 18)
    logits[..., 17] = 2.0
    logits.requires_grad_()
    batch_entropy(logits, max_group_bits=18).backward()
    assert (logits.grad[..., 17] < -1e-4).all()


@pytest.mark.parametrize("bits", [1, 2, 3, 9])
def test_tables_are_in_index_order(
    bits: int, all_bits: Callable[[int], Tensor], code_softmax: Callable[[Tensor], Tensor]
) -> None:
    codes = all_bits(bits)
    assert torch.equal(outcome_table(codes.float()).argmax(1), torch.arange(2**bits))
    logits = random_logits(20, bits)
    expected = code_softmax(logits)
    probabilities = torch.sigmoid(logits)
    # 1 - p is exact to 6e-8 absolutely, not relatively: rare outcomes of near-certain bits.
    assert (outcome_table(probabilities) - expected).abs().max() < 2e-7
    assert (mean_distribution(probabilities) - expected.mean(0)).abs().max() < 2e-7


@over("bits", [1, 7, 18, 36, 62, 128])
@over("most", [1, 9, 10, 24])
def test_groups_cover_the_bits_evenly(bits: int, most: int) -> None:
    sizes = group_sizes(bits, most)
    assert sum(sizes) == bits
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1


def test_distribution_entropy_of_empty_codes() -> None:
    one_hot = torch.tensor([1.0, 0.0, 0.0], requires_grad=True)
    entropy = distribution_entropy(one_hot)
    entropy.backward()
    assert entropy.item() == 0
    assert one_hot.grad.isfinite().all()


def test_categorical_entropies_match_brute_force() -> None:
    logits = random_logits(50, 33, scale=5)
    sample, batch = categorical_entropies(logits)
    p = torch.softmax(logits.double(), -1)
    torch.testing.assert_close(sample.double(), entropy_64(p).mean(), rtol=RELATIVE, atol=0)
    torch.testing.assert_close(batch.double(), entropy_64(p.mean(0)), rtol=RELATIVE, atol=0)


def test_categorical_entropies_of_confident_rows_are_finite() -> None:
    logits = (1e4 * torch.eye(8)).requires_grad_()
    sample, batch = categorical_entropies(logits)
    (sample - batch).backward()
    assert sample.item() == 0
    assert batch.item() == pytest.approx(math.log(8), rel=1e-6)
    assert logits.grad.isfinite().all()
