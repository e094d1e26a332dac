"""`tessella sample`: pictures from a generator; and the options of every command that draws."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from ..checkpoints import load_generator
from ..data.path_source import local_places
from ..generators.attention import AttentionBackend
from ..generators.base import Generator
from ..generators.mask_schedules import MaskSchedule
from ..generators.masked import MaskedGenerator
from ..kernels.low_bit_attention.op import Precision as LowBitPrecision
from .cli_shared import chosen_device, one_clear_error, show
from .generate import labels_of
from .guidance import GuidanceSchedule
from .processes import join_processes
from .sample_folder import sample_to_folder
from .samplers import Sampling, choose_sampling, sampler_of, table_of
from .sampling import SamplingConfig, format_table


def sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of every command that draws; the sampler's default to the generator's own."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Machine-readable result on stdout."),
        click.option("--randomness-schedule", help="Of a bigr generator: constant, down or up."),
        click.option("--confidence", help="Order of a bigr generator: linear or entropy."),
        click.option("--head-steps", type=int, help="Steps of a bigr generator's head."),
        click.option(
            "--final", help="Last step where bits are diffused: sample, reference, map, mode ..."
        ),
        click.option("--top-p", type=float, help="Of an ar generator: likeliest codes, by share."),
        click.option("--top-k", type=int, help="Of an ar generator: likeliest codes, by number."),
        click.option("--randomness", type=float, help="Gumbel noise on the order, in nats."),
        click.option(
            "--temperature", type=float, help="0 takes the likeliest entry (masked ones)."
        ),
        click.option("--guidance-power", type=float),
        click.option("--guidance-schedule", type=click.Choice(get_args(GuidanceSchedule))),
        click.option("--guidance", type=float, help="Guidance scale; 1 = off."),
        click.option("--schedule", type=click.Choice(get_args(MaskSchedule))),
        click.option("--num-steps", type=int, help="Sampling steps."),
        click.option("--sampler", type=click.Choice(["confidence", "halton", "entropy"])),
        click.option("--seed", type=click.IntRange(0, 2**62), default=0, show_default=True),
        click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto"),
        click.option(
            "--low-bit-precision",
            type=click.Choice(get_args(LowBitPrecision)),
            help="Of --attention low_bit.",
        ),
        click.option(
            "--attention",
            type=click.Choice(get_args(AttentionBackend)),
            help="How attention is computed [as the generator's config says].",
        ),
        click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True),
        click.option("--device", help="Torch device [cuda if there is one, else cpu]."),
    ):
        command = option(command)
    return command


def generator_options(command: Callable[..., None]) -> Callable[..., None]:
    """The generator, its tokenizer, and how to draw."""
    for option in (
        sampling_options,
        click.option("--tokenizer", "tokenizer_path", help="[the one that the generator names]"),
        click.option(
            "--generator",
            "generator_path",
            required=True,
            help="Model folder, bundled:NAME or hub:owner/name.",
        ),
    ):
        command = option(command)
    return command


SAMPLING_KNOBS = (
    "sampler",
    "num_steps",
    "schedule",
    "guidance",
    "guidance_schedule",
    "guidance_power",
    "temperature",
    "randomness",
    "final",
    "head_steps",
    "confidence",
    "randomness_schedule",
    "top_k",
    "top_p",
)


def open_generator(options: dict[str, Any]) -> tuple[Generator, Sampling]:
    """The generator, and its sampling settings with those of the command line."""
    generator = load_generator(
        options["generator_path"],
        tokenizer=options["tokenizer_path"],
        device=chosen_device(options["device"]),
    )
    choose_attention(generator, options)
    return generator, chosen_sampling(generator, options)


def places_of(generator: Generator, options: dict[str, Any]) -> list[Path]:
    """Folders on this machine that the generator and its tokenizer were read from."""
    path, named = options["generator_path"], (generator.card or {}).get("tokenizer") or {}
    found = local_places(path, options["tokenizer_path"], named.get("path"))
    if local_places(path) and named.get("relative_path"):
        found.append(Path(path) / named["relative_path"])
    return found


def choose_attention(generator: Generator, options: dict[str, Any]) -> None:
    """Let the generator compute attention as `sampling_options` say, if they do."""
    backend, precision = options["attention"], options["low_bit_precision"]
    if precision is not None and backend not in ("low_bit", "fastest"):
        raise ValueError("--low-bit-precision: only of use with --attention low_bit or fastest")
    if backend is not None:
        generator.use_attention(backend, precision)


def chosen_sampling(generator: Generator, options: dict[str, Any]) -> Sampling:
    """The generator's sampling settings with those of `sampling_options`."""
    knobs = {name: options[name] for name in SAMPLING_KNOBS if options[name] is not None}
    names = [field.name for field in dataclasses.fields(sampler_of(generator).settings)]
    unknown = [_option(name) for name in knobs if name not in names]
    if unknown:
        there_are = ", ".join(_option(name) for name in SAMPLING_KNOBS if name in names)
        raise ValueError(
            f"{', '.join(unknown)}: not for generators of type {generator.config.type}; they have "
            f"{there_are}"
        )
    return choose_sampling(generator, None, knobs)


def _option(name: str) -> str:
    """How a setting is called on the command line."""
    return f"--{name.replace('_', '-')}"


def parse_numbers(option: str, text: str, example: str) -> list[int]:
    """Whole numbers separated by commas.

    Raises:
        ValueError: If they are anything else; shows the example.
    """
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text!r}: expected numbers like {example}") from None


@click.command()
@generator_options
@click.option("--labels", help="Classes by number, e.g. 3,7; repeated until --num is reached.")
@click.option("--classes", help="The same by name, e.g. 'face,animal'. [every class in turn]")
@click.option("--num", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--compile", is_flag=True, help="Run the network through torch.compile.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--overwrite", is_flag=True, help="Replace what tessella wrote at --out.")
@click.option("--table", is_flag=True, help="Print what each step does, and stop.")
@one_clear_error
def sample(
    labels: str | None,
    classes: str | None,
    num: int,
    compile: bool,
    out: Path | None,
    overwrite: bool,
    table: bool,
    **options: Any,
) -> None:
    """Draw --num pictures; image i has seed --seed + i."""
    if labels is not None and classes is not None:
        raise ValueError("give --labels or --classes, not both")
    if out is None and not table:
        raise ValueError("--out: no folder given for the pictures")
    processes = join_processes()
    generator, sampling = open_generator(options)
    if table:
        if not (isinstance(generator, MaskedGenerator) and isinstance(sampling, SamplingConfig)):
            raise ValueError(f"--table: generators of type {generator.config.type} have none")
        click.echo(format_table(table_of(generator, sampling)))
        return
    if labels is not None:
        wanted = parse_numbers("--labels", labels, "3,7")
    elif classes is not None:
        wanted = labels_of(generator, classes.split(","))
    else:
        wanted = list(range(generator.num_classes)) or [-1]
    assert out is not None
    result = sample_to_folder(
        generator,
        out,
        labels=[wanted[i % len(wanted)] for i in range(num)],
        seeds=[options["seed"] + i for i in range(num)],
        sampling=sampling,
        batch_size=options["batch_size"],
        precision=options["precision"],
        compile=compile,
        overwrite=overwrite,
        inputs=places_of(generator, options),
        name=options["generator_path"],
        processes=processes,
    )
    if result:
        show(result, as_json=options["as_json"])
