"""Every command and program of the README that does not train runs as printed, on few images."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tessella.cli.main import main
from tessella.tests.cases import over

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what README commands name, so that nothing is written to the repository."""
    shutil.copytree(ROOT / "docs" / "images", tmp_path / "docs" / "images")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_examples_run(checkout: Path) -> None:
    encoding, sampling = blocks("python")
    exec(compile(encoding, "README.md", "exec"), {})
    assert (checkout / "decoded" / "000000.png").is_file()
    names: dict[str, Any] = {}
    exec(compile(sampling, "README.md", "exec"), names)
    assert names["images"].shape == (3, 3, 64, 64) and names["edited"].shape == (1, 3, 64, 64)


@pytest.mark.slow
def test_the_commands_run_in_order(checkout: Path) -> None:
    commands = [
        shlex.split(line, comments=True)
        for block in blocks("bash")
        for line in block.splitlines()
        if line.startswith("tessella ")
    ]
    commands = [words for words in commands if "--fetch" not in words]
    assert len(commands) >= 4
    for words in commands:
        if words[1] == "evaluate":  # as printed, but on few images and with a fast network
            words += shlex.split("--num 24 --repeats 1 --features efflite0")
            words += ["--nearest", "8"] if "--generator" in words else []
            words += ["--nearest", "0"] if "--num-steps" in words else []  # looked for once
        words += ["--limit", "8"] if words[1] in ("bits", "reconstruct") else []
        words += ["--num", "13"] if words[1] == "sample" and "52" in words else []
        result = CliRunner().invoke(main, words[1:])
        assert result.exit_code == 0, f"{shlex.join(words)}: {result.output}"


def test_every_path_in_the_readme_exists() -> None:
    named = re.findall(r"\]\(([^)#:]+)\)|configs/\w+/\w+\.yaml", README)
    for path in filter(None, named):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"configs/\w+/\w+\.yaml", README):
        assert (ROOT / path).is_file(), path


@over("document", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_every_link_of_the_documents_leads_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for path in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (document.parent / path).exists(), path
