"""`make demo` in small: every picture and file that it promises is there."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import tessella

DEMO = Path(tessella.__file__).parent / "train" / "demo.py"
TINY = ["tokenizer.autoencoder.base_channels=8", "tokenizer.autoencoder.norm_groups=4"]


@pytest.mark.slow
def test_demo_makes_what_it_says(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    settings = [*TINY, "run.batch_size_per_device=2", "losses.perceptual=[random]"]
    done = subprocess.run(
        [sys.executable, str(DEMO), "--out", str(out), "--steps", "2", *settings],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "1536 bits" in done.stdout and "(192 bytes) an image" in done.stdout
    promised = ["run/tokenizer", "run/curves.png", "run/previews", "pictures", "store"]
    promised += ["decoded/grid.png", "reconstructions/grid.png"]
    for path in promised:
        assert (out / path).exists(), path
        assert str(out / path) in done.stdout, path
    assert len(list((out / "decoded").glob("*.png"))) == 64 + 1
    with Image.open(out / "reconstructions" / "grid.png") as grid:
        assert min(grid.size) > 8 * 64
