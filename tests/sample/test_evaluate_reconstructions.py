"""`tessella evaluate` of tokenizers, on a small random one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from tessella.checkpoints import load_tokenizer
from tessella.data.images import save_png, to_float
from tessella.data.sources import open_source
from tessella.sample.cli import main
from tessella.sample.evaluate_reconstructions import evaluate_tokenizer
from tessella.sample.evaluation import EvaluationSettings
from tessella.sample.image_table import ImageTable
from tessella.sample.metrics.features import available_features
from tessella.sample.metrics.protocol import PRESETS
from tessella.sample.metrics.weights import PROVIDERS
from tessella.sample.reconstruct import reconstruct_source
from tessella.tokenizers.tokens import Tokens

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
    assert metrics["lpips_vgg"] == pytest.approx(known["lpips_vgg#2ecbe4ce"], rel=1e-5)
    assert metrics["FD@random"] == pytest.approx(known["FD@random#26a530f1"], rel=1e-3)
    assert found["kind"] == found["protocol"]["task"] == "reconstructions"
    assert found["protocol"]["perceptual"] == "lpips_vgg#2ecbe4ce"
    assert all(len(value["values"]) == 1 for value in found["metrics"].values())
    assert any("without randomness" in note for note in found["notes"])
    assert [row[:2] for row in found["per_class"]["rows"]] == [["cat", 7], ["dog", 3]]
    psnr = [row[2] for row in found["per_class"]["rows"]]
    assert (7 * psnr[0] + 3 * psnr[1]) / 10 == pytest.approx(metrics["psnr"])
    assert (tmp_path / "report" / "worst.png").is_file()


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
            expected = pytest.approx(value.mean, rel=1e-5, abs=1e-7)
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
        ([*fast, "--data", data, "--curve-steps", "4"], "go with --generator"),
        (["--protocol", "adm-256", "--data", data], "256 pixels, found 32"),
        ([*fast, "--data", data, "--samples", data], "give one of"),
    ):
        result = run(*start, *words, code=1)
        assert message in result.stderr, result.stderr
        assert not (tmp_path / "report").exists()
    result = run("evaluate", "--data", data, "--out", tmp_path / "report", code=1)
    assert "nothing to measure" in result.stderr
    (tmp_path / "report").mkdir()
    result = run(*start, *fast, "--data", data, code=1)
    assert "exists already" in result.stderr


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
