"""What every command of `tessella` does alike: errors, output, common options."""

import dataclasses
import json
import math
from collections.abc import Callable
from functools import wraps
from typing import Any, get_args

import click
import torch

from ..checkpoints import load_generator
from ..generators.base import Generator
from ..generators.networks.attention import AttentionBackend
from ..generators.processes.masking import MaskSchedule
from ..kernels.backends import BackendUnavailable
from ..kernels.low_bit_attention.op import LowBitPrecision
from ..metrics.networks.weight_providers import WeightsError
from ..sample.guidance import GuidanceSchedule
from ..sample.samplers import Sampling, choose_sampling, sampler_of


def one_clear_error(command: Callable[..., None]) -> Callable[..., None]:
    """Mistakes of the user and refusals of the system as one line on stderr, exit code 1."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (ValueError, OSError, WeightsError, BackendUnavailable) as error:
            raise click.ClickException(str(error)) from None
        except KeyboardInterrupt:
            raise click.ClickException("interrupted; nothing half-written was left") from None

    return wrapped


def show(result: dict[str, Any], *, as_json: bool) -> None:
    """Print a result for a person or for a program; broken images go to stderr."""
    for name, reason in result.get("broken", {}).items():
        click.echo(f"skipped broken image {name}: {reason}", err=True)
    if as_json:
        text = json.dumps(_finite(result), indent=2, ensure_ascii=False, allow_nan=False)
        click.echo(text.encode("utf-8", "backslashreplace").decode("utf-8"))
        return
    _show_section(result, "")


def _finite(value: Any) -> Any:
    """Numbers that JSON does not know as null."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _show_section(section: dict[str, Any], indent: str) -> None:
    width = max((len(key) for key in section), default=0)
    for key, value in section.items():
        if isinstance(value, dict):
            if value:
                click.echo(f"{indent}{key}:")
                _show_section(value, indent + "  ")
            continue
        text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        if isinstance(value, float):
            text = f"{value:,.0f}" if value.is_integer() else f"{value:.5g}"
        click.echo(f"{indent}{key:<{width}}  {text}")


def tokenizer_option(command: Callable[..., None]) -> Callable[..., None]:
    """--tokenizer, --device, --batch-size and --json, which most commands share."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Machine-readable result on stdout."),
        click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True),
        click.option("--device", help="Torch device [cuda if there is one, else cpu]."),
        click.option(
            "--tokenizer",
            "tokenizer_path",
            required=True,
            help="Model folder, bundled:NAME or hub:owner/name.",
        ),
    ):
        command = option(command)
    return command


def chosen_device(name: str | None) -> torch.device:
    """The device asked for, or CUDA where there is one, or the CPU.

    Raises:
        ValueError: If this torch has no such device.
    """
    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=chosen).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {chosen}: {str(error).splitlines()[0]}") from None


class NumberList(click.ParamType):
    """Numbers separated by commas, like 4,8,16.

    Args:
        kind: int or float.
        least: Smallest number allowed.
    """

    name = "list"

    def __init__(self, kind: type[int] | type[float], least: float) -> None:
        self.kind, self.least = kind, least

    def convert(self, value: Any, param: Any, ctx: Any) -> list[Any]:
        if isinstance(value, list):
            return value
        try:
            numbers = [self.kind(word) for word in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r}: expected numbers like 1,2,3", param, ctx)
        if not all(number >= self.least for number in numbers):
            self.fail(f"{value!r}: expected numbers >= {self.least:g}", param, ctx)
        return numbers


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


def open_generator(options: dict[str, Any]) -> tuple[Generator, Sampling]:
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
        generator.set_attention_backend(backend, precision)


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
