"""How good images are that exist already, e.g. PNG files of another program.

They go through the steps of `samples.py`, except that they are read and not drawn. Nothing is known
of how they were made, so their protocol says "as given" where a generator's says how it rounded,
was guided and seeded: their numbers compare with those of other given images.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..collectives import leave_processes
from ..data.image_source import DataError, ImageSource
from ..data.images import BrokenImage, to_uint8
from ..data.loader import eval_batches, evenly_spaced
from ..metrics.presets import balanced_labels
from ..metrics.protocol import AS_GIVEN, ProtocolError
from ..progress import progress_bar
from ..text.words import rows_of
from .evaluation import Evaluation
from .sample_findings import NUM_GRID, add_nearest, assemble_samples
from .sample_set import SampleBatch, bind_protocol, few_names, same_classes
from .samples import compute_metrics, draw_set, open_reference, resolve_rules
from .settings import EvaluationSettings


def evaluate_images(
    samples: ImageSource,
    source: ImageSource,
    settings: EvaluationSettings,
    *,
    name: str,
    validation: ImageSource | None = None,
    training: ImageSource | None = None,
    num_nearest: int = 128,
) -> Evaluation | None:
    """Measure images as samples.

    Args:
        samples: Images to measure; all must be square and of one size, since nothing is resized.
        source: Reference images.
        settings: Settings of the evaluation; there is one repetition. Of more images than the
            number asked for, evenly spaced ones are taken.
        name: Name of the samples in the report.
        validation: Real images whose own distances are the floor; None: no floor.
        training: Images that the samples' model was trained on, searched for copies, and if samples
            have captions those that the alignment is learned from. None: the reference, unless that
            is a validation split.
        num_nearest: Number of samples whose nearest training images are searched; 0: none.

    Returns:
        The measurement on the main process, None on the others.

    Raises:
        ProtocolError: If there are too few, their classes are those of other data, or not balanced
            as the preset wants.
        DataError: If one is of another size or cannot be read.
    """
    started = time.perf_counter()
    preset = settings.preset
    count = preset.check_number(settings.num, len(samples), "samples")
    if count > len(samples):
        raise ProtocolError(
            f"protocol {preset.name}: {count:,} samples are measured, "
            f"{samples.name} has {len(samples):,}"
        )
    if not _fit(samples.classes, source.classes):
        raise ProtocolError(
            f"the classes of {samples.name} are not those of {source.name}: "
            f"{few_names(samples.classes)} and {few_names(source.classes)}"
        )
    chosen = evenly_spaced(len(samples), count)
    side, labels, captions = _inspect(samples, chosen, settings)
    histogram = Counter(labels)
    known = -1 not in histogram
    if known and preset.class_balance == "equal" and len(set(histogram.values())) > 1:
        few, many = min(histogram.values()), max(histogram.values())
        raise ProtocolError(
            f"protocol {preset.name}: classes are unbalanced, {few:,} to {many:,} samples each, "
            f"expected equal numbers"
        )
    rules = resolve_rules(
        source,
        settings,
        resolution=side,
        num_classes=len(source.classes) if known else 0,
        num=count,
        drawn=False,
        given_captions=captions,
    )
    if training is None and source.split != "val":
        training = source
    reference = open_reference(rules, source, num=count, validation=validation, training=training)

    def batches(own: range) -> Iterator[SampleBatch]:
        numbers = iter(own)
        indices = [chosen[i] for i in own]
        for batch in eval_batches(
            samples, side, settings.batch_size, resize="none", indices=indices
        ):
            here = torch.tensor([next(numbers) for _ in batch["ids"]])
            pixels = to_uint8(batch["images"])
            yield SampleBatch(pixels, here, batch["labels"], batch["captions"])

    num_kept = max(NUM_GRID, num_nearest)
    drawn = draw_set(batches, count, rules, reference, title="samples", num_kept=num_kept)
    if settings.processes is not None:
        leave_processes()
    if drawn is None:
        return None
    if len(drawn.images) != count:
        raise DataError(f"{samples.name}: {count - len(drawn.images)} samples could not be read")

    balance = _balance(reference.class_counts, histogram) if known else AS_GIVEN
    protocol = bind_protocol(rules, reference, count, balance=balance)
    measured = compute_metrics(drawn, reference, protocol, settings, 0)
    subject: dict[str, Any] = {"name": name, "system": "images", "parameters": None}
    subject |= {"fingerprint": drawn.images.hash.hexdigest()[:32], "resolution": side}
    subject |= {"tokens": None, "bits_per_image": None}
    evaluation = assemble_samples(drawn, [measured], rules, reference, protocol, subject)
    add_nearest(evaluation, drawn, num_nearest, training, rules, reference)
    evaluation.seconds = time.perf_counter() - started
    return evaluation


def _fit(ours: tuple[str, ...], theirs: tuple[str, ...]) -> bool:
    """Whether classes are those of the reference, as far as they occur."""
    if same_classes(ours, theirs):
        return True
    pairs = zip(ours, theirs, strict=False)
    return len(ours) <= len(theirs) and all(here in ("", there) for here, there in pairs)


def _inspect(
    samples: ImageSource, chosen: list[int], settings: EvaluationSettings
) -> tuple[int, list[int], tuple[str, ...]]:
    """Side, labels and captions, after reading every sample once: nothing can go wrong later.

    There are no captions if none has a word that the alignment knows.

    Raises:
        DataError: If one is broken, not square, or of another size than the first.
    """
    labels, captions, side = [], [], 0
    silent = not settings.progress or settings.rank > 0
    with progress_bar(len(chosen), "image", title="checking samples", silent=silent) as bar:
        for index in chosen:
            try:
                sample = samples.read(index)
            except BrokenImage as error:
                raise DataError(f"{samples.name}: a sample is broken: {error}") from None
            width, height = sample.image.size
            side = side or width
            if width != height or width != side:
                wanted = "square images" if width != height else f"{side} x {side} as the first"
                raise DataError(
                    f"{samples.name}: {sample.id} is {width} x {height} pixels, expected {wanted}: "
                    "samples are measured as they are, without resizing"
                )
            labels.append(-1 if sample.label is None else sample.label)
            captions.append(sample.caption or "")
            bar.update()
    return side, labels, tuple(captions) if any(map(rows_of, captions)) else ()


def _balance(class_counts: Tensor, histogram: Counter[int]) -> str:
    """Distribution of the labels of given images in words, for the protocol.

    Args:
        class_counts: Number of reference images of each class, int64 (num_classes,).
        histogram: Number of given images of each label.
    """
    found = [histogram.get(label, 0) for label in range(len(class_counts))]
    if int(class_counts.sum()):
        wanted = Counter(balanced_labels(class_counts, sum(found), 0))
        if found == [wanted.get(label, 0) for label in range(len(class_counts))]:
            return "reference"
    if len(set(found)) == 1:
        return f"equal over {len(found)} classes"
    return f"{AS_GIVEN}, {hashlib.sha256(str(found).encode()).hexdigest()[:8]}"
