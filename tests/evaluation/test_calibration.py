"""Metrics of pairs are given only where noise stays clearly below real images."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from tessella.cli.main import main
from tessella.data.images import save_png, to_float, to_uint8
from tessella.data.loader import eval_batches
from tessella.data.sources import open_source
from tessella.evaluation import calibration as module
from tessella.evaluation.calibration import (
    MOST_NOISE,
    PAIR_METRICS,
    Calibration,
    calibrate,
    noise_features,
)
from tessella.evaluation.settings import EvaluationSettings
from tessella.metrics.feature_bank import FeatureBank
from tessella.metrics.manifold import manifold_metrics
from tessella.metrics.networks.build import available_features, build_features
from tessella.metrics.presets import PRESETS

SETTINGS = EvaluationSettings(preset=PRESETS["val-paired"], data="bundled:emoji", progress=False)
needs_weights = pytest.mark.skipif(
    not (available_features()["efflite0"] and available_features()["lpips_alex"]),
    reason="no weights of efflite0 and lpips_alex",
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "cache"))


def drawings(count: int) -> Tensor:
    """Bundled validation images at 64 pixels, uint8."""
    batch = next(eval_batches(open_source("bundled:emoji", "val"), 64, count, count))
    return to_uint8(batch["images"])


def bank_of(vectors: Tensor) -> FeatureBank:
    bank = FeatureBank(vectors.shape[1], extractor_id="test#1")
    bank.update(vectors, torch.arange(len(vectors)))
    return bank


def by_hand(noise: Tensor, real: Tensor, monkeypatch: pytest.MonkeyPatch) -> Calibration:
    """Calibration of features, without a network."""
    monkeypatch.setattr(module, "noise_features", lambda *_, **__: noise)
    return calibrate(bank_of(real), build_features("random"), 64, SETTINGS)


@needs_weights
def test_it_decides_by_what_a_network_does_with_noise() -> None:
    found = {}
    for name in ("efflite0", "lpips_alex"):
        network = build_features(name)
        with torch.no_grad():
            bank = bank_of(network.pooled(drawings(32)))
        found[name] = calibrate(bank, network, 64, SETTINGS)
    assert found["efflite0"].noise["precision"] == 1
    assert found["efflite0"].noise["density"] > 1
    assert found["efflite0"].withheld == PAIR_METRICS
    assert max(found["lpips_alex"].noise.values()) < 0.1
    assert min(found["lpips_alex"].real.values()) > 0.5
    assert found["lpips_alex"].withheld == ()


@needs_weights
def test_noise_on_efflite0_gets_no_precision_in_a_report(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(7)
    noise = torch.randint(0, 256, (30, 64, 64, 3), generator=rng, dtype=torch.uint8)
    for i, (real, fake) in enumerate(zip(drawings(30), to_float(noise.numpy()), strict=True)):
        save_png(real.float() / 127.5 - 1, tmp_path / "real" / "val" / f"{i:02}.png")
        save_png(fake, tmp_path / "noise" / f"{i:02}.png")
    words = ["evaluate", "--samples", tmp_path / "noise", "--data", tmp_path / "real"]
    words += ["--protocol", "val-paired", "--features", "efflite0", "--nearest", 0]
    done = CliRunner().invoke(main, [str(w) for w in (*words, "--out", tmp_path / "report")])
    assert done.exit_code == 0, done.output
    report: dict[str, Any] = json.loads((tmp_path / "report/report.json").read_text("utf-8"))
    assert not [name for name in report["metrics"] if name.startswith(PAIR_METRICS)]
    assert report["metrics"]["FD@efflite0"]["mean"] > 0
    assert report["calibration"]["withheld"] == list(PAIR_METRICS)
    assert report["calibration"]["noise"]["precision"] == 1
    assert "Precision, recall, density and coverage are not given: on efflite0#" in done.stderr
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert page.count(">not given</td>") == 4
    assert "30 images of noise" in page and "15 real images against as many others" in page


@needs_weights
def test_reconstruct_gives_no_metrics_that_noise_wins_either(tmp_path: Path) -> None:
    for i, real in enumerate(drawings(16)):
        save_png(real.float() / 127.5 - 1, tmp_path / "real" / "val" / f"{i:02}.png")
    words = ["reconstruct", "--tokenizer", "bundled:bits-emoji-64", "--data", tmp_path / "real"]
    words += ["--features", "efflite0", "--perceptual", "random"]
    done = CliRunner().invoke(main, [*map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    assert not [name for name in found if name.startswith(PAIR_METRICS)]
    assert found["FD@efflite0"] > 0 and found["calibration"]["noise"]["precision"] == 1
    assert "are not given: on efflite0#" in done.stderr
    text = CliRunner().invoke(main, [*map(str, words)]).stdout
    assert "notes" not in text and "num_noise" in text


def test_values_are_those_of_the_manifold_and_pairs_fall_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = torch.Generator().manual_seed(0)
    real = torch.randn(40, 3, generator=rng)
    far = torch.randn(8, 3, generator=rng) + 50
    found = by_hand(far, real, monkeypatch)
    halves = manifold_metrics(real[:20], real[20:])
    assert found.real == {name: getattr(halves, name) for name in PAIR_METRICS}
    assert (found.num_noise, found.num_reference, found.num_real) == (8, 40, 20)
    assert found.noise == dict.fromkeys(PAIR_METRICS, 0)
    assert found.withheld == ()
    inside = by_hand(torch.randn(8, 3, generator=rng) / 100, real, monkeypatch)
    assert inside.noise["precision"] == 1 and inside.withheld == PAIR_METRICS
    values = {"FD@x": 1.0, "precision@x": 1.0, "coverage": 0.5, "density@x": 2.0}
    assert found.kept(values) == values
    assert inside.kept(values) == {"FD@x": 1.0}


@pytest.mark.parametrize(
    ("noise", "withheld"),
    [
        ((0.39, 0.0, 0.0, 0.0), ()),
        ((0.40, 0.0, 0.0, 0.0), ("precision", "recall")),
        ((0.0, 0.5, 0.0, 0.0), ("precision", "recall")),
        ((0.0, 0.0, 0.6, 0.0), ("density", "coverage")),
        ((0.0, 0.0, 0.0, 0.5), ("density", "coverage")),
    ],
)
def test_noise_must_stay_below_half_of_real_images(
    noise: tuple[float, ...], withheld: tuple[str, ...]
) -> None:
    sides = [dict(zip(PAIR_METRICS, v, strict=True)) for v in (noise, (0.8, 0.9, 1.1, 0.95))]
    facts: dict[str, Any] = {"network": "net#1", "num_noise": 30, "num_reference": 30}
    found = Calibration(**facts, noise=sides[0], num_real=15, real=sides[1])
    assert found.withheld == withheld
    few, many = found.notes(30), found.notes(50_000)
    assert len(many) == (1 if withheld else 0)
    assert few[-1].endswith("moves a share by up to 0.09, one standard error.")
    assert few[-1].startswith("Density" if "precision" in withheld else "Precision")
    unknown = Calibration(**facts, noise=sides[0], num_real=0, real={})
    assert unknown.withheld == tuple(
        name
        for names in (PAIR_METRICS[:2], PAIR_METRICS[2:])
        if any(sides[0][name] >= 0.5 for name in names)
        for name in names
    )


def test_few_reference_images_have_no_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(1)
    real, noise = torch.randn(11, 3, generator=rng), torch.randn(32, 3, generator=rng) + 50
    found = by_hand(noise, real, monkeypatch)
    assert (found.num_noise, found.num_real, found.real) == (11, 0, {})
    assert found.withheld == ()
    (note,) = found.notes(11)
    assert "0.15" in note


def test_the_network_sees_noise_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_features("random")
    first = noise_features(network, 64, batch_size=5)
    assert first.shape == (MOST_NOISE, network.num_features)
    (file,) = (tmp_path / "cache" / "noise").iterdir()
    other = noise_features(network, 32)
    assert not torch.equal(first, other), "another resolution is another file"

    def fail(_: Tensor) -> Tensor:
        raise AssertionError("the network looked again")

    with monkeypatch.context() as broken:
        broken.setattr(network, "pooled", fail)
        assert torch.equal(noise_features(network, 64), first)
        with pytest.raises(AssertionError, match="looked again"):
            noise_features(network, 64, cache=False)
    blob = bytearray(file.read_bytes())
    blob[-5] ^= 1
    file.write_bytes(blob)
    again = noise_features(network, 64, batch_size=5)
    assert torch.equal(again, first), "a changed file is not used"
