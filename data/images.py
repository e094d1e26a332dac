"""Image files to RGB pixels and back, with one rounding rule for the whole package.

Pixel values are uint8 0..255 outside the models and floats in [-1, 1] inside; only `to_tensor`,
`to_float` and `to_uint8` convert between the two. Transparency is flattened on white:
`convert("RGB")` alone would show the arbitrary colours that editors leave under transparent pixels.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..files import atomic_file

MAX_PIXELS = 89_478_485
"""Largest number of pixels that is read; Pillow warns above it."""
_SOFTWARE = "tessella"
_GAP = 2  # pixels between the cells of a grid
_BACKGROUND = (232, 232, 232)  # not white: the borders of white images stay visible


class BrokenImage(ValueError):
    """An image that cannot be decoded.

    Attributes:
        name: Name of the image.
        reason: Reason why it cannot be decoded.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def read_image(source: str | Path | bytes, *, name: str | None = None) -> Image.Image:
    """Decode an image file into an upright RGB image of its stored size.

    EXIF orientation is applied, transparency (alpha, palette or colour key) is flattened on white,
    16-bit grey is scaled to 8 bits, CMYK and grey are converted; of an animation, the first frame.

    Args:
        source: Path of a file, or the bytes of one.
        name: Name used in errors; the path by default.

    Returns:
        PIL image, mode RGB, values 0..255.

    Raises:
        BrokenImage: If the file is missing, truncated, not an image, larger than 89 million
            pixels, or has no defined range (32-bit integers above 65535, floats).
    """
    if name is None:
        name = "<bytes>" if isinstance(source, bytes) else str(source)
    try:
        blob = source if isinstance(source, bytes) else Path(source).read_bytes()
        with Image.open(io.BytesIO(blob)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(f"{opened.width}x{opened.height} pixels, limit {MAX_PIXELS}")
            opened.load()
            return upright_rgb(opened)
    except Exception as error:  # decoders raise anything from SyntaxError to struct.error
        reason = str(error).replace(repr(name), "").strip() or "unreadable"
        if isinstance(error, UnidentifiedImageError):
            size = f"{len(blob)} bytes" if blob else "empty file"
            reason = f"not an image file that Pillow knows ({size})"
        raise BrokenImage(name, f"{reason} ({type(error).__name__})") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """A PIL image of any mode as `read_image` gives a file: EXIF orientation applied, mode RGB.

    Raises:
        ValueError: If the pixels have no defined range.
    """
    return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey16_to_rgb(image)
    if image.mode == "F":
        raise ValueError("float pixels have no defined range; expected 8 or 16 bits per channel")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        if image.mode in ("RGBa", "La"):
            image = image.convert(image.mode.upper())
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey16_to_rgb(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"found grey values {values.min()}..{values.max()}, expected 16 bits (0..65535)"
        )
    grey = np.rint(values / 257).astype(np.uint8)  # 65535 -> 255
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255
    return Image.fromarray(grey).convert("RGB")


def to_tensor(image: Image.Image | np.ndarray | Tensor) -> Tensor:
    """Convert the pixels of one image to the range of the models: value / 127.5 - 1.

    Args:
        image: RGB image, or uint8 pixels of shape (H, W, 3).

    Returns:
        Shape (3, H, W), float32 in [-1, 1], on the CPU.

    Raises:
        ValueError: If the image is not RGB or the array not uint8 (H, W, 3).
    """
    if isinstance(image, Image.Image):
        if image.mode != "RGB":
            raise ValueError(f"image mode: found {image.mode}, expected RGB (see read_image)")
        image = np.asarray(image)
    pixels = image.numpy(force=True) if isinstance(image, Tensor) else image
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(f"pixels: found {pixels.dtype} {pixels.shape}, expected uint8 (H, W, 3)")
    return to_float(pixels[None])[0]


def to_float(pixels: np.ndarray) -> Tensor:
    """Convert a batch of pixels to the range of the models: value / 127.5 - 1.

    Computed in numpy: on a busy machine, waiting for the threads of torch takes ten times as long
    as the arithmetic.

    Args:
        pixels: Shape (B, H, W, 3), uint8.

    Returns:
        Shape (B, 3, H, W), contiguous float32 in [-1, 1], on the CPU.
    """
    values = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32)
    values /= 127.5
    values -= 1
    return torch.from_numpy(values)


def to_uint8(images: Tensor) -> Tensor:
    """Convert the range of the models to pixels: round(127.5 * (value + 1)), clamped to 0..255.

    This is the rounding rule of the whole package; halves are rounded to the even neighbour. It
    inverts `to_tensor` exactly. Values outside [-1, 1] saturate.

    Args:
        images: Images in [-1, 1], of any shape and float dtype; computed in float32.

    Returns:
        uint8, same shape and device.

    Raises:
        ValueError: If the dtype is not float, or a value is not finite.
    """
    if not images.is_floating_point():
        raise ValueError(f"images: expected floats in [-1, 1], found {images.dtype}")
    values = images.detach().float()
    wrong = int((~values.isfinite()).sum())
    if wrong:
        raise ValueError(f"images: {wrong} values are not finite, expected values in [-1, 1]")
    return values.add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def save_png(image: Image.Image | np.ndarray | Tensor, path: str | Path) -> None:
    """Write a PNG atomically: a reader sees the old file, the new one, or none.

    The file is marked as written by tessella, for `is_own_png`.

    Args:
        image: PIL image, uint8 pixels (H, W, 3), or one float image (3, H, W) in [-1, 1].
        path: Target file; missing folders are created.

    Raises:
        SaveError: If writing fails.
    """
    with atomic_file(path) as temporary:
        about = PngInfo()
        about.add_text("Software", _SOFTWARE)
        to_pil(image).save(temporary, "PNG", pnginfo=about)


def is_own_png(path: str | Path) -> bool:
    """Whether a file is a PNG that `save_png` wrote."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("Software") == _SOFTWARE
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def image_grid(
    images: Tensor | np.ndarray | Sequence[Image.Image | Tensor],
    columns: int,
    labels: Sequence[str] | None = None,
) -> Image.Image:
    """Tile images row by row on a light grey sheet, each with an optional line of text below.

    Args:
        images: Images as float (B, 3, H, W) in [-1, 1], uint8 (B, H, W, 3), or PIL images; a cell
            has the size of the largest image.
        columns: Number of images per row, at least 1.
        labels: One text per image, cut to the width of a cell; None: no texts.

    Returns:
        PIL image, mode RGB.

    Raises:
        ValueError: If there are no images, `columns` < 1, or the number of labels differs.
    """
    cells = [to_pil(image) for image in images]
    if not cells or columns < 1:
        raise ValueError(
            f"image grid: found {len(cells)} images in {columns} columns, expected at least 1 of "
            "each"
        )
    if labels is not None and len(labels) != len(cells):
        raise ValueError(
            f"image grid: found {len(labels)} labels for {len(cells)} images, expected one each"
        )
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    font = ImageFont.load_default()
    text_height = 0 if labels is None else int(font.getbbox("Ag")[3]) + _GAP
    width = max(cell.width for cell in cells)
    height = max(cell.height for cell in cells)
    pitch = (width + _GAP, height + text_height + _GAP)
    sheet = Image.new("RGB", (columns * pitch[0] + _GAP, rows * pitch[1] + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, cell in enumerate(cells):
        left, top = _GAP + number % columns * pitch[0], _GAP + number // columns * pitch[1]
        sheet.paste(cell, (left, top))
        if labels is not None:
            text = labels[number].encode("latin-1", "replace").decode("latin-1")
            while text and font.getlength(text) > width:
                text = text[:-1]
            draw.text((left, top + height), text, fill=(0, 0, 0), font=font)
    return sheet


def to_pil(image: Image.Image | np.ndarray | Tensor) -> Image.Image:
    """Convert a PIL image, uint8 pixels (H, W, 3) or a float image (3, H, W) to PIL, mode RGB."""
    if isinstance(image, Image.Image):
        return image if image.mode == "RGB" else _to_rgb(image)
    if isinstance(image, Tensor):
        pixels = to_uint8(image).permute(1, 2, 0) if image.is_floating_point() else image
        image = pixels.cpu().numpy()
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"pixels: found {image.dtype} {image.shape}, expected uint8 (H, W, 3)")
    return Image.fromarray(image)


def grid_of_pairs(originals: Tensor, reconstructions: Tensor, *, columns: int = 8) -> Any:
    """Picture with rows of originals, each above the row of its reconstructions.

    Args:
        originals: Images (B, 3, H, W) in [-1, 1].
        reconstructions: Their reconstructions, of the same shape and range.
        columns: Number of images in a row.
    """
    columns, rows = min(columns, len(originals)), []
    pairs = zip(torch.split(originals, columns), torch.split(reconstructions, columns), strict=True)
    for first, second in pairs:
        blank = [torch.ones_like(first[0])] * (columns - len(first))
        rows += [*first.clamp(-1, 1).cpu(), *blank, *second.clamp(-1, 1).cpu(), *blank]
    return image_grid(rows, columns)
