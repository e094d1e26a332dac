"""Command line of the training scripts, and the messages of a run."""

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click
from tqdm import tqdm

from ..config import load_config, to_dict
from ..errors import clear_message, printable
from .health import Alarm
from .run_folder import RunFolder

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells count it: later commands of a script must not start."""

C = TypeVar("C", contravariant=True)


class Train(Protocol[C]):
    """A training: returns the final measurements, or None if it was interrupted."""

    def __call__(
        self, config: C, out: Path, *, resume: bool, command: str
    ) -> dict[str, Any] | None:
        """Run or resume a training.

        Args:
            config: Settings of the run.
            out: Run folder.
            resume: Whether to continue the run in that folder.
            command: Command that started the run, without --resume.
        """
        ...


def training_options(default_config: Path) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options and arguments that every training script takes."""

    def add(script: Callable[..., None]) -> Callable[..., None]:
        for option in (
            click.argument("overrides", nargs=-1),
            click.option("--resume", is_flag=True, help="Continue the run in --out."),
            click.option(
                "--out",
                type=click.Path(path_type=Path),
                help="Run folder [runs/NAME-OF-CONFIG].",
            ),
            click.option(
                "--config",
                "config_path",
                type=click.Path(path_type=Path),
                default=default_config,
            ),
        ):
            script = option(script)
        return script

    return add


def run_script(
    script: str,
    train: Train[C],
    config_type: type[C],
    *,
    config_path: Path,
    out: Path | None,
    resume: bool,
    overrides: Sequence[str],
) -> None:
    """Load the config and train; errors of the user or the system end in one line and status 1.

    Args:
        script: Path of the script as it is typed, e.g. `train/tokenizer.py`.
        train: Function that trains.
        config_type: Config dataclass of the training.
        config_path: YAML file of the config.
        out: Run folder; None: runs/NAME-OF-CONFIG.
        resume: Whether to continue the run in that folder.
        overrides: Config overrides of the form key.sub=value.
    """
    out = out or Path("runs") / config_path.stem
    words = [word for word in sys.argv[1:] if word != "--resume"]
    command = shlex.join(["accelerate", "launch", script, *words])
    try:
        config = load_config(config_type, config_path, overrides)
        finished = train(config, out, resume=resume, command=command) is not None
    except Exception as error:
        if (message := clear_message(error)) is None:
            raise
        raise click.ClickException(message) from None
    if not finished:
        sys.exit(INTERRUPTED)


def stopped_message(step: int, processes: int, command: str) -> str:
    """Message to the user who interrupted a run."""
    again = f"as {processes} processes again, " * (processes > 1)
    return f"stopped and saved at step {step}; {again}continue with: {command} --resume"


def flat_config(config: Any) -> dict[str, Any]:
    """The config as one level of strings, the form that trackers take."""
    return {key: str(value) for key, value in to_dict(config).items()}


def format_numbers(values: dict[str, float]) -> str:
    """Named numbers with four digits, as one line of text."""
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def log_alarms(alarms: Sequence[Alarm], step: int, folder: RunFolder) -> None:
    """Write alarms to the log and, on the main process, to the terminal."""
    for alarm in alarms:
        folder.log({"step": step, "alarm": str(alarm)})
        say(folder.writes, f"step {step}: {alarm}")


def say(main: bool, text: str) -> None:
    """Print one line on the terminal, above the progress bar, if this is the main process."""
    if main:
        tqdm.write(printable(text), file=sys.stderr)
