"""Encoding of an image source to a token store."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..data.image_source import ImageSource
from ..data.images import to_uint8
from ..data.loader import ImageDataset, eval_batches
from ..data.transforms import AugmentConfig
from ..metrics.image import psnr
from ..tokenizers.base import Tokenizer
from ..tokens.store import TokenStore, TokenStoreWriter

_GRID_IMAGES = 64


@torch.no_grad()
def encode_source(
    tokenizer: Tokenizer,
    source: ImageSource,
    out: Path,
    *,
    batch_size: int = 64,
    flip: bool = False,
    augment: AugmentConfig | None = None,
    views: int = 1,
    seed: int = 0,
    overwrite: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
    name: str = "",
    progress: bool = True,
) -> dict[str, Any]:
    """Write the tokens of every readable image of a source to a token store.

    Every image is stored unaugmented, and `views - 1` times with random augmentation: view k of
    image i is drawn from (seed, k * len(source) + i), whatever the batch size.

    Args:
        tokenizer: Tokenizer as loaded from its folder. The store records the fingerprint of that
            folder, so weights that changed since must be saved and loaded first.
        source: Images, which are resized and centre-cropped to the tokenizer's resolution.
        out: Folder of the store.
        batch_size: Number of images encoded at once.
        flip: Whether to add the mirror image of each, as augmentation 1; only with one view.
        augment: Random augmentation of the views after the first; None: no augmentation.
        views: Number of views of every image, at least 1; view k is stored as augmentation k.
        seed: Seed of the views, at least 0.
        overwrite: Whether to replace an existing token store that tessella wrote.
        inputs: Files and folders that are never replaced, besides those of the source.
        name: Name of the tokenizer in the store, e.g. its path.
        progress: Whether to show a progress bar on stderr.

    Returns:
        `store`, `images`, `tokens`, `bits_per_image`, `bytes_per_image`, `images_per_second` and
        `broken` (reason by image id).

    Raises:
        ValueError: If several views come without an augmentation or with `flip`, or an
            augmentation comes with one view.
        DataError: If no image can be read.
        FileExistsError: If `out` exists and must stay; see `files.check_replaceable`.
        SaveError: If writing fails; nothing is left behind.
    """
    if views < 1 or (views > 1) != (augment is not None and augment.enabled):
        raise ValueError(
            f"views: found {views} views and augment={augment}; several views need an "
            "augmentation, and an augmentation needs several views (view 0 is the image itself)"
        )
    if views > 1 and flip:
        raise ValueError(
            "flip: with several views, expected augment=AugmentConfig(flip=True) instead of "
            "flip=True"
        )
    dataset = ImageDataset(source, tokenizer.resolution, augment, seed)
    broken: dict[str, str] = {}
    writer = TokenStoreWriter(
        out,
        tokenizer.spec,
        fingerprint=tokenizer.fingerprint or "",
        tokenizer=name,
        source=source.name,
        resolution=tokenizer.resolution,
        classes=source.classes,
        overwrite=overwrite,
        inputs=[*inputs, *source.places()],
    )
    started = time.perf_counter()
    with writer, tqdm(total=len(source), unit="image", disable=not progress) as bar:
        for batch in eval_batches(source, tokenizer.resolution, batch_size, broken=broken):
            indices = batch["numbers"].tolist()
            for augmentation in range(2 if flip else views):
                if augmentation == 0:
                    images = batch["images"]
                elif flip:
                    images = batch["images"].flip(3)
                else:
                    keys = [(i, augmentation * len(source) + i) for i in indices]
                    images = dataset.__getitems__(keys)["images"]
                images = images.to(tokenizer.device)
                tokens = tokenizer.encode(images)
                if not len(writer):
                    probe, decoded = images[:4], tokenizer.decode(tokens[:4])
                    values = psnr(probe, decoded)
                    writer.add_probe(to_uint8(probe), list(range(len(probe))), values)
                writer.add(
                    tokens,
                    batch["ids"],
                    batch["labels"],
                    [caption or None for caption in batch["captions"]],
                    torch.full((len(images),), augmentation),
                )
            bar.update(len(batch["ids"]))
        count = len(writer)
    seconds = time.perf_counter() - started
    return {
        "store": str(out),
        "images": count,
        "tokens": str(tokenizer.spec),
        "bits_per_image": TokenStore(out, verify=False).bits_per_image,
        "bytes_per_image": tokenizer.spec.packed_bytes,
        "images_per_second": count / seconds,
        "broken": broken,
    }
