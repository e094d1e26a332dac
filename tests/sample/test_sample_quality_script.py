"""`benchmarks/sample_quality.py` with a sampler that is no model."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from torch import Tensor

from tessella.data.images import save_png
from tessella.data.sources import open_source

ROOT = Path(__file__).parents[2]
SIDE = 16


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "sample_quality", ROOT / "benchmarks" / "sample_quality.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def noise(count: int, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, SIDE, SIDE, generator=rng) * 2 - 1


@pytest.mark.parametrize(("num", "expected"), [(8, [5, 1, 2]), (80, [50, 10, 20]), (3, [2, 0, 1])])
def test_labels_follow_the_histogram(script: ModuleType, num: int, expected: list[int]) -> None:
    labels = script.labels_like(torch.tensor([5, 1, 2]), num, seed=0)
    assert torch.tensor(labels).bincount(minlength=3).tolist() == expected
    assert labels == script.labels_like(torch.tensor([5, 1, 2]), num, seed=0)
    if num == 80:
        assert labels != sorted(labels)
        assert labels != script.labels_like(torch.tensor([5, 1, 2]), num, seed=1)


def test_sweep_finds_the_setting_that_copies(script: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for split, count in (("train", 12), ("val", 4)):
        (tmp_path / "data" / split).mkdir(parents=True)
        for i, image in enumerate(noise(count, seed=count)):
            save_png(image, tmp_path / "data" / split / f"{i:02d}.png")
    train, val = (open_source(tmp_path / "data", split) for split in ("train", "val"))

    def sampler(setting: object) -> Iterator[Tensor]:
        copies = (setting.num_steps, setting.guidance) == (8, 2.0)
        yield from (noise(12, seed=12) if copies else noise(12, seed=99) / 2).split(5)

    settings = [script.Setting(steps, scale) for steps in (4, 8) for scale in (1.0, 2.0)]
    out = tmp_path / "out"
    report = {"generator": "fake"}
    script.run(sampler, train, val, SIDE, settings, report, out, features=["random"], num_nearest=9)
    result = json.loads((out / "quality.json").read_text(encoding="utf-8"))
    assert result["generator"] == "fake"
    distances = [row["measures"][0]["FD@random#26a530f1"] for row in result["rows"]]
    assert distances[3] < 1e-6 < min(distances[:3])
    assert [(row["num_steps"], row["guidance"]) for row in result["rows"]][3] == (8, 2.0)
    assert result["rows"][0]["measures"][0]["floor"]["images"]["num_images"] == 4
    nearest = result["nearest"]
    assert nearest["num_samples"] == 9
    assert [entry["by_pixels"]["index"] for entry in nearest["nearest"]] == list(range(9))
    assert nearest["samples"]["pixel_distance"] == {"min": 0.0, "median": 0.0}
    assert nearest["validation"]["pixel_distance"]["median"] > 50
    for name in ("curve.png", "samples.png", "nearest.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 100
    assert {path.name for path in out.iterdir()} == {
        "curve.png",
        "samples.png",
        "nearest.png",
        "quality.json",
    }
