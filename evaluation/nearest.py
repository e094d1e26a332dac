"""Nearest training images of generated samples, by pixels and by features.

A generator that copies its training set has a small Fréchet distance too; these distances tell it
from one that does not copy.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..data.image_source import DataError, ImageSource
from ..data.images import image_grid, to_pil, to_uint8
from ..data.loader import eval_batches, evenly_spaced
from ..data.transforms import ResizeRule, fit
from ..metrics.checks import check_images
from ..metrics.networks.build import FeatureExtractor, available_features, build_features
from ..progress import progress_bar

AUTO_ORDER = ("efflite0", "inception_fid", "random")
"""Feature networks that `auto` tries, in this order."""
_CELL_SIDE = 128  # pixels of the picture's cells, at least; labels need them
_COLUMNS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbors:
    """The nearest real image of each query.

    Attributes:
        indices: Indices of the real images in their source, int64 (B,); the first one of equals.
        mirrored: True where the mirror image is nearer than the image itself, bool (B,).
        distances: Distances to the nearest images, float64 (B,).
    """

    indices: Tensor
    mirrored: Tensor
    distances: Tensor

    def __getitem__(self, rows: slice) -> "Neighbors":
        return Neighbors(
            indices=self.indices[rows],
            mirrored=self.mirrored[rows],
            distances=self.distances[rows],
        )

    def summary(self) -> dict[str, float]:
        """`min` and `median` of the distances."""
        return {"min": float(self.distances.min()), "median": float(self.distances.quantile(0.5))}


@dataclass(frozen=True, kw_only=True, eq=False)
class NearestImages:
    """Samples and the real images nearest to them.

    Attributes:
        by_features: Nearest by 1 - cosine of the features, in [0, 2].
        by_pixels: Nearest by the root mean square difference of 8-bit pixels, in [0, 255].
        features_id: Name of the feature network and hash of its weights.
        source: Source of the real images.
        num_searched: Number of real images that were searched.
        validation_by_features: Nearest by features of real validation images, or None.
        validation_by_pixels: Nearest by pixels of real validation images, or None.
        picture: Rows of samples, their nearest by features and their nearest by pixels.
        broken: Reason by id of each real image that could not be read.
    """

    by_features: Neighbors
    by_pixels: Neighbors
    features_id: str
    source: ImageSource
    num_searched: int
    validation_by_features: Neighbors | None
    validation_by_pixels: Neighbors | None
    picture: Image.Image
    broken: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the picture, for JSON.

        Returns:
            Minimum and median of the distances of samples and, for comparison, of validation
            images, which cannot have been copied; then the nearest images of each sample.
        """
        result: dict[str, Any] = {
            "data": self.source.name,
            "split": self.source.split,
            "features": self.features_id,
            "num_samples": len(self.by_pixels.indices),
            "samples": {
                "feature_distance": self.by_features.summary(),
                "pixel_distance": self.by_pixels.summary(),
            },
        }
        if self.validation_by_features is not None and self.validation_by_pixels is not None:
            result["validation"] = {
                "num_images": len(self.validation_by_pixels.indices),
                "feature_distance": self.validation_by_features.summary(),
                "pixel_distance": self.validation_by_pixels.summary(),
            }
        columns = {"by_features": self.by_features, "by_pixels": self.by_pixels}
        result["nearest"] = [
            {
                name: {
                    "id": self.source.id_of(int(found.indices[row])),
                    "index": int(found.indices[row]),
                    "mirrored": bool(found.mirrored[row]),
                    "distance": float(found.distances[row]),
                }
                for name, found in columns.items()
            }
            for row in range(len(self.by_pixels.indices))
        ]
        return result | {"broken": self.broken}


def nearest_training_images(
    samples: Tensor,
    source: ImageSource,
    resolution: int,
    *,
    features: str | FeatureExtractor = "auto",
    resize: ResizeRule = "bicubic",
    validation: ImageSource | None = None,
    max_validation: int = 512,
    max_searched: int = 50_000,
    num_shown: int = 8,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> NearestImages:
    """The real image nearest to each sample, by pixels and by features, mirror images included.

    A generator that copies has samples much nearer than any validation image is: compare the
    two medians. Pixel distances are exact (integers before the root); all samples and validation
    images are held in memory as float64.

    Args:
        samples: Samples, (B, 3, resolution, resolution), uint8, or float in [-1, 1], which is
            rounded to 8 bits.
        source: Real images to search, usually the training split.
        resolution: Side of the images in pixels.
        features: Feature network, or its name; `auto`: the first of efflite0, inception_fid and
            random that is present.
        resize: Rule of resizing real images, one of `data.transforms.fit`.
        validation: Real images that were not trained on, for comparison; None: no comparison.
        max_validation: Largest number of validation images, evenly spaced in the split.
        max_searched: Largest number of real images to search, evenly spaced in the source.
        num_shown: Number of samples in the picture, the first ones, at least 1.
        batch_size: Number of images at once.
        device: Device of the network and of the search.
        progress: Show a progress bar on stderr.

    Raises:
        ValueError: If there are no samples, their shape is wrong, or values are not finite or out
            of range.
        DataError: If no image of a source can be read.
        WeightsMissing: If a network asked for by name has no weights on this machine.
    """
    pixels = _check_samples(samples, resolution).cpu()
    if not len(pixels) or num_shown < 1:
        found = f"{len(pixels)} samples, num_shown={num_shown}"
        raise ValueError(f"expected at least 1 sample to search for and to show, found {found}")
    extractor = _chosen_extractor(features).to(device)
    broken: dict[str, str] = {}
    queries = [pixels]
    if validation is not None:
        real = eval_batches(
            validation,
            resolution,
            batch_size,
            broken=broken,
            resize=resize,
            indices=evenly_spaced(len(validation), max_validation),
        )
        queries += [to_uint8(batch["images"]) for batch in real]
    searched = evenly_spaced(len(source), max_searched)
    by_features, by_pixels = _search(
        torch.cat(queries),
        source,
        searched,
        resolution,
        extractor,
        batch_size,
        broken,
        progress,
        resize,
    )
    count = len(pixels)
    shown = slice(num_shown)
    return NearestImages(
        by_features=by_features[:count],
        by_pixels=by_pixels[:count],
        features_id=extractor.id,
        source=source,
        num_searched=len(searched),
        validation_by_features=None if validation is None else by_features[count:],
        validation_by_pixels=None if validation is None else by_pixels[count:],
        picture=_picture(pixels[shown], source, by_features[shown], by_pixels[shown], resize),
        broken=broken,
    )


def _unit_features(extractor: FeatureExtractor, pixels: Tensor, batch_size: int) -> Tensor:
    return torch.nn.functional.normalize(_pooled_features(extractor, pixels, batch_size).double())


class _Nearest:
    """Running minimum over batches of candidates; of equal ones, the first is kept."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.distances = torch.full((count,), torch.inf, dtype=torch.float64, device=device)
        self.places = torch.zeros(count, dtype=torch.int64, device=device)

    def update(self, distances: Tensor, start: int) -> None:
        """Add distances (B, C) to the candidates start .. start + C - 1."""
        best = distances.argmin(1)
        values = distances.gather(1, best[:, None])[:, 0]
        better = values < self.distances
        self.distances = torch.where(better, values, self.distances)
        self.places = torch.where(better, best + start, self.places)

    def neighbors(self, numbers: list[int]) -> Neighbors:
        """The nearest images; candidate 2 i is image numbers[i], 2 i + 1 its mirror image."""
        places = self.places.cpu()
        return Neighbors(
            indices=torch.tensor(numbers)[places // 2],
            mirrored=places % 2 == 1,
            distances=self.distances.cpu(),
        )


def _search(
    queries: Tensor,
    source: ImageSource,
    searched: list[int],
    resolution: int,
    extractor: FeatureExtractor,
    batch_size: int,
    broken: dict[str, str],
    progress: bool,
    resize: ResizeRule,
) -> tuple[Neighbors, Neighbors]:
    """Nearest images, by features and by pixels, among those of a source and their mirrors."""
    device = next(extractor.buffers()).device
    query_features = _unit_features(extractor, queries, batch_size)
    query_pixels = queries.to(device).flatten(1).double()
    query_squares = query_pixels.square().sum(1, keepdim=True)
    by_features, by_pixels = (_Nearest(len(queries), device) for _ in range(2))
    numbers: list[int] = []
    batches = eval_batches(
        source, resolution, batch_size, broken=broken, resize=resize, indices=searched
    )
    title = "nearest images"
    with progress_bar(len(searched), "image", title=title, silent=not progress) as bar:
        for batch in batches:
            views = to_uint8(batch["images"])
            views = torch.stack([views, views.flip(3)], 1).flatten(0, 1)  # image, mirror, image
            start = 2 * len(numbers)
            cosines = query_features @ _unit_features(extractor, views, batch_size).T
            by_features.update((1 - cosines).clamp_min(0), start)
            pixels = views.to(device).flatten(1).double()
            products = query_pixels @ pixels.T  # sums of integers below 2^53: exact in any order
            by_pixels.update(query_squares + pixels.square().sum(1) - 2 * products, start)
            numbers += batch["numbers"].tolist()
            bar.update(len(batch["ids"]))
    if not numbers:
        name, reason = next(iter(broken.items()))
        raise DataError(f"{source.name}: no image can be read; {name}: {reason}")
    by_pixels.distances = (by_pixels.distances / query_pixels.shape[1]).sqrt()
    return by_features.neighbors(numbers), by_pixels.neighbors(numbers)


def _picture(
    pixels: Tensor,
    source: ImageSource,
    by_features: Neighbors,
    by_pixels: Neighbors,
    resize: ResizeRule,
) -> Image.Image:
    """Blocks of three rows: at most eight samples, their nearest by features, and by pixels."""
    resolution = pixels.shape[2]
    side = resolution * max(1, -(-_CELL_SIDE // resolution))

    def cell(image: Image.Image) -> Image.Image:
        return image.resize((side, side), Image.Resampling.NEAREST)

    def row(kind: str, found: Neighbors, digits: int) -> Iterator[tuple[Image.Image, str]]:
        for index, mirrored, distance in zip(
            found.indices.tolist(), found.mirrored.tolist(), found.distances.tolist(), strict=True
        ):
            image = fit(source.read(index).image, resolution, resize)
            text = f"{kind} {distance:.{digits}f}{' mirrored' if mirrored else ''}"
            yield cell(ImageOps.mirror(image) if mirrored else image), text

    cells: list[tuple[Image.Image, str]] = []
    columns = min(_COLUMNS, len(pixels))
    blank = [(Image.new("RGB", (side, side), "white"), "")]
    for start in range(0, len(pixels), columns):
        part = slice(start, start + columns)
        shown = [cell(to_pil(p.permute(1, 2, 0))) for p in pixels[part]]
        filler = blank * (columns - len(shown))
        cells += [(image, f"sample {start + i}") for i, image in enumerate(shown)] + filler
        cells += [*row("features", by_features[part], 3), *filler]
        cells += [*row("pixels", by_pixels[part], 1), *filler]
    images, labels = zip(*cells, strict=True)
    return image_grid(images, columns, labels)


def _chosen_extractor(features: str | FeatureExtractor) -> FeatureExtractor:
    """The network of a name or the given one; for `auto` the first one with weights."""
    if isinstance(features, FeatureExtractor):
        return features
    if features == "auto":
        found = available_features()
        features = next(name for name in AUTO_ORDER if found[name])
    return build_features(features)


def _check_samples(images: Tensor, resolution: int) -> Tensor:
    """Samples as 8-bit pixels (B, 3, H, W), after checks of shape, dtype and values."""
    expected = (3, resolution, resolution)
    if images.ndim != 4 or tuple(images.shape[1:]) != expected:
        wanted = f"(B, 3, {resolution}, {resolution})"
        raise ValueError(f"samples: expected shape {wanted}, found {tuple(images.shape)}")
    check_images(images, -1, 1, name="samples")
    return images if images.dtype == torch.uint8 else to_uint8(images)


@torch.no_grad()
def _pooled_features(extractor: FeatureExtractor, pixels: Tensor, batch_size: int) -> Tensor:
    """Features of 8-bit pixels (B, 3, H, W) on the extractor's device, shape (B, D)."""
    device = next(extractor.buffers()).device
    parts = [extractor.pooled(part.to(device)) for part in torch.split(pixels, batch_size)]
    return torch.cat(parts)
