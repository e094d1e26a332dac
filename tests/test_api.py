"""The public names of the root, and every example that stands in a docstring."""

import doctest
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

import tessella
from tessella.data.image_source import DataError
from tessella.data.images import BrokenImage

ROOT = Path(tessella.__file__).resolve().parent
ROOMS = {p.name for p in ROOT.iterdir() if p.is_dir()} - {"tests", "benchmarks", "docs", "runs"}


def modules_with_examples() -> list[str]:
    found = ["tessella"]
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] not in ROOMS or parts[0].startswith(".") or "bundled" in parts:
            continue
        if "    >>> " in path.read_text(encoding="utf-8") and parts != ("__init__",):
            found.append(".".join(("tessella", *parts)))
    return found


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_of_docstrings_run(name: str) -> None:
    module: ModuleType = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert results.attempted > 0 and results.failed == 0


def test_public_names_are_listed_and_come_lazily() -> None:
    assert sorted(tessella.__all__) == dir(tessella)
    assert set(tessella._MODULES) | {"__version__"} == set(tessella.__all__)
    for name in tessella.__all__:
        assert getattr(tessella, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'load_tokeniser'"):
        tessella.load_tokeniser  # noqa: B018
    code = "import sys, tessella; sys.exit('torch' in sys.modules or 'click' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pictures_of_any_size_mode_and_place_become_one_batch(tmp_path: Path) -> None:
    grey = Image.linear_gradient("L").resize((300, 200))
    grey.save(tmp_path / "a[1].png")
    turned = Image.new("RGB", (40, 80), "red")
    exif = turned.getexif()
    exif[0x0112] = 6  # stored on its side
    turned.save(tmp_path / "b.jpg", exif=exif)
    Image.new("RGBA", (64, 64), (0, 0, 255, 0)).save(tmp_path / "c.webp", lossless=True)
    by_folder = tessella.read_images(tmp_path, resolution=32)
    assert by_folder.shape == (3, 3, 32, 32) and by_folder.dtype == torch.float32
    assert by_folder.abs().max() <= 1
    by_name = tessella.read_images([tmp_path / "a[1].png", tmp_path / "c.webp"], resolution=32)
    assert torch.equal(by_name, by_folder[[0, 2]]), "brackets of an existing name are no pattern"
    by_pattern = tessella.read_images(str(tmp_path / "*.webp"), resolution=32)
    assert torch.equal(by_pattern[0], torch.ones(3, 32, 32)), "transparent is white"
    assert tessella.read_images(tmp_path / "b.jpg").shape == (1, 3, 40, 80), "upright"
    assert len(tessella.read_images(tmp_path, resolution=16, limit=2)) == 2
    assert torch.equal(tessella.read_images(grey, resolution=32), by_folder[:1])
    for i, name in enumerate(["a[1].png", "b.jpg", "c.webp"]):
        with Image.open(tmp_path / name) as opened:
            assert torch.equal(tessella.read_images(opened, resolution=32)[0], by_folder[i]), name
    (tmp_path / "album.png").mkdir()
    grey.save(tmp_path / "album.png" / "x.png")
    assert torch.equal(tessella.read_images(tmp_path / "album.png", resolution=32), by_folder[:1])


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    Image.new("RGB", (9, 8)).save(tmp_path / "wide.png")
    with pytest.raises(BrokenImage, match=r"broken\.png"):
        tessella.read_images(tmp_path / "broken.png", resolution=8)
    with pytest.raises(BrokenImage, match=r"missing\.png"):
        tessella.read_images(tmp_path / "missing.png", resolution=8)
    with pytest.raises(DataError, match="no file fits this pattern"):
        tessella.read_images(str(tmp_path / "*.gif"), resolution=8)
    with pytest.raises(DataError, match=r"2 different sizes.*give a resolution"):
        tessella.read_images([tmp_path / "small.png", tmp_path / "wide.png"])
    with pytest.raises(DataError, match="no pictures given"):
        tessella.read_images([])
    for nothing in (None, [3], torch.zeros(2)):
        with pytest.raises(TypeError, match=r"pictures: expected paths, files open .* found"):
            tessella.read_images(nothing, resolution=8)
    with pytest.raises(ValueError, match="resolution: expected at least 1, found 0"):
        tessella.read_images(tmp_path / "small.png", resolution=0)


def test_images_are_written_as_they_are_read(tmp_path: Path) -> None:
    levels = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4) % 256
    images = levels / 127.5 - 1
    paths = tessella.save_images(images, tmp_path / "out", names=["a", "b"])
    assert [path.name for path in paths] == ["a.png", "b.png"]
    assert torch.allclose(tessella.read_images(paths), images, atol=1e-6)
    with pytest.raises(FileExistsError, match=r"a\.png exists already \(1 of 2 files do\)"):
        tessella.save_images(images, tmp_path / "out", names=["new", "a"])
    assert not (tmp_path / "out" / "new.png").exists()
    for names, message in (
        (["a/b", "c"], "no plain file name"),
        (["a", "a"], "expected 2 different ones"),
        (["a"], "expected 2 different ones"),
    ):
        with pytest.raises(ValueError, match=message):
            tessella.save_images(images, tmp_path / "other", names=names)
    (tmp_path / "out" / "link.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match=r"link\.png exists already"):
        tessella.save_images(images, tmp_path / "out", names=["new", "link"])
    spoilt = torch.cat([images[:1], torch.full_like(images[:1], torch.nan)])
    with pytest.raises(ValueError, match="not finite"):
        tessella.save_images(spoilt, tmp_path / "spoilt")
    assert not (tmp_path / "spoilt").exists()
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\), found \(3, 4, 4\)"):
        tessella.save_images(images[0], tmp_path / "other")
