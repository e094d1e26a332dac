"""What cannot run is refused with one message and exit status 1, and leaves nothing behind."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import tessella.train.tokenizer as script_module
from tessella.config import ConfigError, load_config
from tessella.files import SaveError
from tessella.train.run_folder import RunFolder
from tessella.train.tokenizer_recipe import TrainTokenizerConfig

Command = Callable[..., Result]

SHORT = ("run.steps=2", "run.batch_size_per_device=2", "run.log_every=1")

REFUSED = {
    "unknown key": (["run.stepz=3"], ["run.stepz: unknown key", "did you mean 'steps'?"]),
    "wrong type": (["run.steps=many"], ["run.steps", "integer", "'many'"]),
    "bool for int": (["run.steps=true"], ["run.steps", "integer", "True"]),
    "missing tracker": (["run.trackers=[wand]"], ["run.trackers: wand not installed"]),
    "negative clip": (["optimizer.clip_norm=-1.0"], ["clip_norm: must be > 0, found -1.0"]),
    "negative weight": (["loss_weights.entropy=-1.0"], ["loss_weights.entropy: must be >= 0"]),
    "negative average": (["ema_decay=-3.0"], ["ema_decay: expected 0 to below 1"]),
    "negative ramp": (["adversarial.ramp_steps=-4"], ["ramp_steps >= 0"]),
    "small images": (
        ["tokenizer.resolution=16", "adversarial.discriminator={type: patch}"],
        ["the perceptual network or the discriminator cannot read images of 16 pixels"],
    ),
    "zero steps": (["run.steps=0"], ["steps: expected at least 1, found 0"]),
    "not an override": (["steps"], ["override 'steps': expected key=value"]),
    "weight without loss": (
        ["loss_weights.codebook=1.0"],
        ["weights without a loss: codebook", "losses without a weight: none"],
    ),
    "loss without weight": (
        ["tokenizer.quantizer={type: vq, codebook_size: 8, dim: 4}"],
        ["weights without a loss: entropy", "losses without a weight: codebook"],
    ),
    "lecam without adversarial": (
        ["adversarial=null"],
        ["weights without a loss: adversarial, lecam"],
    ),
    "missing data folder": (["data.source=/nowhere/at/all"], ["/nowhere/at/all: no such file"]),
    "missing validation data": (["data.val_source=nowhere"], ["nowhere: no such file or folder"]),
    "unknown bundled set": (["data.source=bundled:emojy"], ["did you mean bundled:emoji?"]),
}


def _assert_one_message(result: Result, *parts: str) -> None:
    """Exit status 1 and a single `Error:` line that holds every part."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exc_info
    lines = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1 and "Traceback" not in result.output, result.output
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize("what", REFUSED)
def test_refused_before_anything_is_written(
    what: str, command: Command, debug_config: Path, tmp_path: Path
) -> None:
    overrides, parts = REFUSED[what]
    result = command("--config", debug_config, "--out", tmp_path / "run", *overrides)
    _assert_one_message(result, *parts)
    assert not list(tmp_path.iterdir())


def test_missing_config_file(command: Command, tmp_path: Path) -> None:
    result = command("--config", tmp_path / "absent.yaml", "--out", tmp_path / "run")
    _assert_one_message(result, "absent.yaml: cannot read the config")
    assert not list(tmp_path.iterdir())


def test_unknown_option_is_wrong_usage(command: Command, tmp_path: Path) -> None:
    result = command("--outt", tmp_path / "run")
    assert result.exit_code == 2 and "No such option" in result.output
    assert not list(tmp_path.iterdir())


def test_a_run_is_not_overwritten(command: Command, debug_run: Any, debug_config: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in debug_run.out.rglob("*")}
    result = command("--config", debug_config, "--out", debug_run.out, "run.log_every=1")
    _assert_one_message(result, str(debug_run.out), "holds a run already", "--resume", "--out")
    assert {p: p.stat().st_mtime_ns for p in debug_run.out.rglob("*")} == before


def test_nothing_to_resume(command: Command, debug_config: Path, tmp_path: Path) -> None:
    result = command("--config", debug_config, "--out", tmp_path / "run", "--resume")
    _assert_one_message(result, "nothing to resume", "start without --resume")
    assert not list(tmp_path.iterdir())


def test_resume_with_another_config_lists_the_keys(
    command: Command, debug_run: Any, debug_config: Path
) -> None:
    """Keys that make it another run are listed with both values; reporting keys may change."""
    before = (debug_run.out / "config.yaml").read_bytes()
    changed = ["run.batch_size_per_device=4", "optimizer.lr.peak=2e-3", "run.log_every=7"]
    result = command("--config", debug_config, "--out", debug_run.out, "--resume", *changed)
    _assert_one_message(
        result,
        "optimizer.lr.peak: was 0.001, now 0.002",
        "run.batch_size_per_device: was 8, now 4",
    )
    assert "log_every" not in result.output
    assert (debug_run.out / "config.yaml").read_bytes() == before


@pytest.mark.parametrize("file", ["tokenizer.safetensors", "state.pt", "checksums.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_damaged_checkpoint_is_named_and_the_one_before_works(
    file: str, damage: str, command: Command, debug_run: Any, debug_config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(debug_run.out, out)
    newest = out / "checkpoints" / "step_20"
    if damage == "missing":
        (newest / file).unlink()
    else:
        (newest / file).write_bytes((newest / file).read_bytes()[:-40])
    result = command("--config", debug_config, "--out", out, "--resume", "run.log_every=1")
    _assert_one_message(result, str(newest), file, "delete that folder", "of which there are 1")
    shutil.rmtree(newest)
    config = load_config(TrainTokenizerConfig, debug_config)
    folder = RunFolder(out, config, resume=True, writes=True)
    found = folder.load_checkpoint()
    assert found is not None and found[1]["step"] == 10


def test_pixels_out_of_range(
    command: Command, debug_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that delivers [0, 255] is refused before the run folder exists."""
    original = script_module.ImageDataset.__getitems__

    def in_bytes(self: Any, keys: Any) -> dict[str, Any]:
        batch = original(self, keys)
        return batch | {"images": (batch["images"] + 1) * 127.5}

    monkeypatch.setattr(script_module.ImageDataset, "__getitems__", in_bytes)
    result = command("--config", debug_config, "--out", tmp_path / "run", *SHORT)
    _assert_one_message(result, "expected values in [-1, 1]", "divide by 127.5 and subtract 1")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("log_every", [1, 50])
def test_non_finite_loss_stops_the_run(
    log_every: int, command: Command, debug_config: Path, pictures: Path, tmp_path: Path
) -> None:
    """With step and images of the batch; no checkpoint of spoilt weights replaces a good one."""
    out = tmp_path / "run"
    words = ["optimizer.lr.peak=1e30", "optimizer.lr.warmup_steps=0", f"run.log_every={log_every}"]
    words += ["run.steps=8", "run.checkpoint_every=1", "run.keep_checkpoints=1"]
    words += [f"data.source={pictures}", "run.batch_size_per_device=2"]
    result = command("--config", debug_config, "--out", out, *words)
    _assert_one_message(result, "not finite at step ", "last batch: ", ".png", "loss")
    step = int(result.output.split("not finite at step ")[1].split(";")[0])
    (kept,) = (out / "checkpoints").iterdir()
    assert int(kept.name.removeprefix("step_")) == step - 1
    assert not (out / "tokenizer").exists()


@pytest.mark.slow
@pytest.mark.parametrize("limit", [100_000, 700_000])
def test_disk_full_while_saving(
    limit: int, script: Any, debug_run: Any, debug_config: Path, tmp_path: Path
) -> None:
    """The weights (0.56 MB) or the optimizers (1.2 MB) do not fit; earlier checkpoints stay.

    Weights that do not fit are found before the first step: the model is written once as a trial.
    """
    out = tmp_path / "run"
    shutil.copytree(debug_run.out, out)
    shutil.rmtree(out / "checkpoints" / "step_20")
    kept = {p: p.read_bytes() for p in (out / "checkpoints").rglob("*") if p.is_file()}
    words = ("--resume", "run.log_every=1", "run.checkpoint_every=2")
    full = script(out, *words, limit=limit)
    assert full.statuses == [1], full.output
    assert full.output.count("Error: ") == 1 and "Traceback" not in full.output, full.output
    expected = "found in a trial of the end of the run, before the first step"
    if limit > 560_000:
        expected = f"Error: cannot write {out / 'checkpoints' / 'step_12'}: "
    assert expected in full.output
    assert "File too large" in full.output
    assert {p: p.read_bytes() for p in (out / "checkpoints").rglob("*") if p.is_file()} == kept


def test_disk_full_while_logging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / "run", None, resume=False, writes=True)

    def refuse(self: Path, *args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SaveError, match=r"log\.jsonl: No space left on device"):
        folder.log({"step": 1})


def test_broken_image_is_skipped_and_listed(
    command: Command, debug_config: Path, pictures: Path, tmp_path: Path
) -> None:
    """The run ends well; screen and log name the file and the reason."""
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(pictures, data)
    whole = (data / "train" / "03.png").read_bytes()
    (data / "train" / "03.png").write_bytes(whole[: len(whole) // 2])
    words = ["run.steps=3", "run.batch_size_per_device=4", f"data.source={data}"]  # one epoch
    result = command("--config", debug_config, "--out", out, *words)
    assert result.exit_code == 0, result.output
    assert "skipped broken image 03.png: " in result.output
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    (listed,) = [record for record in records if "broken" in record]
    assert listed["broken"] == "03.png" and listed["reason"] and listed["step"] == 3
    assert (out / "tokenizer" / "model.safetensors").exists()


def test_only_broken_images(
    command: Command, debug_config: Path, pictures: Path, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(pictures, data)
    for path in (data / "train").iterdir():
        path.write_bytes(b"no picture")
    result = command("--config", debug_config, "--out", out, f"data.source={data}", *SHORT)
    _assert_one_message(result, "none of 12 images can be read")
    assert not out.exists()


def test_config_faults_come_together(debug_config: Path) -> None:
    """Every fault of a config is in one message."""
    words = ["run.stepz=3", "optimizer.lr.peak=-1.0", "ema_decay=high"]
    with pytest.raises(ConfigError) as caught:
        load_config(TrainTokenizerConfig, debug_config, words)
    assert all(part in str(caught.value) for part in ("run.stepz", "peak", "ema_decay"))
