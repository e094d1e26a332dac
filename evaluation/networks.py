"""The frozen networks of a protocol, and their features and logits of a batch of images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..metrics.networks.build import build_features
from ..metrics.networks.extractor import FeatureExtractor
from ..metrics.networks.inception_fid import InceptionFid
from ..metrics.presets import Preset


@dataclass(frozen=True, eq=False)
class SeenImages:
    """Features and logits of a batch.

    Attributes:
        pooled: Features for the distances, (B, D).
        spatial: Features for sFID, (B, 2023), or None.
        logits: Logits of the classifier, (B, classes), or None.
    """

    pooled: Tensor
    spatial: Tensor | None
    logits: Tensor | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Networks:
    """The frozen networks of a protocol, on one device.

    Attributes:
        extractor: Feature network of the distances.
        classifier: Network of the class score, or None.
    """

    extractor: FeatureExtractor
    classifier: FeatureExtractor | None

    @classmethod
    def of(
        cls, preset: Preset, device: str | torch.device = "cpu", *, features: str | None = None
    ) -> "Networks":
        """The networks that a preset names; all weights are loaded and checked now.

        Args:
            preset: Rules of the protocol.
            device: Device of the networks.
            features: Name of another network for both, which makes another protocol; None: those of
                the preset.

        Raises:
            WeightsMissing: If a network has no weights on this machine; names the command that
                installs them.
            WeightsError: If the weights found are not the known ones.
        """
        extractor = build_features(features or preset.features).to(device)
        wanted = preset.classifier if features in (None, preset.features) else features
        if wanted == extractor.name:
            return cls(extractor=extractor, classifier=extractor if extractor.num_classes else None)
        classifier = None if wanted == "none" else build_features(wanted).to(device)
        return cls(extractor=extractor, classifier=classifier)

    @property
    def classifier_id(self) -> str:
        """Name and weights of the classifier, or `none`."""
        return "none" if self.classifier is None else self.classifier.id

    @property
    def has_spatial(self) -> bool:
        """Whether sFID can be measured."""
        return isinstance(self.extractor, InceptionFid)

    @torch.no_grad()
    def look(self, pixels: Tensor) -> SeenImages:
        """Features and logits of 8-bit images (B, 3, H, W), on any device."""
        device = next(self.extractor.buffers()).device
        images, spatial, logits = pixels.to(device).float() / 255, None, None
        if isinstance(self.extractor, InceptionFid):
            pooled, spatial = self.extractor.pooled_and_spatial(images)
        else:
            pooled = self.extractor.pooled(images)
        if self.classifier is not None:
            same = self.classifier is self.extractor
            seen = pooled if same else self.classifier.pooled(images)
            logits = self.classifier.class_logits(seen)
        return SeenImages(pooled, spatial, logits)
