"""The Inception network of FID (release of 2015-12-05); only its distances are called FID.

This is InceptionV3 as TensorFlow published it in 2015, which differs from that of other libraries:
average pools do not count their padding, the last block has a max pool, and images are resized in a
special way. Batch
normalisation without a scale (eps 1e-3) is folded into the 94 convolutions in float64.

FID is defined on 8-bit pixels: round images by `data.images.to_uint8` before passing them on.

Source: arXiv:1512.00567 (InceptionV3), arXiv:1706.08500 (FID), arXiv:2103.03841 (sFID).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_images
from .extractor import MIN_SIDE, FeatureExtractor
from .weights import LoadedWeights

NORM_EPS = 1e-3
SIDE = 299
"""Side of the images inside the trunk in pixels."""

_Pool = Literal["none", "average", "max", "halve"]


@dataclass(frozen=True)
class _Conv:
    """One convolution with ReLU; sizes in pixels, `same` = zero padding that keeps the size."""

    outputs: int
    height: int = 1
    width: int = 1
    stride: int = 1
    same: bool = True

    @property
    def padding(self) -> tuple[int, int]:
        """Zero padding (vertical, horizontal) in pixels."""
        return (self.height // 2, self.width // 2) if self.same else (0, 0)


@dataclass(frozen=True)
class _Branch:
    """A pool, then convolutions in sequence, then `ends` in parallel on the last output."""

    convs: tuple[_Conv, ...]
    ends: tuple[_Conv, ...] = ()
    pool: _Pool = "none"

    def channels(self, inputs: int) -> Iterator[tuple[_Conv, int]]:
        """Every convolution with its input channels, in the order of the weights."""
        for conv in self.convs:
            yield conv, inputs
            inputs = conv.outputs
        for conv in self.ends:
            yield conv, inputs

    def outputs(self, inputs: int) -> int:
        """Number of output channels for a number of input channels."""
        if self.ends:
            return sum(conv.outputs for conv in self.ends)
        return self.convs[-1].outputs if self.convs else inputs


_Block = tuple[_Branch, ...]


def _square(outputs: int, kernel: int) -> _Conv:
    return _Conv(outputs, kernel, kernel)


def _halving(outputs: int) -> _Conv:
    return _Conv(outputs, 3, 3, stride=2, same=False)


def _stem(*convs: _Conv, pool: _Pool = "none") -> _Block:
    return (_Branch(convs, pool=pool),)


def _block_5(pooled: int) -> _Block:
    return (
        _Branch((_Conv(64),)),
        _Branch((_Conv(48), _square(64, 5))),
        _Branch((_Conv(64), _square(96, 3), _square(96, 3))),
        _Branch((_Conv(pooled),), pool="average"),
    )


def _block_6(width: int) -> _Block:
    rows, columns = _Conv(width, 1, 7), _Conv(width, 7, 1)
    return (
        _Branch((_Conv(192),)),
        _Branch((_Conv(width), rows, _Conv(192, 7, 1))),
        _Branch((_Conv(width), columns, rows, columns, _Conv(192, 1, 7))),
        _Branch((_Conv(192),), pool="average"),
    )


def _block_7(pool: _Pool) -> _Block:
    ends = (_Conv(384, 1, 3), _Conv(384, 3, 1))
    return (
        _Branch((_Conv(320),)),
        _Branch((_Conv(384),), ends),
        _Branch((_Conv(448), _square(384, 3)), ends),
        _Branch((_Conv(192),), pool=pool),
    )


_BLOCKS: dict[str, _Block] = {
    "1": _stem(_halving(32), _Conv(32, 3, 3, same=False), _square(64, 3)),
    "2": _stem(pool="halve"),
    "3": _stem(_Conv(80), _Conv(192, 3, 3, same=False)),
    "4": _stem(pool="halve"),
    "5b": _block_5(32),
    "5c": _block_5(64),
    "5d": _block_5(64),
    "6a": (
        _Branch((_halving(384),)),
        _Branch((_Conv(64), _square(96, 3), _halving(96))),
        _Branch((), pool="halve"),
    ),
    "6b": _block_6(128),
    "6c": _block_6(160),
    "6d": _block_6(160),
    "6e": _block_6(192),
    "7a": (
        _Branch((_Conv(192), _halving(320))),
        _Branch((_Conv(192), _Conv(192, 1, 7), _Conv(192, 7, 1), _halving(192))),
        _Branch((), pool="halve"),
    ),
    "7b": _block_7("average"),
    "7c": _block_7("max"),
}
_LAYERS = {"2": ("64", 4), "4": ("192", 8), "6e": ("768", 16), "7c": ("2048", 32)}
"""Layers by the block that they end with: name (number of channels) and stride in pixels."""
SPATIAL_CHANNELS = 7
"""Channels of the spatial map, the first of 192 in the first branch of block 6d.

The map has 17 x 17 positions at stride 16.
"""
NUM_SPATIAL = 17 * 17 * SPATIAL_CHANNELS
"""Length of the vectors that sFID compares, 2,023."""
_SPATIAL_BLOCK, _SPATIAL = "6d", "spatial"


def _convs() -> Iterator[tuple[_Conv, int]]:
    """The 94 convolutions with their input channels, in the order of the weights."""
    inputs = 3
    for block in _BLOCKS.values():
        for branch in block:
            yield from branch.channels(inputs)
        inputs = sum(branch.outputs(inputs) for branch in block)


def weight_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of the network: `convs.I.weight|beta|mean|variance`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (conv, inputs) in enumerate(_convs()):
        shapes[f"convs.{i}.weight"] = (conv.outputs, inputs, conv.height, conv.width)
        shapes |= {f"convs.{i}.{f}": (conv.outputs,) for f in ("beta", "mean", "variance")}
    return shapes


class InceptionFid(FeatureExtractor):
    """Inception network with the layers `64`, `192`, `768` and `2048`, named by their channels.

    `pooled` is the 2048-dimensional mean of the last layer. Every image is resized to 299 x 299
    pixels by `resize_tf1`, whatever its size or shape. The `spatial` map of sFID has its own
    methods and is not among `layers`, so that a distance over all layers does not include it.
    """

    def __init__(self, weights: LoadedWeights) -> None:
        weights.expect("inception_fid", weight_shapes())
        super().__init__(
            name="inception_fid",
            layers={layer: (int(layer), stride) for layer, stride in _LAYERS.values()},
            pooled_layers=("2048",),
            weights_id=weights.weights_id,
            resize_rule=f"TF1 bilinear without half-pixel centres to {SIDE} px",
        )
        units = (_Unit(weights, i, conv) for i, (conv, _) in enumerate(_convs()))
        self.blocks = nn.ModuleDict(
            {
                name: nn.ModuleList(_BranchModule(branch, units) for branch in block)
                for name, block in _BLOCKS.items()
            }
        )

    def spatial_features(self, images: Tensor) -> Tensor:
        """Features of sFID: 7 channels at every position of block 6d, after ReLU.

        Args:
            images: RGB, float in [0, 1] or uint8, shape (B, 3, H, W) with H, W >= 16 pixels.

        Returns:
            Float32, shape (B, 2023): rows, columns, channels, channels fastest. Deeper blocks are
            not computed. Gradients reach `images`.

        Raises:
            ValueError: If the images are too small, not RGB or out of range.

        Source: arXiv:2103.03841; the first 7 channels of `mixed_6/conv`, flattened as TensorFlow
        lays them out, as in the evaluator of openai/guided-diffusion.
        """
        return _flat(self._maps(images, (_SPATIAL,))[_SPATIAL])

    def pooled_and_spatial(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`pooled` (B, 2048) and `spatial_features` (B, 2023) in one pass, equal to separate calls.

        Args:
            images: RGB, float in [0, 1] or uint8, shape (B, 3, H, W) with H, W >= 16 pixels.

        Raises:
            ValueError: If the images are too small, not RGB or out of range.
        """
        (deepest,) = self.pooled_layers
        maps = self._maps(images, (_SPATIAL, deepest))
        return maps[deepest].mean((2, 3)), _flat(maps[_SPATIAL])

    def _maps(self, images: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Feature maps as from `forward`, where names may also be `spatial`."""
        check_images(images, 0, 1, min_side=MIN_SIDE)
        return self.collect(images, names)

    def _stages(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        features = (resize_tf1(images * 255, SIDE) - 128) / 128
        for name, block in self.blocks.items():
            assert isinstance(block, nn.ModuleList)
            parts = [part for branch in block for part in branch(features)]
            features = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
            if name in _LAYERS:
                yield _LAYERS[name][0], features
            if name == _SPATIAL_BLOCK:
                yield _SPATIAL, parts[0][:, :SPATIAL_CHANNELS]


class _BranchModule(nn.Module):
    """Module of one `_Branch`, which takes its units from the iterator over all of them."""

    def __init__(self, branch: _Branch, units: "Iterator[_Unit]") -> None:
        super().__init__()
        self.pool = branch.pool
        self.convs = nn.ModuleList(next(units) for _ in branch.convs)
        self.ends = nn.ModuleList(next(units) for _ in branch.ends)

    def forward(self, features: Tensor) -> list[Tensor]:
        features = _pooled(features, self.pool)
        for conv in self.convs:
            features = conv(features)
        return [end(features) for end in self.ends] or [features]


class _Unit(nn.Module):
    """Convolution with the batch normalisation folded in, then ReLU."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weights: LoadedWeights, index: int, conv: _Conv) -> None:
        super().__init__()
        weight, beta, mean, variance = (
            weights.tensors[f"convs.{index}.{field}"].double()
            for field in ("weight", "beta", "mean", "variance")
        )
        scale = (variance + NORM_EPS).rsqrt()
        folded = (weight * scale[:, None, None, None]).float()
        self.register_buffer("weight", folded, persistent=False)
        self.register_buffer("bias", (beta - mean * scale).float(), persistent=False)
        self.stride, self.padding = conv.stride, conv.padding

    def forward(self, features: Tensor) -> Tensor:
        features = F.conv2d(features, self.weight, self.bias, self.stride, self.padding)
        return F.relu(features, inplace=True)


def resize_tf1(images: Tensor, side: int) -> Tensor:
    """Bilinear resize as in TensorFlow 1: output pixel i lies at i * n / side of n pixels.

    There are no half-pixel centres (the picture moves up and left) and no antialiasing; the last
    pixel is repeated beyond the border. Other bilinear resizes change FID by tens of units.

    Args:
        images: Float, shape (B, C, H, W).
        side: Height and width of the result in pixels.

    Returns:
        Shape (B, C, side, side), same dtype; gradients reach `images`.
    """
    for axis in (3, 2):
        size = images.shape[axis]
        if size == side:
            continue
        place = torch.arange(side, device=images.device, dtype=torch.float64) * size / side
        lower = place.long()
        upper = (lower + 1).clamp_max(size - 1)
        weight = (place - lower).to(images.dtype)
        weight = weight if axis == 3 else weight[:, None]
        below, above = images.index_select(axis, lower), images.index_select(axis, upper)
        images = below + (above - below) * weight
    return images


def _flat(features: Tensor) -> Tensor:
    """Flatten (B, C, H, W) to (B, H * W * C), channels fastest."""
    return features.permute(0, 2, 3, 1).flatten(1)


def _pooled(features: Tensor, pool: _Pool) -> Tensor:
    """Pool over windows of 3 pixels: `halve` takes maxima at stride 2, the others keep the size."""
    match pool:
        case "none":
            return features
        case "average":
            return F.avg_pool2d(features, 3, 1, 1, count_include_pad=False)
        case "max":
            return F.max_pool2d(features, 3, 1, 1)
        case "halve":
            return F.max_pool2d(features, 3, 2)
        case _:
            assert_never(pool)
