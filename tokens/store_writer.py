"""Writer of token stores, batch by batch; the layout is described in `store.py`.

Rows are written to `NAME.unfinished` (see `store_work.py`), from which the store NAME is made at
the end. Once its caller marks how far the work is, an interrupted writer leaves that folder, and
the next one with `resume` goes on from the last mark.
"""

import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ..files import SaveError, atomic_folder, check_replaceable
from ..unfinished import sweep
from .store_format import (
    HEADER,
    StoredFile,
    StoreError,
    StoreHeader,
    StorePart,
    header_bytes,
    read_header,
)
from .store_rows import Rows, column, read_probe, read_rows, write_probe, write_rows
from .store_work import WorkFolder, WorkState
from .tokens import Tokens, TokenSpec

MAX_PROBES = 4
"""Largest number of original images in a store: enough to detect a wrong tokenizer."""
SAVE_SECONDS = 60.0
"""Longest time between two marks that reach the disk."""


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
        part: Place of the store in a larger one, or None.
        settings: Whatever else decides the rows, JSON values by name: with `resume`, it must be
            what it was.
        resume: Whether to go on from the last mark of an interrupted writer; without one, the
            writer begins.
        overwrite: Whether to replace an existing token store that tessella wrote, and, without
            `resume`, to discard an unfinished one.
        inputs: Files and folders that are being read, which are never replaced.

    Raises:
        ValueError: If there is no fingerprint, or `rows_per_shard` is below 1; on leaving, if no
            image was added.
        StoreError: On entering, if another writer is at work, or what it left has other settings.
        FileExistsError: On entering or leaving, if the folder exists and must stay (see
            `files.check_replaceable`), or an unfinished one does and there is no `resume`.
        SaveError: If writing fails. After any error, only rows that were marked are left behind;
            a note of the error says where.
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
        part: StorePart | None = None,
        settings: Mapping[str, Any] | None = None,
        resume: bool = False,
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
        self._about: dict[str, Any] = {"tokenizer": str(tokenizer), "source": str(source)}
        self._facts: dict[str, Any] = {
            "fingerprint": fingerprint,
            "resolution": resolution,
            "classes": tuple(classes),
            "part": part,
        }
        self._settings = {
            "tokenizer": fingerprint,
            "tokens": spec.to_dict(),
            "resolution": resolution,
            "classes": list(classes),
            "rows_per_shard": rows_per_shard,
            "part": None if part is None else f"{part.index}/{part.count}",
            **(settings or {}),
        }
        self._rows_per_shard, self._resume = rows_per_shard, resume
        self._replace: dict[str, Any] = {"overwrite": overwrite, "inputs": list(inputs)}
        self._work = WorkFolder(self.path)
        self._pending: list[Rows] = []
        self._shards: list[StoredFile] = []
        self._probe: list[tuple[Tensor, int, float]] = []
        self._probe_file: StoredFile | None = None
        self._marked: tuple[list[Rows], WorkState] | None = None
        self._saved, self._saved_shards, self._files = 0.0, 0, 0
        self.progress: dict[str, Any] = {}

    def __enter__(self) -> "TokenStoreWriter":
        self._work.lock()
        try:
            self._begin()
        except BaseException:
            if self._work.is_empty():
                self._work.remove()
            self._work.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                try:
                    self._finish()
                except BaseException as failure:
                    self._keep(failure)
                    raise
            else:
                self._keep(error)
        finally:
            self._work.release()

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
        rows = Rows.of(tokens, ids, labels, captions, augmentation, psnr)
        self._check_labels(rows.tensors["labels"])
        self.add_rows(rows)

    def add_rows(self, rows: Rows) -> None:
        """Append rows of another store of the same spec, as they are."""
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
        side = self._facts["resolution"]
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (3, side, side):
            raise ValueError(
                f"probe images: expected (P, 3, {side}, {side}) uint8, "
                f"found {tuple(images.shape)} {images.dtype}"
            )
        numbers = column("probe rows", rows, len(images), torch.int64, 0)
        values = column("probe psnr", psnr, len(images), torch.float64, math.nan)
        if values.isnan().any():
            raise ValueError(f"probe psnr: expected numbers in dB, found {values.tolist()}")
        if len(self._probe) + len(images) > MAX_PROBES:
            raise ValueError(
                f"probe: expected at most {MAX_PROBES} images, "
                f"found {len(self._probe) + len(images)}"
            )
        self._probe += zip(images.cpu(), numbers.tolist(), values.tolist(), strict=True)
        self._probe_file = None

    def mark(self, progress: Mapping[str, Any]) -> None:
        """Note how far the work is: a resumed writer has all rows of now, and this `progress`.

        The mark reaches the disk when a shard was finished since the last one, after a minute, and
        when the block ends with an error.

        Args:
            progress: JSON values by name.

        Raises:
            SaveError: If writing fails.
        """
        state = WorkState(
            settings=self._settings,
            about=self._about,
            shards=tuple(self._shards),
            progress=dict(progress),
        )
        self._marked = (list(self._pending), state)
        late = time.monotonic() - self._saved > SAVE_SECONDS
        if late or len(self._shards) > self._saved_shards:
            self._save()

    def _begin(self) -> None:
        """Read what an interrupted writer left, or begin."""
        overwrite = self._replace["overwrite"]
        sweep(self.path.parent, self.path.name)
        state = self._work.read()
        if state is not None and state.finished and self._is_published(state):
            self._work.clear()  # it was stopped after its last step
            state = None
        check_replaceable(self.path, "token store", **self._replace)
        if state is None or (overwrite and not self._resume):
            self._work.clear()
            self._saved = time.monotonic()
            return
        if not self._resume:
            raise FileExistsError(
                f"{self._work.path}: {state.rows:,} rows of an interrupted writer; continue it "
                "with resume (--resume), or delete the folder to begin anew"
            )
        if found := self._work.differences(state, self._settings):
            raise StoreError(
                f"{self._work.path}: cannot be continued, since this is not the work that was "
                f"begun: {'; '.join(found)}"
            )
        self._restore(state)

    def _restore(self, state: WorkState) -> None:
        self._about, self._shards = dict(state.about), list(state.shards)
        self.progress = state.progress
        if state.pending is not None:
            self._pending = [read_rows(self._work.path / state.pending.file, state.pending)]
            self._files = int(state.pending.file.split("-")[1].split(".")[0]) + 1
        if state.probe is not None:
            self._probe = read_probe(self._work.path, state.probe)
            self._probe_file = state.probe
        self._marked = (list(self._pending), state)
        self._saved, self._saved_shards = time.monotonic(), len(self._shards)

    def _is_published(self, state: WorkState) -> bool:
        """Whether the store at the path is made of exactly these files."""
        try:
            header = read_header(self.path)
        except StoreError:
            return False
        return (header.shards, header.probe) == (state.shards, state.probe)

    def _save(self, *, finished: bool = False) -> None:
        """Write the last mark to disk."""
        assert self._marked is not None
        pending, state = self._marked
        stored = None
        if pending:
            self._files += 1
            name = f"pending-{self._files:05d}.safetensors"
            stored = write_rows(self._work.path / name, Rows.cat(pending))
        if self._probe and self._probe_file is None:
            self._probe_file = write_probe(self._work.path, self._probe)
        probe = self._probe_file
        self._work.commit(replace(state, pending=stored, probe=probe, finished=finished))
        self._saved, self._saved_shards = time.monotonic(), len(state.shards)

    def _keep(self, error: BaseException) -> None:
        """After an error, leave what was marked and say so; leave nothing if there is none."""
        if self._marked is None or not (
            rows := sum(s.rows for s in self._marked[1].shards) + sum(map(len, self._marked[0]))
        ):
            self._work.remove()
            return
        try:
            self._save()
        except SaveError:  # the same full disk: what reached it before is there
            state = self._work.read(verify=False)
            if state is None:
                self._work.remove()
                return
            rows = state.rows
        if isinstance(error, SaveError):
            error.args = (str(error).removesuffix("; nothing was left behind"),)
        error.add_note(
            f"{rows:,} rows are kept in {self._work.path}; the same again with resume (--resume) "
            "continues from there"
        )

    def _num_pending(self) -> int:
        return sum(len(rows) for rows in self._pending)

    def _check_labels(self, labels: Tensor) -> None:
        highest = len(self._facts["classes"]) - 1
        wrong = (labels < -1) | ((labels > highest) if highest >= 0 else False)
        if wrong.any():
            expected = f"-1 to {highest}" if highest >= 0 else "-1 or more"
            raise ValueError(f"labels: expected {expected}, found {labels[wrong][0].item()}")

    def _write_shard(self) -> None:
        """Write all pending rows to one file."""
        name = f"shard-{len(self._shards):05d}.safetensors"
        stored = write_rows(self._work.path / name, Rows.cat(self._pending))
        self._shards.append(stored)
        self._pending.clear()

    def _finish(self) -> None:
        """Write the last shard and the header, and give the store its name."""
        if not len(self):
            raise ValueError(f"{self.path}: a token store needs at least one image, none was added")
        if self._pending:
            self._write_shard()
        count = len(self)
        if not all(0 <= row < count for _, row, _ in self._probe):
            rows = [row for _, row, _ in self._probe]
            raise ValueError(f"probe rows: expected 0 to {count - 1}, found {rows}")
        if self._marked is not None:
            self.mark(self._marked[1].progress)
            self._save(finished=True)
        elif self._probe:
            self._probe_file = write_probe(self._work.path, self._probe)
        header = StoreHeader(
            spec=self.spec,
            count=count,
            shards=tuple(self._shards),
            probe=self._probe_file,
            **self._facts,
            **self._about,
        )
        with atomic_folder(self.path, kind="token store", **self._replace) as folder:
            for stored in (*self._shards, *filter(None, [self._probe_file])):
                _link(self._work.path / stored.file, folder / stored.file)
            (folder / HEADER).write_bytes(header_bytes(header))
        self._work.remove()


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; on a file system without such names, copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
