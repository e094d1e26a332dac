"""What a run of train/generator.py leaves behind: store, log, pictures, and the averaged model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import load_file

import tessella
from tessella.checkpoints import load_generator
from tessella.config import load_config
from tessella.sample.generate import generate
from tessella.tests.train.conftest import KINDS, quick_samples
from tessella.tokens.store import TokenStore
from tessella.train.generator_recipe import TrainGeneratorConfig


def test_the_store_holds_every_view(generator_run: Any, classes: Path) -> None:
    """Thirty pictures twice; `--resume` and other runs read the same store."""
    store = TokenStore(generator_run.out / "store")
    assert len(store) == 60 and store.augmentation.bincount().tolist() == [30, 30]
    assert store.classes == ("blob", "dot", "sky") and store.header.source == classes.name
    assert "not verified: " in generator_run.output  # the fixture's tokenizer stores no images
    assert "wrote " in generator_run.output and "60 images and views" in generator_run.output


def test_the_resolved_config_rebuilds_the_run(generator_run: Any) -> None:
    """The number of classes comes from the data."""
    config = load_config(TrainGeneratorConfig, generator_run.out / "config.yaml")
    assert config.generator.num_classes == 3 and config.data.views == 2


def test_the_log_is_complete_json(generator_run: Any) -> None:
    """20 training lines with rate, speed, norm and buckets, and two validations."""
    lines = (generator_run.out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    training = [record for record in records if "loss" in record]
    assert [record["step"] for record in training] == list(range(1, 21))
    assert [record["images"] for record in training] == list(range(8, 161, 8))
    wanted = {"masked_loss", "masked_accuracy", "uniform_loss", "grad_norm", "lr"}
    assert all(wanted | {"images_per_second"} <= record.keys() for record in training)
    buckets = [f"masked_loss_{low}_{low + 25}" for low in (0, 25, 50, 75)]
    seen = [sum(name in record for record in training) for name in buckets]
    assert min(seen) > 0 and seen[0] < 20  # an empty bucket is left out
    assert training[0]["uniform_loss"] == pytest.approx(torch.tensor(16.0).log().item())
    validation = [record for record in records if "val_masked_loss" in record]
    assert [record["step"] for record in validation] == [10, 20]
    assert all({f"val_{name}" for name in buckets} < record.keys() for record in validation)


def test_samples_and_curves_are_drawn(generator_run: Any) -> None:
    """One picture of each of three classes, eight to a row at most, with names below."""
    folder = generator_run.out / "samples"
    assert sorted(p.name for p in folder.iterdir()) == ["step_0000010.png", "step_0000020.png"]
    with Image.open(folder / "step_0000020.png") as image:
        assert image.width == 3 * 16 + 4 * 2 and image.height > 16 + 2 * 2
    with Image.open(generator_run.out / "curves.png") as image:
        assert image.format == "PNG" and min(image.size) > 300


def test_the_final_folder_holds_the_averaged_weights(generator_run: Any, classes: Path) -> None:
    """`generator/` is the EMA of the last checkpoint, loads, and samples as the run did."""
    folder = generator_run.out / "checkpoints" / "step_20"
    saved = load_file(generator_run.out / "generator" / "model.safetensors")
    averaged = load_file(folder / "ema.safetensors")
    live = load_file(folder / "generator.safetensors")
    assert saved.keys() == averaged.keys() == live.keys()
    assert all(torch.equal(saved[name], averaged[name]) for name in saved)
    assert any(not torch.equal(saved[name], live[name]) for name in saved)
    generator = tessella.load_generator(generator_run.out / "generator")
    assert generator.classes == ("blob", "dot", "sky") and generator.num_classes == 3
    card = generator.card
    assert card is not None and card["steps"] == 20 and card["images_seen"] == 160
    facts = {"source": classes.name, "images": 30, "rows": 60, "tokens": "store", "licence": None}
    assert card["data"] == facts and card["seed"] == 0 and card["processes"] == 1
    assert card["sampling"]["num_steps"] == 2 and card["sampling"]["guidance"] == 2.0
    measured = [r for r in generator_run.records() if "val_masked_loss" in r][-1]
    assert card["validation"]["val_masked_loss"] == measured["val_masked_loss"]
    tokens = tessella.generate(generator, [0, 2], seeds=[5, 6])
    assert generator.tokenizer.decode(tokens).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("tokens", ["store", "images"])
def test_without_classes_it_is_unconditional(
    tokens: str,
    generator_command: Callable[..., Result],
    pictures: Path,
    tmp_path: Path,
) -> None:
    """Flat folders of 32-pixel pictures: no labels, hence no guidance."""
    out = tmp_path / "run"
    words = [f"data.source={pictures}", "run.steps=2", f"data.tokens={tokens}"]
    result = generator_command("--out", out, *words)
    assert result.exit_code == 1
    assert "samples.guidance: 2, but without classes there is nothing to guide" in result.output
    assert not out.exists()
    result = generator_command("--out", out, *words, "samples.guidance=1.0")
    assert result.exit_code == 0, result.output
    assert tessella.load_generator(out / "generator").num_classes == 0
    assert (out / "store").exists() == (tokens == "store")


def test_labels_can_be_ignored(
    generator_command: Callable[..., Result], store: Path, tmp_path: Path
) -> None:
    """num_classes 0 on a store with labels trains an unconditional generator."""
    words = [f"data.store={store}", "generator.num_classes=0", "samples.guidance=1.0"]
    result = generator_command("--out", tmp_path / "run", *words, "run.steps=2")
    assert result.exit_code == 0, result.output
    assert tessella.load_generator(tmp_path / "run" / "generator").num_classes == 0


def test_broken_image_is_skipped_and_listed(
    generator_command: Callable[..., Result], classes: Path, tmp_path: Path
) -> None:
    """Whether the run encodes it beforehand or in each step."""
    data = tmp_path / "data"
    shutil.copytree(classes, data)
    path = data / "train" / "dot" / "03.png"
    path.write_bytes(path.read_bytes()[:60])
    for tokens in ("store", "images"):
        out = tmp_path / tokens
        words = ["run.steps=4", f"data.source={data}", f"data.tokens={tokens}"]
        result = generator_command("--out", out, *words)
        assert result.exit_code == 0, result.output
        assert "skipped broken image dot/03.png: " in result.output


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_resumes_and_samples(
    kind: str, generator_script: Any, tmp_path: Path
) -> None:
    words = (
        KINDS[kind],
        "data.tokens=images",
        quick_samples(kind),
        "run={steps: 4, checkpoint_every: 2, log_every: 1, preview_every: 4, evaluate_every: 4}",
    )
    straight = generator_script(tmp_path / "straight", *words)
    assert straight.statuses == [0], straight.output
    killed = generator_script(tmp_path / "run", *words, signals={0: ("SIGKILL", 3)})
    assert killed.statuses == [-9], killed.output
    resumed = generator_script(tmp_path / "run", *words, "--resume")
    assert resumed.statuses == [0], resumed.output
    assert resumed.differences(resumed.weights(4), straight.weights(4)) == []
    generator = load_generator(tmp_path / "run" / "generator")
    tokens = generate(generator, [0, 1])
    assert generator.tokenizer.decode(tokens).isfinite().all()
