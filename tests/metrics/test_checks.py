"""Every public metric refuses images in another range, and vectors that are no features."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tessella.data.images import to_uint8
from tessella.data.sources import open_source
from tessella.evaluation.nearest import nearest_training_images
from tessella.metrics.checks import check_images, check_vectors
from tessella.metrics.class_score import ClassScore
from tessella.metrics.feature_bank import FeatureBank
from tessella.metrics.frechet import FrechetStatistics
from tessella.metrics.image import ReconstructionMeter, psnr, psnr_non_white, reconstruction_values
from tessella.metrics.image_hash import ImageHash
from tessella.metrics.kid import kernel_distance_full
from tessella.metrics.manifold import manifold_metrics
from tessella.metrics.networks.build import build_features
from tessella.metrics.perceptual import build_perceptual

PairMetric = Callable[[Tensor, Tensor], object]


def unrelated(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two batches of unrelated 8-bit images, as floats in 0..255."""
    rng = torch.Generator().manual_seed(seed)
    first, second = torch.randint(2, 256, (2, 2, 3, 32, 32), generator=rng).float()
    return first, second


def pair_metrics() -> dict[str, PairMetric]:
    return {
        "psnr": psnr,
        "psnr_non_white": psnr_non_white,
        "reconstruction_values": reconstruction_values,
        "ReconstructionMeter": ReconstructionMeter().update,
        "perceptual": build_perceptual("random"),
    }


@pytest.mark.parametrize("name", pair_metrics())
def test_floats_in_0_to_255_are_refused_on_either_side(name: str) -> None:
    metric, (first, second) = pair_metrics()[name], unrelated()
    good = [images / 127.5 - 1 for images in (first, second)]
    message = r"found values from 2 to 255, expected floats in \[-1, 1\]; give 8-bit values as a"
    for a, b in ((first, second), (first, good[1]), (good[0], second)):
        with pytest.raises(ValueError, match=message):
            metric(a, b)
    metric(*good)


@pytest.mark.parametrize("name", pair_metrics())
def test_uint8_images_have_the_values_of_their_floats(name: str) -> None:
    first, second = unrelated()

    def numbers(found: object) -> list[Tensor]:
        return [*found.values()] if isinstance(found, dict) else [torch.as_tensor(found)]

    floats = numbers(pair_metrics()[name](first / 127.5 - 1, second / 127.5 - 1))
    pixels = numbers(pair_metrics()[name](first.to(torch.uint8), second.to(torch.uint8)))
    torch.testing.assert_close(pixels, floats, rtol=1e-5, atol=1e-6)


def test_psnr_of_unrelated_images_by_hand() -> None:
    first, second = unrelated()
    expected = 10 * torch.log10(255**2 / (first - second).double().square().mean((1, 2, 3)))
    torch.testing.assert_close(psnr(first.to(torch.uint8), second.to(torch.uint8)), expected)
    assert float(expected.max()) < 10


@pytest.mark.parametrize("call", ["forward", "pooled"])
def test_networks_refuse_the_range_of_models_and_of_8_bits(call: str) -> None:
    network = build_features("random")
    look = network if call == "forward" else network.pooled
    pixels = unrelated()[0]
    with pytest.raises(ValueError, match=r"from -0\.98\d* to 1, .*\[0, 1\]; .* \(x \+ 1\) / 2"):
        look(pixels / 127.5 - 1)
    with pytest.raises(ValueError, match=r"from 2 to 255, .*\[0, 1\]; give 8-bit values"):
        look(pixels)
    torch.testing.assert_close(look(pixels.to(torch.uint8)), look(pixels / 255))


def test_nearest_images_refuse_floats_in_0_to_255() -> None:
    with pytest.raises(ValueError, match=r"samples: found values from 2 to 255"):
        nearest_training_images(unrelated()[0], open_source("bundled:emoji", "val"), 32)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_counted(wrong: float) -> None:
    images = torch.zeros(1, 3, 16, 16)
    images[0, 0, 0, :2] = wrong
    with pytest.raises(ValueError, match="originals: 2 values are not finite"):
        psnr(images, torch.zeros(1, 3, 16, 16))


def test_slack_is_half_a_level_of_8_bits() -> None:
    edge = 1 + 0.99 / 255
    images = torch.full((1, 3, 16, 16), edge)
    check_images(images, -1, 1)
    assert int(to_uint8(images).min()) == 255
    with pytest.raises(ValueError, match=r"to 1\.006.*clamp the output of a network"):
        check_images(images + 0.002, -1, 1)
    check_images(images[:0], -1, 1)
    with pytest.raises(ValueError, match=r"uint8 tensor, or a float .* found torch\.int64"):
        check_images(images.long(), -1, 1)


def test_a_loss_takes_raw_reconstructions_but_no_wrong_originals() -> None:
    first, second = unrelated()
    raw = (first / 64 - 2).requires_grad_()
    loss = build_perceptual("random")
    with pytest.raises(ValueError, match=r"found values from 2 to 255"):
        loss(raw, second)
    loss = build_perceptual("random")
    loss(raw, second / 127.5 - 1).mean().backward()
    assert raw.grad is not None
    with pytest.raises(ValueError, match=r"images_a: .* from -1\.969 to 1\.984"), torch.no_grad():
        loss(raw.detach(), second / 127.5 - 1)


def test_vectors_are_finite_floats_of_one_length() -> None:
    whole = torch.arange(40).reshape(10, 4)
    numbers = torch.arange(10)
    calls: dict[str, Callable[[Tensor], object]] = {
        "FrechetStatistics": FrechetStatistics(4).update,
        "ClassScore": ClassScore(4).update,
        "FeatureBank": lambda vectors: FeatureBank(4).update(vectors, numbers),
        "kernel_distance": lambda vectors: kernel_distance_full(vectors, vectors),
        "manifold_metrics": lambda vectors: manifold_metrics(vectors, vectors),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=r"expected a float tensor, found torch\.int64"):
            call(whole)
        with pytest.raises(ValueError, match=r"found \(10,"):
            call(torch.zeros(10))
        bad = whole.float()
        bad[3, 1] = torch.nan
        with pytest.raises(ValueError, match="1 of 10 vectors are not finite"):
            call(bad)
        assert call(whole.float()) is not NotImplemented, name
    check_vectors(torch.zeros(0, 4), "features", 4)


def test_hashes_are_of_8_bit_images() -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \(B, 3, H, W\), found torch\.float32"):
        ImageHash().update(torch.zeros(1, 3, 16, 16))
