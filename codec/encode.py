"""Encoding of an image source to a token store."""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from ..data.image_source import DataError, ImageSource
from ..data.images import to_uint8
from ..data.transforms import AugmentConfig
from ..metrics.image import psnr
from ..progress import progress_bar
from ..tokenizers.base import Tokenizer
from ..tokens.store import TokenStore, TokenStoreWriter
from ..tokens.store_format import StorePart
from .blocks import Blocks, count_sizes, read_blocks


@torch.no_grad()
def encode_source(
    tokenizer: Tokenizer,
    source: ImageSource,
    out: Path,
    *,
    batch_size: int = 64,
    limit: int | None = None,
    flip: bool = False,
    augment: AugmentConfig | None = None,
    views: int = 1,
    seed: int = 0,
    shard: tuple[int, int] | None = None,
    workers: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
    name: str = "",
    progress: bool = True,
) -> dict[str, Any]:
    """Write the tokens of every readable image of a source to a token store.

    Every image is stored unaugmented, and `views - 1` times with random augmentation: view k of
    image i is drawn from (seed, k * len(source) + i), whatever the batch size. Finished work is
    kept in `OUT.unfinished` when the call ends with an error, is interrupted or killed; with
    `resume` the next one goes on from there, to the same bytes.

    Args:
        tokenizer: Tokenizer as loaded from its folder. The store records the fingerprint of that
            folder, so weights that changed since must be saved and loaded first.
        source: Images, which are resized and centre-cropped to the tokenizer's resolution.
        out: Folder of the store.
        batch_size: Number of images encoded at once.
        limit: Number of images of the source that are taken, from the first; None: all.
        flip: Whether to add the mirror image of each, as augmentation 1; only with one view.
        augment: Random augmentation of the views after the first; None: no augmentation.
        views: Number of views of every image, at least 1; view k is stored as augmentation k.
        seed: Seed of the views, at least 0.
        shard: (i, n) to encode only part i of n, 0 <= i < n, for `merge_stores`; None: everything.
        workers: Number of processes that read images; 0: this one reads.
        resume: Whether to continue what an earlier call left unfinished, if it did.
        overwrite: Whether to replace an existing token store that tessella wrote.
        inputs: Files and folders that are never replaced, besides those of the source.
        name: Name of the tokenizer in the store, e.g. its path.
        progress: Whether to show a progress bar on stderr.

    Returns:
        `store`, `images`, `resumed` (those found finished), `tokens`, `bits_per_image`,
        `bytes_per_image`, `images_per_second`, `sizes` (numbers of images that were unchanged,
        enlarged, shrunk or cropped) and `broken` (reason by image id).

    Raises:
        ValueError: If several views come without an augmentation or with `flip`, or an
            augmentation comes with one view; if a number is out of range.
        DataError: If no image can be read.
        StoreError: If another process is writing this store, or what is to be continued was begun
            with other settings, other data or another tokenizer; the message has the differences.
        FileExistsError: If `out` exists and must stay; see `files.check_replaceable`.
        SaveError: If writing fails.
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
    if batch_size < 1 or workers < 0 or (limit is not None and limit < 1):
        raise ValueError(
            f"{batch_size=}, {limit=}, {workers=}; expected at least 1 image and 0 workers"
        )
    blocks = Blocks(
        source,
        tokenizer.resolution,
        batch_size,
        limit=limit,
        flip=flip,
        augment=augment,
        views=views,
        seed=seed,
    )
    settings = {
        "data": source.fingerprint(),
        "number of images": blocks.count,
        "batch size": batch_size,
        "flip": flip,
        "augment": None if augment is None else asdict(augment),
        "views": views,
        "seed": seed,
        "device": tokenizer.device.type,
        "tessella": __version__,
        "torch": str(torch.__version__),
    }
    first, last, part = 0, len(blocks), None
    if shard is not None:
        part = StorePart(index=shard[0], count=shard[1], settings=settings)
        first, last = (len(blocks) * i // part.count for i in (part.index, part.index + 1))
        if first == last:
            raise DataError(
                f"{source.name}: {blocks.count} images are {len(blocks)} batches of {batch_size}, "
                f"too few for {part.count} shards"
            )
    writer = TokenStoreWriter(
        out,
        tokenizer.spec,
        fingerprint=tokenizer.fingerprint or "",
        tokenizer=name,
        source=source.name,
        resolution=tokenizer.resolution,
        classes=source.classes,
        part=part,
        settings=settings,
        resume=resume,
        overwrite=overwrite,
        inputs=[*inputs, *source.places()],
    )
    started = time.perf_counter()
    with writer, progress_bar(blocks.count, "image", silent=not progress) as bar:
        done, resumed = writer.progress.get("blocks", first), len(writer)
        broken: dict[str, str] = writer.progress.get("broken", {})
        sizes: dict[str, int] = writer.progress.get("sizes", {})
        bar.update((done - first) * batch_size)
        for block in read_blocks(blocks, range(done, last), workers):
            for augmentation, view in enumerate(block.views):
                images = view.to(tokenizer.device)
                tokens = tokenizer.encode(images)
                if not len(writer):
                    probe, decoded = images[:4], tokenizer.decode(tokens[:4])
                    values = psnr(probe, decoded)
                    writer.add_probe(to_uint8(probe), list(range(len(probe))), values)
                views_of = torch.full((len(images),), augmentation)
                writer.add(tokens, block.ids, block.labels, block.captions, views_of)
            done, broken = done + 1, broken | block.broken
            sizes = count_sizes(sizes, block.sizes)
            writer.mark({"blocks": done, "broken": broken, "sizes": sizes})
            bar.update(len(block.ids) + len(block.broken))
        count = len(writer)
        if not count:
            image, reason = next(iter(broken.items()))
            raise DataError(f"{source.name}: no image can be read; {image}: {reason}")
    seconds = time.perf_counter() - started
    return {
        "store": str(out),
        "images": count,
        "resumed": resumed,
        "tokens": str(tokenizer.spec),
        "bits_per_image": TokenStore(out, verify=False).bits_per_image,
        "bytes_per_image": tokenizer.spec.packed_bytes,
        "images_per_second": (count - resumed) / seconds,
        "sizes": sizes,
        "broken": broken,
    }
