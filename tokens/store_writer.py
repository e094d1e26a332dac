"""Writer of token stores, batch by batch; the layout is described in `store.py`."""

import contextlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..files import atomic_folder, sha256_file
from .store_format import HEADER, PROBE, StoredFile, StoreHeader
from .tokens import Tokens, TokenSpec

MAX_PROBES = 4
"""Largest number of original images in a store: enough to detect a wrong tokenizer."""
MAX_METADATA_BYTES = 90_000_000
"""Largest size of ids and captions of a shard: safetensors reads headers of up to 100 MB."""


@dataclass(frozen=True, eq=False)
class _Rows:
    """Columns of consecutive images, as a shard holds them (psnr: NaN where unknown)."""

    tensors: dict[str, Tensor]
    ids: list[str]
    captions: list[str | None]

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, start: int, stop: int) -> "_Rows":
        columns = {name: tensor[start:stop] for name, tensor in self.tensors.items()}
        return _Rows(columns, self.ids[start:stop], self.captions[start:stop])


class TokenStoreWriter:
    """Context manager that writes a token store; the folder appears when its block ends normally.

    Args:
        path: Folder to create.
        spec: Spec of the tokens.
        fingerprint: Fingerprint of the tokenizer, as `load_tokenizer` sets it.
        tokenizer: Path or name of the tokenizer, for information.
        source: Name of the data source, for information.
        resolution: Height and width of the images, in pixels.
        classes: Class names by label.
        rows_per_shard: Number of images in a full shard.
        overwrite: Whether to replace an existing token store that tessella wrote.
        inputs: Files and folders that are being read, which are never replaced.

    Raises:
        ValueError: If there is no fingerprint, or `rows_per_shard` is below 1; on leaving, if no
            image was added.
        FileExistsError: On entering or leaving, if the folder exists and must stay; see
            `files.check_replaceable`.
        SaveError: If writing fails. After any error, nothing is left behind.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        spec: TokenSpec,
        *,
        fingerprint: str,
        tokenizer: str,
        source: str,
        resolution: int,
        classes: Sequence[str] = (),
        rows_per_shard: int = 16384,
        overwrite: bool = False,
        inputs: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        if not fingerprint:
            raise ValueError(
                f"{path}: a token store needs the fingerprint of its tokenizer; "
                "save the tokenizer and load it, or use fingerprint() of checkpoints.py"
            )
        if rows_per_shard < 1:
            raise ValueError(f"rows_per_shard: expected at least 1, found {rows_per_shard}")
        self.path, self.spec = Path(path), spec
        self._about: dict[str, Any] = {
            "fingerprint": fingerprint,
            "tokenizer": str(tokenizer),
            "source": str(source),
            "resolution": resolution,
            "classes": tuple(classes),
        }
        self._rows_per_shard, self._overwrite = rows_per_shard, overwrite
        self._inputs = list(inputs)
        self._pending: list[_Rows] = []
        self._shards: list[StoredFile] = []
        self._probe: list[tuple[Tensor, int, float]] = []
        self._stack, self._folder = contextlib.ExitStack(), Path()

    def __enter__(self) -> "TokenStoreWriter":
        folder = atomic_folder(
            self.path, kind="token store", overwrite=self._overwrite, inputs=self._inputs
        )
        self._folder = self._stack.enter_context(folder)
        self._stack.push(self._finish)  # runs inside the folder's block: its errors clean up too
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return self._stack.__exit__(kind, error, trace)

    def __len__(self) -> int:
        return sum(s.rows for s in self._shards) + self._num_pending()

    def add(
        self,
        tokens: Tokens,
        ids: Sequence[str],
        labels: Tensor | Sequence[int] | None = None,
        captions: Sequence[str | None] | None = None,
        augmentation: Tensor | Sequence[int] | None = None,
        psnr: Tensor | Sequence[float] | None = None,
    ) -> None:
        """Append a batch of B images.

        Args:
            tokens: Tokens of B images, of the store's spec.
            ids: Name of each image in its source, B strings.
            labels: Class of each image, (B,) int64; -1 means none. None: -1 for all.
            captions: Caption of each image, B entries of str or None; None: no captions.
            augmentation: Number of the augmented view, (B,) int64; 0 is the image itself. None: 0.
            psnr: PSNR of each reconstruction, (B,), in dB; NaN means unknown. None: NaN.

        Raises:
            SpecMismatch: If the tokens are of another spec.
            ValueError: If the number of entries of an argument is not the number of images, or an
                index or a label is out of range.
        """
        tokens.require(self.spec, reader=f"the token store {self.path}").validate()
        count = len(tokens)
        columns = {
            "packed": tokens.pack().cpu(),
            "labels": _column("labels", labels, count, torch.int64, -1),
            "augmentation": _column("augmentation", augmentation, count, torch.int64, 0),
            "psnr": _column("psnr", psnr, count, torch.float32, math.nan),
        }
        if self.spec.ordered:
            columns["lengths"] = tokens.valid.sum(1).cpu()
        captions = [None] * count if captions is None else list(captions)
        for name, texts in (("ids", ids), ("captions", captions)):
            if len(texts) != count:
                raise ValueError(f"{name}: expected {count}, one per image, found {len(texts)}")
        self._check_labels(columns["labels"])
        rows = _Rows(columns, [str(i) for i in ids], captions)
        while len(rows):
            room = self._rows_per_shard - self._num_pending()
            self._pending.append(rows.cut(0, room))
            rows = rows.cut(room, len(rows))
            if self._num_pending() == self._rows_per_shard:
                self._write_shard()

    def add_probe(
        self,
        images: Tensor,
        rows: Tensor | Sequence[int],
        psnr: Tensor | Sequence[float],
    ) -> None:
        """Store original images, at most four in all, for `verify_store_probe`.

        Args:
            images: Images as they were encoded, (P, 3, H, W) uint8.
            rows: Row number of each image in the store, (P,); the rows may be added later.
            psnr: PSNR of each reconstruction, (P,), in dB on 8-bit pixels.

        Raises:
            ValueError: If an argument has a wrong shape, type or number of entries.
        """
        side = self._about["resolution"]
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (3, side, side):
            raise ValueError(
                f"probe images: expected (P, 3, {side}, {side}) uint8, "
                f"found {tuple(images.shape)} {images.dtype}"
            )
        numbers = _column("probe rows", rows, len(images), torch.int64, 0)
        values = _column("probe psnr", psnr, len(images), torch.float64, math.nan)
        if values.isnan().any():
            raise ValueError(f"probe psnr: expected numbers in dB, found {values.tolist()}")
        if len(self._probe) + len(images) > MAX_PROBES:
            raise ValueError(
                f"probe: expected at most {MAX_PROBES} images, "
                f"found {len(self._probe) + len(images)}"
            )
        self._probe += zip(images.cpu(), numbers.tolist(), values.tolist(), strict=True)

    def _num_pending(self) -> int:
        return sum(len(rows) for rows in self._pending)

    def _check_labels(self, labels: Tensor) -> None:
        highest = len(self._about["classes"]) - 1
        wrong = (labels < -1) | ((labels > highest) if highest >= 0 else False)
        if wrong.any():
            expected = f"-1 to {highest}" if highest >= 0 else "-1 or more"
            raise ValueError(f"labels: expected {expected}, found {labels[wrong][0].item()}")

    def _write_shard(self) -> None:
        """Write all pending rows to one file."""
        columns = {
            name: torch.cat([rows.tensors[name] for rows in self._pending])
            for name in self._pending[0].tensors
        }
        if columns["psnr"].isnan().all():
            del columns["psnr"]
        ids = [i for rows in self._pending for i in rows.ids]
        captions = [caption for rows in self._pending for caption in rows.captions]
        metadata = {"ids": json.dumps(ids)}
        if any(caption is not None for caption in captions):
            metadata["captions"] = json.dumps(captions)
        size = sum(map(len, metadata.values()))
        if size > MAX_METADATA_BYTES:
            raise ValueError(
                f"{self.path}: ids and captions of a shard take {size / 1e6:.0f} MB, more than "
                f"{MAX_METADATA_BYTES / 1e6:.0f}; lower rows_per_shard ({self._rows_per_shard})"
            )
        name = f"shard-{len(self._shards):05d}.safetensors"
        self._shards.append(self._write(name, columns, metadata, rows=len(ids)))
        self._pending.clear()

    def _write(
        self, name: str, tensors: dict[str, Tensor], metadata: dict[str, str], *, rows: int
    ) -> StoredFile:
        path = self._folder / name
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
        return StoredFile(
            file=name, rows=rows, num_bytes=path.stat().st_size, sha256=sha256_file(path)
        )

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write the last shard, the probe and the header, unless the block failed."""
        if kind is not None:
            return
        if not len(self):
            raise ValueError(f"{self.path}: a token store needs at least one image, none was added")
        if self._pending:
            self._write_shard()
        count, probe = len(self), None
        if self._probe:
            images, rows, psnr = zip(*self._probe, strict=True)
            if not all(0 <= row < count for row in rows):
                raise ValueError(f"probe rows: expected 0 to {count - 1}, found {list(rows)}")
            tensors = {
                "images": torch.stack(images),
                "rows": torch.tensor(rows),
                "psnr": torch.tensor(psnr, dtype=torch.float64),
            }
            probe = self._write(PROBE, tensors, {}, rows=len(rows))
        header = StoreHeader(
            spec=self.spec, count=count, shards=tuple(self._shards), probe=probe, **self._about
        )
        text = json.dumps(asdict(header), indent=1, ensure_ascii=False)
        (self._folder / HEADER).write_text(text + "\n", encoding="utf-8")


def _column(name: str, values: Any, count: int, dtype: torch.dtype, default: float) -> Tensor:
    """Values as a (count,) tensor on the CPU; None gives the default everywhere."""
    if values is None:
        return torch.full((count,), default, dtype=dtype)
    column = torch.as_tensor(values).detach().cpu()
    if tuple(column.shape) != (count,):
        raise ValueError(f"{name}: expected ({count},), found {tuple(column.shape)}")
    if count and column.is_floating_point() != dtype.is_floating_point:
        raise ValueError(f"{name}: expected {dtype} numbers, found {column.dtype}")
    return column.to(dtype)
