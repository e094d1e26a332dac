"""Pixel metrics against brute force, and streaming against all at once."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tessella.sample.metrics.image import ReconstructionMeter, psnr, psnr_non_white, to_uint8


def pair(batch: int, size: int = 24) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    originals = torch.rand(batch, 3, size, size, generator=rng) * 2 - 1
    originals[:, :, : size // 2] = 1.0
    noise = torch.randn(originals.shape, generator=rng)
    return originals, originals + 0.1 * noise


def levels(images: Tensor) -> np.ndarray:
    """The rounding rule in NumPy, one value at a time in float64."""
    return np.clip(np.round(127.5 * (images.numpy().astype(np.float64) + 1)), 0, 255)


def test_rounding_rule() -> None:
    images = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0, 2 * 37 / 255 - 1])
    assert to_uint8(images).tolist() == [0, 0, 128, 255, 255, 37]
    every = torch.arange(256) / 127.5 - 1
    assert to_uint8(every).tolist() == list(range(256))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_finite_is_refused(bad: float) -> None:
    images = torch.zeros(1, 3, 16, 16)
    images[0, 0, 0, 0] = bad
    with pytest.raises(ValueError, match="1 values are not finite"):
        psnr(images, images)


def test_psnr_equals_brute_force() -> None:
    originals, reconstructions = pair(3)
    for i, value in enumerate(psnr(originals, reconstructions)):
        mse = ((levels(originals[i]) - levels(reconstructions[i])) ** 2).mean()
        assert float(value) == pytest.approx(10 * math.log10(255**2 / mse), abs=1e-6)


def test_psnr_of_known_error_and_of_equal_images() -> None:
    black = torch.full((1, 3, 16, 16), -1.0)
    assert float(psnr(black, -black)) == 0.0
    assert float(psnr(black, black)) == 100.0
    assert float(psnr(black, black + 1 / 127.5)) == pytest.approx(20 * math.log10(255))


def test_psnr_non_white_equals_brute_force() -> None:
    originals, reconstructions = pair(2)
    for i, value in enumerate(psnr_non_white(originals, reconstructions)):
        a, b = levels(originals[i]), levels(reconstructions[i])
        kept = ~(a == 255).all(0)
        mse = ((a - b) ** 2)[:, kept].mean()
        assert float(value) == pytest.approx(10 * math.log10(255**2 / mse), abs=1e-6)


def test_psnr_non_white_of_all_white_is_nan() -> None:
    white = torch.ones(1, 3, 16, 16)
    assert psnr_non_white(white, -white).isnan().all()
    meter = ReconstructionMeter()
    meter.update(white, -white)
    assert math.isnan(meter.compute()["psnr_non_white"])


def test_meter_equals_whole_set() -> None:
    originals, reconstructions = pair(5)
    meter = ReconstructionMeter()
    for part in (slice(0, 1), slice(1, 5)):
        meter.update(originals[part], reconstructions[part])
    result = meter.compute()
    a, b = levels(originals), levels(reconstructions)
    kept = np.broadcast_to(~(a == 255).all(1, keepdims=True), a.shape)
    pooled = ((a - b) ** 2)[kept].mean()
    assert result["psnr"] == pytest.approx(float(psnr(originals, reconstructions).mean()))
    assert result["psnr_non_white"] == pytest.approx(10 * math.log10(255**2 / pooled), abs=1e-6)
    assert result["mse"] == pytest.approx((((a - b) / 255) ** 2).mean(), rel=1e-9)
    assert result["num_images"] == 5


def test_ssim_equals_its_definition() -> None:
    """Gaussian-weighted moments at every position of the reflected image, by loops."""
    originals, reconstructions = pair(1, size=16)
    meter = ReconstructionMeter()
    meter.update(originals, reconstructions)
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(window, window) / np.outer(window, window).sum()
    a, b = levels(originals)[0] / 255, levels(reconstructions)[0] / 255
    a, b = (np.pad(v, ((0, 0), (5, 5), (5, 5)), mode="reflect") for v in (a, b))
    values = []
    for c in range(3):
        for y in range(16):
            for x in range(16):
                p, q = a[c, y : y + 11, x : x + 11], b[c, y : y + 11, x : x + 11]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * p * p).sum() - mp**2, (window * q * q).sum() - mq**2
                covariance = (window * p * q).sum() - mp * mq
                luminance = (2 * mp * mq + 1e-4) / (mp**2 + mq**2 + 1e-4)
                values.append(luminance * (2 * covariance + 9e-4) / (vp + vq + 9e-4))
    assert meter.compute()["ssim"] == pytest.approx(np.mean(values), abs=1e-4)


def test_equal_images() -> None:
    originals, _ = pair(2)
    meter = ReconstructionMeter()
    meter.update(originals, originals)
    expected = {"psnr": 100.0, "psnr_non_white": 100.0, "ssim": 1.0, "mse": 0.0, "num_images": 2}
    assert meter.compute() == pytest.approx(expected)


def test_merge_and_summed_states_equal_one_meter() -> None:
    originals, reconstructions = pair(4)
    whole, first, second = (ReconstructionMeter() for _ in range(3))
    whole.update(originals, reconstructions)
    first.update(originals[:1], reconstructions[:1])
    second.update(originals[1:], reconstructions[1:])
    summed = ReconstructionMeter.from_state(first.state() + second.state())
    assert summed.compute() == pytest.approx(whole.compute(), rel=1e-6)
    first.merge(second)
    assert first.compute() == pytest.approx(summed.compute(), rel=1e-12)
    with pytest.raises(ValueError, match="expected shape"):
        ReconstructionMeter.from_state(torch.zeros(2))


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="call update first"):
        ReconstructionMeter().compute()
    with pytest.raises(ValueError, match="one shape"):
        psnr(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 15))
    with pytest.raises(ValueError, match="sides >= 11"):
        ReconstructionMeter().update(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="expected floats"):
        to_uint8(torch.zeros(3, dtype=torch.uint8))
