"""Parts that the commands of `tessella` share: errors, output and common options."""

import contextlib
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import clear_message, notes_of, one_line, printable
from ..progress import is_quiet, quiet_option

if TYPE_CHECKING:
    import torch

    from ..generators.base import Generator
    from ..sample.sampler import Sampling

ATTENTION_BACKENDS = ("auto", "fastest", "sdpa", "plain", "xformers", "low_bit")
LOW_BIT_PRECISIONS = ("int8", "int8_fp8", "fp8")
PRECISIONS = ("auto", "fp32", "bf16")
CONDITIONS = ("labels", "captions", "both")
"""Choices of options; a test compares them with the types in modules that import torch."""


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."
)
device_option = click.option("--device", help="Torch device [cuda if there is one, else cpu].")


def one_clear_error(command: Callable[..., None]) -> Callable[..., None]:
    """Turn errors of the user and the system into one line on stderr and exit code 1."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            with _termination_interrupts():
                command(*args, **kwargs)
        except KeyboardInterrupt as error:
            kept = notes_of(error) or ["no incomplete file or folder was left"]
            raise click.ClickException(one_line("; ".join(["interrupted", *kept]))) from None
        except Exception as error:
            if (message := clear_message(error)) is None:
                raise
            raise click.ClickException(message) from None

    return wrapped


@contextlib.contextmanager
def _termination_interrupts() -> Iterator[None]:
    """Let SIGTERM, which schedulers and `kill` send, interrupt the block as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def echo(text: str, *, err: bool = False) -> None:
    """Print text, with control characters of files escaped.

    Once the reader of a pipe has closed it, as `| head` does, nothing more is printed, and that is
    no error: what the command had to do is done.
    """
    try:
        click.echo(printable(text), err=err)
    except BrokenPipeError:
        stream = sys.stderr if err else sys.stdout
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # else flushing at exit would fail again
        os.close(nowhere)


def inform(text: str) -> None:
    """Print a line on stderr that tells what is done; nothing with --quiet."""
    if not is_quiet():
        echo(text, err=True)


def show(result: dict[str, Any], *, as_json: bool) -> None:
    """Print a result as text or as JSON on stdout; broken images and notes go to stderr as well."""
    for note in result.get("notes", []):
        echo(one_line(f"note: {note}"), err=True)
    for name, reason in result.get("broken", {}).items():
        echo(one_line(f"skipped broken image {name}: {reason}"), err=True)
    if as_json:
        echo(json.dumps(_finite(result), indent=2, ensure_ascii=False, allow_nan=False))
        return
    _show_section({name: value for name, value in result.items() if name != "notes"}, "")


def _finite(value: Any) -> Any:
    """The value with numbers that JSON cannot express replaced by None."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _show_section(section: dict[str, Any], indent: str) -> None:
    width = max((len(one_line(key)) for key in section), default=0)
    for key, value in section.items():
        if isinstance(value, dict):
            if value:
                echo(f"{indent}{one_line(key)}:")
                _show_section(value, indent + "  ")
            continue
        text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        if isinstance(value, float):
            text = f"{value:,.0f}" if value.is_integer() else f"{value:.5g}"
        echo(f"{indent}{one_line(key):<{width}}  {one_line(str(text))}")


def tokenizer_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add --tokenizer, --device, --batch-size, --json and --quiet."""
    for option in (
        quiet_option,
        json_option,
        click.option(
            "--batch-size",
            type=click.IntRange(min=1),
            default=32,
            show_default=True,
            help="Number of images processed at once.",
        ),
        device_option,
        click.option(
            "--tokenizer",
            "tokenizer_path",
            required=True,
            help="Tokenizer: a model folder, bundled:NAME or hub:owner/name.",
        ),
    ):
        command = option(command)
    return command


def chosen_device(name: str | None) -> "torch.device":
    """Device of this name; without a name CUDA if there is one, else the CPU.

    Raises:
        ValueError: If torch cannot use the device.
    """
    import torch

    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=chosen).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {chosen}: {str(error).splitlines()[0]}") from None


class NumberList(click.ParamType[list[Any]]):
    """Option type of numbers separated by commas, like 4,8,16.

    Args:
        kind: Type of the numbers, int or float.
        least: Smallest number allowed.
    """

    name = "list"

    def __init__(self, kind: type[int] | type[float], least: float) -> None:
        self.kind, self.least = kind, least

    def convert(self, value: Any, param: Any, ctx: Any) -> list[Any]:
        """Parse the numbers, or fail with a usage error."""
        if isinstance(value, list):
            return value
        try:
            numbers = [self.kind(word) for word in str(value).split(",")]
        except ValueError:
            self.fail(f"found {value!r}, expected numbers like 1,2,3", param, ctx)
        if not all(number >= self.least for number in numbers):
            self.fail(f"found {value!r}, expected numbers >= {self.least:g}", param, ctx)
        return numbers


class WholeNumber(click.ParamType[int]):
    """Option type of a whole number, which may be written like 1e3."""

    name = "integer"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Parse the number, or fail with a usage error."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not number.is_integer() or abs(number) >= 2**53:
            self.fail(f"{value!r} is not a valid integer.", param, ctx)
        return int(number)


class DrawingCommand(click.Command):
    """A command that draws with a generator; its help ends with the settings of every sampler."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the settings of every sampler, under the types of its generators."""
        from .settings_help import sampler_settings

        for types, settings in sampler_settings():
            with formatter.section(f"SETTINGS of {' and '.join(types)} generators, as KEY=VALUE"):
                formatter.write_dl([(f"{s.name}={s.default}", s.about) for s in settings])
        super().format_epilog(ctx, formatter)


COMMON_SETTINGS = ("num_steps", "guidance", "temperature")
"""Settings that every sampler has, each with an option of its own."""


def sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a command that draws; settings not given are the generator's own."""
    for option in (
        click.argument("settings", nargs=-1, metavar="[KEY=VALUE]..."),
        quiet_option,
        json_option,
        click.option(
            "--temperature", type=float, help="Temperature of the predictions [the generator's]."
        ),
        click.option("--guidance", type=float, help="Guidance scale; 1 = off [the generator's]."),
        click.option(
            "--num-steps", type=WholeNumber(), help="Number of sampling steps [the generator's]."
        ),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**62),
            default=0,
            show_default=True,
            help="Seed of the first picture.",
        ),
        click.option(
            "--precision",
            type=click.Choice(PRECISIONS),
            default="auto",
            help="Precision of the network [auto: bf16 on CUDA, fp32 on a CPU].",
        ),
        click.option(
            "--low-bit-precision",
            type=click.Choice(LOW_BIT_PRECISIONS),
            help="Number format of the products in --attention low_bit [the generator's].",
        ),
        click.option(
            "--attention",
            type=click.Choice(ATTENTION_BACKENDS),
            help="Implementation of attention [the generator's].",
        ),
        click.option(
            "--batch-size",
            type=click.IntRange(min=1),
            default=16,
            show_default=True,
            help="Number of pictures drawn at once.",
        ),
        device_option,
    ):
        command = option(command)
    return command


def generator_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --generator, --tokenizer and the options of `sampling_options`."""
    for option in (
        sampling_options,
        click.option(
            "--tokenizer",
            "tokenizer_path",
            help="Its tokenizer [the one that the generator names].",
        ),
        click.option(
            "--generator",
            "generator_path",
            required=True,
            help="Generator: a model folder, bundled:NAME or hub:owner/name.",
        ),
    ):
        command = option(command)
    return command


def open_generator(options: dict[str, Any]) -> "tuple[Generator, Sampling]":
    """Load the generator, and read its sampling settings with those of the command line."""
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
    """Set the generator's attention backend to that of --attention, if given.

    Raises:
        ValueError: If --low-bit-precision is given without a backend that uses it.
    """
    backend, precision = options["attention"], options["low_bit_precision"]
    if precision is not None and backend not in ("low_bit", "fastest"):
        raise ValueError(
            f"--low-bit-precision: expected --attention low_bit or fastest with it, found {backend}"
        )
    if backend is not None:
        generator.set_attention_backend(backend, precision)


def given_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Settings of the sampler on the command line, from options and KEY=VALUE words.

    Raises:
        ValueError: If a word is no KEY=VALUE, or an option gives the same setting.
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
    """Parse whole numbers separated by commas.

    Args:
        option: Name of the option, for the error message.
        text: Text to parse.
        example: Valid text, for the error message.

    Raises:
        ValueError: If the text is anything else.
    """
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text!r}: expected numbers like {example}") from None
