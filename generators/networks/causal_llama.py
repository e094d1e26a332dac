"""The trunk of LlamaGen (arXiv:2406.06525): Llama layers in which a position sees those before it.

The first position is the class token, whose queries and keys are 0, as `llama.py` says.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from ...building import derive
from ...kernels.low_bit_attention.op import LowBitPrecision
from .attention import AttentionBackend, check_backend, check_causal
from .llama import KVCache, LlamaConfig, LlamaLayers, RMSNorm
from .rotation import check_rotation, rotation_table, unrotated_before


class CausalBlock(LlamaLayers):
    """Attention to what stands before, and SwiGLU."""

    def forward(
        self,
        x: Tensor,
        rotation: Tensor | None,
        valid: Tensor | None = None,
        cache: KVCache | None = None,
        position: int = 0,
    ) -> Tensor:
        """Hidden states (B, N, D), or of one position; arguments as of `LlamaLayers.attend`."""
        mixed = self.attend(
            *(self.norm1(x), rotation), valid=valid, causal=True, cache=cache, position=position
        )
        x = x + self.dropout(mixed)
        out: Tensor = x + self.dropout(self.mlp(self.norm2(x)))
        return out


class CausalTransformer(nn.Module):
    """Hidden states to hidden states, each of itself and those before it.

    Args:
        config: Settings.
        num_layers: Number of blocks, in place of the config's.
        shape: Shape of the grid or sequence of the positions after the first one, the class
            token; None: positions are not told apart, but by what stands before them.

    Raises:
        RuntimeError: If the attention backend is not installed.
        ValueError: If the backend is not causal, or a head's channels cannot be shared by the axes
            of `shape` in pairs.
    """

    rotation: Tensor | None

    def __init__(
        self, config: LlamaConfig, num_layers: int, shape: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        check_backend(config.attention)
        check_causal(config.attention)
        self.blocks = nn.ModuleList(CausalBlock(config) for _ in range(num_layers))
        self.norm_out = RMSNorm(config.width)
        head_width = config.width // config.num_heads
        if shape is None:
            self.register_buffer("rotation", None, persistent=False)
        else:
            size = check_rotation(shape, head_width)
            derive(self, "rotation", partial(rotation_table, shape, head_width), size)

    def forward(self, x: Tensor, prefix: int = 0, valid: Tensor | None = None) -> Tensor:
        """Hidden states after the last norm, (B, M, D), of the first M positions, (B, M, D).

        Args:
            x: Input of the blocks, (B, M, D).
            prefix: How many of these positions stand before the class token.
            valid: True at real positions, (B, M) bool; None: all. Padding at the end need not be
                marked, no real position sees it.
        """
        rotation = None if self.rotation is None else self.rotation[: x.shape[1] - prefix]
        if rotation is not None and prefix:
            rotation = unrotated_before(rotation, prefix)
        for block in self.blocks:
            x = block(x, rotation, valid)
        out: Tensor = self.norm_out(x)
        return out

    def read_prefix(self, x: Tensor, caches: Sequence[KVCache], valid: Tensor) -> None:
        """Put the keys and values of the positions before the class token into empty caches.

        Args:
            x: Input of the blocks, (B, L, D).
            caches: One cache for each block, with room for these positions.
            valid: True at real positions, (B, L) bool.
        """
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, None, valid, cache)

    def step(
        self,
        x: Tensor,
        caches: Sequence[KVCache],
        position: int,
        prefix: int = 0,
        valid: Tensor | None = None,
    ) -> Tensor:
        """`forward` of one position, (B, D) to (B, D).

        Args:
            x: Input of the blocks at this position, (B, D).
            caches: Keys and values of the positions before, one cache for each block; those of this
                position are added.
            position: Number of the position, from 0 for the class token.
            prefix: How many positions stand before the class token; `read_prefix` has read them.
            valid: True at real positions, (B, prefix + position + 1) bool; None: all.
        """
        x = x[:, None]
        rotation = None if self.rotation is None else self.rotation[position : position + 1]
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, rotation, valid, cache, prefix + position)
        out: Tensor = self.norm_out(x)[:, 0]
        return out

    def new_caches(self, length: int) -> list[KVCache]:
        """Empty caches for `step`, of so many positions."""
        return [KVCache(length) for _ in self.blocks]

    @property
    def attention(self) -> str:
        """Name of the attention in use, for records."""
        first = self.blocks[0]
        assert isinstance(first, CausalBlock)
        return first.attention

    def set_attention_backend(
        self, backend: AttentionBackend, low_bit_precision: LowBitPrecision | None = None
    ) -> None:
        """Compute attention by this backend from now on; config and files keep theirs.

        Args:
            backend: One of `AttentionBackend` but `low_bit`, which is not causal.
            low_bit_precision: Not read, there is nothing of low bits.

        Raises:
            RuntimeError: If the backend is not installed.
            ValueError: If it is not causal.
        """
        check_backend(backend)
        check_causal(backend)
        for block in self.blocks:
            assert isinstance(block, CausalBlock)
            block.attention = backend
