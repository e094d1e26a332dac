"""The binary autoencoder: published parameter counts, layout, what is random and what is not."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tessella
from tessella.checkpoints import load_tokenizer, save_tokenizer
from tessella.config import build_config, read_yaml
from tessella.tokenizers.base import Tokenizer
from tessella.tokenizers.binary_autoencoder import BinaryAutoencoder, BinaryAutoencoderConfig
from tessella.tokenizers.build import TokenizerConfig, build_tokenizer
from tessella.tokenizers.networks.conv_autoencoder import (
    ConvAutoencoderConfig,
    Decoder,
    Encoder,
    ResBlock,
    to_positions,
)
from tessella.tokenizers.quantizers.bernoulli import BernoulliConfig

CONFIGS = Path(tessella.__file__).parent / "configs" / "tokenizer"
TINY = ConvAutoencoderConfig(
    base_channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    norm_groups=4,
    conv_bias=True,
    attention_levels=(1,),
    mid_attention=True,
    head_kernel_size=3,
    head_activation=False,
    latent_norm=True,
)


def tiny(draw: str = "training", **settings: object) -> BinaryAutoencoder:
    torch.manual_seed(0)
    quantizer = BernoulliConfig(bits=6, dim=8, draw=draw, **settings)
    config = BinaryAutoencoderConfig(
        resolution=16, pixel_range="unit", autoencoder=TINY, quantizer=quantizer
    )
    model = build_tokenizer(config)
    assert isinstance(model, BinaryAutoencoder)
    return model


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=seeded(seed)) * 2 - 1


def unused_in_public(network: nn.Module) -> int:
    """Parameters of the 1x1 shortcuts that the public model stores where channels match."""
    widths = [
        block.conv1.in_channels
        for block in network.modules()
        if isinstance(block, ResBlock) and block.conv1.in_channels == block.conv1.out_channels
    ]
    return sum(width**2 + width for width in widths)


LOGSIGMA = 147_971
"""Parameters of a head of the public decoder that nothing uses: 3x3 to 128, 1x1 to 3 channels."""


@pytest.mark.parametrize(
    "name,changes,encoder,quantizer,decoder,total",
    [
        ("bigr_d24_256", {}, 30_349_568, 12_312, 35_168_774, 65_530_654),
        ("bigr_d32_256", {}, 30_349_568, 16_416, 35_168_774, 65_534_758),
        ("bld_c64_256", {}, 30_349_568, 32_832, 35_168_774, 65_551_174),
        ("bld_c128_256", {}, 30_349_568, 65_664, 71_785_990, 102_201_222),
        (
            "bigr_d32_256",
            {"resolution": 512, "autoencoder": {"attention_levels": ()}},
            28_246_272,
            16_416,
            33_065_478,
            61_328_166,
        ),
        ("bld_1024", {}, None, 32_832, None, 86_001_478),
    ],
    ids=["d24", "d32", "c64", "c128", "d32_512", "c64_1024"],
)
def test_published_parameters(
    name: str, changes: dict, encoder: int | None, quantizer: int, decoder: int | None, total: int
) -> None:
    """Ours and the unused ones are the published counts, network by network."""
    config = build_config(TokenizerConfig, read_yaml(CONFIGS / f"{name}.yaml")["tokenizer"])
    networks = dataclasses.replace(config.autoencoder, **changes.pop("autoencoder", {}))
    with torch.device("meta"):
        model = build_tokenizer(dataclasses.replace(config, autoencoder=networks, **changes))
    counts = model.num_parameters()
    in_encoder = counts["encoder"] + unused_in_public(model.encoder)
    in_decoder = counts["decoder"] + unused_in_public(model.decoder) + LOGSIGMA
    assert counts["quantizer"] == quantizer
    assert in_encoder + quantizer + in_decoder == total
    if encoder is not None:
        assert (in_encoder, in_decoder) == (encoder, decoder)
    side = {256: 16, 512: 32, 1024: 32}[model.resolution]
    assert model.spec.shape == (side, side)
    assert model.spec.codebook_sizes == (2,) * model.config.quantizer.bits


def test_no_activation_before_the_last_convolution() -> None:
    torch.manual_seed(0)
    encoder, decoder = Encoder(TINY, 8), Decoder(TINY, 8)
    images, latents = random_images(1, 3, 16, 16), random_images(1, 8, 8, 8)
    for network, x in ((encoder, images), (decoder, latents)):
        for last in (network.norm_out.weight, network.conv_out.weight, network.conv_out.bias):
            nn.init.zeros_(last)
        nn.init.constant_(network.norm_out.bias, -2.0)
        with torch.no_grad():
            network.conv_out.weight[:, :, 1, 1] = 1 / 8
        linear = network(x)
        expected = -2.0 * network.conv_out.in_channels / 8
        torch.testing.assert_close(linear, torch.full_like(linear, expected))
        network.head_activation = nn.SiLU()
        torch.testing.assert_close(
            network(x), torch.full_like(linear, expected * torch.sigmoid(torch.tensor(-2.0)).item())
        )


def test_the_decoder_normalizes_its_latents() -> None:
    """So the number of set bits does not show in their size."""
    torch.manual_seed(0)
    latents = random_images(1, 8, 8, 8)
    normalized = Decoder(TINY, 8)
    torch.testing.assert_close(normalized(latents), normalized(100 * latents), rtol=1e-4, atol=1e-4)
    plain = Decoder(dataclasses.replace(TINY, latent_norm=False), 8)
    assert (plain(latents) - plain(100 * latents)).abs().max() > 0.1
    found = normalized.latent_norm(latents)
    groups = latents.view(1, 4, -1)
    spread = groups.var(-1, correction=0, keepdim=True).add(1e-6).sqrt()
    expected = ((groups - groups.mean(-1, keepdim=True)) / spread).view(1, 8, 8, 8)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_groups_must_divide_the_latents() -> None:
    with pytest.raises(ValueError, match=r"norm_groups 4 does not divide .* 6 channels"):
        Decoder(TINY, 6)


def test_pixels_are_in_the_unit_range() -> None:
    model, images = tiny(), random_images(2, 3, 16, 16)
    with torch.no_grad():
        latents = to_positions(model.encoder((images + 1) / 2))
    torch.testing.assert_close(model.probabilities(images), model.quantizer.probabilities(latents))


@pytest.mark.parametrize("draw", ["training", "never"])
def test_the_same_images_give_the_same_tokens(draw: str) -> None:
    model, images = tiny(draw), random_images(2, 3, 16, 16)
    tokens = model.encode(images)
    for training in (True, False):
        assert model.train(training).encode(images, rng=seeded(1)).equal(tokens)
    assert torch.equal(tokens.indices, (model.probabilities(images) > 0.5).long())
    assert torch.equal(model.decode(tokens), model.decode(tokens, rng=seeded(1)))


def test_encoding_draws_where_the_config_says_so_and_an_rng_is_given() -> None:
    model, images = tiny("always"), random_images(2, 3, 16, 16)
    before = torch.get_rng_state()
    first, again, other = (model.encode(images, rng=seeded(s)) for s in (0, 0, 1))
    assert first.equal(again) and not first.equal(other)
    assert first.equal(model.sample_bits(images, seeded(0)))
    assert model.encode(images).equal(tiny().encode(images))
    assert torch.equal(torch.get_rng_state(), before)


def test_sampled_bits_follow_the_probabilities() -> None:
    """400 draws of 384 bits: the mean of each within five standard errors."""
    model, image = tiny(), random_images(1, 3, 16, 16)
    rng = seeded(0)
    p = model.probabilities(image)
    bits = torch.cat([model.sample_bits(image, rng).indices for _ in range(400)])
    assert bits.shape == (400, 64, 6)
    error = (p * (1 - p) / 400).sqrt()
    assert ((bits.double().mean(0) - p[0]).abs() <= 5 * error[0]).all()


def test_training_draws_belong_to_the_rng() -> None:
    model, images = tiny(), random_images(2, 3, 16, 16)
    before = torch.get_rng_state()
    first, again, other = (model(images, rng=seeded(s)) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.tokens.indices, other.tokens.indices)
    assert torch.equal(first.tokens.indices, model.sample_bits(images, seeded(0)).indices)
    raw = model._images(model.quantizer.lookup(first.tokens.indices), model.spec)
    torch.testing.assert_close(first.images, raw, rtol=0, atol=1e-6)


@pytest.mark.parametrize("free_nats", [None, 0.01])
def test_the_gradient_reaches_every_weight(free_nats: float | None) -> None:
    """No weight is idle, so several processes can train it."""
    model, images = tiny(free_nats=free_nats), random_images(2, 3, 16, 16)
    out = model(images, rng=seeded(0))
    (out.images - images).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert tuple(out.losses) == model.loss_names
    assert len(out.losses) == 1 + (free_nats is not None)


@pytest.mark.parametrize("ask", [Tokenizer.encode, BinaryAutoencoder.sample_bits])
def test_faults_are_reported_however_bits_are_asked_for(ask) -> None:
    model, method = tiny(), getattr(BinaryAutoencoder, ask.__name__)
    with pytest.raises(ValueError, match=r"expected \(B, 3, 16, 16\)"):
        method(model, random_images(1, 3, 8, 8))
    nn.init.constant_(model.encoder.conv_out.weight, float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        method(model, random_images(1, 3, 16, 16))


def test_a_folder_gives_the_same_model_back(tmp_path: Path) -> None:
    model, images = tiny("always").eval(), random_images(2, 3, 16, 16)
    save_tokenizer(model, tmp_path / "model")
    loaded = load_tokenizer(tmp_path / "model")
    assert isinstance(loaded, BinaryAutoencoder)
    assert loaded.encode(images, rng=seeded(3)).equal(model.encode(images, rng=seeded(3)))
