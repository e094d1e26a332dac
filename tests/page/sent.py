"""Pictures as a browser sends them, and a job that keeps what it is told."""

import base64
import io
from typing import Any

import torch
from PIL import Image

from tessella.page.job import Job


def file_of(picture: Image.Image, kind: str = "PNG") -> str:
    """File of a picture in base64."""
    file = io.BytesIO()
    picture.save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of which every pixel is another."""
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (height, width, 3), generator=rng, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def painted(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    """A mask, white in a box."""
    mask = Image.new("L", (width, height))
    mask.paste(255, box)
    return mask


class Heard(Job):
    """A job that keeps what it is told; every step is shown."""

    def __init__(self, **fields: Any) -> None:
        self.events: list[dict[str, Any]] = []
        super().__init__(self.events.append, frame_seconds=0, **fields)
