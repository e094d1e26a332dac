"""Correlation of the bits of binary tokens, from integer counts.

Balanced bits can still repeat each other, and then carry less information than their number
suggests. `CodeStatistics` has the means and stuck bits; this module has the statistics of pairs.
"""

import torch
from torch import Tensor

_ROWS = 2**16  # rows at once; float32 counts are exact up to 2^24
_EXACT_TOKENS = 2**31  # products of two counts fit int64 up to here


class BitStatistics:
    """Streaming integer counts of ones and of joint ones, exact in any order and split.

    Args:
        num_bits: Number G of bits of a position.

    Attributes:
        joint_ones: Number of positions where both bits are one, int64, shape (G, G).
        num_tokens: Number of positions counted.

    Raises:
        ValueError: If `num_bits` is below 1.
    """

    def __init__(self, num_bits: int) -> None:
        if num_bits < 1:
            raise ValueError(f"num_bits: expected >= 1, found {num_bits}")
        self.num_bits = num_bits
        self.reset()

    def reset(self) -> None:
        """Clear all counts, for the next window."""
        self.joint_ones = torch.zeros(self.num_bits, self.num_bits, dtype=torch.int64)
        self.num_tokens = 0

    @torch.no_grad()
    def update(self, bits: Tensor, valid: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            bits: int64 or bool, shape (B, N, G), values 0 and 1.
            valid: Bool, shape (B, N), True = real position; None = all.

        Raises:
            ValueError: If shape, dtype or values are wrong.
        """
        kinds = (torch.int64, torch.bool)
        if bits.dtype not in kinds or bits.ndim != 3 or bits.shape[2] != self.num_bits:
            found = f"{bits.dtype} {tuple(bits.shape)}"
            raise ValueError(f"bits: expected int64 or bool (B, N, {self.num_bits}), found {found}")
        if valid is None:
            rows = bits.flatten(0, 1)
        else:
            if valid.dtype != torch.bool or valid.shape != bits.shape[:2]:
                found = f"{valid.dtype} {tuple(valid.shape)}"
                raise ValueError(f"valid: expected bool {tuple(bits.shape[:2])}, found {found}")
            rows = bits[valid]
        if not len(rows):
            return
        if bits.dtype == torch.int64:
            low, high = int(rows.min()), int(rows.max())
            if low < 0 or high > 1:
                raise ValueError(f"bits: expected 0 and 1, found {low}..{high}")
        for part in torch.split(rows, _ROWS):
            ones = part.float()
            self.joint_ones += (ones.T @ ones).long().cpu()
        self.num_tokens += len(rows)

    @property
    def ones(self) -> Tensor:
        """Number of ones of each bit, int64, shape (G,)."""
        return self.joint_ones.diagonal().clone()

    @property
    def means(self) -> Tensor:
        """Share of ones of each bit, float64, shape (G,), in [0, 1]; zeros before an update."""
        return self.ones.double() / max(self.num_tokens, 1)

    @property
    def correlation(self) -> Tensor:
        """Pearson correlation (phi) of every pair of bits, float64, shape (G, G), in [-1, 1].

        The correlation of a bit that never changes is undefined: its row is 0. The diagonal is 1.
        """
        count, ones, joint = self.num_tokens, self.ones, self.joint_ones
        if count > _EXACT_TOKENS:
            ones, joint = ones.double(), joint.double()
        covariance = (count * joint - ones[:, None] * ones).double()  # times count^2
        deviations = covariance.diagonal().sqrt()
        scale = deviations[:, None] * deviations
        result = torch.where(scale > 0, covariance / scale, 0.0).clamp(-1, 1)
        return result.fill_diagonal_(1.0)

    def compute(self) -> dict[str, float]:
        """Statistics of all tokens counted.

        Returns:
            `bit_correlation_mean_abs` and `bit_correlation_max_abs`: mean and largest absolute
            correlation over all pairs of different bits that are not constant; 0 if there is none.

        Raises:
            ValueError: If nothing was counted.
        """
        if not self.num_tokens:
            raise ValueError("no tokens were counted: call update first")
        ones = self.ones
        changing = ((ones > 0) & (ones < self.num_tokens)).nonzero().flatten()
        pairs = self.correlation[changing][:, changing].abs()
        above = pairs[torch.triu(torch.ones_like(pairs), diagonal=1).bool()]
        return {
            "bit_correlation_mean_abs": float(above.mean()) if len(above) else 0.0,
            "bit_correlation_max_abs": float(above.max()) if len(above) else 0.0,
        }

    def merge(self, other: "BitStatistics") -> None:
        """Add the counts of another object.

        Raises:
            ValueError: If the numbers of bits differ.
        """
        if other.num_bits != self.num_bits:
            raise ValueError(f"numbers of bits differ: {self.num_bits} and {other.num_bits}")
        self.joint_ones = self.joint_ones + other.joint_ones
        self.num_tokens += other.num_tokens
