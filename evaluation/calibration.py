"""Calibration of the metrics of pairs: what noise gets, and what real images get, here.

Precision, recall, density and coverage depend on how a network places images: where all of them lie
close together, pure noise lies in the manifold of photographs. So noise is measured against each
reference, and one half of the reference against the other; metrics by which noise does not stay
clearly below real images are not given. What a network sees of the noise is cached under
`$TESSELLA_CACHE/noise`; the rest is computed from the features of the reference, which are cached.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import atomic_file
from ..metrics.feature_bank import FeatureBank
from ..metrics.manifold import manifold_metrics
from ..metrics.networks.extractor import FeatureExtractor
from ..metrics.networks.weights import cache_root, content_hash
from .evaluation import FEW_IMAGES
from .settings import EvaluationSettings

PAIR_METRICS = ("precision", "recall", "density", "coverage")
"""Metrics that are calibrated; the first two and the last two stand and fall together."""
MOST_NOISE, MOST_REFERENCE = 32, 1024
"""Largest numbers of noise images and of reference images in a calibration."""
WORST = 0.5
"""Share of the value of real images that noise must stay below."""
_FAMILIES = (PAIR_METRICS[:2], PAIR_METRICS[2:])
_SEED = 0
_DEEPEST = 5  # neighbours that density and coverage look at
_EQUAL = 1.0  # value of equal distributions, where there are too few real images for two halves


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What noise and real images get in the metrics of pairs, on one network and reference.

    Attributes:
        network: Feature network and the hash of its weights.
        num_noise: Number of noise images: 8-bit pixels, each drawn uniformly and on its own.
        num_reference: Number of reference images that noise is compared with.
        noise: Metrics of the noise by name.
        num_real: Number of reference images in either half; 0: too few for two halves.
        real: Metrics of one half of the reference against the other by name; empty without halves.
    """

    network: str
    num_noise: int
    num_reference: int
    noise: Mapping[str, float]
    num_real: int
    real: Mapping[str, float]

    @property
    def withheld(self) -> tuple[str, ...]:
        """Metrics that are not given, because noise does not stay below half of real images."""
        failing = {
            name
            for name in PAIR_METRICS
            if not self.noise[name] < WORST * self.real.get(name, _EQUAL)
        }
        return tuple(name for names in _FAMILIES if failing & {*names} for name in names)

    def kept(self, values: Mapping[str, float]) -> dict[str, float]:
        """The values without those of the metrics that are not given."""
        withheld = self.withheld
        return {n: value for n, value in values.items() if n.partition("@")[0] not in withheld}

    def notes(self, num_images: int) -> list[str]:
        """Sentences for the report: which metrics are not given, and what few images mean.

        Args:
            num_images: Number of images on the smaller side of the measurement.
        """
        found = []
        if withheld := self.withheld:
            noise = _listed([f"{name} {self.noise[name]:.2f}" for name in withheld])
            real = _listed([f"{self.real[name]:.2f}" for name in withheld if name in self.real])
            halves = f"; one half of them against the other gets {real}" if real else ""
            found.append(
                f"{_listed(list(withheld)).capitalize()} are not given: on {self.network} they do "
                f"not tell pure noise from real images. {self.num_noise:,} images of noise get "
                f"{noise} against {self.num_reference:,} reference images{halves}. A pair of these "
                f"metrics is given where noise gets less than half of what real images get."
            )
        given = [name for name in PAIR_METRICS if name not in withheld]
        if given and num_images < FEW_IMAGES:
            found.append(
                f"{_listed(given).capitalize()} of {num_images:,} images depend on their number: "
                f"chance alone moves a share by up to {0.5 / num_images**0.5:.2f}, one standard "
                f"error."
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """All attributes and the names of the metrics that are not given, for report.json."""
        return asdict(self) | {"withheld": list(self.withheld)}


def calibrate(
    reference: FeatureBank,
    extractor: FeatureExtractor,
    resolution: int,
    settings: EvaluationSettings,
) -> Calibration:
    """Measure noise against a reference, and one half of the reference against the other.

    Args:
        reference: Features of the reference images, in an order that says nothing about them.
        extractor: Network of these features.
        resolution: Side of the images in pixels.
        settings: Settings of the evaluation: device, batch size, cache.
    """
    real = reference.features[:MOST_REFERENCE].to(settings.device)
    noise = noise_features(
        extractor, resolution, batch_size=settings.batch_size, cache=settings.cache
    )[: len(real)].to(settings.device)
    half = len(real) // 2 if len(real) // 2 > _DEEPEST else 0

    def measured(samples: Tensor, against: Tensor) -> dict[str, float]:
        found = manifold_metrics(samples, against)
        return {name: getattr(found, name) for name in PAIR_METRICS}

    return Calibration(
        network=reference.extractor_id,
        num_noise=len(noise),
        num_reference=len(real),
        noise=measured(noise, real),
        num_real=half,
        real=measured(real[:half], real[half : 2 * half]) if half else {},
    )


@torch.no_grad()
def noise_features(
    extractor: FeatureExtractor, resolution: int, *, batch_size: int = 32, cache: bool = True
) -> Tensor:
    """What a network sees of noise: features of 32 images, float32 (32, D) on the CPU.

    Args:
        extractor: Network of the distances.
        resolution: Side of the images in pixels.
        batch_size: Number of images at once.
        cache: Read the features from the cache if they are there, and write them if not.
    """
    about = [extractor.id, extractor.resize_rule, resolution, MOST_NOISE, _SEED]
    name = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
    file = cache_root() / "noise" / f"{name}.safetensors"
    if cache:
        with contextlib.suppress(OSError, SafetensorError), safe_open(os.fspath(file), "pt") as old:
            found = {key: old.get_tensor(key) for key in old.keys()}  # noqa: SIM118
            if (old.metadata() or {}).get("sha256") == content_hash(found):
                stored: Tensor = found["features"]
                return stored
    rng = torch.Generator().manual_seed(_SEED)
    shape = (MOST_NOISE, 3, resolution, resolution)
    pixels = torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)
    device = next(extractor.buffers()).device
    parts = [extractor.pooled(part.to(device)) for part in torch.split(pixels, batch_size)]
    features = {"features": torch.cat(parts).cpu()}
    if cache:
        with contextlib.suppress(OSError), atomic_file(file) as temporary:
            save_file(features, temporary, {"sha256": content_hash(features)})
    return features["features"]


def _listed(words: list[str]) -> str:
    """Words as a list in a sentence: `a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
