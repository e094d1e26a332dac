"""Texts as the bytes of UTF-8, read by a small causal transformer that is trained along.

It knows every script and no language. A state depends on its byte and those before it only, so that
zeros after the end of a short text change nothing. Its blocks are the pre-norm ones of
arXiv:2002.04745.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..config import STRICT
from .characters import plain
from .encoder import TextEncoder, TextStates, check_max_length, strings, valid_of

_EXPANSION = 4
"""Width of the hidden layer of a block, in widths of a state."""
_INIT_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class BytesConfig:
    """Settings of `BytesEncoder`.

    Args:
        width: Width D of the states, a multiple of `num_heads`.
        num_layers: Transformer blocks, > 0.
        num_heads: Attention heads, > 0.
        max_length: Most bytes of a text, 1 to 4,096.
        dropout: Dropout in training, of the embedded bytes and in the blocks.
    """

    __pydantic_config__ = STRICT
    type: Literal["bytes"] = "bytes"
    width: int = 192
    num_layers: int = 2
    num_heads: int = 4
    max_length: int = 160
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_max_length(self.max_length)
        for name in ("width", "num_layers", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected 0 to below 1, found {self.dropout}")
        if self.width % self.num_heads:
            raise ValueError(
                f"width: expected a multiple of num_heads ({self.num_heads}), found {self.width}"
            )


class BytesEncoder(TextEncoder):
    """Causal transformer over the UTF-8 bytes of a text.

    Args:
        config: Settings.
    """

    name, unit = "bytes", "bytes"
    fingerprint = None

    def __init__(self, config: BytesConfig) -> None:
        super().__init__()
        self.config = config
        self.max_length, self.dim = config.max_length, config.width
        self.bytes = nn.Embedding(256, config.width)
        self.positions = nn.Embedding(config.max_length, config.width)
        for table in (self.bytes, self.positions):
            nn.init.normal_(table.weight, std=_INIT_STD)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.width,
                config.num_heads,
                _EXPANSION * config.width,
                config.dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.width)

    def forward(self, texts: Sequence[str]) -> TextStates:
        """States after the last block, normalized; see `TextEncoder.forward`."""
        rows = [self._cut(_encoded(text)) for text in strings(texts)]
        longest = max(map(len, rows), default=0)
        device = self.bytes.weight.device
        flat = [list(row.ljust(longest, b"\0")) for row in rows]
        codes = torch.tensor(flat, dtype=torch.int64, device=device).view(len(rows), longest)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64, device=device)
        valid = valid_of(lengths, longest)
        states: Tensor = self.bytes(codes) + self.positions.weight[:longest]
        if not longest:  # attention refuses no token at all
            return TextStates(states, valid)
        states = self.dropout(states)
        later = nn.Transformer.generate_square_subsequent_mask(longest, device, states.dtype)
        for block in self.blocks:
            states = block(states, src_mask=later, is_causal=True)
        states = self.norm(states)
        return TextStates(states.masked_fill(~valid[..., None], 0), valid)

    def count(self, text: str) -> int:
        """Bytes of a text."""
        return len(_encoded(text))

    def unknown(self, text: str) -> list[str]:
        """Nothing: every byte is known."""
        return []

    def _cut(self, encoded: bytes) -> bytes:
        """The first bytes of a text, without a part of a character at their end."""
        return encoded[: self.max_length].decode("utf-8", "ignore").encode()


def _encoded(text: str) -> bytes:
    return plain(text).encode("utf-8")
