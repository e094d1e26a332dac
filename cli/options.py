"""What every command of `tessella` does alike: errors, output, common options."""

import json
import math
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import torch

    from ..generators.base import Generator
    from ..sample.sampler import Sampling

ATTENTION_BACKENDS = ("auto", "fastest", "sdpa", "plain", "xformers", "low_bit")
LOW_BIT_PRECISIONS = ("int8", "int8_fp8", "fp8")
PRECISIONS = ("auto", "fp32", "bf16")
"""Choices of options. A test compares them with the types that they come from, which need torch."""


def one_clear_error(command: Callable[..., None]) -> Callable[..., None]:
    """Mistakes of the user and refusals of the system as one line on stderr, exit code 1."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            raise click.ClickException("interrupted; nothing half-written was left") from None
        except Exception as error:
            if not _is_clear(error):
                raise
            raise click.ClickException(str(error)) from None

    return wrapped


def _is_clear(error: Exception) -> bool:
    """Whether an error's message is meant for the user."""
    from ..kernels.backends import BackendUnavailable
    from ..metrics.networks.weight_providers import WeightsError

    return isinstance(error, ValueError | OSError | WeightsError | BackendUnavailable)


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


def chosen_device(name: str | None) -> "torch.device":
    """The device asked for, or CUDA where there is one, or the CPU.

    Raises:
        ValueError: If this torch has no such device.
    """
    import torch

    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=chosen).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {chosen}: {str(error).splitlines()[0]}") from None


class NumberList(click.ParamType[list[Any]]):
    """Numbers separated by commas, like 4,8,16.

    Args:
        kind: int or float.
        least: Smallest number allowed.
    """

    name = "list"

    def __init__(self, kind: type[int] | type[float], least: float) -> None:
        self.kind, self.least = kind, least

    def convert(self, value: Any, param: Any, ctx: Any) -> list[Any]:
        """The numbers, or a usage error."""
        if isinstance(value, list):
            return value
        try:
            numbers = [self.kind(word) for word in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r}: expected numbers like 1,2,3", param, ctx)
        if not all(number >= self.least for number in numbers):
            self.fail(f"{value!r}: expected numbers >= {self.least:g}", param, ctx)
        return numbers


class DrawingCommand(click.Command):
    """A command that draws with a generator; its help ends with the settings of every sampler."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the settings that a generator's sampler has, by the generator's type."""
        from .settings_help import sampler_settings

        for types, settings in sampler_settings():
            with formatter.section(f"SETTINGS of {' and '.join(types)} generators, as KEY=VALUE"):
                formatter.write_dl([(f"{s.name}={s.default}", s.about) for s in settings])
        super().format_epilog(ctx, formatter)


COMMON_SETTINGS = ("num_steps", "guidance", "temperature")
"""Settings of every sampler that have an option of their own."""


def sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of every command that draws; the sampler's default to the generator's own."""
    for option in (
        click.argument("settings", nargs=-1, metavar="[KEY=VALUE]..."),
        click.option("--json", "as_json", is_flag=True, help="Machine-readable result on stdout."),
        click.option("--temperature", type=float, help="Temperature of the predictions."),
        click.option("--guidance", type=float, help="Guidance scale; 1 = off."),
        click.option("--num-steps", type=int, help="Number of sampling steps."),
        click.option("--seed", type=click.IntRange(0, 2**62), default=0, show_default=True),
        click.option("--precision", type=click.Choice(PRECISIONS), default="auto"),
        click.option(
            "--low-bit-precision",
            type=click.Choice(LOW_BIT_PRECISIONS),
            help="Products of --attention low_bit.",
        ),
        click.option(
            "--attention",
            type=click.Choice(ATTENTION_BACKENDS),
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


def open_generator(options: dict[str, Any]) -> "tuple[Generator, Sampling]":
    """The generator, and its sampling settings with those of the command line."""
    from ..checkpoints import load_generator

    generator = load_generator(
        options["generator_path"],
        tokenizer=options["tokenizer_path"],
        device=chosen_device(options["device"]),
    )
    choose_attention(generator, options)
    return generator, chosen_sampling(generator, options)


def places_of(generator: "Generator", options: dict[str, Any]) -> list[Path]:
    """Folders on this machine that the generator and its tokenizer were read from."""
    from ..data.path_source import local_places

    path, named = options["generator_path"], (generator.card or {}).get("tokenizer") or {}
    found = local_places(path, options["tokenizer_path"], named.get("path"))
    if local_places(path) and named.get("relative_path"):
        found.append(Path(path) / named["relative_path"])
    return found


def choose_attention(generator: "Generator", options: dict[str, Any]) -> None:
    """Let the generator compute attention as `sampling_options` say, if they do."""
    backend, precision = options["attention"], options["low_bit_precision"]
    if precision is not None and backend not in ("low_bit", "fastest"):
        raise ValueError("--low-bit-precision: only of use with --attention low_bit or fastest")
    if backend is not None:
        generator.set_attention_backend(backend, precision)


def given_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Settings of the sampler on the command line: options, then KEY=VALUE words.

    Raises:
        ValueError: If a word is no KEY=VALUE, or says what an option says.
    """
    from ..config import parse_setting

    found = {name: options[name] for name in COMMON_SETTINGS if options[name] is not None}
    for word in options["settings"]:
        name, value = parse_setting(word)
        if name in found:
            raise ValueError(f"{name}: given twice, as --{name.replace('_', '-')} and as {word}")
        found[name] = value
    return found


def chosen_sampling(generator: "Generator", options: dict[str, Any]) -> "Sampling":
    """The generator's sampling settings with those of the command line.

    Raises:
        ValueError: If the generator's sampler has no such setting, or refuses the value.
    """
    from ..sample.samplers import choose_sampling

    try:
        return choose_sampling(generator, None, given_settings(options))
    except TypeError as error:
        raise ValueError(str(error)) from None


def parse_numbers(option: str, text: str, example: str) -> list[int]:
    """Whole numbers separated by commas.

    Raises:
        ValueError: If they are anything else; shows the example.
    """
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text!r}: expected numbers like {example}") from None
