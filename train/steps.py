"""The step loop of every training script, and what stands at the end of every run.

A script keeps its own order of what is logged, drawn, measured and saved; counters, seeds, clock,
progress bar and Ctrl-C are here:

    for step in training_steps(loader, state, run, accelerator, folder):
        for batch in step.batches:
            ...  # forward and backward; the optimizer steps with the last one
        if step.logs: ...
        step.pause_clock()
        if step.previews: ...
        if step.evaluates: ...
        if step.saves: ...
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from accelerate import Accelerator
from torch.optim import Optimizer

from ..unfinished import workshop
from .command import format_numbers, say, stopped_message, tell
from .engine import RunConfig, StopSignal, images_per_step, seed_step
from .health import check_finite
from .length import Length, Pace, Plan
from .pictures import CURVES_HINT, draw_curves
from .run_bar import RunBar
from .run_folder import RunFolder

B = TypeVar("B")


class Counters(Protocol):
    """The part of a training state that the loop counts up, and a checkpoint stores.

    Attributes:
        step: Optimizer steps done.
        seconds: Seconds of training at the last checkpoint, those before a resume included.
        length: Length of the run.
    """

    step: int
    seconds: float
    length: Length


class Clock:
    """Wall time of a run, and the speed since the last log line.

    Args:
        state: Counters of the run.
        images_per_step: Images of one optimizer step on all processes.

    Attributes:
        paused: Seconds of pauses so far, without those before a resume.
    """

    def __init__(self, state: Counters, images_per_step: int) -> None:
        self.images_per_step, self.paused = images_per_step, 0.0
        self._started = time.perf_counter() - state.seconds
        self._since, self._since_step = time.perf_counter(), state.step
        self._pause: float | None = None

    def seconds(self) -> float:
        """Seconds of training so far, pauses and those before a resume included."""
        return time.perf_counter() - self._started

    def pause(self) -> None:
        """Leave what follows, up to `go_on`, out of the speed."""
        self._pause = time.perf_counter()

    def go_on(self) -> None:
        """End a pause, if there is one."""
        if self._pause is not None:
            seconds = time.perf_counter() - self._pause
            self._since, self.paused = self._since + seconds, self.paused + seconds
            self._pause = None

    def images_per_second(self, step: int) -> float:
        """Images of all processes per second since the last call, pauses left out.

        Args:
            step: Optimizer steps done.
        """
        now = time.perf_counter()
        speed = (step - self._since_step) * self.images_per_step / (now - self._since)
        self._since, self._since_step = now, step
        return speed


class TrainingStep(Generic[B]):
    """One optimizer step: its batches, and what is due after them.

    Attributes:
        number: Optimizer steps done with this one; the first step of a run has number 1.
        batches: Batches of this step, one for each forward pass; the step counts as done when they
            are used up.
        batch: Batch in work; in the end the last one of the step.
        first_batch: Whether `batch` is the first one since the start or the resume.
        last: Whether the run ends with this step; known when the batches are used up.
        stopping: Whether any process was asked to stop; known when the batches are used up.
        spares: Whether pictures and measurements are left out, which have taken a fifth of a run in
            minutes so far; known when the batches are used up.
    """

    batches: Iterator[B]
    batch: B

    def __init__(
        self, number: int, run: RunConfig, length: Length, clock: Clock, bar: RunBar
    ) -> None:
        self.number = number
        self.first_batch = self.last = self.stopping = self.spares = False
        self._run, self._length, self._clock, self._bar = run, length, clock, bar

    @property
    def logs(self) -> bool:
        """Whether a line of the log is due."""
        return self._due(self._run.log_every, apart=1 / 20)

    @property
    def previews(self) -> bool:
        """Whether pictures are due; those of the last step come when the model is saved."""
        return self._due(self._run.preview_every) and not (self.last or self.spares)

    @property
    def evaluates(self) -> bool:
        """Whether a measurement is due; that of the last step comes when the model is saved."""
        return self._due(self._run.evaluate_every) and not (self.last or self.spares)

    @property
    def saves(self) -> bool:
        """Whether a checkpoint is due."""
        return self._due(self._run.checkpoint_every) or self.stopping

    @property
    def seconds(self) -> float:
        """Seconds of training so far, including those before a resume."""
        return self._clock.seconds()

    def pause_clock(self) -> None:
        """Leave what follows in this step out of the logged images per second."""
        self._clock.pause()

    def log(
        self,
        report: Callable[[], dict[str, float]],
        optimizer: Optimizer,
        ids: Sequence[str],
        folder: RunFolder,
        accelerator: Accelerator,
    ) -> dict[str, float]:
        """Write a line of the log: step, images, means, learning rate and images per second.

        Args:
            report: Function that returns the means since the last line by name, `loss` among them;
                called after the clock has been read.
            optimizer: Optimizer whose learning rate is logged.
            ids: Names of the last batch's images, for the error message.
            folder: Run folder.
            accelerator: Trackers of the run.

        Returns:
            The line.

        Raises:
            NonFiniteLoss: If a number is not finite; the line has been written then.
        """
        speed = self._clock.images_per_second(self.number)
        record: dict[str, float] = {"step": self.number}
        record |= {"images": self.number * self._clock.images_per_step} | report()
        record |= {"lr": optimizer.param_groups[0]["lr"], "images_per_second": speed}
        if self._length.minutes is not None:
            left = max(0.0, self._length.seconds - self.seconds)
            record |= {"share": self._length.share(self.number), "seconds_left": left}
        folder.log(record)
        accelerator.log(record, step=self.number)
        check_finite(record, ids)
        self._bar.tell(f"{speed:.0f} images/s, loss {record['loss']:.4f}")
        return record

    def _due(self, every: int, *, apart: float = 1.0) -> bool:
        return self.last or self._length.is_due(self.number, every, apart=apart)


def training_steps(
    batches: Iterable[B],
    state: Counters,
    run: RunConfig,
    accelerator: Accelerator,
    folder: RunFolder,
) -> Iterator[TrainingStep[B]]:
    """The remaining optimizer steps of a run; Ctrl-C on any process ends them after a step.

    torch's random generators are seeded from the step when its first batch has been read.

    Args:
        batches: Batches of this process, one for each forward pass of the remaining steps.
        state: Counters of the run; `step` counts up when the batches of a step are used up.
        run: Accumulation and reporting of the run.
        accelerator: Processes and device of the run.
        folder: Run folder, in whose log every plan of a run in minutes stands.

    Raises:
        RuntimeError: If the script goes on to the next step before the batches are used up.
    """
    source, first_step, length = iter(batches), state.step, state.length
    bar = RunBar(state, silent=not accelerator.is_main_process)
    clock, pace = Clock(state, images_per_step(run, accelerator)), Pace(length, state.seconds)

    def batches_of(step: TrainingStep[B]) -> Iterator[B]:
        for number in range(run.gradient_accumulation_steps):
            step.batch = next(source)
            if number == 0:
                seed_step(run.seed, state.step, accelerator.process_index)
            step.first_batch = number == 0 and state.step == first_step
            yield step.batch
        state.step += 1
        proposed = [0, 0]
        if length.minutes is not None and accelerator.is_main_process:
            seconds = clock.seconds()
            end = pace.proposed_end(state.step, seconds, clock.paused)
            proposed = [end, int(pace.spares(seconds))]
        step.stopping, (end, spares) = stop.agreed(accelerator.device, proposed)
        step.spares = bool(spares)
        if end:
            log_plan(length.make_plan(state.step, end), clock.seconds(), folder)
        step.last = length.ended(state.step)
        bar.advance(state.step, clock.seconds())

    with StopSignal() as stop, bar.bar:
        while not length.ended(state.step):
            number = state.step + 1
            step: TrainingStep[B] = TrainingStep(number, run, length, clock, bar)
            step.batches = batches_of(step)
            yield step
            if state.step != number:
                raise RuntimeError(f"step {number}: some of its batches were not used")
            clock.go_on()
            if step.stopping:
                return


def log_plan(plan: Plan, seconds: float, folder: RunFolder) -> None:
    """Write a plan to the log, and the first one to the terminal."""
    record = {"share": plan.share, "end": plan.end, "seconds": seconds}
    folder.log({"step": plan.step, "plan": record})
    if not plan.share and plan.end > plan.step:
        say(folder.writes, f"step {plan.step}: about {plan.end} steps fit into the time")


def log_measurements(
    measured: dict[str, float],
    step: int,
    folder: RunFolder,
    accelerator: Accelerator,
    *,
    final: bool = False,
) -> None:
    """Write measurements of the validation split to the log, the trackers and the terminal.

    Args:
        measured: Measurements by name.
        step: Optimizer steps done.
        folder: Run folder.
        accelerator: Trackers of the run.
        final: Whether they are the result of the run, which --quiet shows as well.
    """
    folder.log({"step": step, **measured})
    accelerator.log(measured, step=step)
    show = tell if final else say
    show(folder.writes, f"step {step}: " + format_numbers(measured))


@contextmanager
def noting(note: str) -> Iterator[None]:
    """Add a note to the error that a block ends with, which its message then tells as well."""
    try:
        yield
    except Exception as error:
        error.add_note(note)
        raise


@contextmanager
def trial(path: Path) -> Iterator[Path]:
    """Yield a place for a model that is written to try it, and removed at once.

    What a run needs at its end is used before the first step, so that hours of training do not end
    in an error that could have been known.

    Args:
        path: Where the model will be at the end of the run; the trial uses a place beside it.

    Yields:
        A path of the same name in a folder that exists. What a kill leaves there, unfinished files
        included, is removed when the run is resumed.
    """
    with (
        noting("found in a trial of the end of the run, before the first step"),
        workshop(path) as place,
    ):
        place.item.mkdir()
        yield place.item / path.name


def measurements_of(folder: RunFolder, step: int, name: str) -> dict[str, float]:
    """Measurements in the log that were made at a step; {} if there are none.

    Args:
        folder: Run folder.
        step: Optimizer steps done.
        name: One of the measurements.
    """
    found = [r for r in folder.read_log() if r["step"] == step and name in r]
    return {key: value for key, value in found[-1].items() if key != "step"} if found else {}


def update_curves(folder: RunFolder, panels: dict[str, list[str]], *, hint: bool = False) -> None:
    """Draw curves.png of the log anew, if matplotlib is installed.

    Args:
        folder: Run folder.
        panels: Title to names of the series; see `draw_curves`.
        hint: Whether to say how to install matplotlib if it is missing.
    """
    if not draw_curves(folder.read_log(), folder.path / "curves.png", panels) and hint:
        say(folder.writes, CURVES_HINT)


def of_validation(broken: dict[str, str]) -> dict[str, str]:
    """Reasons for skipped images, by names that say that these are validation images."""
    return {f"{name} (val)": reason for name, reason in broken.items()}


def end_run(
    state: Counters,
    broken: dict[str, str],
    folder: RunFolder,
    accelerator: Accelerator,
    command: str,
) -> bool:
    """Report the images that could not be read and close the trackers.

    Args:
        state: Counters of the run.
        broken: Reason by name of the images that could not be read.
        folder: Run folder.
        accelerator: Processes and trackers of the run.
        command: Command that started the run, without --resume.

    Returns:
        Whether the run is complete; if it was stopped, a message says how to continue.
    """
    for name, reason in broken.items():
        tell(folder.writes, f"skipped broken image {name}: {reason}")
        folder.log({"step": state.step, "broken": name, "reason": reason})
    # Not `end_training`: it also tears the process group down, and a rank that leaves while another
    # is still in its last collective can leave that one waiting. The group ends with the processes.
    for tracker in accelerator.trackers:
        tracker.finish()
    if not state.length.ended(state.step):
        tell(folder.writes, stopped_message(state.step, accelerator.num_processes, command))
        return False
    return True
