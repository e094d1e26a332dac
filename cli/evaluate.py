"""`tessella evaluate` and `tessella verify`: numbers under a protocol, and proof of a tokenizer."""

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from ..checkpoints import load_generator, load_tokenizer
from ..collectives import join_processes
from ..data.image_source import DataError, ImageSource
from ..data.npz_source import NpzSource
from ..data.path_source import local_places
from ..data.sources import open_source
from ..evaluation.curves import Curves
from ..evaluation.evaluation import Evaluation
from ..evaluation.given_images import evaluate_images
from ..evaluation.reconstructions import evaluate_tokenizer
from ..evaluation.report.charts import require_charts
from ..evaluation.samples import evaluate_generator
from ..evaluation.settings import EvaluationSettings, check_out
from ..metrics.presets import PRESETS, find_preset
from ..sample.samples import open_samples
from ..tokenizers.probe import TOLERANCE_DB
from . import verify as verification
from .options import (
    SAMPLING_KNOBS,
    NumberList,
    choose_attention,
    chosen_device,
    chosen_sampling,
    one_clear_error,
    sampling_options,
    show,
)


@click.command()
@click.option("--generator", "generator_path", help="Model folder, bundled:NAME or hub:owner/name.")
@click.option("--tokenizer", "tokenizer_path", help="To be measured, or that of --generator.")
@click.option("--samples", help="Images that are already there: a folder, tars, or an .npz.")
@click.option("--data", help="Real images, e.g. bundled:emoji [the protocol's].")
@click.option("--split", help="Split of --data [val for --tokenizer, else the protocol's].")
@click.option(
    "--protocol",
    "protocol_name",
    default="bundled",
    show_default=True,
    help=f"One of {', '.join(PRESETS)}.",
)
@click.option("--num", type=click.IntRange(min=1), help="Images per repetition [the protocol's].")
@click.option("--repeats", type=click.IntRange(min=1), help="Repetitions with other seeds.  [3]")
@click.option("--features", help="Another network of the distances: another protocol.")
@click.option("--curve-steps", type=NumberList(int, 1), help="Measure over steps too, e.g. 4,8,16.")
@click.option("--curve-guidance", type=NumberList(float, 0), help="And over guidance, e.g. 1,2,3.")
@click.option("--curve-num", type=int, default=1000, show_default=True, help="Samples at a point.")
@click.option(
    "--nearest",
    type=click.IntRange(min=0),
    help="Samples whose nearest training images are looked for.  [128]",
)
@click.option("--no-cache", is_flag=True, help="Look at the reference images anew.")
@sampling_options
@click.option("--compile", is_flag=True, help="Run the network through torch.compile.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to make.")
@click.option("--overwrite", is_flag=True, help="Replace what tessella wrote at --out.")
@one_clear_error
def evaluate(
    generator_path: str | None,
    tokenizer_path: str | None,
    samples: str | None,
    data: str | None,
    split: str | None,
    protocol_name: str,
    num: int | None,
    repeats: int | None,
    features: str | None,
    curve_steps: list[int] | None,
    curve_guidance: list[float] | None,
    curve_num: int,
    nearest: int | None,
    no_cache: bool,
    compile: bool,
    out: Path,
    overwrite: bool,
    **options: Any,
) -> None:
    """Measure a generator, a tokenizer or --samples; write report.html and report.json.

    Numbers carry the id of their protocol; those of different ids are never compared.
    """
    drawing = {f"--{name.replace('_', '-')}": options[name] for name in SAMPLING_KNOBS}
    drawing |= {"--curve-steps": curve_steps, "--curve-guidance": curve_guidance}
    drawing |= {"--compile": compile or None, "--attention": options["attention"]}
    drawing |= {"--low-bit-precision": options["low_bit_precision"]}
    given = [name for name, value in drawing.items() if value is not None]
    if samples is not None and (generator_path or tokenizer_path):
        raise ValueError("give one of --generator, --tokenizer and --samples")
    if not (samples or generator_path or tokenizer_path):
        raise ValueError("nothing to measure: give --generator, --tokenizer or --samples")
    if generator_path is None and given:
        raise ValueError(f"{', '.join(given)}: only of use with --generator")
    if samples is not None and (repeats or 1) > 1:
        raise ValueError("--repeats: images that are there can be measured once only")
    if samples is None and generator_path is None and nearest:
        raise ValueError(
            "--nearest: reconstructions are near their originals; not with --tokenizer"
        )
    inputs = local_places(generator_path, tokenizer_path, samples, data)
    check_out(out, overwrite=overwrite, inputs=inputs)
    wants_curves = bool(curve_steps or curve_guidance)
    if wants_curves:
        require_charts()
    preset = find_preset(protocol_name)
    chosen_data = data or preset.data
    if chosen_data is None:
        raise ValueError(f"--data: protocol {preset.name} does not say which images; name them")
    device = chosen_device(options["device"])
    settings = EvaluationSettings(
        preset=preset,
        data=chosen_data,
        num=num,
        repeats=repeats or 3,
        seed=options["seed"],
        batch_size=options["batch_size"],
        features=features,
        device=device,
        processes=join_processes(),
        cache=not no_cache,
        command=shlex.join(["tessella", *sys.argv[1:]]),
    )
    evaluation: Evaluation | None
    if samples is None and generator_path is None:
        assert tokenizer_path is not None
        source = open_source(chosen_data, split or "val")
        tokenizer = load_tokenizer(tokenizer_path, device=device)
        evaluation = evaluate_tokenizer(tokenizer, source, settings, name=tokenizer_path)
    else:
        source = open_source(chosen_data, split or preset.reference_split)
        validation = _other_split(chosen_data, source, "val")
        training = _other_split(chosen_data, source, "train")
        num_nearest = 128 if nearest is None else nearest
        if samples is not None:
            evaluation = evaluate_images(
                open_samples(samples),
                source,
                settings,
                name=samples,
                validation=validation,
                training=training,
                num_nearest=num_nearest,
            )
        else:
            assert generator_path is not None
            generator = load_generator(generator_path, tokenizer=tokenizer_path, device=device)
            choose_attention(generator, options)
            curves = Curves(
                num_steps=tuple(curve_steps or ()),
                guidance=tuple(curve_guidance or ()),
                num=curve_num,
            )
            evaluation = evaluate_generator(
                generator,
                source,
                settings,
                name=generator_path,
                validation=validation,
                training=training,
                sampling=chosen_sampling(generator, options),
                precision=options["precision"],
                compile=compile,
                curves=curves if wants_curves else None,
                num_nearest=num_nearest,
            )
    if evaluation is None:  # another process writes
        return
    report = evaluation.write(out, settings, overwrite=overwrite, inputs=inputs)
    if options["as_json"]:
        show(report, as_json=True)
        return
    values = {
        name: str(value).removeprefix(f"{name} ") for name, value in evaluation.metrics.items()
    }
    show(
        {
            "report": str(out / "report.html"),
            "protocol": evaluation.protocol.id,
            "metrics": values,
            "broken": evaluation.broken,
        },
        as_json=False,
    )
    for note in evaluation.notes:
        click.echo(f"note: {note}", err=True)


@click.command()
@click.argument("path")
@click.option("--device", help="Torch device [cuda if there is one, else cpu].")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=TOLERANCE_DB,
    show_default=True,
    help="In dB.",
)
@click.option("--store", is_flag=True, help="First store images with the PSNR they reach now.")
@click.option("--overwrite", is_flag=True, help="Let --store replace images that are there.")
@click.option("--data", default=verification.DEFAULT_DATA, show_default=True, help="For --store.")
@click.option("--split", default="val", show_default=True, help="Of --data.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable result on stdout.")
@one_clear_error
def verify(
    path: str,
    device: str | None,
    tolerance: float,
    store: bool,
    overwrite: bool,
    data: str,
    split: str,
    as_json: bool,
) -> None:
    """Reconstruct the images stored in the tokenizer folder PATH and compare the PSNR."""
    chosen = chosen_device(device)
    if store:
        verification.store(path, data=data, split=split, device=chosen, overwrite=overwrite)
    show(verification.verify(path, device=chosen, tolerance_db=tolerance), as_json=as_json)


def _other_split(data: str, source: ImageSource, split: str) -> ImageSource | None:
    """Another split of the data, if there is one with other images."""
    if source.split == split or isinstance(source, NpzSource):
        return None
    try:
        found = open_source(data, split)
    except DataError:
        return None
    return None if found.fingerprint() == source.fingerprint() else found
