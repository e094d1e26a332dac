"""Values of single images: their means, means per class, and the images with the largest."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class ImageTable:
    """One row of values per image, in the order of image numbers whatever the order of batches.

    Args:
        names: Names of the columns.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._numbers: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._rows: list[Tensor] = []

    def update(self, values: Mapping[str, Tensor], numbers: Tensor, labels: Tensor) -> None:
        """Add a batch: values (B,) of every column, image numbers and labels int64 (B,)."""
        rows = [values[name].detach().cpu().double() for name in self.names]
        self._rows.append(torch.stack(rows, 1))
        self._numbers.append(numbers.cpu())
        self._labels.append(labels.cpu())

    def merge(self, other: "ImageTable") -> None:
        """Add the rows of another table."""
        self._rows += other._rows
        self._numbers += other._numbers
        self._labels += other._labels

    @property
    def numbers(self) -> Tensor:
        """Image numbers, int64 (n,), sorted."""
        return torch.cat(self._numbers).sort().values

    def column(self, name: str) -> Tensor:
        """Values of a column, float64 (n,), sorted by image number."""
        order = torch.cat(self._numbers).argsort()
        return torch.cat(self._rows)[order, self.names.index(name)]

    def means(self) -> dict[str, float]:
        """Mean of every column."""
        return {name: float(self.column(name).mean()) for name in self.names}

    def largest(self, name: str, count: int) -> list[int]:
        """Numbers of the images with the largest values, largest first."""
        order = self.column(name).argsort(descending=True, stable=True)[:count]
        return self.numbers[order].tolist()

    def by_class(self, classes: Sequence[str]) -> list[list[Any]]:
        """Rows of class, number of images and means of all columns, one per class with images."""
        labels = torch.cat(self._labels)[torch.cat(self._numbers).argsort()]
        columns = {name: self.column(name) for name in self.names}
        rows: list[list[Any]] = []
        for label in torch.unique(labels).tolist():
            here = labels == label
            means = [float(values[here].mean()) for values in columns.values()]
            rows.append([class_title(classes, label), int(here.sum()), *means])
        return rows


def class_title(classes: Sequence[str], label: int) -> str:
    """Name of a class in a table; its number where it has no name."""
    if label < 0:
        return "no class"
    return classes[label] if label < len(classes) else str(label)
