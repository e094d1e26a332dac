"""Tokens: the common exchange format of tokenizers, generators, stores and kernels.

A `TokenSpec` describes the tokens of a tokenizer; `Tokens` are a batch of them. G entries per
position cover every family: one codebook, n bits (n entries of size 2), several codebooks, FSQ
levels, binary latents, adaptive length (`ordered` and `lengths`). Everything is little-endian:
entry 0 of a position is the least significant, bit i of an entry has the weight 2**i. Values are
always decodable; masks of generators are separate tensors, never values of tokens.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from ..files import atomic_file, check_file
from ..kernels.bit_packing.op import pack_codes, unpack_codes
from .packing import MAX_JOINT, join_bits, join_entries, split_bits, split_joint
from .token_file import TOKENS_KEY, is_token_file, save_tensors


class SpecMismatch(ValueError):
    """Tokens have another spec than their reader expects."""


@dataclass(frozen=True)
class TokenSpec:
    """Description of the tokens of a tokenizer. Equal specs are compatible.

    Args:
        shape: Grid (H, W) or sequence (N,) of positions, row-major.
        codebook_sizes: Size of each of the G entries of a position, 2 to 2**62 each.
        ordered: True if any prefix of the positions decodes (adaptive length).

    Raises:
        ValueError: If a dimension or size is out of range.

    Example:
        >>> spec = TokenSpec((8, 8), (2,) * 14)  # MaskBit: 8 x 8 positions of 14 bits
        >>> spec.num_tokens, spec.bits_per_token, spec.packed_bytes
        (64, 14.0, 112)
        >>> print(spec)
        8x8 tokens of (14x2)
    """

    shape: tuple[int, ...]
    codebook_sizes: tuple[int, ...]
    ordered: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(s) for s in self.shape))
        object.__setattr__(self, "codebook_sizes", tuple(int(k) for k in self.codebook_sizes))
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"shape: expected at least one position, found {self.shape}")
        if not self.codebook_sizes:
            raise ValueError("codebook_sizes: expected at least one entry, found none")
        for size in self.codebook_sizes:
            if not 2 <= size <= MAX_JOINT:
                raise ValueError(f"codebook_sizes: expected 2 to 2**62 each, found {size}")

    @property
    def num_tokens(self) -> int:
        """Number of positions N of an image."""
        return math.prod(self.shape)

    @property
    def num_codebooks(self) -> int:
        """Number of entries G of a position."""
        return len(self.codebook_sizes)

    @property
    def vocab_size(self) -> int:
        """Number of joint values of one position, a Python int of any size."""
        return math.prod(self.codebook_sizes)

    @property
    def bits_per_token(self) -> float:
        """Information capacity of one position, in bits."""
        return sum(math.log2(size) for size in self.codebook_sizes)

    @property
    def bits_per_image(self) -> float:
        """Information capacity of one image of full length, in bits."""
        return self.num_tokens * self.bits_per_token

    @property
    def is_binary(self) -> bool:
        """Whether every size is a power of two, so that positions are strings of whole bits."""
        return all(size & (size - 1) == 0 for size in self.codebook_sizes)

    @property
    def packed_widths(self) -> tuple[int, ...]:
        """Numbers of bits of the packed fields of a position: one joint field, or one per entry.

        Entries of power-of-two sizes are separate fields, which gives the bit string of their joint
        index without computing it; so are entries whose joint index exceeds 62 bits.
        """
        if self.vocab_size <= MAX_JOINT and not self.is_binary:
            return ((self.vocab_size - 1).bit_length(),)
        return tuple((size - 1).bit_length() for size in self.codebook_sizes)

    @property
    def packed_bytes(self) -> int:
        """Size of one packed image in bytes; every image starts at a byte."""
        return (self.num_tokens * sum(self.packed_widths) + 7) // 8

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values; `TokenSpec(**d)` is the inverse."""
        return asdict(self)

    def __str__(self) -> str:
        sizes, runs = self.codebook_sizes, []
        for size in dict.fromkeys(sizes):
            runs.append(f"{sizes.count(size)}x{size}" if sizes.count(size) > 1 else str(size))
        grid = "x".join(map(str, self.shape))
        return f"{grid} tokens of ({', '.join(runs)}){' ordered' if self.ordered else ''}"


@dataclass(frozen=True, eq=False)
class Tokens:
    """A batch of token grids or sequences.

    Args:
        indices: Codes, (B, N, G) int64, entry g in [0, codebook_sizes[g]); row-major positions.
        spec: Description of the tokens.
        lengths: Number of valid positions of each image, (B,) int64 in [1, N]; None: all N. Only
            with an ordered spec; positions beyond the length hold 0.

    Raises:
        ValueError: If a shape or dtype does not fit the spec. Value ranges are checked by
            `validate`, not here, so that building tokens never waits for a GPU.

    Example:
        >>> spec = TokenSpec((2,), (4, 2))  # 2 positions, each with an entry of 4 and one of 2
        >>> tokens = Tokens(torch.tensor([[[3, 0], [1, 1]]]), spec)
        >>> tokens.bits()
        tensor([[[1, 1, 0],
                 [1, 0, 1]]])
        >>> Tokens.unpack(tokens.pack(), spec).equal(tokens)
        True
    """

    indices: Tensor
    spec: TokenSpec
    lengths: Tensor | None = None

    def __post_init__(self) -> None:
        expected = (self.spec.num_tokens, self.spec.num_codebooks)
        if self.indices.ndim != 3 or tuple(self.indices.shape[1:]) != expected:
            raise ValueError(
                f"indices: expected (B, {expected[0]}, {expected[1]}) for {self.spec}, "
                f"found {tuple(self.indices.shape)}"
            )
        if self.indices.dtype != torch.int64:
            raise ValueError(f"indices: expected int64, found {self.indices.dtype}")
        if self.lengths is not None:
            if not self.spec.ordered:
                raise ValueError("lengths: only tokens of an ordered spec have lengths")
            if self.lengths.shape != self.indices.shape[:1] or self.lengths.dtype != torch.int64:
                raise ValueError(
                    f"lengths: expected ({len(self)},) int64, "
                    f"found {tuple(self.lengths.shape)} {self.lengths.dtype}"
                )

    def __len__(self) -> int:
        return self.indices.shape[0]

    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> "Tokens":
        """Select images of the batch; an int would drop the batch dimension and is refused."""
        if isinstance(index, int):
            raise TypeError(f"tokens[{index}]: use a slice, tokens[{index}:{index + 1}]")
        lengths = None if self.lengths is None else self.lengths[index]
        return Tokens(self.indices[index], self.spec, lengths)

    @property
    def device(self) -> torch.device:
        """Device of the indices."""
        return self.indices.device

    @property
    def valid(self) -> Tensor:
        """Flags of the valid positions, (B, N) bool."""
        if self.lengths is None:
            return torch.ones(self.indices.shape[:2], dtype=torch.bool, device=self.device)
        positions = torch.arange(self.spec.num_tokens, device=self.device)
        return positions < self.lengths[:, None]

    @property
    def bits_per_image(self) -> float:
        """Capacity used by an image in bits; the mean over the batch if there are lengths."""
        if self.lengths is None:
            return self.spec.bits_per_image
        return self.lengths.double().mean().item() * self.spec.bits_per_token

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Tokens":
        """Copy of the tokens on another device."""
        lengths = self.lengths
        if lengths is not None:
            lengths = lengths.to(device, non_blocking=non_blocking)
        return Tokens(self.indices.to(device, non_blocking=non_blocking), self.spec, lengths)

    def validate(self) -> "Tokens":
        """Check every value (waits for the device), and return the tokens.

        Raises:
            ValueError: If an index is outside its codebook, a length outside [1, N], or padding
                is not 0.
        """
        sizes = torch.tensor(self.spec.codebook_sizes, device=self.device)
        wrong = ((self.indices < 0) | (self.indices >= sizes)).nonzero()
        if len(wrong):
            b, n, g = wrong[0].tolist()
            raise ValueError(
                f"indices[{b}, {n}, {g}]: found {self.indices[b, n, g].item()}, "
                f"expected 0 to {self.spec.codebook_sizes[g] - 1}"
            )
        if self.lengths is not None:
            if not ((self.lengths >= 1) & (self.lengths <= self.spec.num_tokens)).all():
                raise ValueError(
                    f"lengths: expected 1 to {self.spec.num_tokens}, found {self.lengths.tolist()}"
                )
            if self.indices[~self.valid].any():
                raise ValueError("indices: positions past the length must hold 0")
        return self

    def require(self, spec: TokenSpec, *, reader: str = "this tokenizer") -> "Tokens":
        """Check that the spec is the expected one, and return the tokens.

        Args:
            spec: Expected spec.
            reader: Name of the reader, for the message.

        Raises:
            SpecMismatch: If it is not; the message has both specs.
        """
        if self.spec != spec:
            raise SpecMismatch(f"{reader} reads {spec}; these tokens are {self.spec}")
        return self

    def bits(self) -> Tensor:
        """Positions as little-endian bits, (B, N, n) int64 in {0, 1}, entry 0 first.

        Raises:
            ValueError: If a codebook size is not a power of two.
        """
        if not self.spec.is_binary:
            raise ValueError(f"bits: {self.spec} has sizes that are not powers of two")
        widths = [size.bit_length() - 1 for size in self.spec.codebook_sizes]
        return split_bits(self.indices, widths)

    def regroup(self, codebook_sizes: Sequence[int]) -> "Tokens":
        """Read the same codes as entries of other sizes.

        The joint value of a position, the sum of each entry times the product of the sizes before
        it, stays the same: 2**14 <-> two of 2**7 <-> fourteen of 2; (8, 5, 5, 5) <-> 1000.

        Raises:
            ValueError: If the joint vocabularies differ, or exceed 2**62 without every size being
                a power of two (then no joint index exists).

        Example:
            >>> bits = Tokens(torch.tensor([[[1, 0, 1]]]), TokenSpec((1,), (2, 2, 2)))
            >>> bits.regroup((8,)).indices.tolist()
            [[[5]]]
        """
        spec = TokenSpec(self.spec.shape, tuple(codebook_sizes), self.spec.ordered)
        if spec == self.spec:
            return self
        if spec.vocab_size != self.spec.vocab_size:
            raise ValueError(
                f"regroup: {self.spec} has {self.spec.vocab_size} joint values, "
                f"{spec.codebook_sizes} has {spec.vocab_size}"
            )
        if spec.is_binary and self.spec.is_binary:
            indices = join_bits(
                self.bits(), [size.bit_length() - 1 for size in spec.codebook_sizes]
            )
        elif spec.vocab_size <= MAX_JOINT:
            indices = split_joint(
                join_entries(self.indices, self.spec.codebook_sizes), codebook_sizes
            )
        else:
            raise ValueError(
                f"regroup: {self.spec} has more than 2**62 joint values and sizes that are not "
                "powers of two"
            )
        return Tokens(indices, spec, self.lengths)

    def truncate(self, num_tokens: int) -> "Tokens":
        """Keep the first `num_tokens` positions of every image, and set all others to 0.

        Raises:
            ValueError: If the spec is not ordered or the count is outside [1, N].
        """
        if not self.spec.ordered:
            raise ValueError(f"truncate: {self.spec} is not ordered, a prefix does not decode")
        if not 1 <= num_tokens <= self.spec.num_tokens:
            raise ValueError(f"truncate: expected 1 to {self.spec.num_tokens}, found {num_tokens}")
        full = torch.full((len(self),), num_tokens, dtype=torch.int64, device=self.device)
        lengths = full if self.lengths is None else torch.minimum(self.lengths, full)
        shorter = Tokens(self.indices, self.spec, lengths)
        return Tokens(self.indices.masked_fill(~shorter.valid[..., None], 0), self.spec, lengths)

    def pack(self) -> Tensor:
        """Pack to dense bits for disk and kernels: (B, `spec.packed_bytes`) uint8, low bit first.

        Raises:
            ValueError: If a value does not fit its bits; checked on a CPU only.
        """
        if len(self.spec.packed_widths) == 1:
            fields = join_entries(self.indices, self.spec.codebook_sizes)[..., None]
        else:
            fields = self.indices
        return pack_codes(fields, self.spec.packed_widths)

    @classmethod
    def unpack(cls, packed: Tensor, spec: TokenSpec, lengths: Tensor | None = None) -> "Tokens":
        """Unpack tokens; inverse of `pack`.

        Args:
            packed: Packed images, (B, `spec.packed_bytes`) uint8.
            spec: Description of the tokens.
            lengths: Number of valid positions of each image, (B,) int64; None: all.

        Raises:
            ValueError: If the row length does not fit the spec, or a value is out of range.
        """
        if packed.ndim != 2 or packed.shape[1] != spec.packed_bytes or packed.dtype != torch.uint8:
            raise ValueError(
                f"packed: expected (B, {spec.packed_bytes}) uint8 for {spec}, "
                f"found {tuple(packed.shape)} {packed.dtype}"
            )
        fields = unpack_codes(packed, spec.num_tokens, spec.packed_widths)
        if len(spec.packed_widths) == 1:
            if (fields >= spec.vocab_size).any():
                raise ValueError(f"packed: a value is outside the {spec.vocab_size} of {spec}")
            fields = split_joint(fields[..., 0], spec.codebook_sizes)
        return cls(fields, spec, lengths).validate()

    def equal(self, other: "Tokens") -> bool:
        """Whether spec, indices and lengths are the same."""
        if self.spec != other.spec or not torch.equal(self.indices, other.indices):
            return False
        if self.lengths is None or other.lengths is None:
            return self.lengths is other.lengths
        return torch.equal(self.lengths, other.lengths)

    @classmethod
    def cat(cls, batches: Sequence["Tokens"]) -> "Tokens":
        """Concatenate batches; also the collate function of data loaders.

        Raises:
            ValueError: If there are no batches.
            SpecMismatch: If the specs differ.
        """
        if not batches:
            raise ValueError("cat: expected at least one batch of tokens, found none")
        spec = batches[0].spec
        for batch in batches:
            batch.require(spec, reader="the first batch")
        lengths = None
        if any(batch.lengths is not None for batch in batches):
            lengths = torch.cat([batch.valid.sum(1) for batch in batches])
        return cls(torch.cat([batch.indices for batch in batches]), spec, lengths)

    def split(self) -> Iterator["Tokens"]:
        """Iterate over the images, each a batch of 1."""
        for i in range(len(self)):
            yield self[i : i + 1]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one packed `.safetensors` file for `load_tokens`; only such files are replaced."""
        check_file(path, "token file", overwrite=True, ours=is_token_file)
        tensors = {"packed": self.pack()}
        if self.lengths is not None:
            tensors["lengths"] = self.lengths
        with atomic_file(path) as temporary:
            save_tensors(tensors, temporary, {TOKENS_KEY: json.dumps(self.spec.to_dict())})


def _flatten(tokens: Tokens) -> tuple[list[Any], TokenSpec]:
    return [tokens.indices, tokens.lengths], tokens.spec


def _unflatten(children: Any, spec: TokenSpec) -> Tokens:
    tokens = object.__new__(Tokens)  # torch passes placeholders that no check accepts
    indices, lengths = children
    for name, value in (("indices", indices), ("spec", spec), ("lengths", lengths)):
        object.__setattr__(tokens, name, value)
    return tokens


_pytree.register_pytree_node(Tokens, _flatten, _unflatten, serialized_type_name="tessella.Tokens")
