"""How well a tokenizer reconstructs a data set: pixels, perception, distribution, codes."""

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..codec.decode import file_name
from ..data.image_source import ImageSource
from ..data.images import grid_of_pairs, to_pil, to_uint8
from ..data.loader import eval_batches
from ..files import atomic_folder
from ..metrics.frechet import FrechetStatistics, frechet_distance, metric_name
from ..metrics.image import ReconstructionMeter
from ..metrics.networks.build import FeatureExtractor, available_features, build_features
from ..metrics.perceptual import build_perceptual
from ..metrics.protocol import as_floats
from ..metrics.token_statistics import TokenStatistics
from ..tokenizers.base import Tokenizer

_GRID_IMAGES = 64


def _statistics(extractor: FeatureExtractor) -> FrechetStatistics:
    return FrechetStatistics(extractor.num_features, extractor_id=extractor.id)


@torch.no_grad()
def reconstruct_source(
    tokenizer: Tokenizer,
    source: ImageSource,
    *,
    out: Path | None = None,
    batch_size: int = 32,
    limit: int | None = None,
    perceptual: str = "auto",
    features: str = "auto",
    overwrite: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Encode and decode every readable image and measure what came back.

    Args:
        tokenizer: Any tokenizer.
        source: The images; resized and centre-cropped to the tokenizer's resolution.
        out: Folder for the reconstructions and a grid of pairs; None: nothing is written.
        batch_size: Images at once.
        limit: Largest number of images; None: all.
        perceptual: Network of the perceptual distance, or `auto`: the best one present.
        features: Network of the Fréchet distance, `none`, or `auto`: efflite0 if present.
        overwrite: Replace reconstructions of ours that are already there.
        inputs: Files and folders that are never replaced, besides those of the source.
        progress: Show a progress bar on stderr.

    Returns:
        Values by metric name. `psnr` is the mean over images in dB, `psnr_non_white` pooled over
        the pixels that are not pure white; all after rounding to 8 bits. Perceptual and Fréchet
        values carry the network and a hash of its weights in their name. Token statistics are
        those of `TokenStatistics`. `images_per_second` covers encoding and decoding only.

    Raises:
        DataError: If no image can be read.
        FileExistsError: If `out` exists and must stay; see `files.check_replaceable`.
        WeightsMissing: If a network asked for by name has no weights here.
    """
    device, inputs = tokenizer.device, [*inputs, *source.places()]
    distance = build_perceptual(perceptual).to(device)
    if features == "auto":
        features = "efflite0" if available_features()["efflite0"] else "random"
    extractor = None if features == "none" else build_features(features).to(device)
    meter, statistics = ReconstructionMeter(), TokenStatistics(tokenizer.spec)
    sides = [] if extractor is None else [_statistics(extractor), _statistics(extractor)]
    broken: dict[str, str] = {}
    total, count, seconds = 0.0, 0, 0.0
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    taken: set[str] = set()
    with contextlib.ExitStack() as stack:
        folder: Path | None = None
        if out is not None:
            writing = atomic_folder(
                out, kind="reconstructions", overwrite=overwrite, inputs=inputs, flush=False
            )
            folder = stack.enter_context(writing)
        total_images = min(limit or len(source), len(source))
        bar = stack.enter_context(tqdm(total=total_images, unit="image", disable=not progress))
        for batch in eval_batches(source, tokenizer.resolution, batch_size, limit, broken=broken):
            images = batch["images"].to(device)
            started = time.perf_counter()
            tokens = tokenizer.encode(images)
            decoded = tokenizer.decode(tokens)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds += time.perf_counter() - started
            decoded = as_floats(to_uint8(decoded))  # as saved: every number is of 8-bit pictures
            meter.update(images, decoded)
            statistics.update(tokens)
            total += float(distance(images, decoded).double().sum())
            for side, pixels in zip(sides, (images, decoded), strict=False):
                assert extractor is not None
                side.update(extractor.pooled((pixels + 1) / 2))
            count += len(images)
            bar.update(len(images))
            if folder is None:
                continue
            for image_id, image in zip(batch["ids"], decoded.cpu(), strict=True):
                file = folder / file_name(image_id, 0, taken)
                file.parent.mkdir(parents=True, exist_ok=True)
                to_pil(image).save(file)
            if sum(len(first) for first, _ in pairs) < _GRID_IMAGES:
                pairs.append((images.cpu(), decoded.cpu()))
        if folder is not None:
            originals, shown = (torch.cat(side)[:_GRID_IMAGES] for side in zip(*pairs, strict=True))
            grid_of_pairs(originals, shown).save(folder / "grid.png")
    result: dict[str, Any] = {
        "data": source.name,
        "split": source.split,
        "num_images": count,
        "resolution": tokenizer.resolution,
        **{name: value for name, value in meter.compute().items() if name != "num_images"},
        distance.id: total / count,
    }
    if extractor is not None and count > 1:
        result[f"{metric_name(extractor)}#{extractor.weights_id}"] = frechet_distance(*sides)
    if statistics.groups is not None:
        result["group_sizes"] = list(statistics.groups)
    result |= statistics.compute() | {"images_per_second": count / seconds}
    result |= {"fingerprint": tokenizer.fingerprint, "broken": broken}
    return result
