"""Editing with any generator: some tokens of a picture are kept, the others are drawn anew.

Inpainting redraws what a mask or a box covers, outpainting what lies outside it, class editing does
either with another label, variation redraws a random share, and enriching redraws a quarter at a
time until every token is new. All of them are `generate` with some tokens known, whatever the
generator. Interpolation is `generate` with a generator whose classes are mixtures of two.
"""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..data.images import read_image, to_tensor, upright_rgb
from ..data.transforms import resize_center_crop
from ..generators.base import Generator
from ..generators.noise import derive_seeds, uniform
from ..tokens.tokens import Tokens, TokenSpec
from .generate import generate
from .request import whole_numbers

_VARIATION = 2**31 + 1  # number of the random draw that chooses the positions of a variation
_ENRICHMENT = 2**31 + 16  # first of the draws that order the quarters, one for each repeat
_CELL = 2  # side of the cells of `enrich`, in tokens


def read_masked_image(
    picture: Path | str | Image.Image,
    mask: Path | str | Image.Image | None,
    resolution: int,
) -> tuple[Tensor, Tensor | None]:
    """Read a picture and its mask, resized and centre-cropped in the same way.

    Args:
        picture: Picture file or PIL image.
        mask: Picture of the same size, light (128 to 255) where to draw anew; None: no mask.
        resolution: Resolution of the tokenizer, in pixels.

    Returns:
        Image (3, R, R) in [-1, 1], and mask (R, R) bool, True where to draw anew, or None.

    Raises:
        ValueError: If a file cannot be read or the sizes differ.
    """
    image = _read(picture)
    pixels = to_tensor(resize_center_crop(image, resolution))
    if mask is None:
        return pixels, None
    shown = _read(mask)
    if shown.size != image.size:
        name = "mask" if isinstance(mask, Image.Image) else mask
        raise ValueError(
            f"{name}: the mask is {shown.width}x{shown.height}, the image "
            f"{image.width}x{image.height}; expected the same size"
        )
    light = (np.asarray(shown.convert("L")) >= 128).astype(np.uint8) * 255
    whole = Image.fromarray(light).convert("RGB")  # a smooth filter would leak over token borders
    resized = resize_center_crop(whole, resolution, resample=Image.Resampling.BOX)
    return pixels, torch.from_numpy(np.asarray(resized)[..., 0] > 0)


def _read(picture: Path | str | Image.Image) -> Image.Image:
    """A picture file or PIL image, upright and RGB."""
    return upright_rgb(picture) if isinstance(picture, Image.Image) else read_image(picture)


def box_mask(box: tuple[int, int, int, int], resolution: int, *, outside: bool = False) -> Tensor:
    """Mask of a box in pixels, (R, R) bool.

    Args:
        box: Left, top, right, bottom; right and bottom are not included.
        resolution: Height and width of the picture, in pixels.
        outside: Whether to mark what lies outside the box (outpainting), not what it covers.

    Returns:
        Mask (R, R) bool, True where to draw anew.

    Raises:
        ValueError: If the box is empty or extends beyond the picture.
    """
    left, top, right, bottom = box
    if not (0 <= left < right <= resolution and 0 <= top < bottom <= resolution):
        raise ValueError(
            f"box {box}: expected 0 <= left < right <= {resolution} and "
            f"0 <= top < bottom <= {resolution}"
        )
    mask = torch.zeros(resolution, resolution, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return ~mask if outside else mask


def token_mask(mask: Tensor, spec: TokenSpec) -> Tensor:
    """Positions with at least one marked pixel in their cell of the grid, (N,) bool.

    Args:
        mask: True at pixels to draw anew, (H, W) bool; H and W are multiples of the grid's sides.
        spec: Spec of tokens in a two-dimensional grid.

    Raises:
        ValueError: If the tokens form no grid, the size does not fit, or no pixel is marked.
    """
    if len(spec.shape) != 2:
        raise ValueError(
            f"a mask of pixels needs a grid of tokens; {spec} have no grid of two dimensions"
        )
    rows, columns = spec.shape
    height, width = mask.shape
    if height % rows or width % columns:
        raise ValueError(f"mask: {height}x{width} pixels are no multiple of {rows}x{columns} cells")
    cells = mask.view(rows, height // rows, columns, width // columns).any(3).any(1).flatten()
    if not cells.any():
        raise ValueError("mask: nothing is marked inside the centre crop, so nothing to draw anew")
    return cells


def variation_mask(seeds: Tensor, spec: TokenSpec, share: float) -> Tensor:
    """Random positions of each image to draw anew, (B, N) bool, at least one.

    Args:
        seeds: Seed of each image, (B,) int64.
        spec: Spec of the tokens.
        share: Share of the positions to draw, in (0, 1].

    Raises:
        ValueError: If the share is outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"variation: expected a share above 0 up to 1, found {share}")
    count = max(1, round(share * spec.num_tokens))
    noise = uniform(seeds, _VARIATION, (spec.num_tokens,))
    return torch.zeros_like(noise, dtype=torch.bool).scatter_(1, noise.argsort(1)[:, :count], True)


@torch.no_grad()
def enrich(
    generator: Generator,
    tokens: Tokens,
    labels: Sequence[int] | Tensor | None = None,
    *,
    seeds: Sequence[int] | Tensor,
    repeats: int = 4,
    **options: Any,
) -> Tokens:
    """Draw all tokens of a picture anew, a quarter at a time, to add detail.

    The quarters are the four places in cells of 2x2 tokens. Each image takes them in a random order
    of its own, which differs between repeats, and every turn has its own random numbers.

    Args:
        generator: Generator of any kind, in eval mode.
        tokens: Tokens of a picture, e.g. an enlarged one; one image for all or one each.
        labels: Class of each image, as in `generate`; published: none.
        seeds: Seed of each image, at least 0.
        repeats: Number of times that every token is drawn anew, at least 1.
        options: Arguments of `generate` for each of the `4 * repeats` calls; published for BiGR:
            `schedule="linear"`.

    Raises:
        ValueError: If the tokens form no grid of at least 2x2, or an argument is out of range.

    Source: arXiv:2410.14672 section 3.4 and its code, there with BiGR alone.
    """
    spec, seeds = generator.spec, whole_numbers(seeds, "seeds")
    if len(spec.shape) != 2 or min(spec.shape) < _CELL:
        raise ValueError(f"enrich: expected a grid of at least 2x2 tokens, found {spec}")
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, found {repeats}")
    rows, columns = (torch.arange(side) % _CELL for side in spec.shape)
    places = (_CELL * rows[:, None] + columns).flatten()
    for repeat in range(repeats):
        order = uniform(seeds, _ENRICHMENT + repeat, (_CELL**2,)).argsort(1)
        for turn in range(_CELL**2):
            tokens = generate(
                generator,
                labels,
                seeds=derive_seeds(_CELL**2 * repeat + turn, seeds),
                known=tokens,
                mask=places == order[:, turn : turn + 1],
                **options,
            )
    return tokens


def between(generator: Generator, first: int, last: int, num: int) -> Generator:
    """A generator whose classes are mixtures, leading from one class to another in equal steps.

        mixtures = between(generator, 3, 7, 9)
        tokens = generate(mixtures, range(9), seeds=[0] * 9)

    Class i has the embedding (1 - a) e_first + a e_last with a = i / (num - 1). Everything else
    is as in `generator`, also without a label; all other weights are shared with it, not copied.
    The result counts as another model: it has no fingerprint, and its classes have other names.

    Args:
        generator: Generator with classes.
        first: Class of `generator` that becomes class 0, in [0, num_classes).
        last: Class of `generator` that becomes class num - 1.
        num: Number of classes of the result, at least 2.

    Raises:
        ValueError: If a class does not exist, or `num` is below 2.

    Source: arXiv:2410.14672 section 3.4 and its code, there with BiGR alone.
    """
    for label in (first, last):
        if not 0 <= label < generator.num_classes:
            raise ValueError(
                f"between: found class {label} of a generator of type {generator.config.type} with "
                f"{generator.num_classes} classes; expected a class numbered from 0"
            )
    if num < 2:
        raise ValueError(
            f"between: expected at least 2 pictures, one for each of both classes; found {num}"
        )
    attached = vars(generator).get("_tokenizer", [])
    shared = (*generator.parameters(), *generator.buffers(), *attached)
    mixed = copy.deepcopy(generator, {id(part): part for part in shared})
    for part in mixed.modules():
        table = getattr(part, "class_embedding", None)
        if isinstance(table, nn.Embedding):
            rows = table.weight.detach()
            share = torch.linspace(0, 1, num, device=rows.device)[:, None].to(rows.dtype)
            ways = (1 - share) * rows[first] + share * rows[last]
            nothing = rows[generator.num_classes :]  # empty where "no label" has no embedding
            table = nn.Embedding(num + len(nothing), rows.shape[1], device="meta")
            table.weight = nn.Parameter(torch.cat([ways, nothing]), requires_grad=False)
            part.class_embedding = table
        if hasattr(part, "num_classes"):
            part.num_classes = num  # type: ignore[assignment]
    mixed.config = dataclasses.replace(generator.config, num_classes=num)
    mixed.fingerprint = None
    if generator.classes:
        ends = generator.classes[first], generator.classes[last]
        shares = [i / (num - 1) for i in range(num)]
        mixed.classes = tuple(f"{1 - a:.4g} {ends[0]} + {a:.4g} {ends[1]}" for a in shares)
    return mixed
