"""Makers of tiny images, folders and tars."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _png(seed: int, size: tuple[int, int] = (16, 16)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def make_png() -> Callable[..., bytes]:
    """`make_png(seed, size=(16, 16))`: an encoded random RGB image."""
    return _png


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """`make_folder("a/0.png", ...)`: a folder with one random PNG per name."""

    def make(*names: str) -> Path:
        root = tmp_path / "images"
        root.mkdir(exist_ok=True)
        for seed, name in enumerate(names):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(_png(seed))
        return root

    return make


@pytest.fixture
def make_tar(tmp_path: Path) -> Callable[..., Path]:
    """`make_tar("x.tar", {name: bytes})`: an uncompressed tar with these members."""

    def make(name: str, members: dict[str, bytes], **options: int) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", **options) as tar:
            for member, blob in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(blob)
                tar.addfile(info, io.BytesIO(blob))
        return path

    return make


@pytest.fixture
def make_members() -> Callable[..., dict[str, bytes]]:
    """`make_members(count, prefix="")`: PNG and JSON members of labelled samples."""

    def make(count: int, prefix: str = "") -> dict[str, bytes]:
        members: dict[str, bytes] = {}
        for number in range(count):
            label = number % 3
            record = {"class_id": label, "class_name": f"c{label}", "caption": f"n{number}"}
            members[f"{prefix}{number:04d}.png"] = _png(number)
            members[f"{prefix}{number:04d}.json"] = json.dumps(record).encode()
        return members

    return make
