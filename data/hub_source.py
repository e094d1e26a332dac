"""Images of a dataset of the `datasets` library, on the Hub or built in memory.

The first Image column is the image, the first ClassLabel column the label, and a string column
named `caption` or `text` the caption. Images stay encoded until they are read, so that a broken
image is skipped as in all other sources.
"""

from collections.abc import Iterable
from typing import Any

from .image_source import WHOLE, DataError, ImageSource, NoSplit, Sample, SourceSettings, Undivided
from .images import BrokenImage, read_image
from .splits import split_names

_CAPTION_COLUMNS = ("caption", "text")


class HubSource(ImageSource):
    """A `datasets.Dataset` with an Image column.

    Args:
        dataset: Loaded split.
        name: Short name for logs.
        split: Name of the split.
        settings: Settings of reading.

    Raises:
        DataError: If there is no Image column or no row.
        ImportError: If `datasets` is not installed.
    """

    def __init__(
        self, dataset: Any, *, name: str, split: str, settings: SourceSettings = WHOLE
    ) -> None:
        datasets = _import_datasets()
        self._max_pixels = settings.max_pixels
        self.name, self.split = name, split
        self.licence = dataset.info.license or None
        features = dataset.features
        images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
        if not images or not len(dataset):
            raise DataError(
                f"{name}: {len(dataset)} rows with the columns {sorted(features)}; expected rows "
                "and one column of type Image"
            )
        labels = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
        captions = [
            key for key in _CAPTION_COLUMNS if getattr(features.get(key), "dtype", "") == "string"
        ]
        self._image = images[0]
        self._label = labels[0] if labels else None
        self._caption = captions[0] if captions else None
        self._classes = tuple(features[self._label].names) if self._label else ()
        columns = [key for key in (self._image, self._label, self._caption) if key]
        dataset = dataset.select_columns(columns)
        self._rows = dataset.cast_column(self._image, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self._rows)

    def id_of(self, index: int) -> str:
        """Stable name of one image, without reading it."""
        return f"{self.split}/{index:06d}"

    def _sizes(self) -> Iterable[int]:
        for start in range(0, len(self), 1000):
            for cell in self._rows[start : start + 1000][self._image]:
                yield len(cell["bytes"] or b"") if cell else 0

    def read(self, index: int) -> Sample:
        """Decode one image; see `ImageSource.read`."""
        return self._decode(index, None)

    def read_near(self, index: int, side: int) -> Sample:
        """Decode one image, perhaps reduced; see `ImageSource.read_near`."""
        return self._decode(index, side)

    def _decode(self, index: int, side: int | None) -> Sample:
        self._check(index)
        row, name = self._rows[index], self.id_of(index)
        cell = row[self._image]
        if not cell or not (cell.get("bytes") or cell.get("path")):
            raise BrokenImage(name, "empty cell")
        image = read_image(
            cell.get("bytes") or cell["path"], name=name, max_pixels=self._max_pixels, side=side
        )
        label = row[self._label] if self._label else None
        caption = row[self._caption] if self._caption else None
        known = label is not None and label >= 0  # -1 stands for a hidden label on the Hub
        return Sample(image=image, id=name, label=label if known else None, caption=caption)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order; empty when the images carry no labels."""
        return self._classes


def open_hub(path: str, split: str, settings: SourceSettings = WHOLE) -> HubSource:
    """Load one split of a dataset through the `datasets` library.

    Args:
        path: `owner/name`, `owner/name:config`, or either with a revision, which is a branch, tag
            or commit of the dataset: `owner/name@revision:config`.
        split: `train`, `val` or `test`; `val` also finds `validation`, `valid` and `dev`.
        settings: Settings of reading.

    Raises:
        NoSplit: If the dataset has no such split.
        DataError: If `datasets` is missing, or the dataset does not exist.
    """
    address, _, config = path.partition(":")
    name, at, revision = address.partition("@")
    if not name or (at and not revision):
        raise DataError(f"hf:{path}: expected hf:owner/name, hf:owner/name@revision or :config")
    options = {"revision": revision} if revision else {}
    try:
        datasets = _import_datasets()
        available = datasets.get_dataset_split_names(name, config or None, **options)
        found = split_names(available, f"hf:{path}")
        if split not in found:
            fault = Undivided if list(found) == ["train"] == list(available) else NoSplit
            raise fault(f"hf:{path}: no split {split!r}, found {sorted(available)}")
        rows = datasets.load_dataset(name, config or None, split=found[split], **options)
    except ImportError as error:
        raise DataError(
            f"hf:{path} needs the datasets library; install it with: pip install tessella[hub-data]"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"hf:{path}: cannot be loaded ({error})") from error
    return HubSource(rows, name=name, split=split, settings=settings)


def _import_datasets() -> Any:
    """Import the optional `datasets` library."""
    import datasets  # optional dependency: tessella[hub-data]

    return datasets
