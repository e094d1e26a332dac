"""What samples are asked by: labels by a rule, captions of the reference, or both of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..data.image_source import ImageSource
from ..generators.base import Generator
from ..generators.conditions import TextCondition
from ..metrics.presets import choose_labels
from ..metrics.protocol import Conditions, ProtocolError, to_pixels
from ..sample.generate import Precision, generate_batches
from ..sample.request import Request
from ..sample.sampler import Sampling
from .alignment import open_alignment
from .captions import NO_CAPTIONS, read_captions, readable_captions
from .image_set import Networks
from .sample_set import Reference, Rules, SampleBatch, Texts
from .settings import EvaluationSettings


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Conditions of the samples of a set, one entry each.

    Attributes:
        labels: Label that the generator gets; -1: none.
        captions: Caption that it gets; empty: none.
        classes: Class that the sample counts as in tables; -1: none.
    """

    labels: tuple[int, ...]
    captions: tuple[str, ...]
    classes: tuple[int, ...]


def choose_conditions(generator: Generator, wanted: Conditions | None) -> Conditions:
    """What samples of a generator are asked by: captions if it reads text, labels otherwise.

    Args:
        generator: Generator to be measured.
        wanted: What was asked for; None: nothing.

    Raises:
        ValueError: If it does not read what was asked for.
    """
    if wanted not in (None, "labels", "captions", "both"):
        raise ValueError(f"conditions: expected labels, captions or both, found {wanted!r}")
    if wanted in ("captions", "both") and not generator.reads_text:
        raise ValueError(
            "conditions: this generator was trained without text and reads labels at most; "
            f"expected labels, found {wanted}"
        )
    if wanted == "both" and not generator.num_classes:
        raise ValueError(
            "conditions: this generator was trained without classes; expected captions, found both"
        )
    return wanted or ("captions" if generator.reads_text else "labels")


def open_texts(
    rules: Rules,
    source: ImageSource,
    networks: Networks,
    *,
    training: ImageSource | None,
    validation: ImageSource | None,
    text: TextCondition | None,
) -> tuple[Texts, list[str]]:
    """Captions of the reference, if samples have captions, and sentences about what is left out.

    Args:
        rules: Rules of the measurement.
        source: Reference images.
        networks: Networks of the protocol.
        training: Images that the alignment is learned from; None: there are none.
        validation: Images that the alignment of samples is compared with; None: there are none. A
            reference that is a validation split stands for itself.
        text: Reader of text of the generator; None: there is none.
    """
    if not rules.captioned:
        return Texts(), []
    captions, asked = read_captions(source, rules.settings), NO_CAPTIONS
    notes: list[str] = []
    if text is not None and rules.conditions != "labels":
        asked, notes = readable_captions(captions, text)
    alignment, why_not = open_alignment(
        captions,
        networks,
        rules.settings,
        rules.resolution,
        training=training,
        validation=source if source.split == "val" else validation,
    )
    return Texts(captions=captions, asked=asked, alignment=alignment), notes + why_not


def ask(rules: Rules, reference: Reference, count: int, seed: int) -> Asked:
    """Conditions of each of `count` samples.

    Args:
        rules: Rules of the measurement.
        reference: Reference images, with the captions that the generator reads.
        count: Number of samples.
        seed: Seed of the order.

    Raises:
        ProtocolError: If that many samples cannot have the labels that the rule wants, or there is
            no caption to ask for.
    """
    name = rules.settings.preset.name
    if rules.conditions == "labels":
        counts = reference.class_counts
        labels = tuple(choose_labels(rules.label_rule, counts, count, seed, name=name))
        return Asked(labels=labels, captions=("",) * count, classes=labels)
    captions = reference.texts.asked
    if not captions:
        where = f"{reference.source.name} ({reference.source.split})"
        raise ProtocolError(
            f"protocol {name}: samples are asked by the captions of the reference, but none of the "
            f"{len(reference.texts.captions):,} captions of {where} can be read by the generator; "
            "expected at least one, or conditions: labels"
        )
    rows = captions.choose(count, seed)
    classes = tuple(captions.labels[row] for row in rows)
    return Asked(
        labels=classes if rules.conditions == "both" else (-1,) * count,
        captions=tuple(captions.texts[row] for row in rows),
        classes=classes,
    )


def sample_batches(
    generator: Generator,
    asked: Asked,
    first_seed: int,
    sampling: Sampling,
    settings: EvaluationSettings,
    precision: Precision,
    compile: bool,
    own: range,
) -> Iterator[SampleBatch]:
    """Samples with the numbers `own`, drawn and decoded; number i has seed `first_seed` + i.

    Args:
        generator: Generator in eval mode, with its tokenizer.
        asked: Conditions of all samples of the set.
        first_seed: Seed of sample 0.
        sampling: Settings of the sampler.
        settings: Settings of the evaluation.
        precision: Precision of the network.
        compile: Run the network through torch.compile.
        own: Numbers of the samples to draw.

    Yields:
        Batches of at most `settings.batch_size` samples.
    """
    captions = [asked.captions[i] for i in own]
    request = Request.make(
        generator,
        [asked.labels[i] for i in own],
        seeds=[first_seed + i for i in own],
        prompts=captions if any(captions) else None,
    )
    start = 0
    for tokens in generate_batches(
        generator,
        request,
        sampling,
        batch_size=settings.batch_size,
        precision=precision,
        compile=compile,
    ):
        rows = slice(start, start + len(tokens))
        images = generator.tokenizer.decode(tokens)
        yield SampleBatch(
            to_pixels(images, settings.preset.rounding),
            torch.tensor(list(own[rows])),
            torch.tensor([asked.classes[i] for i in own[rows]]),
            captions[rows],
            tokens,
        )
        start = rows.stop
