"""Token stores as files for language models, and back.

An export is a folder: rows in one of the formats of `row_files.py`, the probe of the store, and
`export.json`, which says how ids were made and lists every file with its checksum, so that the
import gives the store that was exported, byte for byte.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..config import STRICT
from ..documents import read_json
from ..files import atomic_folder, sha256_file
from ..manifest import check_files
from .row_files import FORMATS, READERS, WRITERS, SequenceRows, Shape
from .sequences import SequenceFormat
from .store import TokenStore
from .store_format import PROBE, StoredFile, StoreError, StoreHeader, check_file
from .store_rows import read_probe, read_rows, write_probe
from .store_writer import TokenStoreWriter
from .tokens import Tokens

EXPORT = "export.json"
EXPORT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ExportHeader:
    """Content of `export.json`.

    Args:
        format: Version of the layout.
        to: Format of the rows.
        sequence: How ids were made.
        dtype: Integer type of the ids.
        store: Header of the store that was exported.
        files: Every other file of the folder; `rows` is 0 but for the probe.
    """

    __pydantic_config__ = STRICT
    format: int = EXPORT_VERSION
    to: str
    sequence: SequenceFormat
    dtype: str
    store: StoreHeader
    files: tuple[StoredFile, ...]


def export_store(
    store: TokenStore,
    out: str | os.PathLike[str],
    *,
    to: str,
    sequence: SequenceFormat | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the rows of a store as sequences of ids.

    Args:
        store: Token store.
        out: Folder to create.
        to: `npy`, `jsonl`, `webdataset` or `parquet` (which needs pyarrow); see
            `docs/token_stores.md` for their content.
        sequence: How ids are made; None: joint ids from 0, in rows.
        overwrite: Whether to replace an existing export that tessella wrote.

    Returns:
        `folder`, `to`, `images`, `ids_per_image` (of full length), `first_id`, `last_id` and
        `vocabulary`, the size of a vocabulary with all ids.

    Raises:
        ValueError: If there is no such format.
        SpecMismatch: If the sequence format is for other tokens.
        StoreError: If a library is missing, or the format cannot hold a name.
        FileExistsError: If `out` exists and must stay; see `files.check_replaceable`.
        SaveError: If writing fails; nothing is left behind.
    """
    if to not in FORMATS:
        raise ValueError(f"to: found {to!r}, expected one of {', '.join(FORMATS)}")
    sequence = sequence or SequenceFormat(spec=store.spec)
    dtype = "int32" if sequence.largest_id < 2**31 else "int64"
    shape = Shape(len(store), sequence.length, dtype)
    writing = atomic_folder(
        out, kind="exported token store", overwrite=overwrite, inputs=[store.path]
    )
    with writing as folder:
        WRITERS[to](folder, _sequences(store, sequence), shape)
        names = sorted(path.name for path in folder.iterdir())
        if store.header.probe is not None:
            write_probe(folder, read_probe(store.path, store.header.probe))
            names.append(PROBE)
        files = tuple(_entry(folder / name) for name in names)
        header = ExportHeader(
            to=to, sequence=sequence, dtype=dtype, store=store.header, files=files
        )
        (folder / EXPORT).write_text(json.dumps(asdict(header), indent=1) + "\n", encoding="utf-8")
    return {
        "folder": str(Path(out)),
        "to": to,
        "images": len(store),
        "ids_per_image": sequence.length,
        "first_id": sequence.ids_used[0],
        "last_id": sequence.ids_used[-1],
        "vocabulary": sequence.largest_id + 1,
    }


def read_export(folder: str | os.PathLike[str]) -> ExportHeader:
    """Read `export.json` of an export.

    Raises:
        StoreError: If it is missing, damaged, or of another version.
    """
    path = Path(folder) / EXPORT
    try:
        header = read_json(path, ExportHeader, error=StoreError)
    except FileNotFoundError:
        raise StoreError(
            f"{folder}: {EXPORT} is missing; this is no exported token store"
        ) from None
    if header.format != EXPORT_VERSION or header.to not in FORMATS:
        raise StoreError(
            f"{path}: export of format {header.format} to {header.to!r}; expected format "
            f"{EXPORT_VERSION} to one of {', '.join(FORMATS)}"
        )
    return header


def import_store(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    verify: bool = True,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a token store of an export.

    Args:
        folder: Folder that `export_store` wrote.
        out: Folder of the store.
        verify: Whether every file must be as it was exported, which gives the store that was
            exported. Without it, rows may be others, e.g. of a language model, in any number.
        overwrite: Whether to replace an existing token store that tessella wrote.

    Returns:
        `store` and `images`.

    Raises:
        StoreError: If a file is missing, changed or damaged, or ids are none of the tokens.
        FileExistsError: If `out` exists and must stay; see `files.check_replaceable`.
        SaveError: If writing fails; nothing is left behind.
    """
    folder, header = Path(folder), read_export(folder)
    if verify:
        check_files(folder, (EXPORT,), error=StoreError)
    for stored in header.files if verify else ():
        check_file(folder / stored.file, stored, verify=True)
    about, sequence = header.store, header.sequence
    shape = Shape(about.count, sequence.length, header.dtype)
    writer = TokenStoreWriter(
        out,
        about.spec,
        fingerprint=about.fingerprint,
        tokenizer=about.tokenizer,
        source=about.source,
        resolution=about.resolution,
        classes=about.classes,
        rows_per_shard=max((shard.rows for shard in about.shards), default=1),
        part=about.part,
        overwrite=overwrite,
        inputs=[folder],
    )
    with writer:
        for rows in READERS[header.to](folder, shape):
            try:
                writer.add(
                    sequence.decode(rows.ids),
                    rows.names,
                    torch.from_numpy(rows.labels),
                    rows.captions,
                    torch.from_numpy(rows.augmentation),
                    torch.from_numpy(rows.psnr),
                )
            except ValueError as error:
                raise StoreError(f"{folder}: rows from {len(writer)}: {error}") from None
        if verify and len(writer) != about.count:
            raise StoreError(f"{folder}: {len(writer)} rows, but {about.count} were exported")
        if verify and about.probe is not None:
            entry = replace(about.probe, file=PROBE)
            images, numbers, psnr = zip(*read_probe(folder, entry), strict=True)
            writer.add_probe(torch.stack(images), numbers, psnr)
    return {"store": str(Path(out)), "images": len(writer)}


def _sequences(store: TokenStore, sequence: SequenceFormat) -> Iterator[SequenceRows]:
    """Rows of a store, shard by shard."""
    for stored in store.header.shards:
        rows = read_rows(store.path / stored.file, stored)
        columns = rows.tensors
        tokens = Tokens.unpack(columns["packed"], store.spec, columns.get("lengths"))
        yield SequenceRows(
            sequence.encode(tokens).numpy(),
            columns["labels"].numpy(),
            columns["augmentation"].numpy(),
            columns["psnr"].numpy(),
            rows.ids,
            rows.captions,
        )


def _entry(path: Path) -> StoredFile:
    return StoredFile(
        file=path.name, rows=0, num_bytes=path.stat().st_size, sha256=sha256_file(path)
    )
