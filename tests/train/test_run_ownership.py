"""A run loads, replaces and removes what is its own, and refuses the rest before it trains."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from tessella.config import load_config
from tessella.files import MARKER, atomic_folder, read_marker, write_marker
from tessella.train.run_folder import RunError, RunFolder
from tessella.train.tokenizer_recipe import TrainTokenizerConfig

Command = Callable[..., Result]
WEIGHTS = {"tokenizer": {"w": torch.zeros(2)}}


def contents(root: Path) -> dict[str, bytes]:
    """Every file below a folder, byte for byte."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def begun(path: Path, config: Path, *, resume: bool = False) -> RunFolder:
    """A run folder that has been taken."""
    loaded = load_config(TrainTokenizerConfig, config)
    folder = RunFolder(path, loaded, resume=resume, writes=True, model="tokenizer")
    folder.begin()
    return folder


def steps(folder: RunFolder) -> list[str]:
    return [path.name for path in folder.checkpoints()]


def old_run(path: Path, config: Path) -> Path:
    """A run with checkpoints of steps 5 and 100, as version 0.5 left it: without markers."""
    folder = begun(path, config)
    for step in (5, 100):
        folder.save_checkpoint(step, WEIGHTS, {}, keep=2)
    for marker in list(path.rglob(MARKER)):
        marker.unlink()
    return path


NAMES = ("config.yaml", "log.jsonl", "curves.png", "previews", "samples", "store", "checkpoints")
NAMES += ("tokenizer", "generator", MARKER)


@pytest.mark.parametrize("name", NAMES)
def test_a_new_run_refuses_a_folder_with_a_name_that_it_writes(
    name: str, command: Command, debug_config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "models"
    if "." in name:
        out.mkdir()
        (out / name).write_bytes(b"mine")
    else:
        (out / name / "deep").mkdir(parents=True)
        (out / name / "deep" / "model.safetensors").write_bytes(b"mine")
    before = contents(tmp_path)
    result = command("--config", debug_config, "--out", out)
    assert result.exit_code == 1 and "Traceback" not in result.output
    expected = "holds a run already" if name == "config.yaml" else f"but no run: {name}"
    assert expected in result.output and "another --out" in result.output
    assert contents(tmp_path) == before


def test_a_new_generator_run_refuses_as_well(generator_command: Command, tmp_path: Path) -> None:
    mine = tmp_path / "models" / "generator" / "model.safetensors"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    result = generator_command("--out", tmp_path / "models")
    assert result.exit_code == 1 and "but no run: generator; choose another" in result.output
    assert contents(tmp_path) == {"models/generator/model.safetensors": b"mine"}


def test_a_model_folder_is_no_run(command: Command, debug_config: Path, tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "model", kind="tokenizer") as folder:
        (folder / "config.yaml").write_text("{}")
    before = contents(tmp_path)
    for words in ((), ("--resume",)):
        result = command("--config", debug_config, "--out", tmp_path / "model", *words)
        assert result.exit_code == 1 and "holds a tokenizer, not a run" in result.output
    assert contents(tmp_path) == before


def test_unrelated_names_may_stand_beside_a_run(debug_config: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_bytes(b"mine")
    folder = begun(tmp_path, debug_config)
    assert read_marker(tmp_path) == {
        "kind": "run",
        "files": {},
        "run": folder.id,
        "adopted": [],
    }
    assert (tmp_path / "notes.md").read_bytes() == b"mine"
    assert begun(tmp_path, debug_config, resume=True).id == folder.id


def test_only_own_checkpoints_are_removed(debug_config: Path, tmp_path: Path) -> None:
    """The newest two stay; so do one with somebody's notes, and names that are no step's."""
    folder = begun(tmp_path / "run", debug_config)
    places = tmp_path / "run" / "checkpoints"
    for step in (1, 2, 3, 4):
        folder.save_checkpoint(step, WEIGHTS, {}, keep=2)
        if step == 1:
            (places / "step_1" / "notes.md").write_bytes(b"mine")
            (places / "step_best").mkdir()
            (places / "step_best" / "x").write_bytes(b"mine")
    assert sorted(p.name for p in places.iterdir()) == ["step_1", "step_3", "step_4", "step_best"]
    assert (places / "step_1" / "notes.md").read_bytes() == b"mine"
    assert steps(folder) == ["step_1", "step_3", "step_4"]
    marker = read_marker(places / "step_4")
    assert marker is not None and (marker["kind"], marker["run"]) == ("checkpoint", folder.id)


def put_another_runs(run: Path, config: Path) -> None:
    other = begun(run.parent / "other", config)
    other.save_checkpoint(100, WEIGHTS, {}, keep=1)
    shutil.copytree(other.path / "checkpoints" / "step_100", run / "checkpoints" / "step_100")


def put_unmarked(run: Path, config: Path) -> None:
    put_another_runs(run, config)
    (run / "checkpoints" / "step_100" / MARKER).unlink()


def put_file(run: Path, config: Path) -> None:
    (run / "checkpoints" / "step_100").write_bytes(b"mine")


@pytest.mark.parametrize("put", [put_another_runs, put_unmarked, put_file])
def test_a_left_over_step_is_never_loaded_and_makes_the_run_refuse(
    put: Callable[[Path, Path], None], debug_config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    folder = begun(run, debug_config)
    folder.save_checkpoint(10, WEIGHTS, {"what": "ours"}, keep=1)
    put(run, debug_config)
    before = contents(run)
    assert steps(folder) == ["step_10"]
    found = folder.load_checkpoint()
    assert found is not None and found[1] == {"step": 10, "what": "ours"}
    with pytest.raises(RunError, match="not checkpoints of this run: checkpoints/step_100; move"):
        begun(run, debug_config, resume=True)
    assert contents(run) == before
    folder.save_checkpoint(20, WEIGHTS, {}, keep=1)
    with pytest.raises(FileExistsError, match="step_100"):
        folder.save_checkpoint(100, WEIGHTS, {}, keep=1)
    kept = {name: blob for name, blob in before.items() if "step_100" in name}
    assert kept and kept.items() <= contents(run).items()
    assert steps(folder) == ["step_20"]


def test_a_new_run_refuses_left_over_checkpoints(
    command: Command, debug_config: Path, tmp_path: Path
) -> None:
    put_another_runs(tmp_path / "run", debug_config)
    before = contents(tmp_path / "run")
    result = command("--config", debug_config, "--out", tmp_path / "run")
    assert result.exit_code == 1 and "but no run: checkpoints; choose" in result.output
    assert contents(tmp_path / "run") == before


def test_a_run_of_version_0_5_resumes_and_keeps_its_checkpoints(
    debug_config: Path, tmp_path: Path
) -> None:
    run = old_run(tmp_path / "run", debug_config)
    before = contents(run / "checkpoints")
    folder = begun(run, debug_config, resume=True)
    assert steps(folder) == ["step_5", "step_100"]
    found = folder.load_checkpoint()
    assert found is not None and found[1]["step"] == 100
    again = begun(run, debug_config, resume=True)  # killed before it saved anything
    assert again.id == folder.id and steps(again) == ["step_5", "step_100"]
    for step in (101, 102):
        again.save_checkpoint(step, WEIGHTS, {}, keep=1)
    assert steps(again) == ["step_5", "step_100", "step_102"]
    assert before.items() <= contents(run / "checkpoints").items()


@pytest.mark.parametrize("marked", ["by nobody", "by another run", "as another kind"])
def test_a_model_that_is_not_this_runs_stops_it_before_the_first_step(
    marked: str, debug_config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    folder = begun(run, debug_config)
    model = run / "tokenizer"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"mine")
    kind = "generator" if marked == "as another kind" else "tokenizer"
    if marked != "by nobody":
        write_marker(model, kind, {"model.safetensors": 4}, run="other")
    before = contents(run)
    message = "holds no tokenizer" if marked != "by another run" else "a tokenizer of another run"
    with pytest.raises(RunError, match=f"{message}.*model.safetensors"):
        begun(run, debug_config, resume=True)
    assert contents(run) == before
    write_marker(model, "tokenizer", {"model.safetensors": 4}, run=folder.id)
    begun(run, debug_config, resume=True)


def test_a_finished_run_marks_what_it_made(debug_run: Any) -> None:
    marker, made = read_marker(debug_run.out), read_marker(debug_run.out / "tokenizer")
    assert marker is not None and made is not None
    assert (made["kind"], made["run"]) == ("tokenizer", marker["run"])
    assert "probe.safetensors" in made["files"]
    steps_of = (debug_run.out / "checkpoints").glob("step_*")
    found = {json.loads((step / MARKER).read_text())["run"] for step in steps_of}
    assert found == {marker["run"]}
