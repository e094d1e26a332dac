"""Rows of token stores in memory, and the `.safetensors` files that hold them."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..documents import parse_json
from ..files import atomic_file, sha256_file
from .store_format import PROBE, StoredFile, StoreError
from .tokens import Tokens

MAX_METADATA_BYTES = 90_000_000
"""Largest size of ids and captions of a file: safetensors reads headers of up to 100 MB."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Consecutive images of a store.

    Args:
        tensors: Columns by name, as a shard holds them: `packed`, `labels`, `augmentation`, `psnr`
            (NaN where unknown), and `lengths` for ordered specs.
        ids: Name of each image in its source.
        captions: Caption of each image, or None.
    """

    tensors: dict[str, Tensor]
    ids: list[str]
    captions: list[str | None]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(
        cls,
        tokens: Tokens,
        ids: Sequence[str],
        labels: Tensor | Sequence[int] | None = None,
        captions: Sequence[str | None] | None = None,
        augmentation: Tensor | Sequence[int] | None = None,
        psnr: Tensor | Sequence[float] | None = None,
    ) -> "Rows":
        """Rows of a batch; arguments and errors as of `TokenStoreWriter.add`."""
        count = len(tokens)
        columns = {
            "packed": tokens.pack().cpu(),
            "labels": column("labels", labels, count, torch.int64, -1),
            "augmentation": column("augmentation", augmentation, count, torch.int64, 0),
            "psnr": column("psnr", psnr, count, torch.float32, math.nan),
        }
        if tokens.spec.ordered:
            columns["lengths"] = tokens.valid.sum(1).cpu()
        captions = [None] * count if captions is None else list(captions)
        for name, texts in (("ids", ids), ("captions", captions)):
            if len(texts) != count:
                raise ValueError(f"{name}: expected {count}, one per image, found {len(texts)}")
        return cls(columns, [str(i) for i in ids], captions)

    def cut(self, start: int, stop: int) -> "Rows":
        """The rows start .. stop - 1."""
        columns = {name: tensor[start:stop] for name, tensor in self.tensors.items()}
        return Rows(columns, self.ids[start:stop], self.captions[start:stop])

    @classmethod
    def cat(cls, parts: Sequence["Rows"]) -> "Rows":
        """Rows of several parts, at least one, in sequence."""
        columns = {
            name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors
        }
        ids = [i for part in parts for i in part.ids]
        return cls(columns, ids, [caption for part in parts for caption in part.captions])


def write_rows(path: Path, rows: Rows) -> StoredFile:
    """Write rows to a file, atomically.

    Raises:
        ValueError: If ids and captions are larger than safetensors reads.
        SaveError: If writing fails.
    """
    columns = dict(rows.tensors)
    if columns["psnr"].isnan().all():
        del columns["psnr"]
    metadata = {"ids": json.dumps(rows.ids)}
    if any(caption is not None for caption in rows.captions):
        metadata["captions"] = json.dumps(rows.captions)
    size = sum(map(len, metadata.values()))
    if size > MAX_METADATA_BYTES:
        raise ValueError(
            f"{path.parent}: ids and captions of a shard take {size / 1e6:.0f} MB, more than "
            f"{MAX_METADATA_BYTES / 1e6:.0f}; lower rows_per_shard ({len(rows)})"
        )
    return write_tensors(path, columns, metadata, rows=len(rows))


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], *, rows: int
) -> StoredFile:
    """Write a `.safetensors` file of a store, atomically, and return its entry in the header.

    Raises:
        SaveError: If writing fails.
    """
    blob = _serialized(tensors, metadata)
    with atomic_file(path) as temporary:
        temporary.write_bytes(blob)
    return StoredFile(
        file=path.name, rows=rows, num_bytes=path.stat().st_size, sha256=sha256_file(path)
    )


def _serialized(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Content of a `.safetensors` file; equal content gives equal bytes.

    The library writes the entries of the metadata in an order that changes from call to call, so
    they are put into its header here, in the order of their names.
    """
    blob = save({key: tensor.contiguous() for key, tensor in tensors.items()})
    size = int.from_bytes(blob[:8], "little")
    header = parse_json(blob[8 : 8 + size], name="header")
    if metadata:
        header = {"__metadata__": dict(sorted(metadata.items()))} | header
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + blob[8 + size :]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, mapped from the file and read page by page, and metadata of a file of a store.

    Raises:
        StoreError: If the file is truncated or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise StoreError(f"{path}: truncated or damaged ({error})") from None


def texts_of(metadata: dict[str, str], name: str, path: Path, count: int) -> list[Any]:
    """Texts of a shard, `ids` or `captions`; None for every row where the shard has none.

    Raises:
        StoreError: If they are damaged.
    """
    if (found := metadata.get(name)) is None:
        return [None] * count
    texts = parse_json(found, name=f"{path}: {name}", error=StoreError)
    if not isinstance(texts, list) or len(texts) != count:
        raise StoreError(f"{path}: {name}: damaged, expected a list of {count}")
    return texts


def read_rows(path: Path, stored: StoredFile) -> Rows:
    """Rows of a file that `write_rows` wrote.

    Raises:
        StoreError: If the file is damaged.
    """
    tensors, metadata = read_tensors(path)
    if "psnr" not in tensors:
        tensors["psnr"] = torch.full((stored.rows,), math.nan)
    ids, captions = (texts_of(metadata, name, path, stored.rows) for name in ("ids", "captions"))
    return Rows(tensors, ids, captions)


Probe = list[tuple[Tensor, int, float]]
"""Original images (3, H, W) uint8, their row numbers, and the PSNR of their reconstructions."""


def write_probe(folder: Path, probe: Probe) -> StoredFile:
    """Write original images to the file of that name in a folder."""
    images, rows, psnr = zip(*probe, strict=True)
    tensors = {
        "images": torch.stack(images),
        "rows": torch.tensor(rows),
        "psnr": torch.tensor(psnr, dtype=torch.float64),
    }
    return write_tensors(folder / PROBE, tensors, {}, rows=len(rows))


def read_probe(folder: Path, stored: StoredFile) -> Probe:
    """Original images of a store, or of an unfinished one.

    Raises:
        StoreError: If the file is damaged.
    """
    found, _ = read_tensors(folder / stored.file)
    try:
        numbers = found["rows"].tolist(), found["psnr"].tolist()
        return list(zip(found["images"].clone(), *numbers, strict=True))
    except (KeyError, ValueError) as error:
        raise StoreError(f"{folder / stored.file}: damaged ({error})") from None


def column(name: str, values: Any, count: int, dtype: torch.dtype, default: float) -> Tensor:
    """Values as a (count,) tensor on the CPU; None gives the default everywhere."""
    if values is None:
        return torch.full((count,), default, dtype=dtype)
    exact = values if isinstance(values, Tensor) else np.asarray(values)  # floats stay float64
    column = torch.as_tensor(exact).detach().cpu()
    if tuple(column.shape) != (count,):
        raise ValueError(f"{name}: expected ({count},), found {tuple(column.shape)}")
    if count and column.is_floating_point() != dtype.is_floating_point:
        raise ValueError(f"{name}: expected {dtype} numbers, found {column.dtype}")
    return column.to(dtype)
