"""Batches of tokens: from a token store, or from images through the frozen tokenizer.

Both readers give sample j of step s the same place in the data (`tessella.data.step_sampler`), so a
resumed run continues exactly, and N processes read what one with N times the batch would.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..data.image_source import DataError, ImageSource
from ..data.loader import ImageDataset, eval_batches, make_loader
from ..data.step_sampler import StepSampler
from ..data.transforms import AugmentConfig
from ..generators.noise import derive_seeds
from ..tokenizers.base import Tokenizer
from ..tokens.store import TokenStore
from ..tokens.tokens import Tokens
from .health import check_first_batch

MEMORY_BYTES = 1 << 30
"""Packed stores up to this size are held in memory, the others read row by row."""


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Batch of training samples.

    Args:
        tokens: Tokens of the tokenizer's spec.
        labels: Labels, (B,) int64; -1 = no label.
        captions: Captions, B of them; an empty one is none.
        ids: Names of the images, for messages.
        numbers: Sample numbers, (B,) int64.
    """

    tokens: Tokens
    labels: Tensor
    captions: list[str]
    ids: list[str]
    numbers: Tensor

    def first(self, count: int) -> "TokenBatch":
        """The first samples of this batch."""
        return self[slice(count)]

    def __getitem__(self, rows: slice) -> "TokenBatch":
        """Some of the samples."""
        return TokenBatch(
            self.tokens[rows],
            self.labels[rows],
            self.captions[rows],
            self.ids[rows],
            self.numbers[rows],
        )

    def to(self, device: torch.device) -> "TokenBatch":
        """The same samples on another device."""
        tokens = self.tokens.to(device, non_blocking=True)
        labels = self.labels.to(device, non_blocking=True)
        numbers = self.numbers.to(device, non_blocking=True)
        return TokenBatch(tokens, labels, self.captions, self.ids, numbers)


class TokenReader(Protocol):
    """Source of training tokens.

    Attributes:
        fingerprint: Hash of the data; a run is resumed only on the same data.
    """

    fingerprint: str

    @property
    def broken(self) -> dict[str, str]:
        """Reason by id of the images that could not be read."""
        ...

    def __len__(self) -> int: ...

    def batches(
        self,
        batch_size: int,
        *,
        num_steps: int,
        start_step: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> Iterator[TokenBatch]:
        """Batches of this process for the steps start_step .. num_steps - 1."""
        ...


class StoreReader:
    """Reader of a token store.

    Args:
        store: Token store, already checked against its tokenizer.
        num_classes: Number of classes; larger labels are refused. 0: labels are not checked.
        seed: Seed of the order.
        captions: Whether batches have captions; otherwise they are empty.
        memory: Largest packed size that is held in memory, in bytes.

    Raises:
        DataError: If a label is out of range.
    """

    def __init__(
        self,
        store: TokenStore,
        num_classes: int,
        seed: int,
        *,
        captions: bool = False,
        memory: int = MEMORY_BYTES,
    ) -> None:
        self._store, self._labels, self._seed = store, store.labels, seed
        shards = "".join(shard.sha256 for shard in store.header.shards)
        self.fingerprint = hashlib.sha256(shards.encode()).hexdigest()
        check_label_range(self._labels, num_classes, str(store.path))
        fits = len(store) * store.spec.packed_bytes <= memory
        self._packed = store.packed if fits else None
        self._lengths = store.lengths
        self._ids = store.ids if fits else None
        self._captions = [caption or "" for caption in store.captions] if captions else None

    def __len__(self) -> int:
        return len(self._store)

    @property
    def broken(self) -> dict[str, str]:
        """No images: the writer of the store has reported them."""
        return {}

    def batches(
        self,
        batch_size: int,
        *,
        num_steps: int,
        start_step: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> Iterator[TokenBatch]:
        """See `TokenReader`."""
        sampler = StepSampler(
            len(self), batch_size, process_index, num_processes, self._seed, start_step, num_steps
        )
        for keys in sampler:
            rows, numbers = torch.tensor(keys, dtype=torch.int64).T.contiguous()
            known = self._captions
            captions = [known[row] if known else "" for row in rows.tolist()]
            tokens, labels = self._tokens(rows), self._labels[rows]
            yield TokenBatch(tokens, labels, captions, self._names(rows), numbers)

    def _tokens(self, rows: Tensor) -> Tokens:
        if self._packed is None:
            return self._store.rows(rows)
        lengths = None if self._lengths is None else self._lengths[rows]
        return Tokens.unpack(self._packed[rows], self._store.spec, lengths)

    def _names(self, rows: Tensor) -> list[str]:
        if self._ids is None:
            return [f"row {row}" for row in rows.tolist()]
        return [self._ids[row] for row in rows.tolist()]


class ImageReader:
    """Reader of images, augmented anew and encoded in every step.

    Args:
        source: Training images.
        tokenizer: Frozen tokenizer, on the device where it is to run.
        augment: Random augmentation.
        num_classes: Number of classes; larger labels are refused. 0: labels are not checked.
        seed: Seed of order and augmentation.
        num_workers: Reader processes per training process.

    Raises:
        DataError: If no image can be read; while iterating, if a label is out of range.
        ValueError: If pixels are not in [-1, 1].
    """

    def __init__(
        self,
        source: ImageSource,
        tokenizer: Tokenizer,
        augment: AugmentConfig,
        num_classes: int,
        seed: int,
        num_workers: int = 0,
    ) -> None:
        self._dataset = ImageDataset(source, tokenizer.resolution, augment, seed)
        self._tokenizer, self._num_classes = tokenizer, num_classes
        self._seed, self._num_workers = seed, num_workers
        self.fingerprint = source.fingerprint()
        check_first_batch(self._dataset.sample(0)["images"])

    @property
    def broken(self) -> dict[str, str]:
        """Reason by id of the images that could not be read."""
        return self._dataset.broken

    def __len__(self) -> int:
        return len(self._dataset)

    def batches(
        self,
        batch_size: int,
        *,
        num_steps: int,
        start_step: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> Iterator[TokenBatch]:
        """See `TokenReader`."""
        tokenizer = self._tokenizer
        loader = make_loader(
            self._dataset,
            batch_size,
            num_steps=num_steps,
            start_step=start_step,
            process_index=process_index,
            num_processes=num_processes,
            num_workers=self._num_workers,
            pin_memory=tokenizer.device.type == "cuda",
        )
        for batch in loader:
            check_label_range(batch["labels"], self._num_classes, self._dataset.source.name)
            images = batch["images"].to(tokenizer.device, non_blocking=True)
            # The tokens of a sample depend on nothing before it, even of a stochastic quantizer.
            seed = int(derive_seeds(self._seed, batch["numbers"][:1]))
            rng = torch.Generator(tokenizer.device).manual_seed(seed)
            tokens = tokenizer.encode(images, rng=rng)
            yield TokenBatch(
                *(tokens, batch["labels"], batch["captions"], batch["ids"], batch["numbers"])
            )


def encode_split(
    tokenizer: Tokenizer,
    source: ImageSource,
    num_classes: int,
    batch_size: int,
    limit: int,
    broken: dict[str, str] | None = None,
) -> TokenBatch:
    """Tokens of the first `limit` images of a source, not augmented, on the CPU.

    The dict `broken` is filled with the reasons for skipped images, by name.

    Raises:
        DataError: If no image can be read or a label is out of range.
        ValueError: If pixels are not in [-1, 1].
    """
    tokens: list[Tokens] = []
    labels: list[Tensor] = []
    captions: list[str] = []
    ids: list[str] = []
    for batch in eval_batches(source, tokenizer.resolution, batch_size, limit, broken=broken):
        check_first_batch(batch["images"])
        tokens.append(tokenizer.encode(batch["images"].to(tokenizer.device)).to("cpu"))
        labels.append(batch["labels"])
        captions += batch["captions"]
        ids += batch["ids"]
    check_label_range(torch.cat(labels), num_classes, source.name)
    numbers = torch.arange(len(ids))
    return TokenBatch(Tokens.cat(tokens), torch.cat(labels), captions, ids, numbers)


def check_label_range(labels: Tensor, num_classes: int, name: str) -> None:
    """Refuse labels beyond the classes of a generator; -1 is no label.

    Raises:
        DataError: If the largest label is at or above `num_classes`.
    """
    highest = int(labels.max())
    if 0 < num_classes <= highest:
        raise DataError(
            f"{name}: label {highest} of {num_classes} classes (0 to {num_classes - 1}); "
            "see generator.num_classes"
        )
