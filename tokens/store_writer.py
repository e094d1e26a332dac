"""Writing a token store, batch by batch; the layout is described in `store.py`."""

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
"""Originals kept: enough to catch a wrong tokenizer, few enough to cost nothing."""
MAX_METADATA_BYTES = 90_000_000
"""safetensors refuses to read headers of more than 100 MB."""


@dataclass(frozen=True, eq=False)
class _Rows:
    """Columns of a run of images, as a shard holds them (psnr: NaN where unknown)."""

    tensors: dict[str, Tensor]
    ids: list[str]
    captions: list[str | None]

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, start: int, stop: int) -> "_Rows":
        columns = {name: tensor[start:stop] for name, tensor in self.tensors.items()}
        return _Rows(columns, self.ids[start:stop], self.captions[start:stop])


class TokenStoreWriter:
    """Writes a token store; a context manager whose folder appears when the block ends well.

    Args:
        path: The folder to make.
        spec: What the tokens are.
        fingerprint: Of the tokenizer, as `load_tokenizer` sets it.
        tokenizer: Its path or name, for the reader's information.
        source: The data source, for the reader's information.
        resolution: Height and width of the images, in pixels.
        classes: Class names by label.
        rows_per_shard: Images of a full shard.
        overwrite: Replace a token store of ours that is already there.
        inputs: Files and folders that are being read, which are never replaced.

    Raises:
        ValueError: If there is no fingerprint, or `rows_per_shard` is below 1; on leaving, if no
            image was added.
        FileExistsError: On entering or leaving, if the folder exists and must stay; see
            `files.check_replaceable`.
        SaveError: If the disk refuses. Whatever the error, nothing is left behind.
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
            tokens: B images of the store's spec.
            ids: What each image is called in its source, B strings.
            labels: Class of each, (B,); -1 is none. None: -1 for all.
            captions: Text of each, or None.
            augmentation: Which augmented view each is, (B,); 0 is the plain image. None: 0.
            psnr: Of each reconstruction, (B,), in dB; NaN is unknown. None: NaN.

        Raises:
            SpecMismatch: If the tokens are of another spec.
            ValueError: If an argument has another number of entries than there are images, or an
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
                raise ValueError(f"{name}: expected {count}, one an image, found {len(texts)}")
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
        """Keep originals, at most four in all, for `verify_store_probe`.

        Args:
            images: What was encoded, (P, 3, H, W) uint8.
            rows: Their row numbers in the store, (P,); they may be added later than the probe.
            psnr: PSNR of their reconstructions, (P,), in dB on 8-bit pixels.

        Raises:
            ValueError: If an argument has another shape, type or number of entries.
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
                f"probe: at most {MAX_PROBES} images, found {len(self._probe) + len(images)}"
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
        """Everything pending as one file."""
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
        """The last shard, the probe and the header, unless the block failed."""
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
    """Values as a (count,) tensor on the CPU, or the default everywhere."""
    if values is None:
        return torch.full((count,), default, dtype=dtype)
    column = torch.as_tensor(values).detach().cpu()
    if tuple(column.shape) != (count,):
        raise ValueError(f"{name}: expected ({count},), found {tuple(column.shape)}")
    if count and column.is_floating_point() != dtype.is_floating_point:
        raise ValueError(f"{name}: expected {dtype} numbers, found {column.dtype}")
    return column.to(dtype)
