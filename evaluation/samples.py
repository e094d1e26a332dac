"""How good a generator's samples are, under a protocol.

Everything that can be refused is refused before the first sample is drawn: preset, number, classes,
weights, reference, settings of the sampler. Samples are drawn in several repetitions with other
seeds.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..collectives import leave_processes
from ..data.image_source import ImageSource
from ..generators.base import Generator
from ..metrics.protocol import ProtocolError, to_levels
from ..metrics.token_statistics import TokenStatistics
from ..sample.generate import Precision, generate
from ..sample.samplers import Sampling, choose_sampling, with_steps
from .curves import Curves, draw_lines
from .evaluation import Evaluation
from .measurement import NUM_GRID, DrawnSet, SampleBatch, SampleMeasurement
from .settings import EvaluationSettings


def same_classes(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    """Whether two lists of class names fit; lists without names, or of mere numbers, always do."""
    numbered = any(list(names) == [str(i) for i in range(len(names))] for names in (ours, theirs))
    return numbered or tuple(ours) == tuple(theirs)


def few_names(names: Sequence[str]) -> str:
    """The first few, for a message."""
    return ", ".join(names[:4]) + (" ..." if len(names) > 4 else "") or "none"


def evaluate_generator(
    generator: Generator,
    source: ImageSource,
    settings: EvaluationSettings,
    *,
    name: str,
    validation: ImageSource | None = None,
    training: ImageSource | None = None,
    sampling: Sampling | None = None,
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
        validation: Real images that it was not trained on: their own distances are the floor.
            None: no floor.
        training: What it was trained on, to look for copies; None: the reference, unless that is a
            validation split.
        sampling: Settings of the sampler; None: the generator's own.
        precision: As of `generate`.
        compile: As of `generate`.
        curves: Further settings of the sampler to measure.
        num_nearest: Samples whose nearest training images are looked for; 0: none.

    Returns:
        The measurement on the main process, None on the others.

    Raises:
        ProtocolError: If the preset does not allow what is asked for.
        WeightsMissing: If a network has no weights here.
        DataError: If the reference cannot be read.
        ValueError: If settings do not fit the generator, or a feature or a prediction is not
            finite.
    """
    started = time.perf_counter()
    sampling = choose_sampling(generator, sampling, {})
    further = [] if curves is None else curves.settings(sampling)
    further = [with_steps(generator, chosen) for chosen in further]
    for chosen in (sampling, *further):
        with_steps(generator, chosen)
    if not same_classes(generator.classes, source.classes):
        raise ProtocolError(
            f"the generator's classes are not those of {source.name}: "
            f"{few_names(generator.classes)} and {few_names(source.classes)}"
        )
    job = SampleMeasurement(
        source,
        settings,
        resolution=generator.tokenizer.resolution,
        num_classes=generator.num_classes,
        num=settings.num,
        validation=validation,
    )
    if further and curves is not None:
        job.labels(curves.num, settings.seed)

    def run(
        chosen: Sampling, count: int, repetition: int, title: str, num_kept: int = 0
    ) -> DrawnSet | None:
        labels = job.labels(count, settings.seed + repetition)

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
        return job.draw(draw, count, title=title, tokens=statistics, num_kept=num_kept)

    # All is drawn before the main process computes alone: no other one waits for it.
    runs, points = [], []
    for repetition in range(settings.repeats):
        title = f"samples {repetition + 1} of {settings.repeats}"
        num_kept = max(NUM_GRID, num_nearest) if repetition == 0 else 0
        runs.append(run(sampling, job.num, repetition, title, num_kept))
    for chosen in further:
        assert curves is not None
        title = f"{chosen.num_steps} steps, guidance {chosen.guidance:g}"
        points.append((chosen, run(chosen, curves.num, 0, title)))
    if settings.processes is not None:
        leave_processes()
    drawn = [found for found in runs if found is not None]
    if not drawn:
        return None
    subject = _subject(generator, name, sampling)
    subject |= {"precision": precision, "compiled": compile, "base_seed": settings.seed}
    evaluation = job.evaluation(drawn, job.protocol(job.num), subject)
    evaluation.images_per_second = job.num / drawn[0].seconds
    if curves is not None and points:
        protocol = job.protocol(curves.num)
        values = [
            (chosen, job.values(found, protocol, seed=settings.seed)[0])
            for chosen, found in points
            if found is not None
        ]
        evaluation.curves = draw_lines(values, protocol)
        evaluation.protocols[protocol.id] = protocol
    if training is None and source.split != "val":
        training = source
    if num_nearest and training is not None:
        job.add_nearest(evaluation, drawn[0], num_nearest, training)
    evaluation.add_bits(drawn[0].tokens)
    evaluation.seconds = time.perf_counter() - started
    return evaluation


def _subject(generator: Generator, name: str, sampling: Sampling) -> dict[str, Any]:
    """What the report says of a generator."""
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
        "sampling": dataclasses.asdict(with_steps(generator, sampling)),
    }
