"""Token stores: a data set as packed tokens on disk, checksummed, memory-mapped, random access.

A store is a folder: `store.json` (the spec of the tokens, their tokenizer, the list of shards),
`shard-00000.safetensors` and so on, and `probe.safetensors` (a few original images with the PSNR
measured when the store was written, by which a reader can verify that its tokenizer fits). A shard
holds `packed` (rows, `spec.packed_bytes`) uint8, `labels` and `augmentation` int64, `lengths` int64
for ordered specs, `psnr` float32 where measured, and image ids and captions as JSON in its
metadata. A folder is written completely or not at all.
"""

import functools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..documents import check, parse_json
from .store_format import StoredFile, StoreError, check_file, read_header
from .store_writer import TokenStoreWriter
from .token_file import TOKENS_KEY
from .tokens import Tokens, TokenSpec

__all__ = ["StoreError", "TokenStore", "TokenStoreWriter"]


@dataclass(frozen=True, eq=False)
class _Shard:
    """An open shard: tensors mapped from the file, read page by page when they are indexed."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


class TokenStore:
    """Read access to a token store: `store[i:j]`, `store.rows([...])`, `store.tokens()`.

    Shards are mapped into memory, not read; a pickled store opens the same files again.

    Args:
        path: Folder of the store.
        verify: Check the SHA-256 of every file when the store is opened.

    Attributes:
        path: Absolute path of the folder.
        header: Content of `store.json`.

    Raises:
        StoreError: If a file is missing, truncated or changed, or the format is another version.
    """

    def __init__(self, path: str | os.PathLike[str], *, verify: bool = True) -> None:
        self.path = Path(path).absolute()
        self.header = read_header(self.path)
        for stored in self._files():
            check_file(self.path / stored.file, stored, verify=verify)
        ends = np.cumsum([shard.rows for shard in self.header.shards])
        self._ends = torch.from_numpy(ends)
        self._open: dict[int, _Shard] = {}

    def __reduce__(self) -> tuple[Callable[..., "TokenStore"], tuple[Path]]:
        return functools.partial(TokenStore, verify=False), (self.path,)

    def __len__(self) -> int:
        return self.header.count

    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> Tokens:
        """Tokens of a slice or of row numbers; an int would drop the batch axis and is refused."""
        if isinstance(index, int):
            raise TypeError(f"store[{index}]: use a slice, store[{index}:{index + 1}]")
        if isinstance(index, slice):
            return self.rows(torch.from_numpy(np.arange(*index.indices(len(self)))))
        return self.rows(index)

    def rows(self, numbers: Tensor | Sequence[int]) -> Tokens:
        """Tokens of the rows with given numbers, in that order; repetitions are allowed.

        Raises:
            IndexError: If a number is not a row of the store; negative numbers are not.
            TypeError: If the numbers are not integers (a mask, for instance).
        """
        numbers = torch.as_tensor(numbers).cpu().reshape(-1)
        if len(numbers) and numbers.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"rows: expected row numbers, found {numbers.dtype}")
        numbers = numbers.long()
        wrong = (numbers < 0) | (numbers >= len(self))
        if wrong.any():
            raise IndexError(
                f"row {numbers[wrong][0].item()}: {self.path} has rows 0 to {len(self) - 1}"
            )
        names = ("packed", "lengths") if self.spec.ordered else ("packed",)
        which = torch.searchsorted(self._ends, numbers, right=True)
        shape = (len(numbers), self.spec.packed_bytes)
        columns = {"packed": torch.empty(shape, dtype=torch.uint8)}
        if self.spec.ordered:
            columns["lengths"] = torch.empty(len(numbers), dtype=torch.int64)
        for number in torch.unique(which).tolist():
            here = which == number
            start = self._ends[number] - self.header.shards[number].rows
            for name in names:
                column = self._shard(number).tensors[name]
                columns[name][here] = column[numbers[here] - start]
        return Tokens.unpack(columns["packed"], self.spec, columns.get("lengths"))

    def tokens(self) -> Tokens:
        """All tokens of the store."""
        return self[:]

    @property
    def packed(self) -> Tensor:
        """Packed tokens of all rows, (rows, `spec.packed_bytes`) uint8; see `Tokens.unpack`."""
        return self._all("packed")

    @property
    def spec(self) -> TokenSpec:
        """Description of the tokens."""
        return self.header.spec

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the tokenizer that made the tokens."""
        return self.header.fingerprint

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by label."""
        return self.header.classes

    @property
    def labels(self) -> Tensor:
        """Class of every row, (rows,) int64; -1: no class."""
        return self._all("labels")

    @property
    def augmentation(self) -> Tensor:
        """Augmented view of every row, (rows,) int64; 0 is the plain image."""
        return self._all("augmentation")

    @property
    def psnr(self) -> Tensor:
        """PSNR in dB of the reconstruction of every row at writing, (rows,) float32, or NaN."""
        return self._all("psnr")

    @property
    def lengths(self) -> Tensor | None:
        """Number of valid positions of every row, (rows,) int64; None for unordered specs."""
        return self._all("lengths") if self.spec.ordered else None

    @property
    def ids(self) -> list[str]:
        """Name of the image of every row in its source."""
        return self._texts("ids")

    @property
    def captions(self) -> list[str | None]:
        """Caption of every row, None where there is none."""
        return self._texts("captions")

    @property
    def bits_per_image(self) -> float:
        """Capacity used by an image in bits; the mean over rows if there are lengths."""
        if (lengths := self.lengths) is None:
            return self.spec.bits_per_image
        return lengths.double().mean().item() * self.spec.bits_per_token

    def _files(self) -> list[StoredFile]:
        return [*self.header.shards, *([self.header.probe] if self.header.probe else [])]

    def _shard(self, number: int) -> _Shard:
        if number not in self._open:
            path = self.path / self.header.shards[number].file
            try:
                with safe_open(path, "pt") as file:
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                    self._open[number] = _Shard(tensors, file.metadata() or {})
            except (SafetensorError, OSError) as error:
                raise StoreError(f"{path}: truncated or damaged ({error})") from None
        return self._open[number]

    def _all(self, name: str) -> Tensor:
        """Copy of one column of all rows, by name."""
        columns = []
        for number, stored in enumerate(self.header.shards):
            column = self._shard(number).tensors.get(name)
            columns.append(torch.full((stored.rows,), math.nan) if column is None else column)
        return torch.cat(columns)

    def _texts(self, name: str) -> list[Any]:
        texts: list[Any] = []
        for number, stored in enumerate(self.header.shards):
            found = self._shard(number).metadata.get(name)
            file = f"{self.path / stored.file}: {name}"
            read = [None] * stored.rows
            read = read if found is None else parse_json(found, name=file, error=StoreError)
            if not isinstance(read, list) or len(read) != stored.rows:
                raise StoreError(f"{file}: damaged, expected a list of {stored.rows}")
            texts += read
        return texts


def load_tokens(path: str | os.PathLike[str]) -> Tokens:
    """Load tokens from a file of `Tokens.save`, or all tokens of a token store folder.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If the file is not a complete token file.
    """
    path = Path(path)
    if path.is_dir():
        return TokenStore(path).tokens()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no token file or store here")
    try:
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get(TOKENS_KEY)
            if header is None:
                raise ValueError(f"{path}: a safetensors file, but not one of tokens")
            names = file.keys()
            lengths = file.get_tensor("lengths") if "lengths" in names else None
            about = parse_json(header, name=f"{path}: {TOKENS_KEY}")
            spec = check(about, TokenSpec, name=f"{path}: {TOKENS_KEY}")
            return Tokens.unpack(file.get_tensor("packed"), spec, lengths)
    except (SafetensorError, KeyError, OSError) as error:
        raise ValueError(f"{path}: not a whole token file ({error})") from None
