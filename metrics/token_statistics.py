"""Statistics of tokens: joint codes, groups of bits, pairs of bits, and bits per image."""

import torch
from PIL import Image

from ..tokens.packing import group_sizes
from ..tokens.tokens import Tokens, TokenSpec
from .bit_correlation import BitStatistics
from .codes import MAX_JOINT, CodeStatistics

MAX_CORRELATED_BITS = 1024
"""Largest number of bits of a position whose pairs are counted, in a table of its square."""
_PICTURE_SIDE = 384


def readable_groups(spec: TokenSpec) -> tuple[int, ...] | None:
    """Sizes of groups of at most 8 bits, for bit tokens too long for a joint histogram.

    The usage of 2**24 codes cannot be measured on a few thousand tokens, but that of their bytes
    can.

    Returns:
        Codebook sizes of the groups; None for other tokens.
    """
    if set(spec.codebook_sizes) != {2} or spec.vocab_size <= MAX_JOINT:
        return None
    return tuple(2**bits for bits in group_sizes(spec.num_codebooks, 8))


class TokenStatistics:
    """Streaming statistics of codes, groups of bits, pairs of bits and bits per image.

    Args:
        spec: Spec of the tokens.
    """

    def __init__(self, spec: TokenSpec) -> None:
        self.spec = spec
        self.codes = CodeStatistics(spec.codebook_sizes)
        self.groups = readable_groups(spec)
        self.group_codes = None if self.groups is None else CodeStatistics(self.groups)
        bits = spec.num_codebooks
        correlated = set(spec.codebook_sizes) == {2} and 2 <= bits <= MAX_CORRELATED_BITS
        self.bits = BitStatistics(bits) if correlated else None
        self.num_images, self.capacity = 0, 0.0

    def update(self, tokens: Tokens) -> None:
        """Count a batch."""
        self.codes.update(tokens.indices, tokens.valid)
        if self.group_codes is not None and self.groups is not None:
            self.group_codes.update(tokens.regroup(self.groups).indices, tokens.valid)
        if self.bits is not None:
            self.bits.update(tokens.indices, tokens.valid)
        self.num_images += len(tokens)
        self.capacity += tokens.bits_per_image * len(tokens)

    def merge(self, other: "TokenStatistics") -> None:
        """Add the counts of another object."""
        self.codes.merge(other.codes)
        if self.group_codes is not None and other.group_codes is not None:
            self.group_codes.merge(other.group_codes)
        if self.bits is not None and other.bits is not None:
            self.bits.merge(other.bits)
        self.num_images += other.num_images
        self.capacity += other.capacity

    def correlation_picture(self) -> Image.Image | None:
        """Picture of the correlations of all pairs of bits, bit 0 at the top left.

        White is 0, red 1 (equal bits), blue -1 (opposite bits); the diagonal is left white.

        Returns:
            The picture, at least one pixel per pair; None if pairs of bits are not counted.
        """
        if self.bits is None:
            return None
        values = self.bits.correlation.clone().fill_diagonal_(0)
        fade = (1 - values.abs()) * 255
        full = torch.full_like(fade, 255)
        colours = torch.stack(
            [torch.where(values < 0, fade, full), fade, torch.where(values > 0, fade, full)], 2
        )
        image = Image.fromarray(colours.round().to(torch.uint8).numpy())
        side = max(1, _PICTURE_SIDE // len(values))
        size = (len(values) * side, len(values) * side)
        return image.resize(size, Image.Resampling.NEAREST)

    def compute(self) -> dict[str, float]:
        """All statistics by the names of `CodeStatistics` and `BitStatistics`.

        Returns:
            Values by name. Statistics of groups of bits are called `group_*` instead of `entry_*`;
            `bits_per_image` is the mean capacity of the tokens of an image.

        Raises:
            ValueError: If nothing was counted.
        """
        result = self.codes.compute()
        if self.bits is not None:
            result |= self.bits.compute()
        if self.group_codes is not None:
            seen = self.group_codes.compute()
            result |= {k.replace("entry", "group"): v for k, v in seen.items() if "entry" in k}
        return result | {"bits_per_image": self.capacity / self.num_images}
