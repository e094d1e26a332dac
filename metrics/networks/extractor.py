"""The interface of every frozen feature network: one input contract, named layers, pooled vectors.

Images are RGB, float in [0, 1] or uint8; each network does its own resizing and conversion of range
and channel order. Weights are non-persistent buffers: a network has no parameters that an optimizer
could find, and its weights are not stored in a checkpoint of a module that contains it.
"""

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_images

MIN_SIDE = 16
"""Smallest image side, in pixels, that every extractor accepts."""


class FeatureExtractor(nn.Module, ABC):
    """A frozen network from images to named feature maps.

    Attributes:
        name: Short name used in metric names, e.g. `efflite0`.
        layers: Layer name -> (channels, stride), in order of depth. Strides are in pixels of the
            image after `resize_rule`.
        num_features: Length D of the vectors that `pooled` returns.
        weights_id: First 8 hexadecimal digits of a SHA-256 of the weights; `-fp16` follows when
            they were stored in half precision.
        resize_rule: Resizing of images inside the network, in words; `none` if there is none.
        num_classes: Length of the vectors that `class_logits` returns; 0 = no classifier.
    """

    def __init__(
        self,
        *,
        name: str,
        layers: Mapping[str, tuple[int, int]],
        pooled_layers: Collection[str],
        weights_id: str,
        resize_rule: str = "none",
        classifier: "FrozenLinear | None" = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.layers = dict(layers)
        self.pooled_layers = tuple(pooled_layers)
        self.num_features = sum(self.layers[layer][0] for layer in self.pooled_layers)
        self.weights_id = weights_id
        self.resize_rule = resize_rule
        self.classifier = classifier
        self.num_classes = 0 if classifier is None else len(classifier.bias)
        self.training = False

    @property
    def id(self) -> str:
        """Name and weights in one string, e.g. `efflite0#57934424`."""
        return f"{self.name}#{self.weights_id}"

    def forward(self, images: Tensor, layers: Collection[str] | None = None) -> dict[str, Tensor]:
        """Feature maps of the requested layers, in order of depth.

        Args:
            images: RGB, float in [0, 1] or uint8, shape (B, 3, H, W) with H, W >= 16 pixels.
                Computed in float32 with autocast off. Images that require a gradient are the
                output of a network in training and may lie outside [0, 1].
            layers: Names from `self.layers`; None = all. Deeper layers are not computed.

        Returns:
            Layer name -> features, shape (B, channels, H', W'). Gradients reach `images`.

        Raises:
            ValueError: If the images are too small, not RGB or out of range, or a layer does not
                exist.
        """
        check_images(images, 0, 1, min_side=MIN_SIDE)
        wanted = set(self.layers if layers is None else layers)
        if unknown := wanted - set(self.layers):
            raise ValueError(
                f"{self.name}: no layer {sorted(unknown)}; layers: {', '.join(self.layers)}"
            )
        return self.collect(images, wanted)

    def collect(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Feature maps as from `forward`, without its checks.

        Args:
            images: RGB, float around [0, 1] or uint8, shape (B, 3, H, W).
            wanted: Names of the layers.
        """
        features: dict[str, Tensor] = {}
        images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        if images.device.type == "cpu":  # measured: 1.2 to 1.7 times faster there
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, enabled=False), _full_float32(images.device):
            for layer, feature in self._stages(images):
                if layer in wanted:
                    features[layer] = feature
                if len(features) == len(wanted):
                    break
        return features

    def pooled(self, images: Tensor) -> Tensor:
        """Spatial means of the pooled layers, concatenated: one vector per image.

        Args:
            images: RGB, float in [0, 1] or uint8, shape (B, 3, H, W) with H, W >= 16 pixels.

        Returns:
            Float32 features, shape (B, num_features).

        Raises:
            ValueError: If the images are too small, not RGB or out of range.
        """
        features = self(images, self.pooled_layers)
        means = [features[layer].mean((2, 3)) for layer in self.pooled_layers]
        return torch.cat(means, 1) if len(means) > 1 else means[0]

    def class_logits(self, pooled: Tensor) -> Tensor:
        """Class scores before the softmax from the result of `pooled`, so one pass gives both.

        Args:
            pooled: Pooled features, shape (B, num_features), any float dtype; computed in float32.

        Returns:
            Logits, shape (B, num_classes), in the class order of the network's training set.

        Raises:
            ValueError: If the network has no classifier, or `pooled` has another shape.
        """
        if self.classifier is None:
            raise ValueError(f"{self.name} has no classifier (num_classes = 0)")
        if pooled.ndim != 2 or pooled.shape[1] != self.num_features:
            expected = f"(B, {self.num_features})"
            raise ValueError(f"pooled: expected shape {expected}, found {tuple(pooled.shape)}")
        with torch.autocast(pooled.device.type, enabled=False):
            logits: Tensor = self.classifier(pooled.float())
            return logits

    def train(self, mode: bool = True) -> Self:
        """Keep the network in evaluation mode whatever `mode` is: it is frozen."""
        return super().train(False)

    @abstractmethod
    def _stages(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield names and features of the layers in order of depth, computed on demand."""


def _full_float32(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Context without TF32 convolutions, CUDA's default: 10 bits of mantissa change FID."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=True,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    )


class FrozenConv(nn.Module):
    """A convolution whose weight and bias are constants; padding may differ per side.

    Args:
        weight: Kernel, shape (out, in / groups, k, k).
        bias: Bias, shape (out,).
        stride: Step in pixels.
        padding: Zeros (before, after) both axes, in pixels.
        groups: Number of channel groups.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        *,
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.stride, self.padding, self.groups = stride, padding, groups

    def forward(self, images: Tensor) -> Tensor:
        """Convolve images (B, C, H, W)."""
        before, after = self.padding
        if before != after:
            images = F.pad(images, (before, after, before, after))
            before = 0
        return F.conv2d(images, self.weight, self.bias, self.stride, before, 1, self.groups)


class FrozenLinear(nn.Module):
    """A linear layer whose weight and bias are constants.

    Args:
        weight: Matrix, shape (out, in).
        bias: Bias, shape (out,).
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (..., in) to (..., out)."""
        return F.linear(features, self.weight, self.bias)


def enlarged(images: Tensor, min_side: int, multiple: int) -> Tensor:
    """Enlarge images (bilinear) as far as a trunk needs; no image is shrunk.

    Args:
        images: Images, shape (B, C, H, W).
        min_side: Smallest shorter side of the result in pixels.
        multiple: Number of pixels of which both sides of the result are multiples.

    Returns:
        Images, shape (B, C, H', W'), unchanged if they fit; gradients reach `images`.
    """
    height, width = images.shape[2:]
    scale = max(1.0, min_side / min(height, width))
    size = [multiple * math.ceil(side * scale / multiple - 1e-9) for side in (height, width)]
    if size == [height, width]:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)
