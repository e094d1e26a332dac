"""All feature vectors of a set of images, with their numbers and labels.

Kernel distances and nearest neighbours need the vectors themselves, not their moments. The vectors
are returned sorted by image number, so they depend neither on the order of batches nor on the
number of processes.
"""

import torch
from torch import Tensor

from .checks import check_vectors


class FeatureBank:
    """Feature vectors in float32, kept in memory: 4 n D bytes, 410 MB for 50,000 of D = 2048.

    Reading `features` after an update sorts them, which temporarily needs the same amount again.
    Banks can be pickled, so processes can send them to one another.

    Args:
        num_features: Length D of the vectors.
        extractor_id: Network and weights that the features come from, e.g. `efflite0#57934424`.
            Banks of different ids cannot be merged; "" matches only "".

    Raises:
        ValueError: If `num_features` is below 1.
    """

    def __init__(self, num_features: int, *, extractor_id: str = "") -> None:
        if num_features < 1:
            raise ValueError(f"num_features: expected >= 1, found {num_features}")
        self.num_features = num_features
        self.extractor_id = extractor_id
        self._seen: set[int] = set()
        self._has_labels: bool | None = None
        self._sorted = True
        self._features = [torch.zeros(0, num_features)]
        self._numbers = [torch.zeros(0, dtype=torch.int64)]
        self._labels = [torch.zeros(0, dtype=torch.int64)]

    def __len__(self) -> int:
        return len(self._seen)

    @torch.no_grad()
    def update(self, features: Tensor, numbers: Tensor, labels: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            features: Shape (B, D), any float dtype, any device.
            numbers: Number of the image of each vector, int64, shape (B,); each only once.
            labels: Classes, int64, shape (B,), or None; given in all calls or in none.

        Raises:
            ValueError: If shapes or dtypes are wrong, a value is not finite in float32, a number
                was seen before, or only some batches have labels.
        """
        check_vectors(features, "features", self.num_features)
        for name, values in (("numbers", numbers), ("labels", labels)):
            if values is None:
                continue
            if values.dtype != torch.int64 or values.shape != features.shape[:1]:
                found = f"{values.dtype} {tuple(values.shape)}"
                raise ValueError(f"{name}: expected int64 ({len(features)},), found {found}")
        features = features.detach().to("cpu", torch.float32)
        check_vectors(features, "features in float32")
        if len(features):
            self._add(features, numbers.cpu(), None if labels is None else labels.cpu())

    def merge(self, other: "FeatureBank") -> None:
        """Add the vectors of another bank.

        Raises:
            ValueError: If the other bank has another vector size or network, holds an image number
                that this one has, or only one of the two has labels.
        """
        if other.num_features != self.num_features:
            raise ValueError(f"feature sizes differ: {self.num_features} and {other.num_features}")
        if other.extractor_id != self.extractor_id:
            raise ValueError(
                f"banks of different networks: {self.extractor_id!r} and {other.extractor_id!r}"
            )
        if len(other):
            self._add(other.features, other.numbers, other.labels)

    @property
    def features(self) -> Tensor:
        """Vectors by rising image number, float32, shape (n, D); must not be modified."""
        self._sort()
        return self._features[0]

    @property
    def numbers(self) -> Tensor:
        """Image numbers, rising, int64, shape (n,)."""
        self._sort()
        return self._numbers[0]

    @property
    def labels(self) -> Tensor | None:
        """Classes in the order of `numbers`, int64, shape (n,); None if none were given."""
        self._sort()
        return self._labels[0] if self._has_labels else None

    def trim(self, most: int) -> None:
        """Keep only the vectors with the `most` smallest image numbers."""
        if len(self) <= most:
            return
        self._sort()
        kept = slice(most)
        self._seen = set(self._numbers[0][kept].tolist())
        self._features = [self._features[0][kept].clone()]
        self._numbers = [self._numbers[0][kept].clone()]
        self._labels = [part[kept].clone() for part in self._labels]

    def _add(self, features: Tensor, numbers: Tensor, labels: Tensor | None) -> None:
        """Add tensors whose shapes and types were checked."""
        has_labels = labels is not None
        if self._has_labels not in (None, has_labels):
            raise ValueError("labels: some vectors have one and others have not")
        new = set(numbers.tolist())
        repeated = sorted(new & self._seen)
        if repeated or len(new) < len(numbers):
            which = f", e.g. {repeated[0]}" if repeated else ""
            raise ValueError(f"numbers: an image is here more than once{which}")
        self._seen |= new
        self._has_labels = has_labels
        self._features.append(features.clone())
        self._numbers.append(numbers.clone())
        if labels is not None:
            self._labels.append(labels.clone())
        self._sorted = False

    def _sort(self) -> None:
        """Join each list to one tensor sorted by image number."""
        if self._sorted:
            return
        order = torch.cat(self._numbers).argsort()
        for parts in (self._features, self._numbers, self._labels):
            whole = torch.cat(parts)
            parts[:] = [whole[order] if len(whole) else whole]
        self._sorted = True
