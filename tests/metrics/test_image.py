"""Pixel metrics against brute force, and streaming against all at once."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from tessella.metrics.image import (
    MS_SSIM_FORMS,
    MsSsim,
    ReconstructionMeter,
    ms_ssim_form,
    ms_ssim_name,
    psnr,
    psnr_non_white,
    reconstruction_values,
    to_uint8,
)


def pair(batch: int, size: int = 24) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    originals = torch.rand(batch, 3, size, size, generator=rng) * 2 - 1
    originals[:, :, : size // 2] = 1.0
    noise = torch.randn(originals.shape, generator=rng)
    return originals, (originals + 0.1 * noise).clamp(-1, 1)


def pixels(images: Tensor) -> np.ndarray:
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
        mse = ((pixels(originals[i]) - pixels(reconstructions[i])) ** 2).mean()
        assert float(value) == pytest.approx(10 * math.log10(255**2 / mse), abs=1e-6)


def test_psnr_of_known_error_and_of_equal_images() -> None:
    black = torch.full((1, 3, 16, 16), -1.0)
    assert float(psnr(black, -black)) == 0.0
    assert float(psnr(black, black)) == 100.0
    assert float(psnr(black, black + 1 / 127.5)) == pytest.approx(20 * math.log10(255))


def test_psnr_non_white_equals_brute_force() -> None:
    originals, reconstructions = pair(2)
    for i, value in enumerate(psnr_non_white(originals, reconstructions)):
        a, b = pixels(originals[i]), pixels(reconstructions[i])
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
    a, b = pixels(originals), pixels(reconstructions)
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
    a, b = pixels(originals)[0] / 255, pixels(reconstructions)[0] / 255
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
    expected = {
        "psnr": 100.0,
        "psnr_non_white": 100.0,
        "ssim": 1.0,
        "mse": 0.0,
        "num_images": 2,
    }
    result = meter.compute()
    assert result.pop("ms_ssim_3x5") == pytest.approx(1, abs=1e-4)  # float32 in white areas
    assert result == pytest.approx(expected)


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


def test_values_of_images_are_those_of_the_meter() -> None:
    originals, reconstructions = pair(4, size=64)
    values = reconstruction_values(originals, reconstructions)
    assert list(values) == ["psnr", "psnr_non_white", "ssim", "ms_ssim_4x7", "mse"]
    assert all(v.shape == (4,) and v.dtype == torch.float64 for v in values.values())
    assert torch.equal(values["psnr"], psnr(originals, reconstructions))
    assert torch.equal(values["psnr_non_white"], psnr_non_white(originals, reconstructions))
    meter = ReconstructionMeter()
    returned = meter.update(originals, reconstructions)
    result = meter.compute()
    for name in values:
        assert torch.equal(returned[name], values[name])
        if name != "psnr_non_white":  # pooled over the set
            assert result[name] == pytest.approx(float(values[name].mean()), rel=1e-12)
    assert values["ssim"].std() > 0
    single = reconstruction_values(originals[2:3], reconstructions[2:3])
    for name, value in single.items():
        assert float(value) == pytest.approx(float(values[name][2]), rel=1e-5), name


def test_ms_ssim_forms_by_size() -> None:
    expected = {256: "ms_ssim", 176: "ms_ssim", 175: "ms_ssim_4x7", 64: "ms_ssim_4x7"}
    expected |= {32: "ms_ssim_3x5", 20: "ms_ssim_3x5", 16: "ms_ssim_3x3", 12: "ms_ssim_3x3"}
    assert {side: ms_ssim_name(side) for side in expected} == expected
    assert ms_ssim_name(11) is None
    assert ms_ssim_form(11) is None
    published = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    assert ms_ssim_form(256).betas == pytest.approx(published, rel=1e-15)
    for form in MS_SSIM_FORMS:
        assert form.min_side == form.window * (form.scales - 1) ** 2
        assert sum(form.betas) == pytest.approx(sum(published))
        assert int(3.5 * form.sigma + 0.5) * 2 + 1 == form.window, "how torchmetrics finds it"


@pytest.mark.parametrize("form", MS_SSIM_FORMS, ids=lambda form: form.name)
def test_ms_ssim_at_its_smallest_size(form: MsSsim) -> None:
    originals, reconstructions = pair(2, size=form.min_side)
    found = reconstruction_values(originals, reconstructions)[form.name]
    assert ((found > 0) & (found < 1)).all()
    scaled = [torch.from_numpy(pixels(v)).float() / 255 for v in (reconstructions, originals)]
    arguments = {"sigma": form.sigma, "kernel_size": form.window, "betas": form.betas}
    expected = multiscale_structural_similarity_index_measure(
        *scaled, data_range=1.0, reduction="none", **arguments
    )
    torch.testing.assert_close(found.float(), expected)
    if form.name == "ms_ssim":
        defaults = multiscale_structural_similarity_index_measure(
            *scaled, data_range=1.0, reduction="none"
        )
        torch.testing.assert_close(found.float(), defaults)
    with pytest.raises(ValueError, match="must be larger than"):
        smaller = [v[..., 1:, :] for v in scaled]
        multiscale_structural_similarity_index_measure(*smaller, data_range=1.0, **arguments)


def test_ms_ssim_of_opposites_is_not_nan() -> None:
    originals, _ = pair(2, size=64)
    values = reconstruction_values(originals, -originals)["ms_ssim_4x7"]
    assert values.tolist() == [0, 0]


def test_each_form_counts_its_own_images() -> None:
    meter, other = ReconstructionMeter(), ReconstructionMeter()
    sets = {size: pair(count, size=size) for size, count in ((64, 1), (32, 3), (11, 2))}
    meter.update(*sets[64])
    other.update(*sets[32])
    other.update(*sets[11])
    assert ReconstructionMeter.from_state(other.state()) == other
    meter.merge(other)
    result = meter.compute()
    assert result["num_images"] == 6
    for size, name in ((64, "ms_ssim_4x7"), (32, "ms_ssim_3x5")):
        expected = float(reconstruction_values(*sets[size])[name].mean())
        assert result[name] == pytest.approx(expected, rel=1e-12)
    assert [name for name in result if name.startswith("ms_ssim")] == ["ms_ssim_4x7", "ms_ssim_3x5"]
    small = ReconstructionMeter()
    small.update(*sets[11])
    assert not [name for name in small.compute() if name.startswith("ms_ssim")]


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="call update first"):
        ReconstructionMeter().compute()
    with pytest.raises(ValueError, match="one shape"):
        psnr(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 15))
    with pytest.raises(ValueError, match="sides >= 11"):
        ReconstructionMeter().update(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="sides >= 11"):
        reconstruction_values(torch.zeros(1, 3, 8, 16), torch.zeros(1, 3, 8, 16))
    with pytest.raises(ValueError, match="expected floats"):
        to_uint8(torch.zeros(3, dtype=torch.uint8))
