"""How good samples are: the distance of their distribution to that of real images.

A Fréchet distance on few images is mostly bias, so every result says how many images stood on each
side, and can carry its floor: what real validation images get. A small distance may also come from
copying the training set; `nearest.py` shows whether it did.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.image_source import ImageSource
from ..data.images import to_uint8
from ..data.loader import eval_batches
from .metrics.features import FeatureExtractor, available_features, build_features
from .metrics.frechet import FrechetStatistics, frechet_distance, metric_name

AUTO_ORDER = ("efflite0", "inception_fid", "random")
"""What `auto` tries: Inception gives genuine FID, but takes far longer on small images."""
IMAGE_RESIZE = "shorter side by antialiased bicubic, centre crop"
ROUNDING = "8 bits on both sides"


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """What samples are compared with, computed once for many sets of samples.

    Attributes:
        statistics: Of every readable image of the source.
        extractor: The feature network.
        source: Where the images are.
        resolution: Side of the images in pixels.
        broken: Reason by id of each image skipped.
        floor_source: Validation images, or None.
        num_floor: How many of them could be read.
        floor: Their own distance to the source, or None.
    """

    statistics: FrechetStatistics
    extractor: FeatureExtractor
    source: ImageSource
    resolution: int
    broken: dict[str, str]
    floor_source: ImageSource | None = None
    num_floor: int = 0
    floor: float | None = None

    @property
    def metric(self) -> str:
        """Name of the distances to it: `FID#HASH`, or `FD@NET#HASH`."""
        return f"{metric_name(self.extractor)}#{self.extractor.weights_id}"


def build_reference(
    source: ImageSource,
    *,
    resolution: int,
    features: str | FeatureExtractor = "auto",
    validation: ImageSource | None = None,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> Reference:
    """Statistics of every readable image of a source, plain views without augmentation.

    Args:
        source: Usually the training split.
        resolution: Side of the samples in pixels.
        features: Network, or its name; `auto`: the first of efflite0, inception_fid and random
            that is present.
        validation: Real images whose own distance to the source is the floor; None: no floor.
        batch_size: Images at once.
        device: Where the network runs.
        progress: Show a progress bar on stderr.

    Raises:
        DataError: If no image can be read.
        ValueError: If a split has fewer than two images.
        WeightsMissing: If a network asked for by name has no weights here.
    """
    extractor = chosen_extractor(features).to(device)
    broken: dict[str, str] = {}

    def statistics(split: ImageSource) -> FrechetStatistics:
        result = _new_statistics(extractor)
        with tqdm(total=len(split), unit="image", disable=not progress) as bar:
            for batch in eval_batches(split, resolution, batch_size, broken=broken):
                result.update(pooled_features(extractor, to_uint8(batch["images"]), batch_size))
                bar.update(len(batch["ids"]))
        return result

    reference = statistics(source)
    floor = None if validation is None else statistics(validation)
    return Reference(
        statistics=reference,
        extractor=extractor,
        source=source,
        resolution=resolution,
        broken=broken,
        floor_source=validation,
        num_floor=0 if floor is None else floor.count,
        floor=None if floor is None else frechet_distance(floor, reference),
    )


def measure_samples(
    images: Iterable[Tensor],
    source: ImageSource,
    *,
    resolution: int,
    features: str | FeatureExtractor = "auto",
    validation: ImageSource | None = None,
    reference: Reference | None = None,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> dict[str, Any]:
    """Fréchet distance of samples to every image of a source.

    Args:
        images: Batches of samples, shape (B, 3, resolution, resolution), float in [-1, 1] (values
            outside saturate). Taken one by one; nothing is kept.
        source: The real images, usually the training split.
        resolution: Side of the images in pixels.
        features: As for `build_reference`.
        validation: As for `build_reference`.
        reference: From `build_reference` of the same source and resolution; it then decides on
            features, device and validation, which must be left at their defaults.
        batch_size: Images in the network at once.
        device: Where the network runs.
        progress: Show a progress bar on stderr while the source is read.

    Returns:
        The distance under its name, `FID#HASH` or `FD@NET#HASH`, and its protocol: `num_samples`,
        `num_reference`, features and their resize rule, how images were resized and rounded, the
        source with its fingerprint. With validation images also `floor`: distances to the source
        of the validation images, and of the first samples, as many where there are as many. Equal
        numbers have about equal bias; only then do the two compare, and only if the first samples
        are no special ones (not sorted by class).

    Raises:
        ValueError: If there are fewer than two samples, or a batch has another shape, is not float
            or not finite; or if `reference` does not fit.
        DataError: If no image of the source can be read.
        WeightsMissing: If a network asked for by name has no weights here.
    """
    if reference is None:
        reference = build_reference(
            source,
            resolution=resolution,
            features=features,
            validation=validation,
            batch_size=batch_size,
            device=device,
            progress=progress,
        )
    elif (kind := _kind(reference.source, reference.resolution)) != _kind(source, resolution):
        raise ValueError(f"reference: of {kind}, expected {_kind(source, resolution)}")
    elif validation is not None or features != "auto":
        raise ValueError("features and validation are those of the reference: give them there")
    extractor = reference.extractor
    samples, first = _new_statistics(extractor), _new_statistics(extractor)
    for batch in images:
        values = pooled_features(extractor, check_samples(batch, resolution), batch_size)
        samples.update(values)
        first.update(values[: max(0, reference.num_floor - first.count)])
    if samples.count < 2:
        raise ValueError(f"samples: expected at least 2 images, found {samples.count}")
    name = reference.metric
    result: dict[str, Any] = {
        name: frechet_distance(samples, reference.statistics),
        "num_samples": samples.count,
        "num_reference": reference.statistics.count,
        "data": source.name,
        "split": source.split,
        "data_fingerprint": source.fingerprint(),
        "resolution": resolution,
        "image_resize": IMAGE_RESIZE,
        "rounding": ROUNDING,
        "features": extractor.name,
        "num_features": extractor.num_features,
        "feature_resize": extractor.resize_rule,
    }
    if reference.floor_source is not None:
        distance = frechet_distance(first, reference.statistics) if first.count > 1 else None
        result["floor"] = {
            "split": reference.floor_source.split,
            "images": {name: reference.floor, "num_images": reference.num_floor},
            "samples": {name: distance, "num_images": first.count},
        }
    return result | {"broken": reference.broken}


def chosen_extractor(features: str | FeatureExtractor) -> FeatureExtractor:
    """The network of that name, the given one itself, or for `auto` the first one present."""
    if isinstance(features, FeatureExtractor):
        return features
    if features == "auto":
        found = available_features()
        features = next(name for name in AUTO_ORDER if found[name])
    return build_features(features)


def _kind(source: ImageSource, resolution: int) -> str:
    """What must be the same for statistics to be of the same images."""
    digest = source.fingerprint()[:8]
    return f"{source.name} ({source.split}, {digest}) at {resolution} px"


def _new_statistics(extractor: FeatureExtractor) -> FrechetStatistics:
    return FrechetStatistics(extractor.num_features, extractor_id=extractor.id)


def check_samples(images: Tensor, resolution: int) -> Tensor:
    """Samples as 8-bit pixels (B, 3, H, W), after checks of shape, dtype and values."""
    expected = (3, resolution, resolution)
    if images.ndim != 4 or tuple(images.shape[1:]) != expected:
        wanted = f"(B, 3, {resolution}, {resolution})"
        raise ValueError(f"samples: expected shape {wanted}, found {tuple(images.shape)}")
    return to_uint8(images)


@torch.no_grad()
def pooled_features(extractor: FeatureExtractor, pixels: Tensor, batch_size: int) -> Tensor:
    """Features of 8-bit pixels (B, 3, H, W) on the extractor's device, shape (B, D)."""
    device = next(extractor.buffers()).device
    parts = [extractor.pooled(part.to(device).float() / 255) for part in pixels.split(batch_size)]
    return torch.cat(parts)
