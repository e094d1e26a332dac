"""The programs of docs/metrics.md run; that of the FID gives the number that `evaluate` gives."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import tessella
from tessella.cli.main import main
from tessella.data.images import save_png
from tessella.data.loader import eval_batches
from tessella.data.sources import open_source
from tessella.metrics.networks.build import available_features

METRICS = Path(tessella.__file__).parent / "docs" / "metrics.md"
FEW = 8
FOUND = available_features()
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.mark.slow
@pytest.mark.skipif(not FOUND["efflite0"], reason="no weights of efflite0")
def test_the_examples_run_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of them but the FID of all bundled images, which the test below limits to a few."""
    monkeypatch.chdir(tmp_path)
    examples = [p for p in BLOCK.findall(METRICS.read_text("utf-8")) if "LIMIT = None" not in p]
    for program in examples:
        exec(compile(program, METRICS.name, "exec"), {})
    assert "not comparable: gFID under bundled-" in capsys.readouterr().out
    assert (tmp_path / "nearest.png").is_file()


@pytest.mark.slow
@pytest.mark.skipif(
    not (FOUND["inception_fid"] and FOUND["efflite0"]), reason="no weights of Inception, efflite0"
)
def test_fid_in_20_lines_is_the_fid_of_evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not os.environ.get("TESSELLA_CACHE"):
        monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "cache"))
    for split in ("val", "train"):
        for batch in eval_batches(open_source("bundled:emoji", split), 64, FEW, FEW):
            for i, image in enumerate(batch["images"]):
                save_png(image, tmp_path / "data" / split / f"{i}.png")
    words = ["evaluate", "--samples", tmp_path / "data" / "val", "--data", tmp_path / "data"]
    words += ["--protocol", "val-paired", "--split", "train", "--nearest", 0]
    result = CliRunner().invoke(main, [*map(str, words), "--out", str(tmp_path / "report")])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["protocol"]["reference_images"] == report["protocol"]["num_samples"] == FEW

    section = METRICS.read_text(encoding="utf-8").partition("## FID in 20 lines")[2]
    found = BLOCK.search(section)
    assert found is not None
    program = found.group(1)
    assert len(program.splitlines()) <= 20 and program.count("LIMIT = None") == 1
    names: dict[str, Any] = {}
    exec(compile(program.replace("LIMIT = None", f"LIMIT = {FEW}"), METRICS.name, "exec"), names)
    assert names["fid"] == pytest.approx(report["metrics"]["gFID"]["mean"], rel=1e-6)
    assert f"of {FEW} images to {FEW}, inception_fid#" in capsys.readouterr().out
