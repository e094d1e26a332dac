"""The progress bar of a run, in steps or in seconds."""

from typing import Protocol

from ..progress import progress_bar
from .length import Length


class Progress(Protocol):
    """The part of a training state that the bar shows at its start.

    Attributes:
        step: Optimizer steps done.
        seconds: Seconds of training so far.
        length: Length of the run.
    """

    step: int
    seconds: float
    length: Length


class RunBar:
    """The progress bar of a run, which counts its steps, or its seconds if minutes decide.

    Args:
        state: Progress of the run.
        silent: Whether to show nothing.
    """

    def __init__(self, state: Progress, *, silent: bool) -> None:
        self._length, self._news = state.length, ""
        if state.length.minutes is None:
            self.bar = progress_bar(state.length.steps, "step", initial=state.step, silent=silent)
        else:
            total = state.length.seconds
            done = min(state.seconds, total)
            self.bar = progress_bar(total, "s", initial=done, silent=silent)

    def advance(self, step: int, seconds: float) -> None:
        """Show how far the run is.

        Args:
            step: Optimizer steps done.
            seconds: Seconds of training so far.
        """
        if self._length.minutes is None:
            self.bar.update()
            return
        end = self._length.end_at(step)
        place = f"step {step}" + (f" of about {end}" if end is not None else "")
        self.bar.set_postfix_str(", ".join(filter(None, (place, self._news))), refresh=False)
        self.bar.update(min(seconds, self._length.seconds) - self.bar.n)

    def tell(self, news: str) -> None:
        """Show news beside the bar."""
        self._news = news
        if self._length.minutes is None:
            self.bar.set_postfix_str(news)
