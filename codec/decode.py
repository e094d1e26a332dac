"""Decoding of tokens to PNG files."""

import functools
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.images import IMAGE_SUFFIXES, image_grid, to_pil
from ..files import atomic_folder
from ..progress import progress_bar
from ..tokenizers.base import Tokenizer
from ..tokenizers.probe import check_store
from ..tokens.code_arrays import read_code_file
from ..tokens.store import TokenStore, load_tokens
from ..tokens.tokens import Tokens
from .file_names import file_name

GRID_IMAGES = 64
"""Largest number of images in `grid.png`."""


def open_tokens(path: str | os.PathLike[str], tokenizer: Tokenizer) -> TokenStore | Tokens:
    """Open a token store, a file of `Tokens.save`, or an `.npy` file of codes.

    Args:
        path: The folder or file.
        tokenizer: Tokenizer whose tokens they are.

    Raises:
        FileNotFoundError: If nothing is there.
        ValueError: If it is none of these, or damaged.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy" and not path.is_dir():
        return read_code_file(path, tokenizer.spec)
    if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir():
        raise ValueError(f"{path}: an image; expected tokens, as `tessella encode` makes them")
    if path.is_file():
        return load_tokens(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; expected tokens")
    return TokenStore(path)


def decode_store(
    tokenizer: Tokenizer,
    store: TokenStore | Tokens,
    out: Path,
    *,
    batch_size: int = 64,
    limit: int | None = None,
    workers: int = 0,
    overwrite: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Write images of tokens as PNG files, plus `grid.png` and `images.jsonl`.

    Args:
        tokenizer: Tokenizer that made the tokens; for a store, any other is an error.
        store: Token store, or tokens, whose images are called 000000 and so on.
        out: Folder to create. Files are named after the image ids.
        batch_size: Number of images decoded at once.
        limit: Number of images, from the first; None: all.
        workers: Number of threads that write PNG files; 0: none besides this one.
        overwrite: Whether to replace images that were decoded to `out` before.
        inputs: Files and folders that are never replaced, besides the store.
        progress: Whether to show a progress bar on stderr.

    Returns:
        `folder`, `images`, `bits_per_image` and `images_per_second`.

    Raises:
        StoreError: If another tokenizer made the store.
        SpecMismatch: If the tokens are not of the tokenizer's spec.
        ValueError: If `limit` or `workers` is out of range.
        FileExistsError: If `out` exists and must stay; see `files.check_replaceable`.
        SaveError: If writing fails; nothing is left behind.
    """
    if workers < 0 or (limit is not None and limit < 1):
        raise ValueError(f"{limit=}, {workers=}; expected at least 1 image and 0 workers")
    count = len(store) if limit is None else min(limit, len(store))
    if isinstance(store, TokenStore):
        check_store(store, tokenizer)
        inputs = [*inputs, store.path]
    else:
        store.require(tokenizer.spec)
    records = _records(store, count, tokenizer)
    started = time.perf_counter()
    shown: list[Tensor] = []
    writing = atomic_folder(
        out, kind="images of a token store", overwrite=overwrite, inputs=inputs, flush=False
    )
    with (
        writing as folder,
        ThreadPoolExecutor(workers or 1) as pool,
        progress_bar(count, "image", silent=not progress) as bar,
    ):
        for start in range(0, count, batch_size):
            stop = min(start + batch_size, count)
            images = tokenizer.decode(store[start:stop]).cpu()
            paths = [folder / record["file"] for record in records[start:stop]]
            for _ in (pool.map if workers else map)(_save, images, paths):
                pass
            shown += [*images[: max(0, GRID_IMAGES - len(shown))]]
            bar.update(len(images))
        image_grid(shown, min(8, len(shown))).save(folder / "grid.png")
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        # What UTF-8 does not have, bytes of a file name, is escaped as JSON escapes it.
        (folder / "images.jsonl").write_bytes(lines.encode("utf-8", "backslashreplace"))
    return {
        "folder": str(out),
        "images": count,
        "bits_per_image": store.bits_per_image,
        "images_per_second": count / (time.perf_counter() - started),
    }


def _records(store: TokenStore | Tokens, count: int, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Lines of `images.jsonl` of the first `count` images."""
    if isinstance(store, TokenStore):
        ids, captions = store.ids[:count], store.captions[:count]
        labels, views = store.labels[:count].tolist(), store.augmentation[:count].tolist()
    else:
        ids, captions = [f"{row:06d}" for row in range(count)], [None] * count
        labels, views = [-1] * count, [0] * count
    named = functools.partial(file_name, taken=set())
    return [
        {
            "file": named(ids[row], views[row]),
            "row": row,
            "id": ids[row],
            "label": labels[row],
            "caption": captions[row],
            "augmentation": views[row],
            "tokenizer": tokenizer.fingerprint,
        }
        for row in range(count)
    ]


def _save(image: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    to_pil(image).save(path)
