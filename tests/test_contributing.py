"""CONTRIBUTING.md, docs/architecture.md and the map of the README say what is there.

The blocks of the example are applied to a copy of the package, and one process there imports the
new generator, tries its promises, trains and resumes, samples, and measures it by the commands.
"""

import difflib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tessella
from tessella.config import read_yaml
from tessella.tests.test_structure import CODE, ORDER

ROOT = Path(tessella.__file__).resolve().parent
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
NEW = ("generators/independent.py", "sample/independent.py")
LISTS = ("generators/build.py", "sample/samplers.py")
APART = {"assets", "benchmarks", "build", "dist", "docs", "datasets", "runs", "tests"}


def blocks() -> list[tuple[str, str, str]]:
    """File, language and content of every block that stands below the name of a file."""
    return re.findall(r"`([\w/]+\.py)`:\n\n```(python|diff)\n(.*?)```", GUIDE, re.DOTALL)


def apply_hunks(text: str, block: str) -> str:
    """A file with the hunks of a block applied; each must fit at exactly one place."""
    for hunk in block.strip("\n").split("\n\n"):
        lines = hunk.split("\n")
        assert {line[0] for line in lines} <= {" ", "+", "-"}, hunk
        old = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
        new = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
        assert text.count(old) == 1, f"CONTRIBUTING.md shows lines that are not there:\n{old}"
        text = text.replace(old, new)
    return text


def code_of(folder: Path) -> dict[str, str]:
    """Text of every Python and YAML file of the rooms by its path."""
    found = [*folder.glob("*.py"), *(p for room in rooms(folder) for p in room.rglob("*.py"))]
    found += (folder / "configs").rglob("*.yaml")
    return {str(p.relative_to(folder)): p.read_text(encoding="utf-8") for p in found}


def rooms(folder: Path) -> list[Path]:
    """Folders of the package, without those that are copied apart or not at all."""
    return [
        path
        for path in folder.iterdir()
        if path.is_dir() and path.name.isidentifier() and path.name not in APART
    ]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the worked example in it."""
    copy = tmp_path_factory.mktemp("copy") / "tessella"
    copy.mkdir()
    for path in ROOT.glob("*.py"):
        shutil.copy(path, copy)
    for room in rooms(ROOT):
        shutil.copytree(room, copy / room.name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "assets").symlink_to(ROOT / "assets")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for path, language, text in blocks():
        place = copy / path
        assert place.exists() == (language == "diff"), path
        if language == "diff":
            text = apply_hunks(place.read_text(encoding="utf-8"), text)
        place.write_text(text, encoding="utf-8")
    return copy


def test_every_named_path_exists() -> None:
    named = set(re.findall(r"`(\.?\w+/[\w./]*)`", GUIDE)) - set(NEW)
    assert len(named) > 30 and sum("NAME" in path for path in named) >= 8
    for path in named:  # of a file that is to be written, the folder
        assert (ROOT / path.partition("NAME")[0]).exists(), path
    for document in re.findall(r"\]\(([^)#:]+)\)", GUIDE):
        assert (ROOT / document).is_file(), document


def test_the_example_touches_what_the_table_says(package: Path) -> None:
    before, after = code_of(ROOT), code_of(package)
    assert tuple(sorted(after.keys() - before.keys())) == NEW
    changed = [path for path in sorted(before) if after[path] != before[path]]
    assert tuple(changed) == LISTS
    row = re.search(r"^\| generator \|(.*)\|(.*)\|$", GUIDE, re.MULTILINE)
    assert row is not None
    written, listed = (re.findall(r"`([^`]+)`", cell) for cell in row.groups())
    assert tuple(path.replace("NAME", "independent") for path in written) == NEW
    assert tuple(listed) == LISTS
    stated = {path: text for path, language, text in blocks() if language == "diff"}
    for path in LISTS:
        lines = before[path].splitlines(), after[path].splitlines()
        found = [d for d in difflib.ndiff(*lines) if d[0] in "+-"]
        shown = [line for line in stated[path].splitlines() if line[:1] in ("+", "-")]
        assert sorted(d[0] + d[2:] for d in found) == sorted(shown), path


def test_the_example_is_in_style(package: Path) -> None:
    """Docstrings, types of quotes, order of imports: what `make check` asks, but for mypy."""
    paths = [*NEW, *LISTS]
    for words in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *words, "--no-cache", *paths]
        done = subprocess.run(command, cwd=package, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def tree_of(document: str) -> list[str]:
    """Names at the margin of the tree that a document shows, without that of the root."""
    text = (ROOT / document).read_text(encoding="utf-8")
    block = re.search(
        r"^```\n((?:tessella/[^\n]*\n)? *documents\.py.*?)^```", text, re.DOTALL | re.M
    )
    assert block is not None, document
    names = re.findall(r"^ *([\w.]+?)/? {2,}\S", block[1], re.MULTILINE)
    return [name.removesuffix(".py") for name in names if name != "tessella"]


def test_the_shown_trees_are_the_tree() -> None:
    """Each room has a line, in the order of imports; the README has those beside them, too."""
    floors = {name: number for number, floor in enumerate(ORDER) for name in floor}
    for document in ("README.md", "docs/architecture.md"):
        shown = tree_of(document)
        assert len(shown) == len(set(shown))
        shown_rooms = [name for name in shown if name in floors]
        assert set(shown_rooms) == set(floors), document
        assert [floors[name] for name in shown_rooms] == sorted(floors.values()), document
        for name in shown:
            assert (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file(), name
    beside = set(tree_of("README.md")) - set(floors)
    assert beside == {"assets", "benchmarks", "configs", "docs", "tests"}
    with_code = {room.name for room in rooms(ROOT) if any(room.rglob("*.py"))}
    assert {name for name in floors if (ROOT / name).is_dir()} <= with_code


def test_the_order_of_imports_is_the_one_that_is_checked() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    lines = re.findall(r"^(\d+)\. ((?:`\w+`(?:, )?)+)$", text, re.MULTILINE)
    assert [int(number) for number, _ in lines] == list(range(1, len(ORDER) + 1))
    assert tuple(set(re.findall(r"`(\w+)`", names)) for _, names in lines) == ORDER


def test_named_paths_of_the_architecture_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`(\w+/[\w./]*)`", text)
    assert len(named) > 20
    assert not [path for path in named if not (ROOT / path).exists()]
    functions = set(re.findall(r"`([a-z]+_[a-z_]+)`", text)) - set(CODE)
    code = "\n".join(code_of(ROOT).values())
    assert len(functions) > 3 and not [name for name in functions if f"def {name}(" not in code]


def test_ci_checks_before_it_tests() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("make")] == ["make check", "make test"]
    assert lines[-1] == "make test"


def test_hooks_need_no_download_and_refuse_large_files(tmp_path: Path) -> None:
    config = read_yaml(ROOT / ".pre-commit-config.yaml")
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    hooks = {hook["id"]: hook for hook in config["repos"][0]["hooks"]}
    assert set(hooks) == {"ruff-check", "ruff-format", "mypy", "large-files"}
    assert all(hook["language"] == "system" for hook in hooks.values())
    assert re.match(hooks["large-files"]["exclude"], "assets/models/x/model.safetensors")
    assert not re.match(hooks["large-files"]["exclude"], "docs/images/x.png")
    small, large = tmp_path / "small file", tmp_path / "large file"
    small.write_bytes(bytes(500_000))
    large.write_bytes(bytes(500_001))
    for files, expected in (([small], 0), ([large], 1), ([large, small], 1)):
        command = [*shlex.split(hooks["large-files"]["entry"]), *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == expected, done.stderr
        assert (str(large) in done.stdout) == bool(expected)


PROGRAM = """
import json, shutil, sys
from pathlib import Path
import torch
from accelerate.state import AcceleratorState, GradientState
from click.testing import CliRunner
from safetensors.torch import load_file
import tessella
from tessella.cli.main import main as tessella_command
from tessella.generators.build import build_generator
from tessella.generators.independent import IndependentConfig
from tessella.train.generator import main as train_command

torch.set_num_threads(1)
out = Path(sys.argv[1])
ROOT = Path(tessella.__file__).parent
assert ROOT == Path.cwd() / "tessella", ROOT

def run(command, *words):
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    result = CliRunner().invoke(command, [str(word) for word in words])
    assert result.exit_code == 0, (words, result.output, result.exception)
    return result.stdout

# Promises of a generator: it learns the frequencies, is sampled by seed, edits, and is exact.
spec = tessella.TokenSpec((2, 2), (3, 5), ordered=True)
config = IndependentConfig(num_classes=2, label_dropout=0.5)
generator = build_generator(config, spec)
tables = [torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.0, 0.0, 0.125, 0.375, 0.5])]
rng = torch.Generator().manual_seed(0)
columns = [t.multinomial(4096 * 4, True, generator=rng).view(-1, 4) for t in tables]
tokens = tessella.Tokens(torch.stack(columns, -1), spec)
labels, optimizer = torch.arange(4096) % 2, torch.optim.Adam(generator.parameters(), lr=0.01)
for step in range(120):
    output = generator(tokens, labels, seeds=torch.arange(4096))
    optimizer.zero_grad()
    output.loss.backward()
    optimizer.step()
generator.eval()
entropy = -sum((t[t > 0] * t[t > 0].log2()).sum().item() for t in tables)
bits = generator.bits_per_dim(tokens, labels)
assert bits.dtype == torch.float64 and generator.describe_likelihood() == "exact"
assert abs(bits.mean().item() * spec.bits_per_token - entropy) < 0.02
prefix = tokens[:3].truncate(2)
assert generator.bits_per_dim(prefix, labels[:3]).shape == (3,)
drawn = tessella.generate(generator, labels, seeds=range(4096)).validate()
for g, table in enumerate(tables):
    found = drawn.indices[..., g].flatten().bincount(minlength=len(table)) / 4096 / 4
    torch.testing.assert_close(found, table, rtol=0, atol=0.02)
again = tessella.generate(generator, labels[7:9], seeds=[7, 8], batch_size=1)
assert torch.equal(again.indices, drawn.indices[7:9])
mask = torch.tensor([True, False, False, True])
edited = tessella.generate(generator, [0], seeds=[1], known=drawn[:1], mask=mask, guidance=2.0)
assert torch.equal(edited.indices[:, ~mask], drawn.indices[:1, ~mask])

# A training, its resume, and the commands.
words = ["--config", ROOT / "configs" / "generator" / "debug.yaml", "generator={type: independent}"]
words += ["samples.num_steps=null", "data.tokens=images", "run.steps=4", "run.log_every=1"]
words += ["run.checkpoint_every=2"]
run(train_command, *words, "--out", out / "straight")
shutil.copytree(out / "straight", out / "resumed")  # as if it had ended after step 2
shutil.rmtree(out / "resumed" / "checkpoints" / "step_4")
shutil.rmtree(out / "resumed" / "generator")
run(train_command, *words, "--out", out / "resumed", "--resume")
for name in ("generator", "ema"):
    file = f"checkpoints/step_4/{name}.safetensors"
    straight, resumed = load_file(out / "straight" / file), load_file(out / "resumed" / file)
    assert straight["table"].abs().sum() > 0
    assert all(torch.equal(resumed[key], value) for key, value in straight.items()), name
model = ["--generator", out / "straight" / "generator"]
run(tessella_command, "sample", *model, "--num", 4, "temperature=0.5", "--out", out / "samples")
assert len(list((out / "samples").glob("0*.png"))) == 4
found = json.loads(run(tessella_command, "bits", *model, "--limit", 8, "--json"))
assert found["value"] == "exact" and 0.5 < found["bits_per_dim"] < 1, found
measure = ["--num", 8, "--repeats", 1, "--features", "random", "--nearest", 0, "--no-cache"]
run(tessella_command, "evaluate", *model, *measure, "--out", out / "report")
assert (out / "report" / "report.html").is_file()
"""


@pytest.mark.slow
def test_the_example_trains_resumes_samples_and_is_measured(package: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=package.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
