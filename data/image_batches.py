"""Pictures as tensors and back in one call: what a program needs before and after a model."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from PIL import Image
from torch import Tensor

from .image_source import DataError
from .images import IMAGE_SUFFIXES, read_image, save_png, to_pil, to_tensor, upright_rgb
from .path_source import open_paths
from .patterns import files_that_fit, given_path, is_reserved
from .transforms import resize_center_crop

Picture = str | os.PathLike[str] | Image.Image | IO[bytes]


def read_images(
    pictures: Picture | Iterable[Picture],
    *,
    resolution: int | None = None,
    limit: int | None = None,
) -> Tensor:
    """Read pictures of any size and mode as one batch for a tokenizer.

    EXIF orientation is applied, transparency is flattened on white, 16-bit and grey pictures become
    8-bit RGB.

    Example:
        >>> import tessella
        >>> from PIL import Image
        >>> tessella.read_images([Image.new("RGB", (300, 200), "red")], resolution=64).shape
        torch.Size([1, 3, 64, 64])

    Args:
        pictures: A file, a folder, a glob pattern, a data source such as `bundled:emoji`, a PIL
            image, a file that is open for reading bytes, or several of them. A path that exists is
            that path, whatever its characters.
        resolution: Side of the result in pixels; each picture is resized so that its shorter side
            fits, and its centre is cropped. None: pictures keep their size, which must be equal.
        limit: Largest number of pictures that are read; None: all.

    Returns:
        Float32 images, (B, 3, R, R) in [-1, 1], on the CPU.

    Raises:
        DataError: If nothing is there, or sizes differ while `resolution` is None.
        BrokenImage: If a picture cannot be decoded; names it.
        ValueError: If `resolution` or `limit` is below 1.
    """
    for name, value in (("resolution", resolution), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, found {value}")
    one = isinstance(pictures, str | Image.Image) or hasattr(pictures, "read")
    several = isinstance(pictures, Iterable) and not one
    given: list[Any] = [*pictures] if several else [pictures]  # type: ignore[misc] # asked above
    found: list[Tensor] = []
    for image in _decoded(given):
        if limit is not None and len(found) == limit:
            break
        found.append(
            to_tensor(image if resolution is None else resize_center_crop(image, resolution))
        )
    if not found:
        raise DataError("no pictures given: expected files, a folder, a pattern or PIL images")
    sizes = sorted({tuple(image.shape[1:]) for image in found})
    if len(sizes) > 1:
        raise DataError(
            f"pictures have {len(sizes)} different sizes, such as {sizes[0]} and {sizes[-1]} "
            "(height, width); give a resolution"
        )
    return torch.stack(found)


def save_images(
    images: Tensor, folder: str | os.PathLike[str], *, names: Sequence[str] | None = None
) -> list[Path]:
    """Write a batch of images as PNG files.

    Example:
        >>> import tempfile, torch, tessella
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in tessella.save_images(torch.zeros(2, 3, 8, 8), folder)]
        ['000000.png', '000001.png']

    Args:
        images: Float images, (B, 3, H, W) in [-1, 1]; values outside saturate.
        folder: Folder for the files; it is made where it does not exist.
        names: File names without `.png`, one per image; None: 000000, 000001, ...

    Returns:
        Paths of the files, one per image.

    Raises:
        ValueError: If the images have another shape, or names are missing, equal or lead elsewhere.
        FileExistsError: If one of the files exists already; nothing is written then.
        SaveError: If the disk refuses.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images: expected (B, 3, H, W), found {tuple(images.shape)}")
    names = [f"{i:06d}" for i in range(len(images))] if names is None else list(names)
    if len(names) != len(images) or len(set(names)) != len(names):
        raise ValueError(f"names: expected {len(images)} different ones, found {len(names)}")
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise ValueError(f"names: {name!r} is no plain file name")
    paths = [Path(folder) / f"{name}.png" for name in names]
    there = [path for path in paths if os.path.lexists(path)]
    if there:
        raise FileExistsError(f"{there[0]} exists already ({len(there)} of {len(paths)} files do)")
    pictures = [to_pil(image) for image in images]  # all of them, before the first is written
    for picture, path in zip(pictures, paths, strict=True):
        save_png(picture, path)
    return paths


def _decoded(pictures: Sequence[Picture]) -> Iterable[Image.Image]:
    """Every picture of what was given, in order; patterns only where no such path exists."""
    for picture in pictures:
        if isinstance(picture, Image.Image):
            yield upright_rgb(picture)
            continue
        if not isinstance(picture, str | os.PathLike):
            if not hasattr(picture, "read"):
                raise TypeError(
                    "pictures: expected paths, files open for reading bytes or PIL images, found "
                    f"{type(picture).__name__}"
                )
            yield read_image(picture)
            continue
        name = os.fspath(picture)
        for file in [name] if is_reserved(name) else files_that_fit(name):
            path = given_path(file)
            if path.suffix.lower() in IMAGE_SUFFIXES and not os.path.isdir(path):
                yield read_image(path)
            else:
                source = open_paths([file])
                yield from (source.read(i).image for i in range(len(source)))
