"""The head of BiGR (arXiv:2410.14672): a small MLP that denoises the bits of one token.

Each token is denoised on its own, given the trunk's output at its position; the bits of a token are
coupled through the MLP alone. It knows nothing of the process, which is in
`generators/processes/bernoulli.py`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...config import STRICT

_NORM_EPS = 1e-6
_TIME_CHANNELS = 256
_LONGEST_PERIOD = 10_000.0


@dataclass(frozen=True, kw_only=True)
class BinaryTranscoderConfig:
    """Settings of `BinaryTranscoder`. The defaults are those of the published BiGR-L.

    Args:
        width: Width W of the hidden states.
        num_blocks: Number of blocks.
    """

    __pydantic_config__ = STRICT
    width: int = 1024
    num_blocks: int = 3

    def __post_init__(self) -> None:
        for name in ("width", "num_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")


class TranscoderBlock(nn.Module):
    """Two linear layers with their residual sum: shift, scale and gate come from the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp_in = nn.Linear(width, width)
        self.mlp_out = nn.Linear(width, width)
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Hidden states (..., W) of hidden states and the condition after its SiLU, (..., W)."""
        shift, scale, gate = self.modulation(condition).chunk(3, -1)
        out: Tensor = x + gate * self.mlp_out(F.silu(self.mlp_in(_norm(x) * (1 + scale) + shift)))
        return out


class BinaryTranscoder(nn.Module):
    """One logit per bit of x_t, from the bits of a token, a time and a condition.

    Args:
        config: Settings.
        num_bits: Number of bits K of a token.
        condition_width: Width D of the conditions.
    """

    def __init__(self, config: BinaryTranscoderConfig, num_bits: int, condition_width: int) -> None:
        super().__init__()
        width = config.width
        self.input = nn.Linear(num_bits, width)
        self.condition = nn.Linear(condition_width, width)
        self.time_in = nn.Linear(_TIME_CHANNELS, width)
        self.time_out = nn.Linear(width, width)
        self.blocks = nn.ModuleList(TranscoderBlock(width) for _ in range(config.num_blocks))
        self.modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, num_bits)

    def forward(self, bits: Tensor, t: Tensor, conditions: Tensor) -> Tensor:
        """Logits (..., K), float32 also under autocast: their confidences are compared.

        Args:
            bits: Noisy bits x_t, (..., K) int64 in {0, 1}.
            t: Times in [1, T], int64 of a shape that broadcasts over that of the tokens.
            conditions: Conditions of the tokens, (..., D).
        """
        sinusoid = time_sinusoid(t - 1).to(self.time_in.weight.dtype)
        time = self.time_out(F.silu(self.time_in(sinusoid)))
        condition = F.silu(self.condition(conditions.to(time.dtype)) + time)
        x = self.input((2 * bits - 1).to(self.input.weight.dtype))
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition).chunk(2, -1)
        x = _norm(x) * (1 + scale) + shift
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.output.weight.float(), self.output.bias.float())

    @torch.no_grad()
    def start_at_zero(self) -> None:
        """Set modulations and output to 0, so that every bit is predicted to be in doubt."""
        for block in self.blocks:
            assert isinstance(block, TranscoderBlock)
            nn.init.zeros_(block.modulation.weight)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.output.weight)


def time_sinusoid(time: Tensor) -> Tensor:
    """Cosines, then sines, of whole numbers of steps at 128 frequencies, (..., 256) float32."""
    half = _TIME_CHANNELS // 2
    places = torch.arange(half, device=time.device)
    frequencies = torch.exp(places * -(math.log(_LONGEST_PERIOD) / half))
    angles = time.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


def _norm(x: Tensor) -> Tensor:
    """LayerNorm without weights."""
    return F.layer_norm(x, x.shape[-1:], eps=_NORM_EPS)
