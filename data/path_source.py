"""Image sources of files given by path, and of several sources in sequence."""

import bisect
import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from .image_source import WHOLE, DataError, ImageSource, Sample, SourceSettings
from .images import IMAGE_SUFFIXES, read_image
from .patterns import expand_pattern, given_path, is_reserved
from .sources import open_source


class FileSource(ImageSource):
    """Source of image files given by path, in the given order, without labels and captions.

    Args:
        files: Paths of the image files.
        settings: Settings of reading.

    Raises:
        DataError: If a file does not exist, or two files have the same name.
    """

    def __init__(self, files: Sequence[Path], settings: SourceSettings = WHOLE) -> None:
        self.name, self.split, self.licence = "files", "train", None
        self._max_pixels = settings.max_pixels
        self._files = [Path(file).absolute() for file in files]
        missing = [str(file) for file in files if not os.path.isfile(file)]
        if missing:
            raise DataError(
                f"{missing[0]}: no such file ({len(missing)} of {len(files)} files are missing)"
            )
        seen: dict[str, Path] = {}
        for file in self._files:
            if file.name in seen:
                raise DataError(f"{seen[file.name]} and {file} have the same name; rename one")
            seen[file.name] = file

    def __len__(self) -> int:
        return len(self._files)

    def id_of(self, index: int) -> str:
        """Stable name of one image, without reading it."""
        return self._files[index].name

    def places(self) -> list[Path]:
        """Files and folders that the images are read from."""
        return self._files

    def _sizes(self) -> Iterable[int]:
        return (file.stat().st_size for file in self._files)

    def read(self, index: int) -> Sample:
        """Decode one image; see `ImageSource.read`."""
        return self._decode(index, None)

    def read_near(self, index: int, side: int) -> Sample:
        """Decode one image, perhaps reduced; see `ImageSource.read_near`."""
        return self._decode(index, side)

    def _decode(self, index: int, side: int | None) -> Sample:
        self._check(index)
        file = self._files[index]
        image = read_image(file, name=file.name, max_pixels=self._max_pixels, side=side)
        return Sample(image=image, id=file.name, label=None, caption=None)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order; empty when the images carry no labels."""
        return ()


class ChainSource(ImageSource):
    """Source of several sources in sequence; ids start with the source's name; without labels.

    Args:
        sources: Sources to combine, at least one; their names must differ.

    Raises:
        DataError: If two sources have the same name.
    """

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        names = [source.name for source in sources]
        if len(set(names)) < len(names):
            raise DataError(f"sources of the same name: {', '.join(names)}; rename one")
        self.name, self.split, self.licence = "+".join(names), sources[0].split, None
        self._sources = list(sources)
        self._ends = list(itertools.accumulate(len(source) for source in sources))

    def __len__(self) -> int:
        return self._ends[-1]

    def id_of(self, index: int) -> str:
        """Stable name of one image, without reading it."""
        source, position = self._locate(index)
        return f"{source.name}/{source.id_of(position)}"

    def _sizes(self) -> Iterable[int]:
        return itertools.chain.from_iterable(source._sizes() for source in self._sources)

    def places(self) -> list[Path]:
        """Files and folders that the images are read from."""
        return [place for source in self._sources for place in source.places()]

    def read(self, index: int) -> Sample:
        """Decode one image; see `ImageSource.read`."""
        self._check(index)
        source, position = self._locate(index)
        return self._named(index, source.read(position))

    def read_near(self, index: int, side: int) -> Sample:
        """Decode one image, perhaps reduced; see `ImageSource.read_near`."""
        self._check(index)
        source, position = self._locate(index)
        return self._named(index, source.read_near(position, side))

    def _named(self, index: int, sample: Sample) -> Sample:
        """A sample of one of the sources as one of this source."""
        return Sample(image=sample.image, id=self.id_of(index), label=None, caption=sample.caption)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order; empty when the images carry no labels."""
        return ()

    def _locate(self, index: int) -> tuple[ImageSource, int]:
        """Source that holds an image, and the index of the image in it."""
        number = bisect.bisect_right(self._ends, index)
        start = self._ends[number - 1] if number else 0
        return self._sources[number], index - start


def local_places(*names: str | os.PathLike[str] | None) -> list[Path]:
    """Files and folders on this machine that names of images, data sources and models refer to.

    Args:
        names: Names as given by a user; None, `bundled:NAME`, `hub:...` and `hf:...` refer to no
            file here.
    """
    places: list[Path] = []
    for name in names:
        text = "" if name is None else os.fspath(name)
        if not text.strip() or is_reserved(text):
            continue
        path = given_path(text)
        places.append(path)
        if re.search(r"[{*?\[]", text) and not os.path.exists(path):
            with contextlib.suppress(DataError):  # opening the source will report the error
                places += expand_pattern(str(path))
    return places


def open_paths(
    paths: Sequence[str], split: str = "train", settings: SourceSettings = WHOLE
) -> ImageSource:
    """Open image files, folders, tars and other sources, alone or combined.

    Args:
        paths: Paths of image files, and names of sources as for `open_source`.
        split: Split of the sources.
        settings: Settings of reading.

    Raises:
        DataError: If a file or source cannot be opened.
    """
    files: list[Path] = []
    others: list[str] = []
    for name in paths:
        path = given_path(name)
        if (
            path.suffix.lower() in IMAGE_SUFFIXES
            and not os.path.isdir(path)
            and not is_reserved(name)
        ):
            files.append(path)
        else:
            others.append(name)
    sources: list[ImageSource] = [FileSource(files, settings)] if files else []
    sources += [open_source(name, split, settings) for name in others]
    if not sources:
        raise DataError("no images named; expected image files, a folder or a data source")
    return sources[0] if len(sources) == 1 else ChainSource(sources)
