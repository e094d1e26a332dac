"""Discriminators: published parameter counts, logit maps, the blur."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tessella
from tessella.config import build_config, read_yaml
from tessella.train.discriminator import (
    BlurDiscriminatorConfig,
    BlurDownsample,
    PatchDiscriminatorConfig,
    build_discriminator,
)
from tessella.train.tokenizer_recipe import TrainTokenizerConfig


def random_images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "config,parameters,size",
    [(PatchDiscriminatorConfig(), 2_765_633, 30), (BlurDiscriminatorConfig(), 7_431_297, 16)],
    ids=["patch", "blur"],
)
def test_published_size(config, parameters: int, size: int) -> None:
    with torch.device("meta"):
        model = build_discriminator(config)
        logits = model(torch.empty(2, 3, 256, 256))
    assert count(model) == parameters
    assert logits.shape == (2, 1, size, size)


def test_three_stages_are_the_small_blur_discriminator() -> None:
    """1.91 M parameters, as bytedance/1d-tokenizer uses it."""
    with torch.device("meta"):
        assert round(count(build_discriminator(BlurDiscriminatorConfig(num_stages=3))) / 1e4) == 191


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("stages,pooled", [(2, 4), (3, 2)])
def test_small_blur_discriminator(size: int, stages: int, pooled: int) -> None:
    config = BlurDiscriminatorConfig(
        base_channels=8, num_stages=stages, output_size=pooled, norm_groups=4
    )
    model = build_discriminator(config)
    logits = model(random_images(2, 3, size, size))
    assert logits.shape == (2, 1, pooled, pooled)
    logits.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_small_patch_discriminator(norm: str) -> None:
    model = build_discriminator(PatchDiscriminatorConfig(base_channels=8, num_layers=2, norm=norm))
    assert model(random_images(2, 3, 32, 32)).shape == (2, 1, 6, 6)
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == (norm == "batch")


def test_patch_weights_start_at_a_fiftieth() -> None:
    torch.manual_seed(0)
    model = build_discriminator(PatchDiscriminatorConfig(base_channels=32))
    weights = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, nn.Conv2d)])
    assert abs(weights.mean().item()) < 4 * 0.02 / len(weights) ** 0.5
    assert weights.std().item() == pytest.approx(0.02, rel=4 / (2 * len(weights)) ** 0.5)


def test_blur_kernel_sums_to_one_and_passes_a_constant() -> None:
    blur = BlurDownsample(3)
    assert blur.kernel.sum().item() == pytest.approx(1.0)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    torch.testing.assert_close(blur.kernel[0, 0] * 64, torch.outer(taps, taps))
    out = blur(torch.full((1, 3, 16, 16), 0.7))
    assert out.shape == (1, 3, 8, 8)
    torch.testing.assert_close(out[..., 1:-1, 1:-1], torch.full((1, 3, 6, 6), 0.7))
    assert not blur.state_dict()


def test_blur_is_depthwise() -> None:
    x = torch.zeros(1, 3, 8, 8)
    x[:, 1] = 1
    out = BlurDownsample(3)(x)
    assert out[:, 1].all()
    assert not out[:, 0].any()
    assert not out[:, 2].any()


def test_impossible_configs_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of norm_groups 32, found 24"):
        BlurDiscriminatorConfig(base_channels=24)
    with pytest.raises(ValueError, match="found 64 and 0"):
        PatchDiscriminatorConfig(num_layers=0)


def test_batches_of_one_call_keep_their_own_statistics() -> None:
    """BatchNorm must see real and generated images apart, as in two calls."""
    torch.manual_seed(0)
    discriminator = build_discriminator(PatchDiscriminatorConfig(base_channels=8, num_layers=2))
    images, fakes = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32) - 1
    together = discriminator(images, fakes)
    apart = torch.cat([discriminator(images), discriminator(fakes)])
    torch.testing.assert_close(together, apart)
    assert not torch.allclose(together, discriminator(torch.cat([images, fakes])), atol=1e-3)


@pytest.mark.parametrize(
    "kind,sizes",
    [
        (PatchDiscriminatorConfig, {"base_channels": 8, "num_layers": 2, "norm": "group"}),
        (BlurDiscriminatorConfig, {"base_channels": 8, "num_stages": 2, "output_size": 4}),
    ],
)
def test_unit_pixels_are_what_the_network_reads(kind: type, sizes: dict) -> None:
    """Zero padding is black in [0, 1] and grey in [-1, 1], so no other weights make up for it."""
    groups = {"norm_groups": 4} if kind is BlurDiscriminatorConfig else {}
    unit, symmetric = (
        build_discriminator(kind(**sizes, **groups, pixel_range=name))
        for name in ("unit", "symmetric")
    )
    symmetric.load_state_dict(unit.state_dict())
    real, fake = random_images(2, 3, 32, 32), random_images(2, 3, 32, 32).flip(0)
    assert torch.equal(unit(real, fake), symmetric((real + 1) / 2, (fake + 1) / 2))
    assert (unit(real) - symmetric(real)).abs().max() > 1e-3


def test_recipes_of_unit_networks_have_unit_discriminators() -> None:
    """MaskBit, VQGAN+, BLD and BiGR feed [0, 1]; a saved config without the key keeps [-1, 1]."""
    found = {}
    for path in sorted((Path(tessella.__file__).parent / "configs/tokenizer").glob("*.yaml")):
        data = read_yaml(path)
        if "adversarial" in data:
            config = build_config(TrainTokenizerConfig, data, name=path.name)
            found[path.stem] = (
                config.tokenizer.pixel_range,
                config.adversarial.discriminator.pixel_range,
            )
    assert all(tokenizer == discriminator for tokenizer, discriminator in found.values()), found
    assert [ranges[0] for ranges in found.values()].count("unit") == 8
    assert PatchDiscriminatorConfig().pixel_range == "symmetric"
    assert BlurDiscriminatorConfig().pixel_range == "symmetric"
