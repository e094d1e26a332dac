"""Resizing and cropping of images, and random augmentation.

All functions work on uint8 pixels, in PIL or NumPy; randomness comes from the generator passed in,
so an augmented sample is a function of its seed alone.
"""

import math
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
from PIL import Image

ResizeRule = Literal["bicubic", "adm", "none"]
"""Rule by which images of other sizes are brought to a resolution; see `fit`."""

_MAX_ASPECT = 4  # longer images are centre-cropped to this before resizing, which bounds the memory


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random augmentation of training images; everything is off by default.

    Attributes:
        random_crop: Smallest area of a random crop as a fraction of the image, in (0, 1];
            1.0 = off.
        aspect: Largest aspect ratio of a crop, >= 1; ratios are log-uniform in [1/aspect, aspect].
        flip: Whether to mirror left-right with probability 1/2.
        shift: Largest displacement in pixels per axis, filled with the colour of the edge.
    """

    random_crop: float = 1.0
    aspect: float = 1.0
    flip: bool = False
    shift: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.random_crop <= 1:
            raise ValueError(f"random_crop={self.random_crop}, expected 0 < area <= 1")
        if not (self.aspect >= 1 and math.isfinite(self.aspect)):
            raise ValueError(f"aspect={self.aspect}, expected a ratio >= 1")
        if self.shift < 0:
            raise ValueError(f"shift={self.shift}, expected pixels >= 0")

    @property
    def crops(self) -> bool:
        """Whether crops are random, so that pixels beyond the final resolution are needed."""
        return self.random_crop < 1 or self.aspect > 1

    @property
    def enabled(self) -> bool:
        """Whether any augmentation is on."""
        return self.crops or self.flip or self.shift > 0


def shrink(image: Image.Image, short_side: int) -> Image.Image:
    """Shrink the shorter side to `short_side` pixels; smaller images pass unchanged.

    The aspect ratio is kept up to 4:1; longer images are centre-cropped to it.

    Args:
        image: PIL image, mode RGB.
        short_side: Largest shorter side in pixels, >= 1.
    """
    return image if min(image.size) <= short_side else _resize_short_side(image, short_side)


def resize_center_crop(
    image: Image.Image,
    resolution: int,
    *,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """Resize the shorter side to `resolution` (antialiased bicubic), then crop the centre.

    An image of that size is returned unchanged. Beyond an aspect ratio of 4:1 the long side is
    cropped before resizing, which only bounds the memory.

    Args:
        image: PIL image, mode RGB.
        resolution: Side of the result in pixels, >= 1.
        resample: Resampling filter; masks need another one than images.

    Returns:
        PIL image of size resolution x resolution.

    Raises:
        ValueError: If `resolution` is below 1.
    """
    if resolution < 1:
        raise ValueError(f"resolution {resolution}, expected at least 1 pixel")
    if image.size == (resolution, resolution):
        return image
    image = _resize_short_side(image, resolution, resample)
    return _center_crop(image, resolution, resolution)


def fit(image: Image.Image, resolution: int, rule: ResizeRule = "bicubic") -> Image.Image:
    """Bring an image to resolution x resolution pixels by a resize rule.

    `bicubic` is the rule of this package (`resize_center_crop`). `adm` halves by 2 x 2 means as
    long as the shorter side stays at least `resolution`, then resizes by antialiased bicubic and
    crops the centre, as for the reference batches of ADM (arXiv:2105.05233); it also enlarges.
    `none` changes nothing and refuses other sizes.

    Args:
        image: PIL image, mode RGB.
        resolution: Side of the result in pixels, >= 1.
        rule: Resize rule.

    Raises:
        ValueError: If `resolution` is below 1, or the rule is `none` and the image has another
            size.
    """
    match rule:
        case "bicubic":
            return resize_center_crop(image, resolution)
        case "adm":
            while min(image.size) >= 2 * resolution:
                halves = (image.width // 2, image.height // 2)
                image = image.resize(halves, Image.Resampling.BOX)
            scale = resolution / min(image.size)
            size = (round(image.width * scale), round(image.height * scale))
            image = image.resize(size, Image.Resampling.BICUBIC)
            return _center_crop(image, resolution, resolution)
        case "none":
            if image.size != (resolution, resolution):
                wanted = f"{resolution} x {resolution}"
                found = f"{image.width} x {image.height}"
                raise ValueError(f"{found} pixels; nothing is resized here, expected {wanted}")
            return image
        case _:
            assert_never(rule)


def augment(
    image: np.ndarray, resolution: int, config: AugmentConfig, rng: np.random.Generator
) -> np.ndarray:
    """Apply random resized crop, flip and shift, in this order; without a random crop, centre crop.

    Args:
        image: Pixels, shape (H, W, 3), uint8.
        resolution: Side of the result in pixels.
        config: Augmentation settings.
        rng: Source of all randomness; advanced in place.

    Returns:
        Pixels, shape (resolution, resolution, 3), uint8; may be a view of `image`.
    """
    if config.crops:
        box = _crop_box(image.shape[1], image.shape[0], config, rng)
        cropped = Image.fromarray(image).resize(
            (resolution, resolution), Image.Resampling.BICUBIC, box=box
        )
        image = np.asarray(cropped)
    elif image.shape[:2] != (resolution, resolution):
        image = np.asarray(resize_center_crop(Image.fromarray(image), resolution))
    if config.flip and rng.random() < 0.5:
        image = image[:, ::-1]
    if config.shift:
        dy, dx = rng.integers(-config.shift, config.shift, size=2, endpoint=True)
        grid = np.arange(resolution)
        rows, columns = (np.clip(grid - d, 0, resolution - 1) for d in (dy, dx))
        image = image[rows[:, None], columns[None, :]]
    return image


def _resize_short_side(
    image: Image.Image,
    short_side: int,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """Resize the shorter side, after a centre crop to an aspect ratio of at most 4:1."""
    short = min(image.size)
    image = _center_crop(image, *(min(side, _MAX_ASPECT * short) for side in image.size))
    width, height = (max(short_side, round(side * short_side / short)) for side in image.size)
    return image.resize((width, height), resample)


def _center_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """Crop the centre of an image, width x height pixels."""
    if image.size == (width, height):
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _crop_box(
    width: int, height: int, config: AugmentConfig, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a random crop inside the image, in pixels."""
    area = rng.uniform(config.random_crop, 1.0) * width * height
    log_aspect = math.log(config.aspect)
    ratio = math.exp(rng.uniform(-log_aspect, log_aspect))
    # A crop inside a long image may be unable to have the area drawn: it takes the short side.
    crop_width = min(math.sqrt(area * ratio), width, height * ratio)
    crop_height = min(crop_width / ratio, height)
    left = rng.uniform(0.0, 1.0) * (width - crop_width)
    top = rng.uniform(0.0, 1.0) * (height - crop_height)
    return left, top, min(left + crop_width, width), min(top + crop_height, height)
