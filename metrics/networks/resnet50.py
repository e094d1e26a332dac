"""ResNet50 v1: an ImageNet classifier (25.6 M parameters) as feature network and for class scores.

This is the first version of the network, with the weights that Keras publishes: the stride of a
stage is in the first 1x1 convolution of its first block and in that block's shortcut, and
convolutions have biases. Batch normalisation (eps 1e-3) is folded into the convolutions in float64
when the network is built.

Source: arXiv:1512.03385.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .extractor import FeatureExtractor, FrozenConv, FrozenLinear, enlarged
from .weights import LoadedWeights

NORM_EPS = 1e-3
MIN_TRUNK_SIDE, MULTIPLE = 128, 32
"""Smallest shorter side, and divisor of both sides, in pixels.

On three photographs shrunk to 32 and 64 pixels, the right class got a probability of at least .77
after enlarging to 128 pixels; at 64 one was misclassified, at 224 the probability fell to .18.
"""

_MEANS = (123.68, 116.779, 103.939)  # of red, green and blue over ImageNet, in [0, 255]
_STEM, _CLASSES = 64, 1000
_STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
"""Blocks and inner channels of each stage; its output has four times as many channels."""
EXPANSION = 4


def weight_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of ResNet50.

    Units are `stem` and `stages.S.B.reduce|conv|expand|shortcut`, S and B counted from 0.
    """
    kernels: dict[str, tuple[int, ...]] = {"stem": (_STEM, 3, 7, 7)}
    inputs = _STEM
    for stage, (num_blocks, hidden) in enumerate(_STAGES):
        for block in range(num_blocks):
            name, outputs = f"stages.{stage}.{block}", hidden * EXPANSION
            kernels[f"{name}.reduce"] = (hidden, inputs, 1, 1)
            kernels[f"{name}.conv"] = (hidden, hidden, 3, 3)
            kernels[f"{name}.expand"] = (outputs, hidden, 1, 1)
            if block == 0:
                kernels[f"{name}.shortcut"] = (outputs, inputs, 1, 1)
            inputs = outputs
    shapes: dict[str, tuple[int, ...]] = {}
    for unit, kernel in kernels.items():
        shapes[f"{unit}.weight"] = kernel
        fields = ("bias", "gamma", "beta", "mean", "variance")
        shapes |= {f"{unit}.{field}": kernel[:1] for field in fields}
    return shapes | {"classifier.weight": (_CLASSES, inputs), "classifier.bias": (_CLASSES,)}


class ResNet50(FeatureExtractor):
    """ResNet50 with the layers `stage_1` to `stage_4` (strides 4 to 32).

    `pooled` is the 2048-dimensional mean of the last layer, from which `class_logits` computes the
    1,000 ImageNet classes (trained on 224 x 224 pixels).

    Images are enlarged (bilinear) so that the shorter side has at least 128 pixels and both sides
    are multiples of 32; sizes that already fit pass unchanged. Nothing is ever shrunk.
    """

    means: Tensor

    def __init__(self, weights: LoadedWeights) -> None:
        weights.expect("resnet50", weight_shapes())
        layers = {
            f"stage_{i + 1}": (hidden * EXPANSION, 4 * 2**i)
            for i, (_, hidden) in enumerate(_STAGES)
        }
        super().__init__(
            name="resnet50",
            layers=layers,
            pooled_layers=("stage_4",),
            weights_id=weights.weights_id,
            resize_rule=f"bilinear up to >= {MIN_TRUNK_SIDE} px and multiples of {MULTIPLE}",
            classifier=FrozenLinear(
                weights.tensors["classifier.weight"], weights.tensors["classifier.bias"]
            ),
        )
        self.register_buffer("means", torch.tensor(_MEANS)[:, None, None], persistent=False)
        self.stem = _folded(weights, "stem", stride=2, padding=3)
        self.stages = nn.ModuleList(
            nn.Sequential(*(_Block(weights, stage, block) for block in range(num_blocks)))
            for stage, (num_blocks, _) in enumerate(_STAGES)
        )

    def _stages(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        pixels = enlarged(images, MIN_TRUNK_SIDE, MULTIPLE) * 255 - self.means
        features = F.relu(self.stem(pixels.flip(1)), inplace=True)  # blue first
        features = F.max_pool2d(features, 3, 2, 1)
        for layer, stage in zip(self.layers, self.stages, strict=True):
            features = stage(features)
            yield layer, features


class _Block(nn.Module):
    """Reduce 1x1, convolve 3x3, expand 1x1, and add the input or its 1x1 shortcut."""

    def __init__(self, weights: LoadedWeights, stage: int, block: int) -> None:
        super().__init__()
        name, stride = f"stages.{stage}.{block}", 2 if block == 0 and stage > 0 else 1
        self.reduce = _folded(weights, f"{name}.reduce", stride=stride)
        self.conv = _folded(weights, f"{name}.conv", padding=1)
        self.expand = _folded(weights, f"{name}.expand")
        self.shortcut = _folded(weights, f"{name}.shortcut", stride=stride) if block == 0 else None

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.relu(self.reduce(features), inplace=True)
        hidden = self.expand(F.relu(self.conv(hidden), inplace=True))
        shortcut = features if self.shortcut is None else self.shortcut(features)
        return F.relu(hidden.add_(shortcut), inplace=True)


def _folded(weights: LoadedWeights, unit: str, *, stride: int = 1, padding: int = 0) -> FrozenConv:
    """Fold a convolution with bias and the batch normalisation after it into one convolution."""
    get = {
        field: weights.tensors[f"{unit}.{field}"].double()
        for field in ("weight", "bias", "gamma", "beta", "mean", "variance")
    }
    scale = get["gamma"] / (get["variance"] + NORM_EPS).sqrt()
    weight = (get["weight"] * scale[:, None, None, None]).float()
    bias = (get["beta"] + (get["bias"] - get["mean"]) * scale).float()
    return FrozenConv(weight, bias, stride=stride, padding=(padding, padding))
