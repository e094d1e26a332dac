"""The command itself: lists without imports, help of every verb, settings without a hand list."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import click
import pytest
from click.testing import CliRunner
from PIL import Image

from tessella.cli.main import COMMANDS, main
from tessella.cli.options import (
    ATTENTION_BACKENDS,
    CONDITIONS,
    LOW_BIT_PRECISIONS,
    PRECISIONS,
)
from tessella.cli.settings_help import sampler_settings
from tessella.cli.verify import DEFAULT_DATA, TOLERANCE_DB
from tessella.config import to_dict
from tessella.generators.networks.attention import AttentionBackend
from tessella.kernels.low_bit_attention.op import LowBitPrecision
from tessella.metrics.presets import PRESETS
from tessella.metrics.protocol import Conditions
from tessella.progress import is_quiet
from tessella.sample.generate import Precision
from tessella.sample.samplers import SAMPLERS
from tessella.tokenizers import probe


def help_of(*words: str) -> str:
    result = CliRunner().invoke(main, [*words, "--help"])
    assert result.exit_code == 0, result.output
    return result.output


def test_every_verb_is_listed_and_found() -> None:
    text = help_of()
    context = click.Context(main)
    assert main.list_commands(context) == sorted(COMMANDS)
    for name, (_, line) in COMMANDS.items():
        assert f"  {name} " in text and line.split()[0] in text
        command = main.get_command(context, name)
        assert command is not None and command.name == name
        assert "--help" in help_of(name)
    result = CliRunner().invoke(main, ["sampel"])
    assert result.exit_code == 2 and "No such command" in result.output


LIST = """
import sys
from click.testing import CliRunner
from tessella.cli.main import COMMANDS, main
for name in (None, *COMMANDS):
    result = CliRunner().invoke(main, [*([name] if name else []), "--help"])
    assert result.exit_code == 0, (name, result.output)
    heavy = {"torch", "numpy", "pydantic", "PIL", "accelerate"} & set(sys.modules)
    assert not heavy, f"{name} --help imports {heavy}"
"""


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_lists_the_settings_of_every_sampler() -> None:
    found = {kind: settings for types, settings in sampler_settings() for kind in types}
    assert found.keys() == SAMPLERS.keys()
    for kind, settings in found.items():
        real = SAMPLERS[kind].settings()
        assert [s.name for s in settings] == [field.name for field in dataclasses.fields(real)]
        for setting in settings:
            assert len(setting.about) > 10, f"{kind}: {setting.name} has no line in the docstring"
            value = str(to_dict(real)[setting.name])
            typed = {"None": "null", "True": "true", "False": "false"}.get(value, value)
            assert setting.default == typed, (kind, setting)
    for verb in ("sample", "edit", "evaluate"):
        text = help_of(verb)
        assert "halton_groups=passes" in text and "SETTINGS of maskbit and maskgit" in text


@pytest.mark.parametrize(
    ("choices", "kind"),
    [
        (ATTENTION_BACKENDS, AttentionBackend),
        (LOW_BIT_PRECISIONS, LowBitPrecision),
        (PRECISIONS, Precision),
        (CONDITIONS, Conditions),
    ],
)
def test_choices_are_those_of_the_types(choices: tuple[str, ...], kind: object) -> None:
    assert choices == get_args(kind)


def test_defaults_and_names_in_help_are_the_real_ones() -> None:
    assert (TOLERANCE_DB, DEFAULT_DATA) == (probe.TOLERANCE_DB, probe.DEFAULT_DATA)
    text = "".join(help_of("evaluate").split())
    assert all(name in text for name in PRESETS)


def test_train_runs_the_scripts_without_a_launcher(tmp_path: Path) -> None:
    """An error is one line and status 1; the command to continue names no launcher."""
    words = ["train", "tokenizer", "--out", str(tmp_path / "run"), "run.stepz=3"]
    code = "import sys; from tessella.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
    assert "did you mean 'steps'" in done.stderr and not (tmp_path / "run").exists()
    for script in ("tokenizer", "generator"):
        assert "--resume-changed" in help_of("train", script)
        assert script in help_of("train")


LONG = (
    ("bits",),
    ("data", "emoji-full"),
    ("data", "weights"),
    ("decode",),
    ("edit",),
    ("encode",),
    ("evaluate",),
    ("import",),
    ("probe",),
    ("reconstruct",),
    ("sample",),
    ("store", "export"),
    ("store", "import"),
    ("store", "merge"),
    ("train", "generator"),
    ("train", "tokenizer"),
    ("verify",),
)
"""Commands that may take long."""


@pytest.mark.parametrize("words", LONG, ids=" ".join)
def test_every_long_command_can_be_quiet(words: tuple[str, ...]) -> None:
    assert "--quiet" in help_of(*words)


def test_quiet_leaves_results_and_errors(tmp_path: Path) -> None:
    """The line about held-out images and the bar are gone; results are on stdout as before."""
    for number in range(20):
        color = (number, 2 * number, 0)
        Image.new("RGB", (64, 64), color).save(tmp_path / f"{number}.png")
    words = ("reconstruct", "--tokenizer", "bundled:bits-emoji-64", "--data", str(tmp_path))
    words = (*words, "--limit", "2", "--json")
    told, quiet = (CliRunner().invoke(main, [*words, *more]) for more in ((), ("--quiet",)))
    assert told.exit_code == quiet.exit_code == 0, quiet.output
    assert "2/2" in told.stderr and "held out" in told.stderr and quiet.stderr == ""
    assert json.loads(quiet.stdout)["num_images"] == json.loads(told.stdout)["num_images"]
    failed = CliRunner().invoke(main, ["verify", str(tmp_path / "none"), "--quiet"])
    assert failed.exit_code == 1 and failed.stderr.startswith("Error: ")
    assert not is_quiet()


@pytest.mark.parametrize(("value", "colored"), [("", True), ("1", False)])
def test_no_color_takes_colors_from_every_command(
    value: str, colored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in command with a colour, on what looks like a terminal."""

    @click.command()
    def models() -> None:
        click.secho("red", fg="red")

    monkeypatch.setenv("NO_COLOR", value)
    monkeypatch.setattr(main, "get_command", lambda context, name: models)
    result = CliRunner().invoke(main, ["models"], color=True)
    assert result.output == ("\x1b[31mred\x1b[0m\n" if colored else "red\n")
