"""VGG16 and AlexNet for LPIPS: ImageNet trunks with five taps, and the LPIPS v0.1 heads.

Source: arXiv:1801.03924 (LPIPS), arXiv:1409.1556 (VGG), arXiv:1404.5997 (AlexNet). The distance
itself is `perceptual.Lpips`. The shift and scale that LPIPS applies to images in [-1, 1] are, for
our images in [0, 1], the usual ImageNet mean and standard deviation.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .extractor import FeatureExtractor, FrozenConv
from .weights import LoadedWeights

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class _Conv:
    """One convolution with ReLU; sizes in pixels, `pool` = window of a stride-2 max pool before."""

    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pool: int = 0
    tap: str = ""


_VGG = (
    _Conv(3, 64),
    _Conv(64, 64, tap="relu1_2"),
    _Conv(64, 128, pool=2),
    _Conv(128, 128, tap="relu2_2"),
    _Conv(128, 256, pool=2),
    _Conv(256, 256),
    _Conv(256, 256, tap="relu3_3"),
    _Conv(256, 512, pool=2),
    _Conv(512, 512),
    _Conv(512, 512, tap="relu4_3"),
    _Conv(512, 512, pool=2),
    _Conv(512, 512),
    _Conv(512, 512, tap="relu5_3"),
)
_ALEX = (
    _Conv(3, 64, kernel=11, stride=4, padding=2, tap="relu1"),
    _Conv(64, 192, kernel=5, padding=2, pool=3, tap="relu2"),
    _Conv(192, 384, pool=3, tap="relu3"),
    _Conv(384, 256, tap="relu4"),
    _Conv(256, 256, tap="relu5"),
)


class LpipsTrunk(FeatureExtractor):
    """VGG16 or AlexNet with the five LPIPS taps; `pooled` is the mean of every tap, concatenated.

    Use `VggFeatures` or `AlexFeatures`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, weights: LoadedWeights, *, name: str, plan: tuple[_Conv, ...], resize_rule: str
    ) -> None:
        weights.expect(name, _shapes(plan))
        layers, stride = {}, 1
        for conv in plan:
            stride *= conv.stride * (2 if conv.pool else 1)
            if conv.tap:
                layers[conv.tap] = (conv.outputs, stride)
        super().__init__(
            name=name,
            layers=layers,
            pooled_layers=tuple(layers),
            weights_id=weights.weights_id,
            resize_rule=resize_rule,
        )
        tensors = weights.tensors
        self.plan = plan
        self.convs = nn.ModuleList(
            FrozenConv(
                tensors[f"convs.{i}.weight"],
                tensors[f"convs.{i}.bias"],
                stride=conv.stride,
                padding=(conv.padding, conv.padding),
            )
            for i, conv in enumerate(plan)
        )
        for i, layer in enumerate(layers):
            self.register_buffer(f"head_{layer}", tensors[f"heads.{i}"], persistent=False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def head(self, layer: str) -> Tensor:
        """LPIPS v0.1 channel weights of one tap, non-negative, shape (C,)."""
        return self.get_buffer(f"head_{layer}")

    def _stages(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        features = (self._resize(images) - self.mean) / self.std
        for conv, module in zip(self.plan, self.convs, strict=True):
            if conv.pool:
                features = F.max_pool2d(features, conv.pool, 2)
            features = F.relu(module(features), inplace=True)
            if conv.tap:
                yield conv.tap, features

    def _resize(self, images: Tensor) -> Tensor:
        """Resize images as the trunk needs them; by default they pass unchanged."""
        return images


class VggFeatures(LpipsTrunk):
    """VGG16, taps relu1_2 to relu5_3 at strides 1 to 16; images (sides >= 16) keep their size.

    Source: arXiv:1409.1556, configuration D.
    """

    def __init__(self, weights: LoadedWeights) -> None:
        super().__init__(weights, name="lpips_vgg", plan=_VGG, resize_rule="none")


class AlexFeatures(LpipsTrunk):
    """AlexNet, taps after its five ReLUs at strides 4 to 16.

    The trunk needs 31 pixels: images with a side of 16 to 30 are doubled (bilinear, pixel centres
    aligned by halves); all others pass unchanged. Up to about 64 pixels the last taps have very few
    positions, so prefer VGG there.

    Source: arXiv:1404.5997.
    """

    MIN_TRUNK_SIDE = 31

    def __init__(self, weights: LoadedWeights) -> None:
        rule = "bilinear x2 below 31 px"
        super().__init__(weights, name="lpips_alex", plan=_ALEX, resize_rule=rule)

    def _resize(self, images: Tensor) -> Tensor:
        if min(images.shape[2:]) >= self.MIN_TRUNK_SIDE:
            return images
        return F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)


def _shapes(plan: tuple[_Conv, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a trunk with its heads."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, conv in enumerate(plan):
        shapes[f"convs.{i}.weight"] = (conv.outputs, conv.inputs, conv.kernel, conv.kernel)
        shapes[f"convs.{i}.bias"] = (conv.outputs,)
    taps = [conv for conv in plan if conv.tap]
    return shapes | {f"heads.{i}": (conv.outputs,) for i, conv in enumerate(taps)}
