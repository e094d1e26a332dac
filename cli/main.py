"""The command `tessella`: it parses, loads, calls and prints; the work is done elsewhere."""

import sys

import click

from .._version import __version__
from .bits import bits
from .compare import compare
from .data import data
from .edit import edit
from .encode import decode, encode, reconstruct
from .evaluate import evaluate, verify
from .import_command import import_command
from .info import describe
from .options import one_clear_error, show
from .probe import probe
from .sample import sample


@click.group()
@click.version_option(__version__, prog_name="tessella")
def main() -> None:
    """Discrete-token image generation: images to tokens and back."""


@main.command()
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable result on stdout.")
@one_clear_error
def info(path: str, as_json: bool) -> None:
    """Say what PATH holds: a model folder, a token store, a token file or a run."""
    show(describe(path), as_json=as_json)


main.add_command(encode)
main.add_command(decode)
main.add_command(reconstruct)
main.add_command(data)
main.add_command(sample)
main.add_command(edit)
main.add_command(evaluate)
main.add_command(compare)
main.add_command(verify)
main.add_command(bits)
main.add_command(import_command)
main.add_command(probe)


if __name__ == "__main__":
    sys.exit(main())
