"""Images to train on and others to validate on."""

from dataclasses import replace
from pathlib import Path

from .image_source import DataError, ImageSource, NoSplit, SourceSettings, Undivided
from .npz_source import NpzSource
from .sources import open_divided, open_source
from .splits import VAL_SHARE, PartSource


def open_train_and_val(
    source: str,
    val_source: str | None,
    settings: SourceSettings,
    *,
    same_classes: bool,
) -> tuple[ImageSource, ImageSource]:
    """Open the images of a training and those of its validation, which have none in common.

    Args:
        source: Training images. Without `val_source`, a source that has no split `val` is divided
            by `splits.hold_out`; with one, nothing is held out of it.
        val_source: Validation images: the split `val` of another source, or all images of one that
            has no splits, such as a plain folder. None: those of `source`.
        settings: Settings of reading.
        same_classes: Whether the labels of both are to mean the same.

    Raises:
        DataError: If one cannot be opened, both read the same images, or their classes differ.
    """
    if val_source is None:
        train, val = (open_source(source, split, settings) for split in ("train", "val"))
        return train, val
    settings = replace(settings, val_share=0.0)
    train = open_source(source, "train", settings)
    classes = train.classes if same_classes else ()
    val, undivided = _open_val(val_source, settings, classes)
    if (place := _shared(train, val, undivided)) is not None:
        raise DataError(
            f"data.val_source={val_source}: {place} is read for the training as well; expected "
            "other images, or no val_source, which holds some out (data.val_share)"
        )
    return train, val


def open_val(
    source: str,
    val_source: str | None,
    settings: SourceSettings,
    *,
    classes: tuple[str, ...],
) -> ImageSource:
    """Open the images of a validation alone, as `open_train_and_val`.

    Args:
        source: Source whose split `val`, or held out images, are taken without `val_source`.
        val_source: Validation images; None: those of `source`.
        settings: Settings of reading.
        classes: Class names with which the labels have to agree; empty: any.

    Raises:
        DataError: If it cannot be opened, or classes differ.
    """
    if val_source is None:
        val = open_source(source, "val", settings)
        _check_classes(source, val, classes)
        return val
    return _open_val(val_source, replace(settings, val_share=0.0), classes)[0]


def open_to_measure(source: str, split: str) -> ImageSource:
    """Open a split to measure on; `val` of a source without it: what a training holds out of it.

    Args:
        source: Name of the source.
        split: `train`, `val` or `test`.

    Raises:
        DataError: As of `open_source`.
    """
    try:
        return open_source(source, split)
    except NoSplit:
        if split != "val":
            raise
        return open_source(source, split, SourceSettings(val_share=VAL_SHARE))


def held_out(val: ImageSource) -> str:
    """One line about images that were held out for a validation; "" if the split existed."""
    if not isinstance(val, PartSource):
        return ""
    return (
        f"{val.name} has no split val: {len(val)} of its {len(val.whole)} images are held out by a "
        "hash of their names (data.val_share); a split of your own: data.val_source"
    )


def _open_val(
    name: str, settings: SourceSettings, classes: tuple[str, ...]
) -> tuple[ImageSource, bool]:
    """Open a source of validation images, and whether it has no splits."""
    try:
        val = open_divided(name, "val", settings, classes)
        undivided = isinstance(val, NpzSource)
    except Undivided:
        val, undivided = open_divided(name, "train", settings, classes), True
        val.split = "val"
    _check_classes(name, val, classes)
    return val, undivided


def _check_classes(name: str, val: ImageSource, classes: tuple[str, ...]) -> None:
    """Refuse classes whose numbers mean something else; classes named by their number are unnamed.

    Raises:
        DataError: If there is one.
    """
    for label, (ours, theirs) in enumerate(zip(classes, val.classes, strict=False)):
        if ours != theirs and str(label) not in (ours, theirs):
            raise DataError(
                f"{name}: class {label} is {theirs!r}, in the training data {ours!r}; class "
                "numbers would not agree"
            )


def _shared(train: ImageSource, val: ImageSource, undivided: bool) -> Path | None:
    """A place that both sources read; an archive may hold the splits of both."""
    ours, theirs = ({place.resolve() for place in of.places()} for of in (train, val))
    for places, others in ((ours, theirs), (theirs, ours)):
        for place in sorted(places):
            if place in others and (undivided or place.is_dir()):
                return place
            if not others.isdisjoint(place.parents):
                return place
    return None
