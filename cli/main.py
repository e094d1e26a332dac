"""The command `tessella`; its modules parse arguments, call the library and print results.

The module of a command is imported when that command is called, and imports torch only when it
runs, so that every `--help` answers at once.
"""

import importlib
import sys

import click

from .._version import __version__
from ..progress import allows_color

COMMANDS = {
    "bits": ("bits", "Measure bits per dimension of a generator."),
    "compare": ("compare", "Compare reports of one protocol."),
    "config": ("config_command", "List the keys of training configs."),
    "data": ("data", "Get data sets and weights of feature networks."),
    "decode": ("encode", "Decode tokens to PNG files."),
    "demo": ("demo", "Serve a page in the browser to draw, edit and look at tokens."),
    "edit": ("edit", "Draw parts of a picture anew."),
    "encode": ("encode", "Encode images to a token store."),
    "evaluate": ("evaluate", "Measure a generator, a tokenizer or samples."),
    "import": ("import_command", "Convert a public checkpoint to a model folder."),
    "info": ("info", "Describe a model folder, a token store, a token file or a run."),
    "models": ("models", "List the models that ship with tessella."),
    "probe": ("probe", "Train a linear classifier on features of a generator."),
    "reconstruct": ("encode", "Measure and write reconstructions of images."),
    "sample": ("sample", "Draw pictures."),
    "store": ("store", "Join token stores, and exchange them with other programs."),
    "train": ("train", "Train a tokenizer or a generator in one process."),
    "verify": ("verify", "Check that a model is intact and still reconstructs as measured."),
}
"""Module in this folder and line in `tessella --help` of each command."""


class LazyGroup(click.Group):
    """A group that imports the module of a command when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, in alphabetical order."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".{COMMANDS[cmd_name][0]}", __package__)
        name = "import_command" if cmd_name == "import" else cmd_name
        command: click.Command = getattr(module, name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in sorted(COMMANDS)])


@click.group(cls=LazyGroup)
@click.version_option(__version__, prog_name="tessella")
@click.pass_context
def main(context: click.Context) -> None:
    """Image tokenizers and generators of discrete tokens."""
    context.color = allows_color()


if __name__ == "__main__":
    sys.exit(main())
