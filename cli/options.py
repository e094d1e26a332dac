"""What every command of `tessella` does alike: errors, output, common options."""

import json
import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import click
import torch

from ..kernels.backends import BackendUnavailable
from .metrics.weight_providers import WeightsError


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
