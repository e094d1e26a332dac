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

from ..data.images import read_image, upright_rgb
from ..generators.base import Generator
from ..generators.noise import derive_seeds, uniform
from ..tokens.tokens import Tokens, TokenSpec
from .generate import generate
from .request import whole_numbers

_VARIATION = 2**31 + 1  # number of the random draw that chooses the positions of a variation
_ENRICHMENT = 2**31 + 16  # first of the draws that order the quarters, one for each repeat
_CELL = 2  # side of the cells of `enrich`, in tokens


def read_masked_image(
    picture: Path | str | Image.Image, mask: Path | str | Image.Image | Tensor | None
) -> tuple[Image.Image, Tensor | None]:
    """Read a picture and its mask.

    Args:
        picture: Picture file or PIL image.
        mask: Picture of the same size, light (128 to 255) where to draw anew, or (H, W) bool;
            None: no mask.

    Returns:
        Picture, upright and RGB, and mask (H, W) bool, True where to draw anew, or None.

    Raises:
        ValueError: If a file cannot be read or the sizes differ.
    """
    image = _read(picture)
    if mask is None:
        return image, None
    if isinstance(mask, Tensor):
        size = (image.height, image.width)
        if mask.shape != size or mask.dtype != torch.bool:
            raise ValueError(
                f"mask: expected a picture or {size} bool, found {tuple(mask.shape)} {mask.dtype}"
            )
        return image, mask.cpu()
    shown = _read(mask)
    if shown.size != image.size:
        name = "mask" if isinstance(mask, Image.Image) else mask
        raise ValueError(
            f"{name}: the mask is {shown.width}x{shown.height}, the image "
            f"{image.width}x{image.height}; expected the same size"
        )
    return image, torch.from_numpy(np.asarray(shown.convert("L")) >= 128)


def _read(picture: Path | str | Image.Image) -> Image.Image:
    """A picture file or PIL image, upright and RGB."""
    return upright_rgb(picture) if isinstance(picture, Image.Image) else read_image(picture)


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
