"""Inputs of the masked generators: hidden states of codes of which some are hidden."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...kernels.bit_embedding.op import bit_embedding
from ...kernels.codebook_sum.op import codebook_embedding_sum
from ...tokens.packing import split_bits


class BitInput(nn.Module):
    """Bits as -1 and +1, hidden groups 0, through one linear layer."""

    def __init__(self, codebook_sizes: Sequence[int], width: int) -> None:
        super().__init__()
        self.widths = [size.bit_length() - 1 for size in codebook_sizes]
        self.project = nn.Linear(sum(self.widths), width)

    def forward(self, indices: Tensor, mask: Tensor) -> Tensor:
        """Hidden states (B, N, D) of indices and mask (B, N, G)."""
        hidden: Tensor = self.project(self.signs(indices, mask).to(self.project.weight.dtype))
        return hidden

    def signs(self, indices: Tensor, mask: Tensor) -> Tensor:
        """(B, N, n) float32 in {-1, 0, 1}, bit i of the joint code at place i."""
        signs = split_bits(indices, self.widths).float() * 2 - 1
        hidden = torch.cat(
            [mask[..., g : g + 1].expand(*mask.shape[:2], n) for g, n in enumerate(self.widths)], -1
        )
        return signs.masked_fill(hidden, 0)

    def fused(
        self, indices: Tensor, mask: Tensor, labels: Tensor, classes: Tensor, position: Tensor
    ) -> Tensor:
        """Hidden states with class row and positions, (B, N + 1, D), by `bit_embedding`.

        A group with fewer bits than the widest gets rows of 0 for the bits that it lacks.
        """
        widest, weight = max(self.widths), self.project.weight.t()
        if min(self.widths) < widest:
            parts = torch.split(weight, self.widths)
            weight = torch.cat([F.pad(part, (0, 0, 0, widest - len(part))) for part in parts])
        terms = (self.project.bias, position, classes, labels, mask)
        return bit_embedding(indices, weight, *terms, bits_per_group=widest)


class IndexInput(nn.Module):
    """Sum over groups of an embedding; the last row of each table stands for "hidden"."""

    def __init__(self, codebook_sizes: Sequence[int], width: int) -> None:
        super().__init__()
        self.sizes = tuple(codebook_sizes)
        self.tables = nn.ModuleList(nn.Embedding(size + 1, width) for size in codebook_sizes)

    def forward(self, indices: Tensor, mask: Tensor) -> Tensor:
        """Hidden states (B, N, D) of indices and mask (B, N, G)."""
        rows = [
            table(torch.where(mask[..., g], self.sizes[g], indices[..., g]))
            for g, table in enumerate(self.tables)
        ]
        return torch.stack(rows).sum(0)

    def fused(
        self, indices: Tensor, mask: Tensor, labels: Tensor, classes: Tensor, position: Tensor
    ) -> Tensor:
        """Hidden states with class row and positions by `codebook_embedding_sum`, (B, N + 1, D)."""
        tables = [table.get_parameter("weight") for table in self.tables]
        return codebook_embedding_sum(indices, tables, position, classes, labels, mask)
