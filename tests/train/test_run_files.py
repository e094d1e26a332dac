"""Damaged files of a run: checkpoints with odd checksums, logs with lines that are no record."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tessella.config import load_config
from tessella.files import SaveError
from tessella.tests.cases import over
from tessella.train.pictures import draw_curves
from tessella.train.run_folder import RunError, RunFolder
from tessella.train.run_log import LogError, forget_after, read_log
from tessella.train.tokenizer_recipe import TrainTokenizerConfig

WEIGHTS = {"tokenizer": {"w": torch.arange(4.0)}}


@pytest.fixture
def run(tmp_path: Path, debug_config: Path) -> RunFolder:
    """A run with two checkpoints."""
    config = load_config(TrainTokenizerConfig, debug_config)
    folder = RunFolder(tmp_path / "run", config, resume=False, writes=True, model="tokenizer")
    folder.begin()
    for step in (5, 10):
        folder.save_checkpoint(step, WEIGHTS, {"rng": torch.zeros(3)}, keep=2)
    return folder


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def sums(content: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "checksums.json").write_text(json.dumps(content))

    return write


def emptied(folder: Path) -> None:
    sums({})(folder)
    cut(folder / "state.pt")


def one_missing(folder: Path) -> None:
    found = json.loads((folder / "checksums.json").read_text())
    del found["tokenizer.safetensors"]
    sums(found)(folder)
    flip(folder / "tokenizer.safetensors")


def pipe(folder: Path) -> None:
    (folder / "state.pt").unlink()
    os.mkfifo(folder / "state.pt")


DAMAGE: list[tuple[Callable[[Path], None], str]] = [
    (sums([]), r"checksums\.json: input should be an object \(found a list\)"),
    (sums(3), r"checksums\.json: .* \(found 3\)"),
    (sums(None), r"checksums\.json: .* \(found None\)"),
    (sums({"state.pt": 3}), r"checksums\.json: state\.pt: .* \(found 3\)"),
    (sums({}), r"checksums\.json: .*no checksum of state\.pt, tokenizer\.safetensors"),
    (emptied, r"checksums\.json: .*no checksum of state\.pt"),
    (one_missing, r"checksums\.json: .*no checksum of tokenizer\.safetensors"),
    (sums({"../step_5/state.pt": "0"}), r"checksums\.json: .*it lists '\.\./step_5/state\.pt'"),
    (lambda f: flip(f / "state.pt"), r"state\.pt: truncated or changed"),
    (lambda f: flip(f / "tokenizer.safetensors"), r"tokenizer\.safetensors: truncated or chan"),
    (lambda f: flip(f / "checksums.json"), "truncated or changed|not valid|missing|no such"),
    (pipe, r"state\.pt: no regular file"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_damaged_checkpoint_is_named(
    run: RunFolder, damage: Callable[[Path], None], message: str
) -> None:
    loaded = run.load_checkpoint()
    assert loaded is not None and loaded[1]["step"] == 10
    damage(run.path / "checkpoints" / "step_10")
    with pytest.raises(RunError, match=message) as caught:
        run.load_checkpoint()
    assert "delete that folder to continue from the one before" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_leftovers_of_a_dead_writer_are_swept_when_the_run_goes_on(
    run: RunFolder, debug_config: Path
) -> None:
    left = run.path / "checkpoints" / ".step_15.0123abcd.partial"
    (left / "step_15").mkdir(parents=True)
    (left / "step_15" / "state.pt").write_bytes(b"half")
    about = {"tessella": "writer", "machine": os.uname().nodename, "process": 1}
    (left / "step_15.writer").write_text(json.dumps(about))
    config = load_config(TrainTokenizerConfig, debug_config)
    RunFolder(run.path, config, resume=True, writes=True).begin()
    assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == ["step_10", "step_5"]


def test_the_lock_of_a_run_follows_no_link(tmp_path: Path, debug_config: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "new")
    config = load_config(TrainTokenizerConfig, debug_config)
    folder = RunFolder(tmp_path / "run", config, resume=False, writes=True)
    with pytest.raises(SaveError, match=r"\.lock: .*symbolic link"):
        folder.begin()
    assert not (tmp_path / "new").exists()


LOG = [
    '{"step": 1, "loss": 0.5, "name": "\u2028"}',
    '{"step": 2, "lo',
    "[3]",
    "null",
    '{"step": "4"}',
    '{"loss": 4.5}',
    '{"step": 5, "loss": NaN}',
    '{"step": 6, "loss": "low"}',
    '{"step": 9, "loss": 0.1}',
]


def test_a_damaged_line_costs_no_other_line_and_is_said(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join([*LOG, '{"step": 7, "lo']), encoding="utf-8")
    assert [record["step"] for record in read_log(path)] == [1, 5, 6, 9]
    assert read_log(path)[0]["name"] == "\u2028"
    faults = forget_after(path, 6)
    assert [record["step"] for record in read_log(path)] == [1, 5, 6]
    assert len(faults) == 5
    parts = ("2: not valid", "3: input", "4: input", "5: step: expected", "6: step: expected")
    for part, fault in zip(parts, faults, strict=True):
        assert f"{path}: line {part}" in fault and "the line is left out" in fault
    assert forget_after(path, 6) == []


def test_a_log_that_is_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    for read in (read_log, lambda path: forget_after(path, 3)):
        with pytest.raises(LogError, match=r"log\.jsonl: a folder, expected a file"):
            read(tmp_path / "log.jsonl")
    assert read_log(tmp_path / "nothing.jsonl") == forget_after(tmp_path / "nothing.jsonl", 1) == []
    assert not (tmp_path / "nothing.jsonl").exists()


@over("value", ["low", [1], {"a": 1}, None])
def test_values_that_are_no_numbers_are_not_drawn(value: Any, tmp_path: Path) -> None:
    records = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": value}, {"step": 3, "loss": 0.1}]
    assert draw_curves(records, tmp_path / "curves.png", {"loss": ["loss"]})
