"""The shape of the package itself: import directions, names, dependencies, version, configs."""

import ast
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
CODE = (
    "kernels",
    "config",
    "files",
    "data",
    "tokenizers",
    "generators",
    "checkpoints",
    "sample",
    "train",
)
"""Folders and root modules of the package, lowest first."""

_SYSTEMS = {"kernels", "config", "files", "data", "tokenizers"}
MAY_IMPORT = {
    "kernels": set(),
    "files": set(),
    "config": {"files"},
    "data": {"files"},
    "tokenizers": _SYSTEMS,
    "generators": _SYSTEMS,
    "checkpoints": _SYSTEMS | {"generators"},
    "sample": _SYSTEMS | {"generators", "checkpoints", "tessella"},
    "train": _SYSTEMS | {"generators", "checkpoints", "sample", "tessella"},
}
"""What each may import besides itself; `tessella` is the public API of the root."""


def modules() -> list[Path]:
    """Every module of the package, without tests, benchmarks and the like."""
    found = [
        p for p in ROOT.rglob("*.py") if p.relative_to(ROOT).parts[0].removesuffix(".py") in CODE
    ]
    return sorted(found)


def imported_layers(path: Path) -> set[str]:
    """Layers of ours that a module imports, wherever in it the import stands."""
    package = ("tessella", *path.relative_to(ROOT).parts[:-1])
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*start, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    ours = [name.split(".") for name in names if name.split(".")[0] == "tessella"]
    return {parts[1] if len(parts) > 1 and parts[1] in CODE else "tessella" for parts in ours}


def layer(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_imports_point_one_way() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules()
        for name in sorted(imported_layers(path) - MAY_IMPORT[layer(path)] - {layer(path)})
    ]
    assert not wrong
    assert "tokenizers" in imported_layers(ROOT / "checkpoints.py")
    assert "data" in imported_layers(ROOT / "tokenizers" / "token_store.py")


def test_only_the_root_has_an_init_file() -> None:
    inits = [p.relative_to(ROOT) for name in CODE for p in (ROOT / name).rglob("__init__.py")]
    assert not inits
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("folder", ["train", "sample"])
def test_scripts_shadow_no_installed_module(folder: str) -> None:
    taken = sys.stdlib_module_names | importlib.metadata.packages_distributions().keys()
    names = {path.stem for path in (ROOT / folder).glob("*.py")}
    names |= {path.name for path in (ROOT / folder).iterdir() if path.is_dir()} - {"__pycache__"}
    assert not names & (set(taken) - {"tessella"})


def test_every_file_has_a_subject() -> None:
    vague = {"utils", "util", "helpers", "helper", "misc", "common"}
    assert not [p.relative_to(ROOT) for p in modules() if p.stem in vague or p.parent.name in vague]


def test_only_config_py_reads_yaml() -> None:
    users = [path.name for path in modules() if "import yaml" in path.read_text(encoding="utf-8")]
    assert users == ["config.py"]


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
