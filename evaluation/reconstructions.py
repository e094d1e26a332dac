"""How well a tokenizer reconstructs, under a protocol: `tessella evaluate --tokenizer`.

Each image is compared with its original, and the set of all with the set of all originals.
`measure_reconstructions` is the one loop that does so: `tessella reconstruct` runs it too, and
`train/tokenizer.py` with fewer `Measures`.
"""

import functools
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..collectives import broadcast_from_main, gather_merged, leave_processes, own_share
from ..data.image_source import ImageSource
from ..data.images import grid_of_pairs
from ..data.loader import eval_batches, evenly_spaced
from ..metrics.catalogue import metric_values
from ..metrics.perceptual import build_perceptual
from ..metrics.protocol import Rounding, to_pixels
from ..progress import progress_bar
from ..tokenizers.base import Tokenizer
from ..tokens.tokens import Tokens
from .calibration import calibrate
from .evaluation import Evaluation, few_images_note
from .image_set import Networks
from .reconstructed import Measures, Reconstructed
from .settings import EvaluationSettings

NUM_GRID, NUM_WORST = 32, 16
"""Number of images in the pictures of reconstructions and of the worst ones."""


@torch.no_grad()
def measure_reconstructions(
    tokenizer: Tokenizer,
    batches: Iterable[dict[str, Any]],
    found: Reconstructed,
    measures: Measures,
    *,
    rounding: Rounding = "round",
    seed: int | None = None,
    each: Callable[[dict[str, Any], Tensor], None] | None = None,
) -> Reconstructed:
    """Encode and decode images batch by batch and measure what comes back.

    Args:
        tokenizer: Tokenizer to measure.
        batches: Originals, batches of `eval_batches`.
        found: Measurements to add to.
        measures: Metrics to measure, those that `found` was made for.
        rounding: Rule by which reconstructions become 8-bit images.
        seed: Seed of image 0 of a random tokenizer, image i has `seed` + i; None: without seeds.
        each: Called with every batch and its reconstructions, uint8 (B, 3, H, W).

    Returns:
        `found`.

    Raises:
        ValueError: If a feature or a pixel is not finite.
    """
    for batch in batches:
        begun = time.perf_counter()
        seeds = None if seed is None else [seed + i for i in batch["numbers"].tolist()]
        tokens, decoded = _there_and_back(tokenizer, batch["images"], seeds)
        pixels = to_pixels(decoded, rounding)
        if pixels.is_cuda:
            torch.cuda.synchronize(pixels.device)
        found.seconds += time.perf_counter() - begun
        found.add(batch, pixels, tokens, measures)
        if each is not None:
            each(batch, pixels)
    return found


@torch.no_grad()
def evaluate_tokenizer(
    tokenizer: Tokenizer,
    source: ImageSource,
    settings: EvaluationSettings,
    *,
    name: str,
) -> Evaluation | None:
    """Encode and decode images and measure what came back.

    Args:
        tokenizer: Tokenizer, as `load_tokenizer` returns it.
        source: Images to reconstruct, usually a validation split.
        settings: Settings of the evaluation. A tokenizer without randomness gives one value for
            every seed: there is one repetition then, and no spread.
        name: Name of the tokenizer in the report.

    Returns:
        The measurement on the main process, None on the others.

    Raises:
        ProtocolError: If the preset does not allow what is asked for.
        WeightsMissing: If a network has no weights on this machine.
        DataError: If no image can be read, or one has a size that the preset refuses.
        ValueError: If a feature or a pixel is not finite.
    """
    started = time.perf_counter()
    preset, resolution = settings.preset, tokenizer.resolution
    preset.check_resolution(resolution)
    num = preset.check_number(settings.num, len(source), "reconstructions")
    chosen = evenly_spaced(len(source), num)
    networks = Networks.of(preset, settings.device, features=settings.features)
    measures = Measures(
        networks=networks,
        distance=build_perceptual(preset.perceptual).to(settings.device),
        spec=tokenizer.spec,
        bank=preset.reference_bank,
    )
    random = is_random(tokenizer, source, settings)
    repeats = settings.repeats if random else 1
    own = [chosen[i] for i in own_share(num, settings.processes)]
    runs: list[Reconstructed] = []
    for repetition in range(repeats):
        whole = gather_merged(
            functools.partial(
                _reconstruct,
                tokenizer,
                source,
                own,
                settings,
                measures,
                seed=settings.seed + repetition * len(source) if random else None,
                title=f"reconstructions {repetition + 1} of {repeats}",
            ),
            settings.processes,
        )
        if whole is not None:
            runs.append(whole)
    if settings.processes is not None:
        leave_processes()
    if not runs:
        return None
    first = runs[0]
    first.check_readable(source, num)
    assert first.table is not None and first.originals is not None, "there are images"
    table = first.table
    protocol = first.protocol(source, preset, resolution, measures)
    calibration = calibrate(first.originals.bank, networks.extractor, resolution, settings)
    notes = [*few_images_note(protocol), *calibration.notes(protocol.smaller_side)]
    if repeats < settings.repeats:
        notes.append(
            "This tokenizer encodes and decodes without randomness: other seeds would give the "
            "same images, so there is one repetition and no spread."
        )
    evaluation = Evaluation(
        kind="reconstructions",
        protocol=protocol,
        subject=_subject(tokenizer, name),
        metrics=metric_values(
            [
                run.metrics(
                    protocol,
                    calibration=calibration,
                    seed=settings.seed + i,
                    device=settings.device,
                )
                for i, run in enumerate(runs)
            ],
            protocol,
        ),
        calibration=calibration.to_dict(),
        notes=notes,
        broken=first.broken,
        images_per_second=len(first) / first.seconds,
    )
    if source.classes:
        evaluation.per_class = {
            "columns": ["class", "images", *table.names],
            "rows": table.by_class(source.classes),
            "about": "Means over the images of each class.",
        }
    shown = table.numbers[:NUM_GRID].tolist()
    worst = table.largest(first.perceptual, NUM_WORST)
    for file, title, about, numbers in (
        ("reconstructions.png", "Reconstructions", "each below its original", shown),
        ("worst.png", "Worst reconstructions", f"by {first.perceptual}, worst first", worst),
    ):
        picture = _pairs(tokenizer, source, settings, numbers, random)
        evaluation.pictures[file] = (title, about, picture)
    evaluation.add_bits(first.tokens)
    evaluation.seconds = time.perf_counter() - started
    return evaluation


def _reconstruct(
    tokenizer: Tokenizer,
    source: ImageSource,
    own: list[int],
    settings: EvaluationSettings,
    measures: Measures,
    *,
    seed: int | None,
    title: str,
) -> Reconstructed:
    """Images `own` of one repetition, this process's share, with a progress bar."""
    found = Reconstructed(measures)
    silent = not settings.progress or settings.rank > 0
    batches = eval_batches(
        source,
        tokenizer.resolution,
        settings.batch_size,
        broken=found.broken,
        resize=settings.preset.resize,
        indices=own,
    )
    with progress_bar(len(own), "image", title=title, silent=silent) as bar:
        return measure_reconstructions(
            tokenizer,
            batches,
            found,
            measures,
            rounding=settings.preset.rounding,
            seed=seed,
            each=lambda _, pixels: bar.update(len(pixels)),
        )


def _there_and_back(
    tokenizer: Tokenizer, images: Tensor, seeds: list[int] | None
) -> tuple[Tokens, Tensor]:
    """Tokens and reconstructions.

    A random tokenizer takes one image at a time, each with its own seed: what becomes of it then
    depends neither on the batch nor on the process.
    """
    images = images.to(tokenizer.device)
    if seeds is None:
        tokens = tokenizer.encode(images)
        return tokens, tokenizer.decode(tokens)
    every, decoded = [], []
    for image, seed in zip(torch.split(images, 1), seeds, strict=True):
        rng = torch.Generator().manual_seed(seed)
        every.append(tokenizer.encode(image, rng=rng))
        decoded.append(tokenizer.decode(every[-1], rng=rng))
    return Tokens.cat(every), torch.cat(decoded)


def is_random(tokenizer: Tokenizer, source: ImageSource, settings: EvaluationSettings) -> bool:
    """Whether seeds change what comes back, tried on an image; the main process decides for all."""

    def tried() -> bool:
        for batch in eval_batches(source, tokenizer.resolution, 1, resize=settings.preset.resize):
            decoded = [_there_and_back(tokenizer, batch["images"], [seed])[1] for seed in (0, 1)]
            return not torch.equal(*decoded)
        return False

    return broadcast_from_main(tried(), settings.processes)


def _subject(tokenizer: Tokenizer, name: str) -> dict[str, Any]:
    """Facts of a tokenizer, for the report."""
    return {
        "name": name,
        "system": tokenizer.config.type,
        "fingerprint": tokenizer.fingerprint or "not loaded from a folder",
        "parameters": tokenizer.num_parameters()["total"],
        "resolution": tokenizer.resolution,
        "tokens": str(tokenizer.spec),
        "bits_per_image": tokenizer.spec.bits_per_image,
    }


def _pairs(
    tokenizer: Tokenizer,
    source: ImageSource,
    settings: EvaluationSettings,
    numbers: list[int],
    random: bool,
) -> Image.Image:
    """Originals above their reconstructions, in the order of `numbers`."""
    batches = eval_batches(
        source,
        tokenizer.resolution,
        len(numbers),
        resize=settings.preset.resize,
        indices=numbers,
    )
    images = next(batches)["images"]
    seeds = [settings.seed + i for i in numbers] if random else None
    _, decoded = _there_and_back(tokenizer, images, seeds)
    picture: Image.Image = grid_of_pairs(images, decoded.cpu())
    return picture
