"""Progress bars: a log file gets whole lines, a terminal one line that moves."""

import io
import sys

import pytest

from tessella import progress
from tessella.progress import LINE_SECONDS, progress_bar


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


def test_a_log_file_gets_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    stderr = listen(monkeypatch)
    with progress_bar(400, "image", title="drawing") as bar:
        for _ in range(100):
            bar.update(3.5)
            bar.set_postfix(loss=1)
            clock[0] += LINE_SECONDS / 40 + 1e-6
    lines = stderr.getvalue().splitlines()
    assert [line.split("[")[0] for line in lines] == [
        "drawing:  36% 143.5/400 ",
        "drawing:  71% 283.5/400 ",
        "drawing:  88% 350/400 ",
    ]
    assert all("image/s, loss=1]" in line for line in lines)
    assert "\r" not in stderr.getvalue() and stderr.getvalue().endswith("]\n")


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
