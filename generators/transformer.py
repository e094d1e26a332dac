"""The bidirectional transformer that the token generators share.

Post-norm BERT blocks as in MaskBit (arXiv:2409.16211) and MaskGIT (arXiv:2202.04200): exact GELU,
biases everywhere, LayerNorm with eps 1e-12 computed in float32; `norm: pre` is the other order with
one more LayerNorm at the end.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import STRICT
from .attention import AttentionBackend, attention, check_backend

NORM_EPS = 1e-12


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Settings of `Transformer`. The defaults are MaskBit's published size.

    Args:
        width: D, a multiple of `num_heads`.
        num_layers: Blocks.
        num_heads: Attention heads.
        mlp_ratio: Width of the hidden layer of the MLP over D.
        dropout: After attention, after the MLP and after the embedding.
        attention_dropout: Of the attention weights; None: as `dropout` (published).
        norm: LayerNorm after each residual sum (`post`, published) or before each branch (`pre`).
        attention: Backend of `attention`.
    """

    __pydantic_config__ = STRICT
    width: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    mlp_ratio: int = 4
    dropout: float = 0.1
    attention_dropout: float | None = None
    norm: Literal["post", "pre"] = "post"
    attention: AttentionBackend = "auto"

    def __post_init__(self) -> None:
        for name in ("width", "num_layers", "num_heads", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.width % self.num_heads:
            raise ValueError(f"num_heads: {self.num_heads} does not divide the width {self.width}")
        for name in ("dropout", "attention_dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name}: expected 0 to below 1, found {value}")


class LayerNorm(nn.LayerNorm):
    """LayerNorm in float32, whatever the input: eps 1e-12 is nothing in half precision.

    The result has the type of the weights, so that under autocast the residual sums stay float32.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        normed = F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps)
        return normed.to(self.weight.dtype)


class Block(nn.Module):
    """Attention and MLP, each with its residual sum and LayerNorm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.width * config.mlp_ratio
        self.config = config
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm1 = LayerNorm(width)
        self.mlp_in = nn.Linear(width, hidden)
        self.mlp_out = nn.Linear(hidden, width)
        self.norm2 = LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        if self.config.norm == "pre":
            x = x + self.dropout(self._attend(self.norm1(x), valid))
            return x + self.dropout(self._mlp(self.norm2(x)))
        x = self.norm1(x + self.dropout(self._attend(x, valid)))
        return self.norm2(x + self.dropout(self._mlp(x)))

    def _attend(self, x: Tensor, valid: Tensor | None) -> Tensor:
        config = self.config
        q, k, v = self.qkv(x).unflatten(-1, (3, config.num_heads, -1)).unbind(2)
        dropout = config.dropout if config.attention_dropout is None else config.attention_dropout
        dropout = dropout if self.training else 0.0
        mixed = attention(q, k, v, valid=valid, dropout=dropout, backend=config.attention)
        return self.out(mixed.flatten(2))

    def _mlp(self, x: Tensor) -> Tensor:
        return self.mlp_out(F.gelu(self.mlp_in(x)))


class Transformer(nn.Module):
    """Hidden states (B, N, D) to hidden states; every position sees every valid one."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        check_backend(config.attention)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm_out = LayerNorm(config.width) if config.norm == "pre" else nn.Identity()

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Hidden states of (B, N, D); `valid` (B, N) bool is True at real positions."""
        for block in self.blocks:
            x = block(x, valid)
        return self.norm_out(x)


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Weights normal, std 0.02 (published with a cut at 100 std, which is none); biases 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
