"""The wheel: what is in it, and that it works where nothing of the repository is in reach.

The wheel is built from a copy of the repository, in which a user has left other folders, and
installed by pip into a new virtual environment that is otherwise empty. The packages that it
requires are not installed again: a .pth file of the environment names the folder in which the tests
find theirs. Python reads no .pth files in a folder named so, so that an editable install of this
repository is not found through it. So these tests prove that the wheel is complete in itself: code,
data and commands. They do not prove that its list of requirements is complete.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

import tessella

ROOT = Path(tessella.__file__).resolve().parent
APART = {"tests", "benchmarks", "docs", "runs", "datasets", "build", "dist"}
"""Folders of the repository that are no part of the wheel."""
STRAY = ("photos/cat.png", "my photos/cat.png", "runs/mine/model.py", "datasets/make.py")
DATA = {
    "assets": "**/*",
    "configs": "**/*.yaml",
    "data": "bundled/**/*",
    "demo": "templates/*.html",
    "evaluation": "report/templates/*.html",
    "page": "static/*",
    "text": "bundled/**/*",
}
"""Files that are no modules, by folder."""


class Installed(NamedTuple):
    """A built wheel, the copy it was built from, the environment into which it was installed."""

    repository: Path
    wheel: Path
    environment: Path

    def run(self, program: str, *words: str | Path, cwd: Path) -> str:
        """Output of a program of the environment, run with none of our variables."""
        variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        return succeed(self.environment / "bin" / program, *words, cwd=cwd, env=variables)


def succeed(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout


def pip(*words: str | Path, cwd: Path) -> None:
    """Run pip without an index."""
    options = ("--no-index", "--no-deps", "--disable-pip-version-check", "--quiet")
    succeed(sys.executable, "-m", "pip", *words, *options, cwd=cwd)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel of a copy of the repository with stray folders in it, installed."""
    root = tmp_path_factory.mktemp("wheel")
    repository = root / "repository"
    repository.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, repository)
        elif path.name in DATA or (path.name.isidentifier() and any(path.rglob("*.py"))):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, repository / path.name, ignore=ignored)
    for name in STRAY:
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("raise SystemExit")
    pip("wheel", ".", "--no-build-isolation", "--wheel-dir", root, cwd=repository)
    (wheel,) = root.glob("*.whl")
    environment = root / "environment"
    succeed(sys.executable, "-m", "venv", "--without-pip", environment, cwd=root)
    pip("--python", environment / "bin" / "python", "install", wheel, cwd=root)
    (packages,) = environment.glob("lib/python*/site-packages")
    outside = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (packages / "requirements.pth").write_text("\n".join(sorted(outside)))
    return Installed(repository, wheel, environment)


@pytest.fixture(scope="module")
def names(installed: Installed) -> set[str]:
    """Paths of the files in the wheel below `tessella/`."""
    with zipfile.ZipFile(installed.wheel) as archive:
        inside = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert all(name.startswith("tessella/") for name in inside)
    return {name.removeprefix("tessella/") for name in inside}


def test_every_module_is_in_it_and_nothing_else(installed: Installed, names: set[str]) -> None:
    """Folders are found, not listed: whoever adds one need not think of the wheel."""
    here = {path.relative_to(installed.repository) for path in installed.repository.rglob("*.py")}
    ours = {str(path) for path in here if path.parts[0] not in APART} - {"setup.py"}
    assert {"config.py", "kernels/bit_packing/op.py", "tokenizers/quantizers/lfq.py"} <= ours
    assert {name for name in names if name.endswith(".py")} == ours


def test_all_data_is_in_it_and_nothing_else(names: set[str]) -> None:
    expected: set[Path] = set()
    for folder, pattern in DATA.items():
        found = {path for path in (ROOT / folder).glob(pattern) if path.is_file()}
        assert found, folder
        expected |= found
    data = {str(p.relative_to(ROOT)) for p in expected if p.suffix != ".py"}
    assert {name for name in names if not name.endswith(".py")} == data


def test_it_requires_what_the_project_says(installed: Installed) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with zipfile.ZipFile(installed.wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(path).decode())
    assert metadata["Version"] == tessella.__version__
    required = {Requirement(text) for text in metadata.get_all("Requires-Dist") or []}
    always = {str(requirement) for requirement in required if requirement.marker is None}
    assert always == {str(Requirement(text)) for text in project["dependencies"]}


def test_it_works_outside_the_repository(installed: Installed, tmp_path: Path) -> None:
    """Import, samples of a model that is in the wheel, one training step, in another folder."""
    where = "import tessella, tessella.cli.main as m; print(tessella.__file__, m.__file__)"
    places = installed.run("python", "-c", where, cwd=tmp_path).split()
    assert all(Path(place).is_relative_to(installed.environment) for place in places)
    package = Path(places[0]).parent

    words = ["--generator", "bundled:maskbit-emoji-64", "--num", "1", "--num-steps", "2"]
    installed.run("tessella", "sample", *words, "--out", "samples", cwd=tmp_path)
    assert (tmp_path / "samples" / "000000.png").stat().st_size > 0

    config = package / "configs" / "tokenizer" / "debug.yaml"
    words = ["--config", str(config), "run.steps=1", "run.batch_size_per_device=2"]
    script = ("-m", "tessella.train.tokenizer")
    installed.run("python", *script, *words, "--out", "run", cwd=tmp_path)
    assert (tmp_path / "run" / "tokenizer" / "model.safetensors").is_file()
