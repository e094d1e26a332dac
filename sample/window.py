"""The square of a picture that an edit works on: what is known there, and the way back.

A token depends on pixels far beyond its cell: the receptive fields of the encoder reach across the
border of a mask, and its normalizations see the whole image. So the hidden pixels are replaced
before the picture is resized and encoded, by several fills that are made of known pixels alone.
Where the fills lead to different tokens, the token is not known.
"""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from ..data.images import to_pil, to_tensor
from ..data.transforms import resize_center_crop
from ..tokenizers.base import Tokenizer
from ..tokens.tokens import Tokens


@dataclass(frozen=True)
class Window:
    """A square of a picture, which may extend beyond it.

    Args:
        left: Column of its left side, in pixels of the picture; may be negative.
        top: Row of its upper side.
        side: Height and width.
    """

    left: int
    top: int
    side: int

    def cut(self, values: Tensor, beyond: float | bool) -> Tensor:
        """The values (..., side, side) of a picture (..., H, W), and `beyond` outside of it."""
        height, width = values.shape[-2:]
        rows, columns = self._inside(height, width)
        found = values.new_full((*values.shape[:-2], self.side, self.side), beyond)
        found[..., self._own(rows, self.top), self._own(columns, self.left)] = values[
            ..., rows, columns
        ]
        return found

    def paste(self, values: Tensor, picture: Tensor) -> Tensor:
        """A copy of a picture (..., H, W) with values (..., side, side) in its place."""
        rows, columns = self._inside(*picture.shape[-2:])
        found = picture.clone()
        found[..., rows, columns] = values[
            ..., self._own(rows, self.top), self._own(columns, self.left)
        ]
        return found

    def _inside(self, height: int, width: int) -> tuple[slice, slice]:
        rows = slice(max(self.top, 0), min(self.top + self.side, height))
        return rows, slice(max(self.left, 0), min(self.left + self.side, width))

    @staticmethod
    def _own(part: slice, start: int) -> slice:
        return slice(part.start - start, part.stop - start)


def choose_window(hidden: Tensor, resolution: int) -> Window:
    """The window of an edit: all that is hidden, and as much around it.

    Its side is twice that of the hidden region, at least the tokenizer's resolution (so that small
    edits are made pixel by pixel), and at most the shorter side of the picture, unless the hidden
    region is larger. It lies as near to the middle of the region as the picture allows.

    Args:
        hidden: True at pixels to draw anew, (H, W) bool, at least one.
        resolution: Resolution of the tokenizer, in pixels.

    Raises:
        ValueError: If nothing is hidden.
    """
    if not hidden.any():
        raise ValueError("mask: nothing is marked, so nothing to draw anew")
    ends = []
    for axis in (0, 1):
        (marked,) = hidden.any(1 - axis).nonzero(as_tuple=True)
        ends.append((int(marked[0]), int(marked[-1]) + 1))
    sizes = tuple(hidden.shape)
    need = max(last - first for first, last in ends)
    side = max(need, min(max(resolution, 2 * need), *sizes))
    starts = []
    for (first, last), size in zip(ends, sizes, strict=True):
        start = (first + last - side) // 2
        starts.append(max(0, min(start, size - side)) if side <= size else (size - side) // 2)
    return Window(left=starts[1], top=starts[0], side=side)


def resize_mask(mask: Tensor, resolution: int) -> Tensor:
    """A square mask at another resolution, (R, R) bool: True where any marked pixel falls."""
    shown = Image.fromarray((mask.byte() * 255).numpy()).convert("RGB")
    # Not a smooth filter, which would leak over token borders.
    resized = resize_center_crop(shown, resolution, resample=Image.Resampling.BOX)
    return to_tensor(resized)[0] > -1


def neutral_fills(pixels: Tensor, hidden: Tensor) -> Tensor:
    """The picture with its hidden pixels replaced in three ways, none of which depends on them.

    Each hidden pixel becomes the mean of the known ones in a box around it: the smallest one that
    has any, of radius 1, 2, 4 and so on; the same from an eighth of the side on; and the mean of
    all. Without a known pixel all are grey.

    Args:
        pixels: Picture (3, S, S) in [-1, 1].
        hidden: True at pixels that must not count, (S, S) bool.

    Returns:
        Pictures (3, 3, S, S) in [-1, 1]; known pixels are unchanged.
    """
    side = hidden.shape[-1]
    fills = []
    for radius in (1, max(2, side // 8), side):
        found, left = torch.where(hidden, 0, pixels), hidden.clone()
        while left.any() and radius < 2 * side:
            mean, count = box_mean(pixels, ~hidden, radius)
            here = left & (count > 0)
            found = torch.where(here, mean, found)
            left, radius = left & ~here, 2 * radius
        fills.append(found)
    return torch.stack(fills)


def box_mean(values: Tensor, known: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Mean of the known values in a box around every pixel, and the share of the box that is known.

    Args:
        values: Values (..., H, W); those that are not known do not count.
        known: True at known pixels, (H, W) bool.
        radius: Number of pixels on each side of the middle, at least 1.

    Returns:
        Means (..., H, W), 0 where nothing is known, and shares (H, W) in [0, 1].
    """
    clean = torch.where(known, values, 0).double()
    count, area = (
        _box_sum(known.double(), radius),
        _box_sum(torch.ones_like(known).double(), radius),
    )
    mean = _box_sum(clean, radius) / count.clamp(min=0.5)
    return torch.where(count > 0.5, mean, 0).to(values.dtype), count.round() / area.round()


def _box_sum(values: Tensor, radius: int) -> Tensor:
    """Sum over a box around every pixel, clipped at the borders."""
    for axis in (-2, -1):
        size = values.shape[axis]
        zero = torch.zeros_like(values.narrow(axis, 0, 1))
        sums = torch.cat([zero, values.cumsum(axis)], axis)
        place = torch.arange(size)
        last, first = (place + radius + 1).clamp(max=size), (place - radius).clamp(min=0)
        values = sums.index_select(axis, last) - sums.index_select(axis, first)
    return values


@torch.no_grad()
def encode_known(tokenizer: Tokenizer, pixels: Tensor, hidden: Tensor) -> tuple[Tokens, Tensor]:
    """Tokens of a picture as far as its known pixels decide them.

    Args:
        tokenizer: Tokenizer in eval mode.
        pixels: Picture (3, S, S) in [-1, 1], which is resized to the tokenizer's resolution.
        hidden: True at pixels that must not count, (S, S) bool.

    Returns:
        Tokens of one image, and the positions that differ between the fills of `neutral_fills`,
        (N,) bool on the CPU. Neither depends on a hidden pixel.
    """
    fills = [
        to_tensor(resize_center_crop(to_pil(fill), tokenizer.resolution))
        for fill in neutral_fills(pixels, hidden)
    ]
    tokens = tokenizer.encode(torch.stack(fills).to(tokenizer.device))
    differs = (tokens.indices != tokens.indices[:1]).any(-1).any(0)
    return tokens[:1], differs.cpu()


def blend(picture: Tensor, drawn: Tensor, hidden: Tensor, window: Window, radius: int) -> Tensor:
    """Put drawn pixels in the place of the hidden ones.

    Near the border of the hidden region, the drawn pixels are shifted by the mean difference
    between known and drawn pixels around, so that no seam is left. All other pixels of the picture
    stay as they are, bit for bit.

    Args:
        picture: Picture (3, H, W) in [-1, 1].
        drawn: Drawn windows (B, 3, R, R) in [-1, 1], of another resolution perhaps.
        hidden: True at pixels to replace, (H, W) bool.
        window: Place of the drawn pixels.
        radius: Width of the border, in pixels of the picture.

    Returns:
        Pictures (B, 3, H, W) in [-1, 1].
    """
    if drawn.shape[-1] != window.side:
        size = (window.side, window.side)
        drawn = nn.functional.interpolate(drawn, size, mode="bicubic", antialias=True).clamp(-1, 1)
    own, hides = window.cut(picture, 0.0), window.cut(hidden, False)
    known = ~hides & window.cut(torch.ones_like(hidden), False)
    shift, share = box_mean(own - drawn, known, radius)
    weight = (share * (2 * radius + 1) / radius).clamp(max=1)  # 1 beside a straight border
    smooth = (drawn + shift * weight).clamp(-1, 1).to(picture.dtype)
    return window.paste(torch.where(hides, smooth, own), picture.expand(len(drawn), -1, -1, -1))
