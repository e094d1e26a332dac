"""The FID Inception: structure without weights, published constants with them."""

import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.image.kid import KernelInceptionDistance
from torchmetrics.image.mifid import MemorizationInformedFrechetInceptionDistance

from tessella.data.images import to_uint8
from tessella.data.loader import eval_batches
from tessella.data.sources import open_source
from tessella.metrics.frechet import FrechetStatistics, frechet_distance, metric_name
from tessella.metrics.networks.build import available_features, build_features
from tessella.metrics.networks.inception_fid import (
    NUM_SPATIAL,
    SIDE,
    InceptionFid,
    resize_tf1,
    weight_shapes,
)
from tessella.metrics.networks.weights import (
    PROVIDERS,
    LoadedWeights,
    convert_weights,
    load_weights,
)

NUM_CONVS, NUM_VALUES, NUM_KERNEL_VALUES = 94, 21_802_784, 21_751_136
needs_weights = pytest.mark.skipif(
    not available_features()["inception_fid"],
    reason=f"needs {PROVIDERS['inception_fid'].command}",
)


def random_weights() -> LoadedWeights:
    """Seeded weights of the right shapes, scaled so that activations neither grow nor vanish."""
    rng = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in weight_shapes().items():
        value = torch.randn(shape, generator=rng)
        if name.endswith("weight"):
            value *= math.sqrt(2 / math.prod(shape[1:]))
        elif name.endswith("variance"):
            value = 1 + value.square() / 10
        else:
            value *= 0.1
        tensors[name] = value
    return LoadedWeights(tensors=tensors, weights_id="random", origin=Path("random"))


@pytest.fixture(scope="module")
def untrained() -> InceptionFid:
    return InceptionFid(random_weights())


@pytest.fixture(scope="module")
def genuine() -> InceptionFid:
    extractor = build_features("inception_fid")
    assert isinstance(extractor, InceptionFid)
    return extractor


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_number_of_weights() -> None:
    shapes = weight_shapes()
    assert len(shapes) == 4 * NUM_CONVS
    assert sum(math.prod(shape) for shape in shapes.values()) == NUM_VALUES
    kernels = [shape for name, shape in shapes.items() if name.endswith("weight")]
    assert sum(math.prod(shape) for shape in kernels) == NUM_KERNEL_VALUES
    assert shapes["convs.0.weight"] == (32, 3, 3, 3)
    assert shapes["convs.4.weight"] == (192, 80, 3, 3)
    assert shapes["convs.93.weight"] == (192, 2048, 1, 1)


def test_layers_at_any_image_size(untrained: InceptionFid) -> None:
    expected = {"64": (64, 73), "192": (192, 35), "768": (768, 17), "2048": (2048, 8)}
    for size in ((16, 40), (310, 299)):
        features = untrained(images(1, 3, *size))
        assert {k: (v.shape[1], v.shape[2]) for k, v in features.items()} == expected
        assert all(v.shape[2] == v.shape[3] for v in features.values())
        assert all(torch.isfinite(v).all() for v in features.values())
    assert untrained.num_features == 2048
    assert untrained.pooled(images(2, 3, 32, 32)).shape == (2, 2048)


def test_first_layers_equal_separate_normalisation(untrained: InceptionFid) -> None:
    """Five convolutions, each with its batch normalisation done after it, and two pools."""
    tensors = random_weights().tensors
    batch = images(1, 3, SIDE, SIDE)
    features = (batch * 255 - 128) / 128
    for i, (stride, padding) in enumerate([(2, 0), (1, 0), (1, 1), (1, 0), (1, 0)]):
        weight, beta, mean, variance = (
            tensors[f"convs.{i}.{field}"] for field in ("weight", "beta", "mean", "variance")
        )
        features = F.conv2d(features, weight, None, stride, padding)
        features = F.relu(F.batch_norm(features, mean, variance, None, beta, False, 0.0, 1e-3))
        if i in (2, 4):
            features = F.max_pool2d(features, 3, 2)
            layer = "64" if i == 2 else "192"
            found = untrained(batch, [layer])[layer]
            torch.testing.assert_close(found, features, rtol=1e-4, atol=1e-4)


def test_spatial_features(untrained: InceptionFid) -> None:
    """Position (y, x), channel c of block 6d, the seven first, at place (17 y + x) 7 + c."""
    seen = []
    hook = untrained.blocks["6d"][0].register_forward_hook(lambda _, __, out: seen.extend(out))
    batch = images(2, 3, 64, 48)
    try:
        spatial = untrained.spatial_features(batch)
    finally:
        hook.remove()
    assert spatial.shape == (2, NUM_SPATIAL) == (2, 2023)
    assert [features.shape for features in seen] == [(2, 192, 17, 17)]
    for y, x, c in ((0, 0, 0), (0, 0, 6), (0, 1, 0), (1, 0, 0), (16, 3, 4), (16, 16, 6)):
        expected = seen[0][:, c, y, x]
        assert torch.equal(spatial[:, (17 * y + x) * 7 + c], expected)
    assert (spatial >= 0).all(), "after the ReLU"
    assert float((spatial > 0).float().mean()) > 0.1
    assert len(spatial.unique()) > 100


def test_pooled_and_spatial_of_one_pass(untrained: InceptionFid) -> None:
    batch = images(2, 3, 40, 40).requires_grad_()
    passes = []
    hook = untrained.blocks["1"][0].register_forward_hook(lambda *_: passes.append(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled, spatial = untrained.pooled_and_spatial(batch)
    hook.remove()
    assert passes == [1]
    assert torch.equal(pooled, untrained.pooled(batch))
    assert torch.equal(spatial, untrained.spatial_features(batch))
    assert pooled.dtype == spatial.dtype == torch.float32
    spatial.sum().backward()
    assert batch.grad is not None
    assert batch.grad.abs().sum() > 0
    assert "spatial" not in untrained.layers
    with pytest.raises(ValueError, match="sides >= 16"):
        untrained.pooled_and_spatial(images(1, 3, 8, 8))


def test_the_distance_is_called_fid(untrained: InceptionFid) -> None:
    assert metric_name(untrained) == "FID"
    assert untrained.id == "inception_fid#random"
    assert "TF1" in untrained.resize_rule


def test_resize_by_hand() -> None:
    row = torch.tensor([0.0, 1.0])
    column = torch.tensor([0.0, 10.0])
    picture = (row + column[:, None])[None, None]
    ramp = torch.tensor([0.0, 0.5, 1.0, 1.0])  # places 0, .5, 1, 1.5; the last pixel repeats
    expected = ramp + 10 * ramp[:, None]
    assert torch.equal(resize_tf1(picture, 4)[0, 0], expected)
    other = F.interpolate(picture, size=(4, 4), mode="bilinear", align_corners=False)
    assert other[0, 0, 0].tolist() == [0.0, 0.25, 0.75, 1.0]


def test_resize_keeps_and_skips_pixels() -> None:
    batch = images(2, 3, 8, 8)
    assert torch.equal(resize_tf1(batch, 8), batch)
    assert torch.equal(resize_tf1(batch, 4), batch[:, :, ::2, ::2]), "no antialiasing"


def test_how_far_half_pixel_centres_are_away() -> None:
    """On a ramp of slope 1 the two rules differ by half a pixel less half a step: 0.393 pixels."""
    ramp = torch.arange(64, dtype=torch.float64).expand(1, 1, 64, 64)
    other = F.interpolate(ramp, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    difference = (resize_tf1(ramp, SIDE) - other)[0, 0, 0, 3:-5]  # away from repeated borders
    expected = torch.full_like(difference, 0.5 - 0.5 * 64 / SIDE)
    torch.testing.assert_close(difference, expected, rtol=0, atol=1e-12)


@needs_weights
@pytest.mark.slow
def test_another_resizer_is_another_metric(genuine: InceptionFid) -> None:
    """The same 32 drawings, enlarged to 299 pixels in three ways, and their Frechet distances."""
    batches = eval_batches(open_source("bundled:emoji", "val"), 64, 8, 32)
    statistics = {name: FrechetStatistics(2048) for name in ("tf1", "bilinear", "bicubic")}
    with torch.no_grad():
        for batch in batches:
            pixels = to_uint8(batch["images"]).float() / 255
            for name, own in statistics.items():
                enlarged = pixels
                if name != "tf1":
                    size = (SIDE, SIDE)
                    enlarged = F.interpolate(pixels, size, mode=name, align_corners=False)
                    enlarged = enlarged.clamp(0, 1)  # bicubic overshoots
                own.update(genuine.pooled(enlarged))
    reference = statistics.pop("tf1")
    assert reference.count == 32
    found = {name: frechet_distance(own, reference) for name, own in statistics.items()}
    assert found["bilinear"] > 3, found  # 6.2 and 31.3 when it was added
    assert found["bicubic"] > 15, found


@needs_weights
def test_weights_are_complete() -> None:
    weights = load_weights("inception_fid")
    assert len(weights.tensors) == 4 * NUM_CONVS
    assert sum(value.numel() for value in weights.tensors.values()) == NUM_VALUES
    assert weights.weights_id.startswith("7ff4a85c")


@needs_weights
def test_half_precision_cache(
    genuine: InceptionFid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if PROVIDERS["inception_fid"].locate() is None:
        pytest.skip("weights are in the cache, the provider package is not installed")
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path))
    convert_weights("inception_fid", dtype=torch.float16)
    half = build_features("inception_fid")
    assert half.weights_id == "7ff4a85c-fp16"
    batch = images(2, 3, 64, 64)
    difference = (half.pooled(batch) - genuine.pooled(batch)).norm() / genuine.pooled(batch).norm()
    assert 0 < difference < 5e-3  # 0.26 % when it was added


@needs_weights
def test_equals_the_published_program(genuine: InceptionFid) -> None:
    """The network as its provider ships it; 255 / 255 rounding and folding differ by about 1e-5."""
    file = PROVIDERS["inception_fid"].locate()
    if file is None:
        pytest.skip("weights are in the cache, the provider package is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.load is deprecated; only this test needs it
        program = torch.jit.load(str(file), map_location="cpu").eval()
    pixels = (images(4, 3, SIDE, SIDE) * 255).round()
    with torch.no_grad():
        expected = program((pixels - 128) / 128)
        found = genuine.pooled(pixels / 255)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)
    # sFID takes the output of the program's `mixed_6.conv`: 6d's first branch is that convolution.
    tensors = program.state_dict()
    kernel, variance = (
        tensors[f"net.layers.mixed_6.conv.{field}"].double() for field in ("weight", "var")
    )
    folded = kernel * (variance + 1e-3).rsqrt()[:, None, None, None]
    own = dict(genuine.blocks["6d"][0].named_buffers())["convs.0.weight"]
    torch.testing.assert_close(own.double(), folded, rtol=1e-6, atol=0)


@needs_weights
@pytest.mark.slow
def test_documented_constants(genuine: InceptionFid) -> None:
    """FID(64), MiFID(64) and KID(2048) of the examples in the torchmetrics 1.9 documentation.

    There the network is built, with random weights, between the seed and the images: as many
    numbers (convolutions and the classifier that FID does not use) are drawn here beforehand.
    """

    class Given(nn.Module):
        """Takes the place of the network and hands on features computed before."""

        num_features = 64

        def forward(self, features: Tensor) -> Tensor:
            return features

    with torch.random.fork_rng(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # both keep all features in memory and say so
        torch.manual_seed(42)
        torch.rand(NUM_KERNEL_VALUES + 2048 * 1008 + 1008)
        draws = [
            torch.randint(low, high, (100, 3, SIDE, SIDE), dtype=torch.uint8)
            for low, high in ((0, 200), (100, 255))
        ]
        sides = []
        for draw in draws:
            maps = [genuine(batch.float() / 255, ["64", "2048"]) for batch in draw.split(10)]
            sides.append({k: torch.cat([m[k].mean((2, 3)) for m in maps]) for k in maps[0]})
        mifid = MemorizationInformedFrechetInceptionDistance(feature=Given())
        kid = KernelInceptionDistance(feature=Given(), subset_size=50)
        statistics = [FrechetStatistics(64), FrechetStatistics(64)]
        for real, side, own in zip((True, False), sides, statistics, strict=True):
            own.update(side["64"])
            mifid.update(side["64"], real=real)
            kid.update(side["2048"], real=real)
        kid_mean, kid_deviation = kid.compute()
    assert frechet_distance(*statistics) == pytest.approx(12.6388, abs=5e-4)
    assert float(mifid.compute()) == pytest.approx(3003.3691, abs=0.05)
    assert float(kid_mean) == pytest.approx(0.0312, abs=5e-5)
    assert float(kid_deviation) == pytest.approx(0.0025, abs=5e-5)
