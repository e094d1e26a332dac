"""Entropies of soft assignments, in nats: exact, stable in float32, no vocabulary-sized tensor.

The entropy loss of lookup-free and vector quantizers (arXiv:2310.05737, eq. 5) has two terms: the
entropy of the assignment of each sample should be small, that of the mean assignment of the batch
large.

For bits the assignment factorizes, p(code) = prod_k sigmoid(+-logit_k), so the sample entropy is a
sum over bits. The batch entropy does not factorize; it is computed exactly over groups of bits,
whose entropies sum to an upper bound of the joint one (equal to it with one group). A group of g
bits never needs an (M, 2**g) table: the mean distribution is one matrix product of the outcome
tables of its two halves, (M, 2**(g/2)) each. Beyond 32 MiB these tables are made in chunks of
samples, and made again in the backward pass, so that memory does not grow with the batch.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...collectives import mean_over_processes
from ...tokens.packing import group_sizes

_TABLE_ELEMENTS = 2**22
"""Most elements of the outcome tables of a group, and of what their gradients need, at once."""


def binary_entropy(logits: Tensor) -> Tensor:
    """Entropy of a bit with the given logit, elementwise, in [0, ln 2] nats.

    The formula log1p(exp(-|l|)) + |l| sigmoid(-|l|) has a relative error below 1e-6 up to |l| = 80;
    the usual softplus(l) - l sigmoid(l) has lost every digit beyond |l| = 20.
    """
    size = logits.abs()
    return torch.log1p(torch.exp(-size)) + size * torch.sigmoid(-size)


def sample_entropy(logits: Tensor) -> Tensor:
    """Mean over samples of the entropy of their codes, for bit logits (..., n); in [0, n ln 2]."""
    return binary_entropy(logits).sum(-1).mean()


def outcome_table(probabilities: Tensor) -> Tensor:
    """Probability of each value of independent bits, (M, g) -> (M, 2**g), bit 0 lowest."""
    table = probabilities.new_ones(len(probabilities), 1)
    for p in probabilities.unbind(1):
        table = torch.cat([table * (1 - p[:, None]), table * p[:, None]], dim=1)
    return table


def mean_distribution(probabilities: Tensor) -> Tensor:
    """Distribution of codes averaged over samples, (M, g) bit probabilities -> (2**g,).

    Memory is 2**22 + 2**g elements at most, for any number of samples.
    """
    half = probabilities.shape[1] // 2
    rows = max(1, _TABLE_ELEMENTS >> (probabilities.shape[1] - half + 2))
    parts = torch.split(probabilities, rows)
    if len(parts) == 1:
        return _summed_distribution(probabilities, half) / len(probabilities)
    total = probabilities.new_zeros(2 ** probabilities.shape[1])
    for part in parts:
        total = total + checkpoint(
            _summed_distribution, part, half, use_reentrant=False, preserve_rng_state=False
        )
    return total / len(probabilities)


def _summed_distribution(probabilities: Tensor, half: int) -> Tensor:
    """Sum over samples of the distributions of codes, (2**g,), from tables of two parts."""
    low, high = outcome_table(probabilities[:, :half]), outcome_table(probabilities[:, half:])
    return (high.T @ low).flatten()


def batch_entropy(logits: Tensor, *, max_group_bits: int) -> Tensor:
    """Entropy of the mean code distribution, for bit logits (..., n): a sum over groups of bits.

    Args:
        logits: Bit logits, (..., n).
        max_group_bits: Largest number of bits of a group. At least n gives the exact joint entropy;
            1 gives the sum of the marginal bit entropies. Memory grows with 2**max_group_bits, the
            distribution of a group.

    Returns:
        Entropy, a scalar in [0, n ln 2]. The mean distribution includes the samples of every
        process and is summed in float64: over thousands of samples float32 would lose 1e-5 nats.

    Source: arXiv:2310.05737 (LFQ), grouped as in arXiv:2406.07548 (BSQ), section 3.3.
    """
    probabilities = torch.sigmoid(logits.flatten(0, -2).double())
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    sizes = group_sizes(logits.shape[-1], max_group_bits)
    for group in torch.split(probabilities, sizes, dim=1):
        total = total + distribution_entropy(mean_over_processes(mean_distribution(group)))
    return total.to(logits.dtype)


def distribution_entropy(probabilities: Tensor) -> Tensor:
    """Entropy -sum p ln p of a distribution (K,), with 0 ln 0 = 0.

    No epsilon inside the logarithm: that would cap the entropy of large vocabularies. The floor of
    1e-30 only keeps the gradient of empty codes finite.
    """
    return -(probabilities * probabilities.clamp(min=1e-30).log()).sum()


def categorical_entropies(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Sample and batch entropy of softmax assignments (M, K), both in [0, ln K] nats."""
    log_p = torch.log_softmax(logits, dim=-1)
    p = log_p.exp()
    return -(p * log_p).sum(-1).mean(), distribution_entropy(mean_over_processes(p.mean(0)))
