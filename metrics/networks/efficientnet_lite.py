"""EfficientNet-Lite0: a small ImageNet classifier (4.65 M parameters) as feature network.

Inverted residual blocks with ReLU6 and no squeeze-excite. Batch normalisation (eps 1e-3) is folded
into the convolutions in float64 when the network is built. Padding is that of TensorFlow's "same"
for even sizes: stride 2 pads one pixel more right and below than left and above.

Source: arXiv:1905.11946 (EfficientNet), in the "lite" variant that TensorFlow published for phones.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from .extractor import FeatureExtractor, FrozenConv, FrozenLinear, enlarged
from .weights import LoadedWeights

NORM_EPS = 1e-3
MIN_TRUNK_SIDE, MULTIPLE = 64, 32


@dataclass(frozen=True)
class _Group:
    """Blocks of one width; only the first has the stride (pixels) and changes the channels."""

    num_blocks: int
    outputs: int
    kernel: int
    stride: int
    expansion: int = 6


_STEM, _HEAD, _CLASSES = 32, 1280, 1000
_GROUPS = (
    _Group(1, 16, 3, 1, expansion=1),
    _Group(2, 24, 3, 2),
    _Group(2, 40, 5, 2),
    _Group(3, 80, 3, 2),
    _Group(3, 112, 5, 1),
    _Group(4, 192, 5, 2),
    _Group(1, 320, 3, 1),
)


@dataclass(frozen=True)
class _Plan:
    """One inverted residual block; all sizes in channels or pixels."""

    inputs: int
    hidden: int
    outputs: int
    kernel: int
    stride: int


def _plans() -> tuple[_Plan, ...]:
    """Sizes of all blocks in order of depth."""
    plans, inputs = [], _STEM
    for group in _GROUPS:
        for i in range(group.num_blocks):
            stride = group.stride if i == 0 else 1
            hidden = inputs * group.expansion
            plans.append(_Plan(inputs, hidden, group.outputs, group.kernel, stride))
            inputs = group.outputs
    return tuple(plans)


def weight_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of EfficientNet-Lite0."""
    kernels: dict[str, tuple[int, ...]] = {"stem": (_STEM, 3, 3, 3)}
    plans = _plans()
    for i, plan in enumerate(plans):
        if plan.hidden != plan.inputs:
            kernels[f"blocks.{i}.expand"] = (plan.hidden, plan.inputs, 1, 1)
        kernels[f"blocks.{i}.depthwise"] = (plan.hidden, 1, plan.kernel, plan.kernel)
        kernels[f"blocks.{i}.project"] = (plan.outputs, plan.hidden, 1, 1)
    kernels["head"] = (_HEAD, plans[-1].outputs, 1, 1)
    shapes: dict[str, tuple[int, ...]] = {}
    for unit, kernel in kernels.items():
        shapes[f"{unit}.weight"] = kernel
        shapes |= {f"{unit}.{f}": kernel[:1] for f in ("gamma", "beta", "mean", "variance")}
    return shapes | {"classifier.weight": (_CLASSES, _HEAD), "classifier.bias": (_CLASSES,)}


class EfficientNetLite0(FeatureExtractor):
    """EfficientNet-Lite0 with the layers `block_0` to `block_15` (linear outputs) and `head`.

    `pooled` is the 1280-dimensional mean of `head`, from which `class_logits` computes the 1,000
    ImageNet classes (trained on 224 x 224 pixels).

    Images are enlarged (bilinear) so that the shorter side has at least 64 pixels and both sides
    are multiples of 32; sizes that already fit pass unchanged. Nothing is ever shrunk.
    """

    def __init__(self, weights: LoadedWeights) -> None:
        weights.expect("efflite0", weight_shapes())
        plans, stride = _plans(), 2
        layers = {}
        for i, plan in enumerate(plans):
            stride *= plan.stride
            layers[f"block_{i}"] = (plan.outputs, stride)
        super().__init__(
            name="efflite0",
            layers=layers | {"head": (_HEAD, stride)},
            pooled_layers=("head",),
            weights_id=weights.weights_id,
            resize_rule=f"bilinear up to >= {MIN_TRUNK_SIDE} px and multiples of {MULTIPLE}",
            classifier=FrozenLinear(
                weights.tensors["classifier.weight"], weights.tensors["classifier.bias"]
            ),
        )
        self.stem = _folded(weights, "stem", kernel=3, stride=2)
        self.blocks = nn.ModuleList(_Block(weights, i, plan) for i, plan in enumerate(plans))
        self.head = _folded(weights, "head")

    def _stages(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        images = enlarged(images, MIN_TRUNK_SIDE, MULTIPLE)
        features = F.relu6(self.stem((images * 255 - 127) / 128), inplace=True)
        for i, block in enumerate(self.blocks):
            features = block(features)
            yield f"block_{i}", features
        yield "head", F.relu6(self.head(features), inplace=True)


class _Block(nn.Module):
    """Expand 1x1, depthwise, project 1x1; the input is added where stride and channels allow."""

    def __init__(self, weights: LoadedWeights, index: int, plan: _Plan) -> None:
        super().__init__()
        name = f"blocks.{index}"
        self.expand = _folded(weights, f"{name}.expand") if plan.hidden != plan.inputs else None
        self.depthwise = _folded(
            weights,
            f"{name}.depthwise",
            kernel=plan.kernel,
            stride=plan.stride,
            groups=plan.hidden,
        )
        self.project = _folded(weights, f"{name}.project")
        self.residual = plan.stride == 1 and plan.inputs == plan.outputs

    def forward(self, features: Tensor) -> Tensor:
        hidden: Tensor = features
        if self.expand is not None:
            hidden = F.relu6(self.expand(hidden), inplace=True)
        hidden = self.project(F.relu6(self.depthwise(hidden), inplace=True))
        return hidden.add_(features) if self.residual else hidden


def _folded(
    weights: LoadedWeights, unit: str, *, kernel: int = 1, stride: int = 1, groups: int = 1
) -> FrozenConv:
    """Fold a convolution and the batch normalisation after it into one convolution."""
    get = {
        field: weights.tensors[f"{unit}.{field}"].double()
        for field in ("weight", "gamma", "beta", "mean", "variance")
    }
    scale = get["gamma"] / (get["variance"] + NORM_EPS).sqrt()
    weight = (get["weight"] * scale[:, None, None, None]).float()
    bias = (get["beta"] - get["mean"] * scale).float()
    before = (kernel - stride) // 2
    padding = (before, kernel - stride - before) if kernel > 1 else (0, 0)
    return FrozenConv(weight, bias, stride=stride, padding=padding, groups=groups)
