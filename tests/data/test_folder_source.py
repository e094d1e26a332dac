"""Folders of people: what is lost is an error or counted, and class numbers agree."""

import os
from pathlib import Path

import pytest

from tessella.data.image_source import SourceSettings
from tessella.data.loader import eval_batches
from tessella.data.sources import DataError, open_source
from tessella.tests.cases import over


def labels(source):
    return {source.id_of(i): source.read(i).label for i in range(len(source))}


@pytest.mark.parametrize(
    "extra",
    [
        ("train/aa/notes.md",),  # a class folder without images
        ("train/__MACOSX/._0.png", "val/__MACOSX/._0.png"),
        ("train/@eaDir/thumb.png",),
        ("train/.cache/0.png",),
    ],
)
def test_folders_without_images_do_not_shift_the_labels_of_val(extra, make_folder):
    root = make_folder("train/b/0.png", "train/c/0.png", "val/b/0.png", "val/c/0.png", *extra)
    train, val = open_source(root), open_source(root, "val")
    assert train.classes == val.classes == ("b", "c")
    assert labels(train) == labels(val) == {"b/0.png": 0, "c/0.png": 1}


def test_a_class_without_training_images_is_an_error(make_folder):
    root = make_folder("train/b/0.png", "train/a/notes.md", "val/a/0.png", "val/b/0.png")
    with pytest.raises(DataError, match=r"classes \['a'\] have no images in .*train"):
        open_source(root, "val")


@over("place", ["b", "b/deep", ""])
def test_a_folder_that_cannot_be_listed_is_an_error(place, make_folder, monkeypatch):
    root = make_folder("a/0.png", "b/deep/0.png")
    locked, scandir = str(root / place).rstrip("/"), os.scandir

    def refuse(path="."):
        if str(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot be listed \(Permission denied\)"):
        open_source(root)


def test_links_to_folders(make_folder):
    root = make_folder("a/0.png", "a/1.png")
    (root / "b").symlink_to(root / "a")  # another class with the same pictures
    (root / "a" / "up").symlink_to(root)  # a circle
    assert [i for i in labels(open_source(root)) if i.count("/") == 1] == [
        *("a/0.png", "a/1.png", "b/0.png", "b/1.png")
    ]
    (root / "c").symlink_to(root / "gone")
    with pytest.raises(DataError, match=r"c: a link to .*gone, which does not exist"):
        open_source(root)


def test_files_that_cannot_be_read_are_counted(make_folder, tmp_path):
    root = make_folder("a/0.png", "a/1.heic", "a/2.jxl")
    (root / "a" / "3.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(root / "a" / "4.jpg")
    broken = {}
    (batch,) = eval_batches(open_source(root), 16, 8, broken=broken)
    # the files of these names hold PNG data, which is read whatever the name
    assert batch["ids"] == ["a/0.png", "a/1.heic", "a/2.jxl"]
    (root / "a" / "1.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    broken = {}
    (batch,) = eval_batches(open_source(root), 16, 8, broken=broken)
    assert sorted(broken) == ["a/1.heic", "a/3.png", "a/4.jpg"]
    assert "not an image in a format that is read (PNG, " in broken["a/1.heic"]


def test_avif_and_jpeg_2000_are_images(make_folder, tmp_path):
    from PIL import Image

    root = make_folder("a/0.png")
    Image.new("RGB", (16, 16), "red").save(root / "a" / "1.avif")
    Image.new("RGB", (16, 16), "red").save(root / "a" / "2.jp2")
    source = open_source(root)
    assert [source.id_of(i) for i in range(3)] == ["a/0.png", "a/1.avif", "a/2.jp2"]
    assert all(abs(source.read(i).image.getpixel((8, 8))[0] - 255) < 8 for i in (1, 2))


def test_the_budget_of_pixels(make_folder, make_png):
    root = make_folder("a/0.png")
    (root / "a" / "1.png").write_bytes(make_png(0, (17, 16)))
    broken = {}
    source = open_source(root, settings=SourceSettings(max_pixels=256))
    list(eval_batches(source, 16, 8, broken=broken))
    assert broken == {"a/1.png": "17x16 pixels, limit 256 (max_pixels) (ValueError)"}
    for wrong in (0, 10**9):
        with pytest.raises(ValueError, match="max_pixels: expected 1 to 178,956,970"):
            SourceSettings(max_pixels=wrong)


@pytest.mark.parametrize(
    ("names", "val"),
    [
        (("train", "valid"), "valid"),
        (("train", "validation"), "validation"),
        (("Train", "Val"), "Val"),
        (("TRAIN", "Validation", "other"), "Validation"),
        (("training", "dev"), "dev"),
        (("train", "val", "test"), "val"),
    ],
)
def test_names_of_splits(names, val, make_folder):
    root = make_folder(*(f"{name}/c/{name}.png" for name in names))
    train = open_source(root)
    assert [train.id_of(i) for i in range(len(train))] == [f"c/{names[0]}.png"]
    found = open_source(root, "val")
    assert labels(found) == {f"c/{val}.png": 0}


@pytest.mark.parametrize(
    "names", [("Train", "Bus"), ("test", "bus"), ("Validation", "bus", "plane"), ("test",)]
)
def test_classes_that_look_like_splits_stay_classes(names, make_folder):
    root = make_folder(*(f"{name}/0.png" for name in names))
    assert open_source(root).classes == tuple(sorted(names))


def test_a_name_that_may_be_a_split_or_a_class_is_an_error(make_folder):
    root = make_folder("train/0.png", "bus/0.png", "plane/0.png")
    with pytest.raises(DataError, match=r"train may be a split or a class, beside 2 other folders"):
        open_source(root)
    assert len(open_source(root / "train")) == 1
    root = make_folder("val/0.png", "valid/0.png")
    with pytest.raises(DataError, match="both 'val' and 'valid' stand for the split 'val'"):
        open_source(root)


def test_the_name_of_a_split_is_suggested(make_folder):
    with pytest.raises(
        DataError, match=r"split 'validation', expected one of .*did you mean val\?"
    ):
        open_source(make_folder("train/0.png", "val/0.png"), "validation")


def test_tars_named_and_divided_by_other_names(make_tar, make_members, tmp_path):
    make_tar("s/train-000.tar", make_members(3))
    make_tar("s/valid-000.tar", make_members(2))
    assert (len(open_source(tmp_path / "s")), len(open_source(tmp_path / "s", "val"))) == (3, 2)
    members = make_members(3, "Train/") | make_members(2, "validation/")
    path = make_tar("set.tar", members)
    assert (len(open_source(path)), len(open_source(path, "val"))) == (3, 2)
    path = make_tar("set.tar", make_members(3, "train/") | make_members(2, "bus/"))
    with pytest.raises(DataError, match="train may be a split or a class"):
        open_source(path)


def test_names_that_are_not_utf8(make_folder):
    root = make_folder("a/0.png")
    Path(os.fsdecode(os.fsencode(root / "a") + b"/\xff.png")).write_bytes(
        (root / "a" / "0.png").read_bytes()
    )
    source = open_source(root, settings=SourceSettings(val_share=0.5))
    assert len(source) == 1 and len(source.whole.fingerprint()) == 64
