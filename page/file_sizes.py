"""The files that tokens are compared with: their bytes, and what comes back from them."""

import io
from collections.abc import Iterator
from typing import Any

from PIL import Image
from torch import Tensor

from ..data.images import to_tensor

FILES: dict[str, dict[str, Any]] = {
    "PNG": {"format": "PNG", "optimize": True},
    "JPEG, quality 75": {"format": "JPEG", "quality": 75, "optimize": True},
    "JPEG, quality 10": {"format": "JPEG", "quality": 10, "optimize": True},
    "WebP, quality 75": {"format": "WEBP", "quality": 75, "method": 6},
    "WebP, quality 10": {"format": "WEBP", "quality": 10, "method": 6},
}
"""Settings of Pillow by the name of a file."""


def files_of(picture: Image.Image) -> Iterator[tuple[str, int, Tensor]]:
    """Name and bytes of each of `FILES`, and the image (1, 3, H, W) in [-1, 1] that it holds.

    Args:
        picture: Picture, mode RGB.
    """
    for name, how in FILES.items():
        file = io.BytesIO()
        picture.save(file, **how)
        with Image.open(file) as again:
            yield name, len(file.getvalue()), to_tensor(again.convert("RGB"))[None]
