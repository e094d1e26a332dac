"""What a run leaves behind: pictures of the right size, curves, and the averaged model."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics  # noqa: F401  imports matplotlib where it is installed, so before it is hidden
from click.testing import Result
from PIL import Image
from safetensors.torch import load_file

from tessella import load_tokenizer
from tessella.tokenizers.probe import verify_probe
from tessella.train.pictures import CURVES_HINT, draw_curves, draw_reconstructions

GAP = 2  # pixels around every image of a grid


def test_preview_grids(debug_run: Any) -> None:
    """Every preview_every steps: 16 validation images of 32 pixels, 8 a row, originals above."""
    folder = debug_run.out / "previews"
    assert sorted(p.name for p in folder.iterdir()) == ["step_0000010.png", "step_0000020.png"]
    shown = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())]
    height, width, _ = shown[0].shape
    assert (height, width) == (4 * 32 + 5 * GAP, 8 * 32 + 9 * GAP)
    assert shown[1].shape == shown[0].shape
    differs = (shown[0] != shown[1]).any(axis=(1, 2))
    rows = [differs[GAP + row * (32 + GAP) :][:32] for row in range(4)]
    assert not rows[0].any() and not rows[2].any()  # originals stay
    assert rows[1].any() and rows[3].any()  # reconstructions change


def test_reconstructions_keep_order_and_values(tmp_path: Path) -> None:
    """Three images: one row of them, one row of their reconstructions."""
    originals = torch.linspace(-1, 1, 3)[:, None, None, None].expand(3, 3, 4, 4)
    draw_reconstructions(originals, -originals, tmp_path / "grid.png")
    pixels = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    assert pixels.shape == (2 * 4 + 3 * GAP, 3 * 4 + 4 * GAP, 3)
    assert pixels[GAP, [GAP, -GAP - 1], 0].tolist() == [0, 255]
    assert pixels[-GAP - 1, [GAP, -GAP - 1], 0].tolist() == [255, 0]


def test_curves_are_drawn(debug_run: Any) -> None:
    pytest.importorskip("matplotlib")
    with Image.open(debug_run.out / "curves.png") as image:
        assert image.format == "PNG" and min(image.size) > 300
    assert CURVES_HINT not in debug_run.output


def test_a_curve_of_one_point_is_seen(tmp_path: Path) -> None:
    """One validation is a point in its panel, not an empty panel."""
    pytest.importorskip("matplotlib")
    path = tmp_path / "curves.png"  # a panel named like its only series has no legend
    assert draw_curves([{"step": 10, "psnr": 20.0}], path, {"psnr": ["psnr"]})
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert int((np.ptp(pixels, axis=2) > 60).sum()) > 20


def test_without_matplotlib_a_hint_and_no_curves(
    command: Callable[..., Result],
    debug_config: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None in sys.modules makes the import fail as if it were not installed; the run ends well."""
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    out = tmp_path / "run"
    words = ["run.steps=2", "run.preview_every=1", f"data.source={pictures}"]
    result = command("--config", debug_config, "--out", out, *words)
    assert result.exit_code == 0, result.output
    assert result.output.count(CURVES_HINT) == 1
    assert not (out / "curves.png").exists()
    assert len(list((out / "previews").iterdir())) == 2
    assert not draw_curves([{"step": 1, "a": 1.0}], tmp_path / "c.png", {"a": ["a"]})


def test_the_final_folder_holds_the_averaged_weights(debug_run: Any) -> None:
    """`tokenizer/` is the EMA of the last checkpoint, tensor by tensor, and loads."""
    saved = load_file(debug_run.out / "tokenizer" / "model.safetensors")
    folder = debug_run.out / "checkpoints" / "step_20"
    averaged, live = (
        load_file(folder / "ema.safetensors"),
        load_file(folder / "tokenizer.safetensors"),
    )
    assert saved.keys() == averaged.keys() == live.keys()
    assert all(torch.equal(saved[name], averaged[name]) for name in saved)
    assert any(not torch.equal(saved[name], live[name]) for name in saved)
    tokenizer = load_tokenizer(debug_run.out / "tokenizer")
    assert verify_probe(tokenizer, debug_run.out / "tokenizer").largest_difference < 1e-9
    card = tokenizer.card
    assert card is not None and card["steps"] == 20 and card["images_seen"] == 160
    assert card["processes"] == 1 and card["data"]["source"] == "emoji" and card["seed"] == 0
    measured = [record for record in debug_run.records() if "psnr" in record][-1]
    assert card["validation"]["psnr"] == measured["psnr"]


def test_the_log_is_complete_json(debug_run: Any) -> None:
    """One object a line; 20 training lines with rate, speed, norms and token statistics."""
    lines = (debug_run.out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    training = [record for record in records if "loss" in record]
    assert [record["step"] for record in training] == list(range(1, 21))
    assert [record["images"] for record in training] == list(range(8, 161, 8))
    wanted = {"reconstruction", "perceptual", "commitment", "entropy", "grad_norm", "lr"}
    wanted |= {"images_per_second", "codebook_usage", "num_stuck_bits"}
    assert all(wanted <= record.keys() for record in training)
    assert all("discriminator" in r for r in training[4:]) and "discriminator" not in training[3]
    assert all("adversarial" in r for r in training[6:]) and "adversarial" not in training[5]


def test_a_single_measurement_is_seen(tmp_path: Path) -> None:
    """One validation is a point, not an empty panel."""
    drawn = []
    for name, records in (("one", [{"step": 5, "psnr": 20.0}]), ("none", [{"step": 5, "x": 1.0}])):
        path = tmp_path / f"{name}.png"
        assert draw_curves(records, path, {"PSNR (dB)": ["psnr"]})
        drawn.append(path)
    pixels = np.asarray(Image.open(drawn[0]).convert("RGB")).astype(int)
    blue = (abs(pixels - (31, 119, 180)).sum(-1) < 30).sum()
    assert blue > 20 and not drawn[1].exists()
