"""`make demo` in small: every picture and file that it promises is there."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

import tessella
from tessella.demo.quickstart import choose_folder, main, run

DEMO = Path(tessella.__file__).parent / "demo" / "quickstart.py"
SIDE = 32
TINY = [
    f"tokenizer.resolution={SIDE}",
    "tokenizer.autoencoder.base_channels=8",
    "tokenizer.autoencoder.norm_groups=4",
    "run.batch_size_per_device=2",
    "run.mixed_precision=no",
    "losses.perceptual=[random]",
]
"""Overrides of the tokenizer's training: small images, networks and batches."""


@pytest.fixture
def few_pictures(tmp_path: Path) -> Path:
    """A folder of four pictures to validate the tokenizer with."""
    folder = tmp_path / "pictures"
    (folder / "val").mkdir(parents=True)
    for i in range(4):
        Image.linear_gradient("L").resize((SIDE, SIDE)).rotate(90 * i).save(
            folder / "val" / f"{i}.png"
        )
    return folder


@pytest.mark.slow
def test_demo_makes_what_it_says(tmp_path: Path, few_pictures: Path) -> None:
    out = tmp_path / "demo"
    settings = [*TINY, f"data.val_source={few_pictures}"]
    short = ["--steps", "1", "--generator-steps", "1", "--views", "2"]
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
        assert grid.width > 13 * SIDE and grid.height > 4 * SIDE


def test_demo_takes_the_first_free_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert choose_folder(None) == Path("runs/demo")
    Path("runs/demo").mkdir(parents=True)
    assert choose_folder(None) == Path("runs/demo")
    Path("runs/demo/mine.txt").write_bytes(b"mine")
    assert choose_folder(None) == Path("runs/demo-2")
    Path("runs/demo-2").write_bytes(b"a file")
    assert choose_folder(None) == Path("runs/demo-3")
    assert choose_folder(Path("elsewhere")) == Path("elsewhere")
    assert Path("runs/demo/mine.txt").read_bytes() == b"mine"


def test_demo_refuses_a_folder_that_holds_something(tmp_path: Path) -> None:
    for name in ("1", "2", "3", "4"):
        (tmp_path / name).write_bytes(b"mine")
    for out, found in ((tmp_path, "1, 2, 3 and 1 more"), (tmp_path / "1", "a file")):
        result = CliRunner().invoke(main, ["--out", str(out)])
        assert result.exit_code == 1 and f"is not empty, there is {found}" in result.output
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == dict.fromkeys("1234", b"mine")


def test_make_demo_removes_nothing() -> None:
    recipe = (DEMO.parent.parent / "Makefile").read_text().split("\ndemo:")[1].split("\n\n")[0]
    assert "demo/quickstart.py" in recipe and "rm " not in recipe


@pytest.mark.parametrize(("value", "bold"), [("", True), ("1", False)])
def test_no_color_is_respected(value: str, bold: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands that are shown are in bold type on a terminal, unless NO_COLOR is set."""
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("NO_COLOR", value)
    run("tessella", ["-c", "pass"], ("models",))
    assert stderr.getvalue() == (
        "\x1b[1m\n$ tessella models\x1b[0m\n" if bold else "\n$ tessella models\n"
    )
