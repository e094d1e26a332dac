"""Tokens of a picture for people: what they bring back and weigh, and one changed by hand."""

import math
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..config import STRICT
from ..data.images import to_pil, to_tensor
from ..data.transforms import resize_center_crop
from ..metrics.image import psnr
from ..tokenizers.base import Tokenizer
from ..tokens.tokens import Tokens
from .file_sizes import files_of
from .job import Job
from .limits import LIMITS, Limits, read_upload
from .models import Models

MOST_CODE = 2**53
"""Largest codebook that is shown; a browser has no larger whole numbers."""
_DIRECTIONS = 0x5EED  # seed of the directions onto which codes are projected as colours


@dataclass(frozen=True, kw_only=True)
class TokensWish:
    """A picture whose tokens are to be shown.

    Args:
        tokenizer: Name of the tokenizer.
        picture: File of the picture, in base64.
    """

    __pydantic_config__ = STRICT
    tokenizer: str
    picture: str


@dataclass(frozen=True, kw_only=True)
class DecodeWish:
    """Tokens that were changed by hand.

    Args:
        tokenizer: Name of the tokenizer.
        codes: Codes of one picture: a list of G for each of the N positions.
        length: Number of real positions, where tokens are ordered; None: all.
    """

    __pydantic_config__ = STRICT
    tokenizer: str
    codes: list[list[int]]
    length: int | None = None


@torch.no_grad()
def show_tokens(
    models: Models, wish: TokensWish, job: Job, limits: Limits = LIMITS
) -> dict[str, Any]:
    """Encode a picture of any size, and show what its tokens hold.

    Args:
        models: Models of the page.
        wish: Picture and tokenizer.
        job: Job; encoding has no steps to tell.
        limits: Limits of the page.

    Returns:
        The last event: `size` of the upload; `pictures`, the square that the tokenizer sees and
        its reconstruction; `codes`, `shape`, `sizes` and `colours` of the tokens; `bits` of them;
        `weights`, a row (name, bytes, PSNR in dB) of the tokens and of each of `file_sizes.FILES`.

    Raises:
        ValueError: If there is no such tokenizer, it has too many tokens to be shown, or the
            upload is refused.
    """
    tokenizer = models.tokenizer(wish.tokenizer)
    _check_count(tokenizer, limits)
    upload = read_upload(wish.picture, "picture", limits)
    square = resize_center_crop(upload, tokenizer.resolution)
    original = to_tensor(square)[None]
    tokens = tokenizer.encode(original.to(tokenizer.device)).to("cpu")
    job.check()
    found = _decoded(tokenizer, tokens)
    decoded = to_tensor(found["pictures"][0])[None]
    bytes_of_tokens = math.ceil(tokens.bits_per_image / 8)
    rows = [["tokens", bytes_of_tokens, round(float(psnr(original, decoded)), 1)]]
    for name, num_bytes, read in files_of(square):
        rows.append([name, num_bytes, round(float(psnr(original, read)), 1)])
    return found | {
        "size": list(upload.size),
        "pictures": [square, *found["pictures"]],
        "codes": tokens.indices[0].tolist(),
        "length": None if tokens.lengths is None else int(tokens.lengths[0]),
        "shape": list(tokens.spec.shape),
        "sizes": list(tokens.spec.codebook_sizes),
        "bits": tokens.bits_per_image,
        "weights": rows,
    }


@torch.no_grad()
def decode_tokens(
    models: Models, wish: DecodeWish, job: Job, limits: Limits = LIMITS
) -> dict[str, Any]:
    """Decode tokens that were changed by hand.

    Args:
        models: Models of the page.
        wish: Codes and their tokenizer.
        job: Job; decoding has no steps to tell.
        limits: Limits of the page.

    Returns:
        The last event: the picture in `pictures`, and the `colours` of the tokens.

    Raises:
        ValueError: If there is no such tokenizer, or the codes are not its.
    """
    tokenizer = models.tokenizer(wish.tokenizer)
    _check_count(tokenizer, limits)
    spec = tokenizer.spec
    rows = (len(wish.codes), {len(row) for row in wish.codes})
    if rows != (spec.num_tokens, {spec.num_codebooks}):
        raise ValueError(
            f"codes: expected {spec.num_tokens} positions of {spec.num_codebooks}, for {spec}"
        )
    sizes = spec.codebook_sizes * spec.num_tokens
    if any(not 0 <= code < size for code, size in zip(chain(*wish.codes), sizes, strict=True)):
        raise ValueError(f"codes: a code is out of range, expected those of {spec}")
    lengths = None if wish.length is None else torch.tensor([wish.length])
    tokens = Tokens(torch.tensor([wish.codes]), spec, lengths).validate()
    return _decoded(tokenizer, tokens)


def _decoded(tokenizer: Tokenizer, tokens: Tokens) -> dict[str, Any]:
    images = tokenizer.decode(tokens.to(tokenizer.device))
    return {
        "event": "done",
        "pictures": [to_pil(image) for image in images],
        "colours": token_colours(tokens),
    }


def _check_count(tokenizer: Tokenizer, limits: Limits) -> None:
    count = tokenizer.spec.num_tokens
    if count > limits.tokens:
        raise ValueError(
            f"tokenizer: it has {count:,} tokens, more than the {limits.tokens:,} that this page "
            "shows one by one"
        )
    if max(tokenizer.spec.codebook_sizes) > MOST_CODE:
        raise ValueError(
            "tokenizer: its codes are larger than the whole numbers of a browser, which end at 2^53"
        )


def token_colours(tokens: Tokens) -> list[str]:
    """Colour of each token of the first picture, as #rrggbb: equal tokens have equal colours.

    Tokens of bits that differ in few bits have similar colours: their signs are projected onto
    three fixed random directions. Codes that are no bits get fixed random colours instead.
    """
    rows = tokens.indices[0].cpu()
    if tokens.spec.is_binary:
        signs = 2.0 * tokens.bits()[0].cpu().double() - 1
        rng = torch.Generator().manual_seed(_DIRECTIONS)
        directions = torch.randn(signs.shape[1], 3, generator=rng, dtype=torch.float64)
        values = (signs @ directions / math.sqrt(signs.shape[1])).mul(1.3).sigmoid()
    else:
        values = _scattered(rows)
    levels = (40 + 190 * values).round().int().tolist()
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in levels]


def _scattered(rows: Tensor) -> Tensor:
    """Three values in [0, 1) for each row of codes, that look random, (N, 3) float64."""
    steps = torch.tensor([0.8191725134, 0.6710436067, 0.5497004779], dtype=torch.float64)
    weights = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64) ** 0.5
    return ((rows.double() * weights).sum(1, keepdim=True) * steps).frac()
