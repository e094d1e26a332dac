import multiprocessing
import time

import numpy as np
import pytest
import torch
from PIL import Image

from tessella.data.images import read_image, to_float
from tessella.data.loader import ImageDataset, StepSampler, eval_batches, make_loader
from tessella.data.sources import DataError, open_source
from tessella.data.transforms import AugmentConfig, fit
from tessella.tests.cases import over

AUGMENT = AugmentConfig(random_crop=0.5, flip=True, shift=1)


@pytest.fixture
def source(make_tar, make_members):
    return open_source(make_tar("set.tar", make_members(11)))


def batches(source, batch=4, **options):
    dataset = ImageDataset(source, 16, AUGMENT, seed=3)
    return list(make_loader(dataset, batch, **({"num_steps": 6} | options)))


def assert_equal(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a["ids"] == b["ids"] and a["captions"] == b["captions"]
        assert all(torch.equal(a[key], b[key]) for key in ("images", "labels", "numbers"))


def test_batch_content(source):
    batch = batches(source)[1]
    assert set(batch) == {"images", "labels", "captions", "ids", "numbers"}
    assert batch["images"].shape == (4, 3, 16, 16) and batch["images"].dtype == torch.float32
    assert batch["images"].is_contiguous() and batch["images"].abs().max() <= 1
    assert batch["numbers"].tolist() == [4, 5, 6, 7]
    assert batch["labels"].dtype == torch.int64
    assert [f"n{int(name)}" for name in batch["ids"]] == batch["captions"]
    assert [int(name) % 3 for name in batch["ids"]] == batch["labels"].tolist()


def test_epochs_are_permutations_across_batches(source):
    ids = [name for batch in batches(source, num_steps=11) for name in batch["ids"]]
    epochs = [ids[start : start + 11] for start in range(0, 44, 11)]
    assert all(len(set(epoch)) == 11 for epoch in epochs)
    assert epochs[0] != epochs[1] and sorted(epochs[0]) != epochs[0]


def test_batch_larger_than_the_set(source):
    (batch,) = batches(source, batch=30, num_steps=1)
    assert len(set(batch["ids"][:11])) == 11 and len(set(batch["ids"][11:22])) == 11


def test_restart_continues_exactly(source):
    assert_equal(batches(source)[4:], batches(source, start_step=4))
    assert batches(source, start_step=6) == []


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_count_does_not_matter(source, method):
    dataset = ImageDataset(source, 16, AUGMENT, seed=3, cache="never")
    loader = make_loader(dataset, 4, num_steps=3, num_workers=1 if method == "spawn" else 2)
    loader.multiprocessing_context = multiprocessing.get_context(method)
    assert_equal(batches(source)[:3], list(loader))


def test_two_processes_together_equal_one(source):
    whole = batches(source)
    halves = [batches(source, batch=2, process_index=rank, num_processes=2) for rank in (0, 1)]
    for both, left, right in zip(whole, *halves, strict=True):
        assert both["ids"] == left["ids"] + right["ids"]
        assert torch.equal(both["images"], torch.cat([left["images"], right["images"]]))


def test_sample_by_number_equals_the_batch(source):
    dataset = ImageDataset(source, 16, AUGMENT, seed=3)
    batch = batches(source)[3]  # samples 12..15, second epoch
    alone = dataset.sample(13)
    assert alone["ids"] == batch["ids"][1:2]
    assert torch.equal(alone["images"], batch["images"][1:2])


def test_cache_changes_nothing_and_seed_does(source):
    for cache in ("auto", "never", "always"):
        dataset = ImageDataset(source, 16, AUGMENT, seed=3, cache=cache)
        assert_equal(batches(source), list(make_loader(dataset, 4, num_steps=6)))
    other = list(make_loader(ImageDataset(source, 16, AUGMENT, seed=4), 4, num_steps=6))
    assert other[0]["ids"] != batches(source)[0]["ids"]


def test_other_sizes_are_resized_and_cropped(make_folder, make_png):
    root = make_folder("1.png", "2.png", "3.png")
    for name, size in (("1", (40, 20)), ("2", (5, 9)), ("3", (1, 30))):
        (root / f"{name}.png").write_bytes(make_png(0, size))
    for augment in (None, AUGMENT):
        dataset = ImageDataset(open_source(root), 16, augment)
        (batch,) = make_loader(dataset, 3, num_steps=1)
        assert batch["images"].shape == (3, 3, 16, 16) and batch["labels"].tolist() == [-1] * 3
        assert batch["captions"] == [""] * 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_images_are_replaced_and_listed(make_folder, num_workers):
    root = make_folder(*(f"{number}.png" for number in range(5)))
    for number in (1, 2, 4):
        (root / f"{number}.png").write_bytes(b"broken")
    dataset = ImageDataset(open_source(root), 16, cache="never")
    loader = make_loader(dataset, 5, num_steps=2, num_workers=num_workers)
    for batch in loader:
        assert sorted(batch["ids"]) == ["0.png", "0.png", "3.png", "3.png", "3.png"]
    assert sorted(dataset.broken) == ["1.png", "2.png", "4.png"]
    assert all("not an image" in reason for reason in dataset.broken.values())


def test_all_broken_is_an_error(make_folder):
    root = make_folder("1.png", "2.png")
    for name in ("1.png", "2.png"):
        (root / name).write_bytes(b"broken")
    source = open_source(root)
    with pytest.raises(DataError, match=r"none of 2 images can be read; .*\.png: not an image"):
        next(iter(make_loader(ImageDataset(source, 16), 2, num_steps=1)))
    with pytest.raises(DataError, match="no image can be read"):
        list(eval_batches(source, 16, 2))


def test_eval_batches_order_and_limit(source):
    found = list(eval_batches(source, 16, 4))
    assert [len(batch["ids"]) for batch in found] == [4, 4, 3]
    assert torch.cat([batch["numbers"] for batch in found]).tolist() == list(range(11))
    limited = list(eval_batches(source, 16, 4, limit=6))
    assert [len(batch["ids"]) for batch in limited] == [4, 2]
    pixels = torch.from_numpy(np.array(source.read(0).image))
    assert torch.equal(found[0]["images"][0], pixels.permute(2, 0, 1) / 127.5 - 1)


def test_large_jpegs_are_reduced_in_training_and_whole_in_measurements(make_folder):
    root = make_folder("b.png")
    y, x = np.mgrid[:160, :240]
    pixels = np.stack([x, y, x ^ y], -1).astype(np.uint8)
    for name, size in (("a.jpg", (240, 160)), ("c.jpg", (120, 63))):
        Image.fromarray(pixels).resize(size).save(root / name, quality=95)
    source = open_source(root)
    whole = [to_float(np.asarray(fit(source.read(i).image, 16))[None])[0] for i in range(3)]
    near = [
        to_float(np.asarray(fit(read_image(root / "a.jpg", side=32), 16))[None])[0],
        *whole[1:],  # a PNG, and a JPEG of which half is below twice 16
    ]
    assert not torch.equal(near[0], whole[0]) and (near[0] - whole[0]).abs().mean() < 0.05
    for expected, options in ((whole, {}), (near, {"reduced": True})):
        (batch,) = eval_batches(source, 16, 3, **options)
        assert torch.equal(batch["images"], torch.stack(expected))
    trained = ImageDataset(source, 16).__getitems__([(i, i) for i in range(3)])
    assert torch.equal(trained["images"], torch.stack(near))


@over(
    ("config", "side"),
    [({}, 32), ({"flip": True}, 32), ({"random_crop": 0.25}, 64), ({"random_crop": 0.5}, 46)],
)
def test_random_crops_have_the_pixels_that_they_need(config, side, source, monkeypatch):
    asked = []
    monkeypatch.setattr(
        source, "read_near", lambda index, side: (asked.append(side), source.read(index))[1]
    )
    ImageDataset(source, 16, AugmentConfig(**config)).sample(0)
    assert asked == [side]


def test_wrong_numbers(source):
    with pytest.raises(ValueError, match="at least 1"):
        StepSampler(0, 4)
    with pytest.raises(ValueError, match="process 2 of 2"):
        StepSampler(5, 4, process_index=2, num_processes=2)
    with pytest.raises(ValueError, match="start_step=3"):
        StepSampler(5, 4, start_step=3, num_steps=2)
    with pytest.raises(ValueError, match="seed=-1"):
        ImageDataset(source, 16, seed=-1)
    with pytest.raises(ValueError, match="cache"):
        ImageDataset(source, 16, cache="yes")
    with pytest.raises(ValueError, match="batch_size=0"):
        list(eval_batches(source, 16, 0))


def test_sample_rate_of_the_bundled_set():
    """At least 5000 images per second of processor time, from memory; other load does not count."""
    dataset = ImageDataset(open_source("bundled:emoji", "val"), 64, AugmentConfig(flip=True))
    dataset.preload()
    start = time.process_time()
    count = sum(len(batch["ids"]) for batch in make_loader(dataset, 64, num_steps=30))
    assert count / (time.process_time() - start) > 5000
