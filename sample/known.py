"""What every sampler begins with: which positions it draws, and what the others hold."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..tokens.tokens import Tokens, TokenSpec


@dataclass(frozen=True, eq=False)
class Start:
    """Known and hidden positions of a batch.

    Args:
        codes: Known codes, (B, N, G) int64; 0 at hidden positions and past the length.
        hidden: True at positions to draw, (B, N) bool; at least one in each image.
        valid: True at real positions, (B, N) bool; None: all.
        lengths: Real positions of each image, (B,) int64; None: all.
    """

    codes: Tensor
    hidden: Tensor
    valid: Tensor | None
    lengths: Tensor | None


def find_start(
    spec: TokenSpec,
    codebook_sizes: Sequence[int],
    seeds: Tensor,
    known: Tokens | None = None,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Start:
    """Which positions a sampler draws and which it knows.

    Args:
        spec: Of the generator's tokens.
        codebook_sizes: In which the sampler reads them; the bits of a position are (2, 2, ...).
        seeds: One per image, (B,) int64; the result is on their device.
        known: Tokens to keep where `mask` is False, of `spec`; None: all are new.
        mask: True at positions to draw anew, (B, N) bool; goes with `known`.
        lengths: Real positions of each image, (B,) int64, for ordered specs; None: those of
            `known`, or all. What it adds to `known` is drawn.

    Raises:
        ValueError: If known tokens and mask do not fit each other or the batch, or an image has
            nothing to draw.
    """
    batch, device = len(seeds), seeds.device
    hidden = torch.ones(batch, spec.num_tokens, dtype=torch.bool, device=device)
    codes = torch.zeros(*hidden.shape, len(codebook_sizes), dtype=torch.int64, device=device)
    if (known is None) != (mask is None):
        raise ValueError("known tokens and the mask of positions to redraw go together")
    if known is not None and mask is not None:
        if mask.shape != hidden.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"mask: expected {tuple(hidden.shape)} bool, found {tuple(mask.shape)} {mask.dtype}"
            )
        known = known.require(spec, reader="the generator").to(device)
        if len(known) != batch:
            raise ValueError(f"known: expected {batch} images, found {len(known)}")
        hidden = mask.to(device) | ~known.valid
        codes = known.regroup(codebook_sizes).indices
        lengths = known.lengths if lengths is None else lengths
    valid = None
    if lengths is not None:
        valid = torch.arange(spec.num_tokens, device=device) < lengths[:, None]
        hidden = hidden & valid
        codes = codes * valid[..., None]
    if not hidden.any(1).all():
        raise ValueError("mask: nothing to draw anew in at least one image")
    return Start(codes.masked_fill(hidden[..., None], 0), hidden, valid, lengths)
