"""Pictures as a browser sends them, a job that keeps what it is told, and a server in a thread."""

import base64
import contextlib
import io
import threading
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image

from tessella.page.job import Job
from tessella.page.limits import Limits
from tessella.page.models import Models
from tessella.page.server import PageServer


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


@contextlib.contextmanager
def served(models: Models, **limits: Any) -> Iterator[PageServer]:
    """The page, on any free port."""
    with PageServer(models, limits=Limits(**limits)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
