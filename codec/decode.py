"""Decoding of a token store to PNG files."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor
from tqdm import tqdm

from ..data.images import image_grid, to_pil
from ..files import atomic_folder
from ..tokenizers.base import Tokenizer
from ..tokenizers.probe import check_store
from ..tokens.store import TokenStore
from .encode import _GRID_IMAGES


def decode_store(
    tokenizer: Tokenizer,
    store: TokenStore,
    out: Path,
    *,
    batch_size: int = 64,
    overwrite: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Write every image of a token store as a PNG, plus `grid.png` and `images.jsonl`.

    Args:
        tokenizer: Tokenizer that made the store; any other is an error.
        store: Token store to decode.
        out: Folder to create. Files are named after the image ids.
        batch_size: Number of images decoded at once.
        overwrite: Whether to replace images that were decoded to `out` before.
        inputs: Files and folders that are never replaced, besides the store.
        progress: Whether to show a progress bar on stderr.

    Returns:
        `folder`, `images`, `bits_per_image` and `images_per_second`.

    Raises:
        StoreError: If another tokenizer made the store.
        FileExistsError: If `out` exists and must stay; see `files.check_replaceable`.
        SaveError: If writing fails; nothing is left behind.
    """
    check_store(store, tokenizer)
    ids, labels, captions = store.ids, store.labels.tolist(), store.captions
    augmentation = store.augmentation.tolist()
    started = time.perf_counter()
    shown: list[Tensor] = []
    records: list[dict[str, Any]] = []
    taken: set[str] = set()
    writing = atomic_folder(
        out,
        kind="images of a token store",
        overwrite=overwrite,
        inputs=[*inputs, store.path],
        flush=False,
    )
    with (
        writing as folder,
        tqdm(total=len(store), unit="image", disable=not progress) as bar,
    ):
        for start in range(0, len(store), batch_size):
            images = tokenizer.decode(store[start : start + batch_size]).cpu()
            for offset, image in enumerate(images):
                row = start + offset
                file = file_name(ids[row], augmentation[row], taken)
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                to_pil(image).save(folder / file)
                record = {"file": file, "row": row, "id": ids[row], "label": labels[row]}
                record |= {"caption": captions[row], "augmentation": augmentation[row]}
                records.append(record | {"tokenizer": tokenizer.fingerprint})
            shown += [*images[: max(0, _GRID_IMAGES - len(shown))]]
            bar.update(len(images))
        image_grid(shown, min(8, len(shown))).save(folder / "grid.png")
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        (folder / "images.jsonl").write_text("".join(lines), encoding="utf-8")
    return {
        "folder": str(out),
        "images": len(store),
        "bits_per_image": store.bits_per_image,
        "images_per_second": len(store) / (time.perf_counter() - started),
    }


def file_name(image_id: str, augmentation: int, taken: set[str]) -> str:
    """Relative PNG path for an image id, which stays inside the folder and is not in `taken`."""
    parts = [p for p in PurePosixPath(image_id).parts if p not in ("/", "..", ".")]
    stem = str(PurePosixPath(*parts).with_suffix("")) if parts else "image"
    if augmentation:
        stem += f"_aug{augmentation}"
    name, number = f"{stem}.png", 1
    while name in taken or name == "grid.png":
        name, number = f"{stem}_{number}.png", number + 1
    taken.add(name)
    return name
