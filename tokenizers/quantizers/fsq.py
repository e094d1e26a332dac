"""FSQ, finite scalar quantization: each channel is bounded and rounded to a few levels.

No codebook, no auxiliary loss. Dimension 0 is the least significant of the joint index, as in the
reference code of arXiv:2309.15505. Even numbers of levels are asymmetric: 8 levels are -1, -0.75,
..., 0.75. The symmetric variant (`symmetric: true`) spaces the levels evenly over [-1, 1], and
allows 2 levels.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ...building import derive
from ...config import STRICT
from ..base import Quantizer, QuantizerOutput, finite_latents, float_latents, settled
from .vector import straight_through

_MARGIN = 1e-3
"""Share by which the bound exceeds the outer level, so that rounding reaches it (section 3.1)."""


@dataclass(frozen=True, kw_only=True)
class FSQConfig:
    """Settings of `FSQ`.

    Args:
        levels: Number of levels of each dimension, 3 to 256 each (2 with `symmetric`); the number
            of dimensions is the latent width. Usual: (8, 6, 5), (8, 5, 5, 5), (7, 5, 5, 5, 5),
            (8, 8, 8, 5, 5, 5).
        symmetric: Space even numbers of levels evenly over [-1, 1] as well.
    """

    __pydantic_config__ = STRICT
    type: Literal["fsq"] = "fsq"
    levels: tuple[int, ...]
    symmetric: bool = False

    def __post_init__(self) -> None:
        least = 2 if self.symmetric else 3
        if not self.levels or not all(least <= level <= 256 for level in self.levels):
            raise ValueError(f"levels: expected {least} to 256 each, found {list(self.levels)}")


class FSQ(Quantizer):
    """Levels nearest to the bounded latents (B, N, d); quantized values lie in [-1, 1].

    Example:
        >>> fsq = FSQ(FSQConfig(levels=(8, 5)))
        >>> indices = fsq.encode(torch.tensor([[[0.0, 2.0]]]))
        >>> indices.tolist(), fsq.lookup(indices).tolist()
        ([[[4, 4]]], [[[0.0, 1.0]]])
    """

    levels: Tensor

    def __init__(self, config: FSQConfig | None = None, **settings: Any) -> None:
        super().__init__()
        self.config = config = settled(FSQConfig, config, settings)
        self.dim = len(config.levels)
        self.codebook_sizes = config.levels
        # Integers, so that converting the module to half precision leaves the bound exact.
        derive(self, "levels", partial(torch.tensor, config.levels), (self.dim,))

    def forward(self, latents: Tensor) -> QuantizerOutput:
        """Rounded levels with the gradient of the bound: amplitude * (1 - tanh**2) / step."""
        with torch.autocast(latents.device.type, enabled=False):
            coordinates = self._coordinates(float_latents(latents))
            indices = torch.round(coordinates.detach().nan_to_num(0)).long()
            soft = self._values(coordinates)
            return QuantizerOutput(straight_through(soft, self._values(indices)), indices, {})

    def encode(self, latents: Tensor) -> Tensor:
        """Level numbers (B, N, d); 0 is the lowest level."""
        with torch.autocast(latents.device.type, enabled=False):
            return torch.round(self._coordinates(finite_latents(latents))).long()

    def lookup(self, indices: Tensor) -> Tensor:
        """Values (B, N, d) float32 of level numbers (B, N, d)."""
        return self._values(indices)

    def _values(self, coordinates: Tensor) -> Tensor:
        """Values of points of the level axis, 0 at the middle level or the middle of the axis."""
        center = (self.levels - 1) / 2 if self.config.symmetric else self.levels // 2
        return (coordinates.float() - center) / center

    def _coordinates(self, z: Tensor) -> Tensor:
        """Bound latents to the level axis, on which level c is the point c (section 3.1)."""
        amplitude = (self.levels - 1) / 2
        if self.config.symmetric:
            return torch.tanh(z) * amplitude + amplitude
        amplitude, offset = amplitude * (1 + _MARGIN), (self.levels % 2 == 0) / 2
        shift = torch.atanh(offset / amplitude)
        return torch.tanh(z + shift) * amplitude + (self.levels // 2 - offset)
