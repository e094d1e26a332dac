"""Image batches as `.npz` files, the format of reference and sample batches of ADM.

`arr_0` holds 8-bit images (N, H, W, 3), the optional `arr_1` labels (N,), whose classes are named
by their numbers. The file may also hold precomputed Inception statistics: `mu`, `sigma`, and
`mu_s`, `sigma_s` of the spatial features (arXiv:2105.05233, reference batches of guided-diffusion).
"""

import zipfile
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from ..errors import DAMAGED_ARRAY
from ..files import sha256_file
from .image_source import MAX_CLASSES, DataError, ImageSource, Sample

IMAGES, LABELS = "arr_0", "arr_1"
MOMENTS = (("mu", "sigma"), ("mu_s", "sigma_s"))


class NpzSource(ImageSource):
    """Images of one `.npz` file; uncompressed images are memory-mapped.

    Args:
        path: The `.npz` file.
        split: Name of the split that the file represents.

    Raises:
        DataError: If the file is not an `.npz` archive, or `arr_0` is missing or not 8-bit RGB.
    """

    def __init__(self, path: Path, *, split: str = "train") -> None:
        self.path, self.name, self.split, self.licence = path, path.stem, split, None
        images = self._images
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise DataError(
                f"{path}: {IMAGES} is {images.dtype} {images.shape}, expected uint8 (N, H, W, 3)"
            )
        if not len(images):
            raise DataError(f"{path}: {IMAGES} holds no images")

    def __len__(self) -> int:
        return len(self._images)

    def __getstate__(self) -> dict[str, object]:
        return {name: self.__dict__[name] for name in ("path", "name", "split", "licence")}

    def id_of(self, index: int) -> str:
        """Stable name of one image, without reading it."""
        return f"{self.name}/{index:06d}"

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order; empty when the images carry no labels."""
        if self._labels is None:
            return ()
        return tuple(str(label) for label in range(int(self._labels.max()) + 1))

    def places(self) -> list[Path]:
        """Files and folders that the images are read from."""
        return [self.path]

    def _sizes(self) -> Iterable[int]:
        return (int(self._images[0].nbytes) for _ in range(len(self)))

    @cached_property
    def _fingerprint(self) -> str:  # all images have one size: only the content differs
        return sha256_file(self.path)

    def read(self, index: int) -> Sample:
        """Decode one image; see `ImageSource.read`."""
        self._check(index)
        pixels = np.array(self._images[index])
        label = None if self._labels is None else int(self._labels[index])
        return Sample(image=Image.fromarray(pixels), id=self.id_of(index), label=label)

    def moments(self) -> dict[str, np.ndarray]:
        """Precomputed statistics by name, float64; every mean has its covariance.

        Raises:
            DataError: If the statistics cannot be read, are not finite, or are not a mean and a
                covariance.
        """
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                found = {
                    name: stored[name].astype(np.float64)
                    for pair in MOMENTS
                    if set(pair) <= set(stored.files)
                    for name in pair
                }
        except DAMAGED_ARRAY as error:
            raise DataError(f"{self.path}: cannot be read: {error}") from None
        for mean, covariance in MOMENTS:
            if mean in found:
                _check_moments(found[mean], found[covariance], f"{self.path}: {covariance}")
        return found

    @cached_property
    def _labels(self) -> np.ndarray | None:
        """Labels of the images, int (N,); None if the file has none."""
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                labels: np.ndarray | None = stored[LABELS] if LABELS in stored.files else None
        except DAMAGED_ARRAY as error:
            raise DataError(f"{self.path}: {LABELS} cannot be read ({error})") from None
        if labels is None:
            return None
        whole = labels.shape == (len(self),) and np.issubdtype(labels.dtype, np.integer)
        if not whole or labels.min() < 0 or labels.max() >= MAX_CLASSES:
            raise DataError(
                f"{self.path}: {LABELS} is {labels.dtype} {labels.shape}, expected ({len(self)},) "
                f"integer labels from 0 to {MAX_CLASSES - 1}"
            )
        return labels

    @cached_property
    def _images(self) -> np.ndarray:
        """Images, uint8 (N, H, W, 3)."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                member = archive.getinfo(f"{IMAGES}.npy")
                if member.compress_type == zipfile.ZIP_STORED:
                    return _mapped(self.path, member)
            with np.load(self.path, allow_pickle=False) as stored:
                images: np.ndarray = stored[IMAGES]
                return images
        except KeyError:
            raise DataError(
                f"{self.path}: has no {IMAGES}; expected the images under that name"
            ) from None
        except DAMAGED_ARRAY as error:
            raise DataError(f"{self.path}: not a readable .npz file ({error})") from None


def _check_moments(mean: np.ndarray, covariance: np.ndarray, where: str) -> None:
    """Refuse statistics that are not a mean and a covariance matrix of finite values."""
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise DataError(
            f"{where} is {covariance.shape}, its mean {mean.shape}; expected (D, D) and (D,)"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise DataError(f"{where} or its mean holds values that are not finite")
    largest = np.abs(covariance).max()
    if np.abs(covariance - covariance.T).max() > 1e-6 * largest:
        raise DataError(f"{where} is not symmetric, so it is no covariance")
    if np.linalg.eigvalsh(covariance)[0] < -1e-6 * largest:
        raise DataError(f"{where} has a negative eigenvalue, so it is no covariance")


def _mapped(path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    """Map an uncompressed member to memory: local zip header, header of .npy, then the values."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)
        if header[:4] != b"PK\x03\x04":
            raise ValueError(f"no archive member where {member.filename} should be")
        names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        file.seek(member.header_offset + 30 + names)
        shape, fortran, dtype = _array_header(file)
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds Python objects")
        return np.memmap(path, dtype, "r", file.tell(), shape, order="F" if fortran else "C")


def _array_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype from the header of a .npy file."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)
