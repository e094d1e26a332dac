import pickle
import sys
import tarfile
import types

import pytest
import torch

from tessella.data.image_source import SourceSettings
from tessella.data.loader import eval_batches
from tessella.data.sources import BrokenImage, DataError, open_source
from tessella.tests.cases import over


def test_bundled_emoji_facts():
    train, val = open_source("bundled:emoji"), open_source("bundled:emoji", "val")
    assert (len(train), len(val)) == (1381, 154)
    assert len(train.classes) == 13 and train.classes[0] == "face"
    assert train.licence.startswith("Apache-2.0") and train.name == "emoji"
    sample = train.read(0)
    assert (sample.id, sample.label, sample.caption) == ("train/000000", 0, "yawning face")
    batches = list(eval_batches(train, 64, 500))
    means = torch.cat([batch["images"] for batch in batches]).add(1).div(2).mean((0, 2, 3))
    assert means.tolist() == pytest.approx([0.8366, 0.7853, 0.7187], abs=5e-5)
    labels = torch.cat([batch["labels"] for batch in batches])
    assert torch.bincount(labels).tolist() == [
        *(117, 54, 162, 117, 61, 83, 65, 59, 70, 42, 274, 187, 90)
    ]


def test_folder_layouts(make_folder):
    root = make_folder("b/1.png", "a/2.png", "a/deep/3.JPG", "a/notes.md", ".hidden/4.png")
    (root / "a" / "2.txt").write_text("a caption\n")
    source = open_source(str(root))
    assert [source.id_of(i) for i in range(len(source))] == ["a/2.png", "a/deep/3.JPG", "b/1.png"]
    assert source.classes == ("a", "b")
    samples = [source.read(i) for i in range(3)]
    assert [s.label for s in samples] == [0, 0, 1]
    assert [s.caption for s in samples] == ["a caption", None, None]
    with pytest.raises(DataError, match=r"no split 'val'; found 2 folders and 0 files"):
        open_source(root, "val")
    with pytest.raises(IndexError):
        source.read(3)


def test_folder_with_splits_agrees_on_class_numbers(make_folder):
    root = make_folder("train/a/0.png", "train/b/0.png", "val/b/0.png")
    val = open_source(root, "val")
    assert val.classes == ("a", "b") and val.read(0).label == 1
    with pytest.raises(DataError, match=r"no split 'test', found the folders \['train', 'val'\]"):
        open_source(root, "test")
    make_folder("val/zebra/0.png")
    with pytest.raises(DataError, match="zebra"):
        open_source(root, "val")


def test_flat_folder_and_fingerprint(make_folder):
    root = make_folder("1.png", "2.png")
    source = open_source(root)
    assert source.classes == () and source.read(0).label is None
    before = source.fingerprint()
    assert before == open_source(root).fingerprint() and len(before) == 64
    make_folder("1.png", "2.png", "3.png")
    assert open_source(root).fingerprint() != before
    make_folder("sub/1.png")
    with pytest.raises(DataError, match=r"3 images .* beside 1 folders"):
        open_source(root)


@over(
    ("source", "message"),
    [
        ("bundled:emojis", "unknown, available: emoji; did you mean bundled:emoji"),
        ("/no/such/place", "no such file or folder"),
        ("emoji", "did you mean bundled:emoji"),
        ("s3://bucket/x", "unknown form"),
        ("", "unknown form"),
        ("/no/such/{000..002}.tar", "3 of 3 archives not found, first /no/such/000.tar"),
        ("/no/such/*.tar", "1 of 1 archives not found"),
        ("x/{2..1}.tar", "empty"),
    ],
)
def test_wrong_names_give_one_clear_error(source, message):
    with pytest.raises(DataError, match=message):
        open_source(source)


def test_wrong_folders_and_split(tmp_path):
    with pytest.raises(DataError, match="no images found"):
        open_source(tmp_path)
    (tmp_path / "a.png").write_text("")
    with pytest.raises(DataError, match="single file"):
        open_source(tmp_path / "a.png")
    with pytest.raises(DataError, match="split 'dev'"):
        open_source("bundled:emoji", "dev")


def test_truncated_png_in_a_folder(make_folder):
    root = make_folder("1.png", "2.png")
    (root / "1.png").write_bytes((root / "1.png").read_bytes()[:100])
    source, broken = open_source(root), {}
    with pytest.raises(BrokenImage, match=r"^1\.png: "):
        source.read(0)
    (batch,) = eval_batches(source, 16, 8, broken=broken)
    assert batch["ids"] == ["2.png"] and list(broken) == ["1.png"]


def test_tar_splits_classes_and_broken_members(make_tar, make_members, make_png):
    members = make_members(4, "train/") | make_members(2, "./val/")
    members |= {"train/bad.png": make_png(0)[:60], "train/._0000.png": b"", "train/x.cls": b"1"}
    members |= {"train/0001.json": b"{", "train/zz.png": make_png(9), "train/zz.cls": b"2"}
    members["train/zz.txt"] = b"words\n"
    path = make_tar("set.tar", members)
    train, val = open_source(path), open_source(path, "val")
    assert (len(train), len(val), val.id_of(0)) == (6, 2, "val/0000")
    assert val.classes == ("c0", "c1")
    with pytest.raises(BrokenImage, match="bad"):
        train.read(4)
    with pytest.raises(BrokenImage, match="metadata"):
        train.read(1)
    assert (train.read(5).label, train.read(5).caption) == (2, "words")
    with pytest.raises(DataError, match=r"no split 'test'.*found splits \['train', 'val'\]"):
        open_source(path, "test")


def test_shards_and_formats(make_tar, make_members, tmp_path):
    long_name = "n" * 150 + "/"
    make_tar("s/000.tar", make_members(2), format=tarfile.USTAR_FORMAT)
    make_tar("s/001.tar", make_members(2, long_name), format=tarfile.GNU_FORMAT)
    make_tar("s/002.tar", make_members(2, long_name + "é"), format=tarfile.PAX_FORMAT)
    shards = open_source(f"{tmp_path}/s/{{000..002}}.tar")
    assert [shards.id_of(i)[:8] for i in (0, 2, 4)] == ["000/0000", "001/nnnn", "002/nnnn"]
    assert [shards.read(i).caption for i in range(6)] == ["n0", "n1"] * 3
    assert shards.fingerprint() == open_source(f"{tmp_path}/s/*.tar").fingerprint()
    assert len(open_source(f"{tmp_path}/s/{{000,002}}.tar")) == 4
    with pytest.raises(DataError, match=r"no split 'val'.*6 images without splits"):
        open_source(f"{tmp_path}/s/*.tar", "val")
    with pytest.raises(DataError, match=r"no split 'train', found 000\.tar.*name the archives"):
        open_source(tmp_path / "s")


def test_damaged_tars(make_tar, make_members, tmp_path):
    path = make_tar("cut.tar", make_members(8))
    blob = path.read_bytes()
    path.write_bytes(blob[:5000])
    with pytest.raises(DataError, match=r"cut\.tar: truncated .* of 5000 \(\d files\)"):
        open_source(path)
    path.write_bytes(blob[: 512 + 1024 + 512 + 512])  # exactly between two members
    with pytest.raises(DataError, match="end-of-archive"):
        open_source(path)
    path.write_bytes(b"hello" * 1000)
    with pytest.raises(DataError, match="not a tar, or cut off in its first file"):
        open_source(path)
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.add(__file__)
    with pytest.raises(DataError, match="compressed with gzip"):
        open_source(tmp_path / "x.tar.gz")
    with pytest.raises(DataError, match=r"no split 'train'.*0 images"):
        open_source(make_tar("empty.tar", {"a.md": b""}))


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_pickles_without_open_files(kind, make_tar, make_members, make_folder):
    if kind == "tar":
        source = open_source(make_tar("a.tar", make_members(3)))
    else:
        source = open_source(make_folder("1.png", "2.png"))
    source.read(0)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read(1).image.tobytes() == source.read(1).image.tobytes()


class _Column:
    def __init__(self, names=None, dtype="", decode=True):
        self.names, self.dtype = names, dtype


class _Rows(list):
    def __init__(self, rows, features):
        super().__init__(rows)
        self.features, self.info = features, types.SimpleNamespace(license="mit")

    def select_columns(self, columns):
        return self

    def cast_column(self, name, kind):
        return self


def test_hub_source(monkeypatch, make_png):
    image, label = type("Image", (_Column,), {}), type("ClassLabel", (_Column,), {})
    features = {"img": image(), "label": label(["x", "y"]), "text": _Column(dtype="string")}
    rows = [{"img": {"bytes": make_png(0)}, "label": 1, "text": "t"}]
    rows.append({"img": {"bytes": b"no"}, "label": -1, "text": None})
    module = types.ModuleType("datasets")
    module.Image, module.ClassLabel = image, label
    asked = []
    module.get_dataset_split_names = lambda name, config, **options: splits

    def load_dataset(name, config, split, **options):
        asked.append((name, config, split, options))
        return _Rows(rows, features)

    splits = ["train", "validation"]
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    source = open_source("hf:owner/name", "val")
    assert (len(source), source.classes, source.licence) == (2, ("x", "y"), "mit")
    assert (source.read(0).label, source.read(0).caption) == (1, "t")
    with pytest.raises(BrokenImage):
        source.read(1)
    with pytest.raises(DataError, match="no split 'test'"):
        open_source("hf:owner/name", "test")
    open_source("hf:owner/name@v1.0:small")
    open_source("hf:owner/name:small")
    assert asked == [
        ("owner/name", None, "validation", {}),
        ("owner/name", "small", "train", {"revision": "v1.0"}),
        ("owner/name", "small", "train", {}),
    ]
    for wrong in ("hf:owner/name@", "hf:@v1", "hf:"):
        with pytest.raises(DataError, match="expected hf:owner/name"):
            open_source(wrong)
    splits[:] = ["train"]
    shared = SourceSettings(val_share=0.5)
    parts = [open_source("hf:owner/name", split, shared) for split in ("train", "val")]
    assert sorted(part.id_of(0) for part in parts) == ["train/000000", "train/000001"]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install tessella\[hub-data\]"):
        open_source("hf:owner/name")
