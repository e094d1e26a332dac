"""Training with captions: words decide what is drawn, and resume and processes change nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file

from tessella.checkpoints import CheckpointError, load_generator
from tessella.cli.main import main
from tessella.data.loader import eval_batches
from tessella.data.sources import open_source
from tessella.documents import parse_yaml, yaml_text
from tessella.sample.generate import generate

COLOURS = {"red": "#e02020", "green": "#20a040", "blue": "#2040d0", "yellow": "#f0d020"}
THINGS = ("ball", "stone")
TEXT = "generator.text={encoder: {type: words, max_length: 4}, label_dropout: 0.1}"


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one colour, whose caption names it: `red ball`, `green stone` and so on."""
    root = tmp_path_factory.mktemp("captioned")
    for split, count in (("train", 32), ("val", 8)):
        (root / split).mkdir()
        for i in range(count):
            name = list(COLOURS)[i % 4]
            Image.new("RGB", (16, 16), COLOURS[name]).save(root / split / f"{i:02d}.png")
            (root / split / f"{i:02d}.txt").write_text(f"{name} {THINGS[i // 4 % 2]}\n")
    return root


@pytest.fixture(scope="module")
def trained(
    generator_script: Any, captioned: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """A run of 20 steps, log lines every 4 and a checkpoint at step 10."""
    out = tmp_path_factory.mktemp("trained") / "run"
    run = generator_script(out, f"data.source={captioned}", TEXT, "run.log_every=4")
    assert run.statuses == [0], run.output
    return run


@pytest.mark.slow
def test_words_decide_what_is_drawn(generator_script: Any, captioned: Path, tmp_path: Path) -> None:
    """After 150 steps the tokens of a drawn `red ball` are those of a red picture, of all colours.

    The thresholds leave room for other CPUs; behind them, what was measured.
    """
    out, words = tmp_path / "run", ("generator.transformer.dropout=0.0", "run.steps=150", TEXT)
    words += (f"data.source={captioned}", "run.batch_size_per_device=32", "run.log_every=50")
    words += ("run.preview_every=150", "run.evaluate_every=150", "run.checkpoint_every=150")
    words += ("optimizer.lr.peak=1e-2", "optimizer.lr.warmup_steps=10")
    run = generator_script(out, *words)
    assert run.statuses == [0], run.output
    generator = load_generator(out / "generator")
    source = open_source(captioned, "val")
    (batch,) = eval_batches(source, 16, 8)
    real = generator.tokenizer.encode(batch["images"]).indices
    ways: dict[str, Any] = {"seeds": range(8), "num_steps": 4, "guidance": 2.0}
    asked = generate(generator, prompts=batch["captions"], **ways).indices
    others = generate(generator, prompts=[*batch["captions"][1:], "red ball"], **ways).indices
    assert (asked == real).float().mean() > 0.9  # 1.0
    assert (others == real).float().mean() < 0.8  # 0.5


def test_a_killed_run_resumes_to_the_same(
    trained: Any, generator_script: Any, captioned: Path, tmp_path: Path
) -> None:
    words = (f"data.source={captioned}", TEXT, "run.log_every=4")
    killed = generator_script(tmp_path / "run", *words, signals={0: ("SIGKILL", 13)})
    assert killed.statuses == [-9], killed.output
    resumed = generator_script(tmp_path / "run", *words, "--resume")
    assert resumed.statuses == [0], resumed.output
    assert resumed.differences(resumed.weights(20), trained.weights(20)) == []
    assert resumed.records("images_per_second") == trained.records("images_per_second")


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["words", "bytes"])
def test_two_processes_equal_one(
    encoder: str, generator_script: Any, captioned: Path, tmp_path: Path
) -> None:
    sizes = "" if encoder == "words" else ", width: 8, num_layers: 1, num_heads: 2, dropout: 0"
    words = (f"data.source={captioned}", "optimizer.eps=1e-3", "run.log_every=10")
    words += (f"generator.text={{encoder: {{type: {encoder}{sizes}}}}}",)
    words += ("generator.transformer.dropout=0.0",)
    runs = []
    for processes in (1, 2):
        batch = f"run.batch_size_per_device={8 // processes}"
        run = generator_script(tmp_path / f"{processes}", *words, batch, processes=processes)
        assert run.statuses == [0] * processes, run.output
        runs.append(run.weights(20))
    one, two = runs
    assert max(float((one[n] - two[n]).abs().max()) for n in one) < 1e-5


def test_the_pictures_of_a_run_have_captions_for_titles(trained: Any) -> None:
    assert (trained.out / "samples" / "step_0000020.png").exists()
    generator = load_generator(trained.out / "generator")
    assert generator.reads_text and generator.num_classes == 0
    names = {name for name in generator.state_dict() if name.startswith("text.")}
    assert names == {"text.kind", "text.pool.weight", "text.position", "text.project.bias",
                     "text.project.weight"}  # fmt: skip
    config = parse_yaml((trained.out / "generator" / "config.yaml").read_text(), name="config")
    assert generator.text is not None
    assert config["text"] == generator.text.encoder.fingerprint


def test_other_text_vectors_are_refused(trained: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained.out / "generator", folder)
    config = parse_yaml((folder / "config.yaml").read_text(), name="config")
    (folder / "config.yaml").write_text(yaml_text(config | {"text": "0" * 64}))
    with pytest.raises(CheckpointError):
        load_generator(folder)


def test_refused_before_anything_is_written(
    generator_command: Callable[..., Result], captioned: Path, tmp_path: Path
) -> None:
    cases = {
        ("generator.text={encoder: {type: words}}",): "has no captions to learn from",
        (TEXT, f"data.source={captioned}", "run.compile=true"): "generator.text cannot be compiled",
        ("generator.text={encoder: {type: wordz}}",): "unknown 'wordz'",
        ("generator.text={dropout: 2.0}",): "dropout and label_dropout",
    }
    for words, message in cases.items():
        result = generator_command("--out", tmp_path / "run", *words)
        lines = [line for line in result.output.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1 and message in lines[0], result.output
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tokens", ["store", "images"])
def test_training_images_without_captions_are_refused(
    tokens: str,
    generator_command: Callable[..., Result],
    captioned: Path,
    classes: Path,
    tmp_path: Path,
) -> None:
    """Also where the validation images have captions, or none that the encoder knows."""
    words = (TEXT, f"data.val_source={captioned}", f"data.tokens={tokens}")
    strange = tmp_path / "strange"
    shutil.copytree(captioned, strange)
    for caption in strange.glob("*/*.txt"):
        caption.write_text("ящик")
    for source, message in (
        (classes, "has no captions to learn from"),
        (strange, "has captions of which the text encoder 'words' knows no word"),
    ):
        given = (f"data.source={source}", "generator.num_classes=0")
        result = generator_command("--out", tmp_path / "run", *words, *given)
        lines = [line for line in result.output.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1 and message in lines[0], result.output
        assert not (tmp_path / "run").exists()


def run(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def test_prompts_on_the_command_line(trained: Any, tmp_path: Path) -> None:
    model, out = trained.out / "generator", tmp_path / "samples"
    words = ["--prompt", "red ball", "--prompt", "blue ящик", "--negative-prompt", "stone"]
    result = run("sample", "--generator", model, *words, "--out", out)
    assert "words that the generator does not know, and ignores: ящик" in result.stderr
    lines = [json.loads(line) for line in (out / "images.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["red ball", "blue ящик"]
    assert {line["negative_prompt"] for line in lines} == {"stone"}
    generator = load_generator(model)
    texts = [line["prompt"] for line in lines]
    drawn = generate(generator, prompts=texts, negative_prompts=["stone"] * 2)
    found = load_file(out / "tokens.safetensors")
    assert torch.equal(next(t for t in found.values() if t.ndim == 2), drawn.pack())

    listed = tmp_path / "prompts.txt"
    listed.write_text("red ball\n\n  green stone \nblue ball\n")
    run("sample", "--generator", model, "--prompts", listed, "--out", tmp_path / "listed")
    listed = (tmp_path / "listed/images.jsonl").read_text()
    lines = [json.loads(line) for line in listed.splitlines()]
    assert [line["prompt"] for line in lines] == ["red ball", "green stone", "blue ball"]
    assert {path.name for path in (tmp_path / "listed").iterdir()} >= {"000000.png", "grid.png"}
    image = Path(__file__).parents[2] / "docs" / "images" / "duck.png"
    words = ["--image", image, "--box", "0,0,32,32", "--prompt", "red ящик", "--json"]
    edited = run("edit", "--generator", model, *words, "--out", tmp_path / "edited.png")
    assert json.loads(edited.stdout)["prompt"] == "red ящик"
    assert "ignores: ящик" in edited.stderr


def test_any_prompt_is_written_and_read_again(trained: Any, tmp_path: Path) -> None:
    """Half a character, as a byte that is not UTF-8 gives on a command line; a byte order mark."""
    model, listed = trained.out / "generator", tmp_path / "prompts.txt"
    run(
        "sample",
        "--generator",
        model,
        "--prompt",
        "red\udce9ball",
        "--num",
        1,
        "--out",
        tmp_path / "a",
    )
    (line,) = (tmp_path / "a/images.jsonl").read_text().splitlines()
    assert json.loads(line)["prompt"] == "red\udce9ball"
    listed.write_bytes(b"\xef\xbb\xbfred ball\r\nblue ball")
    run("sample", "--generator", model, "--prompts", listed, "--out", tmp_path / "b")
    lines = [json.loads(line) for line in (tmp_path / "b/images.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["red ball", "blue ball"]


def test_prompts_that_cannot_be_drawn(trained: Any, folders: Any, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    model = trained.out / "generator"
    for words, message in (
        (["--generator", folders[0], "--prompt", "cat"], "--prompt: this generator was trained"),
        (["--generator", model, "--negative-prompt", "ящик"], "--negative-prompt: text 'ящик'"),
        (
            ["--generator", model, "--negative-prompt", "cat", "--guidance", "1"],
            "--negative-prompt: guidance leads away from it",
        ),
        (["--generator", model, "--prompt", "cat " * 3000], "at most 4 words and pieces"),
        (["--generator", model, "--prompt", "ящик"], "at least one word that the text encoder"),
        (["--generator", model, "--prompts", tmp_path / "empty.txt"], "expected a prompt a line"),
        (["--generator", model, "--prompts", tmp_path / "none.txt"], "no such file"),
        (["--generator", model, "--prompt", "cat", "--prompts", tmp_path / "empty.txt"], "both"),
    ):
        result = run("sample", *words, "--out", tmp_path / "samples", code=1)
        assert result.stderr.startswith("Error: ") and message in result.stderr, result.stderr
        assert not (tmp_path / "samples").exists()
