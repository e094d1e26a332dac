"""A measured set of samples as an `Evaluation`: numbers, floor, tables and pictures of a report."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ..data.image_source import ImageSource
from ..data.images import image_grid, to_pil
from ..generators.base import Generator
from ..metrics.catalogue import metric_values
from ..metrics.frechet import frechet_distance
from ..metrics.manifold import ManifoldResult
from ..metrics.protocol import Protocol
from ..sample.sampler import Sampling
from .evaluation import Evaluation, few_images_note
from .image_set import bank_labels, distances
from .image_table import class_title
from .nearest import nearest_training_images
from .sample_set import DrawnSet, Reference, Rules, bind_protocol

NUM_GRID, GRID_COLUMNS = 64, 8
"""Number of samples in the picture of a report, and in each of its rows."""


def generator_facts(generator: Generator, name: str, sampling: Sampling) -> dict[str, Any]:
    """Facts about a generator and its sampler, for the report.

    Args:
        generator: Generator with its tokenizer.
        name: Name of the generator in the report.
        sampling: Settings of the sampler, with the number of steps that they come to.
    """
    return {
        "name": name,
        "system": generator.config.type,
        "fingerprint": generator.fingerprint or "not loaded from a folder",
        "parameters": generator.num_parameters()["total"],
        "attention": generator.attention,
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


def assemble_samples(
    first: DrawnSet,
    measured: Sequence[tuple[Mapping[str, float], ManifoldResult]],
    rules: Rules,
    reference: Reference,
    protocol: Protocol,
    subject: dict[str, Any],
) -> Evaluation:
    """Repetitions as one measurement; tables and pictures are of the first one.

    Args:
        first: Samples of the first repetition.
        measured: Metrics of each repetition, and what is known of each image of its banks.
        rules: Rules of the measurement.
        reference: Real images that samples were compared with, and the floor.
        protocol: Protocol of the numbers.
        subject: Facts about what was measured.
    """
    calibration = reference.calibration
    assert calibration is not None, "there is one on the main process"
    evaluation = Evaluation(
        kind="samples",
        protocol=protocol,
        subject=subject,
        metrics=metric_values([values for values, _ in measured], protocol),
        notes=[
            *few_images_note(protocol),
            *calibration.notes(protocol.smaller_side),
            *reference.notes,
        ],
        calibration=calibration.to_dict(),
        per_class=_class_table(first, measured[0][1], rules, reference),
        broken=reference.images.broken,
    )
    _add_floor(evaluation, first, rules, reference)
    _add_alignment(evaluation, first, rules, reference)
    pixels, labels, captions = first.pictures(NUM_GRID)
    classes = [class_title(reference.source.classes, label) for label in labels]
    titles = [caption or title for caption, title in zip(captions, classes, strict=True)]
    pictures = [to_pil(image.permute(1, 2, 0)) for image in pixels]
    named = max(labels) >= 0 or any(captions)
    grid = image_grid(pictures, GRID_COLUMNS, titles if named else None)
    about = "the first ones of repetition 1"
    if any(captions):
        about += ", and the captions that they were asked by" if rules.drawn else ", and captions"
        evaluation.captions = captions
    evaluation.pictures["samples.png"] = ("Samples", about, grid)
    return evaluation


def _class_table(
    first: DrawnSet, manifold: ManifoldResult, rules: Rules, reference: Reference
) -> dict[str, Any] | None:
    """Table of how samples of each class lie among reference images; None without classes."""
    if not rules.num_classes:
        return None
    drawn, real = bank_labels(first.images.bank), bank_labels(reference.images.bank)
    labelled, rows = bool((real >= 0).any()), []
    agrees = real[manifold.nearest_reference] == drawn
    withheld = () if reference.calibration is None else reference.calibration.withheld
    columns: list[str] = []
    for label in range(rules.num_classes):
        here, there = drawn == label, real == label
        if not (bool(here.any()) or bool(there.any())):
            continue
        row: list[Any] = [class_title(reference.source.classes, label), int(here.sum())]
        cells = {
            "precision": (manifold.in_manifold, here),
            "density": (manifold.sample_density, here),
            "own class": (agrees, here & labelled),
            "coverage": (manifold.covered, there),
        }
        columns = [name for name in cells if name not in withheld]
        for values, chosen in (cells[name] for name in columns):
            row.append(float(values[chosen].double().mean()) if bool(chosen.any()) else None)
        rows.append(row)
    about = "Repetition 1. Own class: share whose nearest reference image has their class."
    if "coverage" in columns:
        about += " Coverage: share of the class's reference images with a sample nearby."
    return {"columns": ["class", "samples", *columns], "rows": rows, "about": about}


def _add_floor(evaluation: Evaluation, first: DrawnSet, rules: Rules, reference: Reference) -> None:
    """Add what real validation images get, and a note with the first samples in equal number."""
    floor, validation, settings = reference.floor, reference.validation, rules.settings
    if floor is None or validation is None:
        return
    count = len(floor)
    protocol = bind_protocol(
        rules, reference, count, balance=f"{validation.split} images", real=True
    )
    real, _ = distances(
        floor, reference.images, protocol, seed=settings.seed, device=settings.device
    )
    if reference.calibration is not None:
        real = reference.calibration.kept(real)
    evaluation.floor |= metric_values([real], protocol)
    evaluation.protocols[protocol.id] = protocol
    name = next(iter(real))
    text = f"{count:,} {validation.split} images themselves have {name} {real[name]:.5g}"
    if first.first.count == count:
        same = frechet_distance(first.first, reference.images.pooled)
        text += f", the first {count:,} samples of repetition 1 have {same:.5g}"
    evaluation.notes.append(f"{text} (protocol {protocol.id}): only equal numbers compare.")


def _add_alignment(
    evaluation: Evaluation, first: DrawnSet, rules: Rules, reference: Reference
) -> None:
    """Add what stands beside the alignment of samples: real images, and shuffled captions."""
    alignment = reference.texts.alignment
    if alignment is None or first.captioned is None:
        return
    evaluation.alignment = alignment.to_dict(first.captioned, rules.settings.seed)
    found, total = len(first.captioned), len(first.images)
    if found < total:
        evaluation.notes.append(
            f"Alignment of images and captions: {total - found:,} of {total:,} samples of "
            f"repetition 1 have no caption of words that {alignment.vectors_id} knows, and do not "
            "count."
        )
    if alignment.ceiling:
        number = alignment.num_ceiling
        protocol = bind_protocol(rules, reference, number, balance="validation images", real=True)
        evaluation.floor |= metric_values([alignment.ceiling], protocol)
        evaluation.protocols[protocol.id] = protocol


def add_nearest(
    evaluation: Evaluation,
    first: DrawnSet,
    count: int,
    training: ImageSource | None,
    rules: Rules,
    reference: Reference,
) -> None:
    """Add the nearest training image of the first samples, and of validation images.

    Without training images, or with a count of 0, there is nothing to add.

    Args:
        evaluation: Measurement to add to.
        first: Samples of the first repetition.
        count: Number of its samples to search for.
        training: Images that the samples' model was trained on; None: the reference, unless that
            is a validation split.
        rules: Rules of the measurement.
        reference: Real images that samples were compared with.
    """
    networks, settings, source = reference.networks, rules.settings, reference.source
    if training is None and source.split != "val":
        training = source
    if not count or training is None:
        return
    pixels, _, _ = first.pictures(count)
    nearest = nearest_training_images(
        pixels,
        training,
        rules.resolution,
        features=networks.classifier or networks.extractor,
        validation=source if source.split == "val" else reference.validation,
        resize=settings.preset.resize,
        batch_size=settings.batch_size,
        device=settings.device,
        progress=settings.progress,
    )
    found = nearest.to_dict()

    def medians(side: dict[str, Any]) -> dict[str, float]:
        kinds = ("feature", "pixel")
        return {
            f"nearest_{kind}_distance@{len(pixels)}": side[f"{kind}_distance"]["median"]
            for kind in kinds
        }

    evaluation.metrics |= metric_values([medians(found["samples"])], evaluation.protocol)
    if "validation" in found:
        number = found["validation"]["num_images"]
        protocol = bind_protocol(rules, reference, number, balance="validation images", real=True)
        evaluation.floor |= metric_values([medians(found["validation"])], protocol)
        evaluation.protocols[protocol.id] = protocol
    about = f"samples, nearest by {nearest.features_id}, nearest by pixels"
    if nearest.num_searched < len(training):
        about += f"; among {nearest.num_searched:,} of {len(training):,} images"
    evaluation.pictures["nearest.png"] = ("Nearest training images", about, nearest.picture)
