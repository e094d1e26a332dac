"""Measurement of a generator, a tokenizer or images in one call: `tessella.evaluate`.

It opens the arguments given by name, chooses the evaluation for them, and writes the report if a
folder is given. `samples.py`, `reconstructions.py` and `given_images.py` measure.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm

from ..checkpoints import load_generator, load_tokenizer
from ..data.image_source import DataError, ImageSource
from ..data.npz_source import NpzSource
from ..data.path_source import local_places
from ..data.sources import open_source
from ..data.train_val import held_out, open_to_measure
from ..generators.base import Generator
from ..metrics.presets import find_preset
from ..metrics.protocol import Conditions
from ..progress import is_quiet
from ..sample.generate import Precision
from ..sample.sampler import Sampling
from ..sample.samplers import choose_sampling
from ..sample.samples import open_samples
from ..tokenizers.base import Tokenizer
from .curves import Curves
from .evaluation import Evaluation
from .given_images import evaluate_images
from .reconstructions import evaluate_tokenizer
from .report.charts import require_charts
from .samples import evaluate_generator
from .settings import EvaluationSettings, check_out

Named = str | os.PathLike[str]


def evaluate(
    *,
    generator: Generator | Named | None = None,
    tokenizer: Tokenizer | Named | None = None,
    samples: Named | None = None,
    data: str | None = None,
    split: str | None = None,
    protocol: str = "bundled",
    num: int | None = None,
    repeats: int | None = None,
    features: str | None = None,
    curves: Curves | None = None,
    nearest: int | None = None,
    conditions: Conditions | None = None,
    sampling: Sampling | Callable[[Generator], Sampling] | None = None,
    seed: int = 0,
    batch_size: int = 16,
    precision: Precision = "auto",
    compile: bool = False,
    device: str | torch.device = "cpu",
    processes: PartialState | None = None,
    cache: bool = True,
    progress: bool = True,
    out: Named | None = None,
    overwrite: bool = False,
    command: str = "",
    name: str = "",
    inputs: Sequence[Named] = (),
    **knobs: Any,
) -> Evaluation | None:
    """Measure a generator's samples, a tokenizer's reconstructions, or images under a protocol.

    Args:
        generator: Generator to measure, or its model folder, `bundled:NAME` or `hub:owner/name`.
        tokenizer: Tokenizer to measure; with `generator` given by name, the tokenizer to load it
            with.
        samples: Existing images to measure: a folder, tars or an .npz.
        data: Data source of the real images; None: that of the protocol.
        split: Split of `data`; None: `val` for a tokenizer, else that of the protocol.
        protocol: Name of the preset: `bundled`, `val-paired`, `adm-256` or `torch-fidelity`.
        num: Number of images per repetition; None: that of the preset.
        repeats: Number of repetitions with other seeds; None: 3.
        features: Network of the distances, which makes another protocol; None: the preset's.
        curves: Further settings of the sampler to measure; None: no curves.
        nearest: Number of samples whose nearest training images are found; None: 128.
        conditions: What a generator's samples are asked by: `labels` by the rule of the protocol,
            `captions` of the real images, or `both`; None: captions if it reads text, else labels.
        sampling: Settings of the generator's sampler, or a function that chooses them for the
            generator once it is loaded; None: its own.
        seed: Base of all seeds.
        batch_size: Number of images processed at once, per process.
        precision: Precision of the generator, as in `generate`.
        compile: Whether to run the generator through torch.compile.
        device: Device of all computations.
        processes: Processes that share the work, from `join_processes`; None: this one alone.
        cache: Whether to store statistics of reference images, and use stored ones.
        progress: Whether to show progress bars on stderr.
        out: Folder for report.html, report.json and pictures; None: nothing is written.
        overwrite: Whether to replace a report at `out` that tessella wrote.
        command: Command line, for the report.
        name: Name of the subject in the report; empty: its path, or its type.
        inputs: Further files and folders that are never replaced.
        knobs: Settings of the generator's sampler by name, such as `num_steps`.

    Returns:
        The measurement with `metrics`, `protocol`, `notes` and pictures, on the main process; None
        on the others.

    Raises:
        ValueError: If an argument contradicts another; `ProtocolError` if it contradicts the
            preset.
        DataError: If images cannot be read.
        FileExistsError: If `out` exists and must stay.
        WeightsMissing: If the weights of a network are not on this machine; the message names the
            command that gets them.
    """
    _check_subject(generator=generator, tokenizer=tokenizer, samples=samples)
    if generator is None and knobs:
        raise TypeError(f"evaluate: {', '.join(knobs)} unknown, or only of use with a generator")
    if generator is None and (curves or sampling or conditions) is not None:
        raise ValueError(
            "curves, conditions and settings of a sampler are only of use with a generator"
        )
    for name_of, subject, kind in (
        ("generator", generator, Generator),
        ("tokenizer", tokenizer, Tokenizer),
    ):
        if not isinstance(subject, kind | str | os.PathLike | None):
            raise TypeError(
                f"{name_of}: expected a {name_of} or its path, found {type(subject).__name__}"
            )
    if isinstance(generator, Generator) and tokenizer is not None:
        raise ValueError("tokenizer: a loaded generator has its tokenizer; give one of the two")
    _check_repetitions(generator=generator, samples=samples, repeats=repeats, nearest=nearest)
    given = (generator, tokenizer, samples)
    subjects = [named for named in given if isinstance(named, str | os.PathLike)]
    places = [*inputs, *local_places(*(os.fspath(named) for named in subjects), data)]
    if out is not None:
        check_out(Path(out), overwrite=overwrite, inputs=places)
    if curves is not None:
        require_charts()
    preset = find_preset(protocol)
    chosen_data = data or preset.data
    if chosen_data is None:
        raise ValueError(
            f"data: protocol {preset.name} does not say which images; expected the name of a data "
            "source, e.g. bundled:emoji"
        )
    settings = EvaluationSettings(
        preset=preset,
        data=chosen_data,
        num=num,
        repeats=3 if repeats is None else repeats,
        seed=seed,
        batch_size=batch_size,
        features=features,
        device=device,
        progress=progress,
        processes=processes,
        cache=cache,
        command=command,
    )
    name = name or next((os.fspath(named) for named in subjects), "")
    evaluation: Evaluation | None
    if generator is None and samples is None:
        assert tokenizer is not None
        source = open_to_measure(chosen_data, split or "val")
        main = processes is None or processes.is_main_process
        if progress and main and not is_quiet() and (line := held_out(source)):
            tqdm.write(line, file=sys.stderr)
        if not isinstance(tokenizer, Tokenizer):
            tokenizer = load_tokenizer(tokenizer, device=device)
        name = name or tokenizer.config.type
        evaluation = evaluate_tokenizer(tokenizer, source, settings, name=name)
    else:
        source = open_source(chosen_data, split or preset.reference_split)
        around: dict[str, Any] = {
            "validation": _other_split(chosen_data, source, "val"),
            "training": _other_split(chosen_data, source, "train"),
            "num_nearest": 128 if nearest is None else nearest,
        }
        if samples is not None:
            images = open_samples(os.fspath(samples))
            evaluation = evaluate_images(images, source, settings, name=name, **around)
        else:
            assert generator is not None
            if not isinstance(generator, Generator):
                generator = load_generator(generator, tokenizer=tokenizer, device=device)
            if callable(sampling):
                sampling = sampling(generator)
            evaluation = evaluate_generator(
                generator,
                source,
                settings,
                name=name or generator.config.type,
                conditions=conditions,
                sampling=choose_sampling(generator, sampling, knobs),
                precision=precision,
                compile=compile,
                curves=curves,
                **around,
            )
    if evaluation is not None and out is not None:
        evaluation.write(Path(out), settings, overwrite=overwrite, inputs=places)
    return evaluation


def _check_subject(*, generator: object, tokenizer: object, samples: object) -> None:
    """Refuse several subjects, or none; what is not given is None."""
    if samples is not None and (generator is not None or tokenizer is not None):
        raise ValueError(
            "give one of generator, tokenizer and samples; found samples and another one"
        )
    if samples is None and generator is None and tokenizer is None:
        raise ValueError("nothing to measure: give a generator, a tokenizer or samples")


def _check_repetitions(
    *, generator: object, samples: object, repeats: int | None, nearest: int | None
) -> None:
    """Refuse repetitions of existing images, and the nearest images of reconstructions."""
    if nearest is not None and nearest < 0:
        raise ValueError(f"nearest: expected at least 0 samples, found {nearest}")
    if samples is not None and (repeats or 1) > 1:
        raise ValueError(
            f"repeats: existing images can be measured only once, found {repeats} repetitions"
        )
    if samples is None and generator is None and nearest:
        raise ValueError(
            "nearest: not for a tokenizer, whose reconstructions are near their originals; "
            f"expected none or 0, found {nearest}"
        )


def _other_split(data: str, source: ImageSource, split: str) -> ImageSource | None:
    """Another split of the data; None if there is none with other images."""
    if source.split == split or isinstance(source, NpzSource):
        return None
    try:
        found = open_source(data, split)
    except DataError:
        return None
    return None if found.fingerprint() == source.fingerprint() else found
