"""How well a tokenizer reconstructs, under a protocol: `tessella evaluate --tokenizer`.

Each image is compared with its original, and the set of all with the set of all originals.
"""

import functools
import time
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..collectives import collected, leave_processes, own_share, told
from ..data.image_source import DataError, ImageSource
from ..data.images import grid_of_pairs, to_uint8
from ..data.loader import eval_batches, evenly_spaced
from ..metrics.catalogue import metric_values
from ..metrics.image import ReconstructionMeter
from ..metrics.perceptual import PerceptualDistance, build_perceptual
from ..metrics.presets import MIN_IMAGES
from ..metrics.protocol import Protocol, as_floats, to_levels
from ..metrics.token_statistics import TokenStatistics
from ..tokenizers.base import Tokenizer
from ..tokens.tokens import Tokens
from .evaluation import Evaluation, few_images_note, reference_words
from .image_set import ImageSet, distances
from .image_table import ImageTable
from .networks import Networks
from .settings import EvaluationSettings

NUM_GRID, NUM_WORST = 32, 16


class Reconstructed:
    """Originals and their reconstructions, everything that is measured of them.

    Args:
        networks: Of the distributions.
        distance: Of the images of a pair.
        tokenizer: Whose tokens they are.
        most: Images in the banks at most.
    """

    def __init__(
        self,
        networks: Networks,
        distance: PerceptualDistance,
        tokenizer: Tokenizer,
        *,
        most: int,
    ) -> None:
        self.originals = ImageSet(networks, most=most)
        self.images = ImageSet(networks, most=most)
        self.tokens = TokenStatistics(tokenizer.spec)
        self.meter = ReconstructionMeter()
        self.table: ImageTable | None = None
        self.perceptual = distance.id.partition("#")[0]
        self.classifier = networks.classifier_id.partition("#")[0]
        self.seconds = 0.0

    def add(
        self,
        batch: dict[str, Any],
        levels: Tensor,
        tokens: Tokens,
        networks: Networks,
        distance: PerceptualDistance,
    ) -> None:
        """Look at a batch of `eval_batches` and at its reconstructions.

        Args:
            batch: Of the originals.
            levels: Reconstructions, 8-bit (B, 3, H, W), on the device of the networks.
            tokens: Between the two.
            networks: Of the distributions.
            distance: Of the pairs.
        """
        originals = to_uint8(batch["images"]).to(levels.device)
        numbers, labels = batch["numbers"], batch["labels"]
        before, after = networks.look(originals), networks.look(levels)
        keys = self.originals.update(before, originals, numbers, labels)
        self.images.update(after, levels, numbers, labels, keys=keys)
        self.tokens.update(tokens)
        pair = as_floats(originals), as_floats(levels)
        values = self.meter.update(*pair) | {self.perceptual: distance(*pair)}
        if before.logits is not None and after.logits is not None:
            same = before.logits.argmax(1) == after.logits.argmax(1)
            values[f"class_agreement@{self.classifier}"] = same
        if self.table is None:
            self.table = ImageTable(tuple(values))
        self.table.update(values, numbers, labels)

    def merge(self, other: "Reconstructed") -> None:
        """Add another process's share."""
        self.originals.merge(other.originals)
        self.images.merge(other.images)
        self.tokens.merge(other.tokens)
        self.meter.merge(other.meter)
        if self.table is None:
            self.table = other.table
        elif other.table is not None:
            self.table.merge(other.table)
        self.seconds = max(self.seconds, other.seconds)


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
        tokenizer: As `load_tokenizer` returns it.
        source: The images, usually a validation split.
        settings: How to measure. A tokenizer without randomness gives one value for every seed:
            there is one repetition then, and no spread.
        name: What the report calls the tokenizer.

    Returns:
        The measurement on the main process, None on the others.

    Raises:
        ProtocolError: If the preset does not allow what is asked for.
        WeightsMissing: If a network has no weights here.
        DataError: If no image can be read, or one has a size that the preset refuses.
        ValueError: If a feature or a pixel is not finite.
    """
    started = time.perf_counter()
    preset, resolution = settings.preset, tokenizer.resolution
    preset.check_resolution(resolution)
    num = preset.check_number(settings.num, len(source), "reconstructions")
    chosen = evenly_spaced(len(source), num)
    networks = Networks.of(preset, settings.device, features=settings.features)
    distance = build_perceptual(preset.perceptual).to(settings.device)
    random = _is_random(tokenizer, source, settings)
    repeats = settings.repeats if random else 1
    runs: list[Reconstructed] = []
    for repetition in range(repeats):
        found = Reconstructed(networks, distance, tokenizer, most=preset.reference_bank)
        title = f"reconstructions {repetition + 1} of {repeats}"
        seed = settings.seed + repetition * len(source) if random else None
        whole = collected(
            functools.partial(
                _reconstruct,
                found,
                tokenizer,
                source,
                [chosen[i] for i in own_share(num, settings.processes)],
                settings,
                networks,
                distance,
                seed,
                title,
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
    if first.table is None or len(first.images) < MIN_IMAGES:
        raise DataError(
            f"{source.name} ({source.split}): {len(first.images)} of {num} images could be read, "
            f"expected at least {MIN_IMAGES}"
        )
    protocol = preset.bind(
        task="reconstructions",
        resolution=resolution,
        features=networks.extractor.id,
        feature_resize=networks.extractor.resize_rule,
        classifier=networks.classifier_id,
        perceptual=distance.id,
        reference=reference_words(source, paired=True),
        reference_hash=first.originals.identity(with_labels=False),
        reference_images=len(first.originals),
        num_samples=len(first.images),
        class_balance="none",
    )
    notes = few_images_note(protocol)
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
            [_values(run, protocol, settings, i) for i, run in enumerate(runs)], protocol
        ),
        notes=notes,
        broken=first.images.broken,
        images_per_second=len(first.images) / first.seconds,
    )
    if source.classes:
        evaluation.per_class = {
            "columns": ["class", "images", *first.table.names],
            "rows": first.table.by_class(source.classes),
            "about": "Means over the images of each class.",
        }
    shown = first.table.numbers[:NUM_GRID].tolist()
    worst = first.table.largest(first.perceptual, NUM_WORST)
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
    found: Reconstructed,
    tokenizer: Tokenizer,
    source: ImageSource,
    own: list[int],
    settings: EvaluationSettings,
    networks: Networks,
    distance: PerceptualDistance,
    seed: int | None,
    title: str,
) -> Reconstructed:
    """This process's images of one repetition; `seed` is that of image 0 of a random tokenizer."""
    silent = not settings.progress or settings.rank > 0
    with tqdm(total=len(own), desc=title, unit="image", disable=silent) as bar:
        for batch in eval_batches(
            source,
            tokenizer.resolution,
            settings.batch_size,
            broken=found.images.broken,
            resize=settings.preset.resize,
            indices=own,
        ):
            begun = time.perf_counter()
            seeds = None if seed is None else [seed + i for i in batch["numbers"].tolist()]
            tokens, decoded = _there_and_back(tokenizer, batch["images"], seeds)
            levels = to_levels(decoded, settings.preset.rounding)
            if levels.is_cuda:
                torch.cuda.synchronize(levels.device)
            found.seconds += time.perf_counter() - begun
            found.add(batch, levels, tokens, networks, distance)
            bar.update(len(levels))
    return found


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
    for image, seed in zip(images.split(1), seeds, strict=True):
        rng = torch.Generator().manual_seed(seed)
        every.append(tokenizer.encode(image, rng=rng))
        decoded.append(tokenizer.decode(every[-1], rng=rng))
    return Tokens.cat(every), torch.cat(decoded)


def _is_random(tokenizer: Tokenizer, source: ImageSource, settings: EvaluationSettings) -> bool:
    """Whether seeds change what comes back, tried on an image; the main process decides for all."""

    def tried() -> bool:
        for batch in eval_batches(source, tokenizer.resolution, 1, resize=settings.preset.resize):
            decoded = [_there_and_back(tokenizer, batch["images"], [seed])[1] for seed in (0, 1)]
            return not torch.equal(*decoded)
        return False

    return told(tried(), settings.processes)


def _values(
    run: Reconstructed, protocol: Protocol, settings: EvaluationSettings, repetition: int
) -> dict[str, float]:
    """Every metric of one repetition."""
    assert run.table is not None
    pixels = {name: v for name, v in run.meter.compute().items() if name != "num_images"}
    means = run.table.means()
    values, _ = distances(
        run.images,
        run.originals,
        protocol,
        seed=settings.seed + repetition,
        device=settings.device,
    )
    values |= pixels | {name: means[name] for name in means if name not in pixels}
    return values | run.tokens.compute()


def _subject(tokenizer: Tokenizer, name: str) -> dict[str, Any]:
    """What the report says of a tokenizer."""
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
    return grid_of_pairs(images, decoded.cpu())
