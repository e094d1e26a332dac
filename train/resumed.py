"""What a resumed run was, what it is now, and which differences would make it another run.

A resume is exact: its weights are those that the run would have had without the stop. Whatever
would break that is refused, unless the user takes it with --resume-changed; the change then stands
in log.jsonl. Every other difference is told.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from .._version import __version__
from ..config import build_config, load_config, to_dict
from ..data.image_source import ImageSource
from ..files import some_of
from .command import say, tell
from .engine import RunConfig
from .length import Length
from .run_folder import RunError, RunFolder, check_kind

C = TypeVar("C")

Facts = dict[str, Any]
"""Facts by name, plain values."""

_HARMLESS = (
    "data.num_workers",
    "run.cpu_threads",
    "run.log_every",
    "run.preview_every",
    "run.evaluate_every",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "run.trackers",
    "run.probe_images",
    "samples",
    "data.val_source",
    "validation",
    "threads",
)
"""Facts, or sections of them, that are told and change no weight but for the order of sums."""
_PLACES = {
    "data.source": ("images.", "tokens."),
    "data.store": ("tokens.",),
    "tokenizer": ("fingerprint of the tokenizer",),
}
"""Config keys that say where something is, and the facts that say what it is."""


class Resumable(Protocol):
    """The part of a training state that a checkpoint restores.

    Attributes:
        step: Optimizer steps done.
        length: Length of the run.
    """

    step: int
    length: Length

    def facts_of(self, saved: dict[str, Any]) -> Facts:
        """Facts in the state of a checkpoint that an earlier version wrote."""
        ...

    def load(self, weights: dict[str, dict[str, Tensor]], saved: dict[str, Any]) -> None:
        """Restore a checkpoint."""
        ...


class Scheduled(Protocol):
    """A config whose learning rates depend on the length of the run.

    Attributes:
        run: Length of the run.
    """

    @property
    def run(self) -> RunConfig:
        """Length and reporting of the run."""
        ...

    def rates_at(self, step: int) -> tuple[float, ...]:
        """Learning rates of all optimizers at a step."""
        ...


def facts_of_source(name: str, source: ImageSource) -> Facts:
    """Identity of a data set: number of images, and a hash of their names and stored sizes."""
    return {name: {"count": len(source), "names and sizes": source.fingerprint()}}


def facts_of_run(accelerator: Accelerator) -> Facts:
    """Facts about processes, device and versions that a resume has to find again."""
    if accelerator.device.type == "cuda":
        device = f"cuda ({torch.cuda.get_device_name(accelerator.device)})"
    else:
        device = f"{accelerator.device.type} ({torch.backends.cpu.get_cpu_capability()})"
    return {
        "processes": accelerator.num_processes,
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),  # a class of its own, which no checkpoint may hold
        "tessella": __version__,
    }


@dataclass(frozen=True)
class Difference:
    """One difference between a run and its resume.

    Args:
        name: Config key, or name of a fact.
        was: Value then; None: it had none.
        now: Value now.
    """

    name: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name}: was {_short(self.was)}, now {_short(self.now)}"


@dataclass(frozen=True)
class Differences:
    """Differences of a resume: those that break exactness, and the rest.

    Args:
        breaking: Differences that would change the weights.
        harmless: Differences that do not.
        rates: Why a changed number of steps breaks exactness; "": it does not.
    """

    breaking: tuple[Difference, ...]
    harmless: tuple[Difference, ...]
    rates: str = ""

    def refuse(self, path: str | os.PathLike[str]) -> None:
        """Refuse differences that break exactness.

        Raises:
            RunError: If there are any; the message lists them.
        """
        if self.breaking:
            raise RunError(
                f"{path}: the run there has another config, data or machine, so that a resume "
                f"would not be exact: {'; '.join(map(str, self.breaking))}{self.rates}; undo "
                "this, or go on with it by --resume-changed"
            )

    def record(self) -> dict[str, list[Any]]:
        """The differences that break exactness by name, as [was, now]."""
        return {d.name: [d.was, d.now] for d in self.breaking}

    def lines(self) -> list[str]:
        """Lines to tell the user."""
        told = [f"resumed with a change, {d}" for d in self.breaking]
        return told + [f"resumed with another {d}" for d in self.harmless]


def read_started(config_type: type[C], out: Path) -> C | None:
    """Config in a run folder; None if there is none.

    Raises:
        RunError: If the folder is no run.
        ConfigError: If the config cannot be read.
    """
    check_kind(out)
    path = out / "config.yaml"
    return load_config(config_type, path) if path.exists() else None


def resume_run(
    folder: RunFolder, state: Resumable, config: Scheduled, facts: Facts, *, changed: bool
) -> None:
    """Continue a run from its newest checkpoint, if it has one, and tell what is different.

    Args:
        folder: Run folder, locked.
        state: State to restore.
        config: Resolved config of the resume.
        facts: Facts of the resume, as `save_checkpoint` of this run gets them.
        changed: Whether to go on in spite of differences that break exactness; they are logged.

    Raises:
        RunError: If the resume would not be exact and `changed` is not set, or the checkpoint does
            not fit the config. The folder is unchanged then.
    """
    checkpoint = folder.load_checkpoint()
    weights, saved = checkpoint or ({}, {"step": 0})
    known = None
    if checkpoint is not None:
        known = saved["facts"] if "facts" in saved else state.facts_of(saved)
    stored = build_config(type(config), folder.before, name=str(folder.path / "config.yaml"))
    settings = to_dict(stored), to_dict(config)
    found = compare((stored, known), (config, facts), settings, saved["step"])
    if not changed:
        found.refuse(folder.path)
    if checkpoint is not None:
        state.load(weights, saved)
    kept = ""
    minutes = config.run.minutes
    if minutes is not None and minutes == stored.run.minutes and not found.breaking:
        kept = "plan"
        state.length.follow(folder.read_log())
    folder.write_config()
    for line in folder.forget_after(state.step, keep=kept):
        tell(folder.writes, line)
    lines = found.lines()
    if checkpoint is not None and "facts" not in saved:
        lines.append(
            "the checkpoint is of an earlier version, which noted less than is compared now: "
            f"{', '.join(flatten(facts).keys() - flatten(known).keys())} may have changed unseen"
        )
    for line in lines:
        say(folder.writes, line)
    if found.breaking:
        folder.log({"step": state.step, "resumed_changed": found.record()})


def restore_modules(
    modules: Mapping[str, nn.Module], weights: Mapping[str, Mapping[str, Tensor]], origin: str
) -> None:
    """Fill modules with stored weights.

    Args:
        modules: Modules by name.
        weights: Weights of each by the same name.
        origin: What the weights are of, for the error message.

    Raises:
        RunError: If the weights have other names or shapes; the message names them.
    """
    for module_name, module in modules.items():
        saved = {key: list(t.shape) for key, t in weights.get(module_name, {}).items()}
        wanted = {key: list(t.shape) for key, t in module.state_dict().items()}
        misfits = [
            f"{module_name}.{key}: {saved.get(key, 'missing')}, not {wanted.get(key, 'known')}"
            for key in sorted(saved.keys() | wanted.keys())
            if saved.get(key) != wanted.get(key)
        ]
        if misfits:
            raise RunError(f"{origin}: does not fit the config; {some_of(misfits)}")
    for module_name, module in modules.items():
        module.load_state_dict(weights[module_name])


def compare(
    before: tuple[Scheduled, Facts | None],
    now: tuple[Scheduled, Facts],
    settings: tuple[Facts, Facts],
    step: int,
) -> Differences:
    """Differences between a run and its resume.

    Args:
        before: Config of the run, and the facts in its checkpoint; None: it has no checkpoint.
        now: Config of the resume, and its facts.
        settings: Both configs as nested plain values.
        step: Steps done.
    """
    known = flatten(before[1] or {})
    # Checkpoints of earlier versions have few facts.
    found = {name: value for name, value in flatten(now[1]).items() if name in known}
    then = {name: value for name, value in known.items() if name in found}
    changed = _changed(flatten(settings[0]), flatten(settings[1])) + _changed(then, found)
    moved = ""
    in_minutes = now[0].run.minutes is not None or before[0].run.minutes is not None
    if step and in_minutes:
        moved = " (with run.minutes every schedule counts in parts of run.steps)"
    elif step and before[0].rates_at(step - 1) != now[0].rates_at(step - 1):
        rates = ", ".join(
            f"{was:.3g} to {new:.3g}"
            for was, new in zip(before[0].rates_at(step), now[0].rates_at(step), strict=True)
        )
        moved = f" (this moves the learning rate of step {step + 1} from {rates})"
    harmless = [d for d in changed if _is_harmless(d.name, then, found, moved)]
    breaking = [d for d in changed if d not in harmless]
    with_steps = any(d.name == "run.steps" for d in breaking)
    return Differences(tuple(breaking), tuple(harmless), moved if with_steps else "")


def _changed(before: Facts, now: Facts) -> list[Difference]:
    names = sorted(before.keys() | now.keys())
    pairs = [(name, before.get(name), now.get(name)) for name in names]
    return [Difference(*pair) for pair in pairs if pair[1] != pair[2]]


def _is_harmless(name: str, before: Facts, now: Facts, moved: str) -> bool:
    if name in ("run.steps", "run.minutes"):
        return not moved
    if name in _PLACES:
        same = [before[fact] == now[fact] for fact in now if fact.startswith(_PLACES[name])]
        return bool(same) and all(same)
    return any(name == free or name.startswith(f"{free}.") for free in _HARMLESS)


def flatten(data: Any, prefix: str = "") -> Facts:
    """Nested dicts as one level, with dots between the keys."""
    if not isinstance(data, dict):
        return {prefix[:-1]: data}
    flat: Facts = {}
    for key, value in data.items():
        flat |= flatten(value, f"{prefix}{key}.")
    return flat


def _short(value: Any) -> str:
    text = repr(value)
    return f"{text[:17]}...'" if isinstance(value, str) and len(value) == 64 else text
