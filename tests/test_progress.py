"""Progress bars: a log file gets whole lines, a terminal one line that moves."""

import io
import sys

import pytest

from tessella import progress
from tessella.progress import allows_color, is_quiet, progress_bar, quiet


class Stream(io.StringIO):
    """A stderr that is a terminal, or is none."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def listen(monkeypatch: pytest.MonkeyPatch, *, terminal: bool = False) -> Stream:
    """Replace stderr, in the test itself: pytest captures each phase anew."""
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time in seconds, which the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress._Lines, "_clock", staticmethod(lambda: now[0]))
    return now


def advance(bar: progress.ProgressBar, clock: list[float], parts: int, seconds: float) -> None:
    """Do `parts` of one unit each, of so many seconds."""
    for _ in range(parts):
        clock[0] += seconds
        bar.update()
        bar.refresh()  # tqdm does this at most ten times in a real second


def counts(stderr: Stream) -> list[str]:
    return [line.partition("[")[0].split()[-1] for line in stderr.getvalue().splitlines()]


def test_a_slow_work_is_told_every_thirty_seconds(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    """500 s in steps of one second are a fifth of a percent each."""
    stderr = listen(monkeypatch)
    with progress_bar(5000, "image", title="drawing") as bar:
        for _ in range(50):
            bar.set_postfix(loss=1)
            advance(bar, clock, 2, 1.0)
    assert counts(stderr) == ["30/5000", "60/5000", "90/5000", "100/5000"]
    lines = stderr.getvalue().splitlines()
    assert lines[0].startswith("drawing:   1% 30/5000 [") and lines[-1].endswith("loss=1]")
    assert "\r" not in stderr.getvalue() and stderr.getvalue().endswith("]\n")


def test_a_middling_work_is_told_every_twentieth(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    """200 s in all: 5 % are 10 s, which come before 30."""
    stderr = listen(monkeypatch)
    with progress_bar(200, "step") as bar:
        advance(bar, clock, 200, 1.0)
    assert counts(stderr) == [f"{n}/200" for n in range(10, 201, 10)]


def test_a_short_work_is_told_every_five_seconds_and_at_its_end(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    stderr = listen(monkeypatch)
    with progress_bar(40, "image") as bar:
        advance(bar, clock, 40, 0.3)
    assert counts(stderr) == ["17/40", "34/40", "40/40"]
    stderr = listen(monkeypatch)
    with progress_bar(40, "image") as bar:
        advance(bar, clock, 40, 0.01)
    assert counts(stderr) == ["40/40"]


def test_a_run_in_seconds_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = listen(monkeypatch)
    with progress_bar(360.0, "s", initial=60.5) as bar:
        bar.set_postfix_str("step 12 of about 60", refresh=False)
        bar.update(29.5)
    assert stderr.getvalue().startswith(" 25% 90/360 s [00:00<")
    assert stderr.getvalue().endswith(", step 12 of about 60]\n") and "s/s" not in stderr.getvalue()


def test_nothing_is_shown_in_a_quiet_block(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = listen(monkeypatch)
    with quiet(), progress_bar(9, "image") as bar:
        assert is_quiet()
        bar.update(9)
    assert stderr.getvalue() == "" and not is_quiet()


@pytest.mark.parametrize(
    ("value", "allowed"), [(None, None), ("", None), ("1", False), ("0", False), ("no", False)]
)
def test_any_text_in_no_color_forbids_colors(
    value: str | None, allowed: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As no-color.org says: present and not empty, whatever its value."""
    if value is None:
        monkeypatch.delenv("NO_COLOR", raising=False)
    else:
        monkeypatch.setenv("NO_COLOR", value)
    assert allows_color() is allowed


def test_messages_between_do_not_repeat_the_line(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    stderr = listen(monkeypatch)
    with progress_bar(9, "step") as bar:
        bar.update()
        for _ in range(3):
            bar.write("told", file=stderr)
    assert stderr.getvalue().splitlines()[:3] == ["told"] * 3
    assert stderr.getvalue().count("1/9 [") == 1


def test_what_does_nothing_or_is_silent_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = listen(monkeypatch)
    with progress_bar(9, "image", initial=4):
        pass
    with progress_bar(9, "image", silent=True) as bar:
        bar.update(9)
    assert stderr.getvalue() == ""


def test_a_terminal_gets_one_moving_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = listen(monkeypatch, terminal=True)
    with progress_bar(5, "image", title="drawing") as bar:
        bar.update(0.25)
        bar.refresh()
        assert "| 0.2/5 [" in stderr.getvalue()
        bar.update(4.75)
    shown = stderr.getvalue()
    assert shown.count("\n") == 1 and shown.count("\r") > 1
    assert "drawing: 100%" in shown and "| 5/5 [" in shown and "image/s]" in shown
