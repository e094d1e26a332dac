"""`tessella sample` and `tessella edit`: pictures from a generator, and pictures edited by one."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click
import torch

from ..checkpoints import load_generator
from ..data.images import save_png
from ..generators.attention import AttentionBackend
from ..generators.base import Generator
from ..generators.mask_schedules import MaskSchedule
from ..generators.masked import MaskedGenerator
from ..kernels.low_bit_attention.op import Precision as LowBitPrecision
from .cli_shared import chosen_device, one_clear_error, show
from .edit import box_mask, read_masked_image, token_mask, variation_mask
from .generate import generate, labels_of
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
)


def _open(options: dict[str, Any]) -> tuple[Generator, Sampling]:
    """The generator, and its sampling settings with those of the command line."""
    generator = load_generator(
        options["generator_path"],
        tokenizer=options["tokenizer_path"],
        device=chosen_device(options["device"]),
    )
    choose_attention(generator, options)
    return generator, chosen_sampling(generator, options)


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
            f"{', '.join(unknown)}: not of a {generator.config.type} generator; it has {there_are}"
        )
    return choose_sampling(generator, None, knobs)


def _option(name: str) -> str:
    """How a setting is called on the command line."""
    return f"--{name.replace('_', '-')}"


def _numbers(option: str, text: str, example: str) -> list[int]:
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
@click.option("--overwrite", is_flag=True, help="Replace what is at --out.")
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
    generator, sampling = _open(options)
    if table:
        if not (isinstance(generator, MaskedGenerator) and isinstance(sampling, SamplingConfig)):
            raise ValueError(f"--table: a {generator.config.type} generator has none")
        click.echo(format_table(table_of(generator, sampling)))
        return
    if labels is not None:
        wanted = _numbers("--labels", labels, "3,7")
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
        name=options["generator_path"],
        processes=processes,
    )
    if result:
        show(result, as_json=options["as_json"])


@click.command()
@generator_options
@click.option("--image", type=click.Path(path_type=Path), required=True, help="Picture to edit.")
@click.option(
    "--mask", "mask_path", type=click.Path(path_type=Path), help="Light or transparent = draw anew."
)
@click.option("--box", help="LEFT,TOP,RIGHT,BOTTOM in pixels of the tokenizer's resolution.")
@click.option("--outside", is_flag=True, help="Draw anew what --box leaves out: outpainting.")
@click.option("--variation", type=float, help="Share of random positions to draw anew.")
@click.option("--label", type=int, help="Class of the result [none].")
@click.option("--class", "class_", help="The same by name.")
@click.option("--num", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--paste", is_flag=True, help="Keep the picture's own pixels outside the mask.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="PNG to write.")
@click.option("--overwrite", is_flag=True, help="Replace what is at --out.")
@one_clear_error
def edit(
    image: Path,
    mask_path: Path | None,
    box: str | None,
    outside: bool,
    variation: float | None,
    label: int | None,
    class_: str | None,
    num: int,
    paste: bool,
    out: Path,
    overwrite: bool,
    **options: Any,
) -> None:
    """Draw parts of --image anew; with --num, NAME-0.png, NAME-1.png and so on."""
    if sum(given is not None for given in (mask_path, box, variation)) != 1:
        raise ValueError("give one of --mask, --box and --variation: what to draw anew")
    if label is not None and class_ is not None:
        raise ValueError("give --label or --class, not both")
    if outside and box is None:
        raise ValueError("--outside goes with --box")
    if paste and variation is not None:
        raise ValueError("--paste goes with --mask or --box, not with --variation")
    files = [out] if num == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(num)]
    for file in files:
        if file.is_dir() or (file.exists() and not overwrite):
            raise FileExistsError(f"{file} exists already; choose another name or --overwrite it")
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out {out}: expected the name of a .png file")
    generator, sampling = _open(options)
    tokenizer, spec = generator.tokenizer, generator.spec
    pixels, mask = read_masked_image(image, mask_path, tokenizer.resolution)
    seeds = torch.arange(options["seed"], options["seed"] + num)
    if box is not None:
        corners = _numbers("--box", box, "0,0,32,16")
        if len(corners) != 4:
            raise ValueError(f"--box {box!r}: expected LEFT,TOP,RIGHT,BOTTOM")
        left, top, right, bottom = corners
        mask = box_mask((left, top, right, bottom), tokenizer.resolution, outside=outside)
    if variation is not None:
        hidden = variation_mask(seeds, spec, variation)
    else:
        assert mask is not None
        hidden = token_mask(mask, spec)[None].expand(num, -1)
    chosen = labels_of(generator, [class_])[0] if class_ is not None else label
    known = tokenizer.encode(pixels[None].to(tokenizer.device))
    tokens = generate(
        generator,
        None if chosen is None else [chosen] * num,
        seeds=seeds,
        sampling=sampling,
        known=known,
        mask=hidden,
        batch_size=options["batch_size"],
        precision=options["precision"],
    )
    size = options["batch_size"]
    parts = [tokenizer.decode(tokens[i : i + size]).cpu() for i in range(0, num, size)]
    pictures = torch.cat(parts)
    if paste and mask is not None:
        pictures = torch.where(mask, pictures, pixels)
    for file, picture in zip(files, pictures, strict=True):
        save_png(picture, file)
    kept = ~hidden.to(tokens.device)
    same = (tokens.indices == known.indices).all(-1)
    result = {
        "files": [str(file) for file in files],
        "positions": spec.num_tokens,
        "drawn_anew": int(hidden.sum(1).float().mean().round()),
        "known_unchanged": bool(same[kept].all()),
        "label": chosen,
    }
    show(result, as_json=options["as_json"])
