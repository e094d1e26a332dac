"""Nearest real images, on small sets with known answers."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tessella.data.image_source import ImageSource
from tessella.data.images import save_png, to_float
from tessella.data.sources import open_source
from tessella.evaluation.nearest import Neighbors, nearest_training_images
from tessella.metrics.networks.build import build_features

SIDE = 24


def noise(count: int, seed: int, *, side: int = SIDE) -> Tensor:
    """Seeded 8-bit images in [-1, 1], no two alike."""
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, side, side, 3), generator=rng, dtype=torch.uint8)
    return to_float(pixels.numpy())


def write(images: Tensor, folder: Path) -> None:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        save_png(image, folder / f"{i:03d}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write(noise(20, seed=0), root / "train")
    write(noise(6, seed=1), root / "val")
    return root


@pytest.fixture
def train(folder: Path) -> ImageSource:
    return open_source(folder, "train")


@pytest.fixture
def val(folder: Path) -> ImageSource:
    return open_source(folder, "val")


def test_broken_images_are_skipped_and_named(tmp_path: Path) -> None:
    write(noise(4, seed=0), tmp_path / "images")
    (tmp_path / "images" / "cut.png").write_bytes(b"\x89PNG")
    source = open_source(tmp_path / "images")
    nearest = nearest_training_images(noise(4, seed=0)[3:], source, SIDE, features="random")
    assert source.id_of(int(nearest.by_pixels.indices[0])) == "003.png"
    assert list(nearest.broken) == ["cut.png"]


def test_wrong_samples_are_refused(train: ImageSource) -> None:
    def search(samples: Tensor) -> None:
        nearest_training_images(samples, train, SIDE, features="random")

    with pytest.raises(ValueError, match="found 0 samples"):
        search(noise(1, seed=0)[:0])
    broken = noise(2, seed=0)
    broken[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"\(B, 3, 24, 24\), found \(2, 3, 32, 32\)"):
        search(noise(2, seed=0, side=32))
    with pytest.raises(ValueError, match="1 values are not finite"):
        search(broken)
    with pytest.raises(ValueError, match=r"expected a uint8 .* found torch\.int64"):
        search(broken.to(torch.int64))


def test_copies_and_mirrored_copies_are_found_at_distance_zero(
    train: ImageSource, val: ImageSource
) -> None:
    real = noise(20, seed=0)
    samples = torch.stack([real[7], real[3].flip(2), (real[12] + 0.4 / 127.5).clamp(-1, 1)])
    found = nearest_training_images(samples, train, SIDE, features="random", validation=val)
    for neighbors in (found.by_pixels, found.by_features):
        assert neighbors.indices.tolist() == [7, 3, 12]
        assert neighbors.mirrored.tolist() == [False, True, False]
    assert found.by_pixels.distances.tolist() == [0.0, 0.0, 0.0]
    # Features of one picture in two batches differ by float32 rounding, cosines by its square.
    assert found.by_features.distances.max() < 1e-9
    assert found.validation_by_pixels is not None
    assert len(found.validation_by_pixels.distances) == 6
    result = found.to_dict()
    assert result["samples"]["pixel_distance"] == {"min": 0.0, "median": 0.0}
    assert result["validation"]["num_images"] == 6
    assert result["validation"]["pixel_distance"]["median"] > 80  # two uniform noises: 104
    assert result["nearest"][1]["by_pixels"] == {
        "id": train.id_of(3),
        "index": 3,
        "mirrored": True,
        "distance": 0.0,
    }


def test_search_equals_brute_force(train: ImageSource) -> None:
    real, samples = noise(20, seed=0), noise(5, seed=5)
    found = nearest_training_images(samples, train, SIDE, features="random")
    both = torch.stack([real, real.flip(3)], 1).flatten(0, 1)
    net = build_features("random")
    features, own = (
        torch.nn.functional.normalize(net.pooled((images + 1) / 2).double())
        for images in (both, samples)
    )
    pixels = ((both[None] - samples[:, None]) * 127.5).double().square().mean((2, 3, 4)).sqrt()
    for neighbors, distances in (
        (found.by_pixels, pixels),
        (found.by_features, 1 - own @ features.T),
    ):
        values, places = distances.min(1)
        assert torch.equal(neighbors.indices, places // 2)
        assert torch.equal(neighbors.mirrored, places % 2 == 1)
        torch.testing.assert_close(neighbors.distances, values, rtol=1e-4, atol=1e-6)


def test_neighbors_depend_on_neither_order_nor_batches(
    train: ImageSource, val: ImageSource
) -> None:
    samples = noise(7, seed=6)

    def search(queries: Tensor, batch_size: int, validation: ImageSource | None) -> Neighbors:
        return nearest_training_images(
            queries,
            train,
            SIDE,
            features="random",
            batch_size=batch_size,
            validation=validation,
        ).by_pixels

    whole = search(samples, 32, val)
    turned = search(samples.flip(0), 3, None)
    single = search(samples[2:3], 1, None)
    assert torch.equal(whole.indices, turned.indices.flip(0))
    assert torch.equal(whole.mirrored, turned.mirrored.flip(0))
    assert torch.equal(whole.distances, turned.distances.flip(0)), "integers: exact"
    assert torch.equal(whole.distances[2:3], single.distances)


def test_the_first_of_equal_images_is_named(tmp_path: Path) -> None:
    images = noise(3, seed=7)
    symmetric = torch.cat([images[:1], images[:1].flip(3)], 3)[..., ::2]
    symmetric = (symmetric + symmetric.flip(3)) / 2
    write(torch.cat([images[1:2].flip(3), images[1:2], symmetric]), tmp_path / "images")
    source = open_source(tmp_path / "images")
    for batch_size in (1, 2, 32):
        found = nearest_training_images(
            torch.cat([images[1:2], symmetric]),
            source,
            SIDE,
            features="random",
            batch_size=batch_size,
        ).by_pixels
        assert found.indices.tolist() == [0, 2]
        assert found.mirrored.tolist() == [True, False]


def test_picture_shows_what_was_found(train: ImageSource) -> None:
    real = noise(20, seed=0)
    found = nearest_training_images(real[:9].flip(3), train, SIDE, features="random", num_shown=9)
    assert isinstance(found.picture, Image.Image)
    cell = -(-128 // SIDE) * SIDE + 2
    assert found.picture.width == 8 * cell + 2
    pitch = (found.picture.height - 2) // 6
    for column in range(8):
        left = 2 + column * cell
        shown = [
            found.picture.crop((left, 2 + row * pitch, left + cell - 2, row * pitch + cell))
            for row in range(3)
        ]
        assert shown[0].tobytes() == shown[1].tobytes() == shown[2].tobytes()
        assert len(shown[0].getcolors(2**16) or []) > 100, "a picture, not a blank cell"
    with pytest.raises(ValueError, match="num_shown=0"):
        nearest_training_images(real[:1], train, SIDE, features="random", num_shown=0)


def test_only_the_first_validation_images_are_compared(
    train: ImageSource, val: ImageSource
) -> None:
    found = nearest_training_images(
        noise(1, seed=8), train, SIDE, features="random", validation=val, max_validation=4
    )
    assert found.to_dict()["validation"]["num_images"] == 4
