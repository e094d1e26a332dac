"""Editing: the painted part of a picture drawn anew, all other pixels bit for bit as they were.

A model draws a square of its own resolution, however large the picture is. So the square around the
painted region is cut out, shrunk where it is larger than `WORK_SIDE`, edited by `draw_edit`, and
what was drawn is enlarged again and put into the painted pixels alone.
"""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..config import STRICT
from ..data.images import to_pil
from ..sample.pictures import draw_edit
from ..sample.steps import viewed
from ..sample.window import choose_window
from .drawing import Wish, conditions
from .job import Job
from .limits import LIMITS, Limits, read_mask, read_upload
from .models import Models

WORK_SIDE = 512
"""Longest side of the square in which an edit is made, in pixels; models draw 64 to 256."""
MOST_EDITS = 4
"""Most pictures of one edit, each as large as the upload."""


@dataclass(frozen=True, kw_only=True)
class EditWish(Wish):
    """A picture to edit.

    Args:
        model: Name of the generator.
        picture: File of the picture, in base64.
        mask: File of a picture of any size, in base64: light where to draw anew.
        num: Number of pictures.
    """

    __pydantic_config__ = STRICT
    model: str
    picture: str
    mask: str
    num: int = 1


def edit(models: Models, wish: EditWish, job: Job, limits: Limits = LIMITS) -> dict[str, Any]:
    """Draw the painted part of a picture anew.

    Args:
        models: Models of the page.
        wish: Picture, mask, and what to draw.
        job: Job that is told of every step.
        limits: Limits of the page.

    Returns:
        The last event: `pictures` of the size of the upload, their `seeds`, `seconds`,
        `drawn_anew` and `positions`, the mean number of tokens drawn and the number of all, and
        `changed`, the number of pixels outside the painted part that changed, which is 0.

    Raises:
        ValueError: If the wish is out of range or not for this model, or an upload is refused.
    """
    wish.check(limits)
    if wish.num > MOST_EDITS:
        raise ValueError(f"number of pictures: expected 1 to {MOST_EDITS}, found {wish.num}")
    generator = models.generator(wish.model)
    given = conditions(generator, wish)
    picture = read_upload(wish.picture, "picture", limits)
    mask = read_mask(wish.mask, picture.size, limits)
    started = time.perf_counter()
    box = _surroundings(mask, generator.tokenizer.resolution)
    part, painted = _shrunk(picture.crop(box)), mask[box[1] : box[3], box[0] : box[2]]
    with viewed(job.viewer(None, {})):
        edited = draw_edit(
            generator,
            part,
            mask=torch.from_numpy(_mask_of_size(painted, part.size)),
            num=wish.num,
            seed=wish.seed,
            batch_size=wish.num,
            **given,
            **wish.knobs(),
        )
    pictures, own = [], np.asarray(picture)
    changed = 0
    for image in edited.images:
        job.check()
        found = _pasted(picture, to_pil(image), painted, box)
        changed += int((np.asarray(found)[~mask] != own[~mask]).any(-1).sum())
        pictures.append(found)
    return {
        "event": "done",
        "pictures": pictures,
        "seeds": list(range(wish.seed, wish.seed + wish.num)),
        "seconds": time.perf_counter() - started,
        "drawn_anew": edited.facts["drawn_anew"],
        "positions": edited.tokens.spec.num_tokens,
        "changed": changed,
    }


def _surroundings(mask: np.ndarray, resolution: int) -> tuple[int, int, int, int]:
    """The part of a picture that an edit looks at: left, top, right and bottom."""
    window = choose_window(torch.from_numpy(mask), resolution)
    height, width = mask.shape
    right, bottom = window.left + window.side, window.top + window.side
    return max(0, window.left), max(0, window.top), min(width, right), min(height, bottom)


def _shrunk(part: Image.Image) -> Image.Image:
    """A picture with its longer side at most `WORK_SIDE`."""
    scale = WORK_SIDE / max(part.size)
    if scale >= 1:
        return part
    size = [max(1, round(side * scale)) for side in part.size]
    return part.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def _mask_of_size(painted: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at another size: True wherever a painted pixel falls."""
    if painted.shape == size[::-1]:
        return np.ascontiguousarray(painted)
    # The maximum over blocks as large as a pixel of the result, then that of each pixel's own.
    shown = Image.fromarray(painted.astype(np.uint8) * 255)
    mean = np.asarray(shown.convert("F").resize(size, Image.Resampling.BOX))
    return mean > 1 / math.prod(shown.size)


def _pasted(
    picture: Image.Image,
    drawn: Image.Image,
    painted: np.ndarray,
    box: tuple[int, int, int, int],
) -> Image.Image:
    """The picture with what was drawn in the place of its painted pixels, and of no others."""
    size = (box[2] - box[0], box[3] - box[1])
    if drawn.size != size:
        drawn = drawn.resize(size, Image.Resampling.BICUBIC)
    result = picture.copy()
    result.paste(drawn, box[:2], Image.fromarray(painted.astype(np.uint8) * 255))
    return result
