"""`run.minutes` in both scripts: it ends in time, resumes exactly, and all processes agree."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result

from tessella.checkpoints import load_generator, load_tokenizer
from tessella.train import steps

from .conftest import Ended, Script

Command = Callable[..., Result]
SMALL = ("run.batch_size_per_device=2", "run.keep_checkpoints=9")


def tick(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let every look at the clock of the loop take some seconds, and nothing else any."""
    count = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: seconds * next(count))
    monkeypatch.setattr(steps, "time", clock)


def ended(out: Path, result: Result) -> Ended:
    assert result.exit_code == 0, result.output
    return Ended([0], result.output, out)


def plans_of(run: Ended) -> list[tuple[int, dict[str, Any]]]:
    return [(record["step"], record["plan"]) for record in run.records() if "plan" in record]


def lines_of(run: Ended) -> list[dict[str, Any]]:
    """The log without plans, which a resume keeps in their place, and without speeds."""
    records = run.records("images_per_second", "seconds_left")
    return [record for record in records if "plan" not in record]


def check_exact(start: Callable[..., Result], out: Path, monkeypatch: pytest.MonkeyPatch) -> Ended:
    """A run in minutes, and its last three quarters again on a machine of another speed."""
    words = ("--out", out, "run.minutes=1", "run.log_every=1", *SMALL)
    tick(monkeypatch, 0.5)
    whole = ended(out, start(*words))
    plans, names = plans_of(whole), sorted((out / "checkpoints").iterdir())
    last = max(int(name.name.removeprefix("step_")) for name in names)
    weights, records = whole.weights(last), lines_of(whole)
    assert plans[-1][1]["end"] == last and last > 15
    assert f"step 2: about {plans[0][1]['end']} steps fit into the time" in whole.output
    for name in sorted(names, key=lambda path: int(path.name.removeprefix("step_")))[1:]:
        shutil.rmtree(name)
    tick(monkeypatch, 0.4)
    again = ended(out, start(*words, "--resume"))
    assert plans_of(again) == plans
    assert again.differences(again.weights(last), weights) == []
    assert lines_of(again) == records
    return again


def test_a_tokenizer_trained_in_minutes_resumes_exactly(
    command: Command,
    debug_config: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Warm-up, entropy boost and discriminator start at the same shares of the time."""

    def start(*words: str | Path) -> Result:
        return command("--config", debug_config, f"data.source={pictures}", *words)

    out = tmp_path / "run"
    run = check_exact(start, out, monkeypatch)
    card = load_tokenizer(out / "tokenizer").card
    assert card is not None and card["minutes"] == 1.0 and card["steps"] > 15
    lines = [record for record in run.records() if "lr" in record]
    shares = [line["share"] for line in lines]
    assert shares == sorted(shares) and shares[-1] > 0.9
    assert [line["seconds_left"] for line in lines] == sorted(
        (line["seconds_left"] for line in lines), reverse=True
    )
    # The discriminator starts at step 4 of 20, and its loss enters at step 6. A line tells the
    # share after its step, which was trained at the share of the line before.
    before = [0.0, *shares]
    for name, start_share in (("discriminator", 0.2), ("adversarial", 0.3)):
        expected = [share >= start_share for share in before[:-1]]
        assert [name in line for line in lines] == expected


def test_a_generator_trained_in_minutes_resumes_exactly(
    generator_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    check_exact(generator_command, out, monkeypatch)
    card = load_generator(out / "generator").card
    assert card is not None and card["minutes"] == 1.0


def test_two_processes_end_together(script: Script, pictures: Path, tmp_path: Path) -> None:
    words = (f"data.source={pictures}", "run.minutes=0.02", "data.num_workers=1", *SMALL)
    run = script(tmp_path / "run", *words, processes=2)
    assert run.statuses == [0, 0], run.output
    _, last = plans_of(run)[-1]
    assert run.state(last["end"])["length"]["minutes"] == 0.02


def test_another_length_of_a_resumed_run_is_refused_or_told(
    command: Command,
    debug_config: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tick(monkeypatch, 0.3)
    out = ("--out", tmp_path / "run")
    words = (*out, "--config", debug_config, f"data.source={pictures}", *SMALL)
    first = ended(tmp_path / "run", command(*words, "run.minutes=0.3")).records()
    refused = command(*out, "--resume", "run.minutes=0.6")
    assert refused.exit_code == 1 and "run.minutes: was 0.3, now 0.6" in refused.output
    refused = command(*out, "--resume", "run.steps=3000")  # takes the minutes away
    assert refused.exit_code == 1 and "run.minutes: was 0.3, now None" in refused.output
    tick(monkeypatch, 0.3)
    longer = ended(tmp_path / "run", command(*out, "--resume-changed", "run.minutes=0.6")).records()
    before, after = ([r["step"] for r in run if "psnr" in r] for run in (first, longer))
    assert before[-1] + 4 <= after[-1]
    assert {"step": before[-1], "resumed_changed": {"run.minutes": [0.3, 0.6]}} in longer


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run.minutes=0"], "minutes: expected more than 0, found 0"),
        (["run.minutes=-3"], "minutes: expected more than 0, found -3"),
        (["run.minutes=six"], "run.minutes: Input should be a valid number (found 'six')"),
        (["run.minutes=6", "run.steps=9"], "run.steps=9 and run.minutes=6: expected one of them"),
        (["run={steps: 9, minutes: 6}"], "run.steps=9 and run.minutes=6: expected one of them"),
        (["run.steps=null", "run.minutes=6"], "run.steps: required, not given"),
    ],
)
def test_lengths_that_cannot_be_are_one_message(
    command: Command,
    generator_command: Command,
    debug_config: Path,
    words: list[str],
    message: str,
    tmp_path: Path,
) -> None:
    for result in (
        command("--config", debug_config, "--out", tmp_path / "run", *words),
        generator_command("--out", tmp_path / "run", *words),
    ):
        assert result.exit_code == 1 and message in result.output, result.output
        assert result.output.count("\n") == 1 and not (tmp_path / "run").exists()


def test_steps_on_the_command_line_win_over_minutes_in_the_file(
    command: Command, debug_config: Path, pictures: Path, tmp_path: Path
) -> None:
    """And a config with both counts its steps in parts of the minutes."""
    config = tmp_path / "both.yaml"
    text = debug_config.read_text().replace("run: {steps: 20,", "run: {steps: 20, minutes: 60,")
    config.write_text(text)
    words = ("--config", config, f"data.source={pictures}", *SMALL)
    result = command("--out", tmp_path / "run", *words, "run.steps=2")
    run = ended(tmp_path / "run", result)
    assert [record["step"] for record in run.records() if "lr" in record] == [2]
    assert json.loads((tmp_path / "run" / "tokenizer" / "card.json").read_text())["steps"] == 2
