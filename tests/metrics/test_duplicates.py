"""Duplicates against a comparison of every pair, one at a time."""

import json
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from tessella.metrics import duplicates
from tessella.metrics.duplicates import (
    DEFAULT_THRESHOLD,
    DuplicateFinder,
    DuplicatePair,
    Duplicates,
)


def find_duplicates(
    pixels: Tensor,
    numbers: Tensor | None = None,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    num_pairs: int = 8,
) -> Duplicates:
    """Copies among images held in memory; without `numbers` they are 0 to n - 1."""
    finder = DuplicateFinder(threshold=threshold)
    finder.update(pixels, torch.arange(len(pixels)) if numbers is None else numbers)
    return finder.result(num_pairs=num_pairs)


def images(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth images of a few kinds with noise, copies and mirrored copies among them."""
    rng = torch.Generator().manual_seed(seed)
    kinds = torch.rand(6, 3, 3, 3, generator=rng) * 255
    smooth = torch.nn.functional.interpolate(kinds, size=(height, width), mode="bilinear")
    chosen = smooth[torch.randint(6, (count,), generator=rng)]
    noise = torch.randn(chosen.shape, generator=rng) * torch.rand(count, 1, 1, 1, generator=rng) * 8
    pixels = (chosen + noise).round().clamp(0, 255).to(torch.uint8)
    flipped = torch.rand(count, generator=rng) < 0.3
    pixels[flipped] = pixels[flipped].flip(3)
    copies = torch.randint(count, (count // 5, 2), generator=rng)
    pixels[copies[:, 0]] = pixels[copies[:, 1]].clone()
    return pixels


def by_loops(pixels: Tensor, threshold: float) -> tuple[list[bool], list[bool], set[frozenset]]:
    """Twins, exact twins and groups of images that are their own thumbnails."""
    values = pixels.numpy().astype(np.int64)
    n = len(values)
    twins, exact = [False] * n, [False] * n
    groups = [{i} for i in range(n)]
    for j in range(n):
        for i in range(j):
            distance = min(
                np.sqrt(((view - values[j]) ** 2).mean())
                for view in (values[i], values[i, ..., ::-1])
            )
            exact[j] |= bool((values[i] == values[j]).all())
            if distance <= threshold:
                twins[j] = True
                joined = groups[i] | groups[j]
                for member in joined:
                    groups[member] = joined
    return twins, exact, {frozenset(group) for group in groups if len(group) > 1}


def same(a: Duplicates, b: Duplicates) -> bool:
    tensors = all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("numbers", "has_twin", "has_exact_twin")
    )
    return tensors and a.groups == b.groups and a.pairs == b.pairs


@pytest.mark.parametrize("block", [7, 1024])
@pytest.mark.parametrize("size", [(8, 8), (5, 13), (32, 32)])
@pytest.mark.parametrize("threshold", [0.0, 4.0])
def test_equals_loops(
    block: int, size: tuple[int, int], threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    pixels = images(40, *size)
    found = find_duplicates(pixels, threshold=threshold)
    twins, exact, groups = by_loops(pixels, threshold)
    assert found.has_twin.tolist() == twins
    assert found.has_exact_twin.tolist() == exact
    assert {frozenset(group) for group in found.groups} == groups
    assert 0 < found.exact_share <= found.share < 1
    assert found.share == pytest.approx(sum(twins) / 40)


@pytest.mark.parametrize("block", [7, 1024])
@pytest.mark.parametrize("num_pairs", [0, 3, 100, 10_000])
def test_closest_pairs(block: int, num_pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    pixels = images(30, 6, 6, seed=1)
    values = pixels.double()
    expected = []
    for i in range(30):
        for j in range(i + 1, 30):
            plain = float((values[i] - values[j]).square().mean())
            mirror = float((values[i].flip(2) - values[j]).square().mean())
            pair = DuplicatePair(
                distance=min(plain, mirror) ** 0.5, first=i, second=j, mirrored=mirror < plain
            )
            expected.append(pair)
    found = find_duplicates(pixels, threshold=1.0, num_pairs=num_pairs).pairs
    expected = sorted(expected, key=lambda p: (round(p.distance, 9), p.first, p.second))[:num_pairs]
    assert [(p.first, p.second, p.mirrored) for p in found] == [
        (p.first, p.second, p.mirrored) for p in expected
    ]
    assert [p.distance for p in found] == pytest.approx([p.distance for p in expected])


def test_all_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK", 16)
    found = find_duplicates(torch.full((50, 3, 8, 8), 9, dtype=torch.uint8), num_pairs=4)
    assert found.groups == (tuple(range(50)),)
    assert found.share == found.exact_share == pytest.approx(49 / 50)
    assert [(p.first, p.second, p.distance) for p in found.pairs] == [
        (0, 1, 0.0),
        (0, 2, 0.0),
        (0, 3, 0.0),
        (0, 4, 0.0),
    ]


def test_a_chain_is_one_group() -> None:
    """Levels 0, 3, 6, 9 and 100: neighbours are near, the ends are not."""
    values = torch.tensor([6, 0, 100, 9, 3])
    pixels = values[:, None, None, None].expand(5, 3, 4, 4).to(torch.uint8)
    found = find_duplicates(pixels, threshold=3.0)
    assert found.groups == ((0, 1, 3, 4),)
    assert found.has_twin.tolist() == [False, False, False, True, True]
    assert found.exact_share == 0


def test_the_threshold_is_reached_by_equality() -> None:
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    pixels[1] = 4
    assert find_duplicates(pixels).share == 0.5
    pixels[1, 0, 0, 0] = 5
    assert find_duplicates(pixels).share == 0.0


def test_large_images_are_compared_as_thumbnails() -> None:
    rng = torch.Generator().manual_seed(0)
    small = torch.randint(256, (3, 3, 32, 32), generator=rng, dtype=torch.uint8)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    large[2] = large[0].flip(2)
    large[1] = large[0]
    large[1, :, ::2] = (large[0, :, ::2].int() + 40).clamp(0, 255).to(torch.uint8)
    large[1, :, 1::2] = (large[0, :, 1::2].int() - 40).clamp(0, 255).to(torch.uint8)
    found = find_duplicates(large, threshold=20.0)
    assert found.has_twin.tolist() == [False, True, True]  # fine stripes do not show
    assert found.has_exact_twin.tolist() == [False, False, False]
    pairs = {(p.first, p.second): p for p in found.pairs}
    assert pairs[0, 2].mirrored
    assert pairs[0, 2].distance == 0.0
    odd = torch.randint(256, (2, 3, 50, 41), generator=rng, dtype=torch.uint8)
    odd[1] = odd[0].flip(2)
    assert find_duplicates(odd, threshold=0.0).share == 0.5


def test_batches_order_and_merge_do_not_matter() -> None:
    pixels, numbers = images(40, 40, 36, seed=2), torch.arange(40) * 3
    whole = find_duplicates(pixels, numbers)
    assert whole.groups
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    parts = [DuplicateFinder(), DuplicateFinder(), DuplicateFinder()]
    for part, rows in zip(parts, order.split(17), strict=True):
        for few in rows.split(5):
            part.update(pixels[few], numbers[few])
    merged = pickle.loads(pickle.dumps(parts[2]))
    for part in (parts[0], DuplicateFinder(), parts[1]):
        merged.merge(part)
    assert len(merged) == 40
    assert same(merged.result(), whole)
    assert same(merged.result(), whole), "a result may be asked for twice"


def test_result_as_json() -> None:
    found = find_duplicates(images(20, 8, 8)).to_dict()
    assert json.loads(json.dumps(found)) == found
    assert set(found["closest_pairs"][0]) == {"distance", "first", "second", "mirrored"}
    assert found["num_samples"] == 20


def test_wrong_use_is_refused() -> None:
    finder = DuplicateFinder()
    with pytest.raises(ValueError, match="at least 1 sample"):
        finder.result()
    pixels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    finder.update(pixels[:0], torch.arange(0))
    finder.update(pixels, torch.tensor([4, 6]))
    with pytest.raises(ValueError, match=r"expected uint8 \(B, 3, H, W\), found torch.float32"):
        finder.update(pixels.float(), torch.arange(2))
    with pytest.raises(ValueError, match=r"numbers: expected int64 \(2,\)"):
        finder.update(pixels, torch.arange(3))
    with pytest.raises(ValueError, match=r"more than once, e\.g\. 6"):
        finder.update(pixels, torch.tensor([6, 7]))
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\), found \(3, 8, 9\)"):
        finder.update(torch.zeros(1, 3, 8, 9, dtype=torch.uint8), torch.tensor([1]))
    with pytest.raises(ValueError, match=r"thresholds differ: 4\.0 and 5\.0"):
        finder.merge(DuplicateFinder(threshold=5))
    with pytest.raises(ValueError, match=r"expected 0\.\.255"):
        DuplicateFinder(threshold=-1)
    with pytest.raises(ValueError, match="num_pairs >= 0"):
        finder.result(num_pairs=-1)
    assert len(finder) == 2
    assert finder.result().pairs[0].first == 4
