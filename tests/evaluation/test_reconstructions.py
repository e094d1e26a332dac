"""`tessella evaluate` of tokenizers, on a small random one."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

import tessella
from tessella.checkpoints import load_tokenizer
from tessella.cli.main import main
from tessella.data.images import save_png, to_float
from tessella.data.sources import open_source
from tessella.evaluation.image_table import ImageTable
from tessella.evaluation.reconstruction_pictures import reconstruct_source
from tessella.evaluation.reconstructions import evaluate_tokenizer
from tessella.evaluation.settings import EvaluationSettings
from tessella.metrics.networks.build import available_features
from tessella.metrics.networks.weights import PROVIDERS
from tessella.metrics.perceptual import build_perceptual
from tessella.metrics.presets import PRESETS
from tessella.tokens.tokens import Tokens
from tessella.train.tokenizer import evaluate

Folders = tuple[Path, Path]

needs_lpips = pytest.mark.skipif(
    not available_features()["lpips_vgg"],
    reason=f"no weights; {PROVIDERS['lpips_vgg'].advice}",
)
pytestmark = needs_lpips


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    rng = torch.Generator().manual_seed(0)
    for name, count in (("cat", 7), ("dog", 3)):
        pixels = torch.randint(0, 256, (count, 32, 32, 3), generator=rng, dtype=torch.uint8)
        for i, image in enumerate(to_float(pixels.numpy())):
            save_png(image, root / "val" / name / f"{i}.png")
    return root


def run(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def launch_two(*words: object, code: int = 0) -> list[str]:
    """A command in two processes, started as torchrun starts them; what each wrote to stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",  # as this process: other numbers of threads round otherwise
        "PYTHONPATH": str(Path(tessella.__file__).parent.parent),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, *map(str, words)],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = []
    for rank in ranks:
        said.append(rank.communicate(timeout=120)[1])
        assert rank.returncode == code, said[-1]
    return said


def settings(data: Path, **changes: Any) -> EvaluationSettings:
    facts: dict[str, Any] = {
        "preset": PRESETS["val-paired"],
        "data": str(data),
        "features": "random",
        "progress": False,
    }
    return EvaluationSettings(**(facts | changes))


def test_report_has_the_values_of_reconstruct(folders: Folders, data: Path, tmp_path: Path) -> None:
    words = ["--protocol", "val-paired", "--features", "random", "--out", tmp_path / "report"]
    run("evaluate", "--tokenizer", folders[1], "--data", data, *words)
    found = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    known = reconstruct_source(
        load_tokenizer(folders[1]),
        open_source(data, "val"),
        perceptual="lpips_vgg",
        features="random",
        progress=False,
    )
    metrics = {name: value["mean"] for name, value in found["metrics"].items()}
    for name in ("psnr", "psnr_non_white", "ssim", "mse", "bits_per_image", "perplexity"):
        assert metrics[name] == pytest.approx(known[name], rel=1e-9), name
    assert metrics["lpips_vgg"] == pytest.approx(known["lpips_vgg"], rel=1e-5)
    assert metrics["FD@random"] == pytest.approx(known["FD@random"], rel=1e-3)
    assert known["protocol"] == found["protocol"]["id"], "one loop, one protocol"
    assert known["networks"]["features"] == "random#26a530f1"
    assert known["networks"]["perceptual"] == "lpips_vgg#2ecbe4ce"
    for name, value in metrics.items():
        assert known[name] == pytest.approx(value, rel=1e-9, nan_ok=True), name
    assert found["kind"] == found["protocol"]["task"] == "reconstructions"
    assert found["protocol"]["perceptual"] == "lpips_vgg#2ecbe4ce"
    assert all(len(value["values"]) == 1 for value in found["metrics"].values())
    assert any("without randomness" in note for note in found["notes"])
    assert [row[:2] for row in found["per_class"]["rows"]] == [["cat", 7], ["dog", 3]]
    psnr = [row[2] for row in found["per_class"]["rows"]]
    assert (7 * psnr[0] + 3 * psnr[1]) / 10 == pytest.approx(metrics["psnr"])
    assert (tmp_path / "report" / "worst.png").is_file()


def test_the_training_script_measures_the_same(folders: Folders, data: Path) -> None:
    """Its numbers of the averaged model are those of the protocol, without distances of sets."""
    tokenizer, source = load_tokenizer(folders[1]), open_source(data, "val")
    distance = build_perceptual("lpips_vgg")
    during = evaluate(tokenizer, source, distance, batch_size=4)
    found = evaluate_tokenizer(tokenizer, source, settings(data), name="x")
    assert found is not None
    values = {name: value.mean for name, value in found.metrics.items()}
    assert list(during)[-2:] == ["num_images", distance.id] and during["num_images"] == 10
    for name in ("psnr", "psnr_non_white", "ssim", "ms_ssim_3x5", "mse"):
        assert during[name] == pytest.approx(values[name], rel=1e-9), name
    assert during[distance.id] == pytest.approx(values["lpips_vgg"], rel=1e-6)
    assert evaluate(tokenizer, source, None, batch_size=4, limit=3)["num_images"] == 3


def test_batch_size_changes_nothing(folders: Folders, data: Path) -> None:
    tokenizer, source = load_tokenizer(folders[1]), open_source(data, "val")
    found = [
        evaluate_tokenizer(tokenizer, source, settings(data, batch_size=size), name="x")
        for size in (3, 10)
    ]
    assert found[0] is not None and found[1] is not None
    assert found[0].protocol == found[1].protocol
    for name, value in found[0].metrics.items():
        if name != "images_per_second":
            expected = pytest.approx(value.mean, rel=1e-4, abs=1e-7)  # float32 of the network
            assert found[1].metrics[name].mean == expected, name


class Noisy(nn.Module):
    """A tokenizer whose decoder adds noise from its generator."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if name in ("inner", "_modules"):
            return super().__getattr__(name)
        return getattr(self._modules["inner"], name)

    def decode(self, tokens: Tokens, *, rng: torch.Generator | None = None) -> Tensor:
        images = self._modules["inner"].decode(tokens)  # type: ignore[union-attr, operator]
        noise = torch.randn(images.shape, generator=rng)
        return (images + 0.1 * noise).clamp(-1, 1)

    def encode(self, images: Tensor, *, rng: torch.Generator | None = None) -> Tokens:
        return self._modules["inner"].encode(images)  # type: ignore[union-attr, operator]


def test_a_random_tokenizer_is_measured_with_several_seeds(folders: Folders, data: Path) -> None:
    tokenizer: Any = Noisy(load_tokenizer(folders[1]))
    source = open_source(data, "val")
    found = [
        evaluate_tokenizer(tokenizer, source, settings(data, batch_size=size), name="x")
        for size in (2, 10)
    ]
    assert found[0] is not None and found[1] is not None
    values = found[0].metrics["psnr"].values
    assert len(set(values)) == 3 and found[0].metrics["psnr"].spread
    assert found[1].metrics["psnr"].values == pytest.approx(values, rel=1e-9), "per-image seeds"
    assert not any("without randomness" in note for note in found[0].notes)


def test_refusals(folders: Folders, data: Path, tmp_path: Path) -> None:
    start = ["evaluate", "--tokenizer", folders[1], "--out", tmp_path / "report"]
    fast = ["--features", "random", "--protocol", "val-paired"]
    for words, message in (
        ([*fast, "--data", data, "--num", 11], "11 images to be reconstructed, the data have 10"),
        ([*fast, "--data", data, "--split", "train"], "no split"),
        ([*fast], "does not say which images"),
        (
            [*fast, "--data", data, "--curve-steps", "4"],
            "--curve-steps: only of use with --generator",
        ),
        ([*fast, "--data", data, "--guidance", "2"], "--guidance: only of use with --generator"),
        ([*fast, "--data", data, "--nearest", "4"], "nearest: not for a tokenizer, whose"),
        (["--protocol", "adm-256", "--data", data], "256 pixels, found 32"),
        ([*fast, "--data", data, "--samples", data], "give one of"),
    ):
        result = run(*start, *words, code=1)
        assert message in result.stderr, result.stderr
        assert not (tmp_path / "report").exists()
    result = run("evaluate", "--data", data, "--out", tmp_path / "report", code=1)
    assert "nothing to measure" in result.stderr
    precious = tmp_path / "report"
    precious.mkdir()
    (precious / "photo.png").write_bytes(b"")
    result = run(*start, *fast, "--data", data, code=1)
    assert "exists already" in result.stderr
    result = run(*start, *fast, "--data", data, "--overwrite", code=1)
    assert "holds no report written by tessella" in result.stderr and "photo.png" in result.stderr
    assert (precious / "photo.png").exists()
    words = ["--tokenizer", folders[1], *fast, "--data", data]
    result = run("evaluate", *words, "--out", precious / "photo.png" / "x", code=1)
    assert "cannot write" in result.stderr and "File exists" in result.stderr


def test_num_takes_evenly_spaced_images(folders: Folders, data: Path) -> None:
    """The files are sorted by class; the first six would all be cats."""
    found = evaluate_tokenizer(
        load_tokenizer(folders[1]), open_source(data, "val"), settings(data, num=6), name="x"
    )
    assert found is not None and found.per_class is not None
    assert [row[:2] for row in found.per_class["rows"]] == [["cat", 5], ["dog", 1]]


def test_broken_images_are_left_out_on_any_process(folders: Folders, tmp_path: Path) -> None:
    """Also if all of one process's share are, and the first ones."""
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (16, 32, 32, 3), generator=rng, dtype=torch.uint8)
    for i, image in enumerate(to_float(pixels.numpy())):
        save_png(image, tmp_path / "data" / "val" / f"{i:02d}.png")
        if i >= 8 or i < 2:
            (tmp_path / "data" / "val" / f"{i:02d}.png").write_bytes(b"\x89PNG")
    words = ["--features", "random", "--protocol", "val-paired", "--data", tmp_path / "data"]
    start = ["evaluate", "--tokenizer", folders[1], *words, "--batch-size", 1]
    run(*start, "--out", tmp_path / "one")
    launch_two("-m", "tessella.cli.main", *start, "--out", tmp_path / "two")
    one, two = (
        json.loads((tmp_path / name / "report.json").read_text(encoding="utf-8"))
        for name in ("one", "two")
    )
    assert one["protocol"] == two["protocol"] and one["broken"] == two["broken"]
    assert one["protocol"]["num_samples"] == 6 and len(one["broken"]) == 10
    for name, value in one["metrics"].items():
        assert two["metrics"][name]["mean"] == pytest.approx(value["mean"], rel=1e-9), name


def test_a_fault_of_one_process_ends_all(folders: Folders, tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 32, 32, 3), generator=rng, dtype=torch.uint8)
    for i, image in enumerate(to_float(pixels.numpy())):
        save_png(image[:, :24] if i == 7 else image, tmp_path / "data" / "train" / f"{i}.png")
    resized = dataclasses.replace(PRESETS["val-paired"], resize="none")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from tessella.metrics.presets import PRESETS, Preset\n"
        f"PRESETS['val-paired'] = {resized!r}\n"
        "from tessella.cli.main import main\n"
        "main(sys.argv[1:])\n",
        encoding="utf-8",
    )
    words = ["--features", "random", "--protocol", "val-paired", "--data", tmp_path / "data"]
    start = ["evaluate", "--tokenizer", folders[1], *words, "--split", "train"]
    said = launch_two(script, *start, "--out", tmp_path / "out", code=1)
    assert "24 x 32 pixels" in said[1] or "32 x 24 pixels" in said[1]
    assert "another process failed" in said[0] and "Traceback" not in said[0] + said[1]
    assert not (tmp_path / "out").exists()


def test_table_does_not_care_who_added_what() -> None:
    rng = torch.Generator().manual_seed(0)
    values = {"a": torch.rand(6, generator=rng), "b": torch.rand(6, generator=rng)}
    numbers, labels = torch.tensor([4, 2, 0, 5, 1, 3]), torch.tensor([1, 1, 0, 0, -1, 1])
    whole, first, second = (ImageTable(("a", "b")) for _ in range(3))
    whole.update(values, numbers, labels)
    for table, rows in ((second, slice(3, 6)), (first, slice(0, 3))):
        table.update({n: v[rows] for n, v in values.items()}, numbers[rows], labels[rows])
    second.merge(first)
    assert torch.equal(whole.column("a"), second.column("a"))
    assert whole.means() == second.means()
    assert whole.numbers.tolist() == list(range(6))
    best = numbers[values["b"].argmax()].item()
    assert whole.largest("b", 2)[0] == second.largest("b", 2)[0] == best
    assert whole.by_class(("x", "y")) == second.by_class(("x", "y"))
    assert [row[:2] for row in whole.by_class(("x",))] == [["no class", 1], ["x", 2], ["1", 3]]
