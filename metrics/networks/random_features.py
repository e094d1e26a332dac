"""A fixed random feature network that needs no weight file, for tests and as a last resort.

Four 3x3 convolutions of stride 2 with orthogonal kernels and leaky ReLU. The weights come from
NumPy's frozen `RandomState` stream and are rounded to a grid of 2^-12, so every machine builds the
same network whatever its linear algebra library. Distances on random features rank severe
degradations but do not measure quality, and every metric computed with them has `random` in its
name.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .extractor import FeatureExtractor, FrozenConv
from .weights import content_hash

CHANNELS = (32, 64, 96, 128)
SEED = 0
GRID = 2.0**12
LEAK = 0.2
BIAS_SCALE = 0.1


class RandomFeatures(FeatureExtractor):
    """Random network with the layers `stage_1` to `stage_4` at strides 2 to 16.

    `pooled` is the means of all four layers, concatenated.
    """

    def __init__(self) -> None:
        tensors = random_weights()
        layers = {f"stage_{i + 1}": (width, 2 ** (i + 1)) for i, width in enumerate(CHANNELS)}
        super().__init__(
            name="random",
            layers=layers,
            pooled_layers=tuple(layers),
            weights_id=content_hash(tensors)[:8],
        )
        self.convs = nn.ModuleList(
            FrozenConv(
                tensors[f"convs.{i}.weight"], tensors[f"convs.{i}.bias"], stride=2, padding=(1, 1)
            )
            for i in range(len(CHANNELS))
        )

    def _stages(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        features = images * 2 - 1
        for layer, conv in zip(self.layers, self.convs, strict=True):
            features = F.leaky_relu(conv(features), LEAK, inplace=True)
            yield layer, features


def random_weights() -> dict[str, Tensor]:
    """Kernels and biases of the network, float32, always the same."""
    stream = np.random.RandomState(SEED)  # not default_rng: only this stream never changes
    gain = np.sqrt(2 / (1 + LEAK**2))  # keeps the variance through a leaky ReLU
    tensors: dict[str, Tensor] = {}
    inputs = 3
    for i, outputs in enumerate(CHANNELS):
        draw = stream.standard_normal((outputs, inputs * 9))
        wide = outputs > inputs * 9
        basis, triangle = np.linalg.qr(draw if wide else draw.T)
        basis = basis * np.sign(np.diag(triangle))
        kernel = (basis if wide else basis.T) * gain
        bias = stream.standard_normal(outputs) * BIAS_SCALE
        tensors[f"convs.{i}.weight"] = _on_grid(kernel).reshape(outputs, inputs, 3, 3)
        tensors[f"convs.{i}.bias"] = _on_grid(bias)
        inputs = outputs
    return tensors


def _on_grid(values: np.ndarray) -> Tensor:
    """Round values to multiples of 1 / `GRID`."""
    return torch.from_numpy((np.round(values * GRID) / GRID).astype(np.float32))
