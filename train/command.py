"""Command line of the training scripts, and the messages of a run."""

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click
from tqdm import tqdm

from ..config import ConfigError, apply_overrides, load_config, to_dict
from ..errors import clear_message, printable
from ..progress import is_quiet, quiet_option
from .health import Alarm
from .run_folder import RunFolder

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells count it: later commands of a script must not start."""

C = TypeVar("C", contravariant=True)


class Train(Protocol[C]):
    """A training: returns the final measurements, or None if it was interrupted."""

    def __call__(
        self, config: C, out: Path, *, resume: bool, changed: bool, command: str
    ) -> dict[str, Any] | None:
        """Run or resume a training.

        Args:
            config: Settings of the run.
            out: Run folder.
            resume: Whether to continue the run in that folder.
            changed: Whether to continue in spite of differences that break exactness.
            command: Command that started the run, without --resume.
        """
        ...


def training_options() -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options and arguments that every training script takes."""

    def add(script: Callable[..., None]) -> Callable[..., None]:
        for option in (
            click.argument("overrides", nargs=-1),
            quiet_option,
            click.option(
                "--resume",
                is_flag=True,
                help="Continue the run in --out, without --config with the config of that run.",
            ),
            click.option(
                "--resume-changed",
                "changed",
                is_flag=True,
                help="--resume in spite of other data, settings, processes or versions.",
            ),
            click.option(
                "--out",
                type=click.Path(path_type=Path),
                help="Run folder [runs/NAME-OF-CONFIG].",
            ),
            click.option(
                "--config",
                "config_path",
                type=click.Path(path_type=Path),
                help="YAML file [the default config].",
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
    default_config: Path,
    config_path: Path | None,
    out: Path | None,
    resume: bool,
    changed: bool,
    overrides: Sequence[str],
) -> None:
    """Load the config and train; errors of the user or the system end in one line and status 1.

    Args:
        script: Path of the script as it is typed, e.g. `train/tokenizer.py`.
        train: Function that trains.
        config_type: Config dataclass of the training.
        default_config: YAML file of the config of a new run, if none is named.
        config_path: YAML file of the config; None: on a resume the one in the run folder.
        out: Run folder; None: runs/NAME-OF-CONFIG.
        resume: Whether to continue the run in that folder.
        changed: The same, in spite of differences that break exactness.
        overrides: Config overrides of the form key.sub=value.
    """
    resume = resume or changed
    out = out or Path("runs") / (config_path or default_config).stem
    if config_path is None:
        own = out / "config.yaml"
        config_path = own if resume and own.exists() else default_config
    words = [word for word in sys.argv[1:] if word not in ("--resume", "--resume-changed")]
    start = ["accelerate", "launch", script]
    if words[:1] == ["train"]:  # `tessella train tokenizer`, which is no script
        start, words = ["tessella", *words[:2]], words[2:]
    command = shlex.join([*start, *words])
    try:
        config = load_config(config_type, config_path, with_one_length(overrides))
        done = train(config, out, resume=resume, changed=changed, command=command)
        finished = done is not None
    except Exception as error:
        if (message := clear_message(error)) is None:
            raise
        raise click.ClickException(message) from None
    if not finished:
        sys.exit(INTERRUPTED)


def with_one_length(overrides: Sequence[str]) -> list[str]:
    """Config overrides in which the length that they give is the one that decides.

    `run.minutes` decides wherever it is set; a `run.steps` on the command line takes it away.

    Raises:
        ConfigError: If both lengths are given.
    """
    run = apply_overrides({}, overrides).get("run")
    given = run if isinstance(run, dict) else {}
    if "steps" in given and "minutes" in given:
        raise ConfigError(
            f"run.steps={given['steps']} and run.minutes={given['minutes']}: expected one of them, "
            "since each says how long the run is"
        )
    return [*overrides, *(["run.minutes=null"] if "steps" in given else [])]


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
        tell(folder.writes, f"step {step}: {alarm}")


def say(main: bool, text: str) -> None:
    """Print one line of information on stderr, above the progress bar; nothing with --quiet.

    Args:
        main: Whether this is the main process; others print nothing.
        text: The line.
    """
    tell(main and not is_quiet(), text)


def tell(main: bool, text: str) -> None:
    """Print one line of a warning or a result, as `say` does, but with --quiet as well."""
    if main:
        tqdm.write(printable(text), file=sys.stderr)
