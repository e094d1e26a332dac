"""How long a run is, in optimizer steps or in minutes, and where in its schedules a step stands.

With `run.minutes` the speed of the machine decides how many steps there are, so they are planned: a
`Plan` says at which step the run will end, and the share of the run that is behind it grows from
step to step in a straight line up to 1. A new plan is made where the present one would miss the
time, goes on from the share that has been reached, and stands in log.jsonl and in the checkpoints.
Everything that depends on a step depends on the recorded plans and the number of the step alone, so
a resume, which follows what was recorded, is as exact as that of a run in steps.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .engine import RunConfig

ENDLESS = 2**40
"""Steps that no run in minutes reaches."""
MEASURED_SHARE, MEASURED_SECONDS = 0.01, 10.0
"""Share of the time, and at most these seconds, in which the speed is measured before any plan."""
MISSED_TIME, MISSED_REST = 0.01, 0.1
"""A plan stands while it misses the time by less than these parts of the whole and of the rest."""
PLANS_APART = 0.02
"""Share of the time between two plans, at least."""
PAUSED_SHARE = 0.2
"""Share of the time that has passed above which pictures and measurements are left out."""
EARLY_SHARE = 0.1
"""Share of the time that may be left when a plan is fulfilled; with more, the run goes on."""
LATE_SHARE = 0.2
"""Share of the time by which a resumed run may be late before it leaves recorded plans."""
WINDOW_SHARE, WINDOW_STEPS = 0.1, 1000
"""Share of the time, and at most these steps, over which the present speed is measured."""


@dataclass(frozen=True)
class Plan:
    """One plan of a run in minutes.

    Args:
        step: Optimizer steps done when it was made; it holds from there on.
        share: Share of the run that is behind that step, in [0, 1].
        end: Optimizer steps at the end of the run, at least `step`.
    """

    step: int
    share: float
    end: int

    def share_at(self, step: int) -> float:
        """Share of the run that is behind a step of this plan; 1 at its end."""
        if step >= self.end:
            return 1.0 if self.end > self.step else self.share
        return self.share + (1 - self.share) * (step - self.step) / (self.end - self.step)


class Length:
    """Length of a run: `run.steps`, or the steps that are planned for `run.minutes`.

    Args:
        run: Length and reporting of the run.

    Attributes:
        plans: Plans in the order of their steps; a resumed run has some of later steps, which it
            follows as it gets there.
        recorded: Optimizer steps up to which the log shows all plans; a resume makes none before.
        paused: Seconds of pictures, measurements and checkpoints so far.
    """

    def __init__(self, run: RunConfig) -> None:
        self.steps, self.minutes = run.steps, run.minutes
        self.plans: list[Plan] = []
        self.paused, self.recorded = 0.0, 0

    @property
    def most_steps(self) -> int:
        """Optimizer steps for which a loader has to have batches."""
        return self.steps if self.minutes is None else ENDLESS

    @property
    def seconds(self) -> float:
        """Seconds of a run in minutes; infinite if steps decide."""
        return float("inf") if self.minutes is None else 60 * self.minutes

    def plan_at(self, step: int) -> Plan | None:
        """The plan that holds at a step; None if there is none yet, or steps decide."""
        return next((plan for plan in reversed(self.plans) if plan.step <= step), None)

    def end_at(self, step: int) -> int | None:
        """Optimizer steps at the end of the run, as planned at a step; None: not known yet."""
        plan = self.plan_at(step)
        if self.minutes is None:
            return self.steps
        return None if plan is None else plan.end

    def ended(self, step: int) -> bool:
        """Whether the run ends with a number of steps."""
        end = self.end_at(step)
        return end is not None and step >= end

    def share(self, step: int) -> float:
        """Share of the run that is behind a number of steps, in [0, 1]; 0 before the first plan."""
        if self.minutes is None:
            return min(1.0, step / self.steps)
        plan = self.plan_at(step)
        return 0.0 if plan is None else plan.share_at(step)

    def position(self, step: int) -> float:
        """Place of a step in the schedules, which count `run.steps` steps.

        The step itself if steps decide, else its share of `run.steps`: with 2,000 of these, a
        warm-up of 200 steps takes a tenth of the time on any machine.
        """
        return step if self.minutes is None else self.share(step) * self.steps

    def steps_for(self, count: int, step: int) -> int:
        """Optimizer steps that a count of steps in the config stands for, as planned at a step."""
        end = self.end_at(step)
        return count if end is None else round(count / self.steps * end)

    def is_due(self, step: int, every: int, *, apart: float = 1.0) -> bool:
        """Whether something that is due every so many steps of the schedule is due after a step.

        In a run in minutes it is due at most once in a minute or a twentieth of the run, whichever
        is less, so that a config of a million steps does not spend six minutes on pictures.

        Args:
            step: Optimizer steps done.
            every: Steps of the schedule between two times.
            apart: Factor of the shortest time between two.
        """
        if self.minutes is None:
            return step % every == 0
        interval = max(every, apart * min(1 / 20, 1 / self.minutes) * self.steps)
        return self.position(step) // interval > self.position(step - 1) // interval

    def make_plan(self, step: int, end: int) -> Plan:
        """Plan the end anew; the share that has been reached stays."""
        plan = Plan(step, self.share(step), max(step, end))
        self.plans = [p for p in self.plans if p.step < step] + [plan]
        return plan

    def state_dict(self, step: int) -> dict[str, Any]:
        """For the checkpoint of a step."""
        plans = [asdict(plan) for plan in self.plans if plan.step <= step]
        return {"minutes": self.minutes, "plans": plans, "paused": self.paused}

    def load_state_dict(self, state: dict[str, Any] | None, step: int, seconds: float) -> None:
        """From the checkpoint.

        If the run was of another length, the share behind it is anew that of its time, and the rest
        is planned at the speed of the whole.

        Args:
            state: What `state_dict` gave; None: an earlier version wrote the checkpoint.
            step: Optimizer steps done.
            seconds: Seconds of training so far.
        """
        state = state or {"minutes": None, "plans": [], "paused": 0.0}
        self.paused, self.plans = state["paused"], []
        if self.minutes is None:
            return
        if state["minutes"] == self.minutes:
            self.plans = [Plan(**plan) for plan in state["plans"]]
        elif step:
            rest = max(0.0, self.seconds - seconds)
            share = min(1.0, seconds / self.seconds)
            self.plans = [Plan(step, share, step + round(rest * step / max(seconds, 1e-9)))]

    def follow(self, records: Sequence[dict[str, Any]]) -> None:
        """Take the plans of later steps from the log of a run that was killed.

        The steps of which it has records are then gone through as they were.

        Args:
            records: Records of the log, those of plans among them.
        """
        if self.minutes is None:
            return
        found: list[Plan] = []
        for record in records:
            if "plan" in record:
                new = Plan(record["step"], record["plan"]["share"], record["plan"]["end"])
                found = [plan for plan in found if plan.step < new.step] + [new]
        self.recorded = max((record["step"] for record in records), default=0)
        last = self.plans[-1].step if self.plans else -1
        self.plans += [plan for plan in found if plan.step > last]


class Pace:
    """Speed of a run in minutes, from which the main process plans its end.

    Args:
        length: Length of the run.
        seconds: Seconds of training at the start or the resume.
    """

    def __init__(self, length: Length, seconds: float) -> None:
        self._length, self._last = length, seconds
        self._paused, self._planned = 0.0, -float("inf")
        self._window: deque[float] | None = None

    def spares(self, seconds: float) -> bool:
        """Whether pauses have taken so much of the time that no more are wanted.

        Args:
            seconds: Seconds of training so far.
        """
        return self._length.paused > PAUSED_SHARE * seconds

    def proposed_end(self, step: int, seconds: float, paused: float) -> int:
        """End of the run to be planned after a step; 0: the plan stands.

        The first step since the start or a resume, which takes longer than others, is left out of
        the speed. Pauses are expected to take the same part of the rest as of what is done.

        Args:
            step: Optimizer steps done, at least 1.
            seconds: Seconds of training so far, pauses included.
            paused: Seconds of pauses since the start or the resume.
        """
        length = self._length
        taken = seconds - self._last - (paused - self._paused)
        length.paused += paused - self._paused
        self._last, self._paused = seconds, paused
        if self._window is None:
            self._window = deque(maxlen=WINDOW_STEPS)
        else:
            self._window.append(taken)
        left = length.seconds - seconds
        if step <= length.recorded and left > -LATE_SHARE * length.seconds:
            return 0  # what was recorded is followed first
        if left <= 0:
            return step
        planned = length.end_at(step)
        first = min(MEASURED_SHARE * length.seconds, MEASURED_SECONDS)
        if not self._window or (planned is None and seconds < first):
            return 0
        while len(self._window) > 1 and sum(self._window) > WINDOW_SHARE * length.seconds:
            self._window.popleft()
        each = sum(self._window) / len(self._window)
        share = length.share(step)
        pauses = length.paused / share * (1 - share) if share else 0.0
        pauses = min(pauses, max(0.0, PAUSED_SHARE * length.seconds - length.paused))
        end = step + max(0, round((left - pauses) / max(each, 1e-9)))
        if planned is not None:
            missed = abs(planned - end) * each
            fits = missed <= MISSED_TIME * length.seconds + MISSED_REST * left
            soon = seconds - self._planned < PLANS_APART * length.seconds and step < planned
            if fits or soon or (step == planned and left < EARLY_SHARE * length.seconds):
                return 0
        self._planned = seconds
        return end
