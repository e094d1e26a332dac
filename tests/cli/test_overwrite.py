"""--overwrite of every command: what a person has stays, byte for byte, and is named."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tessella.checkpoints import load_tokenizer
from tessella.cli.main import main
from tessella.codec.encode import encode_source
from tessella.data.images import is_own_png, save_png
from tessella.data.path_source import local_places
from tessella.data.sources import open_source
from tessella.files import MARKER, atomic_folder, read_marker
from tessella.metrics.networks.weights import convert_weights

Folders = tuple[Path, Path]
Command = Callable[[Path], list[object]]
FAST = ("--perceptual", "random", "--features", "none")


def run(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def contents(root: Path) -> dict[str, bytes]:
    """Every file below a folder, byte for byte."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def photographs(folder: Path) -> Path:
    """Five pictures and a note that no program can make again."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name in "abcde":
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "notes.md").write_bytes(b"mine")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return photographs(tmp_path / "photos")


@pytest.fixture
def commands(folders: Folders, tmp_path: Path) -> dict[str, tuple[str, Command]]:
    """What each command writes, and its words for an --out, on pictures of its own."""
    generator, tokenizer = folders
    pictures, store = photographs(tmp_path / "in" / "pictures"), tmp_path / "in" / "store"
    run("encode", "--tokenizer", tokenizer, pictures, "--out", store)
    checkpoint = tmp_path / "in" / "file.pt"
    checkpoint.write_bytes(b"weights")
    with_tokenizer, drawing = ["--tokenizer", tokenizer], ["--generator", generator]
    start: dict[str, tuple[str, list[object]]] = {
        "encode": ("token store", [*with_tokenizer, pictures]),
        "decode": ("images of a token store", [*with_tokenizer, store]),
        "reconstruct": (
            "reconstructions",
            [*with_tokenizer, "--data", pictures, "--split", "train", *FAST],
        ),
        "sample": ("samples", [*drawing, "--num", 2, "--num-steps", 2]),
        "compare": ("comparison", [tmp_path / "in" / "r1", tmp_path / "in" / "r2"]),
        "import": ("tokenizer", ["maskbit-tokenizer", checkpoint]),
        "evaluate": ("report", [*with_tokenizer, "--data", pictures]),
    }
    return {
        name: (kind, lambda out, n=name, w=words: [n, *w, "--out", out, "--overwrite"])  # type: ignore[misc]
        for name, (kind, words) in start.items()
    }


COMMANDS = ("encode", "decode", "reconstruct", "sample", "compare", "import", "evaluate")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_persons_folder_stays(
    name: str, commands: dict[str, tuple[str, Command]], photos: Path, tmp_path: Path
) -> None:
    """Whatever the command, and whether anything in the folder has to do with it."""
    kind, words = commands[name]
    before = contents(tmp_path)
    result = run(*words(photos), code=1)
    assert f"{photos} holds no {kind} written by tessella (no .tessella.json" in result.stderr
    assert "a.png, b.png, c.png and 3 more" in result.stderr
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_another_kind_and_added_files_stay(
    name: str, commands: dict[str, tuple[str, Command]], tmp_path: Path
) -> None:
    kind, words = commands[name]
    for made, added in (("something else", False), (kind, True)):
        out = tmp_path / made
        with atomic_folder(out, kind=made) as folder:
            (folder / "ours.txt").write_text("ours")
        if added:
            (out / "my photo.png").write_bytes(b"mine")
        before = contents(tmp_path)
        result = run(*words(out), code=1)
        assert ("did not write there: my photo.png" in result.stderr) == added
        assert ("but a something else written by tessella" in result.stderr) != added
        assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["encode", "decode", "reconstruct", "sample"])
def test_what_the_command_wrote_is_replaced(
    name: str, commands: dict[str, tuple[str, Command]], tmp_path: Path
) -> None:
    kind, words = commands[name]
    out = tmp_path / "out"
    run(*words(out))
    marker = read_marker(out)
    assert marker is not None and marker["kind"] == kind
    assert marker["files"].keys() == contents(out).keys() - {MARKER}
    before = contents(out)
    run(*words(out))
    assert contents(out).keys() == before.keys()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("form", ["folder", "files", "glob", "parent", "link"])
def test_encode_never_takes_its_own_images(
    form: str, folders: Folders, photos: Path, tmp_path: Path
) -> None:
    """Not even when the folder carries the marker of a token store that lists them all."""
    out, album = tmp_path / "store", tmp_path / "store" / "album"
    with atomic_folder(out, kind="token store") as folder:
        shutil.copytree(photos, folder / "album")
        shutil.make_archive(str(folder / "x"), "tar", photos)
    (tmp_path / "link").symlink_to(album)
    given: dict[str, list[object]] = {
        "folder": [album],
        "files": [album / "a.png", album / "b.png"],
        "glob": [out / "*.tar"],
        "parent": [album / ".." / "album"],
        "link": [tmp_path / "link"],
    }
    words = given[form]
    before = contents(tmp_path)
    command = ["encode", "--tokenizer", folders[1], *words, "--out", out, "--overwrite"]
    result = run(*command, code=1)
    assert "an input of this command, which is never replaced" in result.stderr
    assert contents(tmp_path) == before


def test_the_api_never_takes_its_own_images(folders: Folders, photos: Path) -> None:
    source, before = open_source(photos, "train"), contents(photos)
    with pytest.raises(FileExistsError, match="photos is an input of this command"):
        encode_source(load_tokenizer(folders[1]), source, photos, overwrite=True, progress=False)
    assert contents(photos) == before


def test_reconstructions_are_not_measured_into_themselves(
    folders: Folders, photos: Path, tmp_path: Path
) -> None:
    words = ["reconstruct", "--tokenizer", folders[1], "--split", "train", *FAST]
    out = tmp_path / "again"
    run(*words, "--data", photos, "--out", out)
    before = contents(out)
    result = run(*words, "--data", out, "--out", out, "--overwrite", code=1)
    assert f"{out} is an input of this command" in result.stderr
    assert contents(out) == before


def test_import_never_takes_what_it_reads(folders: Folders, tmp_path: Path) -> None:
    out = tmp_path / "model"
    shutil.copytree(folders[1], out)
    before = contents(out)
    words = ["import", "maskbit-tokenizer", out / "model.safetensors", "--out", out]
    result = run(*words, "--overwrite", code=1)
    assert "model.safetensors, an input of this command" in result.stderr
    (tmp_path / "other.pt").write_bytes(b"x")
    words = ["import", "maskbit-tokenizer", tmp_path / "other.pt", "--config", out / "config.yaml"]
    result = run(*words, "--out", out, "--overwrite", code=1)
    assert "config.yaml, an input of this command" in result.stderr
    assert contents(out) == before


def test_an_edit_never_takes_a_photograph_or_its_input(folders: Folders, photos: Path) -> None:
    start = ["edit", "--generator", folders[0], "--num-steps", 2, "--box", "0,0,8,8"]
    before = contents(photos)
    for image, out, message in (
        ("a.png", "a.png", "a.png is an input of this command"),
        ("a.png", "b.png", "b.png is no picture written by tessella"),
        ("a.png", "sub/../a.png", "a.png is an input of this command"),
    ):
        (photos / "sub").mkdir(exist_ok=True)
        words = ["--image", photos / image, "--out", photos / out, "--overwrite"]
        assert message in run(*start, *words, code=1).stderr
    assert contents(photos) == before
    ours = photos / "edited.png"
    for _ in range(2):
        run(*start, "--image", photos / "a.png", "--out", ours, "--overwrite")
    assert is_own_png(ours) and not is_own_png(photos / "a.png")
    mask = photos / "mask.png"
    save_png(np.full((32, 32, 3), 255, dtype=np.uint8), mask)
    before = contents(photos)
    result = run(*start, "--image", ours, "--out", ours, "--overwrite", code=1)
    assert "edited.png is an input" in result.stderr  # although we wrote it
    words = ["edit", "--generator", folders[0], "--image", ours, "--mask", mask, "--out", mask]
    assert "mask.png is an input" in run(*words, "--overwrite", code=1).stderr
    (photos / "link.png").symlink_to(ours)
    words = ["--image", photos / "a.png", "--out", photos / "link.png", "--overwrite"]
    assert "link.png is a symbolic link to" in run(*start, *words, code=1).stderr
    assert {**before, "link.png": before["edited.png"]} == contents(photos)


def test_a_probe_stored_later_is_ours(folders: Folders, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(folders[1], folder)
    run("verify", folder, "--store")
    marker = read_marker(folder)
    assert marker is not None and "probe.safetensors" in marker["files"]


def test_converted_weights_replace_only_their_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    file.write_bytes(b"mine")
    with pytest.raises(
        FileExistsError, match=r"mine\.safetensors is no file of weights written by"
    ):
        convert_weights("lpips_alex", file, source=tmp_path)
    assert file.read_bytes() == b"mine"


def test_local_places(tmp_path: Path) -> None:
    for name in ("0.tar", "1.tar"):
        (tmp_path / name).write_bytes(b"")
    names = ["bundled:emoji", "hub:a/b", "hf:a/b", None, "", "some/folder"]
    assert local_places(*names) == [Path("some/folder")]
    found = local_places(f"{tmp_path}/{{0..1}}.tar")
    assert [re.sub(".*/", "", str(path)) for path in found[1:]] == ["0.tar", "1.tar"]
