"""Commands of the demo: their status, and Ctrl-C, which they are given the time to follow."""

import io
import os
import signal
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from tessella.demo import commands
from tessella.demo.commands import CommandFailed, CommandStopped
from tessella.progress import quiet


def run(monkeypatch: pytest.MonkeyPatch, code: str) -> list[list[str]]:
    """Let `tessella` run a piece of Python; returns the commands that it was to run."""
    asked: list[list[str]] = []
    popen = subprocess.Popen

    def start(words: list[str]) -> Any:
        asked.append(words)
        return popen([sys.executable, "-c", textwrap.dedent(code)])

    monkeypatch.setattr(commands.subprocess, "Popen", start)
    return asked


def test_a_command_is_shown_and_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = run(monkeypatch, "pass")
    commands.tessella("train", "tokenizer", "--out", "my runs")
    assert asked == [
        [sys.executable, "-m", "tessella.cli.main", "train", "tokenizer", "--out", "my runs"]
    ]
    assert capsys.readouterr().err == "$ tessella train tokenizer --out 'my runs'\n"
    with quiet():
        commands.tessella("info")
    assert asked[1][-2:] == ["info", "--quiet"] and not capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "error"),
    [("raise SystemExit(2)", CommandFailed), ("raise SystemExit(130)", CommandStopped)],
)
def test_another_status_is_an_error(
    monkeypatch: pytest.MonkeyPatch, code: str, error: type[Exception]
) -> None:
    run(monkeypatch, code)
    with pytest.raises(error, match=r"tessella train$"):
        commands.tessella("train")


def test_ctrl_c_waits_for_the_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)
    parent = os.getpid()
    run(monkeypatch, f"""
        import os, signal, time
        os.kill({parent}, signal.SIGINT)  # as a terminal does, which tells the command as well
        time.sleep(0.3)
        print("saved")
    """)  # fmt: skip
    with pytest.raises(CommandStopped):
        commands.tessella("train")
    assert capfd.readouterr().out == "saved\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, f"""
        import os, signal, sys, time
        def save(number, frame):
            print("saved")
            sys.exit(130)
        signal.signal(signal.SIGTERM, save)
        os.kill({os.getpid()}, signal.SIGTERM)
        time.sleep(60)
    """)  # fmt: skip
    with pytest.raises(CommandStopped):
        commands.tessella("train")
    assert capfd.readouterr().out == "saved\n"


@pytest.mark.parametrize(("value", "bold"), [("", True), ("1", False)])
def test_no_color_is_respected(value: str, bold: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands that are shown are in bold type on a terminal, unless NO_COLOR is set."""
    run(monkeypatch, "pass")
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("NO_COLOR", value)
    commands.tessella("models")
    shown = "$ tessella models"
    assert stderr.getvalue() == (f"\x1b[1m{shown}\x1b[0m\n" if bold else f"{shown}\n")
