"""Progress on stderr: a bar that moves on a terminal, a line now and then in a log file."""

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 10.0
"""Time between two lines where stderr is no terminal."""
_COUNT = "{n_fmt}/{total_fmt}"


def progress_bar(
    total: float, unit: str, *, title: str = "", initial: float = 0, silent: bool = False
) -> "ProgressBar":
    """A progress bar of tqdm on stderr, which may be advanced by parts of a unit.

    On a terminal it is drawn again and again in its line. Elsewhere, as in a log file, it writes
    whole lines: one every `LINE_SECONDS` in which there was progress, and one at its end.

    Args:
        total: Number of units of the whole work.
        unit: Name of one unit, e.g. "image"; images are told per second, however slow. "s":
            seconds, which have no speed.
        title: What is being done, in front of the bar.
        initial: Number of units that were done before.
        silent: Whether to show nothing.
    """
    rate = {"image": ", {rate_noinv_fmt}", "s": ""}.get(unit, ", {rate_fmt}")
    count = _COUNT + " s" * (unit == "s")
    times = f"[{{elapsed}}<{{remaining}}{rate}{{postfix}}]"
    moves = sys.stderr.isatty()
    drawn = "{l_bar}{bar}| " if moves else "{desc}{percentage:3.0f}% "
    return (ProgressBar if moves else _Lines)(
        total=total,
        initial=initial,
        desc=f"{title}: " if title else None,
        unit=unit,
        disable=silent,
        dynamic_ncols=True,
        miniters=0 if moves else 1,
        bar_format=f"{drawn}{count} {times}",
    )


class ProgressBar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """A bar whose count may have a fraction, of which one digit is shown."""

    @property
    def format_dict(self) -> Any:
        """What the bar shows, by name."""
        shown, total = super().format_dict, f"{self.total:.10g}"
        return {**shown, "n_fmt": f"{self.n:.1f}".removesuffix(".0"), "total_fmt": total}


class _Lines(ProgressBar):
    """A bar in whole lines, for files and pipes."""

    disable: bool
    _told: float | None = None
    _clock: Callable[[], float] = staticmethod(time.monotonic)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write a line if the last one was long enough ago; none before there is progress."""
        now = self._clock()
        if self._told is None:
            self._told = now
        elif now - self._told >= LINE_SECONDS:
            self._told = now
            self.fp.write(f"{self}\n")
            self.fp.flush()

    def clear(self, nolock: bool = False) -> None:
        """Nothing to clear: lines stay."""

    def close(self) -> None:
        """Write the last line, if there was progress."""
        if self.disable:
            return
        if self.n > self.initial:
            self._told = -LINE_SECONDS + self._clock()
            self.display()
        self.disable = True
        self._decr_instances(self)
