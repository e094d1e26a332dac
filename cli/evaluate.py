"""`tessella evaluate`: measurement under a protocol, with a report."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import (
    COMMON_SETTINGS,
    CONDITIONS,
    DrawingCommand,
    NumberList,
    choose_attention,
    chosen_device,
    chosen_sampling,
    one_clear_error,
    sampling_options,
    show,
)

if TYPE_CHECKING:
    from ..generators.base import Generator
    from ..sample.sampler import Sampling


@click.command(cls=DrawingCommand)
@click.option(
    "--generator",
    "generator_path",
    help="Generator to measure: a model folder, bundled:NAME or hub:owner/name.",
)
@click.option("--tokenizer", "tokenizer_path", help="Tokenizer to measure, or that of --generator.")
@click.option("--samples", help="Existing images to measure: a folder, tars, or an .npz.")
@click.option("--data", help="Data source of real images, e.g. bundled:emoji [the protocol's].")
@click.option("--split", help="Split of --data [val for --tokenizer, else the protocol's].")
@click.option(
    "--protocol",
    "protocol_name",
    default="bundled",
    show_default=True,
    help="Protocol: bundled, val-paired, adm-256 or torch-fidelity.",
)
@click.option(
    "--num", type=click.IntRange(min=1), help="Number of images per repetition [the protocol's]."
)
@click.option(
    "--repeats", type=click.IntRange(min=1), help="Number of repetitions with other seeds [3]."
)
@click.option(
    "--features", help="Network of the distances, which makes another protocol [the protocol's]."
)
@click.option(
    "--curve-steps",
    type=NumberList(int, 1),
    help="Numbers of steps to measure as well, e.g. 4,8,16 [none].",
)
@click.option(
    "--curve-guidance",
    type=NumberList(float, 0),
    help="Guidance scales to measure as well, e.g. 1,2,3 [none].",
)
@click.option(
    "--curve-num",
    type=int,
    default=1000,
    show_default=True,
    help="Number of samples per point of a curve.",
)
@click.option(
    "--nearest",
    type=click.IntRange(min=0),
    help="Number of samples whose nearest training images are found [128].",
)
@click.option(
    "--conditions",
    type=click.Choice(CONDITIONS),
    help="What samples are asked by: the protocol's labels, captions of the real images, or both "
    "[captions if the generator reads text, else labels].",
)
@click.option("--no-cache", is_flag=True, help="Compute the statistics of reference images again.")
@sampling_options
@click.option("--compile", is_flag=True, help="Run the network through torch.compile.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to create.")
@click.option("--overwrite", is_flag=True, help="Replace a report of tessella's at --out.")
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
    conditions: Any,
    no_cache: bool,
    compile: bool,
    out: Path,
    overwrite: bool,
    **options: Any,
) -> None:
    """Measure a generator, a tokenizer or --samples; write report.html and report.json.

    Every value has the id of its protocol, and values of different ids are never compared. Settings
    of the generator's sampler are given as KEY=VALUE; they are listed below.
    """
    drawing = {f"--{name.replace('_', '-')}": options[name] for name in COMMON_SETTINGS}
    drawing |= {"--curve-steps": curve_steps, "--curve-guidance": curve_guidance}
    drawing |= {"--conditions": conditions, "--compile": compile or None}
    drawing |= {"--attention": options["attention"]}
    drawing |= {"--low-bit-precision": options["low_bit_precision"]}
    given = [name for name, value in drawing.items() if value is not None] + [*options["settings"]]
    from ..collectives import join_processes
    from ..evaluation.curves import Curves
    from ..evaluation.evaluate import evaluate as measure

    if generator_path is None and given:
        raise ValueError(f"{', '.join(given)}: only of use with --generator, which is not given")
    curves = None
    if curve_steps or curve_guidance:
        steps, scales = tuple(curve_steps or ()), tuple(curve_guidance or ())
        curves = Curves(num_steps=steps, guidance=scales, num=curve_num)

    def prepared(generator: "Generator") -> "Sampling":
        choose_attention(generator, options)
        return chosen_sampling(generator, options)

    evaluation = measure(
        generator=generator_path,
        tokenizer=tokenizer_path,
        samples=samples,
        data=data,
        split=split,
        protocol=protocol_name,
        num=num,
        repeats=repeats,
        features=features,
        curves=curves,
        nearest=nearest,
        conditions=conditions,
        sampling=None if generator_path is None else prepared,
        seed=options["seed"],
        batch_size=options["batch_size"],
        precision=options["precision"],
        compile=compile,
        device=chosen_device(options["device"]),
        processes=join_processes(),
        cache=not no_cache,
        out=out,
        overwrite=overwrite,
        command=shlex.join(["tessella", *sys.argv[1:]]),
    )
    if evaluation is None:  # the main process prints
        return
    if options["as_json"]:
        show(evaluation.written, as_json=True)
        return
    values = {
        name: str(value).removeprefix(f"{name} ") for name, value in evaluation.metrics.items()
    }
    show(
        {
            "report": str(out / "report.html"),
            "protocol": evaluation.protocol.id,
            "metrics": values,
            "notes": evaluation.notes,
            "broken": evaluation.broken,
        },
        as_json=False,
    )
