"""The bidirectional transformer that the token generators share.

Post-norm BERT blocks as in MaskBit (arXiv:2409.16211) and MaskGIT (arXiv:2202.04200): exact GELU,
biases everywhere, LayerNorm with eps 1e-12 computed in float32; `norm: pre` is the other order with
one more LayerNorm at the end.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...config import STRICT
from ...kernels.binary_attention.hashing import NUM_ANCHORS, KernelHash, hashed_attention
from ...kernels.binary_attention.op import binary_attention
from ...kernels.binary_attention.reference import binary_sign
from ...kernels.low_bit_attention.op import LowBitPrecision
from ...tokens.tokens import TokenSpec
from .attention import AttentionBackend, attention, check_backend, check_heads

BinarizedAttention = Literal["bibert", "bivit", "binary_qk", "hashed"]
"""Functions in place of softmax attention; see `kernels/binary_attention/`."""

NORM_EPS = 1e-12
_FIT_IMAGES = 16
"""Number of images that hashes are fitted to."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Settings of `Transformer`. The defaults are MaskBit's published size.

    Args:
        width: D, a multiple of `num_heads`.
        num_layers: Blocks.
        num_heads: Attention heads.
        mlp_ratio: Width of the hidden layer of the MLP over D.
        dropout: Dropout after attention, after the MLP and after the embedding.
        attention_dropout: Dropout of the attention weights; None: as `dropout` (published).
        norm: LayerNorm after each residual sum (`post`, published) or before each branch (`pre`).
        attention: Backend of `attention`; `low_bit` has no dropout of attention weights.
        low_bit_precision: Precision of `attention: low_bit`; see `kernels/low_bit_attention/op.py`.
        binarized_attention: Another function in place of softmax attention, for models trained
            with it: `bibert` (arXiv:2203.06390), `bivit` (arXiv:2211.07091), `binary_qk`
            (arXiv:2603.09582), or `hashed` (EcoFormer, arXiv:2209.09004: queries are keys, and
            `fit_hashes` comes before the first step). They have no dropout of weights.
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
    low_bit_precision: LowBitPrecision = "int8"
    binarized_attention: BinarizedAttention | None = None

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
        check_heads(self.attention, self.width // self.num_heads)
        if self.low_bit_precision != "int8" and self.attention not in ("low_bit", "fastest"):
            raise ValueError(
                f"low_bit_precision: {self.low_bit_precision} is of attention: low_bit or fastest, "
                f"found {self.attention}"
            )
        if self.binarized_attention and self.attention != "auto":
            raise ValueError(
                f"attention: {self.attention} computes softmax attention, and "
                f"binarized_attention: {self.binarized_attention} is another function; give one"
            )
        without_dropout = self.binarized_attention or (self.attention == "low_bit" and "low_bit")
        if without_dropout and self.dropout_of_weights:
            raise ValueError(
                f"attention_dropout: {without_dropout} has none, found "
                f"{self.dropout_of_weights}; set attention_dropout: 0"
            )

    @property
    def dropout_of_weights(self) -> float:
        """Dropout of the attention weights."""
        return self.dropout if self.attention_dropout is None else self.attention_dropout


def check_tokens(config: TransformerConfig, spec: TokenSpec, *, text: bool = False) -> None:
    """Refuse tokens that a trunk's attention cannot read, with one more token for class or time.

    Args:
        config: Settings of the trunk.
        spec: Spec of the tokens of an image.
        text: Whether tokens of a text, of several lengths, stand beside them.

    Raises:
        ValueError: With the reason.
    """
    if text and config.binarized_attention:
        raise ValueError(
            f"text: not with binarized_attention: {config.binarized_attention}, whose scales and "
            "hashes are of the tokens of an image; expected one of both"
        )
    if spec.ordered and config.binarized_attention == "binary_qk":
        raise ValueError(
            "binarized_attention: binary_qk scales queries by their mean over all positions, "
            f"padding included, so it does not go with tokens of several lengths, {spec}"
        )
    if config.binarized_attention == "hashed" and spec.num_tokens + 1 < NUM_ANCHORS:
        raise ValueError(
            f"binarized_attention: hashed compares with {NUM_ANCHORS} tokens, and {spec} with a "
            f"class token has {spec.num_tokens + 1}"
        )


class LayerNorm(nn.LayerNorm):
    """LayerNorm in float32, whatever the input: eps 1e-12 is nothing in half precision.

    The result has the type of the weights, so that under autocast the residual sums stay float32.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Normalized values, of the shape of x."""
        weight, bias = self.weight.float(), self.bias.float()
        normed = F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps)
        return normed.to(self.weight.dtype)


class Block(nn.Module):
    """Attention and MLP, each with its residual sum and LayerNorm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.width * config.mlp_ratio
        self.config = config
        self.width_of_head = width // config.num_heads
        self.attention = config.attention
        self.low_bit_precision = config.low_bit_precision
        self.hash: KernelHash | None = None
        if config.binarized_attention == "hashed":
            self.hash = KernelHash(config.num_heads, width // config.num_heads)
        self.fit_rng: torch.Generator | None = None
        self.qkv = nn.Linear(width, (2 if self.hash else 3) * width)
        self.out = nn.Linear(width, width)
        self.norm1 = LayerNorm(width)
        self.mlp_in = nn.Linear(width, hidden)
        self.mlp_out = nn.Linear(hidden, width)
        self.norm2 = LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Hidden states of (B, N, D); `valid` (B, N) bool is True at real positions; None: all."""
        if self.config.norm == "pre":
            x = x + self.dropout(self._attend(self.norm1(x), valid))
            out: Tensor = x + self.dropout(self._mlp(self.norm2(x)))
            return out
        x = self.norm1(x + self.dropout(self._attend(x, valid)))
        out = self.norm2(x + self.dropout(self._mlp(x)))
        return out

    def _attend(self, x: Tensor, valid: Tensor | None) -> Tensor:
        config = self.config
        parts = self.qkv(x).unflatten(-1, (-1, config.num_heads, self.width_of_head)).unbind(2)
        if self.hash is not None:
            qk, v = parts
            if self.fit_rng is not None:
                self.hash.fit(qk, rng=self.fit_rng)
            codes = self.hash(qk, valid)
            out: Tensor = self.out(hashed_attention(codes, codes, v, valid=valid).flatten(2))
            return out
        q, k, v = parts
        method = config.binarized_attention
        if method is not None and method != "hashed":
            if method == "bivit":
                q, k, v = binary_sign(q), binary_sign(k), binary_sign(v)
            mixed = binary_attention(q, k, v, valid=valid, method=method)
        else:
            mixed = attention(
                q,
                k,
                v,
                valid=valid,
                dropout=config.dropout_of_weights if self.training else 0.0,
                backend=self.attention,
                low_bit_precision=self.low_bit_precision,
            )
        out = self.out(mixed.flatten(2))
        return out

    def _mlp(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp_out(F.gelu(self.mlp_in(x)))
        return out


class Transformer(nn.Module):
    """Hidden states (B, N, D) to hidden states; every position sees every valid one."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        check_backend(config.attention)
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm_out = LayerNorm(config.width) if config.norm == "pre" else nn.Identity()

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Hidden states of (B, N, D); `valid` (B, N) bool is True at real positions."""
        for block in self.blocks:
            x = block(x, valid)
        out: Tensor = self.norm_out(x)
        return out

    @torch.no_grad()
    def fit_hashes(self, x: Tensor, rng: torch.Generator) -> None:
        """Fit the hashes of `binarized_attention: hashed`, block after block, to (B, N, D).

        Raises:
            ValueError: If there are fewer tokens than the hashes have anchors.
        """
        x = x[:_FIT_IMAGES]
        for block in self.blocks:
            assert isinstance(block, Block)
            block.fit_rng = rng
            try:
                x = block(x, None)
            finally:
                block.fit_rng = None

    @property
    def attention(self) -> str:
        """Name of the attention in use, for records."""
        first = self.blocks[0]
        assert isinstance(first, Block)
        if self.config.binarized_attention:
            return self.config.binarized_attention
        low_bit = first.attention in ("low_bit", "fastest")
        return f"{first.attention} {first.low_bit_precision}" if low_bit else first.attention

    def set_attention_backend(
        self, backend: AttentionBackend, low_bit_precision: LowBitPrecision | None = None
    ) -> None:
        """Compute softmax attention by this backend from now on; config and files keep theirs.

        Raises:
            RuntimeError: If the backend is not installed.
            ValueError: If this model's attention is another function than softmax.
        """
        if self.config.binarized_attention:
            raise ValueError(
                f"attention: this model was built with binarized_attention: "
                f"{self.config.binarized_attention}, which no backend of softmax attention computes"
            )
        check_backend(backend)
        precision = low_bit_precision or self.config.low_bit_precision
        if precision not in get_args(LowBitPrecision):
            raise ValueError(
                f"low_bit_precision: expected one of {get_args(LowBitPrecision)}, "
                f"found {precision!r}"
            )
        check_heads(backend, self.config.width // self.config.num_heads)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.attention = backend
            block.low_bit_precision = precision
