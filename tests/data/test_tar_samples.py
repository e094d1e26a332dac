"""Samples of tars that are broken or ambiguous: skipped, counted and named, by one rule."""

import io
import json
import tarfile
import time

import pytest

from tessella.data.image_source import MAX_CLASSES, SourceSettings
from tessella.data.images import BrokenImage
from tessella.data.loader import eval_batches
from tessella.data.sources import DataError, open_source
from tessella.tests.cases import over


def read_all(source):
    """Ids with labels of what can be read, and reasons of the rest by id."""
    broken = {}
    found = {}
    for batch in eval_batches(source, 16, 4, broken=broken):
        found |= dict(zip(batch["ids"], batch["labels"].tolist(), strict=True))
    return found, broken


@over(
    ("name", "content", "reason"),
    [
        ("0003.json", b'{"class_id": "cat"}', r"class_id 'cat', expected 0 to 99999"),
        ("0003.json", b'{"class_id": 999999999}', r"class_id 999999999, expected 0 to 99999"),
        ("0003.json", b'{"class_id": -1}', "class_id -1, expected"),
        ("0003.json", b'{"class_id": true}', "class_id True, expected"),
        ("0003.json", b'{"class_id": 1.5}', "class_id 1.5, expected"),
        ("0003.json", b'{"class_id": 0, "caption": 7}', "caption of type int, expected text"),
        ("0003.json", b"{", "not valid JSON"),
        ("0003.json", b"[" * 100_000, "nested more than"),
        ("0003.json", b'"' + b"x" * (1 << 20) + b'"', "bytes, expected at most 1048576"),
        ("0003.json", b"\xff\xfe", "not UTF-8"),
        ("0003.cls", b"dog", "invalid literal"),
        ("0003.cls", b"9" * 5000, "4300 digits"),
        ("0003.cls", b"2", r"class_id 0 in \.json, but 2 in \.cls"),
        ("0003.txt", b"\xff", "decode"),
    ],
)
def test_one_broken_sample_of_many(name, content, reason, make_tar, make_members):
    source = open_source(make_tar("set.tar", make_members(6) | {name: content}))
    started = time.perf_counter()
    assert source.classes == ("c0", "c1", "c2")  # 0003 is of class 0, as is 0000
    found, broken = read_all(source)
    assert time.perf_counter() - started < 5
    assert found == {f"{i:04d}": i % 3 for i in (0, 1, 2, 4, 5)}
    assert list(broken) == ["0003"]
    with pytest.raises(BrokenImage, match=f"0003: metadata: .*{reason}"):
        source.read(3)


def test_the_largest_class(make_tar, make_png):
    members = {"a.png": make_png(0), "a.cls": str(MAX_CLASSES - 1).encode()}
    source = open_source(make_tar("set.tar", members))
    assert source.read(0).label == MAX_CLASSES - 1 and len(source.classes) == MAX_CLASSES


def test_a_class_beyond_the_names_is_broken(make_tar, make_members):
    names = json.dumps(["x", "y"]).encode()
    source = open_source(make_tar("set.tar", make_members(6) | {"classes.json": names}))
    found, broken = read_all(source)
    assert source.classes == ("x", "y") and found == {"0000": 0, "0001": 1, "0003": 0, "0004": 1}
    assert "class_id 2, expected 0 to 1 (the classes of classes.json)" in broken["0002"]


def test_names_of_classes_that_differ_between_archives(make_tar, make_members, tmp_path):
    for shard, names in enumerate((["x", "y", "z"], ["x", "z", "y"])):
        content = {"classes.json": json.dumps(names).encode()}
        make_tar(f"s/{shard}.tar", make_members(3) | content)
    with pytest.raises(DataError, match=r"two classes\.json differ"):
        read_all(open_source(f"{tmp_path}/s/*.tar"))


@pytest.fixture
def open_members(make_tar, make_png):
    """`open_members("a.left.png", "a.json", image_member=None)`: these members as a source."""

    def make(*names, image_member=None):
        members = {}
        for number, name in enumerate(names):
            is_json = name.endswith(".json")
            members[name] = b'{"class_id": 1}' if is_json else make_png(number)
        return open_source(
            make_tar("set.tar", members), settings=SourceSettings(image_member=image_member)
        )

    return make


GOOD = ("b.png", "b.json")


@over(
    ("names", "member", "found"),
    [
        # one image: it is the image, and its metadata is that of its whole name or of the sample
        (("a.left.png", "a.json"), None, {"a.left": 1}),
        (("a.left.png", "a.left.json"), None, {"a.left": 1}),
        (("v1.2/a.png", "v1.2/a.json"), None, {"v1.2/a": 1}),
        # the image without a second dot; the other is a mask or the like
        (("a.jpg", "a.seg.png", "a.json"), None, {"a": 1}),
        (("a.seg.png", "a.png"), None, {"a": -1}),
        (("a.png", "a.heic"), None, {"a": -1}),
        # names with dots of which each has metadata of its own
        (("a.1.png", "a.1.json", "a.2.png", "a.2.json"), None, {"a.1": 1, "a.2": 1}),
        # the setting
        (("a.left.png", "a.right.png", "a.json"), "left.png", {"a": 1}),
        (("a.left.png", "a.right.png", "a.json"), ".RIGHT.png", {"a": 1}),
        (("a.left.png", "a.right.png", "a.left.json"), "*", {"a.left": 1, "a.right": -1}),
    ],
)
def test_which_member_is_the_image(names, member, found, open_members):
    read, broken = read_all(open_members(*names, image_member=member))
    assert read == found and not broken


@over(
    ("names", "reason"),
    [
        (("a.left.png", "a.right.png", "a.json"), r"2 images of one sample \(a.left.png, a.right"),
        (("a.left.png", "a.right.png"), "say which is the image with image_member"),
        (("a.png", "a.jpg", "a.json"), r"2 images of one sample \(a.jpg, a.png\)"),
        (("a.1.png", "a.1.json", "a.2.png"), "2 images of one sample"),
    ],
)
def test_ambiguous_samples_are_skipped_and_named(names, reason, open_members):
    source = open_members(*GOOD, *names)
    read, broken = read_all(source)
    assert read == {"b": 1} and list(broken) == ["a"] and len(source) == 2
    with pytest.raises(BrokenImage, match=f"a: .*{reason}"):
        source.read(0)
    with pytest.raises(DataError, match=f"none of 1 samples has an image; a: .*{reason}"):
        open_members(*names)


def test_a_sample_without_the_member_asked_for(open_members):
    source = open_members("a.left.png", "b.png", image_member="left.png")
    assert read_all(source) == ({"a": -1}, {"b": "no image member 'left.png', found b.png"})
    with pytest.raises(ValueError, match="image_member: expected the end of a name"):
        SourceSettings(image_member=".")


def add(tar, name, blob=b"", kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(blob), kind, target
    tar.addfile(info, io.BytesIO(blob))


def test_links_in_a_tar_are_images_too(tmp_path, make_png):
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        add(tar, "x/a.png", make_png(0))
        add(tar, "y/b.png", kind=tarfile.LNKTYPE, target="x/a.png")
        add(tar, "y/c.png", kind=tarfile.SYMTYPE, target="../x/a.png")
        add(tar, "y/d.png", kind=tarfile.SYMTYPE, target="b.png")
        add(tar, "y/e.png", kind=tarfile.SYMTYPE, target="/etc/passwd")
        add(tar, "y/f.png", kind=tarfile.SYMTYPE, target="f.png")
        add(tar, "y/g.png", kind=tarfile.FIFOTYPE)
        add(tar, "y/d.cls", b"1")
        add(tar, "y/b.cls", kind=tarfile.LNKTYPE, target="y/d.cls")
    source = open_source(tmp_path / "set.tar")
    found, broken = read_all(source)
    assert found == {"x/a": -1, "y/b": 1, "y/c": -1, "y/d": 1}
    assert len({source.read(i).image.tobytes() for i in range(4)}) == 1
    assert broken == {
        "y/e": "a link to /etc/passwd, which is not in the archive",
        "y/f": "a link to y/f.png, which is not in the archive",
        "y/g": "a tar member of type b'6', not a file",
    }


def test_a_member_larger_than_any_image_is_not_read(make_tar, make_png):
    path = make_tar("set.tar", {"a.png": make_png(0), "b.png": make_png(0) + bytes(20_000)})
    source = open_source(path, settings=SourceSettings(max_pixels=16 * 16))
    found, broken = read_all(source)
    assert list(found) == ["a"] and "bytes, expected at most 4096" in broken["b"]
