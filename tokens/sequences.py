"""Images as sequences of ids for language models, and back.

A sequence has one id for each position, its joint index, or one for each entry of a position, in
ranges of their own; perhaps between ids that begin and end an image.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..config import STRICT
from .packing import MAX_JOINT, join_entries, split_joint
from .tokens import Tokens, TokenSpec

PADDING = -1
"""Fills the end of shorter sequences of a batch; ids are never negative."""


@dataclass(frozen=True, kw_only=True)
class SequenceFormat:
    """How the tokens of an image become a sequence of ids of a vocabulary.

    Args:
        spec: Description of the tokens.
        ids: `joint`: an id is offset + joint index of a position. `groups`: G ids for a position,
            entry 0 first; id of entry g is offset + sum of the sizes before g + its value.
        order: Order of the positions: `rows`, from left to right and top to bottom, or `hilbert`,
            along a Hilbert curve, whose neighbours are neighbours in the picture.
        offset: First id of the tokens, >= 0: the size of the vocabulary that they are added to.
        bos: Id before every image, or None.
        eos: Id after every image, or None.

    Raises:
        ValueError: If `bos` or `eos` is an id of the tokens, an id is beyond 2**62, or the curve
            does not exist: a sequence instead of a grid, or lengths.

    Example:
        >>> format = SequenceFormat(spec=TokenSpec((2, 2), (2, 3)), offset=50_000, bos=49_999)
        >>> tokens = Tokens(torch.tensor([[[1, 2], [0, 0], [1, 0], [0, 1]]]), format.spec)
        >>> ids = format.encode(tokens)
        >>> ids.tolist(), format.length, format.ids_used
        ([[49999, 50005, 50000, 50001, 50002]], 5, range(50000, 50006))
        >>> format.decode(ids).equal(tokens)
        True
    """

    __pydantic_config__ = STRICT
    spec: TokenSpec
    ids: Literal["joint", "groups"] = "joint"
    order: Literal["rows", "hilbert"] = "rows"
    offset: int = 0
    bos: int | None = None
    eos: int | None = None

    def __post_init__(self) -> None:
        if self.ids not in ("joint", "groups") or self.order not in ("rows", "hilbert"):
            raise ValueError(
                f"ids={self.ids!r}, order={self.order!r}; expected joint or groups, and rows or "
                "hilbert"
            )
        sizes = self.spec.codebook_sizes
        count = self.spec.vocab_size if self.ids == "joint" else sum(sizes)
        if self.offset < 0 or self.offset + count > MAX_JOINT:
            hint = "; use ids=groups" if self.ids == "joint" and len(sizes) > 1 else ""
            raise ValueError(
                f"offset: found {self.offset} and {count} ids after it, expected 0 to 2**62{hint}"
            )
        for name, value in (("bos", self.bos), ("eos", self.eos)):
            if value is not None and (value in self.ids_used or not 0 <= value < MAX_JOINT):
                first, last = self.offset, self.offset + count - 1
                raise ValueError(
                    f"{name}: found {value}, expected an id >= 0 outside those of the tokens, "
                    f"{first} to {last}"
                )
        if self.order == "hilbert" and (len(self.spec.shape) != 2 or self.spec.ordered):
            raise ValueError(f"order: {self.spec} is no grid of full length; expected rows")

    @property
    def ids_used(self) -> range:
        """Ids of the tokens."""
        sizes = self.spec.codebook_sizes
        count = self.spec.vocab_size if self.ids == "joint" else sum(sizes)
        return range(self.offset, self.offset + count)

    @property
    def ids_per_token(self) -> int:
        """Number of ids of a position."""
        return 1 if self.ids == "joint" else self.spec.num_codebooks

    @property
    def length(self) -> int:
        """Number of ids of an image of full length, with those that begin and end it."""
        ends = (self.bos is not None) + (self.eos is not None)
        return self.spec.num_tokens * self.ids_per_token + ends

    @property
    def largest_id(self) -> int:
        """Largest id of all."""
        return max(self.ids_used[-1], *(i for i in (self.bos, self.eos) if i is not None), 0)

    @property
    def positions(self) -> Tensor:
        """Row-major number of each position of the sequence, (N,) int64."""
        if self.order == "rows":
            return torch.arange(self.spec.num_tokens)
        height, width = self.spec.shape
        return torch.from_numpy(hilbert_positions(height, width))

    def to_dict(self) -> dict[str, Any]:
        """Settings without the spec, as JSON values."""
        return {name: getattr(self, name) for name in ("ids", "order", "offset", "bos", "eos")}

    def encode(self, tokens: Tokens) -> Tensor:
        """Ids of B images, (B, `length`) int64; the end of shorter ones is filled with -1.

        Raises:
            SpecMismatch: If the tokens are of another spec.
            ValueError: If a code is out of range.
        """
        codes = tokens.require(self.spec, reader="this sequence format").validate().indices.cpu()
        codes = codes[:, self.positions]
        if self.ids == "joint":
            inner = join_entries(codes, self.spec.codebook_sizes)
        else:
            inner = (codes + self._starts()).flatten(1)
        used = tokens.valid.sum(1).cpu() * self.ids_per_token
        inside = torch.arange(inner.shape[1]) < used[:, None]
        begin = int(self.bos is not None)
        ids = torch.full((len(tokens), self.length), PADDING)
        ids[:, begin : begin + inner.shape[1]][inside] = inner[inside] + self.offset
        if self.bos is not None:
            ids[:, 0] = self.bos
        if self.eos is not None:
            ids[torch.arange(len(ids)), begin + used] = self.eos
        return ids

    def decode(self, ids: Tensor | np.ndarray) -> Tokens:
        """Tokens of sequences; inverse of `encode`.

        Args:
            ids: Sequences, (B, L) integers; -1 after the end of shorter ones.

        Raises:
            ValueError: If they do not begin, end or have the length as the format says, or an id
                is none of the tokens; the message has row and position.
        """
        found = torch.as_tensor(ids).cpu()
        if found.ndim != 2 or found.is_floating_point() or found.dtype == torch.bool:
            raise ValueError(
                f"ids: expected (B, L) integers, found {tuple(found.shape)} {found.dtype}"
            )
        found = found.long()
        ends = (found != PADDING).sum(1)
        begin = int(self.bos is not None)
        counts = ends - begin - int(self.eos is not None)
        full, per_token = self.spec.num_tokens * self.ids_per_token, self.ids_per_token
        right = counts == full
        if self.spec.ordered:
            right = (counts > 0) & (counts <= full) & (counts % per_token == 0)
        if not right.all():
            row = int((~right).nonzero()[0])
            expected = f"up to {self.length}" if self.spec.ordered else str(self.length)
            raise ValueError(f"ids: row {row} has {int(ends[row])} ids, expected {expected}")
        rows = torch.arange(len(found))
        for name, value, column in (("bos", self.bos, ends * 0), ("eos", self.eos, ends - 1)):
            wrong = found[rows, column] != (PADDING if value is None else value)
            if value is not None and wrong.any():
                row = int(wrong.nonzero()[0])
                raise ValueError(
                    f"ids: row {row}: found {int(found[row, column[row]])}, expected {name} {value}"
                )
        inner = torch.full((len(found), full), PADDING)
        width = min(full, found.shape[1] - begin)
        inner[:, :width] = found[:, begin : begin + width]
        inside = torch.arange(full) < counts[:, None]
        values = self._values(inner, inside)
        if self.ids == "joint":
            codes = split_joint(values, self.spec.codebook_sizes)
        else:
            codes = values.view(len(found), self.spec.num_tokens, per_token)
        indices = torch.empty_like(codes)
        indices[:, self.positions] = codes
        lengths = torch.div(counts, per_token, rounding_mode="floor")
        return Tokens(indices, self.spec, lengths if self.spec.ordered else None).validate()

    def _values(self, inner: Tensor, inside: Tensor) -> Tensor:
        """Joint indices or entries of ids, 0 outside of `inside`; checked."""
        values, sizes = inner - self.offset, torch.tensor([min(self.spec.vocab_size, MAX_JOINT)])
        if self.ids == "groups":
            repeats = self.spec.num_tokens
            values = values - self._starts().repeat(repeats)
            sizes = torch.tensor(self.spec.codebook_sizes).repeat(repeats)
        wrong = inside & ((values < 0) | (values >= sizes))
        if wrong.any():
            row, column = wrong.nonzero()[0].tolist()
            low = inner[row, column] - values[row, column]
            high = low + sizes.expand(inner.shape[1])[column] - 1
            raise ValueError(
                f"ids: row {row}, token {column}: found {int(inner[row, column])}, expected "
                f"{int(low)} to {int(high)}"
            )
        return values.masked_fill(~inside, 0)

    def _starts(self) -> Tensor:
        """First id of each entry, without the offset, (G,) int64."""
        sizes = torch.tensor(self.spec.codebook_sizes)
        return sizes.cumsum(0) - sizes


def hilbert_positions(height: int, width: int) -> np.ndarray:
    """Row-major numbers of the positions of a grid in the order of a Hilbert curve, (H * W,) int64.

    The curve is that of the smallest square of 2**k positions a side that holds the grid, from its
    upper left corner to the upper right one; positions outside the grid are left out.

    Example:
        >>> hilbert_positions(2, 2).tolist()
        [0, 2, 3, 1]
    """
    rows, columns = np.zeros(1, np.int64), np.zeros(1, np.int64)
    side = 1
    while side < max(height, width):
        # Four copies of the curve: mirrored at the diagonal, two as they are, and mirrored at the
        # other diagonal.
        other_rows, other_columns = side - 1 - columns, side - 1 - rows
        quarters = (
            (columns, rows),
            (rows + side, columns),
            (rows + side, columns + side),
            (other_rows, other_columns + side),
        )
        rows, columns = (np.concatenate(parts) for parts in zip(*quarters, strict=True))
        side *= 2
    inside = (rows < height) & (columns < width)
    return rows[inside] * width + columns[inside]
