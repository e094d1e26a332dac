"""The program of docs/text.md prints what stands beside it."""

import re
from pathlib import Path

import pytest

import tessella
from tessella.text.byte_text import BytesConfig, BytesEncoder
from tessella.text.words import FOLDER, VECTORS_FILE, WORDS_FILE, load_words

TEXT = (Path(tessella.__file__).parent / "docs" / "text.md").read_text(encoding="utf-8")


def test_the_program_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(compile(program, "text.md", "exec"), {})
    expected = [
        line.rpartition("# ")[2] for line in program.splitlines() if line.startswith("print")
    ]
    printed = capsys.readouterr().out.splitlines()
    assert len(expected) == 2
    assert printed == expected


def test_the_figures_are_those_of_the_encoders() -> None:
    table = load_words()
    assert f"{len(table.rows):,} English words" in TEXT
    size = sum((FOLDER / name).stat().st_size for name in (WORDS_FILE, VECTORS_FILE))
    assert f"{size / 1e6:.1f} MB of the package" in TEXT
    weights = sum(p.numel() for p in BytesEncoder(BytesConfig()).parameters())
    assert f"{round(weights, -4):,} weights by default" in TEXT
    assert " ".join(table.pieces("unhappyish")).replace(" ", " and ") in TEXT
