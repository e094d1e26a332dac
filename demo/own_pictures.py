"""Pictures to fine-tune on: those of a folder, or the bundled emoji drawn as blueprints.

Nothing that is at hand without a network is in another style than the shipped models were trained
on, so the default is made: the emoji as white lines on blue paper, with their words and classes.
"""

import io
import json
import random
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.image_source import DataError, ImageSource, Sample, SourceSettings
from ..data.images import BrokenImage
from ..data.sources import open_source
from ..data.splits import VAL_SHARE
from ..data.train_val import open_train_and_val
from ..data.transforms import resize_center_crop

LEAST_PICTURES = 16
"""Least number of pictures that anything can be learned from."""
MOST_HELD_OUT = 32
"""Most pictures that are kept for measuring."""
_PAPER, _INK = np.array([24.0, 62.0, 128.0]), np.array([235.0, 242.0, 250.0])
_LINE = 160.0  # difference of grey levels across three pixels that is a full line
_FILL = 0.35  # part of the way from paper to ink that black areas are shaded


@dataclass(frozen=True)
class OwnPictures:
    """Pictures to train on and others to measure with.

    Args:
        name: What the page calls them.
        train: Training pictures.
        val: Pictures that no training sees.
        redraw: What is done with each of them before it is used.
    """

    name: str
    train: ImageSource
    val: ImageSource
    redraw: Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Written:
    """What `write_pictures` wrote.

    Args:
        train: Number of training pictures.
        val: Number of pictures that are held out.
        there: Number of training pictures that there are.
        broken: Number of pictures that could not be read.
    """

    train: int
    val: int
    there: int
    broken: int


def blueprint(image: Image.Image) -> Image.Image:
    """A picture as a drawing of white lines on blue paper; dark areas are shaded.

    Args:
        image: PIL image, mode RGB.
    """
    grey = np.asarray(image.convert("L")).astype(np.float64)
    wide = np.pad(grey, 1, mode="edge")
    across = np.abs(wide[1:-1, 2:] - wide[1:-1, :-2]) + np.abs(wide[2:, 1:-1] - wide[:-2, 1:-1])
    ink = np.maximum((across / _LINE).clip(0, 1), (255 - grey) / 255 * _FILL)[..., None]
    return Image.fromarray((_PAPER * (1 - ink) + _INK * ink).round().astype(np.uint8))


def open_pictures(data: str | None, side: int) -> OwnPictures:
    """Open the pictures to fine-tune on, and check that there are enough that can be read.

    Args:
        data: Folder or other data source; None: the bundled emoji as blueprints.
        side: Side in pixels at which they will be read.

    Raises:
        DataError: If there is no such source, or it has fewer than 16 pictures that can be read.
    """
    if data is None:
        train, val = (open_source("bundled:emoji", split) for split in ("train", "val"))
        return OwnPictures("the bundled emoji, drawn as blueprints", train, val, redraw=blueprint)
    found = len(open_source(data, "train"))
    if found >= LEAST_PICTURES:
        settings = SourceSettings(val_share=VAL_SHARE)
        train, val = open_train_and_val(data, None, settings, same_classes=True)
        found = _count_readable(train, side)
        if found >= LEAST_PICTURES // 2 and _count_readable(val, side):
            return OwnPictures(data, train, val, redraw=lambda image: image)
        found += _count_readable(val, side)
    raise DataError(
        f"--data {data}: found {found} pictures that can be read, expected at least "
        f"{LEAST_PICTURES}, some of which are kept apart for measuring"
    )


def write_pictures(
    pictures: OwnPictures,
    folder: Path,
    *,
    side: int,
    classes: Sequence[str],
    most: int,
    seconds: float,
) -> Written:
    """Write pictures at the size of the models, as `train.tar` and `val.tar` of a data source.

    A picture has a class if the name of its own is among `classes`, and always a caption: its own,
    else the name of its class, else the name of the source. They are taken in random order, so that
    the first ones stand for all.

    Args:
        pictures: Pictures.
        folder: Folder to create.
        side: Side of the written pictures, in pixels.
        classes: Class names of the generator.
        most: Most training pictures.
        seconds: Time after which no more are read, once there are enough.

    Raises:
        DataError: If there are too few that can be read.
    """
    folder.mkdir(parents=True)
    broken: dict[str, str] = {}
    started, counts = time.perf_counter(), {"val": 0, "train": 0}
    for split, source, limit in (
        ("val", pictures.val, MOST_HELD_OUT),
        ("train", pictures.train, most),
    ):
        with tarfile.open(folder / f"{split}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            if classes:
                _add(tar, "classes.json", _json({"classes": list(classes)}))
            for sample in _shuffled(source, side, broken):
                late = time.perf_counter() - started > seconds
                if counts[split] >= limit or (late and counts[split] >= LEAST_PICTURES // 2):
                    break
                file = io.BytesIO()
                pictures.redraw(resize_center_crop(sample.image, side)).save(file, "PNG")
                name = f"{counts[split]:06d}"
                _add(tar, f"{name}.png", file.getvalue())
                _add(tar, f"{name}.json", _json(_facts(sample, source, classes)))
                counts[split] += 1
    if not all(counts.values()):
        raise DataError(
            f"{pictures.name}: {counts['train']} pictures to train on and {counts['val']} to "
            "measure with could be read, expected some of both"
        )
    return Written(counts["train"], counts["val"], len(pictures.train), len(broken))


def _facts(sample: Sample, source: ImageSource, classes: Sequence[str]) -> dict[str, Any]:
    """Class and caption of a picture."""
    name = None if sample.label is None or not source.classes else source.classes[sample.label]
    caption = sample.caption or (name or source.name).replace("_", " ").replace("-", " ")
    if name is None or name not in classes:
        return {"caption": caption}
    return {"class_id": classes.index(name), "class_name": name, "caption": caption}


def _count_readable(source: ImageSource, side: int) -> int:
    """Number of pictures that can be read, counted up to what is needed."""
    found = 0
    for _ in _shuffled(source, side, {}):
        found += 1
        if found == LEAST_PICTURES:
            break
    return found


def _shuffled(source: ImageSource, side: int, broken: dict[str, str]) -> Iterator[Sample]:
    """Readable pictures of a source in a random order, always the same."""
    for index in random.Random(0).sample(range(len(source)), len(source)):
        try:
            yield source.read_near(index, side)
        except BrokenImage as error:
            broken[source.id_of(index)] = str(error)


def _add(tar: tarfile.TarFile, name: str, blob: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(blob)
    tar.addfile(member, io.BytesIO(blob))


def _json(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode()
