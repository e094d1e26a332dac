"""Brute force and memory probes for the quantizer tests."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tessella.tests.probes import LargestTensor


@pytest.fixture
def largest_tensor() -> LargestTensor:
    """A context manager; read `.numel` after it."""
    return LargestTensor()


@pytest.fixture
def all_bits() -> Callable[[int], Tensor]:
    """Every string of n bits, (2**n, n) int64, in index order with bit 0 least significant."""

    def table(num_bits: int) -> Tensor:
        rows = [row[::-1] for row in itertools.product((0, 1), repeat=num_bits)]
        return torch.tensor(rows)

    return table


@pytest.fixture
def code_softmax(all_bits: Callable[[int], Tensor]) -> Callable[[Tensor], Tensor]:
    """Full-table assignments in float64: softmax over all 2**n sign codes of <logits, code> / 2.

    With logits 4 z / T this is the softmax of 2 <z, code> / T.
    """

    def probabilities(logits: Tensor) -> Tensor:
        signs = all_bits(logits.shape[-1]).double() * 2 - 1
        return torch.softmax(logits.double() @ signs.T / 2, dim=-1)

    return probabilities
