"""Perceptual distances between images: LPIPS, and a feature distance on any feature network.

`Lpips` is the genuine distance of arXiv:1801.03924 with the v0.1 heads, as metric and as training
loss. `FeatureDistance` compares unit-normalised features without learnt heads, for machines without
the LPIPS weights; its values are on another scale, so report and log the `id` of a distance with
every value.
"""

import os
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .checks import check_images
from .networks.build import FEATURE_NAMES, build_features
from .networks.extractor import MIN_SIDE, FeatureExtractor
from .networks.lpips_trunks import LpipsTrunk
from .networks.weights import available_features

AUTO_ORDER = ("lpips_vgg", "efflite0", "random")
"""Networks that `auto` tries in this order."""


class PerceptualDistance(nn.Module, ABC):
    """A differentiable distance between two image batches; 0 for equal images.

    Attributes:
        id: Kind, network and weights in one string, e.g. `lpips_vgg#2ecbe4ce`.
        extractor: The frozen feature network.
        layers: Names of the layers that are compared.
    """

    def __init__(self, extractor: FeatureExtractor, *, id: str, layers: tuple[str, ...]) -> None:
        super().__init__()
        self.extractor = extractor
        self.id = id
        self.layers = layers
        self._trained = False

    def forward(self, images_a: Tensor, images_b: Tensor) -> Tensor:
        """Distance of each pair of images.

        Args:
            images_a: RGB, float in [-1, 1] or uint8, shape (B, 3, H, W), H, W >= 16 pixels. Images
                that require a gradient are the output of a network in training: they may lie
                outside the range, and are compared as they are, not clamped.
            images_b: The same.

        Returns:
            Float32 distances >= 0, shape (B,). Gradients reach the images that require them; the
            features of the other side keep no graph.

        Raises:
            ValueError: If the shapes differ, or the images are too small, not RGB or out of range.
        """
        if images_a.shape != images_b.shape:
            found = f"{tuple(images_a.shape)} and {tuple(images_b.shape)}"
            raise ValueError(f"images: expected two batches of one shape, found {found}")
        self._check(images_a=images_a, images_b=images_b)
        with torch.autocast(images_a.device.type, enabled=False):
            features_a, features_b = self._features(images_a), self._features(images_b)
            distances = [
                self._layer_distance(layer, features_a[layer], features_b[layer])
                for layer in self.layers
            ]
            return torch.stack(distances).sum(0)

    def _check(self, **sides: Tensor) -> None:
        """Refuse images that are not those of `forward`; as a loss, at its first step only.

        Looking at the values waits for the device, and a training loop does not wait.
        """
        as_loss = torch.is_grad_enabled() and any(images.requires_grad for images in sides.values())
        if not (as_loss and self._trained):
            for name, images in sides.items():
                check_images(images, -1, 1, name=name, min_side=MIN_SIDE)
        self._trained |= as_loss

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        """Features of the compared layers; a graph is kept only if the images need a gradient."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and images.requires_grad):
            if images.dtype != torch.uint8:
                images = images.float().mul(0.5).add_(0.5)
            return self.extractor.collect(images, self.layers)

    @abstractmethod
    def _layer_distance(self, layer: str, features_a: Tensor, features_b: Tensor) -> Tensor:
        """Contribution of one layer to the distance: two maps (B, C, H, W) to (B,)."""


class Lpips(PerceptualDistance):
    """LPIPS v0.1: head-weighted squared difference of unit-normalised taps, summed over five taps.

    Args:
        extractor: The network `lpips_vgg` or `lpips_alex`.

    Raises:
        ValueError: If the extractor has no LPIPS heads.

    Source: arXiv:1801.03924, equation 1; the epsilon is added to the norm, as in the training of
    the weights. Each position's features are divided by their norm over channels.
    """

    NORM_EPS = 1e-10
    extractor: LpipsTrunk

    def __init__(self, extractor: FeatureExtractor) -> None:
        if not isinstance(extractor, LpipsTrunk):
            raise ValueError(
                f"LPIPS needs the network lpips_vgg or lpips_alex, found {extractor.name!r}"
            )
        super().__init__(extractor, id=extractor.id, layers=tuple(extractor.layers))

    def _layer_distance(self, layer: str, features_a: Tensor, features_b: Tensor) -> Tensor:
        difference = _unit(features_a, self.NORM_EPS) - _unit(features_b, self.NORM_EPS)
        # The mean over positions commutes with the 1x1 head: (B, C) @ (C,) is far less work.
        return difference.square().mean((2, 3)) @ self.extractor.head(layer)


class FeatureDistance(PerceptualDistance):
    """Mean over layers of the squared L2 distance between unit-normalised features, in [0, 4].

    Args:
        extractor: Any feature network. Blocks 2, 4, 7 and 10 of `efflite0` are compared (24, 40,
            80, 112 channels; strides 4, 8, 16, 16), and all layers of the other networks.

    This is not LPIPS: it has no learnt heads, so it is not calibrated to human judgements.
    """

    NORM_EPS = 1e-4

    def __init__(self, extractor: FeatureExtractor) -> None:
        layers = tuple(extractor.layers)
        if extractor.name == "efflite0":
            layers = ("block_2", "block_4", "block_7", "block_10")
        label = extractor.name if extractor.name == "random" else extractor.id
        super().__init__(extractor, id=f"features@{label}", layers=layers)

    def _layer_distance(self, layer: str, features_a: Tensor, features_b: Tensor) -> Tensor:
        difference = _unit(features_a, self.NORM_EPS) - _unit(features_b, self.NORM_EPS)
        return difference.square().sum(1).mean((1, 2)) / len(self.layers)


def build_perceptual(
    name: str, *, path: str | os.PathLike[str] | None = None
) -> PerceptualDistance:
    """Build the perceptual distance on a feature network; log its `id`.

    Args:
        name: `lpips_vgg`, `lpips_alex` (LPIPS), `efflite0`, `random` (feature distance), or `auto`:
            the first of lpips_vgg, efflite0, random whose weights are on this machine. Damaged
            weights are an error; the next network is not tried.
        path: Weight file of the network; not with `auto` or `random`.

    Raises:
        ValueError: If the name is unknown, or `auto` is given a path.
        WeightsMissing: If a network asked for by name has no weights on this machine.
        WeightsError: If the weights found cannot be used.
    """
    if name == "auto":
        if path is not None:
            raise ValueError(
                "perceptual distance 'auto' takes no path; name the network of the weight file"
            )
        found = available_features()
        name = next(candidate for candidate in AUTO_ORDER if found[candidate])
    elif name not in FEATURE_NAMES and name.startswith(("lpips", "features")):
        names = ", ".join((*FEATURE_NAMES, "auto"))
        raise ValueError(f"unknown perceptual distance {name!r}; known: {names}")
    extractor = build_features(name, path=path)
    return Lpips(extractor) if isinstance(extractor, LpipsTrunk) else FeatureDistance(extractor)


def _unit(features: Tensor, eps: float) -> Tensor:
    """Divide features by their norm over channels; 0 stays 0 with a finite gradient."""
    unit: Tensor = features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + eps)
    return unit
