"""Known positions of a request and those to draw; every sampler starts from them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..tokens.tokens import TokenSpec
from .request import Request, check_mask


@dataclass(frozen=True, eq=False)
class KnownTokens:
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


def known_tokens(request: Request, spec: TokenSpec, codebook_sizes: Sequence[int]) -> KnownTokens:
    """Known and hidden positions of a request, on the device of its seeds.

    Args:
        request: Images to draw.
        spec: Token spec of the generator.
        codebook_sizes: Codebook sizes in which the sampler reads a position, e.g. (2, 2, ...) for
            bits.
    """
    batch, device, lengths = len(request), request.seeds.device, request.lengths
    hidden = torch.ones(batch, spec.num_tokens, dtype=torch.bool, device=device)
    codes = torch.zeros(*hidden.shape, len(codebook_sizes), dtype=torch.int64, device=device)
    if request.known is not None and request.mask is not None:
        known = request.known.require(spec, reader="the generator").to(device)
        mask = check_mask(request.mask, batch, spec).to(device)
        hidden = mask | ~known.valid
        codes = known.regroup(codebook_sizes).indices
        lengths = known.lengths if lengths is None else lengths
    valid = None
    if lengths is not None:
        valid = torch.arange(spec.num_tokens, device=device) < lengths[:, None]
        hidden = hidden & valid
        codes = codes * valid[..., None]
    return KnownTokens(codes.masked_fill(hidden[..., None], 0), hidden, valid, lengths)
