"""Image files to RGB pixels and back, with one rounding rule for the whole package.

Pixel values are uint8 0..255 outside the models and floats in [-1, 1] inside; only `to_tensor`,
`to_float` and `to_uint8` convert between the two. Transparency is flattened on white:
`convert("RGB")` alone would show the arbitrary colours that editors leave under transparent pixels.
"""

import contextlib
import functools
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..files import atomic_file

MAX_PIXELS = 100_000_000
"""Largest number of pixels of an image that is decoded, where no other is given."""
MOST_PIXELS = 178_956_970
"""Largest number of pixels that can be given: Pillow refuses larger images."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
"""Formats that are read, as Pillow names them; no other decoder or program sees a file."""
READ_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
    | {".avif", ".jp2", ".j2k", ".jpx"}
)
"""Endings of files in these formats."""
IMAGE_SUFFIXES = READ_SUFFIXES | {".heic", ".heif", ".jxl", ".tga"}
"""Endings of files that count as images; those that cannot be read are broken images."""
_SHARES = {"JPEG2000": 2}  # its decoder takes 20 bytes a pixel
_STRIP = 1 << 20  # pixels that are converted at once, which bounds the memory
_SOFTWARE = "tessella"
_GAP = 2  # pixels between the cells of a grid
_MOST_LINES = 3  # of a text below a cell
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


def read_image(
    source: str | os.PathLike[str] | bytes | IO[bytes],
    *,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
    side: int | None = None,
) -> Image.Image:
    """Decode an image file into an upright RGB image of its stored size.

    EXIF orientation is applied, transparency (alpha, palette or colour key) is flattened on white,
    16-bit grey is scaled to 8 bits, CMYK and grey are converted; of an animation, the first frame.
    Only the formats of `FORMATS` are read, whatever the name of the file.

    Args:
        source: Path of a file, the bytes of one, or a file that is open for reading bytes, such as
            `io.BytesIO`, which is read from its beginning.
        name: Name used in errors; the path by default.
        max_pixels: Largest number of pixels that is decoded; of a JPEG 2000 half of it.
        side: If given, a JPEG is decoded at an eighth, a quarter or half of its size, the smallest
            whose shorter side has at least this number of pixels. None: at its stored size.

    Returns:
        PIL image, mode RGB, values 0..255.

    Raises:
        BrokenImage: If the file is missing, truncated, no image of these formats, larger than
            `max_pixels`, or has no defined range (32-bit integers above 65535, floats).
    """
    if name is None:
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else "<bytes>"
    try:
        with _file(source) as file, _opened(file) as opened:
            if side is not None and opened.format in ("JPEG", "MPO"):
                opened.draft(None, (side, side))
            most = max_pixels // _SHARES.get(opened.format, 1)
            if opened.width * opened.height > most:
                raise ValueError(
                    f"{opened.width}x{opened.height} pixels, limit {most} (max_pixels)"
                )
            opened.load()
            return upright_rgb(opened)
    except Exception as error:  # decoders raise anything from SyntaxError to struct.error
        reason = str(error).replace(repr(name), "").strip() or "unreadable"
        if isinstance(error, UnidentifiedImageError):
            reason = f"not an image in a format that is read ({', '.join(_formats())})"
        raise BrokenImage(name, f"{reason} ({type(error).__name__})") from error


@contextlib.contextmanager
def _file(source: str | os.PathLike[str] | bytes | IO[bytes]) -> Iterator[IO[bytes]]:
    """The file of a source; a pipe is refused, since it might never answer."""
    if isinstance(source, bytes):
        if not source:
            raise ValueError("empty file")
        yield io.BytesIO(source)
    elif isinstance(source, str | os.PathLike):
        mode = os.stat(source).st_mode
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise ValueError(f"{what}, expected an image file")
        with open(source, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise ValueError("empty file")
            yield file
    else:
        yield source


def _opened(file: IO[bytes]) -> Any:
    """A file as an image that is not decoded yet; Pillow's warning of size gives way to ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(file, formats=_formats())


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that the installed Pillow has."""
    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


def upright_rgb(image: Image.Image) -> Image.Image:
    """A PIL image of any mode as `read_image` gives a file: EXIF orientation applied, mode RGB.

    Raises:
        ValueError: If the pixels have no defined range.
    """
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        if image.mode == "I":
            low, high = (int(value) for value in image.getextrema())  # type: ignore[arg-type]
            if low < 0 or high > 65535:
                raise ValueError(f"found grey values {low}..{high}, expected 16 bits (0..65535)")
        return _by_strips(image, _grey16_to_rgb)
    if image.mode == "F":
        raise ValueError("float pixels have no defined range; expected 8 or 16 bits per channel")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        return _by_strips(image, _flattened)
    return image if image.mode == "RGB" else image.convert("RGB")


def _by_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert pixel by pixel, a strip at a time, since a conversion needs several copies."""
    width, height = image.size
    if width * height <= _STRIP:
        return convert(image)
    result = Image.new("RGB", image.size)
    tall = height >= width
    step = max(1, _STRIP // min(width, height))
    for start in range(0, max(width, height), step):
        end = min(start + step, max(width, height))
        box = (0, start, width, end) if tall else (start, 0, end, height)
        result.paste(convert(image.crop(box)), box)
    return result


def _flattened(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBa", "La"):
        image = image.convert(image.mode.upper())
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer).convert("RGB")


def _grey16_to_rgb(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
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
        labels: One text per image, in up to three lines of the width of a cell, cut where that is
            not enough; None: no texts.

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
    width = max(cell.width for cell in cells)
    height = max(cell.height for cell in cells)
    lines = [_lines(text, font, width) for text in labels or []]
    line_height = int(font.getbbox("Ag")[3])
    text_height = line_height * max(map(len, lines)) + _GAP if lines else 0
    pitch = (width + _GAP, height + text_height + _GAP)
    sheet = Image.new("RGB", (columns * pitch[0] + _GAP, rows * pitch[1] + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, cell in enumerate(cells):
        left, top = _GAP + number % columns * pitch[0], _GAP + number // columns * pitch[1]
        sheet.paste(cell, (left, top))
        for row, text in enumerate(lines[number] if lines else []):
            place = (left, top + height + row * line_height)
            draw.text(place, text, fill=(0, 0, 0), font=font)
    return sheet


def _lines(text: str, font: Any, width: int) -> list[str]:
    """A text in one to three lines of at most `width` pixels, broken between words, then cut."""
    words = text.encode("latin-1", "replace").decode("latin-1").split()
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or len(lines) == _MOST_LINES or font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    for number, line in enumerate(lines):
        while line and font.getlength(line) > width:
            line = line[:-1]
        lines[number] = line
    return lines


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
