"""`tessella evaluate` and `tessella verify`: numbers under a protocol, and proof of a tokenizer."""

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from ..checkpoints import load_generator, load_tokenizer
from ..data.image_source import DataError, ImageSource
from ..data.sources import open_source
from ..tokenizers.probe import TOLERANCE_DB
from . import verify as verification
from .charts import require_charts
from .cli_sample import chosen_sampling, sampling_options
from .cli_shared import NumberList, chosen_device, one_clear_error, show
from .evaluate_reconstructions import evaluate_tokenizer
from .evaluate_samples import Curves, evaluate_generator, evaluate_images
from .evaluation import Evaluation, EvaluationSettings
from .metrics.protocol import PRESETS, find_preset
from .sample_folder import join_processes, open_samples


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
@click.option("--num", type=int, help="Images per repetition [the protocol's].")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--features", help="Another network of the distances: another protocol.")
@click.option("--curve-steps", type=NumberList(int, 1), help="Measure over steps too, e.g. 4,8,16.")
@click.option("--curve-guidance", type=NumberList(float, 0), help="And over guidance, e.g. 1,2,3.")
@click.option("--curve-num", type=int, default=1000, show_default=True, help="Samples at a point.")
@click.option(
    "--nearest",
    type=click.IntRange(min=0),
    default=128,
    show_default=True,
    help="Samples whose nearest training images are looked for.",
)
@click.option("--no-cache", is_flag=True, help="Look at the reference images anew.")
@sampling_options
@click.option("--compile", is_flag=True, help="Run the network through torch.compile.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to make.")
@click.option("--overwrite", is_flag=True, help="Replace what is at --out.")
@one_clear_error
def evaluate(
    generator_path: str | None,
    tokenizer_path: str | None,
    samples: str | None,
    data: str | None,
    split: str | None,
    protocol_name: str,
    num: int | None,
    repeats: int,
    features: str | None,
    curve_steps: list[int] | None,
    curve_guidance: list[float] | None,
    curve_num: int,
    nearest: int,
    no_cache: bool,
    compile: bool,
    out: Path,
    overwrite: bool,
    **options: Any,
) -> None:
    """Measure a generator, a tokenizer or --samples; write report.html and report.json.

    Numbers carry the id of their protocol; those of different ids are never compared.
    """
    if samples is not None and (generator_path or tokenizer_path):
        raise ValueError("give one of --generator, --tokenizer and --samples")
    if not (samples or generator_path or tokenizer_path):
        raise ValueError("nothing to measure: give --generator, --tokenizer or --samples")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists already; choose another name or --overwrite it")
    wants_curves = bool(curve_steps or curve_guidance)
    if wants_curves and generator_path is None:
        raise ValueError("--curve-steps and --curve-guidance go with --generator")
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
        repeats=repeats,
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
        validation = _validation(chosen_data, source)
        if samples is not None:
            evaluation = evaluate_images(
                open_samples(samples),
                source,
                settings,
                name=samples,
                validation=validation,
                num_nearest=nearest,
            )
        else:
            assert generator_path is not None
            generator = load_generator(generator_path, tokenizer=tokenizer_path, device=device)
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
                sampling=chosen_sampling(generator, options),
                precision=options["precision"],
                compile=compile,
                curves=curves if wants_curves else None,
                num_nearest=nearest,
            )
    if evaluation is None:  # another process writes
        return
    report = evaluation.write(out, settings, overwrite=overwrite)
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
@click.option("--tolerance", type=float, default=TOLERANCE_DB, show_default=True, help="In dB.")
@click.option("--store", is_flag=True, help="First store images with the PSNR they reach now.")
@click.option("--data", default=verification.DEFAULT_DATA, show_default=True, help="For --store.")
@click.option("--split", default="val", show_default=True, help="Of --data.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable result on stdout.")
@one_clear_error
def verify(
    path: str,
    device: str | None,
    tolerance: float,
    store: bool,
    data: str,
    split: str,
    as_json: bool,
) -> None:
    """Reconstruct the images stored in the tokenizer folder PATH and compare the PSNR."""
    chosen = chosen_device(device)
    if store:
        verification.store(path, data=data, split=split, device=chosen)
    show(verification.verify(path, device=chosen, tolerance_db=tolerance), as_json=as_json)


def _validation(data: str, source: ImageSource) -> ImageSource | None:
    """Real images besides the reference, if the data set has any."""
    if source.split == "val":
        return None
    try:
        found = open_source(data, "val")
    except DataError:
        return None
    return None if found.fingerprint() == source.fingerprint() else found
