"""Limits of the page, and uploads read within them.

What a browser sends may come from anybody: a limit is checked before the work that it bounds, and
the message says what was found and what is taken.
"""

import base64
import binascii
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..data.images import FORMATS, BrokenImage, read_image
from ..errors import one_line


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request, and all of them together, may take.

    Args:
        body_bytes: Largest body of a request; a picture in it takes a third more than its file.
        pixels: Most pixels of an uploaded picture.
        side: Longest side of an uploaded picture, in pixels; browsers show no larger canvas.
        pictures: Most pictures of one drawing.
        steps: Most steps of one drawing.
        prompt: Most characters of a prompt.
        tokens: Most positions of a picture whose tokens are shown one by one.
        waiting: Most jobs that wait while one runs.
        connections: Most connections at a time.
        job_seconds: Longest time that a job runs.
        send_seconds: Longest time that a browser takes to send a request or to read an answer.
    """

    body_bytes: int = 32 * 2**20
    pixels: int = 20_000_000
    side: int = 16_384
    pictures: int = 16
    steps: int = 256
    prompt: int = 1_000
    tokens: int = 1_024
    waiting: int = 3
    connections: int = 16
    job_seconds: float = 120.0
    send_seconds: float = 30.0


LIMITS = Limits()


def read_upload(text: str, name: str, limits: Limits = LIMITS) -> Image.Image:
    """Picture of an upload, upright and RGB.

    Args:
        text: Its file, in base64.
        name: Name of the picture in messages.
        limits: Limits of the page.

    Raises:
        ValueError: If it is no picture, damaged, or too large; the size is looked at before any
            pixel is decoded.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{name}: expected a file in base64") from None
    most = f"expected at most {limits.pixels:,} pixels and {limits.side:,} on a side"
    try:
        picture = read_image(data, name=name, max_pixels=limits.pixels)
    except BrokenImage as error:
        raise ValueError(f"{name}: {_fault(error, most)}") from None
    if max(picture.size) > limits.side:
        raise ValueError(f"{name}: {picture.width}x{picture.height} pixels, {most}")
    return picture


def _fault(error: BrokenImage, most: str) -> str:
    """Why a picture is not read, in words for whoever uploaded it."""
    cause = error.__cause__
    if isinstance(cause, Image.DecompressionBombError):
        return f"far too large, {most}"
    if isinstance(cause, UnidentifiedImageError):
        return f"no picture in a format that is read ({', '.join(FORMATS)})"
    said = one_line(str(cause))
    if "(max_pixels)" in said:
        return f"{said.partition(',')[0]}, {most}"
    return f"damaged, or of a kind that is not read: {said}"


def read_mask(text: str, size: tuple[int, int], limits: Limits = LIMITS) -> np.ndarray:
    """Painted region of a picture.

    Args:
        text: File of a picture, in base64, of any size: light where something is painted.
        size: Width and height of the picture that it covers.
        limits: Limits of the page.

    Returns:
        True where something is painted, (H, W) bool.

    Raises:
        ValueError: If it is no picture, or nothing is painted.
    """
    painted = read_upload(text, "mask", limits).convert("L")
    painted = painted.resize(size, Image.Resampling.NEAREST)
    mask = np.asarray(painted) >= 128
    if not mask.any():
        raise ValueError("mask: nothing is painted; paint over what is to be drawn anew")
    return mask
