"""Training a generator learns: in seconds, far below knowing nothing, and visible tokens help."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

STEPS = 150


@pytest.fixture(scope="module")
def plain_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one colour out of sixteen: any visible token tells all the others."""
    root = tmp_path_factory.mktemp("plain")
    colours = np.random.default_rng(0).integers(0, 256, (16, 3), dtype=np.uint8)
    for split, count in (("train", 64), ("val", 16)):
        (root / split).mkdir()
        for i in range(count):
            pixels = np.broadcast_to(colours[i % 16], (16, 16, 3))
            Image.fromarray(pixels.copy()).save(root / split / f"{i:02d}.png")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["maskbit", "maskgit"])
def test_training_learns(
    kind: str, generator_script: Any, plain_pictures: Path, tmp_path: Path
) -> None:
    """150 steps of 32 pictures, tokens of an untrained tokenizer in two groups of 16.

    The thresholds leave room for other CPUs; behind them, what was measured for MaskBit.
    """
    size = "{width: 64, num_layers: 2, num_heads: 4, dropout: 0.0}"
    form = "label_smoothing: 0.0, codebook_sizes: [16, 16]"
    words = (f"generator={{type: {kind}, transformer: {size}, {form}}}",)
    words += (f"data.source={plain_pictures}", "samples.guidance=1.0", f"run.steps={STEPS}")
    words += ("run.batch_size_per_device=32", "run.log_every=25", f"run.evaluate_every={STEPS}")
    words += (f"run.preview_every={STEPS}", f"run.checkpoint_every={STEPS}")
    words += ("optimizer.lr.peak=1e-2", "optimizer.lr.warmup_steps=10")
    ended = generator_script(tmp_path / "run", *words)
    assert ended.statuses == [0], ended.output
    training = [record for record in ended.records() if "loss" in record]
    (measured,) = [record for record in ended.records() if "val_masked_loss" in record]
    uniform = training[-1]["uniform_loss"]
    assert uniform == pytest.approx(2.7726, abs=1e-4)  # log 16
    assert training[-1]["masked_loss"] < 0.6 * uniform  # 0.94
    assert measured["val_masked_loss"] < 0.6 * uniform  # 1.02
    assert measured["val_masked_loss_0_25"] < 0.6 * measured["val_masked_loss_75_100"]  # 0.45, 1.25
