"""LPIPS against its published constants, and what any distance must satisfy."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tessella.data.images import read_image, to_tensor
from tessella.metrics.networks.build import FEATURE_NAMES, available_features, build_features
from tessella.metrics.networks.weights import PROVIDERS
from tessella.metrics.perceptual import (
    FeatureDistance,
    Lpips,
    PerceptualDistance,
    build_perceptual,
)

CONSTANT_TOLERANCE = 1e-3  # that of the reference implementation's own printed values
LPIPS_CONSTANTS = [
    ("lpips_alex", 10, 100, 0.1527),
    ("lpips_alex", 4, 32, 0.0616),
    ("lpips_alex", 4, 64, 0.1149),
    ("lpips_vgg", 10, 100, 0.3535),
    ("lpips_vgg", 4, 32, 0.2814),
    ("lpips_vgg", 4, 64, 0.3252),
]
LPIPS_IMAGES = "TESSELLA_LPIPS_IMAGES"
"""Folder with ex_ref.png, ex_p0.png and ex_p1.png of richzhang/PerceptualSimilarity, imgs/."""


@pytest.fixture(scope="module")
def distances() -> dict[str, PerceptualDistance]:
    found = available_features()
    return {name: build_perceptual(name) for name in FEATURE_NAMES if found[name]}


@pytest.fixture(params=FEATURE_NAMES)
def distance(
    request: pytest.FixtureRequest, distances: dict[str, PerceptualDistance]
) -> PerceptualDistance:
    if request.param not in distances:
        pytest.skip(f"no weights; {PROVIDERS[request.param].command}")
    return distances[request.param]


def pair(batch: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two seeded batches in [-1, 1]; the draw that the constants were made with."""
    rng = torch.Generator().manual_seed(seed)
    shape = (batch, 3, size, size)
    return torch.rand(shape, generator=rng) * 2 - 1, torch.rand(shape, generator=rng) * 2 - 1


@pytest.mark.parametrize(("name", "batch", "size", "expected"), LPIPS_CONSTANTS)
def test_lpips_constants(
    distances: dict[str, PerceptualDistance], name: str, batch: int, size: int, expected: float
) -> None:
    if name not in distances:
        pytest.skip(f"no weights; {PROVIDERS[name].command}")
    value = float(distances[name](*pair(batch, size)).mean())
    assert value == pytest.approx(expected, abs=CONSTANT_TOLERANCE)


@pytest.mark.skipif(
    LPIPS_IMAGES not in os.environ,
    reason=f"{LPIPS_IMAGES} is not set: a folder with ex_ref.png, ex_p0.png and ex_p1.png of "
    "github.com/richzhang/PerceptualSimilarity, folder imgs",
)
@pytest.mark.parametrize(
    ("name", "far", "near"), [("lpips_alex", 0.7219, 0.1376), ("lpips_vgg", 0.5686, 0.4217)]
)
def test_lpips_of_the_reference_images(
    distances: dict[str, PerceptualDistance], name: str, far: float, near: float
) -> None:
    """The pair of distances of the reference's test_network.py, whose repository states none."""
    if name not in distances:
        pytest.skip(f"no weights; {PROVIDERS[name].command}")
    folder = Path(os.environ[LPIPS_IMAGES])
    reference, *others = (
        to_tensor(read_image(folder / f"ex_{image}.png"))[None] for image in ("ref", "p0", "p1")
    )
    found = [float(distances[name](reference, other)) for other in others]
    assert found == pytest.approx([far, near], abs=1e-4)


def test_zero_symmetric_and_per_image(distance: PerceptualDistance) -> None:
    a, b = pair(3, 32)
    values = distance(a, b)
    assert values.shape == (3,)
    assert (values > 0).all()
    torch.testing.assert_close(distance(a, a.clone()), torch.zeros(3))
    torch.testing.assert_close(distance(b, a), values)
    single = torch.cat([distance(a[i : i + 1], b[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(single, values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [16, 32])
def test_gradient_is_finite_and_not_zero(distance: PerceptualDistance, size: int) -> None:
    a, b = pair(2, size)
    a.requires_grad_()
    distance(a, b).mean().backward()
    assert a.grad is not None
    assert torch.isfinite(a.grad).all()
    assert a.grad.abs().sum() > 0


@pytest.mark.parametrize("level", [-1.0, 0.0, 1.0])
def test_gradient_of_a_flat_image_is_finite(distance: PerceptualDistance, level: float) -> None:
    """A decoder with a zero last layer starts with exactly such images."""
    flat = torch.full((1, 3, 32, 32), level, requires_grad=True)
    distance(flat, pair(1, 32)[1]).mean().backward()
    assert flat.grad is not None
    assert torch.isfinite(flat.grad).all()
    assert flat.grad.abs().max() < 1e2


def test_gradient_agrees_with_finite_differences(distance: PerceptualDistance) -> None:
    a, b = pair(1, 32)
    a, b = a * 0.5, b * 0.5
    a.requires_grad_()
    distance(a, b).sum().backward()
    assert a.grad is not None
    direction = a.grad / a.grad.norm()
    step = 0.05
    with torch.no_grad():
        rise = distance(a + step * direction, b) - distance(a - step * direction, b)
    assert float(rise) / (2 * step) == pytest.approx(float(a.grad.norm()), rel=0.1)


def test_target_side_keeps_no_graph() -> None:
    distance = build_perceptual("random")
    a, b = pair(1, 32)
    assert distance(a, b).grad_fn is None
    a.requires_grad_()
    loss = distance(a, b).sum()
    loss.backward()
    one_sided = a.grad
    a.grad = None
    b.requires_grad_()
    distance(a, b).sum().backward()
    torch.testing.assert_close(a.grad, one_sided)
    assert b.grad is not None


def test_more_noise_is_further(distance: PerceptualDistance) -> None:
    smooth = torch.linspace(-0.8, 0.8, 64).expand(1, 3, 64, 64).contiguous()
    noise = torch.randn(smooth.shape, generator=torch.Generator().manual_seed(0))
    values = [float(distance(smooth, (smooth + s * noise).clamp(-1, 1))) for s in (0.02, 0.1, 0.4)]
    assert values == sorted(values)


def test_autocast_and_half_inputs_compute_in_float32() -> None:
    distance = build_perceptual("random")
    a, b = pair(1, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(distance(a, b), distance(a, b).float())
        inside = distance(a, b)
    torch.testing.assert_close(inside, distance(a, b), rtol=0, atol=0)
    assert distance(a.bfloat16(), b.bfloat16()).dtype == torch.float32


def test_ids_and_types(distance: PerceptualDistance) -> None:
    expected = {
        "lpips_vgg": "lpips_vgg#2ecbe4ce",
        "lpips_alex": "lpips_alex#443c5bc3",
        "efflite0": "features@efflite0#57934424",
        "inception_fid": "features@inception_fid#7ff4a85c",
        "resnet50": "features@resnet50#618cc24c",
        "random": "features@random",
    }
    name = distance.extractor.name
    assert distance.id.removesuffix("-fp16") == expected[name]
    assert isinstance(distance, Lpips if name.startswith("lpips") else FeatureDistance)
    assert not list(distance.parameters())
    assert distance.state_dict() == {}


def test_auto_takes_the_best_available(distances: dict[str, PerceptualDistance]) -> None:
    best = next(name for name in ("lpips_vgg", "efflite0", "random") if name in distances)
    assert build_perceptual("auto").id == distances[best].id


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown perceptual distance 'lpips'"):
        build_perceptual("lpips")
    with pytest.raises(ValueError, match="takes no path"):
        build_perceptual("auto", path="x.safetensors")
    with pytest.raises(ValueError, match="LPIPS needs"):
        Lpips(build_features("random"))
    distance = build_perceptual("random")
    with pytest.raises(ValueError, match="one shape"):
        distance(torch.zeros(1, 3, 32, 32), torch.zeros(2, 3, 32, 32))
