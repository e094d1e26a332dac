"""Errors in one line, for commands and training scripts alike, and text that is safe to print."""

import os
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import click
import pytest
from safetensors import SafetensorError

import tessella
from tessella.cli.options import one_clear_error, show
from tessella.errors import clear_message, one_line, printable
from tessella.files import SaveError
from tessella.kernels.backends import BackendUnavailable
from tessella.metrics.networks.weight_providers import WeightsError
from tessella.tests.cases import over
from tessella.train.command import run_script, say
from tessella.train.health import NonFiniteLoss
from tessella.train.tokenizer_recipe import TrainTokenizerConfig

CLEAR = [
    (ValueError("size: expected 3,\n  found 4"), "size: expected 3, found 4"),
    (SaveError("cannot write x"), "cannot write x"),
    (PermissionError(13, "Permission denied", "a\x1b[31mb"), "a\\u001b[31mb: Permission denied"),
    (OSError(5, "Input/output error"), "[Errno 5] Input/output error"),
    (BackendUnavailable("no triton"), "no triton"),
    (WeightsError("no weights"), "no weights"),
    (NonFiniteLoss("loss is nan"), "loss is nan"),
    (
        RecursionError("maximum recursion depth"),
        "a file of the input is nested too deep to be read",
    ),
    (zlib.error("Error -3"), "a file is truncated or damaged: Error -3"),
    (zipfile.BadZipFile("no zip"), "a file is truncated or damaged: no zip"),
    (SafetensorError("header"), "a file is truncated or damaged: header"),
    (EOFError(), "a file is truncated or damaged: EOFError"),
]
OURS = [TypeError("x"), KeyError("x"), IndexError("x"), RuntimeError("x"), AssertionError("x")]


@over(("error", "message"), CLEAR)
def test_errors_of_the_user_are_told(error: Exception, message: str, tmp_path: Path) -> None:
    assert clear_message(error) == message

    @one_clear_error
    def command() -> None:
        raise error

    def train(config: TrainTokenizerConfig, out: Path, **given: object) -> None:
        raise error

    with pytest.raises(click.ClickException) as caught:
        command()
    assert caught.value.message == message
    with pytest.raises(click.ClickException) as caught:
        run(train, tmp_path)
    assert caught.value.message == message


@pytest.mark.parametrize("error", OURS, ids=repr)
def test_faults_of_ours_keep_their_traceback(error: Exception, tmp_path: Path) -> None:
    assert clear_message(error) is None

    @one_clear_error
    def command() -> None:
        raise error

    def train(config: TrainTokenizerConfig, out: Path, **given: object) -> None:
        raise error

    with pytest.raises(type(error)):
        command()
    with pytest.raises(type(error)):
        run(train, tmp_path)


def run(train: object, folder: Path) -> None:
    recipe = Path(tessella.__file__).parent / "configs" / "tokenizer" / "debug.yaml"
    run_script(
        "train/tokenizer.py",
        train,  # type: ignore[arg-type]
        TrainTokenizerConfig,
        default_config=recipe,
        config_path=recipe,
        out=folder / "run",
        resume=False,
        changed=False,
        overrides=(),
    )


@over(
    ("text", "shown"),
    [
        ("plain, ü, 日本, 👩\u200d🚀", "plain, ü, 日本, 👩\u200d🚀"),
        ("\x1b[2J\x07", "\\u001b[2J\\u0007"),
        ("\x9b31m", "\\u009b31m"),
        ("\x7f", "\\u007f"),
        ("\r", "\\r"),
        ("a\nb", "a\nb"),
        ("right \u202e left", "right \\u202e left"),
        (os.fsdecode(b"\xff.png"), "\\udcff.png"),
    ],
)
def test_control_characters_are_shown(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert one_line(f" {text}\n\n") == " ".join(shown.split("\n")).strip()


def test_names_of_files_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;title\x07"
    facts = {evil: evil, "inside": {evil: [evil]}, "broken": {evil: evil}, "lines": "a\nb"}
    show(facts, as_json=False)
    show(facts, as_json=True)
    say(True, evil)
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert "\\u001b]0;title\\u0007" in text
        assert not set(text) & {"\x1b", "\x07"}
    assert "a b\n" in printed.out


SHOW = """
import pathlib
import sys
from tessella.cli.options import show
sys.stdin.read()
show({str(i): "x" * 1000 for i in range(200)}, as_json=False)
pathlib.Path(sys.argv[1]).write_text("after")
"""


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-W", "error", "-c", SHOW, str(tmp_path / "done")]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
    assert process.stdout is not None and process.stdin is not None and process.stderr is not None
    process.stdout.close()
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == b""
    process.stderr.close()
    assert (tmp_path / "done").read_text() == "after"
