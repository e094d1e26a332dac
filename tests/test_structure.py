"""The shape of the package itself: import directions, names, dependencies, version, configs."""

import ast
import collections
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tessella
from tessella.checkpoints import save_tokenizer
from tessella.config import build_config, read_yaml
from tessella.tokenizers.build import TokenizerConfig, build_tokenizer
from tessella.tokenizers.vqgan import VQGAN, VQGANConfig

ROOT = Path(tessella.__file__).resolve().parent
ORDER = (
    {"documents", "errors", "building", "progress", "_version"},
    {"manifest"},
    {"unfinished"},
    {"kernels", "config", "files", "collectives"},
    {"data", "tokens", "low_bit", "text"},
    {"tokenizers", "metrics"},
    {"generators", "codec"},
    {"model_folders"},
    {"checkpoints", "sample"},
    {"importers", "evaluation", "page"},
    {"train"},
    {"cli"},
    {"demo"},
)
"""Rooms (folders and root modules) of the package by floor, lowest first: docs/architecture.md."""

CODE = tuple(room for floor in ORDER for room in sorted(floor))
LARGEST_ROOM, LARGEST_FILE = 0.2, 400


def modules() -> list[Path]:
    """Every module of the package, without tests, benchmarks and the like."""
    found = [
        p
        for p in ROOT.rglob("*.py")
        if p.relative_to(ROOT).parts[0].removesuffix(".py") in CODE
        and "bundled" not in p.relative_to(ROOT).parts
    ]
    return sorted(found)


def dotted(path: Path) -> str:
    """Name of a module of ours, without `tessella`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports_of(path: Path, known: set[str]) -> set[str]:
    """Modules of ours that a module imports, wherever in it the import stands."""
    package = ("tessella", *path.relative_to(ROOT).parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*start, *([node.module] if node.module else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
        else:
            continue
        for name in names:
            if name == "tessella" or name.startswith("tessella."):
                inner = name.removeprefix("tessella").removeprefix(".")
                parts = inner.split(".")
                whole = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
                found.add(next((n for n in whole if n in known), "tessella"))
    return found - {dotted(path)}


def graph() -> dict[str, set[str]]:
    """Modules of ours and what each imports; the root's public API is `tessella`."""
    known = {dotted(path) for path in modules()}
    return {dotted(path): imports_of(path, known) for path in modules()}


def room(module: str) -> str:
    return module.split(".")[0]


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, in order; empty if there is none."""
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        for target in sorted(arrows.get(module, ())):
            if found := visit(target, [*way, module]):
                return found
        done.add(module)
        return []

    return next(filter(None, (visit(module, []) for module in sorted(arrows))), [])


def test_imports_point_one_way() -> None:
    floors = {name: number for number, floor in enumerate(ORDER) for name in floor}
    wrong = []
    for module, targets in graph().items():
        for target in sorted(targets):
            here, there = room(module), room(target)
            if here == there:
                continue
            if there == "tessella" and here in ("train", "demo"):
                continue  # scripts use the public API
            if there not in floors or floors[there] >= floors[here]:
                wrong.append(f"{module} imports {target}")
    assert not wrong
    assert "tokenizers.base" in graph()["checkpoints"], "the graph is read"


def test_no_module_imports_itself_in_a_circle() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "a"]
    assert not circle({"a": {"b", "c"}, "b": {"c"}, "c": set()})
    assert not circle(graph())


def test_rooms_and_files_stay_small() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    long = {dotted(path): count for path, count in lines.items() if count > LARGEST_FILE}
    assert not long
    total = sum(lines.values())
    rooms = collections.Counter[str]()
    for path, count in lines.items():
        rooms[room(dotted(path))] += count
    share = {name: count / total for name, count in rooms.items()}
    assert not {name: part for name, part in share.items() if part > LARGEST_ROOM}


def test_every_folder_of_the_package_has_a_floor() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    rooms = {Path(name).parts[0].removesuffix(".py") for name in tracked}
    assert rooms <= {*CODE, "__init__", "setup", "tests", "benchmarks"}


def test_only_the_root_has_an_init_file() -> None:
    inits = [p.relative_to(ROOT) for name in CODE for p in (ROOT / name).rglob("__init__.py")]
    assert not inits
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("folder", ["train", "demo"])
def test_scripts_shadow_no_installed_module(folder: str) -> None:
    taken = sys.stdlib_module_names | importlib.metadata.packages_distributions().keys()
    names = {path.stem for path in (ROOT / folder).glob("*.py")}
    names |= {path.name for path in (ROOT / folder).iterdir() if path.is_dir()} - {"__pycache__"}
    assert not names & (set(taken) - {"tessella"})


def test_every_file_has_a_subject() -> None:
    vague = {"utils", "util", "helpers", "helper", "misc", "common"}
    assert not [p.relative_to(ROOT) for p in modules() if p.stem in vague or p.parent.name in vague]


def test_only_documents_py_reads_yaml_and_json() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in modules()}
    assert [name for name, text in texts.items() if "import yaml" in text] == ["documents.py"]
    # config.py makes plain values of a dataclass by way of JSON, and reads no file.
    assert [name for name, text in texts.items() if "json.load" in text] == ["config.py"]


LOAD = """
import sys
import tessella
assert "torch" not in sys.modules, "import tessella alone loads torch"
tokenizer = tessella.load_tokenizer(sys.argv[1])
heavy = {"torchvision", "matplotlib", "diffusers", "datasets", "transformers", "triton"}
sys.stdout.write(" ".join(sorted(heavy & set(sys.modules))))
"""


def test_loading_a_tokenizer_imports_nothing_heavy(tmp_path: Path) -> None:
    autoencoder = {"base_channels": 8, "channel_multipliers": [1, 2], "norm_groups": 4}
    data = {"resolution": 16, "autoencoder": autoencoder, "quantizer": {"type": "lfq", "bits": 4}}
    save_tokenizer(VQGAN(build_config(VQGANConfig, data)), tmp_path / "model")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-W", "error", "-c", LOAD, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_core_requirements_do_not_lead_to_torchvision() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting = [Requirement(text) for text in project["dependencies"]]
    seen: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = ["", *sorted(requirement.extras)]
        for key in {name, *(f"{name}[{extra}]" for extra in extras if extra)} - seen:
            seen.add(key)
            for text in importlib.metadata.requires(name) or []:
                child = Requirement(text)
                if child.marker is None or any(child.marker.evaluate({"extra": e}) for e in extras):
                    waiting.append(child)
    assert {"torch", "diffusers", "torchmetrics"} <= seen
    assert not [name for name in seen if name.startswith(("torchvision", "torch-fidelity"))]


def test_changelog_is_of_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (\S+)", text, flags=re.MULTILINE)
    assert versions[0].strip("[]") == tessella.__version__


def test_tokenizer_recipes_say_their_command_and_build() -> None:
    paths = sorted((ROOT / "configs" / "tokenizer").glob("*.yaml"))
    assert paths
    for path in paths:
        head = re.match(r"(#[^\n]*\n)+", path.read_text(encoding="utf-8"))
        assert head, f"{path.name}: must start with a comment"
        assert "accelerate launch train/tokenizer.py" in head[0], path.name
        if "--config" in head[0]:
            assert f"configs/tokenizer/{path.name}" in head[0], path.name
        section = read_yaml(path)["tokenizer"]
        config = build_config(TokenizerConfig, section, name=f"{path.name}: tokenizer")
        with torch.device("meta"):
            tokenizer = build_tokenizer(config)
        assert tokenizer.spec.num_tokens > 0, path.name
        assert all(p.is_meta for p in tokenizer.parameters()), path.name
