"""How good a generator's samples are, under a protocol.

`evaluate_generator` is a sequence of five steps, which follow it in this file in their order:

1. `resolve_rules`: what is to be measured. All that can be refused without looking at an image is
   refused here.
2. `open_reference`: the networks, the real images that samples are compared with, and the floor.
3. `draw_set`: samples, in batches, into banks of features. Other seeds make other repetitions.
4. `compute_metrics`: every number of a set.
5. `assemble_samples` (in `sample_findings.py`): numbers, tables and pictures as an `Evaluation`.

Nothing is refused after the first sample is drawn, except predictions that are not finite.
"""

import functools
import time
from collections.abc import Callable, Iterator

import torch

from ..collectives import gather_merged, leave_processes, own_share
from ..data.image_source import DataError, ImageSource
from ..generators.base import Generator
from ..generators.conditions import TextCondition
from ..metrics.manifold import ManifoldResult
from ..metrics.presets import MIN_IMAGES, choose_labels
from ..metrics.protocol import ClassBalance, Conditions, Protocol, ProtocolError
from ..metrics.token_statistics import TokenStatistics
from ..progress import progress_bar
from ..sample.generate import Precision
from ..sample.sampler import Sampling
from ..sample.samplers import choose_sampling, with_steps
from .calibration import Calibration, calibrate
from .conditions import ask, choose_conditions, open_texts, sample_batches
from .curves import Curves, draw_lines
from .evaluation import Evaluation
from .image_set import ImageSet, Networks, distances
from .reference import read_reference
from .sample_findings import NUM_GRID, add_nearest, assemble_samples, generator_facts
from .sample_set import (
    DrawnSet,
    Reference,
    Rules,
    SampleBatch,
    bind_protocol,
    few_names,
    same_classes,
)
from .settings import EvaluationSettings


def evaluate_generator(
    generator: Generator,
    source: ImageSource,
    settings: EvaluationSettings,
    *,
    name: str,
    validation: ImageSource | None = None,
    training: ImageSource | None = None,
    conditions: Conditions | None = None,
    sampling: Sampling | None = None,
    precision: Precision = "auto",
    compile: bool = False,
    curves: Curves | None = None,
    num_nearest: int = 128,
) -> Evaluation | None:
    """Draw samples of a generator and measure them against real images.

    Args:
        generator: Generator in eval mode, with its tokenizer, as `load_generator` returns it.
        source: Reference images, the split that the preset names.
        settings: Settings of the evaluation.
        name: Name of the generator in the report.
        validation: Real images that the generator was not trained on; their own distances are the
            floor. None: no floor.
        training: Images that the generator was trained on, searched for copies, and with captions
            those that the alignment is learned from. None: the reference, unless that is a
            validation split.
        conditions: What samples are asked by: `labels` by the rule of the preset, `captions` of the
            reference, each once before any comes twice, or `both`, a caption with the class of its
            images; None: captions if the generator reads text, else labels.
        sampling: Settings of the sampler; None: the generator's own.
        precision: Precision of the network, `auto`, `fp32` or `bf16`; `auto` is bf16 on CUDA.
        compile: Run the network through torch.compile.
        curves: Further settings of the sampler to measure; None: none.
        num_nearest: Number of samples whose nearest training images are searched; 0: none.

    Returns:
        The measurement on the main process, None on the others.

    Raises:
        ProtocolError: If the preset does not allow what is asked for.
        WeightsMissing: If a network has no weights on this machine.
        DataError: If the reference cannot be read.
        ValueError: If settings do not fit the generator, or a feature or a prediction is not
            finite.
    """
    started = time.perf_counter()
    sampling = choose_sampling(generator, sampling, {})
    further = [] if curves is None else curves.settings(sampling)
    points = [with_steps(generator, chosen) for chosen in further]
    recorded = with_steps(generator, sampling)
    conditions = choose_conditions(generator, conditions)
    if conditions != "captions" and not same_classes(generator.classes, source.classes):
        raise ProtocolError(
            f"the generator's classes are not those of {source.name}: "
            f"{few_names(generator.classes)} and {few_names(source.classes)}"
        )
    rules = resolve_rules(
        source,
        settings,
        resolution=generator.tokenizer.resolution,
        num_classes=generator.num_classes if conditions == "labels" else len(source.classes),
        num=settings.num,
        conditions=conditions,
    )
    if training is None and source.split != "val":
        training = source
    reference = open_reference(
        rules,
        source,
        num=settings.num,
        validation=validation,
        training=training,
        text=generator.text,
    )
    if points and curves is not None:
        ask(rules, reference, curves.num, settings.seed)

    def draw(
        chosen: Sampling, count: int, repetition: int, title: str, num_kept: int = 0
    ) -> DrawnSet | None:
        asked = ask(rules, reference, count, settings.seed + repetition)
        first_seed = settings.seed + repetition * count
        batches = functools.partial(
            sample_batches, generator, asked, first_seed, chosen, settings, precision, compile
        )
        statistics = TokenStatistics(generator.spec)
        return draw_set(
            batches, count, rules, reference, title=title, tokens=statistics, num_kept=num_kept
        )

    # All is drawn before the main process computes alone: no other one waits for it.
    runs, at_points = [], []
    for repetition in range(settings.repeats):
        title = f"samples {repetition + 1} of {settings.repeats}"
        num_kept = max(NUM_GRID, num_nearest) if repetition == 0 else 0
        runs.append(draw(sampling, reference.num, repetition, title, num_kept))
    for chosen in points:
        assert curves is not None
        title = f"{chosen.num_steps} steps, guidance {chosen.guidance:g}"
        at_points.append((chosen, draw(chosen, curves.num, 0, title)))
    if settings.processes is not None:
        leave_processes()
    drawn = [found for found in runs if found is not None]
    if not drawn:
        return None

    protocol = bind_protocol(rules, reference, reference.num)
    measured = [
        compute_metrics(found, reference, protocol, settings, repetition)
        for repetition, found in enumerate(drawn)
    ]
    subject = generator_facts(generator, name, recorded)
    subject |= {"precision": precision, "compiled": compile, "base_seed": settings.seed}
    evaluation = assemble_samples(drawn[0], measured, rules, reference, protocol, subject)
    evaluation.images_per_second = reference.num / drawn[0].seconds
    if curves is not None and points:
        of_curves = bind_protocol(rules, reference, curves.num)
        values = [
            (chosen, compute_metrics(found, reference, of_curves, settings, 0)[0])
            for chosen, found in at_points
            if found is not None
        ]
        evaluation.curves = draw_lines(values, of_curves)
        evaluation.protocols[of_curves.id] = of_curves
    add_nearest(evaluation, drawn[0], num_nearest, training, rules, reference)
    evaluation.add_bits(drawn[0].tokens)
    evaluation.seconds = time.perf_counter() - started
    return evaluation


def resolve_rules(
    source: ImageSource,
    settings: EvaluationSettings,
    *,
    resolution: int,
    num_classes: int,
    num: int | None,
    drawn: bool = True,
    conditions: Conditions = "labels",
    given_captions: tuple[str, ...] = (),
) -> Rules:
    """Rules of a measurement of samples, after all refusals that need no image.

    Args:
        source: Reference images.
        settings: Settings of the evaluation.
        resolution: Side of the samples in pixels.
        num_classes: Number of classes that labels of samples come from; 0: samples have no labels.
        num: Number of samples per repetition; None: the preset's.
        drawn: True if this program draws the samples, False if they were made elsewhere.
        conditions: What samples are asked by.
        given_captions: Captions of samples that were made elsewhere, as far as they have any.

    Raises:
        ProtocolError: If the preset does not allow what is asked for.
    """
    preset = settings.preset
    labelled = num_classes > 0 and conditions == "labels"
    rule: ClassBalance = preset.class_balance if labelled else "none"
    preset.check_resolution(resolution)
    planned = preset.check_number(num, len(source), "samples")
    preset.check_reference(len(source))
    if drawn and rule == "reference" and not source.classes:
        raise ProtocolError(
            f"protocol {preset.name}: samples have the class proportions of the reference, but "
            f"the images of {source.name} ({source.split}) have no labels"
        )
    if drawn and rule != "reference":
        choose_labels(rule, torch.ones(num_classes).long(), planned, 0, name=preset.name)
    return Rules(
        settings=settings,
        resolution=resolution,
        num_classes=num_classes,
        label_rule=rule,
        drawn=drawn,
        conditions=conditions,
        given_captions=given_captions,
    )


def open_reference(
    rules: Rules,
    source: ImageSource,
    *,
    num: int | None,
    validation: ImageSource | None,
    training: ImageSource | None = None,
    text: TextCondition | None = None,
) -> Reference:
    """Build the networks, and show them the reference and the real images of the floor.

    Args:
        rules: Rules of the measurement.
        source: Reference images.
        num: Number of samples per repetition; None: the preset's, or one per readable image.
        validation: Real images of the floor; None: no floor. Without enough images that can be
            read there is none either, and a note says why.
        training: Images that the alignment is learned from, where samples have captions; None:
            there are none.
        text: Reader of text of a generator that is asked by captions; None: samples are not asked
            by captions.

    Raises:
        ProtocolError: If too few images can be read, or they have not the labels that are needed.
        WeightsMissing: If a network has no weights on this machine.
        DataError: If no image of the reference can be read.
        ValueError: If a feature is not finite.
    """
    settings, preset = rules.settings, rules.settings.preset
    networks = Networks.of(preset, settings.device, features=settings.features)
    read = functools.partial(
        read_reference,
        networks=networks,
        preset=preset,
        resolution=rules.resolution,
        batch_size=settings.batch_size,
        processes=settings.processes,
        progress=settings.progress,
        cache=settings.cache,
    )
    images = read(source)
    preset.check_reference(len(images))
    num = preset.check_number(num, len(images), "samples")
    counts = images.counts(rules.num_classes)
    if rules.drawn and rules.label_rule == "reference" and int(counts.sum()) != len(images):
        raise ProtocolError(
            f"{source.name} ({source.split}): expected a label from 0 to {rules.num_classes - 1} "
            f"on every image, found labels {sorted(images.label_counts)}"
        )
    floor: ImageSet | None = None
    notes: list[str] = []
    if validation is not None:
        try:
            floor = read(validation)
        except DataError as error:  # the floor is an extra: without it the numbers are the same
            notes.append(f"no floor: {error}")
        if floor is not None and len(floor) < MIN_IMAGES:
            notes.append(f"no floor: {validation.split} has {len(floor)} images")
            floor = None
    texts, found = open_texts(
        rules, source, networks, training=training, validation=validation, text=text
    )
    calibration: Calibration | None = None
    if settings.rank == 0:
        calibration = calibrate(images.bank, networks.extractor, rules.resolution, settings)
    return Reference(
        source=source,
        networks=networks,
        images=images,
        class_counts=counts,
        num=num,
        validation=validation,
        floor=floor,
        calibration=calibration,
        texts=texts,
        notes=(*notes, *found),
    )


def draw_set(
    batches: Callable[[range], Iterator[SampleBatch]],
    count: int,
    rules: Rules,
    reference: Reference,
    *,
    title: str,
    tokens: TokenStatistics | None = None,
    num_kept: int = 0,
) -> DrawnSet | None:
    """Draw one set of samples, each process its share, and fill the banks batch by batch.

    Args:
        batches: Function that yields the samples with the numbers of a range, in batches.
        count: Number of samples in the set.
        rules: Rules of the measurement.
        reference: Real images, whose networks look at the samples too.
        title: Title of the progress bar.
        tokens: Empty statistics of the tokens; None: tokens are not measured.
        num_kept: Number of samples, the first ones, whose pixels are kept.

    Returns:
        The whole set on the main process, None on the others.
    """
    settings, own = rules.settings, own_share(count, rules.settings.processes)
    num_first = 0 if reference.floor is None else len(reference.floor)
    silent = not settings.progress or settings.rank > 0

    def fill() -> DrawnSet:
        images = ImageSet(reference.networks, most=settings.preset.sample_bank)
        drawn = DrawnSet(
            images,
            tokens,
            num_first=num_first,
            num_kept=num_kept,
            alignment=reference.texts.alignment,
        )
        drawing = batches(own)
        with progress_bar(len(own), "image", title=title, silent=silent) as bar:
            while True:
                started = time.perf_counter()
                batch = next(drawing, None)
                drawn.seconds += time.perf_counter() - started
                if batch is None:
                    return drawn
                drawn.add(batch, reference)
                bar.update(len(batch.numbers))

    return gather_merged(fill, settings.processes)


def compute_metrics(
    drawn: DrawnSet,
    reference: Reference,
    protocol: Protocol,
    settings: EvaluationSettings,
    repetition: int,
) -> tuple[dict[str, float], ManifoldResult]:
    """Every metric of a set of samples that is given, and what is known of each image of the banks.

    Args:
        drawn: The whole set.
        reference: Real images to compare with.
        protocol: Protocol of the set.
        settings: Settings of the evaluation; its seed and the repetition seed the subsets of KID.
        repetition: Number of the repetition, from 0.
    """
    seed = settings.seed + repetition
    values, manifold = distances(
        drawn.images, reference.images, protocol, seed=seed, device=settings.device
    )
    twins = drawn.twins.result(num_pairs=0)
    if reference.calibration is not None:
        values = reference.calibration.kept(values)
    if reference.texts.alignment is not None and drawn.captioned is not None:
        values |= reference.texts.alignment.values(drawn.captioned)
    values |= {"duplicate_share": twins.share, "exact_duplicate_share": twins.exact_share}
    return values | ({} if drawn.tokens is None else drawn.tokens.compute()), manifold
