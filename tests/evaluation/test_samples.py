"""`tessella evaluate` of generators and of images that are there, on small sets."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import tessella
from tessella.checkpoints import load_generator
from tessella.cli.main import main
from tessella.data.images import save_png, to_float
from tessella.data.npz_source import NpzSource
from tessella.data.sources import open_source
from tessella.evaluation import conditions as evaluate_conditions
from tessella.evaluation.image_set import ImageSet, Networks
from tessella.evaluation.reference import _moments_of, _use_moments, cache_file, read_reference
from tessella.metrics.frechet import FrechetStatistics, frechet_distance
from tessella.metrics.image_hash import ImageHash, content_keys
from tessella.metrics.networks.build import build_features
from tessella.metrics.presets import PRESETS, choose_labels
from tessella.metrics.protocol import Protocol, ProtocolError
from tessella.tokens.token_file import load_tensors
from tessella.tokens.tokens import Tokens

Folders = tuple[Path, Path]
CLASSES = ("grinning face", "cat", "ship")
FAST = ("--num-steps", 2, "--features", "random", "--protocol", "val-paired", "--nearest", 0)


def noise(count: int, seed: int, side: int = 32) -> Tensor:
    """Seeded 8-bit images (count, 3, side, side) in [-1, 1], of blocks of 8 x 8 pixels.

    Noise of single pixels is what the metrics of pairs are calibrated with.
    """
    rng = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (count, side // 8, side // 8, 3), generator=rng)
    pixels = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    return to_float(pixels.to(torch.uint8).numpy())


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.environ.get("TESSELLA_CACHE"):
        monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes with 12, 8 and 4 validation images, and 6 training images each."""
    root = tmp_path_factory.mktemp("data")
    for label, name in enumerate(CLASSES):
        for split, count in (("val", 12 - 4 * label), ("train", 6)):
            for i, image in enumerate(noise(count, seed=10 * label + (split == "val"))):
                save_png(image, root / split / f"{label} {name}" / f"{i:03d}.png")
    return root


def run(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def named(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generator of `folders` with the class names that `data` has."""
    generator = load_generator(folders[0])
    generator.classes = tuple(f"{i} {name}" for i, name in enumerate(CLASSES))
    out = tmp_path_factory.mktemp("named") / "generator"
    tessella.save_generator(
        generator,
        out,
        tokenizer_path=folders[1],
        tokenizer_fingerprint=generator.tokenizer.fingerprint,
    )
    return out


def test_values_are_those_of_the_samples_that_the_seeds_give(
    named: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    words = ["--num", 12, "--repeats", 2, "--seed", 5, "--batch-size", 5]
    result = run("evaluate", "--generator", named, "--data", data, *FAST, *words, "--out", out)
    found = report(out)
    protocol = Protocol.from_dict(found["protocol"])
    assert protocol.id in result.stdout
    assert (protocol.num_samples, protocol.reference_images, protocol.task) == (12, 24, "samples")
    assert protocol.features == "random#26a530f1"
    for value in found["metrics"].values():
        assert value["protocol"] == protocol.id
    assert (out / "report.html").read_text(encoding="utf-8").count(protocol.id) > 1

    generator, network = load_generator(named), build_features("random")
    source = open_source(data, "val")
    counts = torch.tensor([12, 8, 4])
    expected = []
    for repetition in range(2):
        labels = choose_labels("reference", counts, 12, 5 + repetition, name="val-paired")
        assert torch.tensor(labels).bincount().tolist() == [6, 4, 2]
        seeds = [5 + repetition * 12 + i for i in range(12)]
        tokens = tessella.generate(generator, labels, seeds=seeds, num_steps=2)
        images = generator.tokenizer.decode(tokens)
        sides = [FrechetStatistics(network.num_features) for _ in range(2)]
        pixels = ((images + 1) * 127.5).round() / 255
        sides[0].update(network.pooled(pixels))
        for i in range(len(source)):
            pixels = np.asarray(source.read(i).image)
            sides[1].update(network.pooled((to_float(pixels[None]) + 1) / 2))
        expected.append(frechet_distance(*sides))
    value = found["metrics"]["FD@random"]
    assert value["values"] == pytest.approx(expected, rel=1e-4)
    assert value["mean"] == pytest.approx(sum(expected) / 2, rel=1e-4)
    assert value["spread"] == pytest.approx(abs(expected[0] - expected[1]) / 2**0.5, rel=1e-3)
    assert found["metrics"]["bits_per_image"]["mean"] == 256
    assert {row[0]: row[1] for row in found["per_class"]["rows"]} == {
        "0 grinning face": 6,
        "1 cat": 4,
        "2 ship": 2,
    }
    assert found["subject"]["sampling"]["num_steps"] == 2


def test_batches_and_processes_change_nothing(named: Path, data: Path, tmp_path: Path) -> None:
    """In batches of one the networks see the same numbers on any process: equal to 1e-9."""
    words = ["--num", 11, "--repeats", 1]
    start = ["evaluate", "--generator", named, "--data", data, *FAST, *words]
    run(*start, "--batch-size", 1, "--no-cache", "--out", tmp_path / "one")
    run(*start, "--batch-size", 11, "--no-cache", "--out", tmp_path / "other")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TESSELLA_CACHE": str(tmp_path / "cache"),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",  # as this process: other numbers of threads round otherwise
    }
    command = [sys.executable, "-m", "tessella.cli.main", *map(str, start)]
    command += ["--batch-size", "1", "--out", str(tmp_path / "two")]
    ranks = [
        subprocess.Popen(
            command,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=120)
        assert rank.returncode == 0, errors
    one, other, two = (report(tmp_path / name) for name in ("one", "other", "two"))
    assert two["machine"]["processes"] == 2
    assert one["protocol"]["id"] == other["protocol"]["id"] == two["protocol"]["id"]
    for name, value in one["metrics"].items():
        for again, rel in ((two, 1e-9), (other, 1e-4)):  # batches: float32 of the network
            expected = pytest.approx(value["mean"], rel=rel, abs=1e-9)
            assert again["metrics"][name]["mean"] == expected, name
    pictures = [(tmp_path / name / "samples.png").read_bytes() for name in ("one", "two")]
    assert pictures[0] == pictures[1]


def test_a_set_against_itself(data: Path, tmp_path: Path) -> None:
    words = ["--protocol", "val-paired", "--features", "random", "--out", tmp_path / "same"]
    run("evaluate", "--samples", data / "val", "--data", data, "--nearest", 3, *words)
    found = report(tmp_path / "same")
    metrics = {name: value["mean"] for name, value in found["metrics"].items()}
    assert abs(metrics["FD@random"]) < 1e-6
    assert [metrics[f"{name}@random"] for name in ("precision", "recall", "coverage")] == [1, 1, 1]
    assert metrics["duplicate_share"] == 0
    assert metrics["nearest_pixel_distance@3"] > 80, "noise, and searched among training images"
    assert found["subject"]["system"] == "images"
    assert (tmp_path / "same" / "nearest.png").is_file()
    assert set(found["floor"]) == {"nearest_feature_distance@3", "nearest_pixel_distance@3"}


def test_copies_of_training_images_show_under_any_reference(data: Path, tmp_path: Path) -> None:
    """The reference is the validation split; what was memorised is the training split."""
    words = ["--protocol", "val-paired", "--features", "random", "--nearest", 5]
    out = tmp_path / "report"
    run("evaluate", "--samples", data / "train", "--data", data, *words, "--out", out)
    found = report(out)
    assert found["metrics"]["nearest_pixel_distance@5"]["mean"] == 0
    assert found["floor"]["nearest_pixel_distance@5"]["mean"] > 80
    assert found["floor"]["nearest_pixel_distance@5"]["protocol"] in found["protocols"]


def test_copies_among_samples_are_counted(data: Path, tmp_path: Path) -> None:
    images = noise(8, seed=1)
    for i, source in enumerate([0, 1, 2, 3, 4, 5, 2, 5, 5]):
        save_png(images[source], tmp_path / "images" / f"{i}.png")
    words = ["--protocol", "val-paired", "--features", "random", "--nearest", 0]
    out = tmp_path / "report"
    run("evaluate", "--samples", tmp_path / "images", "--data", data, *words, "--out", out)
    assert report(out)["metrics"]["exact_duplicate_share"]["mean"] == pytest.approx(3 / 9)


def test_curves_are_of_a_protocol_of_their_own(named: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "report"
    words = ["--num", 6, "--repeats", 1, "--curve-steps", "3,2", "--curve-guidance", "1,3"]
    start = ["evaluate", "--generator", named, "--data", data, *FAST, *words]
    run(*start, "--curve-num", 7, "--out", out)
    found = report(out)
    (curve,) = [c for c in found["curves"] if c["metric"] == "FD@random"]
    assert curve["x"] == "num_steps"
    assert [line["name"] for line in curve["lines"]] == ["guidance 1", "guidance 3"]
    assert all(line["x"] == [2, 3] for line in curve["lines"])
    assert len({y for line in curve["lines"] for y in line["y"]}) == 4
    assert curve["protocol"] != found["protocol"]["id"]
    assert "<svg" in (out / "report.html").read_text(encoding="utf-8")


def test_curves_over_guidance_alone_know_their_steps(
    named: Path, data: Path, tmp_path: Path
) -> None:
    """Where the card leaves the number of steps to the sampler."""
    pytest.importorskip("matplotlib")
    words = ["--num", 6, "--repeats", 1, "--curve-guidance", "1,3", "--curve-num", 7]
    start = ["evaluate", "--generator", named, "--data", data, "--nearest", 0, *words]
    more = ["--features", "random", "--protocol", "val-paired", "--out", tmp_path / "report"]
    run(*start, *more)
    (curve,) = [c for c in report(tmp_path / "report")["curves"] if c["metric"] == "FD@random"]
    assert curve["x"] == "guidance"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num", 5], "too few images, found 5, expected at least 6"),
        (["--num-steps", 999], "999 steps for"),
        (["--curve-steps", "2,999"], "999 steps for"),
        (["--protocol", "torch-fidelity", "--num", 9], "measures 50,000 images, asked for 9"),
        (["--protocol", "adm-256"], "measures images of 256 pixels, found 32"),
        (["--protocol", "bundled"], "is that of bundled:emoji, found"),
        (["--protocol", "bundles"], "unknown; did you mean bundled"),
        (["--features", "inceptoin_fid"], "did you mean 'inception_fid'"),
        (["--data", "nowhere"], "no such file or folder"),
        (["--curve-num", 2, "--curve-steps", "2"], "at least 6 samples, found 2"),
    ],
)
def test_refusals_come_before_the_first_sample(
    named: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[object],
    message: str,
) -> None:
    refuse_to_draw(monkeypatch)
    start = ["evaluate", "--generator", named, "--data", data, *FAST]
    result = run(*start, *words, "--out", tmp_path / "report", code=1)
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def refuse_to_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(*args: object, **kwargs: object) -> Tokens:
        raise AssertionError("a sample was drawn")

    monkeypatch.setattr(evaluate_conditions, "generate_batches", drawn)


def test_reference_images_are_refused_before_the_first_sample(
    named: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_draw(monkeypatch)
    start = ["evaluate", "--generator", named, "--features", "random", "--nearest", 0]
    out = ["--out", tmp_path / "report"]
    mixed = tmp_path / "mixed"
    for label, name in enumerate(CLASSES):
        for i, image in enumerate(noise(6, seed=label, side=40 if label == 1 else 32)):
            save_png(image, mixed / "train" / f"{label} {name}" / f"{i}.png")
    words = ["--protocol", "torch-fidelity", "--data", mixed]
    result = run(*start, *words, *out, code=1)
    assert "40 x 40 pixels; nothing is resized here, expected 32 x 32" in result.stderr
    assert "1 cat/0.png" in result.stderr

    unlabelled = tmp_path / "flat"
    for i, image in enumerate(noise(8, seed=0)):
        save_png(image, unlabelled / "val" / f"{i}.png")
    words = ["--protocol", "val-paired", "--data", unlabelled]
    result = run(*start, *words, *out, code=1)
    assert "the images of flat (val) have no labels" in result.stderr

    few = tmp_path / "few" / "val"
    for label, name in enumerate(CLASSES):
        save_png(noise(1, seed=label)[0], few / f"{label} {name}" / "a.png")
    words = ["--protocol", "val-paired", "--data", tmp_path / "few", "--num", 9]
    result = run(*start, *words, *out, code=1)
    assert "too few reference images, found 3, expected at least 6" in result.stderr

    for label, name in enumerate(CLASSES):
        folder = tmp_path / "broken" / "val" / f"{label} {name}"
        folder.mkdir(parents=True)
        for i in range(3):
            (folder / f"{i}.png").write_bytes(b"\x89PNG")
    words = ["--protocol", "val-paired", "--data", tmp_path / "broken", "--num", 9]
    result = run(*start, *words, *out, code=1)
    assert "no image can be read" in result.stderr


def test_features_that_are_not_finite_are_refused(
    named: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_draw(monkeypatch)
    network = build_features("random")
    pooled = network.pooled
    monkeypatch.setattr(
        type(network), "pooled", lambda self, images: pooled(images).fill_(torch.nan)
    )
    start = ["evaluate", "--generator", named, "--data", data, *FAST]
    result = run(*start, "--out", tmp_path / "report", code=1)
    assert "(val), random#26a530f1: features: 16 of 16 vectors are not finite" in result.stderr


def test_equal_numbers_of_classes(
    named: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    equal = dataclasses.replace(PRESETS["val-paired"], class_balance="equal")
    monkeypatch.setitem(PRESETS, "val-paired", equal)
    start = ["evaluate", "--generator", named, "--data", data, *FAST, "--repeats", 1]
    result = run(*start, "--num", 10, "--out", tmp_path / "a", code=1)
    assert "10 samples over 3 classes are unbalanced; balanced are 9 and 12" in result.stderr
    run(*start, "--num", 9, "--out", tmp_path / "b")
    assert [row[1] for row in report(tmp_path / "b")["per_class"]["rows"]] == [3, 3, 3]
    words = ["--samples", data / "val", "--protocol", "val-paired", "--features", "random"]
    result = run("evaluate", *words, "--data", data, "--out", tmp_path / "c", code=1)
    assert "classes are unbalanced, 4 to 12 samples each" in result.stderr


def test_a_folder_of_samples_gives_what_the_generator_gave(
    named: Path, data: Path, tmp_path: Path
) -> None:
    """Labels come along and the grid among the pictures is no sample; yet nobody knows how these
    were rounded, so it is another protocol."""
    run(
        "evaluate", "--generator", named, "--data", data, *FAST, "--num", 12, "--repeats", 1,
        "--out", tmp_path / "drawn",
    )  # fmt: skip
    labels = choose_labels("reference", torch.tensor([12, 8, 4]), 12, 0, name="val-paired")
    words = ["--num-steps", 2, "--num", 12, "--labels", ",".join(map(str, labels))]
    run("sample", "--generator", named, *words, "--out", tmp_path / "samples")
    words = ["--protocol", "val-paired", "--features", "random", "--nearest", 0]
    start = ["evaluate", "--samples", tmp_path / "samples", "--data", data, *words]
    run(*start, "--out", tmp_path / "given")
    drawn, given = report(tmp_path / "drawn"), report(tmp_path / "given")
    for name in ("FD@random", "KD@random", "precision@random", "coverage@random"):
        expected = pytest.approx(drawn["metrics"][name]["mean"], rel=1e-5)
        assert given["metrics"][name]["mean"] == expected, name
    assert [row[1] for row in given["per_class"]["rows"]] == [6, 4, 2]
    assert given["protocol"]["class_balance"] == "reference"
    assert given["protocol"]["rounding"] == given["protocol"]["seeds"] == "as given"
    assert given["protocol"]["id"] != drawn["protocol"]["id"]
    (tmp_path / "samples" / "000004.png").unlink()
    result = run(*start, "--out", tmp_path / "again", code=1)
    assert "1 of 12 pictures are missing" in result.stderr


def test_the_classes_of_given_samples_are_in_the_protocol(data: Path, tmp_path: Path) -> None:
    ids = set()
    for name, counts in (("reference", (6, 4, 2)), ("equal", (4, 4, 4)), ("other", (12, 0, 0))):
        for label, count in enumerate(counts):
            for i, image in enumerate(noise(count, seed=label + 50)):
                save_png(image, tmp_path / name / f"{label} {CLASSES[label]}" / f"{i}.png")
        words = ["--protocol", "val-paired", "--features", "random", "--nearest", 0]
        start = ["evaluate", "--samples", tmp_path / name, "--data", data, *words]
        run(*start, "--out", tmp_path / f"report {name}")
        protocol = report(tmp_path / f"report {name}")["protocol"]
        ids.add(protocol["id"])
        wanted = {"reference": "reference", "equal": "equal over 3 classes", "other": "as given, "}
        assert protocol["class_balance"].startswith(wanted[name])
    assert len(ids) == 3


def test_samples_of_mixed_size(data: Path, tmp_path: Path) -> None:
    for i, side in enumerate([32] * 7 + [24]):
        save_png(noise(1, seed=i, side=side)[0], tmp_path / "images" / f"{i}.png")
    words = ["--protocol", "val-paired", "--features", "random", "--out", tmp_path / "report"]
    result = run("evaluate", "--samples", tmp_path / "images", "--data", data, *words, code=1)
    assert "7.png is 24 x 24 pixels, expected 32 x 32 as the first" in result.stderr
    Image.new("RGB", (32, 24)).save(tmp_path / "images" / "0.png")
    result = run("evaluate", "--samples", tmp_path / "images", "--data", data, *words, code=1)
    assert "0.png is 32 x 24 pixels, expected square images" in result.stderr


def test_reference_is_cached_and_the_cache_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(noise(7, seed=0)):
        to_image(image).save(folder / f"{i}.bmp")  # all of one size, whatever they show
    preset, networks = PRESETS["val-paired"], Networks.of(PRESETS["val-paired"], features="random")
    looked: list[int] = []
    look = Networks.look

    def counting(self: Networks, pixels: Tensor) -> Any:
        looked.append(len(pixels))
        return look(self, pixels)

    monkeypatch.setattr(Networks, "look", counting)

    def read() -> ImageSet:
        looked.clear()
        source = open_source(folder, "train")
        return read_reference(source, networks, preset, 32, progress=False)

    first = read()
    assert sum(looked) == 7
    file = cache_file(open_source(folder, "train"), networks, preset, 32)
    assert file.is_file()
    again = read()
    assert looked == []
    assert torch.equal(first.pooled.scatter, again.pooled.scatter)
    assert torch.equal(first.bank.features, again.bank.features)
    assert first.hash.hexdigest() == again.hash.hexdigest()
    assert first.label_counts == again.label_counts
    to_image(noise(1, seed=9)[0]).save(folder / "3.bmp")
    changed = read()
    assert sum(looked) == 7, "same names and sizes, other pixels"
    assert changed.hash.hexdigest() != first.hash.hexdigest()
    file.write_bytes(file.read_bytes()[:1000])
    assert read().hash.hexdigest() == changed.hash.hexdigest()
    assert sum(looked) == 7, "a truncated cache is not read"
    whole = file.read_bytes()
    for place in range(0, len(whole), len(whole) // 11):  # a changed bit is never another number
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = read()
        assert torch.equal(changed.pooled.scatter, found.pooled.scatter), place
        assert torch.equal(changed.bank.features, found.bank.features) and sum(looked) == 7, place
    old, about = load_tensors(file, error=ValueError)
    save_file(old, file, about)
    read()
    assert sum(looked) == 7, "nothing says that a cache without a digest is whole"


def to_image(image: Tensor) -> Image.Image:
    pixels = ((image + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(pixels.numpy())


def test_the_bank_knows_pixels_and_not_file_names(tmp_path: Path) -> None:
    """Renamed files: the same images in another order, the same bank, the same numbers."""
    images = noise(40, seed=3)
    names = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()
    for i, image in enumerate(images):
        save_png(image, tmp_path / "a" / f"{i:03d}.png")
        save_png(image, tmp_path / "b" / f"{names[i]:03d}.png")
    small = dataclasses.replace(PRESETS["val-paired"], reference_bank=15)
    networks = Networks.of(small, features="random")
    found = [
        read_reference(open_source(tmp_path / n), networks, small, 32, progress=False, cache=False)
        for n in ("a", "b")
    ]
    for reference in found:
        reference.bank.trim(15)
    assert found[0].identity(with_labels=True) == found[1].identity(with_labels=True)
    torch.testing.assert_close(found[0].bank.features, found[1].bank.features)
    digests = ImageHash().update(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    keys = content_keys(digests, torch.tensor([9, 4]))
    assert int(keys[0] - keys[1]) == 5, "equal pictures keep their order"


def test_labels_are_part_of_what_samples_are_compared_with(
    named: Path, data: Path, tmp_path: Path
) -> None:
    """The same pixels in other classes give other proportions, so another protocol."""
    other = tmp_path / "relabelled"
    files = sorted((data / "val").rglob("*.png"))
    for i, file in enumerate(files):
        folder = other / "val" / f"{i % 3} {CLASSES[i % 3]}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / f"{i}.png")
    words = ["--num", 9, "--repeats", 1]
    start = ["evaluate", "--generator", named, *FAST, *words]
    run(*start, "--data", data, "--out", tmp_path / "a")
    run(*start, "--data", other, "--out", tmp_path / "b")
    one, two = report(tmp_path / "a")["protocol"], report(tmp_path / "b")["protocol"]
    assert one["reference_images"] == two["reference_images"] == 24
    assert one["id"] != two["id"]


def test_statistics_in_an_npz_replace_those_of_its_images(tmp_path: Path) -> None:
    class Sides:
        """As much of an `ImageSet` as counts here."""

        def __init__(self) -> None:
            self.pooled, self.spatial = FrechetStatistics(4), FrechetStatistics(2)
            for side in (self.pooled, self.spatial):
                side.update(torch.randn(6, side.num_features))
            self.hash = ImageHash()

    root = torch.randn(4, 4).double()
    moments = {
        "mu": np.arange(4.0),
        "sigma": (root @ root.T).numpy(),
        "mu_s": np.ones(2),
        "sigma_s": np.eye(2),
    }
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((6, 8, 8, 3), np.uint8), **moments)
    stored = NpzSource(tmp_path / "a.npz").moments()
    found: Any = Sides()
    before = found.hash.hexdigest()
    _use_moments(found, stored)
    assert found.pooled.mean.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(found.pooled.covariance, root @ root.T)
    torch.testing.assert_close(found.spatial.covariance, torch.eye(2).double())
    assert found.hash.hexdigest() != before
    half: Any = Sides()
    _use_moments(half, {name: stored[name] for name in ("mu", "sigma")})
    assert half.spatial is None, "never of the images beside those of the whole set"
    networks: Any = type("", (), {"has_spatial": True, "extractor": build_features("random")})()
    with pytest.raises(ProtocolError, match="mu has 4 values, expected 320"):
        _moments_of(NpzSource(tmp_path / "a.npz"), networks)


def test_an_npz_reference_needs_no_class_names(named: Path, tmp_path: Path) -> None:
    """ADM's batches have none, or numbers."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "plain.npz", arr_0=pixels)
    np.savez(tmp_path / "labelled.npz", arr_0=pixels, arr_1=np.arange(12) % 3)
    start = ["evaluate", "--generator", named, *FAST, "--num", 9, "--repeats", 1]
    result = run(*start, "--data", tmp_path / "plain.npz", "--out", tmp_path / "a", code=1)
    assert "the images of plain (val) have no labels" in result.stderr
    run(*start, "--data", tmp_path / "labelled.npz", "--out", tmp_path / "b")
    assert [row[1] for row in report(tmp_path / "b")["per_class"]["rows"]] == [3, 3, 3]
