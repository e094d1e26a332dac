"""The command `tessella`: it parses, loads, calls and prints; the work is done elsewhere.

A verb's module is imported when that verb is called, and loads torch only when it runs, so that
every `--help` answers at once.
"""

import importlib
import sys

import click

from .._version import __version__

COMMANDS = {
    "bits": ("bits", "Bits that the tokens of images need under a generator."),
    "compare": ("compare", "Compare reports of one protocol."),
    "data": ("data", "Get data sets and weights of feature networks."),
    "decode": ("encode", "Decode a token store to PNG files."),
    "edit": ("edit", "Draw parts of a picture anew."),
    "encode": ("encode", "Encode images to a token store."),
    "evaluate": ("evaluate", "Measure a generator, a tokenizer or samples."),
    "import": ("import_command", "Turn a public checkpoint into a model folder."),
    "info": ("info", "Say what a path holds."),
    "probe": ("probe", "Train a linear classifier on features of a generator."),
    "reconstruct": ("encode", "Encode and decode images, measured, as PNG files."),
    "sample": ("sample", "Draw pictures."),
    "verify": ("verify", "Check that a tokenizer still reconstructs as it did."),
}
"""Module of each verb in this folder, and the line that `tessella --help` says of it."""


class LazyGroup(click.Group):
    """A group that imports a verb's module when the verb is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all verbs, in the order of the alphabet."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a verb, imported now; None if there is no such verb."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".{COMMANDS[cmd_name][0]}", __package__)
        name = "import_command" if cmd_name == "import" else cmd_name
        command: click.Command = getattr(module, name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of verbs without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in sorted(COMMANDS)])


@click.group(cls=LazyGroup)
@click.version_option(__version__, prog_name="tessella")
def main() -> None:
    """Discrete-token image generation: images to tokens and back."""


if __name__ == "__main__":
    sys.exit(main())
