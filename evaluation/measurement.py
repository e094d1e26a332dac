"""Sets of samples measured against real images, wherever the samples come from.

`SampleMeasurement` refuses what it can and reads the reference first. It then takes samples batch
by batch, so that they are never all in memory, and turns repetitions into one measurement.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..collectives import collected, own_share
from ..data.image_source import DataError, ImageSource
from ..data.images import image_grid, to_pil
from ..metrics.catalogue import metric_values
from ..metrics.duplicates import DuplicateFinder
from ..metrics.frechet import FrechetStatistics, frechet_distance
from ..metrics.manifold import ManifoldResult
from ..metrics.presets import MIN_IMAGES, choose_labels
from ..metrics.protocol import ClassBalance, Protocol, ProtocolError, as_floats
from ..metrics.token_statistics import TokenStatistics
from ..tokens.tokens import Tokens
from .evaluation import Evaluation, few_images_note, reference_words
from .image_set import ImageSet, distances, labels_of
from .image_table import class_title
from .nearest import nearest_training_images
from .networks import Networks
from .reference import read_reference
from .settings import EvaluationSettings

NUM_GRID, GRID_COLUMNS = 64, 8


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
        self.images.update(seen, levels, batch.numbers, batch.labels, keys=batch.numbers)
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


class SampleMeasurement:
    """Networks, reference and rules, ready to measure sets of samples.

    Args:
        source: The reference, the split that the preset names.
        settings: How to measure.
        resolution: Side of the samples in pixels.
        num_classes: Labels that samples may have; 0: none.
        num: Samples per repetition; None: as the preset says.
        validation: Real images that the samples' model was not trained on: their own distances are
            the floor. None: no floor.
        drawn: Whether the samples are drawn here, or were there.

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
        drawn: bool = True,
    ) -> None:
        preset = settings.preset
        self.source, self.validation, self.settings = source, validation, settings
        self.resolution, self.num_classes, self.drawn = resolution, num_classes, drawn
        self.rule: ClassBalance = preset.class_balance if num_classes else "none"
        self.balance = described_balance(self.rule, num_classes)
        preset.check_resolution(resolution)
        planned = preset.check_number(num, len(source), "samples")
        preset.check_reference(len(source))
        if drawn and self.rule == "reference" and not source.classes:
            raise ProtocolError(
                f"protocol {preset.name}: samples have the class proportions of the reference, but "
                f"the images of {source.name} ({source.split}) have no labels"
            )
        if drawn and self.rule != "reference":
            choose_labels(self.rule, torch.ones(num_classes).long(), planned, 0, name=preset.name)
        self.networks = Networks.of(preset, settings.device, features=settings.features)
        self.reference = self._read(source)
        preset.check_reference(len(self.reference))
        self.num = preset.check_number(num, len(self.reference), "samples")
        self.counts = self.reference.counts(num_classes)
        if drawn and self.rule == "reference" and int(self.counts.sum()) != len(self.reference):
            raise ProtocolError(
                f"{source.name} ({source.split}): expected a label from 0 to {num_classes - 1} on "
                f"every image, found labels {sorted(self.reference.label_counts)}"
            )
        self.notes: list[str] = []
        self.floor = self._read_floor()

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

    def _read_floor(self) -> ImageSet | None:
        """Validation images, where there are enough that can be read."""
        if self.validation is None:
            return None
        try:
            found = self._read(self.validation)
        except DataError as error:  # it is not what was asked for
            self.notes.append(f"no floor: {error}")
            return None
        if len(found) < MIN_IMAGES:
            self.notes.append(f"no floor: {self.validation.split} has {len(found)} images")
            return None
        return found

    def labels(self, count: int, seed: int) -> list[int]:
        """Label of every sample; -1 is none."""
        return choose_labels(self.rule, self.counts, count, seed, name=self.settings.preset.name)

    def protocol(self, count: int, *, balance: str | None = None) -> Protocol:
        """The protocol of a number of samples; on the main process."""
        extractor = self.networks.extractor
        return self.settings.preset.bind(
            task="samples",
            resolution=self.resolution,
            features=extractor.id,
            feature_resize=extractor.resize_rule,
            classifier=self.networks.classifier_id,
            perceptual="none",
            reference=reference_words(self.source, paired=False),
            reference_hash=self.reference.identity(with_labels=self.rule == "reference"),
            reference_images=len(self.reference),
            num_samples=count,
            class_balance=balance or self.balance,
            drawn=self.drawn,
        )

    def draw(
        self,
        draw: Draw,
        count: int,
        *,
        title: str,
        tokens: TokenStatistics | None = None,
        num_kept: int = 0,
    ) -> DrawnSet | None:
        """One set of samples, drawn and seen; None on all processes but the main one.

        Args:
            draw: Where samples come from.
            count: How many.
            title: Of the progress bar.
            tokens: Statistics to fill.
            num_kept: Samples whose pixels are kept.
        """
        settings, own = self.settings, own_share(count, self.settings.processes)
        images = ImageSet(self.networks, most=settings.preset.sample_bank)
        num_first = 0 if self.floor is None else len(self.floor)
        silent = not settings.progress or settings.rank > 0

        def work() -> DrawnSet:
            drawn = DrawnSet(images, tokens, num_first=num_first, num_kept=num_kept)
            batches = draw(own)
            with tqdm(total=len(own), desc=title, unit="image", disable=silent) as bar:
                while True:
                    started = time.perf_counter()
                    batch = next(batches, None)
                    drawn.seconds += time.perf_counter() - started
                    if batch is None:
                        return drawn
                    drawn.add(batch, self.networks)
                    bar.update(len(batch.numbers))

        return collected(work, settings.processes)

    def values(
        self, drawn: DrawnSet, protocol: Protocol, *, seed: int
    ) -> tuple[dict[str, float], ManifoldResult]:
        """Every metric of a set, and what is known of each image of the banks."""
        device = self.settings.device
        values, manifold = distances(
            drawn.images, self.reference, protocol, seed=seed, device=device
        )
        twins = drawn.twins.result(num_pairs=0)
        values |= {"duplicate_share": twins.share, "exact_duplicate_share": twins.exact_share}
        return values | ({} if drawn.tokens is None else drawn.tokens.compute()), manifold

    def evaluation(
        self, runs: list[DrawnSet], protocol: Protocol, subject: Mapping[str, Any]
    ) -> Evaluation:
        """Repetitions as one measurement; pictures and tables are of the first one."""
        first, classes = runs[0], self.source.classes
        measured = [
            self.values(run, protocol, seed=self.settings.seed + i) for i, run in enumerate(runs)
        ]
        evaluation = Evaluation(
            kind="samples",
            protocol=protocol,
            subject=dict(subject),
            metrics=metric_values([values for values, _ in measured], protocol),
            notes=few_images_note(protocol) + self.notes,
            per_class=self._per_class(first, measured[0][1]),
            broken=self.reference.broken,
        )
        self._add_floor(evaluation, first)
        levels, labels = first.pictures(NUM_GRID)
        titles = [class_title(classes, label) for label in labels]
        pictures = [to_pil(image.permute(1, 2, 0)) for image in levels]
        grid = image_grid(pictures, GRID_COLUMNS, titles if max(labels) >= 0 else None)
        evaluation.pictures["samples.png"] = ("Samples", "the first ones of repetition 1", grid)
        return evaluation

    def _add_floor(self, evaluation: Evaluation, drawn: DrawnSet) -> None:
        """What real validation images get, and the first samples in equal number."""
        if self.floor is None or self.validation is None:
            return
        count = len(self.floor)
        protocol = self.protocol(count, balance=f"{self.validation.split} images")
        real, _ = distances(
            self.floor,
            self.reference,
            protocol,
            seed=self.settings.seed,
            device=self.settings.device,
        )
        evaluation.add_floor(metric_values([real], protocol), protocol)
        name = next(iter(real))
        text = f"{count:,} {self.validation.split} images themselves have {name} {real[name]:.5g}"
        if drawn.first.count == count:
            same = frechet_distance(drawn.first, self.reference.pooled)
            text += f", the first {count:,} samples of repetition 1 have {same:.5g}"
        evaluation.notes.append(f"{text} (protocol {protocol.id}): only equal numbers compare.")

    def add_nearest(
        self, evaluation: Evaluation, drawn: DrawnSet, count: int, training: ImageSource
    ) -> None:
        """The nearest training image of the first samples, and of validation images.

        Args:
            evaluation: To add to.
            drawn: The samples.
            count: How many of them.
            training: What the samples' model was trained on.
        """
        levels, _ = drawn.pictures(count)
        networks, settings = self.networks, self.settings
        validation = self.source if self.source.split == "val" else self.validation
        nearest = nearest_training_images(
            as_floats(levels),
            training,
            self.resolution,
            features=networks.classifier or networks.extractor,
            validation=validation,
            resize=settings.preset.resize,
            batch_size=settings.batch_size,
            device=settings.device,
            progress=settings.progress,
        )
        found = nearest.to_dict()

        def medians(side: dict[str, Any]) -> dict[str, float]:
            kinds = ("feature", "pixel")
            return {
                f"nearest_{kind}_distance@{len(levels)}": side[f"{kind}_distance"]["median"]
                for kind in kinds
            }

        evaluation.metrics |= metric_values([medians(found["samples"])], evaluation.protocol)
        if "validation" in found:
            number = found["validation"]["num_images"]
            protocol = self.protocol(number, balance="validation images")
            real = metric_values([medians(found["validation"])], protocol)
            evaluation.add_floor(real, protocol)
        about = f"samples, nearest by {nearest.features_id}, nearest by pixels"
        if nearest.num_searched < len(training):
            about += f"; among {nearest.num_searched:,} of {len(training):,} images"
        evaluation.pictures["nearest.png"] = ("Nearest training images", about, nearest.picture)

    def _per_class(self, first: DrawnSet, manifold: ManifoldResult) -> dict[str, Any] | None:
        """How samples of each class lie among reference images."""
        if not self.num_classes:
            return None
        drawn, real = labels_of(first.images.bank), labels_of(self.reference.bank)
        labelled, rows = bool((real >= 0).any()), []
        agrees = real[manifold.nearest_reference] == drawn
        for label in range(self.num_classes):
            here, there = drawn == label, real == label
            if not (bool(here.any()) or bool(there.any())):
                continue
            row: list[Any] = [class_title(self.source.classes, label), int(here.sum())]
            for values, chosen in (
                (manifold.in_manifold, here),
                (manifold.sample_density, here),
                (agrees, here & labelled),
                (manifold.covered, there),
            ):
                row.append(float(values[chosen].double().mean()) if bool(chosen.any()) else None)
            rows.append(row)
        return {
            "columns": ["class", "samples", "precision", "density", "own class", "coverage"],
            "rows": rows,
            "about": "Repetition 1. Own class: share whose nearest reference image has their "
            "class. Coverage: share of the class's reference images with a sample nearby.",
        }


def described_balance(rule: ClassBalance, num_classes: int) -> str:
    """A rule of labels as a protocol says it."""
    return rule if rule in ("reference", "none") else f"{rule} over {num_classes} classes"
