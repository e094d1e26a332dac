"""Commands of `tessella` as a user types them: shown, run, and stopped together with the demo."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from ..errors import UserError
from ..progress import allows_color, is_quiet
from ..train.command import INTERRUPTED


class CommandStopped(UserError):
    """Raised when Ctrl-C or SIGTERM ended a command, which has then saved what it had."""


class CommandFailed(UserError):
    """Raised when a command ended with an error, of which it has told itself."""


def tell(text: str) -> None:
    """Say how the demo goes, on stderr, unless it is to be quiet."""
    if not is_quiet():
        click.echo(text, err=True)


def tessella(*words: str) -> None:
    """Run a command of `tessella` with this Python, shown first as it would be typed.

    Ctrl-C on a terminal reaches the command as well, SIGTERM is passed on; the command is given the
    time to save.

    Raises:
        CommandStopped: If it was ended by Ctrl-C.
        CommandFailed: If it ended with another status than 0.
    """
    line = f"$ tessella {shlex.join(words)}"
    if is_quiet():
        words = (*words, "--quiet")
    else:
        click.secho(line, bold=True, err=True, color=allows_color())
    command = subprocess.Popen([sys.executable, "-m", "tessella.cli.main", *words])
    with _interrupts(command) as interrupted:
        done = command.wait()
    if interrupted or done == INTERRUPTED:
        raise CommandStopped(f"stopped: {line}")
    if done:
        raise CommandFailed(f"ended with status {done}: {line}")


@contextmanager
def _interrupts(command: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM in a block, collected in place of an interruption."""
    found: list[int] = []

    def note(number: int, frame: Any) -> None:
        found.append(number)
        if number == signal.SIGTERM:  # unlike Ctrl-C, it was sent to this process alone
            command.terminate()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
