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
import operator
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..documents import check, parse_json
from .store_format import StoredFile, StoreError, check_file, read_header
from .store_rows import read_tensors, texts_of
from .store_writer import TokenStoreWriter
from .token_file import TOKENS_KEY, check_names, load_tensors
from .tokens import Tokens, TokenSpec

__all__ = ["StoreError", "TokenStore", "TokenStoreWriter"]


@dataclass(frozen=True, eq=False)
class _Shard:
    """An open shard: tensors mapped from the file, read page by page when they are indexed."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


class TokenStore(Dataset[dict[str, Any]]):
    """Read access to a token store, which is also a data set for `torch.utils.data.DataLoader`.

    `store[i:j]`, `store.rows([...])` and `store.tokens()` are `Tokens`. `store[i]` is one sample,
    as a `DataLoader` collates it: `indices` (N, G) int64, `label` (-1: none), `length` if the spec
    is ordered, and `caption` ("": none) if the store has any. A `DataLoader` reads whole batches.
    Shards are mapped into memory, not read; a pickled store opens the same files again.

    Args:
        path: Folder of the store.
        verify: Check the SHA-256 of every file when the store is opened.

    Attributes:
        path: Absolute path of the folder.
        header: Content of `store.json`.

    Raises:
        StoreError: If a file is missing, truncated or changed, or the format is another version.

    Example:
        >>> import tempfile
        >>> from torch.utils.data import DataLoader
        >>> spec, names = TokenSpec((2,), (4,)), {"tokenizer": "mine", "source": "photos"}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "store")
        ...     with TokenStoreWriter(path, spec, fingerprint="f00d", resolution=8, **names) as out:
        ...         out.add(Tokens(torch.tensor([[[3], [1]], [[2], [0]]]), spec), "ab", [1, 0])
        ...     store = TokenStore(path)
        ...     print(len(store), store[1:2].indices.tolist(), store.ids)
        ...     for batch in DataLoader(store, batch_size=2):
        ...         print(Tokens(batch["indices"], store.spec).bits().shape, batch["label"])
        2 [[[2], [0]]] ['a', 'b']
        torch.Size([2, 2, 2]) tensor([1, 0])
    """

    def __init__(self, path: str | os.PathLike[str], *, verify: bool = True) -> None:
        self.path = Path(path).absolute()
        self.header = read_header(self.path)
        for stored in self._files():
            check_file(self.path / stored.file, stored, verify=verify)
        self._ends = np.cumsum([shard.rows for shard in self.header.shards])
        self._open: dict[int, _Shard] = {}

    def __reduce__(self) -> tuple[Callable[..., "TokenStore"], tuple[Path]]:
        return functools.partial(TokenStore, verify=False), (self.path,)

    def __len__(self) -> int:
        return self.header.count

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> Tokens: ...

    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> dict[str, Any] | Tokens:
        """One sample by its number, negative ones from the end; tokens of a slice or of rows."""
        if isinstance(index, slice):
            return self.rows(torch.from_numpy(np.arange(*index.indices(len(self)))))
        if isinstance(index, Tensor | np.ndarray | list | tuple | range) and np.ndim(index):
            return self.rows(index)
        if isinstance(index, bool) or not isinstance(index, SupportsIndex):
            raise TypeError(f"store: expected a row number or a slice, found {index!r}")
        number = operator.index(index)
        return self.__getitems__([number + len(self) if -len(self) <= number < 0 else number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Samples of many rows, unpacked at once; a `DataLoader` calls this for its batches."""
        tokens = self.rows(numbers)
        columns: dict[str, Sequence[Any]] = {"indices": tokens.indices.unbind()}
        columns["label"] = self._all_labels[torch.as_tensor(numbers)].tolist()
        if tokens.lengths is not None:
            columns["length"] = tokens.lengths.tolist()
        if self._all_captions is not None:
            columns["caption"] = [self._all_captions[number] or "" for number in numbers]
        names = tuple(columns)
        return [
            dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)
        ]

    def rows(self, numbers: Tensor | Sequence[int]) -> Tokens:
        """Tokens of the rows with given numbers, in that order; repetitions are allowed.

        Raises:
            IndexError: If a number is not a row of the store; negative numbers are not.
            TypeError: If the numbers are not integers (a mask, for instance).
        """
        chosen = torch.as_tensor(numbers).cpu().reshape(-1)
        if len(chosen) and chosen.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"rows: expected row numbers, found {chosen.dtype}")
        found = chosen.long().numpy()
        wrong = (found < 0) | (found >= len(self))
        if wrong.any():
            raise IndexError(f"row {found[wrong][0]}: {self.path} has rows 0 to {len(self) - 1}")
        shape = (len(found), self.spec.packed_bytes)
        columns: dict[str, np.ndarray] = {"packed": np.empty(shape, np.uint8)}
        if self.spec.ordered:
            columns["lengths"] = np.empty(len(found), np.int64)
        which = np.searchsorted(self._ends, found, side="right")
        order = np.argsort(which, kind="stable")
        cuts = np.flatnonzero(np.diff(which[order])) + 1
        for here in np.split(order, cuts) if len(found) else ():
            number = int(which[here[0]])
            local = found[here] - (self._ends[number] - self.header.shards[number].rows)
            for name, column in columns.items():
                column[here] = self._shard(number).tensors[name].numpy()[local]
        read = {name: torch.from_numpy(column) for name, column in columns.items()}
        return Tokens.unpack(read["packed"], self.spec, read.get("lengths"))

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

    @functools.cached_property
    def _all_labels(self) -> Tensor:
        return self.labels

    @functools.cached_property
    def _all_captions(self) -> list[str | None] | None:
        """Captions of all rows; None if there are none."""
        numbers = range(len(self.header.shards))
        if not any("captions" in self._shard(number).metadata for number in numbers):
            return None
        return self.captions

    def _shard(self, number: int) -> _Shard:
        if number not in self._open:
            read = read_tensors(self.path / self.header.shards[number].file)
            self._open[number] = _Shard(*read)
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
            metadata = self._shard(number).metadata
            texts += texts_of(metadata, name, self.path / stored.file, stored.rows)
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
    tensors, about = load_tensors(path, error=ValueError)
    if TOKENS_KEY not in about:
        raise ValueError(f"{path}: a safetensors file, but not one of tokens")
    check_names(tensors, ("packed", "lengths"), path=path, error=ValueError)
    name = f"{path}: {TOKENS_KEY}"
    spec = check(parse_json(about[TOKENS_KEY], name=name), TokenSpec, name=name)
    if "packed" not in tensors:
        raise ValueError(f"{path}: not a whole token file, it has no tokens")
    return Tokens.unpack(tensors["packed"], spec, tensors.get("lengths"))
