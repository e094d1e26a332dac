"""VQGAN: published parameter counts, shapes, the legacy shortcut, memory layout, gradients."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from tessella.tests.cases import over
from tessella.tokenizers.base import Tokenizer
from tessella.tokenizers.build import build_tokenizer
from tessella.tokenizers.networks.conv_autoencoder import (
    AdaptiveNorm,
    Attention,
    ConvAutoencoderConfig,
    Decoder,
    Downsample,
    Encoder,
    ResBlock,
    Upsample,
    to_grid,
    to_positions,
)
from tessella.tokenizers.quantizers.bsq import BSQConfig
from tessella.tokenizers.quantizers.build import QuantizerConfig
from tessella.tokenizers.quantizers.ema_vq import EMAVQConfig
from tessella.tokenizers.quantizers.fsq import FSQConfig
from tessella.tokenizers.quantizers.lfq import LFQConfig
from tessella.tokenizers.quantizers.vq import VQConfig
from tessella.tokenizers.vqgan import VQGANConfig

LEGACY = ConvAutoencoderConfig(shortcut="legacy")
MASKGIT = ConvAutoencoderConfig(shortcut="legacy", downsample="avg_pool")
TAMING = ConvAutoencoderConfig(
    num_res_blocks_decoder=3,
    conv_bias=True,
    attention_levels=(4,),
    mid_attention=True,
    head_kernel_size=3,
    latent_channels=256,
)
LLAMAGEN_8 = ConvAutoencoderConfig(
    channel_multipliers=(1, 2, 2, 4),
    num_res_blocks_decoder=3,
    conv_bias=True,
    attention_levels=(3,),
    mid_attention=True,
    head_kernel_size=3,
    latent_channels=256,
)
OPEN_MAGVIT2 = ConvAutoencoderConfig(
    num_res_blocks=4,
    num_mid_blocks=4,
    downsample="conv_symmetric",
    upsample="depth_to_space",
    adaptive_norm=True,
)
TINY = ConvAutoencoderConfig(base_channels=8, channel_multipliers=(1, 2), norm_groups=4)


def build_meta(autoencoder: ConvAutoencoderConfig, quantizer: QuantizerConfig) -> Tokenizer:
    with torch.device("meta"):
        return build_tokenizer(VQGANConfig(autoencoder=autoencoder, quantizer=quantizer))


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(
    "bits,encoder,decoder,total",
    [
        (10, 25_124_234, 29_344_771, 54_469_005),
        (12, None, None, 54_479_247),
        (14, None, None, 54_489_489),
        (16, None, None, 54_499_731),
        (18, 25_128_338, 29_381_635, 54_509_973),
    ],
)
def test_maskbit_parameters(
    bits: int, encoder: int | None, decoder: int | None, total: int
) -> None:
    counts = build_meta(LEGACY, LFQConfig(bits=bits)).num_parameters()
    assert counts["total"] == total
    assert counts["quantizer"] == 0
    if encoder is not None:
        assert (counts["encoder"], counts["decoder"]) == (encoder, decoder)


@pytest.mark.parametrize(
    "autoencoder,quantizer,encoder,decoder,total",
    [
        (LEGACY, VQConfig(codebook_size=1024, dim=256), 25_250_432, 30_478_339, 55_990_915),
        (LEGACY, VQConfig(codebook_size=4096, dim=64), 25_151_936, 29_593_603, 55_007_683),
        (MASKGIT, VQConfig(codebook_size=1024, dim=256), 23_775_104, 30_478_339, 54_515_587),
        (TAMING, VQConfig(codebook_size=1024, dim=256), 29_298_176, 42_449_795, 72_141_699),
        (TAMING, VQConfig(codebook_size=16384, dim=8), None, None, 71_883_403),
        (LLAMAGEN_8, VQConfig(codebook_size=16384, dim=8), None, None, 70_109_835),
    ],
    ids=["vqgan_plus_10", "vqgan_plus_12", "maskgit", "taming", "llamagen_16", "llamagen_8"],
)
def test_published_parameters(
    autoencoder: ConvAutoencoderConfig,
    quantizer: VQConfig,
    encoder: int | None,
    decoder: int | None,
    total: int,
) -> None:
    counts = build_meta(autoencoder, quantizer).num_parameters()
    assert counts["total"] == total
    assert counts["quantizer"] == quantizer.codebook_size * quantizer.dim
    if encoder is not None:
        assert (counts["encoder"], counts["decoder"]) == (encoder, decoder)


def test_open_magvit2_parameters() -> None:
    counts = build_meta(OPEN_MAGVIT2, LFQConfig(bits=18)).num_parameters()
    assert (counts["encoder"], counts["decoder"]) == (49_751_442, 65_376_387)
    assert counts["total"] == 115_127_829


def test_both_shortcuts_have_their_widths() -> None:
    """Legacy projections map the branch output, proper ones the block input."""
    for shortcut, in_channels in (("legacy", 16), ("projection", 8)):
        config = ConvAutoencoderConfig(base_channels=8, norm_groups=4, shortcut=shortcut)
        block = ResBlock(8, 16, config)
        assert block.shortcut is not None
        assert tuple(block.shortcut.weight.shape) == (16, in_channels, 1, 1)
    assert ResBlock(8, 8, config).shortcut is None


@pytest.mark.parametrize("shortcut", ["legacy", "projection"])
def test_a_zero_second_convolution_shows_the_skip_path(shortcut: str) -> None:
    config = ConvAutoencoderConfig(base_channels=8, norm_groups=4, shortcut=shortcut)
    x = random_images(2, 8, 6, 6)
    widening, equal = ResBlock(8, 16, config), ResBlock(8, 8, config)
    for block in (widening, equal):
        nn.init.zeros_(block.conv2.weight)
    assert torch.equal(equal(x), x)
    out = widening(x)
    if shortcut == "legacy":
        assert not out.any()
    else:
        assert torch.equal(out, widening.shortcut(x))


@over("rows,columns", [(1, 1), (2, 3), (4, 1)])
@over(
    "changes",
    [
        {},
        {"downsample": "avg_pool"},
        {"attention_levels": (2,), "mid_attention": True},
        {"downsample": "conv_symmetric", "upsample": "depth_to_space", "num_mid_blocks": 1},
    ],
)
def test_shapes_follow_the_stride(rows: int, columns: int, changes: dict) -> None:
    config = ConvAutoencoderConfig(
        base_channels=4, channel_multipliers=(1, 2, 1, 2, 4), norm_groups=4, **changes
    )
    assert config.stride == 16
    latents = Encoder(config, 5)(random_images(2, 3, 16 * rows, 16 * columns))
    assert latents.shape == (2, 5, rows, columns)
    assert Decoder(config, 5)(latents).shape == (2, 3, 16 * rows, 16 * columns)


def test_positions_are_row_major() -> None:
    grid = torch.arange(12.0).view(1, 2, 2, 3)
    positions = to_positions(grid)
    assert positions[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(to_grid(positions, (2, 3)), grid)


@pytest.mark.parametrize("size", [2, 4, 16])
def test_downsampling_pads_like_same(size: int) -> None:
    """SAME: max((ceil(i / s) - 1) s + k - i, 0) in total, the smaller half first."""
    module = Downsample(4, TINY)
    x = random_images(1, 4, size, size)
    total = max((math.ceil(size / 2) - 1) * 2 + 3 - size, 0)
    low, high = total // 2, total - total // 2
    padded = nn.functional.pad(x, (low, high, low, high))
    expected = nn.functional.conv2d(padded, module.conv.weight, module.conv.bias, stride=2)
    assert torch.equal(module(x), expected)
    assert (low, high) == (0, 1)


def test_symmetric_downsampling_pads_all_sides() -> None:
    config = dataclasses.replace(TINY, downsample="conv_symmetric")
    module, x = Downsample(4, config), random_images(1, 4, 6, 6)
    expected = nn.functional.conv2d(x, module.conv.weight, module.conv.bias, stride=2, padding=1)
    assert torch.equal(module(x), expected)


def test_depth_to_space_fills_cells_row_by_row() -> None:
    """Blocks of C channels are the upper left, upper right, lower left and lower right pixels."""
    module = Upsample(2, dataclasses.replace(TINY, upsample="depth_to_space"))
    assert tuple(module.conv.weight.shape) == (8, 2, 3, 3)
    nn.init.zeros_(module.conv.weight)
    with torch.no_grad():
        module.conv.bias.copy_(torch.arange(8.0))
    out = module(torch.zeros(1, 2, 2, 3))
    assert out.shape == (1, 2, 4, 6)
    assert out[0, 0, :2, :2].tolist() == [[0, 2], [4, 6]]
    assert out[0, 1, 2:, 4:].tolist() == [[1, 3], [5, 7]]


def test_adaptive_norm_follows_the_latents() -> None:
    module = AdaptiveNorm(8, 3, TINY)
    x, latents = random_images(2, 8, 4, 4), random_images(2, 3, 2, 5, seed=1)
    flat = to_positions(latents)
    mean = flat.mean(1)
    std = ((flat - mean[:, None]).square().sum(1) / 9 + 1e-6).sqrt()
    scale, bias = module.scale(std), module.bias(mean)
    groups = x.reshape(2, 4, -1)
    normed = (groups - groups.mean(-1, keepdim=True)) / (
        groups.var(-1, keepdim=True, correction=0) + 1e-6
    ).sqrt()
    expected = normed.reshape(x.shape) * scale[:, :, None, None] + bias[:, :, None, None]
    torch.testing.assert_close(module(x, latents), expected, rtol=1e-5, atol=1e-5)


def test_adaptive_norm_stands_before_every_decoder_level() -> None:
    config = dataclasses.replace(TINY, adaptive_norm=True, norm_groups=4)
    decoder = Decoder(config, 3)
    widths = [norm.scale.out_features for norm in decoder.adaptive_norms]
    assert widths == [16, 16] and len(decoder.levels) == 2
    for norm in decoder.adaptive_norms:
        for linear in (norm.scale, norm.bias):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
    first, second = (decoder(random_images(1, 3, 4, 4, seed=seed)) for seed in (0, 1))
    assert torch.equal(first, second)  # nothing but the norms' output reaches the levels


def test_adaptive_norm_needs_two_positions() -> None:
    config = dataclasses.replace(TINY, adaptive_norm=True)
    with pytest.raises(ValueError, match="adaptive_norm: needs two positions or more"):
        VQGANConfig(resolution=2, autoencoder=config, quantizer=LFQConfig(bits=4))


def test_attention_is_single_head_with_residual() -> None:
    module = Attention(8, TINY)
    x = random_images(2, 8, 3, 5)
    h = to_positions(module.norm(x))
    q, k, v = (h @ p.weight[:, :, 0, 0].T + p.bias for p in (module.q, module.k, module.v))
    mixed = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(8), dim=-1) @ v
    expected = x + module.out(to_grid(mixed, (3, 5)))
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)


def test_channels_last_is_only_a_memory_layout() -> None:
    torch.manual_seed(0)
    model = build_tokenizer(
        VQGANConfig(resolution=16, autoencoder=TINY, quantizer=LFQConfig(bits=4))
    )
    weight = model.encoder.levels[0].blocks[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    images = random_images(2, 3, 16, 16)
    rows = model(images)
    columns = model(images.contiguous(memory_format=torch.channels_last))
    assert torch.equal(rows.images, columns.images)
    plain = model.to(memory_format=torch.contiguous_format)
    with torch.no_grad():
        latents = plain.encoder(images)
    torch.testing.assert_close(to_positions(latents), model._latents(images), rtol=1e-4, atol=1e-5)


@over(
    "quantizer",
    [
        VQConfig(codebook_size=16, dim=4),
        VQConfig(codebook_size=16, dim=4, normalize=True, gradient="rotation"),
        EMAVQConfig(codebook_size=16, dim=4),
        LFQConfig(bits=4),
        BSQConfig(bits=4),
        FSQConfig(levels=(8, 5, 5)),
    ],
    ids=["vq", "vq_rotation", "ema_vq", "lfq", "bsq", "fsq"],
)
@over(
    "changes",
    [{}, {"latent_channels": 6}, {"adaptive_norm": True, "upsample": "depth_to_space"}],
    ids=["plain", "projected", "adaptive"],
)
def test_reconstruction_gradient_reaches_every_weight(
    quantizer: QuantizerConfig, changes: dict
) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, **changes)
    model = build_tokenizer(VQGANConfig(resolution=16, autoencoder=config, quantizer=quantizer))
    images = random_images(2, 3, 16, 16)
    (model(images).images - images).square().mean().backward()
    for name, parameter in model.named_parameters():
        if name != "quantizer.codebook":  # the straight-through estimator passes it by
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    assert model.last_layer.grad is not None


def test_unit_pixel_range_shifts_both_ends() -> None:
    torch.manual_seed(0)
    quantizer = LFQConfig(bits=4)
    symmetric, unit = (
        build_tokenizer(
            VQGANConfig(resolution=16, autoencoder=TINY, quantizer=quantizer, pixel_range=name)
        )
        for name in ("symmetric", "unit")
    )
    unit.load_state_dict(symmetric.state_dict())
    images = random_images(2, 3, 16, 16)
    torch.testing.assert_close(unit._latents(images), symmetric._latents((images + 1) / 2))
    tokens = unit.encode(images)
    raw = symmetric._images(symmetric.quantizer.lookup(tokens.indices), symmetric.spec)
    torch.testing.assert_close(unit.decode(tokens), (2 * raw - 1).clamp(-1, 1))


def test_weights_that_are_not_finite_are_reported() -> None:
    model = build_tokenizer(
        VQGANConfig(resolution=16, autoencoder=TINY, quantizer=LFQConfig(bits=4))
    )
    nn.init.constant_(model.encoder.conv_out.weight, float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        model.encode(random_images(1, 3, 16, 16))


@pytest.mark.parametrize(
    "settings,found",
    [
        ({"base_channels": 24}, "norm_groups: 32 does not divide the width 24"),
        ({"channel_multipliers": ()}, "channel_multipliers"),
        ({"attention_levels": (5,)}, "attention_levels.*found 5"),
        ({"num_res_blocks": 0}, "num_res_blocks.*found 0"),
        ({"num_mid_blocks": 0}, "num_mid_blocks.*found 0"),
    ],
)
def test_impossible_networks_are_refused(settings: dict, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        ConvAutoencoderConfig(**settings)


@pytest.mark.parametrize("resolution", [8, 250])
def test_resolution_must_fit_the_stride(resolution: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of the stride 16, found {resolution}"):
        VQGANConfig(resolution=resolution, quantizer=LFQConfig(bits=4))
