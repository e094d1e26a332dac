"""`make demo` in small: every picture and file that it promises is there."""

import json
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
    short = ["--steps", "2", "--generator-steps", "2", "--views", "2"]
    done = subprocess.run(
        [sys.executable, str(DEMO), "--out", str(out), *short, *settings],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    promised = ["tokenizer/tokenizer", "generator/generator", "store", "samples/grid.png"]
    promised += [
        "report/report.html",
        "reconstructions/grid.png",
        "tokenizer/curves.png",
        "generator/curves.png",
    ]
    for path in promised:
        assert (out / path).exists(), path
        assert str(out / path) in done.stdout, path
    store = tessella.TokenStore(out / "store")
    assert len(store) == 2 * 1381
    lines = (out / "samples" / "images.jsonl").read_text()
    records = [json.loads(line) for line in lines.splitlines()]
    assert len(records) == 52 and {record["class"] for record in records} == set(store.classes)
    assert all((out / "samples" / record["file"]).is_file() for record in records)
    with Image.open(out / "samples" / "grid.png") as grid:
        assert grid.width > 13 * 64 and grid.height > 4 * 64
