"""One call that measures a generator, a tokenizer or images: `tessella.evaluate`.

It opens what is named, chooses the evaluation that fits, and writes the report where a folder is
given. `samples.py`, `reconstructions.py` and `given_images.py` do the measuring.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ..checkpoints import load_generator, load_tokenizer
from ..data.image_source import DataError, ImageSource
from ..data.npz_source import NpzSource
from ..data.path_source import local_places
from ..data.sources import open_source
from ..generators.base import Generator
from ..metrics.presets import find_preset
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
    sampling: Sampling | None = None,
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
        generator: Generator, or its model folder, `bundled:NAME` or `hub:owner/name`.
        tokenizer: Tokenizer to measure, or the one of `generator` if that is a path.
        samples: Images that are there already: a folder, tars or an .npz.
        data: Data source of the real images; None: that of the protocol.
        split: Split of `data`; None: `val` for a tokenizer, else that of the protocol.
        protocol: Name of the preset: `bundled`, `val-paired`, `adm-256` or `torch-fidelity`.
        num: Images per repetition; None: as many as the preset says.
        repeats: Repetitions with other seeds; None: 3.
        features: Another network than the preset's for the distances, which is another protocol.
        curves: Further settings of the sampler to measure; None: no curves.
        nearest: Samples whose nearest training images are looked for; None: 128.
        sampling: Settings of the generator's sampler; None: its own.
        seed: Base of all seeds.
        batch_size: Images at once, per process.
        precision: Precision of the generator, as in `generate`.
        compile: Run the generator through torch.compile.
        device: Device on which everything runs.
        processes: Processes that share the work, from `join_processes`; None: this one alone.
        cache: Keep statistics of reference images for the next time.
        progress: Show progress bars on stderr.
        out: Folder for report.html, report.json and pictures; None: nothing is written.
        overwrite: Replace a report of ours at `out`.
        command: Command line that asked for it, for the report.
        name: What the report calls the subject; None: its path, or its type.
        inputs: Further files and folders that are never replaced.
        knobs: Settings of the generator's sampler by name, such as `num_steps`.

    Returns:
        The measurement with `metrics`, `protocol`, `notes` and pictures, on the main process; None
        on the others.

    Raises:
        ValueError: If the arguments do not fit each other; `ProtocolError` if the preset does not
            allow what is asked for.
        DataError: If images cannot be read.
        FileExistsError: If `out` exists and must stay.
        WeightsMissing: If a network has no weights on this machine; names the command.
    """
    check_subject(generator=generator, tokenizer=tokenizer, samples=samples)
    if generator is None and (curves is not None or sampling is not None or knobs):
        raise ValueError("curves and settings of a sampler are only of use with a generator")
    check_repetitions(generator=generator, samples=samples, repeats=repeats, nearest=nearest)
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
        raise ValueError(f"data: protocol {preset.name} does not say which images; name them")
    settings = EvaluationSettings(
        preset=preset,
        data=chosen_data,
        num=num,
        repeats=repeats or 3,
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
        source = open_source(chosen_data, split or "val")
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
            evaluation = evaluate_generator(
                generator,
                source,
                settings,
                name=name or generator.config.type,
                sampling=choose_sampling(generator, sampling, knobs),
                precision=precision,
                compile=compile,
                curves=curves,
                **around,
            )
    if evaluation is not None and out is not None:
        evaluation.write(Path(out), settings, overwrite=overwrite, inputs=places)
    return evaluation


def check_subject(*, generator: object, tokenizer: object, samples: object) -> None:
    """Refuse several subjects, or none; None stands for what was not given.

    Raises:
        ValueError: Naming what may be given.
    """
    if samples is not None and (generator is not None or tokenizer is not None):
        raise ValueError("give one of generator, tokenizer and samples")
    if samples is None and generator is None and tokenizer is None:
        raise ValueError("nothing to measure: give a generator, a tokenizer or samples")


def check_repetitions(
    *, generator: object, samples: object, repeats: int | None, nearest: int | None
) -> None:
    """Refuse repetitions of images that are there, and the nearest images of reconstructions.

    Raises:
        ValueError: If the subject cannot be measured so.
    """
    if samples is not None and (repeats or 1) > 1:
        raise ValueError("repeats: images that are there can be measured once only")
    if samples is None and generator is None and nearest:
        raise ValueError("nearest: reconstructions are near their originals; not for a tokenizer")


def _other_split(data: str, source: ImageSource, split: str) -> ImageSource | None:
    """Another split of the data, if there is one with other images."""
    if source.split == split or isinstance(source, NpzSource):
        return None
    try:
        found = open_source(data, split)
    except DataError:
        return None
    return None if found.fingerprint() == source.fingerprint() else found
