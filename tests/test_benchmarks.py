"""Benchmarks that write a file or a folder refuse one that exists, before they measure."""

import importlib
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

GIVEN = {"gallery": ["--row", "a=bundled:maskbit-emoji-64"]}


@pytest.mark.parametrize(
    "name",
    ["attention", "entropy_memory", "frechet", "gallery", "kernels", "sampling", "training"],
)
def test_an_existing_output_is_refused_first(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"tessella.benchmarks.{name}")
    out = tmp_path / "results.json"
    out.write_text("kept")
    words = [*GIVEN.get(name, []), "--out", str(out)]
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    if isinstance(module.main, click.Command):
        result = CliRunner().invoke(module.main, words)
        assert result.exit_code != 0
        error = f"{result.exception} {result.output}"
    else:
        monkeypatch.setattr(sys, "argv", [name, *words])
        with pytest.raises(FileExistsError) as refused:
            module.main()
        error = str(refused.value)
    refusals = ("exists already", "is a file; a folder of that name cannot be written")
    assert any(f"{out} {refusal}" in error for refusal in refusals)
    assert out.read_text() == "kept"
