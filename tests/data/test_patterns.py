"""A path that exists is that path; patterns only where nothing exists under that name."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tessella.data.image_batches import read_images
from tessella.data.path_source import local_places, open_paths
from tessella.data.patterns import expand_pattern
from tessella.data.sources import DataError, open_source
from tessella.tests.cases import over

NAMES = (
    *("set[1]", "a{1}", "a{1,2}", "x{0..3}", "what?", "st*r", "two words", " spaces ", "grüße"),
    *("ab:cd", "~home", "100%", "back\\slash", "-dash", "$HOME"),
)


def listed(source):
    return [source.id_of(index) for index in range(len(source))]


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_under_any_name(name, make_tar, make_members, tmp_path, monkeypatch):
    """As an absolute path and as one relative to the folder that it is in."""
    monkeypatch.chdir(tmp_path)
    make_tar(f"{name}.tar", make_members(3))
    np.savez(tmp_path / f"{name}.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    Image.new("RGB", (8, 8), "red").save(tmp_path / f"{name}.png")
    (tmp_path / name).mkdir()
    Image.new("RGB", (8, 8), "blue").save(tmp_path / name / f"{name}.png")
    # what the names would stand for if they were patterns
    for decoy in ("set1", "a1", "a2", "x0", "whatx", "stxr", "spaces"):
        make_tar(f"{decoy}.tar", make_members(1))
        (tmp_path / decoy).mkdir(exist_ok=True)
    for base in (f"{tmp_path}/", ""):
        assert len(open_source(f"{base}{name}.tar")) == 3
        assert len(open_source(f"{base}{name}.npz")) == 2
        assert listed(open_source(f"{base}{name}")) == [f"{name}.png"]
        assert listed(open_paths([f"{base}{name}.png"])) == [f"{name}.png"]
        assert read_images(f"{base}{name}.png")[0, 0, 0, 0] == 1
        assert read_images(f"{base}{name}")[0, 0, 0, 0] == -1
        for ending in (".tar", ".npz", ".png", ""):
            (place,) = local_places(f"{base}{name}{ending}")
            assert place.samefile(tmp_path / f"{name}{ending}")


def test_patterns_below_a_folder_with_such_a_name(make_tar, make_members, tmp_path):
    for shard in ("000", "001"):
        make_tar(f"set[1] {{a,b}}/{shard}.tar", make_members(2))
    base = tmp_path / "set[1] {a,b}"
    for rest in ("{000..001}.tar", "*.tar", "{000,001}.tar", "00[01].tar", "00{0..1}*"):
        assert expand_pattern(f"{base}/{rest}") == [base / "000.tar", base / "001.tar"], rest
    assert len(open_source(f"{base}/*.tar")) == 4
    for shard in (1, 2):
        Image.new("RGB", (8, 8)).save(base / f"{shard}.png")
    assert read_images(f"{base}/?.png").shape == (2, 3, 8, 8)
    assert local_places(f"{base}/*.tar")[1:] == [base / "000.tar", base / "001.tar"]


@over(
    ("pattern", "message"),
    [
        ("x/{0..999999999}.tar", "more than 1,000,000 numbers"),
        ("x/{0..999}{0..999}{0..999}.tar", "more than 1,000,000 archives"),
        ("~nobody-of-this-name/x.tar", "home directory"),
        ("set[1].tar", "1 of 1 archives not found"),
        ("a" * 5000, "no such file or folder"),
    ],
)
def test_what_is_not_there(pattern, message):
    with pytest.raises(DataError, match=message):
        open_source(pattern)


def test_spaces_around_a_name_that_is_not_there(make_folder):
    root = make_folder("1.png")
    assert len(open_source(f" {root} ")) == 1
    assert len(open_paths([f" {root}/1.png"])) == 1


def test_open_files_as_pictures(make_png, tmp_path):
    blob = make_png(0)
    (tmp_path / "a.png").write_bytes(blob)
    one = read_images(tmp_path / "a.png")
    assert torch.equal(read_images(io.BytesIO(blob)), one)
    with open(tmp_path / "a.png", "rb") as file:
        assert torch.equal(read_images([file, io.BytesIO(blob)]), torch.cat([one, one]))
    with pytest.raises(TypeError, match="files open for reading bytes or PIL images, found int"):
        read_images([3])


def test_the_home_folder(make_folder, monkeypatch):
    root = make_folder("1.png")
    monkeypatch.setenv("HOME", str(root.parent))
    assert listed(open_paths(["~/images/1.png"])) == ["1.png"]
    assert len(open_source("~/images")) == 1
    assert local_places("~/images") == [Path(os.environ["HOME"]) / "images"]
