"""Encoding of images of several sizes: in batches of one size each."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..tokens.tokens import Tokens
from .base import Tokenizer


def crop_to_stride(image: Tensor, stride: int) -> Tensor:
    """The largest centre crop whose sides are multiples of the stride.

    Args:
        image: Image or images (..., H, W).
        stride: Pixels of a token along one side, `Tokenizer.stride`.

    Returns:
        The crop, a view.

    Raises:
        ValueError: If a side is smaller than the stride.
    """
    height, width = image.shape[-2:]
    rows, columns = height // stride * stride, width // stride * stride
    if not rows or not columns:
        raise ValueError(
            f"image: found {height}x{width} pixels (height x width), expected at least one token "
            f"of {stride}x{stride}"
        )
    top, left = (height - rows) // 2, (width - columns) // 2
    return image[..., top : top + rows, left : left + columns]


def encode_sizes(
    tokenizer: Tokenizer, images: Sequence[Tensor], *, batch_size: int = 16
) -> list[Tokens]:
    """Tokens of images of several sizes; those of one size are encoded together.

    Args:
        tokenizer: Tokenizer with a `stride`.
        images: Images (3, H, W) in [-1, 1], whose sides are multiples of the stride.
        batch_size: Largest number of images encoded at once.

    Returns:
        For every image, in order, its tokens: one image of the spec `tokenizer.spec_of(H, W)`.

    Raises:
        ValueError: If a size, type or range is wrong; before anything is encoded, for sizes.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
    by_size: dict[tuple[int, int], list[int]] = {}
    for number, image in enumerate(images):
        height, width = image.shape[-2:]
        tokenizer.spec_of(height, width)
        by_size.setdefault((height, width), []).append(number)
    found: dict[int, Tokens] = {}
    for numbers in by_size.values():
        for start in range(0, len(numbers), batch_size):
            part = numbers[start : start + batch_size]
            tokens = tokenizer.encode(torch.stack([images[i] for i in part]), any_size=True)
            found |= {number: tokens[i : i + 1] for i, number in enumerate(part)}
    return [found[number] for number in range(len(images))]
