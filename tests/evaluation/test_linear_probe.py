"""Linear probing: the classifier against data with known answers, and what the numbers say."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

from tessella.checkpoints import load_tokenizer, save_generator
from tessella.cli.probe import probe as probe_command
from tessella.data.image_source import ImageSource, Sample
from tessella.evaluation.linear_probe import (
    ProbeConfig,
    accuracy,
    extract_features,
    fit_probe,
    probe_layers,
)
from tessella.generators.bigr import BiGR, BigrConfig
from tessella.generators.networks.binary_transcoder import BinaryTranscoderConfig
from tessella.generators.networks.llama import LlamaConfig
from tessella.generators.processes.bernoulli import BernoulliDiffusion

QUICK = ProbeConfig(epochs=20)


class Colours(ImageSource):
    """Plain pictures, red, green or blue by class, each a little different."""

    name, licence = "colours", None

    def __init__(self, split: str, count: int = 30, labelled: bool = True) -> None:
        self.split, self.count, self.labelled = split, count, labelled

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Sample:
        shade = 120 + 4 * (index % 30) + (self.split == "val")
        colour = [30, 30, 30]
        colour[index % 3] = shade
        image = Image.new("RGB", (32, 32), (*colour,))
        return Sample(image=image, id=self.id_of(index), label=index % 3 if self.labelled else None)

    def id_of(self, index: int) -> str:
        return f"{self.split}/{index}"

    @property
    def classes(self) -> tuple[str, ...]:
        return ("red", "green", "blue") if self.labelled else ()

    def _sizes(self) -> Iterable[int]:
        return [1] * self.count


@pytest.fixture(scope="module")
def generator(folders: tuple[Path, Path]) -> BiGR:
    """A tiny random BiGR over the tokens of a tiny tokenizer: 32 pixels, 8x8 of 4 bits."""
    tokenizer = load_tokenizer(folders[1])
    config = BigrConfig(
        transformer=LlamaConfig(width=16, num_layers=3, num_heads=2, mlp_width=24),
        head=BinaryTranscoderConfig(width=8, num_blocks=1),
        diffusion=BernoulliDiffusion(num_steps=8),
        num_classes=4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = BiGR(config, tokenizer.spec).eval()
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.4)
    generator.tokenizer = tokenizer
    return generator


def blobs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three classes around centres far from 0 and on very different scales."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 0, 2]]).repeat(1, 4)
    features = centres[labels] + torch.randn(count, 12, generator=rng) * 0.3
    return 50 + features * 10.0 ** torch.linspace(-3, 3, 12), labels


def test_classes_that_a_line_separates_are_told() -> None:
    """Whatever the scale of each feature, which the norm without weights takes away."""
    features, labels = blobs(300, 0)
    probe = fit_probe(features, labels, 3, QUICK)
    assert accuracy(probe, *blobs(300, 1)) > 0.99
    assert not list(probe[0].parameters()) and not probe.training
    mean, var = features.mean(0), features.var(0)
    torch.testing.assert_close(probe[0].running_mean, mean, rtol=0.02, atol=0)
    torch.testing.assert_close(probe[0].running_var, var, rtol=0.15, atol=0)


def test_labels_that_mean_nothing_are_not_told() -> None:
    """Chance is a third: 4 sigma of 900 images."""
    features, _ = blobs(300, 0)
    rng = torch.Generator().manual_seed(2)
    probe = fit_probe(features, torch.randint(3, (300,), generator=rng), 3, QUICK)
    other, labels = blobs(900, 1)
    scattered = labels[torch.randperm(900, generator=rng)]
    assert accuracy(probe, other, scattered) == pytest.approx(1 / 3, abs=4 * (2 / 9 / 900) ** 0.5)


def test_a_classifier_is_of_its_seed_alone() -> None:
    features, labels = blobs(60, 0)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    one = fit_probe(features, labels, 3, QUICK)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    again = fit_probe(features, labels, 3, QUICK)
    other = fit_probe(features, labels, 3, ProbeConfig(epochs=20, seed=1))
    assert torch.equal(one[1].weight, again[1].weight)
    assert not torch.equal(one[1].weight, other[1].weight)


def test_features_are_those_of_the_generator(generator: BiGR) -> None:
    source = Colours("train", 5)
    found = extract_features(generator, source, layers=[0, 2], batch_size=2)
    again = extract_features(generator, source, layers=[0, 2], batch_size=5)
    assert found.values.shape == (5, 2, 16) and found.labels.tolist() == [0, 1, 2, 0, 1]
    torch.testing.assert_close(found.values, again.values, atol=1e-5, rtol=1e-5)
    pixels = torch.tensor([120, 30, 30]) / 127.5 - 1
    tokens = generator.tokenizer.encode(pixels.view(1, 3, 1, 1).expand(1, 3, 32, 32).contiguous())
    expected = generator.features(tokens, layers=[0, 2])
    torch.testing.assert_close(found.values[:1], expected, atol=1e-5, rtol=1e-5)
    told = extract_features(generator, source, layers=[0, 2], label=1)
    expected = generator.features(tokens, torch.tensor([1]), layers=[0, 2])
    torch.testing.assert_close(told.values[:1], expected, atol=1e-5, rtol=1e-5)
    assert len(extract_features(generator, source, layers=[1], limit=3).labels) == 3


class Sorted(Colours):
    """Class after class, as folders are."""

    def read(self, index: int) -> Sample:
        return super().read(index * 3 // self.count)


def test_a_part_of_the_images_has_every_class(generator: BiGR) -> None:
    found = extract_features(generator, Sorted("train"), layers=[1], limit=6)
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="colours: expected images of two classes or more"):
        probe_layers(generator, Sorted("train"), Sorted("val"), QUICK, layers=[1], limit=1)


def test_the_sweep_says_how_it_was_measured(generator: BiGR) -> None:
    found = probe_layers(generator, Colours("train"), Colours("val", 12), QUICK)
    assert list(found["layers"]) == ["0", "1", "2"]
    best = found["layers"][str(found["best_layer"])]["accuracy"]
    assert found["accuracy"] == best == max(r["accuracy"] for r in found["layers"].values())
    assert best > 0.9 and found["largest_class"] == pytest.approx(1 / 3)
    protocol = found["protocol"]
    assert protocol["train"] == "colours train, 30 images, not augmented"
    assert protocol["val"] == "colours val, 12 images"
    assert protocol["epochs"] == 20 and protocol["told_class"] == "none"
    json.dumps(found)
    one = probe_layers(
        generator, Colours("train"), Colours("val", 12), QUICK, layers=[1], label=3, limit=9
    )
    assert list(one["layers"]) == ["1"] and one["protocol"]["told_class"] == 3
    assert one["protocol"]["val"] == "colours val, 9 images"


def test_what_cannot_be_probed_is_refused(generator: BiGR) -> None:
    train, val = Colours("train"), Colours("val")
    nameless = Colours("val", labelled=False)
    with pytest.raises(ValueError, match="the classes of colours and colours differ"):
        probe_layers(generator, train, nameless)
    with pytest.raises(ValueError, match="colours: an image has no label"):
        extract_features(generator, nameless, layers=[0])
    with pytest.raises(ValueError, match="layers: expected rising numbers from 0 to 2"):
        probe_layers(generator, train, val, layers=[3])
    with pytest.raises(ValueError, match="label: expected 0 to 3, found 4"):
        probe_layers(generator, train, val, label=4)
    with pytest.raises(ValueError, match="expected at least 2 images to learn from, found 1"):
        fit_probe(torch.zeros(1, 4), torch.zeros(1).long(), 2, QUICK)
    generator.train()
    with pytest.raises(ValueError, match=r"training mode; call generator\.eval\(\) first"):
        extract_features(generator, train, layers=[0])
    generator.eval()


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"epochs": 0}, "expected epochs >= 1 and batch_size >= 2, found 0 and 256"),
        ({"batch_size": 1}, "found 90 and 1"),
        ({"lr": 0.0}, "expected lr > 0 and momentum 0 to below 1, found 0.0 and 0.9"),
        ({"momentum": 1.0}, "found 0.1 and 1.0"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProbeConfig(**fields)


def test_command(generator: BiGR, folders: tuple[Path, Path], tmp_path: Path) -> None:
    for split, count in (("train", 12), ("val", 6)):
        source = Colours(split, count)
        for index in range(count):
            folder = tmp_path / "data" / split / source.classes[index % 3]
            folder.mkdir(parents=True, exist_ok=True)
            source.read(index).image.save(folder / f"{index}.png")
    fingerprint = generator.tokenizer.fingerprint
    save_generator(
        generator,
        tmp_path / "generator",
        tokenizer_path=folders[1],
        tokenizer_fingerprint=fingerprint,
    )
    arguments = ["--data", str(tmp_path / "data"), "--layers", "0,2", "--epochs", "5", "--json"]
    run = CliRunner().invoke(
        probe_command, ["--generator", str(tmp_path / "generator"), *arguments]
    )
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert list(found["layers"]) == ["0", "2"]
    assert found["protocol"]["classes"] == 3 and found["protocol"]["generator"]
    refused = CliRunner().invoke(probe_command, ["--generator", str(folders[0]), *arguments])
    assert refused.exit_code == 1 and "expected a bigr generator, found maskbit" in refused.output
