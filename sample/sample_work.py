"""The folder of samples that are being drawn, which an interrupted command continues.

`NAME.unfinished` stands beside the folder NAME until that is complete:

    writer.json                the lock: held by the writer, and released when its process ends
    settings.json              what decides the pictures; a command with other settings is refused
    000000.png                 pictures
    batch-000000.safetensors   tokens of a finished batch by the number of its first picture, and
                               the SHA-256 of its pictures

The tokens of a batch are written last and at once, so a batch whose tokens are there is complete.
Everything else is drawn again. Whatever tessella did not write is never touched.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..documents import parse_json, read_json
from ..files import SaveError, atomic_file
from ..manifest import sha256_file
from ..tokens.store_work import describe_differences
from ..tokens.token_file import load_tensors, save_tensors
from ..unfinished import UnfinishedFolder, sweep

SETTINGS, IMAGES = "settings.json", "number of images"
_BATCH = re.compile(r"batch-(\d{6,})\.safetensors")
_OURS = re.compile(
    r"writer\.json|settings\.json|\d{6,}\.png|batch-\d{6,}\.safetensors"
    r"|\.(settings\.json|batch-\d{6,}\.safetensors)\.[0-9a-f]{8}\.partial"
)
_MOST_SHOWN = 16


def file_of(number: int) -> str:
    """File name of the picture of an image number."""
    return f"{number:06d}.png"


def summary(values: Sequence[Any]) -> list[Any] | str:
    """Labels, seeds or prompts for the settings: the values, or of many the ends and a hash."""
    if len(values) <= _MOST_SHOWN:
        return list(values)
    digest = hashlib.sha256(json.dumps(list(values)).encode()).hexdigest()
    return f"{values[0]}, {values[1]}, ... {values[-1]} (sha256 {digest[:16]})"


class SampleWork:
    """Finished batches of samples; one process calls `begin` and `end`, all may add batches.

    Args:
        out: Folder of the samples.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = out.with_name(f"{out.name}.unfinished")
        self._folder = UnfinishedFolder(self.path, _OURS)

    def begin(self, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Make the folder and take its lock, or continue what is there.

        Args:
            settings: What decides the pictures, JSON values by name; `IMAGES` is one of them.
            resume: Whether to keep finished batches.
            overwrite: Whether finished batches may be thrown away, without `resume`.

        Raises:
            FileExistsError: If finished batches are there and may be neither kept nor thrown away,
                another writer is at work, or something that tessella did not write stands there.
            ValueError: If the batches are of other settings; the message has the differences.
            SaveError: If it cannot be made.
        """
        self._take_lock()
        try:
            sweep(self.path)
            self._remove_published()
            kept = len(self.pictures())
            if kept and not resume and not overwrite:
                raise FileExistsError(
                    f"{self.path}: {kept:,} pictures of an interrupted command; continue it with "
                    "resume (--resume), or delete the folder to begin anew"
                )
            if kept and resume:
                self._compare(settings)
            else:
                self._clear()
                with atomic_file(self.path / SETTINGS) as temporary:
                    temporary.write_text(json.dumps(dict(settings), indent=1), encoding="utf-8")
        except BaseException:
            self.end(keep=bool(self.pictures()))
            raise

    def end(self, *, keep: bool) -> None:
        """Give the lock back, and remove the folder unless its batches are kept."""
        if not self._folder.is_held:
            return
        if not keep:
            self._clear()
            self._folder.remove()
        self._folder.release()

    def save(self, number: int, picture: Image.Image) -> None:
        """Write one picture; it counts once its batch is added."""
        path = self.path / file_of(number)
        path.unlink(missing_ok=True)  # a link of it may be in a finished folder
        try:
            picture.save(path)
        except OSError as error:
            raise SaveError(f"cannot write {path}: {error.strerror or error}") from error

    def add(self, first: int, count: int, packed: Tensor) -> None:
        """Note that a batch is finished, whose pictures are in the folder.

        Args:
            first: Number of its first picture.
            count: Number of its pictures.
            packed: Their tokens, from `Tokens.pack`, (count, P) uint8.

        Raises:
            SaveError: If writing fails.
        """
        sums = [sha256_file(self.path / file_of(i)) for i in range(first, first + count)]
        with atomic_file(self.path / f"batch-{first:06d}.safetensors") as temporary:
            save_tensors({"packed": packed.contiguous()}, temporary, {"sha256": json.dumps(sums)})

    def read(self, first: int, count: int) -> Tensor | None:
        """Tokens of a batch, (count, P) uint8; None if it is not complete, or was changed."""
        name = f"batch-{first:06d}.safetensors"
        try:
            tensors, about = load_tensors(self.path / name, error=ValueError, digest=True)
            packed = tensors["packed"]
            expected = parse_json(about.get("sha256", "null"), name=name)
            found = [sha256_file(self.path / file_of(i)) for i in range(first, first + count)]
        except (OSError, KeyError, ValueError):
            return None
        good = expected == found and packed.ndim == 2 and len(packed) == count
        return packed if good and packed.dtype == torch.uint8 else None

    def pictures(self) -> list[Path]:
        """Pictures of the finished batches."""
        found: list[Path] = []
        for name in sorted(os.listdir(self.path)):
            if batch := _BATCH.fullmatch(name):
                with contextlib.suppress(OSError, SafetensorError, KeyError):
                    with safe_open(self.path / name, "pt") as file:
                        count = file.get_slice("packed").get_shape()[0]
                    found += [self.path / file_of(int(batch[1]) + i) for i in range(count)]
        return found

    def give_to(self, folder: Path, count: int) -> None:
        """Put all pictures into another folder of the same disk; they stay in this one, too."""
        for number in range(count):
            source, target = self.path / file_of(number), folder / file_of(number)
            try:
                os.link(source, target)
            except OSError:  # no links on this file system
                target.write_bytes(source.read_bytes())

    def _take_lock(self) -> None:
        try:
            owner = self._folder.take()
        except FileExistsError:
            raise
        except OSError as error:
            raise SaveError(f"cannot write {self.path}: {error.strerror}") from None
        if owner is not None:
            raise FileExistsError(
                f"{self.path}: another process is drawing these samples ({owner})"
            )

    def _compare(self, settings: Mapping[str, Any]) -> None:
        now = parse_json(json.dumps(dict(settings)), name=SETTINGS)
        try:
            before = read_json(self.path / SETTINGS, dict[str, Any])
        except (OSError, ValueError) as error:
            raise ValueError(f"{error}; delete {self.path} to begin anew") from None
        if found := describe_differences(before, now, "begun with", "now"):
            raise ValueError(
                f"{self.path}: cannot be continued, since these are not the samples that were "
                f"begun: {'; '.join(found)}"
            )

    def _remove_published(self) -> None:
        """Remove batches that are in the finished folder: their writer was killed at its end."""
        pictures = self.pictures()
        if pictures and all(_equal(p, self.out / p.name) for p in pictures):
            self._clear()

    def _clear(self) -> None:
        """Remove our files: batches before the pictures that they list, and the settings last."""
        sweep(self.path)
        names = sorted(os.listdir(self.path))
        batches = [name for name in names if _BATCH.fullmatch(name)]
        pictures = {file_of(number) for number in range(self._num_images())}
        for name in [*batches, *filter(pictures.__contains__, names), SETTINGS]:
            (self.path / name).unlink(missing_ok=True)

    def _num_images(self) -> int:
        """Number of pictures of the command that wrote the settings; 0 if that is unknown."""
        try:
            return int(read_json(self.path / SETTINGS, dict[str, Any]).get(IMAGES, 0))
        except (OSError, ValueError, TypeError):
            return 0


def _equal(one: Path, two: Path) -> bool:
    """Whether two files have the same content."""
    try:
        return os.path.samefile(one, two) or sha256_file(one) == sha256_file(two)
    except OSError:
        return False
