"""Tokens for training: the same samples from a store, from memory or disk, and from images."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tessella.checkpoints import load_tokenizer
from tessella.codec.encode import encode_source
from tessella.data.image_source import DataError
from tessella.data.loader import eval_batches
from tessella.data.sources import open_source
from tessella.data.step_sampler import StepSampler
from tessella.data.transforms import AugmentConfig, augment
from tessella.tokens.store import StoreError, TokenStore
from tessella.tokens.tokens import Tokens
from tessella.train.generator import write_store
from tessella.train.token_batches import ImageReader, StoreReader, TokenBatch, encode_split

AUGMENT = AugmentConfig(random_crop=0.5, flip=True)


def _assert_same(ours: list[TokenBatch], theirs: list[TokenBatch]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.tokens.equal(b.tokens) and a.ids == b.ids
        assert torch.equal(a.labels, b.labels) and torch.equal(a.numbers, b.numbers)


def test_images_equal_the_store_without_augmentation(
    small_tokenizer: Path, classes: Path, tmp_path: Path
) -> None:
    """Three epochs: the same picture in the same place, as the same tokens."""
    tokenizer, source = load_tokenizer(small_tokenizer), open_source(classes, "train")
    encode_source(tokenizer, source, tmp_path / "store", batch_size=4, progress=False)
    stored = StoreReader(TokenStore(tmp_path / "store"), 3, seed=5)
    images = ImageReader(source, tokenizer, AugmentConfig(), 3, seed=5)
    assert len(stored) == len(images) == 30
    _assert_same(*(list(r.batches(6, num_steps=15)) for r in (stored, images)))


def test_memory_makes_no_difference(store: Path) -> None:
    """Rows unpacked from memory, or read from the mapped files."""
    held = StoreReader(TokenStore(store), 3, seed=0)
    read = StoreReader(TokenStore(store), 3, seed=0, memory=0)
    for a, b in zip(held.batches(8, num_steps=12), read.batches(8, num_steps=12), strict=True):
        assert a.tokens.equal(b.tokens) and torch.equal(a.labels, b.labels)
        assert len(b.ids) == 8 and b.ids[0].startswith("row ")


@pytest.mark.parametrize("kind", ["store", "images"])
def test_steps_and_processes_share_one_order(
    kind: str, small_tokenizer: Path, classes: Path, store: Path
) -> None:
    """A start at step 2 delivers what the run would have seen; two ranks make one batch."""
    if kind == "store":
        reader = StoreReader(TokenStore(store), 3, seed=1)
    else:
        source = open_source(classes, "train")
        reader = ImageReader(source, load_tokenizer(small_tokenizer), AUGMENT, 3, seed=1)
    whole = list(reader.batches(8, num_steps=5))
    _assert_same(list(reader.batches(8, num_steps=5, start_step=2)), whole[2:])
    ranks = [
        list(reader.batches(4, num_steps=5, process_index=rank, num_processes=2)) for rank in (0, 1)
    ]
    joined = [
        TokenBatch(
            Tokens.cat([a.tokens, b.tokens]),
            torch.cat([a.labels, b.labels]),
            a.captions + b.captions,
            a.ids + b.ids,
            torch.cat([a.numbers, b.numbers]),
        )
        for a, b in zip(*ranks, strict=True)
    ]
    _assert_same(joined, whole)


def test_an_epoch_sees_every_row_once(store: Path) -> None:
    opened = TokenStore(store)
    batches = list(StoreReader(opened, 3, seed=0).batches(9, num_steps=10))
    rows = [key[0] for keys in StepSampler(90, 9, num_steps=10) for key in keys]
    assert sorted(rows) == list(range(90))
    assert Tokens.cat([batch.tokens for batch in batches]).equal(opened.rows(rows))
    assert [name for b in batches for name in b.ids] == [opened.ids[row] for row in rows]


def test_views_are_a_function_of_seed_view_and_image(
    small_tokenizer: Path, classes: Path, tmp_path: Path
) -> None:
    """View k of image i is `augment` with rng (seed, k * 30 + i), whatever the batch size."""
    tokenizer, source = load_tokenizer(small_tokenizer), open_source(classes, "train")
    stores = []
    for size in (4, 30):
        path = tmp_path / f"{size}"
        encode_source(
            tokenizer, source, path, batch_size=size, augment=AUGMENT, views=3, seed=7,
            progress=False,
        )  # fmt: skip
        stores.append(TokenStore(path))
    for store in stores:
        assert len(store) == 90 and store.augmentation.bincount().tolist() == [30, 30, 30]
    plain = torch.cat([b["images"] for b in eval_batches(source, 16, 30)])
    for number, view in ((0, 1), (17, 2)):
        pixels = np.asarray(source.read(number).image)
        rng = np.random.default_rng((7, view * 30 + number))
        expected = torch.from_numpy(augment(pixels, 16, AUGMENT, rng).copy())
        image = expected.permute(2, 0, 1)[None].float() / 127.5 - 1
        assert not torch.equal(image[0], plain[number])
        for store in stores:
            here = (store.augmentation == view).nonzero()[:, 0].tolist()
            row = next(r for r in here if store.ids[r] == source.id_of(number))
            assert store[[row]].equal(tokenizer.encode(image))
            assert store.labels[row] == source.read(number).label


def test_the_store_of_an_interrupted_run_is_continued(
    small_tokenizer: Path, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second start of the training encodes what is missing."""
    tokenizer, source = load_tokenizer(small_tokenizer), open_source(classes, "train")
    data = SimpleNamespace(augment=AUGMENT, views=3)
    config = SimpleNamespace(data=data, run=SimpleNamespace(seed=0), tokenizer="t")
    encode, calls = tokenizer.encode, iter([None] * 4)
    monkeypatch.setattr(tokenizer, "encode", lambda images: (next(calls), encode(images))[1])
    monkeypatch.setitem(encode_source.__wrapped__.__kwdefaults__, "batch_size", 8)
    with pytest.raises(StopIteration):
        write_store(config, source, tokenizer, tmp_path / "store")
    monkeypatch.undo()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["store.unfinished"]
    with pytest.raises(StoreError, match="batch size"):
        write_store(config, source, tokenizer, tmp_path / "store")
    monkeypatch.setitem(encode_source.__wrapped__.__kwdefaults__, "batch_size", 8)
    write_store(config, source, tokenizer, tmp_path / "store")
    store = TokenStore(tmp_path / "store")
    assert len(store) == 90 and store.augmentation.bincount().tolist() == [30, 30, 30]


def test_views_need_an_augmentation(small_tokenizer: Path, classes: Path, tmp_path: Path) -> None:
    tokenizer, source = load_tokenizer(small_tokenizer), open_source(classes, "train")
    for options in ({"views": 2}, {"views": 1, "augment": AUGMENT}, {"views": 0}):
        with pytest.raises(ValueError, match="several views need an augmentation"):
            encode_source(tokenizer, source, tmp_path / "store", progress=False, **options)
    with pytest.raises(ValueError, match="flip: with several views"):
        encode_source(tokenizer, source, tmp_path / "s", views=2, augment=AUGMENT, flip=True)
    assert not list(tmp_path.iterdir())


def test_labels_without_a_class_are_refused(
    small_tokenizer: Path, classes: Path, store: Path
) -> None:
    """In a store at once, in images with their batch; with no classes at all they do not matter."""
    tokenizer, source = load_tokenizer(small_tokenizer), open_source(classes, "train")
    with pytest.raises(DataError, match="label 2 of 2 classes"):
        StoreReader(TokenStore(store), 2, seed=0)
    with pytest.raises(DataError, match="label 2 of 2 classes"):
        list(ImageReader(source, tokenizer, AugmentConfig(), 2, seed=0).batches(30, num_steps=1))
    with pytest.raises(DataError, match="label 2 of 2 classes"):
        encode_split(tokenizer, source, 2, batch_size=8, limit=30)
    assert len(StoreReader(TokenStore(store), 0, seed=0)) == 90


def test_a_split_is_encoded_in_order(small_tokenizer: Path, classes: Path) -> None:
    tokenizer, source = load_tokenizer(small_tokenizer), open_source(classes, "val")
    batch = encode_split(tokenizer, source, 3, batch_size=4, limit=5)
    images = torch.cat([b["images"] for b in eval_batches(source, 16, 6)])[:5]
    assert batch.tokens.equal(tokenizer.encode(images)) and batch.numbers.tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert batch.labels.tolist() == [0, 0, 1, 1, 2]
