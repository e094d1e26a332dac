"""Llama layers over the tokens of an image, and the trunk of BiGR.

RMSNorm, rotary positions over the axes of the grid, SwiGLU, no biases. In `LlamaTrunk`, the one of
BiGR (arXiv:2410.14672), every position sees every other, and each branch has one shift, scale and
gate (adaLN): a single linear layer of the condition, shared by all blocks, plus a table in each
block. The trunk of LlamaGen is in `causal_llama.py`.

The first position is the class token. Its queries and keys are multiplied by 0 instead of being
rotated, so that its scores with every position are 0: inherited from LlamaGen's code, and what the
published weights were trained with. Tokens of a text may stand before it; their positions are told
by what was added to them, and their queries and keys are not rotated.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...building import derive
from ...config import STRICT
from ...kernels.low_bit_attention.op import LowBitPrecision
from .attention import AttentionBackend, attention, check_backend, check_heads
from .rotation import check_rotation, rotate, rotation_table, unrotated_before

NORM_EPS = 1e-5
_MULTIPLE = 256


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Settings of the trunks. The defaults are the published LlamaGen-L and BiGR-L.

    Args:
        width: Width D, a multiple of `num_heads`.
        num_layers: Number of blocks.
        num_heads: Number of attention heads; published: heads of 64 channels.
        mlp_width: Width of the hidden layer of SwiGLU; None: 8 / 3 D, rounded up to a multiple of
            256.
        dropout: Dropout after attention and after the MLP.
        attention_dropout: Dropout of the attention weights.
        attention: Backend of `attention`; `low_bit` has no dropout of attention weights.
        low_bit_precision: Precision of `attention: low_bit`; see `kernels/low_bit_attention/op.py`.
    """

    __pydantic_config__ = STRICT
    width: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    mlp_width: int | None = None
    dropout: float = 0.1
    attention_dropout: float = 0.0
    attention: AttentionBackend = "auto"
    low_bit_precision: LowBitPrecision = "int8"

    def __post_init__(self) -> None:
        for name in ("width", "num_layers", "num_heads", "mlp_width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, found {value}")
        if self.width % self.num_heads:
            raise ValueError(f"num_heads: {self.num_heads} does not divide the width {self.width}")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 0 to below 1, found {getattr(self, name)}")
        if self.attention == "low_bit" and self.attention_dropout:
            raise ValueError(
                f"attention_dropout: low_bit has none, found {self.attention_dropout}; set "
                "attention_dropout: 0"
            )

    @property
    def hidden_width(self) -> int:
        """Width of the hidden layer of SwiGLU."""
        if self.mlp_width is not None:
            return self.mlp_width
        return -(-(8 * self.width // 3) // _MULTIPLE) * _MULTIPLE


class RMSNorm(nn.Module):
    """RMSNorm in float32 (arXiv:1910.07467); the result has the type of the weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalized values, of the shape of x."""
        normed = F.rms_norm(x.float(), self.weight.shape, self.weight.float(), NORM_EPS)
        return normed.to(self.weight.dtype)


class KVCache:
    """Keys and values of one block; room for `length` positions is taken at the first one."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.stored: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """Keys and values up to these positions, (B, position + M, heads, dim).

        Args:
            k: Keys of M positions, (B, M, heads, dim).
            v: Values of these positions, of the same shape.
            position: Number of the first of them, from 0; those before it are stored.
        """
        if self.stored is None:
            self.stored = k.new_empty(2, len(k), self.length, *k.shape[2:])
        keys, values = self.stored
        end = position + k.shape[1]
        keys[:, position:end], values[:, position:end] = k, v
        return keys[:, :end], values[:, :end]


class LlamaLayers(nn.Module):
    """Layers of the two branches of a block: attention and SwiGLU, and a norm for each."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.hidden_width
        self.config = config
        self.attention = config.attention
        self.low_bit_precision = config.low_bit_precision
        self.norm1 = RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm2 = RMSNorm(width)
        self.mlp_gate = nn.Linear(width, hidden, bias=False)
        self.mlp_in = nn.Linear(width, hidden, bias=False)
        self.mlp_out = nn.Linear(hidden, width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def attend(
        self,
        x: Tensor,
        rotation: Tensor | None,
        *,
        valid: Tensor | None = None,
        causal: bool = False,
        cache: KVCache | None = None,
        position: int = 0,
    ) -> Tensor:
        """Self-attention of (B, N, D), without norm and dropout.

        Args:
            x: Input, (B, N, D); with a cache the first positions, or one, (B, 1, D).
            rotation: Rows of `rotation_table` for the positions of x; None: no positions.
            valid: True at real positions, (B, N) bool, those in the cache included; None: all.
            causal: Whether a position sees only those up to itself.
            cache: Keys and values of the positions before; those of x are added.
            position: Position of x in the cache.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.config.num_heads, -1)).unbind(2)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.extend(k, v, position)
        mixed = attention(
            q,
            k,
            v,
            valid=valid,
            causal=causal,
            dropout=self.config.attention_dropout if self.training else 0.0,
            backend=self.attention,
            low_bit_precision=self.low_bit_precision,
        )
        out: Tensor = self.out(mixed.flatten(2))
        return out

    def mlp(self, x: Tensor) -> Tensor:
        """SwiGLU of (B, N, D)."""
        out: Tensor = self.mlp_out(F.silu(self.mlp_gate(x)) * self.mlp_in(x))
        return out


class LlamaBlock(LlamaLayers):
    """Attention and SwiGLU, each between a shift and scale of its input and a gate."""

    def __init__(self, config: LlamaConfig) -> None:
        table = torch.randn(1, 1, 6, config.width) / math.sqrt(config.width)
        super().__init__(config)
        self.table = nn.Parameter(table)

    def forward(
        self, x: Tensor, modulation: Tensor, rotation: Tensor, valid: Tensor | None
    ) -> Tensor:
        """Hidden states (B, N, D).

        Args:
            x: Hidden states, (B, N, D).
            modulation: Shift, scale and gate of attention, then of the MLP, (B, 1, 6, D).
            rotation: Cosines and sines of `rotation_table`, (N, dim / 2, 2).
            valid: True at real positions, (B, N) bool; None: all.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.table).unbind(2)
        mixed = self.attend(self.norm1(x) * (1 + scale1) + shift1, rotation, valid=valid)
        x = x + gate1 * self.dropout(mixed)
        out: Tensor = x + gate2 * self.dropout(self.mlp(self.norm2(x) * (1 + scale2) + shift2))
        return out


class LlamaTrunk(nn.Module):
    """Hidden states (B, L + 1 + N, D), L of a text and the class token first, to hidden states.

    Args:
        config: Settings.
        shape: Shape of the grid or sequence of the N positions after the class token.

    Raises:
        RuntimeError: If the attention backend is not installed.
        ValueError: If a head's channels cannot be shared by the axes of `shape` in pairs.
    """

    rotation: Tensor

    def __init__(self, config: LlamaConfig, shape: Sequence[int]) -> None:
        super().__init__()
        check_backend(config.attention)
        check_heads(config.attention, config.width // config.num_heads)
        self.config = config
        self.modulation = nn.Linear(config.width, 6 * config.width)
        self.blocks = nn.ModuleList(LlamaBlock(config) for _ in range(config.num_layers))
        self.norm_out = RMSNorm(config.width)
        head_width = config.width // config.num_heads
        size = check_rotation(shape, head_width)
        derive(self, "rotation", partial(rotation_table, shape, head_width), size)

    def forward(self, x: Tensor, condition: Tensor, valid: Tensor | None = None) -> Tensor:
        """Hidden states after the last norm, (B, L + 1 + N, D).

        Args:
            x: Input of the blocks, (B, L + 1 + N, D).
            condition: Condition of the modulation, (B, D).
            valid: True at real positions, (B, L + 1 + N) bool; None: all.
        """
        modulation, rotation = self._modulate(condition), self.rotation
        if prefix := x.shape[1] - len(rotation):
            rotation = unrotated_before(rotation, prefix)
        for block in self.blocks:
            x = block(x, modulation, rotation, valid)
        out: Tensor = self.norm_out(x)
        return out

    def layers(self, x: Tensor, condition: Tensor, valid: Tensor | None = None) -> Iterator[Tensor]:
        """Hidden states after each block, without the last norm; arguments as of `forward`."""
        modulation = self._modulate(condition)
        for block in self.blocks:
            x = block(x, modulation, self.rotation, valid)
            yield x

    def _modulate(self, condition: Tensor) -> Tensor:
        """(B, 1, 6, D) of (B, D)."""
        modulation: Tensor = self.modulation(F.silu(condition)).unflatten(-1, (1, 6, -1))
        return modulation

    @property
    def attention(self) -> str:
        """Name of the attention in use, for records."""
        first = self.blocks[0]
        assert isinstance(first, LlamaBlock)
        low_bit = first.attention in ("low_bit", "fastest")
        return f"{first.attention} {first.low_bit_precision}" if low_bit else first.attention

    def set_attention_backend(
        self, backend: AttentionBackend, low_bit_precision: LowBitPrecision | None = None
    ) -> None:
        """Compute attention by this backend from now on; config and files keep theirs.

        Raises:
            RuntimeError: If the backend is not installed.
        """
        check_backend(backend)
        check_heads(backend, self.config.width // self.config.num_heads)
        for block in self.blocks:
            assert isinstance(block, LlamaBlock)
            block.attention = backend
            block.low_bit_precision = low_bit_precision or self.config.low_bit_precision
