"""Names of picture files, made of the names that images have in their sources."""

import os
from pathlib import PurePosixPath

LONGEST = 200
"""Longest name of a file or folder, in bytes, before what makes it unique is added; 255 is the
limit of common file systems."""


def file_name(image_id: str, augmentation: int, taken: set[str]) -> str:
    """Relative PNG path for an image, which stays inside the folder and is not in `taken`.

    Names that differ in the case of letters alone are the same name on some systems and count as
    taken. No folder is called like a picture, so a path never leads through one.

    Args:
        image_id: Name of the image in its source.
        augmentation: Number of the augmented view; 0 is the image itself.
        taken: Names given so far, case folded; the new one is added.

    Example:
        >>> taken = set()
        >>> [file_name(name, 0, taken) for name in ("cat/1.jpg", "cat/1.png", "../1.jpg", "grid")]
        ['cat/1.png', 'cat/1_1.png', '1.png', 'grid_1.png']
    """
    path = PurePosixPath(image_id.replace("\0", "_"))
    parts = [part for part in path.parts if part not in ("/", "//", "..", ".")]
    stem = PurePosixPath(parts.pop()).with_suffix("").name if parts else "image"
    folders = [_shortened(part) for part in parts]
    folders = [f"{part}_" if part.lower().endswith(".png") else part for part in folders]
    stem = _shortened(stem) + (f"_aug{augmentation}" if augmentation else "")
    name, number = "/".join([*folders, f"{stem}.png"]), 0
    while name.casefold() in taken or name.casefold() == "grid.png":
        number += 1
        name = "/".join([*folders, f"{stem}_{number}.png"])
    taken.add(name.casefold())
    return name


def _shortened(part: str) -> str:
    while len(os.fsencode(part)) > LONGEST:
        part = part[:-1]
    return part
