"""`tessella sample` as a person uses it, in one process and in two."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import tessella
from tessella.checkpoints import load_generator, save_generator
from tessella.cli.main import main
from tessella.data.images import read_image, to_tensor
from tessella.files import add_to_marker
from tessella.sample.folder import class_name, sample_to_folder
from tessella.sample.generate import generate
from tessella.sample.masked_steps import MaskedSampling, format_table, sampling_table
from tessella.tokens.store import load_tokens

Folders = tuple[Path, Path]
FAST = ("--num-steps", 2)


def run(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]


def test_sample_writes_pictures_grid_records_and_tokens(folders: Folders, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "samples"
    words = ["--labels", "2,0", "--num", 5, "--seed", 40, "--batch-size", 2, "--out", out, "--json"]
    result = run("sample", "--generator", folders[0], *words)
    told = json.loads(result.stdout)
    assert told["images"] == 5 and told["folder"] == str(out)
    assert told["bits_per_image"] == 256 and told["images_per_second"] > 0
    assert told["sampling"]["num_steps"] == 4 and told["sampling"]["guidance"] == 2.0
    assert "5/5" in result.stderr
    names = [f"{i:06d}.png" for i in range(5)]
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [".tessella.json", *names, "grid.png", "images.jsonl", "tokens.safetensors"]
    )
    assert not list(out.parent.glob(".*"))

    generator = load_generator(folders[0])
    expected = generate(generator, [2, 0, 2, 0, 2], seeds=[40, 41, 42, 43, 44])
    assert load_tokens(out / "tokens.safetensors").equal(expected)
    for name, image in zip(names, generator.tokenizer.decode(expected), strict=True):
        written = read_image(out / name)
        assert written.size == (32, 32) and written.mode == "RGB"
        assert (to_tensor(written) - image).abs().max() <= 1 / 255 + 1e-6

    found = records(out)
    assert [r["file"] for r in found] == names
    assert [r["seed"] for r in found] == [40, 41, 42, 43, 44]
    assert [r["label"] for r in found] == [2, 0, 2, 0, 2]
    assert [r["class"] for r in found] == ["ship", "grinning face"] * 2 + ["ship"]
    for record in found:
        assert record["generator"] == str(folders[0])
        assert record["fingerprint"] == generator.fingerprint
        assert record["tokenizer"] == generator.tokenizer.fingerprint
        assert record["sampling"] == told["sampling"]
    grid = read_image(out / "grid.png")
    assert grid.width >= 5 * 32 and grid.height > 32


def test_every_option_of_the_sampler_reaches_it(folders: Folders, tmp_path: Path) -> None:
    settings = {
        "sampler": "entropy",
        "num_steps": 3,
        "schedule": "linear",
        "guidance": 1.5,
        "guidance_schedule": "linear",
        "guidance_power": 2.0,
        "temperature": 0.8,
        "randomness": 0.5,
    }
    common = ("num_steps", "guidance", "temperature")
    words = [w for name in common for w in (f"--{name.replace('_', '-')}", settings[name])]
    words += [f"{name}={value}" for name, value in settings.items() if name not in common]
    run("sample", "--generator", folders[0], *words, "--num", 3, "--out", tmp_path / "out")
    expected = generate(load_generator(folders[0]), [0, 1, 2], **settings)
    assert load_tokens(tmp_path / "out" / "tokens.safetensors").equal(expected)
    stored = records(tmp_path / "out")[0]["sampling"]
    assert {name: stored[name] for name in settings} == settings


@pytest.mark.parametrize("words", [["num_steps=1e1"], ["--num-steps", "1e1"], ["num_steps=10.0"]])
def test_whole_numbers_may_be_written_with_an_exponent(
    folders: Folders, tmp_path: Path, words: list[str]
) -> None:
    run("sample", "--generator", folders[0], *words, "--num", 1, "--out", tmp_path / "out")
    assert records(tmp_path / "out")[0]["sampling"]["num_steps"] == 10


@pytest.mark.parametrize(
    ("words", "labels"),
    [
        (["--num", 4], [0, 1, 2, 0]),
        (["--num", 2, "--labels", "1"], [1, 1]),
        (["--num", 1, "--labels", "2,1"], [2]),
        (["--num", 3, "--labels", " -1, 2"], [-1, 2, -1]),
        (["--num", 3, "--classes", "Cat,grinning face"], [1, 0, 1]),
    ],
)
def test_labels_and_classes_repeat(
    folders: Folders, tmp_path: Path, words: list[object], labels: list[int]
) -> None:
    run("sample", "--generator", folders[0], *FAST, *words, "--out", tmp_path / "out")
    found = records(tmp_path / "out")
    assert [r["label"] for r in found] == labels
    names = {-1: "any", 0: "grinning face", 1: "cat", 2: "ship"}
    assert [r["class"] for r in found] == [names[label] for label in labels]


def test_a_generator_without_classes(network: Any, folders: Folders, tmp_path: Path) -> None:
    tokenizer = load_generator(folders[0]).tokenizer
    generator = network("maskgit", tokenizer.spec, num_classes=0)
    save_generator(
        generator,
        tmp_path / "model",
        tokenizer_path=folders[1],
        tokenizer_fingerprint=tokenizer.fingerprint,
    )
    words = ["sample", "--generator", tmp_path / "model", "--num", 2]
    run(*words, *FAST, "--out", tmp_path / "out")
    assert [(r["label"], r["class"]) for r in records(tmp_path / "out")] == [(-1, "any")] * 2
    for extra, message in (
        (["--guidance", 2], "this generator is unconditional, there is nothing to guide"),
        (["--labels", "0"], "this generator is unconditional, found [0]"),
        (["--classes", "cat"], "this generator has no class names"),
    ):
        result = run(*words, *FAST, *extra, "--out", tmp_path / "no", code=1)
        assert message in result.stderr and result.stderr.count("Error:") == 1
        assert not (tmp_path / "no").exists()
    assert class_name(network("maskbit", tokenizer.spec), 2) == "2"


def test_the_table_is_printed_and_nothing_drawn(folders: Folders, tmp_path: Path) -> None:
    words = [
        "sample",
        "--generator",
        folders[0],
        "--table",
        "--num-steps",
        5,
        "--out",
        tmp_path / "o",
    ]
    result = run(*words)
    config = MaskedSampling(num_steps=5, guidance=2.0)
    table = sampling_table(config, 128)
    assert result.stdout == format_table(table) + "\n"
    steps = json.loads(run(*words, "--json").stdout)["steps"]
    assert steps == [dataclasses.asdict(step) for step in table]
    assert sum(step["revealed"] for step in steps) == 128
    assert not (tmp_path / "o").exists()
    assert run(*words[:-2]).stdout == result.stdout  # needs no --out
    assert "129 steps for 128 slots" in run(*words[:-4], "--num-steps", 129, code=1).stderr


def test_the_table_counts_positions_where_groups_go_together(
    folders: Folders, tmp_path: Path
) -> None:
    shutil.copytree(folders[0], tmp_path / "generator")
    shutil.copytree(folders[1], tmp_path / "tokenizer")
    card = json.loads((tmp_path / "generator" / "card.json").read_text())
    card["sampling"] = {"num_steps": 64, "sampler": "halton", "halton_groups": "together"}
    (tmp_path / "generator" / "card.json").write_text(json.dumps(card))
    add_to_marker(tmp_path / "generator", "card.json")
    words = ["sample", "--generator", tmp_path / "generator"]
    rows = run(*words, "--table").stdout.splitlines()[1:]
    assert [int(row.split()[1]) for row in rows] == [1] * 64
    run(*words, "--num", 1, "--out", tmp_path / "out")


def test_what_exists_is_not_overwritten_unasked(folders: Folders, tmp_path: Path) -> None:
    words = ["sample", "--generator", folders[0], *FAST, "--num", 1, "--out", tmp_path / "out"]
    run(*words)
    before = (tmp_path / "out" / "images.jsonl").read_bytes()
    result = run(*words, "--seed", 5, code=1)
    assert "exists already" in result.stderr and "image/s" not in result.stderr
    assert (tmp_path / "out" / "images.jsonl").read_bytes() == before
    run(*words, "--seed", 5, "--overwrite")
    assert records(tmp_path / "out")[0]["seed"] == 5
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_another_tokenizer_can_be_named(folders: Folders, tmp_path: Path) -> None:
    shutil.copytree(folders[0], tmp_path / "alone")
    words = ["sample", "--generator", tmp_path / "alone", *FAST, "--num", 1]
    run(*words, "--out", tmp_path / "out", "--tokenizer", folders[1])
    card = json.loads((tmp_path / "alone" / "card.json").read_text())
    card["tokenizer"] = {"path": "gone"}
    (tmp_path / "alone" / "card.json").write_text(json.dumps(card))
    add_to_marker(tmp_path / "alone", "card.json")
    result = run(*words, "--out", tmp_path / "no", code=1)
    assert "was not found (gone: not there" in result.stderr and "--tokenizer" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--out: no folder given"),
        (["--out", "{tmp}/o", "--labels", "1", "--classes", "cat"], "not both"),
        (["--out", "{tmp}/o", "--labels", "0,3"], "expected 0 to 2, or -1 for none, found [3]"),
        (["--out", "{tmp}/o", "--labels", "1;2"], "--labels '1;2': expected numbers like 3,7"),
        (["--out", "{tmp}/o", "--labels", ""], "--labels '': expected numbers"),
        (["--out", "{tmp}/o", "--classes", "kat"], "class 'kat': unknown; did you mean cat?"),
        (["--out", "{tmp}/o", "--classes", "cat,"], "class '': unknown; there are: grinning"),
        (["--out", "{tmp}/o", "--num-steps", "129"], "129 steps for 128 slots"),
        (["--out", "{tmp}/o", "--num-steps", "0"], "num_steps: expected at least 1, found 0"),
        (["--out", "{tmp}/o", "--guidance", "-1"], "guidance: expected at least 0"),
        (["--out", "{tmp}/o", "--temperature", "nan"], "temperature: expected at least 0"),
        (
            ["--out", "{tmp}/o", "sampler=hilbert"],
            "sampler: Input should be 'confidence'",
        ),
        (["--out", "{tmp}/o", "top_k=5"], "unknown argument 'top_k'; generators of type maskbit"),
        (["--out", "{tmp}/o", "guidence=5"], "did you mean 'guidance'?"),
        (["--out", "{tmp}/o", "halton"], "setting 'halton': expected name=value"),
        (["--out", "{tmp}/o", "num_steps=2.5"], "num_steps: Input should be a valid integer"),
        (["--out", "{tmp}/o", "--num-steps", "2", "num_steps=3"], "num_steps: given twice"),
        (["--out", "{tmp}/o", "--device", "moon"], "moon"),
        (["--out", "{tmp}/o", "--tokenizer", "{tmp}/gone"], "no such folder"),
        (["--out", "{tmp}/o", "--generator", "{tokenizer}"], "holds a tokenizer, not a generator"),
        (["--out", "{tmp}/o", "--generator", "{tmp}/gone"], "no such folder"),
        (["--out", "{tmp}/o", "--generator", ""], "no path given"),
    ],
)
def test_mistakes_get_one_clear_line(
    folders: Folders, tmp_path: Path, words: list[str], message: str
) -> None:
    filled = [word.format(tmp=tmp_path, tokenizer=folders[1]) for word in words]
    result = run("sample", "--generator", folders[0], *filled, code=1)
    assert message in result.stderr
    assert result.stderr.count("Error:") == 1 and "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_wrong_usage_exits_with_2(folders: Folders) -> None:
    run("sample", "--out", "x", code=2)
    run("edit", "--generator", folders[0], code=2)
    for words in (
        ["--hilbert", "1"],
        ["--num", 0],
        ["--seed", -1],
        ["--seed", 2**64],
        ["--batch-size", 0],
        ["--precision", "fp16"],
        ["--num-steps", "2.5"],
        ["--num-steps", "nan"],
        ["--num-steps", "many"],
    ):
        run("sample", "--generator", folders[0], "--out", "x", *words, code=2)


def test_a_fault_while_drawing_leaves_nothing(folders: Folders, tmp_path: Path) -> None:
    generator = load_generator(folders[0])
    with torch.no_grad():
        generator.dense.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite in step 1"):
        sample_to_folder(generator, tmp_path / "out", labels=[0], seeds=[0], progress=False)
    for labels, seeds in (([], []), ([0, 1], [0]), ([0], [0, 1])):
        with pytest.raises(ValueError, match="expected a label and a seed per image"):
            sample_to_folder(generator, tmp_path / "out", labels=labels, seeds=seeds)
    assert not list(tmp_path.iterdir())


def test_two_processes_write_what_one_writes(folders: Folders, tmp_path: Path) -> None:
    """Started as torchrun starts them; 5 images, so that the shares differ."""
    words = ["sample", "--generator", str(folders[0]), "--num", "5", "--seed", "3", "--json"]
    run(*words, "--batch-size", 5, "--out", tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tessella.cli.main", *words]
    path = [str(Path(tessella.__file__).parent.parent), *filter(None, sys.path)]
    shared = os.environ | {
        "PYTHONPATH": os.pathsep.join(path),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            [*command, "--batch-size", "2", "--out", str(tmp_path / "two")],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ended = []
    for process in started:
        ended.append(process.communicate(timeout=120))
        assert process.returncode == 0, ended[-1][1]
    assert json.loads(ended[0][0])["images"] == 5
    assert ended[1][0] == ""  # one report, by the main process
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == files and len(files) == 9
    for name in files:
        one, two = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert one == two, name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


def test_info_knows_generators(folders: Folders) -> None:
    facts = json.loads(run("info", folders[0], "--json").stdout)
    assert facts["kind"] == "generator" and facts["num_classes"] == 3
    assert facts["sampling"] == {"num_steps": 4, "guidance": 2.0}
    tokenizer = json.loads(run("info", folders[1], "--json").stdout)
    assert facts["tokenizer"]["fingerprint"] == tokenizer["fingerprint"]
