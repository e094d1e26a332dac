"""Samples that are asked by captions, and how well they point to them: protocol, report, alignment.

The random network stands in for that of the alignment, so that no weights are needed.
"""

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

import tessella
from tessella.checkpoints import load_generator, load_tokenizer, save_generator
from tessella.cli.main import main
from tessella.data.images import save_png
from tessella.data.sources import open_source
from tessella.evaluation import alignment
from tessella.evaluation.alignment import caption_folds, caption_vectors
from tessella.evaluation.captions import Captions, read_captions, readable_captions
from tessella.evaluation.evaluation import Evaluation
from tessella.evaluation.settings import EvaluationSettings
from tessella.generators.conditions import TextConfig
from tessella.metrics.alignment import METRICS, fit_maps, next_ones
from tessella.metrics.networks.build import build_features
from tessella.metrics.networks.weight_providers import WeightsMissing
from tessella.metrics.presets import PRESETS
from tessella.sample.folder import sample_to_folder
from tessella.sample.samplers import choose_sampling
from tessella.text.words import WordsConfig, load_words, rows_of

Folders = tuple[Path, Path]
CLASSES = ("grinning face", "cat", "ship")
COLOURS = ("red", "green", "blue", "white", "black", "yellow")
THINGS = ("apple", "house", "hat")
FAST: dict[str, Any] = {
    "protocol": "val-paired",
    "features": "random",
    "num_steps": 2,
    "nearest": 0,
    "progress": False,
    "cache": False,
}
GIVEN = {name: value for name, value in FAST.items() if name != "num_steps"}


@pytest.fixture(autouse=True)
def blind_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "NETWORK", "random")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 captioned pictures of 3 classes in either split; a caption of two pictures, and none."""
    root = tmp_path_factory.mktemp("captioned")
    for split in ("train", "val"):
        for i in range(18):
            colour, thing = COLOURS[i % 6], THINGS[i // 6]
            folder = root / split / f"{i // 6} {CLASSES[i // 6]}"
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.new("RGB", (32, 32), colour)
            image.paste((40 * (i // 6), 99, 9 * (split == "val")), (4, 4, 12 + 4 * (i // 6), 20))
            image.save(folder / f"{i:02d}.png")
            end = " today" if split == "val" else ""
            (folder / f"{i:02d}.txt").write_text(f"{colour} {thing}{end}\n")
        again = root / split / f"1 {CLASSES[1]}" / "99.png"
        Image.new("RGB", (32, 32), "gold").save(again)
        again.with_suffix(".txt").write_text(f"red apple{' today' * (split == 'val')}")
        Image.new("RGB", (32, 32), "gray").save(again.with_name("98.png"))
    return root


@pytest.fixture(scope="module")
def texted(
    folders: Folders, network: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The generator of `folders`, which reads texts of up to four words as well."""
    spec = load_tokenizer(folders[1]).spec
    text = TextConfig(encoder=WordsConfig(max_length=4))
    generator = network("maskbit", spec, text=text)
    generator.classes = tuple(f"{i} {name}" for i, name in enumerate(CLASSES))
    out = tmp_path_factory.mktemp("texted") / "generator"
    tokenizer = load_tokenizer(folders[1])
    save_generator(
        generator, out, tokenizer_path=folders[1], tokenizer_fingerprint=tokenizer.fingerprint
    )
    return out


def measured(texted: Path, data: Path, **fields: Any) -> Evaluation:
    found = tessella.evaluate(generator=texted, data=str(data), **(FAST | fields))
    assert found is not None
    return found


def settings(**fields: Any) -> EvaluationSettings:
    return EvaluationSettings(preset=PRESETS["val-paired"], data="x", progress=False, **fields)


def test_each_caption_comes_once_before_any_comes_twice() -> None:
    captions = Captions(tuple("abcdefg"), (0,) * 7)
    few = captions.choose(5, seed=3)
    assert len(set(few)) == 5
    assert captions.choose(5, seed=3) == few != captions.choose(5, seed=4)
    many = captions.choose(17, seed=3)
    assert many[:5] == few
    assert [set(many[i : i + 7]) for i in (0, 7)] == [set(range(7))] * 2
    assert sorted(Counter(many).values()) == [2, 2, 2, 2, 3, 3, 3]
    assert many[:7] != many[7:14]


def test_captions_of_a_split_whatever_its_files(data: Path, tmp_path: Path) -> None:
    found = read_captions(open_source(data, "train"), settings())
    assert found.texts == tuple(sorted({f"{c} {t}" for t in THINGS for c in COLOURS}))
    labels = dict(zip(found.texts, found.labels, strict=True))
    assert (labels["blue apple"], labels["blue house"], labels["blue hat"]) == (0, 1, 2)
    assert labels["red apple"] == 0, "of classes 0 and 1 with an image each"
    names = [("0 a", 0), ("0 a", 1), ("1 b", 2)]
    for i, (folder, number) in enumerate(names):
        save_png(torch.zeros(3, 8, 8), tmp_path / folder / f"{i}.png")
        text = ("b", "a", "b")[number]
        (tmp_path / folder / f"{i}.txt").write_text(f" {text} \n")
    few = read_captions(open_source(tmp_path, "train"), settings())
    assert few == Captions(("a", "b"), (0, 0))
    assert few.digest() == Captions(("a", "b"), (1, 0)).digest()
    assert few.digest(with_labels=True) != Captions(("a", "b"), (1, 0)).digest(with_labels=True)


def test_unread_captions_are_counted(texted: Path) -> None:
    text = load_generator(texted).text
    assert text is not None
    captions = Captions(("a b c d e", "red apple", "яблоко", "кот", "green hat"), (0, 1, 2, 0, 1))
    found, notes = readable_captions(captions, text)
    assert found == Captions(("red apple", "green hat"), (1, 1))
    assert notes == [
        "The generator cannot read 3 of 5 captions, and was not asked for them: 2 without a word "
        "that its text encoder 'words' knows and 1 of more than 4 words and pieces."
    ]
    assert readable_captions(found, text) == (found, [])


def test_samples_are_those_of_captions_and_seeds(texted: Path, data: Path, tmp_path: Path) -> None:
    """By default; and the values are the same as of the folder that `sample` writes."""
    report = measured(texted, data, num=20, repeats=2, seed=5)
    texts = read_captions(open_source(data, "val"), settings()).texts
    captions = Captions(texts, (0,) * len(texts))
    assert report.protocol.conditions == f"18 captions of the reference, #{captions.digest()}"
    assert report.protocol.class_balance == "none"
    asked = [texts[row] for row in captions.choose(20, seed=5)]
    assert report.captions == asked
    assert len(set(asked[:18])) == 18
    title, about, _ = report.pictures["samples.png"]
    assert (title, about[-36:]) == ("Samples", "and the captions that they were asked by"[-36:])
    rows = {row[0]: row[1] for row in report.per_class["rows"]} if report.per_class else {}
    assert sum(rows.values()) == 20, "a sample counts as the class of its caption"

    generator = load_generator(texted)
    sample_to_folder(
        generator,
        tmp_path / "samples",
        labels=[-1] * 20,
        seeds=[5 + i for i in range(20)],
        prompts=asked,
        sampling=choose_sampling(generator, None, {"num_steps": 2}),
        progress=False,
    )
    given = tessella.evaluate(samples=tmp_path / "samples", data=str(data), seed=5, **GIVEN)
    assert given is not None
    for name in ("FD@random", *METRICS):
        mean = given.metrics[name].mean
        assert mean == pytest.approx(report.metrics[name].values[0], rel=1e-4), name
    assert given.captions == asked
    assert given.protocol.conditions.startswith("as given, #")
    assert given.protocol.alignment == report.protocol.alignment
    assert given.alignment is not None and report.alignment is not None
    for side in ("floor", "ceiling"):
        assert given.alignment[side] == pytest.approx(report.alignment[side], rel=1e-4)


def test_alignment_is_that_of_features_and_vectors(data: Path) -> None:
    """Real images of the reference as given samples, computed once more by hand."""
    found = tessella.evaluate(samples=str(data / "val"), data=str(data), **GIVEN)
    assert found is not None and found.alignment is not None
    network = build_features("random")

    def pairs(split: str) -> tuple[Tensor, list[str]]:
        source = open_source(data, split)
        samples = [source.read(i) for i in range(len(source))]
        kept = [sample for sample in samples if sample.caption]
        pixels = [torch.tensor(list(s.image.tobytes()), dtype=torch.uint8) for s in kept]
        images = torch.stack(pixels).view(-1, 32, 32, 3).permute(0, 3, 1, 2)
        return network.pooled(images), [str(sample.caption) for sample in kept]

    features, texts = pairs("train")
    maps = fit_maps(features, caption_vectors(texts), caption_folds(texts))
    features, texts = pairs("val")
    candidates = sorted(set(texts))

    def means(texts: list[str]) -> dict[str, float]:
        among = torch.tensor([text in candidates for text in texts])
        vectors = caption_vectors(candidates)
        scores = maps.score(features, caption_vectors(texts), caption_folds(texts), vectors, among)
        return {name: float(scores[name].mean()) for name in METRICS}

    own = means(texts)
    for name in METRICS:
        assert found.metrics[name].mean == pytest.approx(own[name], rel=1e-4), name
    floor = means([texts[i] for i in next_ones(len(texts), 0).tolist()])
    assert found.alignment["floor"] == pytest.approx(floor, rel=1e-4)
    assert found.alignment["ceiling"] == pytest.approx(own, rel=1e-4)
    names = ("num_pairs", "num_captions", "num_samples", "num_ceiling")
    assert [found.alignment[name] for name in names] == [19, 18, 19, 19]
    assert found.alignment["ridge"] == maps.ridge
    assert any("1 of 20 samples of repetition 1 have no caption" in note for note in found.notes)
    fingerprint = load_words().fingerprint[:8]
    rule = f"{network.id} to words#{fingerprint}, ridge regression of 19 pairs in 5 folds, "
    assert found.protocol.alignment.startswith(f"{rule}18 captions, #")


def test_vectors_and_folds_of_captions_are_those_of_their_words() -> None:
    table = load_words()
    rows = [table.rows["red"], table.rows["apple"]]
    expected = table.vectors[rows].double().mean(0)
    torch.testing.assert_close(caption_vectors(["Red apple!"])[0], expected)
    texts = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
    folds = caption_folds(texts)
    assert torch.equal(folds, caption_folds([" ".join(t.upper().split()[::-1]) for t in texts]))
    assert len(folds.unique()) == 5
    assert rows_of("кот") == ()


def test_both_conditions_are_another_protocol(texted: Path, data: Path) -> None:
    few: dict[str, Any] = {"num": 6, "repeats": 1}
    both = measured(texted, data, conditions="both", **few)
    captions = measured(texted, data, conditions="captions", **few)
    assert both.protocol.class_balance == "captions"
    assert both.protocol.conditions.startswith("18 labels and captions of the reference, #")
    assert both.captions == captions.captions
    assert both.protocol.id != captions.protocol.id
    assert both.metrics["FD@random"].mean != captions.metrics["FD@random"].mean


def test_labels_alone_have_the_protocol_that_they_had(
    folders: Folders, texted: Path, tmp_path: Path
) -> None:
    """Where a generator that reads text is asked by labels, as of one that does not."""
    for label, name in enumerate(CLASSES):
        for i in range(4):
            folder = tmp_path / "val" / f"{label} {name}"
            save_png(torch.full((3, 32, 32), label / 4 + i / 9 - 0.5), folder / f"{i}.png")
            (folder / f"{i}.txt").write_text("a caption")
    few: dict[str, Any] = {"num": 6, "repeats": 1, "conditions": "labels"}
    reads = measured(texted, tmp_path, **few)
    generator = load_generator(folders[0])
    generator.classes = ()
    plain = tessella.evaluate(generator=generator, data=str(tmp_path), **(FAST | few))
    assert plain is not None
    assert reads.protocol == plain.protocol
    assert (reads.protocol.conditions, reads.protocol.alignment) == ("labels", "none")
    assert not reads.captions and reads.alignment is None
    assert not any(name in reads.metrics for name in METRICS)


def test_what_a_generator_does_not_read_is_refused(
    folders: Folders, texted: Path, data: Path, tmp_path: Path, network: Callable[..., Any]
) -> None:
    def refused(message: str, generator: Any, source: Path = data, **fields: Any) -> None:
        with pytest.raises(ValueError, match=message):
            tessella.evaluate(generator=generator, data=str(source), **(FAST | fields))

    message = "was trained without text and reads labels at most; expected labels, found captions"
    refused(message, folders[0], conditions="captions")
    generator = load_generator(texted)
    unlabelled = network("maskbit", generator.spec, text=TextConfig(), num_classes=0)
    unlabelled.tokenizer = generator.tokenizer
    refused("without classes; expected captions, found both", unlabelled, conditions="both")
    refused("expected labels, captions or both, found 'words'", texted, conditions="words")
    for i in range(8):
        save_png(torch.full((3, 32, 32), i / 9), tmp_path / "val" / f"{i}.png")
    refused("none of the 0 captions of .* can be read by the generator", texted, tmp_path)
    for i in range(8):
        (tmp_path / "val" / f"{i}.txt").write_text("кот")
    refused("none of the 1 captions of .* expected at least one", texted, tmp_path)
    with pytest.raises(ValueError, match="conditions and settings of a sampler are only of use"):
        tessella.evaluate(samples=data, data=str(data), conditions="captions", **GIVEN)


def test_classes_of_other_data_do_not_matter_to_captions(
    texted: Path, data: Path, tmp_path: Path
) -> None:
    for i in range(8):
        save_png(torch.full((3, 32, 32), i / 9), tmp_path / "val" / f"{i % 2} kind" / f"{i}.png")
        (tmp_path / "val" / f"{i % 2} kind" / f"{i}.txt").write_text(f"{COLOURS[i % 6]} hat")
    found = measured(texted, tmp_path, num=6, repeats=1)
    assert found.per_class is not None
    assert [row[0] for row in found.per_class["rows"]] == ["0 kind", "1 kind"]
    with pytest.raises(ValueError, match="the generator's classes are not those of"):
        measured(texted, tmp_path, conditions="both")


def test_without_what_it_needs_there_is_no_alignment_and_a_sentence(
    texted: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few: dict[str, Any] = {"num": 6, "repeats": 1}

    def note(source: Path) -> str:
        found = measured(texted, source, **few)
        assert found.alignment is None and found.protocol.alignment == "none"
        assert not any(name in found.metrics for name in METRICS)
        (note,) = [note for note in found.notes if note.startswith("No alignment of images and")]
        return note

    for i in range(12):
        save_png(torch.full((3, 32, 32), i / 12), tmp_path / "val" / f"{i}.png")
        text = f"{COLOURS[i % 6]} {THINGS[i // 6]}" if i < 10 else ""
        (tmp_path / "val" / f"{i}.txt").write_text(text)
    assert "10 different captions of known words, expected at least 11" in note(tmp_path)
    (tmp_path / "val" / "11.txt").write_text("yellow ball")
    assert "there is no training split to learn it from" in note(tmp_path)
    save_png(torch.zeros(3, 32, 32), tmp_path / "train" / "0.png")
    assert "(train) has too few captions of known words to learn it from" in note(tmp_path)

    def missing(name: str) -> None:
        raise WeightsMissing(f"{name}: no weights in a place; pip install something")

    monkeypatch.setattr(alignment, "NETWORK", "efflite0")
    monkeypatch.setattr(alignment, "build_features", missing)
    assert "efflite0: no weights in a place; pip install something." in note(data)


def test_the_command_writes_captions_and_alignment_into_the_report(
    texted: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    words = ["--generator", texted, "--data", data, "--out", out, "--num", 7, "--repeats", 2]
    fast = ["--protocol", "val-paired", "--features", "random", "--num-steps", 2, "--nearest", 0]
    result = CliRunner().invoke(main, ["evaluate", *map(str, [*words, *fast, "--no-cache"])])
    assert result.exit_code == 0, result.output
    assert "alignment_8" in result.stdout
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert len(report["captions"]) == 7
    assert all(report["metrics"][name]["group"] == "alignment" for name in METRICS)
    assert all(report["metrics"][name]["better"] == "higher" for name in METRICS)
    assert {name: report["floor"][name]["mean"] for name in METRICS} == pytest.approx(
        report["alignment"]["ceiling"]
    )
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Alignment of images and captions" in page
    assert "7 samples, captions of other samples" in page
    assert "19 real validation images, their own captions" in page
    result = CliRunner().invoke(main, ["evaluate", *map(str, words), "--conditions", "words"])
    assert "'words' is not one of 'labels', 'captions', 'both'" in result.output


@pytest.mark.slow
def test_processes_share_captions_and_change_nothing(
    texted: Path, data: Path, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = (
        "import sys; from tessella.evaluation import alignment; alignment.NETWORK = 'random';"
        "from tessella.cli.main import main; main(sys.argv[1:])"
    )
    words = ["evaluate", "--generator", texted, "--data", data, "--num", 11, "--repeats", 1]
    words += ["--protocol", "val-paired", "--features", "random", "--num-steps", 2]
    words += ["--nearest", 0, "--no-cache", "--batch-size", 1]
    shared = os.environ | {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program, *map(str, words), "--out", str(tmp_path / "two")],
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
    two = json.loads((tmp_path / "two" / "report.json").read_text(encoding="utf-8"))
    one = measured(texted, data, num=11, repeats=1, batch_size=1)
    assert two["protocol"]["id"] == one.protocol.id
    assert two["captions"] == one.captions
    for name, value in one.metrics.items():
        assert two["metrics"][name]["mean"] == pytest.approx(value.mean, rel=1e-9, abs=1e-9), name
    assert one.alignment is not None
    for side in ("floor", "ceiling"):
        assert two["alignment"][side] == pytest.approx(one.alignment[side], rel=1e-9)
