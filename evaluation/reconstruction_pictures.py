"""Reconstructions as PNG files, and how good they are: `tessella reconstruct`.

The numbers are those of `reconstructions.py`, of one repetition and under a protocol whose id comes
with them: that of the preset `val-paired`, with the networks that were asked for.
"""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..codec.file_names import file_name
from ..data.image_source import DataError, ImageSource
from ..data.images import grid_of_pairs, to_pil
from ..data.loader import eval_batches
from ..files import atomic_folder
from ..metrics.networks.build import available_features
from ..metrics.perceptual import build_perceptual
from ..metrics.presets import MIN_IMAGES, find_preset
from ..metrics.protocol import as_floats
from ..progress import progress_bar
from ..tokenizers.base import Tokenizer
from .image_set import Networks
from .reconstructed import Measures, Reconstructed
from .reconstructions import is_random, measure_reconstructions
from .settings import EvaluationSettings

PRESET = "val-paired"
_GRID_IMAGES = 64


class PictureFolder:
    """Reconstructions as PNG files named after their images, and a grid of the first pairs.

    Args:
        folder: Existing folder to write to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._taken: set[str] = set()
        self._originals: list[Tensor] = []
        self._reconstructions: list[Tensor] = []

    def add(self, batch: dict[str, Any], pixels: Tensor) -> None:
        """Write the reconstructions, uint8 (B, 3, H, W), of a batch of `eval_batches`."""
        images = as_floats(pixels).cpu()
        for image_id, image in zip(batch["ids"], images, strict=True):
            file = self.folder / file_name(image_id, 0, self._taken)
            file.parent.mkdir(parents=True, exist_ok=True)
            to_pil(image).save(file)
        missing = _GRID_IMAGES - len(self._originals)
        self._originals += [*batch["images"][: max(0, missing)].cpu()]
        self._reconstructions += [*images[: max(0, missing)]]

    def close(self) -> None:
        """Write `grid.png`: rows of originals, each above the row of its reconstructions."""
        pairs = torch.stack(self._originals), torch.stack(self._reconstructions)
        grid_of_pairs(*pairs).save(self.folder / "grid.png")


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
    """Encode and decode every readable image, measure what comes back and write it as PNG files.

    Args:
        tokenizer: Tokenizer to measure.
        source: Images, resized and center-cropped to the tokenizer's resolution.
        out: Folder for the reconstructions and a grid of pairs; None: nothing is written.
        batch_size: Number of images at once.
        limit: Largest number of images, the first ones; None: all.
        perceptual: Network of the perceptual distance, or `auto`: the best one on this machine.
        features: Network of the distances between the two sets of images, or `none`. `auto` is
            efflite0 if its weights are on this machine, else random; with fewer than 6 images,
            too few for these distances, it is none.
        overwrite: Replace reconstructions of ours that are already there.
        inputs: Files and folders that are never replaced, besides those of the source.
        progress: Show a progress bar on stderr.

    Returns:
        `protocol`, the id under which the numbers were measured, and `networks`, with the hashes of
        their weights; facts of data and tokenizer; then every metric by the names of
        `tessella evaluate`, and `images_per_second` of encoding and decoding alone.

    Raises:
        ProtocolError: If there are too few images for the features asked for.
        DataError: If no image can be read, or too few for the features asked for.
        WeightsMissing: If a network asked for by name has no weights on this machine.
        FileExistsError: If `out` exists and must stay; see `files.check_replaceable`.
    """
    device = tokenizer.device
    distance = build_perceptual(perceptual).to(device)
    preset = dataclasses.replace(find_preset(PRESET), perceptual=perceptual)
    num = min(limit or len(source), len(source))
    if features == "auto":
        features = "efflite0" if available_features()["efflite0"] else "random"
        features = features if num >= MIN_IMAGES else "none"
    networks: Networks | None = None
    if features != "none":
        preset.check_number(num, len(source), "reconstructions")
        networks = Networks.of(preset, device, features=features)
    measures = Measures(
        distance=distance, networks=networks, spec=tokenizer.spec, bank=preset.reference_bank
    )
    settings = EvaluationSettings(
        preset=preset,
        data=source.name,
        repeats=1,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    found = Reconstructed(measures)
    with contextlib.ExitStack() as stack:
        pictures: PictureFolder | None = None
        if out is not None:
            writing = atomic_folder(
                out,
                kind="reconstructions",
                overwrite=overwrite,
                inputs=[*inputs, *source.places()],
                flush=False,
            )
            pictures = PictureFolder(stack.enter_context(writing))
        bar = stack.enter_context(progress_bar(num, "image", silent=not progress))

        def each(batch: dict[str, Any], pixels: Tensor) -> None:
            bar.update(len(pixels))
            if pictures is not None:
                pictures.add(batch, pixels)

        batches = eval_batches(
            source,
            tokenizer.resolution,
            batch_size,
            limit,
            broken=found.broken,
            resize=preset.resize,
        )
        measure_reconstructions(
            tokenizer,
            batches,
            found,
            measures,
            rounding=preset.rounding,
            seed=settings.seed if is_random(tokenizer, source, settings) else None,
            each=each,
        )
        if networks is not None and len(found) < MIN_IMAGES:
            raise DataError(
                f"{source.name} ({source.split}): {len(found)} of {num} images could be read, "
                f"expected at least {MIN_IMAGES}, or --features none"
            )
        if pictures is not None:
            pictures.close()
    protocol = found.protocol(source, preset, tokenizer.resolution, measures)
    result: dict[str, Any] = {
        "protocol": protocol.id,
        "networks": {
            "features": protocol.features,
            "classifier": protocol.classifier,
            "perceptual": protocol.perceptual,
        },
        "data": source.name,
        "split": source.split,
        "num_images": len(found),
        "resolution": tokenizer.resolution,
        **found.metrics(protocol, seed=settings.seed, device=device),
    }
    if found.tokens is not None and found.tokens.groups is not None:
        result["group_sizes"] = list(found.tokens.groups)
    result |= {"images_per_second": len(found) / found.seconds}
    return result | {"fingerprint": tokenizer.fingerprint, "broken": found.broken}
