"""How good samples are, under a protocol: those of a generator, or a folder of images.

Everything that can be refused is refused before the first sample is drawn: preset, number, classes,
weights, reference. Samples are drawn in several repetitions with other seeds, seen by the networks
batch by batch, and never all in memory.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.image_source import ImageSource
from ..data.images import image_grid, to_pil, to_uint8
from ..data.loader import eval_batches
from ..generators.base import Generator
from ..generators.masked import MaskedGenerator
from ..tokenizers.tokens import Tokens
from .evaluation import Evaluation, EvaluationSettings, few_images_note, reference_words
from .generate import Precision, choose_sampling, generate
from .image_set import ImageSet, Networks, distances, labels_of
from .image_table import class_title
from .metrics.catalogue import metric_values
from .metrics.duplicates import DuplicateFinder
from .metrics.frechet import FrechetStatistics, frechet_distance
from .metrics.manifold import ManifoldResult
from .metrics.protocol import (
    MIN_IMAGES,
    ClassBalance,
    Protocol,
    ProtocolError,
    as_floats,
    choose_labels,
    to_levels,
)
from .nearest import nearest_training_images
from .reference import read_reference, share
from .sample_folder import table_of
from .sampling import SamplingConfig
from .token_statistics import TokenStatistics

NUM_GRID, GRID_COLUMNS = 64, 8


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Settings of the sampler to measure besides the main ones.

    Attributes:
        num_steps: Numbers of sampling steps; empty: the main one.
        guidance: Guidance scales; empty: the main one.
        num: Samples at each point, drawn once; another protocol than the main one's.
    """

    num_steps: tuple[int, ...] = ()
    guidance: tuple[float, ...] = ()
    num: int = 1000

    def __post_init__(self) -> None:
        if self.num < MIN_IMAGES:
            raise ProtocolError(f"curves: expected at least {MIN_IMAGES} samples, found {self.num}")
        if any(steps < 1 for steps in self.num_steps):
            raise ValueError(f"curves: expected steps >= 1, found {list(self.num_steps)}")
        if any(not scale >= 0 for scale in self.guidance):
            raise ValueError(f"curves: expected guidance >= 0, found {list(self.guidance)}")


@dataclass(frozen=True, eq=False)
class SampleBatch:
    """Some samples.

    Attributes:
        levels: The images, uint8 (B, 3, H, W), on any device.
        numbers: Which of the set, int64 (B,).
        labels: Their classes, int64 (B,); -1 is none.
        tokens: What they were decoded from, or None.
    """

    levels: Tensor
    numbers: Tensor
    labels: Tensor
    tokens: Tokens | None = None


Draw = Callable[[range], Iterator[SampleBatch]]
"""The samples with the numbers of a range, in batches."""


class DrawnSet:
    """A set of samples: what the networks say of it, tokens, twins, and the first pictures.

    Args:
        images: To fill.
        tokens: Statistics to fill, or None.
        num_first: Samples whose features make `first`, for comparison with a set of that size.
        num_kept: Samples whose pixels are kept.
    """

    def __init__(
        self, images: ImageSet, tokens: TokenStatistics | None, *, num_first: int, num_kept: int
    ) -> None:
        self.images, self.tokens, self.twins = images, tokens, DuplicateFinder()
        pooled = images.pooled
        self.first = FrechetStatistics(pooled.num_features, extractor_id=pooled.extractor_id)
        self.num_first, self.num_kept = num_first, num_kept
        self.kept: dict[int, tuple[Tensor, int]] = {}
        self.seconds = 0.0

    def add(self, batch: SampleBatch, networks: Networks) -> None:
        """Look at a batch."""
        seen, levels = networks.look(batch.levels), batch.levels.cpu()
        self.images.update(seen, levels, batch.numbers, batch.labels)
        self.twins.update(levels, batch.numbers)
        self.first.update(seen.pooled.cpu()[batch.numbers < self.num_first])
        if self.tokens is not None and batch.tokens is not None:
            self.tokens.update(batch.tokens)
        for row, number in enumerate(batch.numbers.tolist()):
            if number < self.num_kept:
                self.kept[number] = levels[row].clone(), int(batch.labels[row])

    def merge(self, other: "DrawnSet") -> None:
        """Add another process's share."""
        self.images.merge(other.images)
        self.twins.merge(other.twins)
        self.first.merge(other.first)
        if self.tokens is not None and other.tokens is not None:
            self.tokens.merge(other.tokens)
        self.kept |= other.kept
        self.seconds = max(self.seconds, other.seconds)

    def pictures(self, count: int) -> tuple[Tensor, list[int]]:
        """The first samples, uint8 (n, 3, H, W), and their labels."""
        rows = [self.kept[number] for number in sorted(self.kept)[:count]]
        return torch.stack([levels for levels, _ in rows]), [label for _, label in rows]


@dataclass(frozen=True, eq=False)
class Measured:
    """One repetition: the samples, the values, and what is known of each image of the banks."""

    drawn: DrawnSet
    values: dict[str, float]
    manifold: ManifoldResult


class SampleMeasurement:
    """Networks, reference and protocol, ready to measure sets of samples.

    Args:
        source: The reference, the split that the preset names.
        settings: How to measure.
        resolution: Side of the samples in pixels.
        num_classes: Labels that samples may have; 0: none.
        num: Samples; None: as the settings say.
        validation: Real images that the samples' model was not trained on, or None.

    Raises:
        ProtocolError: If the preset does not allow what is asked for.
        WeightsMissing: If a network has no weights here.
        DataError: If the reference cannot be read.
        ValueError: If a feature of the reference is not finite.
    """

    def __init__(
        self,
        source: ImageSource,
        settings: EvaluationSettings,
        *,
        resolution: int,
        num_classes: int,
        num: int | None = None,
        validation: ImageSource | None = None,
    ) -> None:
        preset = settings.preset
        self.source, self.validation, self.settings = source, validation, settings
        self.resolution = resolution
        self.balance: ClassBalance = preset.class_balance if num_classes else "none"
        wanted = settings.num if num is None else num
        preset.check_resolution(resolution)
        planned = preset.check_number(wanted, len(source), "samples")
        if self.balance == "equal":
            choose_labels("equal", torch.ones(num_classes).long(), planned, 0, name=preset.name)
        self.networks = Networks.of(preset, settings.device, features=settings.features)
        self.reference = self._read(source)
        self.num = preset.check_number(wanted, len(self.reference), "samples")
        self.counts = self.reference.counts(num_classes)
        if self.balance == "reference" and int(self.counts.sum()) != len(self.reference):
            raise ProtocolError(
                f"{source.name} ({source.split}): expected a label from 0 to {num_classes - 1} on "
                f"every image, found {dict(sorted(self.reference.label_counts.items()))}"
            )
        self.floor = None if validation is None else self._read(validation)
        networks = self.networks
        self.protocol = preset.bind(
            task="samples",
            resolution=resolution,
            features=networks.extractor.id,
            feature_resize=networks.extractor.resize_rule,
            classifier=networks.classifier_id,
            perceptual="none",
            reference=reference_words(source, paired=False),
            reference_hash=self.reference.hash.hexdigest()[:16],
            reference_images=len(self.reference),
            num_samples=self.num,
            class_balance=self.balance,
        )

    def _read(self, source: ImageSource) -> ImageSet:
        settings = self.settings
        return read_reference(
            source,
            self.networks,
            settings.preset,
            self.resolution,
            batch_size=settings.batch_size,
            processes=settings.processes,
            progress=settings.progress,
            cache=settings.cache,
        )

    def labels(self, count: int, seed: int) -> list[int]:
        """Label of every sample; -1 is none."""
        return choose_labels(self.balance, self.counts, count, seed, name=self.settings.preset.name)

    def of_number(self, count: int) -> Protocol:
        """The protocol of another number of samples: another one, with another id."""
        smaller = min(count, self.protocol.kid_subset_size)
        return dataclasses.replace(self.protocol, num_samples=count, kid_subset_size=smaller)

    def measure(
        self,
        draw: Draw,
        count: int,
        *,
        seed: int,
        title: str,
        tokens: TokenStatistics | None = None,
        num_kept: int = 0,
    ) -> Measured | None:
        """Draw and measure one set; None on all processes but the main one.

        Args:
            draw: Where samples come from.
            count: How many.
            seed: Of the subsets of KID.
            title: Of the progress bar.
            tokens: Statistics to fill.
            num_kept: Samples whose pixels are kept.
        """
        settings, own = self.settings, self.settings.own(count)
        images = ImageSet(self.networks, expected=count, bank_images=settings.preset.bank_images)
        drawn = DrawnSet(images, tokens, num_first=len(self.validation or ()), num_kept=num_kept)
        silent = not settings.progress or settings.rank > 0
        batches = draw(own)
        with tqdm(total=len(own), desc=title, unit="image", disable=silent) as bar:
            while True:
                started = time.perf_counter()
                batch = next(batches, None)
                drawn.seconds += time.perf_counter() - started
                if batch is None:
                    break
                drawn.add(batch, self.networks)
                bar.update(len(batch.numbers))
        drawn = share(drawn, settings.processes)
        if settings.rank:
            return None
        values, manifold = distances(drawn.images, self.reference, self.of_number(count), seed=seed)
        twins = drawn.twins.result()
        values["duplicate_share"] = twins.share
        values["exact_duplicate_share"] = twins.exact_share
        if drawn.tokens is not None:
            values |= drawn.tokens.compute()
            values["images_per_second"] = count / drawn.seconds
        return Measured(drawn, values, manifold)

    def evaluation(self, runs: list[Measured], subject: Mapping[str, Any]) -> Evaluation:
        """Repetitions as one measurement; pictures and tables are of the first one."""
        first, classes = runs[0], self.source.classes
        evaluation = Evaluation(
            kind="samples",
            protocol=self.protocol,
            subject=dict(subject),
            metrics=metric_values([run.values for run in runs], self.protocol),
            notes=few_images_note(self.protocol),
            per_class=self._per_class(first),
            broken=self.reference.broken,
        )
        self._add_floor(evaluation, first.drawn)
        levels, labels = first.drawn.pictures(NUM_GRID)
        titles = [class_title(classes, label) for label in labels]
        pictures = [to_pil(image.permute(1, 2, 0)) for image in levels]
        grid = image_grid(pictures, GRID_COLUMNS, titles if max(labels) >= 0 else None)
        evaluation.pictures["samples.png"] = ("Samples", "the first ones of repetition 1", grid)
        return evaluation

    def _add_floor(self, evaluation: Evaluation, drawn: DrawnSet) -> None:
        """What real validation images get, and the first samples in equal number."""
        if self.validation is None or self.floor is None or len(self.floor) < MIN_IMAGES:
            return
        protocol = self.of_number(len(self.floor))
        real, _ = distances(self.floor, self.reference, protocol, seed=self.settings.seed)
        evaluation.floor = metric_values([real], protocol)
        count, note = len(self.floor), f"{len(self.floor):,} {self.validation.split} images"
        name = "gFID" if "gFID" in real else next(iter(real))
        text = f"{note} themselves have {name} {real[name]:.5g}"
        if drawn.first.count == count:
            same = frechet_distance(drawn.first, self.reference.pooled)
            text += f", the first {count:,} samples of repetition 1 have {same:.5g}"
        evaluation.notes.append(f"{text} (protocol {protocol.id}): only equal numbers compare.")

    def add_nearest(self, evaluation: Evaluation, drawn: DrawnSet, count: int) -> None:
        """The nearest reference image of the first samples, and of validation images."""
        levels, _ = drawn.pictures(count)
        networks = self.networks
        nearest = nearest_training_images(
            as_floats(levels),
            self.source,
            self.resolution,
            features=networks.classifier or networks.extractor,
            validation=self.validation,
            resize=self.settings.preset.resize,
            batch_size=self.settings.batch_size,
            device=self.settings.device,
            progress=self.settings.progress,
        )
        found = nearest.to_dict()
        values = {
            f"nearest_{kind}_distance": found["samples"][f"{kind}_distance"]["median"]
            for kind in ("feature", "pixel")
        }
        evaluation.metrics |= metric_values([values], self.protocol)
        if "validation" in found:
            real = {
                f"nearest_{kind}_distance": found["validation"][f"{kind}_distance"]["median"]
                for kind in ("feature", "pixel")
            }
            evaluation.floor |= metric_values([real], self.of_number(len(self.floor or ())))
        about = f"samples, nearest by {nearest.features_id}, nearest by pixels"
        evaluation.pictures["nearest.png"] = ("Nearest training images", about, nearest.picture)

    def _per_class(self, measured: Measured) -> dict[str, Any] | None:
        """How samples of each class lie among reference images."""
        if not len(self.counts):
            return None
        drawn, real = labels_of(measured.drawn.images.bank), labels_of(self.reference.bank)
        manifold, rows = measured.manifold, []
        agrees = real[manifold.nearest_reference] == drawn
        for label in range(len(self.counts)):
            here, there = drawn == label, real == label
            if not (bool(here.any()) or bool(there.any())):
                continue
            row: list[Any] = [class_title(self.source.classes, label), int(here.sum())]
            for values, chosen in (
                (manifold.in_manifold, here),
                (manifold.sample_density, here),
                (agrees, here),
                (manifold.covered, there),
            ):
                mean = float(values[chosen].double().mean()) if bool(chosen.any()) else None
                row.append(mean)
            rows.append(row)
        return {
            "columns": ["class", "samples", "precision", "density", "own class", "coverage"],
            "rows": rows,
            "about": "Repetition 1. Own class: share whose nearest reference image has their "
            "class. Coverage: share of the class's reference images with a sample nearby.",
        }


def evaluate_generator(
    generator: Generator,
    source: ImageSource,
    settings: EvaluationSettings,
    *,
    name: str,
    validation: ImageSource | None = None,
    sampling: SamplingConfig | None = None,
    precision: Precision = "auto",
    compile: bool = False,
    curves: Curves | None = None,
    num_nearest: int = 128,
) -> Evaluation | None:
    """Draw samples of a generator and measure them against real images.

    Args:
        generator: As `load_generator` returns it.
        source: The reference, the split that the preset names.
        settings: How to measure.
        name: What the report calls the generator.
        validation: Real images that it was not trained on: their own distances are the floor, and
            what is normal for the nearest training image. None: no floor.
        sampling: Settings of the sampler; None: the generator's own.
        precision: As of `generate`.
        compile: As of `generate`.
        curves: Further settings of the sampler to measure.
        num_nearest: Samples whose nearest reference images are looked for; 0: none.

    Returns:
        The measurement on the main process, None on the others.

    Raises:
        ProtocolError: If the preset does not allow what is asked for.
        WeightsMissing: If a network has no weights here.
        DataError: If the reference cannot be read.
        ValueError: If a feature or a prediction is not finite.
    """
    started = time.perf_counter()
    sampling = choose_sampling(generator, sampling, {})
    if generator.num_classes and generator.classes and generator.classes != source.classes:
        raise ProtocolError(
            f"the generator's classes are not those of {source.name}: "
            f"{_few(generator.classes)} and {_few(source.classes)}"
        )
    job = SampleMeasurement(
        source,
        settings,
        resolution=generator.tokenizer.resolution,
        num_classes=generator.num_classes,
        validation=validation,
    )

    def run(
        chosen: SamplingConfig, count: int, repetition: int, title: str, num_kept: int = 0
    ) -> Measured | None:
        seed = settings.seed + repetition
        labels = job.labels(count, seed)

        def draw(own: range) -> Iterator[SampleBatch]:
            for start in range(own.start, own.stop, settings.batch_size):
                rows = range(start, min(start + settings.batch_size, own.stop))
                tokens = generate(
                    generator,
                    [labels[i] for i in rows],
                    seeds=[settings.seed + repetition * count + i for i in rows],
                    sampling=chosen,
                    batch_size=settings.batch_size,
                    precision=precision,
                    compile=compile,
                )
                images = generator.tokenizer.decode(tokens)
                levels = to_levels(images, settings.preset.rounding)
                here = torch.tensor([labels[i] for i in rows])
                yield SampleBatch(levels, torch.tensor(list(rows)), here, tokens)

        statistics = TokenStatistics(generator.spec)
        return job.measure(
            draw, count, seed=seed, title=title, tokens=statistics, num_kept=num_kept
        )

    runs = []
    for repetition in range(settings.repeats):
        title = f"samples {repetition + 1} of {settings.repeats}"
        num_kept = max(NUM_GRID, num_nearest) if repetition == 0 else 0
        if (measured := run(sampling, job.num, repetition, title, num_kept)) is not None:
            runs.append(measured)
    points = []
    for chosen in _curve_settings(curves, sampling):
        assert curves is not None
        title = f"{chosen.num_steps} steps, guidance {chosen.guidance:g}"
        if (measured := run(chosen, curves.num, 0, title)) is not None:
            points.append((chosen, measured.values))
    if not runs:
        return None
    evaluation = job.evaluation(runs, _subject(generator, name, sampling))
    if curves is not None and points:
        evaluation.curves = _lines(points, job.of_number(curves.num))
    if num_nearest:
        job.add_nearest(evaluation, runs[0].drawn, num_nearest)
    evaluation.seconds = time.perf_counter() - started
    return evaluation


def evaluate_images(
    samples: ImageSource,
    source: ImageSource,
    settings: EvaluationSettings,
    *,
    name: str,
    validation: ImageSource | None = None,
    num_nearest: int = 128,
) -> Evaluation | None:
    """Measure images that already are there, e.g. PNGs of another program, as samples.

    Args:
        samples: The images; all must have one size, since nothing is resized.
        source: The reference.
        settings: How to measure; there is one repetition.
        name: What the report calls them.
        validation: As of `evaluate_generator`.
        num_nearest: As of `evaluate_generator`.

    Returns:
        The measurement on the main process, None on the others.

    Raises:
        ProtocolError: If there are too few, or their classes are not balanced as the preset wants.
        DataError: If one is of another size or cannot be read.
    """
    started = time.perf_counter()
    side = samples.read(0).image.size
    if side[0] != side[1]:
        raise ProtocolError(f"{samples.name}: expected square images, found {side[0]} x {side[1]}")
    preset = settings.preset
    count = preset.num_samples or settings.num or len(samples)
    if count > len(samples):
        raise ProtocolError(
            f"protocol {preset.name}: {count:,} samples are measured, "
            f"{samples.name} has {len(samples):,}"
        )
    pairs = zip(samples.classes, source.classes, strict=False)
    labelled = 0 < len(samples.classes) <= len(source.classes)
    labelled = labelled and all(here in ("", there) for here, there in pairs)
    job = SampleMeasurement(
        source,
        settings,
        resolution=side[0],
        num_classes=len(source.classes) if labelled else 0,
        num=None if preset.num_samples else count,
        validation=validation,
    )

    def draw(own: range) -> Iterator[SampleBatch]:
        broken: dict[str, str] = {}
        for batch in eval_batches(
            samples, side[0], settings.batch_size, broken=broken, resize="none", indices=own
        ):
            yield SampleBatch(to_uint8(batch["images"]), batch["numbers"], batch["labels"])
        if broken:
            image, reason = next(iter(broken.items()))
            raise ProtocolError(f"{samples.name}: {len(broken)} broken samples; {image}: {reason}")

    num_kept = max(NUM_GRID, num_nearest)
    measured = job.measure(draw, count, seed=settings.seed, title="samples", num_kept=num_kept)
    if measured is None:
        return None
    found = measured.drawn.images.counts(len(job.counts))
    if job.balance == "equal" and len(found.unique()) > 1:
        raise ProtocolError(
            f"protocol {preset.name}: classes are unbalanced, {int(found.min())} to "
            f"{int(found.max())} samples each, expected equal numbers"
        )
    digest = measured.drawn.images.hash.hexdigest()[:32]
    subject: dict[str, Any] = {
        "name": name,
        "system": "images",
        "fingerprint": digest,
        "parameters": None,
    }
    subject |= {"resolution": side[0], "tokens": None, "bits_per_image": None}
    evaluation = job.evaluation([measured], subject)
    if num_nearest:
        job.add_nearest(evaluation, measured.drawn, num_nearest)
    evaluation.seconds = time.perf_counter() - started
    return evaluation


def _subject(generator: Generator, name: str, sampling: SamplingConfig) -> dict[str, Any]:
    """What the report says of a generator."""
    if isinstance(generator, MaskedGenerator):
        steps = len(table_of(generator, sampling))
        sampling = dataclasses.replace(sampling, num_steps=steps)
    return {
        "name": name,
        "system": generator.config.type,
        "fingerprint": generator.fingerprint or "not loaded from a folder",
        "parameters": generator.num_parameters()["total"],
        "resolution": generator.tokenizer.resolution,
        "tokens": str(generator.spec),
        "bits_per_image": generator.spec.bits_per_image,
        "tokenizer": {
            "system": generator.tokenizer.config.type,
            "fingerprint": generator.tokenizer.fingerprint,
            "parameters": generator.tokenizer.num_parameters()["total"],
        },
        "sampling": dataclasses.asdict(sampling),
    }


def _curve_settings(curves: Curves | None, main: SamplingConfig) -> list[SamplingConfig]:
    """Every combination asked for."""
    if curves is None or not (curves.num_steps or curves.guidance):
        return []
    return [
        dataclasses.replace(main, num_steps=steps, guidance=scale)
        for scale in curves.guidance or (main.guidance,)
        for steps in curves.num_steps or (main.num_steps,)
    ]


def _lines(
    points: list[tuple[SamplingConfig, dict[str, float]]], protocol: Protocol
) -> list[dict[str, Any]]:
    """The Fréchet distance and precision and recall over steps, or over guidance."""
    over, line = "num_steps", "guidance"
    if len({chosen.num_steps for chosen, _ in points}) == 1:
        over, line = line, over
    names = [
        name for name in points[0][1] if name.startswith(("gFID", "FD@", "precision", "recall"))
    ]
    curves = []
    for name in names:
        lines = []
        for value in sorted({getattr(chosen, line) for chosen, _ in points}):
            here = sorted(
                (getattr(chosen, over), values[name])
                for chosen, values in points
                if getattr(chosen, line) == value
            )
            title = f"{line.removeprefix('num_')} {value:g}"
            x, y = zip(*here, strict=True)
            lines.append({"name": title, "x": list(x), "y": list(y), "spread": None})
        curves.append({"x": over, "metric": name, "protocol": protocol.id, "lines": lines})
    return curves


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (" ..." if len(names) > 4 else "") or "none"
