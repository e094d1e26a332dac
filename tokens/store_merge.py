"""Joining of token stores: the parts that several writers made of one data set, or any stores."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .store import TokenStore
from .store_format import StoreError
from .store_rows import read_probe, read_rows
from .store_work import describe_differences
from .store_writer import TokenStoreWriter


def merge_stores(
    stores: Sequence[TokenStore],
    out: str | os.PathLike[str],
    *,
    rows_per_shard: int = 16384,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write all rows of several token stores to one.

    Parts of one data set (`encode_source(..., shard=(i, n))`) are put in their order, must be
    complete, and give the bytes of a store that one process wrote, if every process computed the
    same tokens: the same kind of machine and as many threads. Other stores keep the order given.

    Args:
        stores: Stores of one tokenizer; in the order of their rows, unless they are parts.
        out: Folder to create.
        rows_per_shard: Number of images in a full shard.
        overwrite: Whether to replace an existing token store that tessella wrote.

    Returns:
        `store`, `images` and `parts`, the number of stores.

    Raises:
        StoreError: If there are no stores, or they do not belong together: of several tokenizers,
            with other classes, or parts that are missing, twice, or made with other settings.
        FileExistsError: If `out` exists and must stay; see `files.check_replaceable`.
        SaveError: If writing fails; nothing is left behind.
    """
    ordered = _in_order(stores)
    first = ordered[0].header
    sources = dict.fromkeys(store.header.source for store in ordered)
    writer = TokenStoreWriter(
        out,
        first.spec,
        fingerprint=first.fingerprint,
        tokenizer=first.tokenizer,
        source="+".join(sources),
        resolution=first.resolution,
        classes=first.classes,
        rows_per_shard=rows_per_shard,
        overwrite=overwrite,
        inputs=[store.path for store in ordered],
    )
    with writer:
        if first.probe is not None:
            images, rows, psnr = zip(*read_probe(ordered[0].path, first.probe), strict=True)
            for image, row, value in zip(images, rows, psnr, strict=True):
                writer.add_probe(image[None], [row], [value])
        for store in ordered:
            for stored in store.header.shards:
                writer.add_rows(read_rows(store.path / stored.file, stored))
    return {"store": str(Path(out)), "images": len(writer), "parts": len(ordered)}


def _in_order(stores: Sequence[TokenStore]) -> list[TokenStore]:
    """The stores in the order of their rows, checked to belong together."""
    if not stores:
        raise StoreError("merge: expected at least one token store, found none")
    first = stores[0]
    for store in stores[1:]:
        one, two = str(first.path), str(store.path)
        if found := describe_differences(_facts(first), _facts(store), one, two):
            raise StoreError(f"merge: the stores do not belong together: {'; '.join(found)}")
    if first.header.part is None:
        return list(stores)
    count = first.header.part.count
    places: dict[int, TokenStore] = {}
    for store in stores:
        assert store.header.part is not None  # else the numbers of parts would differ
        index = store.header.part.index
        if index in places:
            raise StoreError(
                f"merge: {places[index].path} and {store.path} are both part {index} of {count}"
            )
        places[index] = store
    if missing := [str(index) for index in range(count) if index not in places]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise StoreError(
            f"merge: found {len(places)} of {count} parts; {', '.join(missing[:5])}{more} missing"
        )
    return [places[index] for index in range(count)]


def _facts(store: TokenStore) -> dict[str, Any]:
    """What stores that belong together have in common."""
    header, part = store.header, store.header.part
    facts = {
        "tokenizer": header.fingerprint,
        "tokens": header.spec.to_dict(),
        "resolution": header.resolution,
        "classes": header.classes,
        "number of parts": None if part is None else part.count,
    }
    return facts if part is None else facts | part.settings
