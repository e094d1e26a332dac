"""The network of binary latent diffusion (arXiv:2304.04820) and of Bayesian flows over bits.

Values in [-1, 1] of every bit (signs of bits, or means of beliefs), a time in [0, 1] and a label
give one logit per bit. One token a position, one more for the time and one for the class, appended
without a position of their own. It knows nothing of the process whose steps it takes part in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...building import table_of
from ...config import STRICT
from ..conditions import TextTokens
from .bert import Block, LayerNorm, Transformer, TransformerConfig

_NORM_EPS = 1e-5
_TIME_SCALE = 4000.0
_LONGEST_PERIOD = 10_000.0


@dataclass(frozen=True, kw_only=True)
class DenoisingTransformerConfig(TransformerConfig):
    """A `TransformerConfig` whose defaults are the published denoising transformer.

    Args:
        width: Width D, even and at least 4.
        num_layers: Number of blocks.
        num_heads: Attention heads.
        dropout: Dropout as in `TransformerConfig`; the published models have none.
        norm: LayerNorm before each branch; there is no other order here.
    """

    __pydantic_config__ = STRICT
    width: int = 768
    num_layers: int = 24
    num_heads: int = 12
    dropout: float = 0.0
    norm: Literal["pre"] = "pre"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % 2 or self.width < 4:
            raise ValueError(f"width: expected an even number from 4, found {self.width}")


class ScaledLinear(nn.Linear):
    """A linear layer with a learned scale on each output (LayerScale, arXiv:2103.17239), from 1."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.scale = nn.Parameter(torch.ones(out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Scaled outputs (..., out_features) of (..., in_features)."""
        return super().forward(x) * self.scale


class DenoisingTrunk(Transformer):
    """Pre-norm blocks whose branches end in a `ScaledLinear`; eps 1e-5; torch's initial weights."""

    def __init__(self, config: DenoisingTransformerConfig) -> None:
        super().__init__(config)
        width = config.width
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.zeros_(block.qkv.bias)
            block.out = ScaledLinear(width, width)
            block.mlp_out = ScaledLinear(width * config.mlp_ratio, width)
        for module in self.modules():
            if isinstance(module, LayerNorm):
                module.eps = _NORM_EPS


class DenoisingTransformer(nn.Module):
    """One logit per bit from values, time and label.

    Args:
        config: Settings of the trunk.
        shape: Shape of the grid, or length of the sequence, of positions.
        num_bits: Number of bits K of a position.
        num_classes: Number of labels; 0: no class token.
        null_label: See `BinaryLatentDiffusionConfig`.
    """

    def __init__(
        self,
        config: DenoisingTransformerConfig,
        shape: Sequence[int],
        num_bits: int,
        num_classes: int,
        null_label: Literal["learned", "absent"] = "learned",
    ) -> None:
        super().__init__()
        width = config.width
        self.width, self.num_classes, self.null_label = width, num_classes, null_label
        self.bit_embedding = nn.Parameter(torch.empty(num_bits, width))
        nn.init.normal_(self.bit_embedding, std=0.02)
        table = table_of(partial(position_table, shape, width), (math.prod(shape), width))
        self.position = nn.Parameter(table[None])
        self.time_in = nn.Linear(width, width)
        self.time_out = nn.Linear(width, width)
        self.class_embedding: nn.Embedding | None = None
        if num_classes:
            rows = num_classes + (null_label == "learned")
            self.class_embedding = nn.Embedding(rows, width)
        self.input_dropout = nn.Dropout(config.dropout)
        self.trunk = DenoisingTrunk(config)
        self.head = nn.Linear(width, num_bits)

    def forward(
        self,
        values: Tensor,
        time: Tensor,
        labels: Tensor,
        valid: Tensor | None = None,
        text: TextTokens | None = None,
    ) -> Tensor:
        """Logits (B, N, K), float32.

        Args:
            values: Values of the bits, (B, N, K) in [-1, 1].
            time: Times, (B,) float in [0, 1].
            labels: Labels, (B,) int64 in [0, num_classes]; `num_classes` = no label. Not changed.
            valid: True at real positions, (B, N) bool; None: all.
            text: Tokens of the prompts; None: there are none. Their pooled vector is added to the
                token of the time, which is always there.
        """
        x, valid = self.embed(values, time, labels, valid, text)
        logits: Tensor = self.head(self.trunk(x, valid)[:, : values.shape[1]]).float()
        return logits

    def embed(
        self,
        values: Tensor,
        time: Tensor,
        labels: Tensor,
        valid: Tensor | None = None,
        text: TextTokens | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Input of the trunk, (B, N + 1 or 2 + L, D), and its valid positions; None: all."""
        positions = values.to(self.bit_embedding.dtype) @ self.bit_embedding + self.position
        sinusoid = time_sinusoid(time, self.width).to(self.time_in.weight.dtype)
        times = self.time_out(F.silu(self.time_in(sinusoid)))
        parts = [positions, (times if text is None else times + text.pooled)[:, None]]
        known = torch.ones_like(labels, dtype=torch.bool)
        if self.class_embedding is not None:
            if self.null_label == "absent":  # a token that nobody attends to is not there
                known = labels < self.num_classes
                labels = labels.clamp(max=self.num_classes - 1)
            parts.append(self.class_embedding(labels)[:, None])
        x = torch.cat(parts, 1)
        if valid is not None or not (self.class_embedding is None or self.null_label == "learned"):
            if valid is None:
                valid = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
            valid = F.pad(valid, (0, 1), value=True)
            valid = torch.cat([valid, known[:, None]], 1)[:, : x.shape[1]]
        if text is not None:
            x, valid = text.append_to(x, valid)
        return self.input_dropout(x), valid

    @torch.no_grad()
    def fit_hashes(self, values: Tensor, time: Tensor, labels: Tensor, seed: int) -> None:
        """Fit the hashes of `binarized_attention: hashed`; arguments as of `forward`."""
        training = self.training
        self.eval()
        x, _ = self.embed(values, time, labels)
        self.trunk.fit_hashes(x, torch.Generator().manual_seed(seed))
        self.train(training)


def time_sinusoid(time: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of 4000 times the time at D / 2 frequencies, (B, D) float32.

    Args:
        time: Times, (B,) in [0, 1].
        width: Width D, even and at least 4.
    """
    half = width // 2
    places = torch.arange(half, device=time.device)
    frequencies = torch.exp(places * -(math.log(_LONGEST_PERIOD) / (half - 1)))
    angles = (time.float() * _TIME_SCALE)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


def position_table(shape: Sequence[int], width: int) -> Tensor:
    """Sines and cosines of the coordinates of every position, (N, D) float32.

    Each axis has an equal even share of the channels, the last axis (the column) first, sines
    before cosines, base 10,000; channels left over hold 0.

    Args:
        shape: Shape of the grid, or length of the sequence, row-major.
        width: Width D.
    """
    half = width // (2 * len(shape))
    frequencies = _LONGEST_PERIOD ** -(torch.arange(half, dtype=torch.float64) / max(half, 1))
    axes = [torch.arange(size, dtype=torch.float64) for size in shape]
    parts = []
    for places in reversed(torch.meshgrid(*axes, indexing="ij")):
        angles = places.flatten()[:, None] * frequencies
        parts += [angles.sin(), angles.cos()]
    table = torch.cat(parts, -1)
    return F.pad(table, (0, width - table.shape[1])).float()
