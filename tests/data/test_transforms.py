import numpy as np
import pytest
from PIL import Image

from tessella.data.transforms import AugmentConfig, augment, fit, resize_center_crop


def random_pixels(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_resize_center_crop():
    image = Image.fromarray(random_pixels(16, 16))
    assert resize_center_crop(image, 16) is image
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255
    cropped = np.asarray(resize_center_crop(Image.fromarray(wide), 8))
    assert (cropped == 255).all()
    for size in ((5, 300), (300, 5), (1, 1), (17, 33)):
        assert resize_center_crop(Image.new("RGB", size), 12).size == (12, 12)
    with pytest.raises(ValueError, match="resolution 0"):
        resize_center_crop(image, 0)


def test_off_by_default_and_identity():
    pixels = random_pixels(16, 16)
    config = AugmentConfig()
    assert not config.enabled
    assert np.array_equal(augment(pixels, 16, config, np.random.default_rng(0)), pixels)


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(flip=True),
        AugmentConfig(shift=3),
        AugmentConfig(random_crop=0.3, aspect=1.5, flip=True, shift=2),
    ],
)
@pytest.mark.parametrize("size", [(16, 16), (9, 40)])
def test_deterministic_given_the_generator(config, size):
    pixels = random_pixels(*size)
    first, second, other = (
        [augment(pixels, 16, config, np.random.default_rng((s, i))) for i in range(20)]
        for s in (1, 1, 2)
    )
    assert all(image.shape == (16, 16, 3) and image.dtype == np.uint8 for image in first)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_flip_frequency_is_one_half():
    pixels, config = random_pixels(4, 4), AugmentConfig(flip=True)
    rng = np.random.default_rng(0)
    trials = 1000
    flips = sum(
        np.array_equal(augment(pixels, 4, config, rng), pixels[:, ::-1]) for _ in range(trials)
    )
    assert abs(flips - trials / 2) < 4 * (trials / 4) ** 0.5  # 4 sigma


def test_shift_pads_with_the_edge():
    pixels = random_pixels(6, 6)
    rows = {tuple(map(tuple, row)) for row in pixels}
    for seed in range(10):
        shifted = augment(pixels, 6, AugmentConfig(shift=2), np.random.default_rng(seed))
        assert set(map(tuple, shifted.reshape(-1, 3))) <= {c for row in rows for c in row}


@pytest.mark.parametrize(
    "wrong", [{"random_crop": 0.0}, {"random_crop": 1.5}, {"aspect": 0.5}, {"shift": -1}]
)
def test_wrong_config(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*expected"):
        AugmentConfig(**wrong)


def test_the_rule_of_adm_halves_first():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 65, 3), dtype=np.uint8))
    halved = image.resize((32, 20), Image.Resampling.BOX).resize((16, 10), Image.Resampling.BOX)
    expected = halved.resize((13, 8), Image.Resampling.BICUBIC).crop((2, 0, 10, 8))
    assert fit(image, 8, "adm").tobytes() == expected.tobytes()
    assert fit(image, 8, "adm").tobytes() != fit(image, 8, "bicubic").tobytes()
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    assert fit(small, 8, "adm").size == (8, 8)
    exact = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    for rule in ("adm", "bicubic", "none"):
        assert fit(exact, 8, rule).tobytes() == exact.tobytes()


def test_no_rule_refuses_other_sizes():
    image = Image.new("RGB", (9, 8))
    with pytest.raises(ValueError, match="9 x 8 pixels; nothing is resized here, expected 8 x 8"):
        fit(image, 8, "none")
