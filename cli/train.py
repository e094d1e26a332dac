"""`tessella train tokenizer` and `tessella train generator`: the training scripts, in one process.

They do what `accelerate launch train/tokenizer.py` does, without the launcher: its traceback after
every error and every Ctrl-C is not there, and the exit status is that of the run. Several processes
need a launcher.
"""

import importlib

import click

SCRIPTS = {
    "generator": "Train a generator on the tokens of a tokenizer.",
    "tokenizer": "Train a tokenizer on images.",
}
"""Line in the help of each script."""


class ScriptGroup(click.Group):
    """A group that imports a training script when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the scripts."""
        return list(SCRIPTS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a script; None if there is none of this name."""
        if cmd_name not in SCRIPTS:
            return None
        command: click.Command = importlib.import_module(f"..train.{cmd_name}", __package__).main
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of scripts without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SCRIPTS.items()))


@click.group(cls=ScriptGroup)
def train() -> None:
    """Train a tokenizer or a generator in one process."""
