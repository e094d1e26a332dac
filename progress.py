"""Progress on stderr: a bar that moves on a terminal, a line now and then in a log file."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import click
from tqdm import tqdm

LINE_SECONDS = 30.0
"""Longest time between two lines where stderr is no terminal, while there is progress."""
LINE_SHARE, LEAST_SECONDS = 0.05, 5.0
"""Share of the work after which there is a line earlier, and the shortest time between two."""
_COUNT = "{n_fmt}/{total_fmt}"
_quiet = ContextVar("quiet", default=False)


def is_quiet() -> bool:
    """Whether nothing but results, warnings and errors is to be shown."""
    return _quiet.get()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Show no progress, and nothing else that only tells how the work goes, in a block."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def _be_quiet(context: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        context.with_resource(quiet())


quiet_option = click.option(
    "--quiet",
    is_flag=True,
    expose_value=False,
    callback=_be_quiet,
    help="Show no progress and no information on the way: results, warnings and errors only.",
)
"""The option --quiet of a command, which is quiet to its end."""


def allows_color() -> bool | None:
    """False where NO_COLOR (no-color.org) is set to any text; None: the terminal decides.

    A command gives it to click as `color`, which then strips colours and other styles.
    """
    return False if os.environ.get("NO_COLOR") else None


def progress_bar(
    total: float, unit: str, *, title: str = "", initial: float = 0, silent: bool = False
) -> "ProgressBar":
    """A progress bar of tqdm on stderr, which may be advanced by parts of a unit.

    On a terminal it is drawn again and again in its line. Elsewhere, as in a log file, it writes
    whole lines: one after every `LINE_SECONDS`, or after `LINE_SHARE` of the work if that comes
    first and took `LEAST_SECONDS`, and one at its end. In a block that is `quiet` it shows nothing.

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
        disable=silent or is_quiet(),
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
    _told: tuple[float, float] | None = None
    _clock: Callable[[], float] = staticmethod(time.monotonic)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write a line if the last one was long enough ago; none before there is progress."""
        now = self._clock()
        if self._told is None:
            self._told = now, self.n
            return
        seconds, units = now - self._told[0], self.n - self._told[1]
        far = seconds >= LEAST_SECONDS and units >= LINE_SHARE * self.total
        if units > 0 and (far or seconds >= LINE_SECONDS):
            self._write()

    def _write(self) -> None:
        self._told = self._clock(), self.n
        self.fp.write(f"{self}\n")
        self.fp.flush()

    def clear(self, nolock: bool = False) -> None:
        """Nothing to clear: lines stay."""

    def close(self) -> None:
        """Write the last line, if there was progress since the one before."""
        if self.disable:
            return
        if self.n > (self._told[1] if self._told else self.initial):
            self._write()
        self.disable = True
        self._decr_instances(self)
