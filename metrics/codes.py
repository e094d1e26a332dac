"""Codebook usage statistics: entropies, distinct codes, stuck bits.

A histogram of N samples cannot show an entropy above log2 N bits: 32,768 uniform draws from 2^18
codes measure 14.88 bits. So usage, joint entropy and perplexity are computed only for joint
vocabularies up to 2^14; above that there are the marginal entropies of the entries, the stuck bits
and the number of distinct codes. Counts are integers and additive: windows and processes can be
merged.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..tokens.packing import MAX_JOINT as MAX_INDEX
from ..tokens.packing import join_entries

MAX_JOINT = 2**14
"""Largest joint vocabulary with usage, entropy and perplexity."""
MAX_ENTRY = 2**20
"""Largest codebook whose marginal histogram is kept; regroup tokens to bits beyond that."""
STUCK_BELOW, STUCK_ABOVE = 0.01, 0.99
"""A bit whose mean is below the first or above the second value counts as stuck."""
_COMPACT = 2**16


class CodeStatistics:
    """Streaming statistics of token indices.

    Args:
        codebook_sizes: The G sizes of `TokenSpec.codebook_sizes`, e.g. (1024,) or (2,) * 18.

    Raises:
        ValueError: If there is no size or one is below 1.
    """

    def __init__(self, codebook_sizes: Sequence[int]) -> None:
        self.codebook_sizes = tuple(int(size) for size in codebook_sizes)
        if not self.codebook_sizes or min(self.codebook_sizes) < 1:
            raise ValueError(f"codebook_sizes: expected sizes >= 1, found {self.codebook_sizes}")
        self.vocabulary = math.prod(self.codebook_sizes)
        self.reset()

    def reset(self) -> None:
        """Clear all counts, for the next window."""
        sizes = self.codebook_sizes
        tracked = [size if size <= MAX_ENTRY else 0 for size in sizes]
        self._tracked = tracked
        self._offsets = [sum(tracked[:g]) for g in range(len(sizes))]
        self._marginals = torch.zeros(sum(tracked), dtype=torch.int64)
        has_joint = self.vocabulary <= MAX_JOINT
        self._joint = torch.zeros(self.vocabulary if has_joint else 0, dtype=torch.int64)
        self._distinct = torch.zeros(0, dtype=torch.int64)
        self._pending: list[Tensor] = []
        self.num_tokens = 0

    @torch.no_grad()
    def update(self, indices: Tensor, valid: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            indices: int64, shape (B, N, G), entry g in [0, codebook_sizes[g]).
            valid: Bool, shape (B, N), True = real position; None = all.

        Raises:
            ValueError: If shape, dtype or range are wrong.
        """
        codes = self._checked(indices, valid)
        if not len(codes):
            return
        kept = [g for g, size in enumerate(self._tracked) if size]
        if kept:
            offsets = torch.tensor([self._offsets[g] for g in kept], device=codes.device)
            flat = (codes if len(kept) == codes.shape[1] else codes[:, kept]) + offsets
            counts = torch.bincount(flat.flatten(), minlength=len(self._marginals))
            self._marginals += counts.cpu()
        if self.vocabulary <= MAX_JOINT:
            counts = torch.bincount(
                join_entries(codes, self.codebook_sizes), minlength=self.vocabulary
            )
            self._joint += counts.cpu()
        elif self.vocabulary <= MAX_INDEX:
            self._pending.append(torch.unique(join_entries(codes, self.codebook_sizes)).cpu())
            if sum(map(len, self._pending)) > max(_COMPACT, len(self._distinct)):
                self._compact()
        self.num_tokens += len(codes)

    def compute(self) -> dict[str, float]:
        """Statistics of all tokens counted.

        Returns:
            Always: `num_tokens` (positions). If the joint vocabulary is <= 2^14: `codebook_usage`
            (fraction of codes seen, in [0, 1]), `entropy_bits` (of the joint histogram),
            `perplexity` (2^entropy, the effective number of codes). Up to 2^62: `num_distinct`, the
            number of joint codes seen. If every codebook is <= 2^20: `entry_entropy_min_bits`,
            `entry_entropy_mean_bits`, `entry_usage_min` and `entry_usage_mean` over the G
            marginals. With binary codebooks: `bit_mean_min`, `bit_mean_max` and `num_stuck_bits`
            (mean below 0.01 or above 0.99).

        Raises:
            ValueError: If nothing was counted.
        """
        if not self.num_tokens:
            raise ValueError("no tokens were counted: call update first")
        result = {"num_tokens": float(self.num_tokens)}
        if self.vocabulary <= MAX_JOINT:
            num_distinct = int((self._joint > 0).sum())
            entropy = _entropy_bits(self._joint)
            result["codebook_usage"] = num_distinct / self.vocabulary
            result["entropy_bits"] = entropy
            result["perplexity"] = 2.0**entropy
            result["num_distinct"] = float(num_distinct)
        elif self.vocabulary <= MAX_INDEX:
            self._compact()
            result["num_distinct"] = float(len(self._distinct))
        if all(self._tracked):
            entropies = [_entropy_bits(self._marginal(g)) for g in range(len(self._tracked))]
            result["entry_entropy_min_bits"] = min(entropies)
            result["entry_entropy_mean_bits"] = sum(entropies) / len(entropies)
            usages = [
                float((self._marginal(g) > 0).double().mean()) for g in range(len(self._tracked))
            ]
            result["entry_usage_min"] = min(usages)
            result["entry_usage_mean"] = sum(usages) / len(usages)
        means = self.bit_means()
        if len(means):
            result["bit_mean_min"] = float(means.min())
            result["bit_mean_max"] = float(means.max())
            stuck = (means < STUCK_BELOW) | (means > STUCK_ABOVE)
            result["num_stuck_bits"] = float(stuck.sum())
        return result

    def bit_means(self) -> Tensor:
        """Share of ones of each binary codebook, in order, float64; empty if there is none."""
        ones = [self._marginal(g)[1] for g, size in enumerate(self.codebook_sizes) if size == 2]
        if not ones:
            return torch.zeros(0, dtype=torch.float64)
        return torch.stack(ones).double() / max(self.num_tokens, 1)

    def merge(self, other: "CodeStatistics") -> None:
        """Add the counts of another object.

        Raises:
            ValueError: If the codebook sizes differ.
        """
        if other.codebook_sizes != self.codebook_sizes:
            raise ValueError(
                f"codebook sizes differ: {self.codebook_sizes} and {other.codebook_sizes}"
            )
        self._marginals += other._marginals
        self._joint += other._joint
        self._pending += [other._distinct, *other._pending]
        self._compact()
        self.num_tokens += other.num_tokens

    def state_dict(self) -> dict[str, Tensor]:
        """All counts as int64 tensors on the CPU, for a checkpoint or a gather."""
        self._compact()
        return {
            "codebook_sizes": torch.tensor(self.codebook_sizes),
            "marginals": self._marginals.clone(),
            "joint": self._joint.clone(),
            "distinct": self._distinct.clone(),
            "num_tokens": torch.tensor(self.num_tokens),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace all counts by those of `state_dict`.

        Raises:
            ValueError: If keys are missing or unexpected, or codebook sizes or shapes differ.
        """
        expected = self.state_dict()
        if set(state) != set(expected):
            found = f"{sorted(state)}, expected {sorted(expected)}"
            raise ValueError(f"code statistics: wrong keys {found}")
        if tuple(state["codebook_sizes"].tolist()) != self.codebook_sizes:
            found_sizes = tuple(state["codebook_sizes"].tolist())
            raise ValueError(f"codebook sizes differ: {self.codebook_sizes} and {found_sizes}")
        for key in ("marginals", "joint"):
            if state[key].shape != expected[key].shape:
                found = f"{tuple(state[key].shape)}, expected {tuple(expected[key].shape)}"
                raise ValueError(f"code statistics: {key} has shape {found}")
        self._marginals = state["marginals"].cpu().clone()
        self._joint = state["joint"].cpu().clone()
        self._distinct, self._pending = state["distinct"].cpu().clone(), []
        self.num_tokens = int(state["num_tokens"])

    def _checked(self, indices: Tensor, valid: Tensor | None) -> Tensor:
        """Indices of the real positions, (tokens, G), after checks of shape, dtype and range."""
        sizes = self.codebook_sizes
        if indices.dtype != torch.int64 or indices.ndim != 3 or indices.shape[2] != len(sizes):
            found = f"{indices.dtype} {tuple(indices.shape)}"
            raise ValueError(f"indices: expected int64 (B, N, {len(sizes)}), found {found}")
        if valid is None:
            codes = indices.flatten(0, 1)
        else:
            if valid.dtype != torch.bool or valid.shape != indices.shape[:2]:
                found = f"{valid.dtype} {tuple(valid.shape)}"
                raise ValueError(f"valid: expected bool {tuple(indices.shape[:2])}, found {found}")
            codes = indices[valid]
        if len(codes):
            low, high = codes.amin(0).tolist(), codes.amax(0).tolist()
            for g, size in enumerate(sizes):
                if low[g] < 0 or high[g] >= size:
                    found = f"{low[g]}..{high[g]}"
                    raise ValueError(f"indices of codebook {g}: found {found}, size is {size}")
        return codes

    def _marginal(self, g: int) -> Tensor:
        """Histogram of codebook g."""
        return self._marginals[self._offsets[g] : self._offsets[g] + self._tracked[g]]

    def _compact(self) -> None:
        """Fold the pending codes into the sorted set of distinct ones."""
        if self._pending:
            self._distinct = torch.unique(torch.cat([self._distinct, *self._pending]))
            self._pending = []


def _entropy_bits(counts: Tensor) -> float:
    """Entropy of a histogram in bits."""
    share = counts.double() / counts.sum()
    return max(0.0, -float(torch.special.xlogy(share, share).sum())) / math.log(2)
