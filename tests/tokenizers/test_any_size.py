"""Images of any multiple of the stride: the spec, crops, and what is refused."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tessella.tokenizers.any_size import crop_to_stride, encode_sizes
from tessella.tokenizers.base import Tokenizer
from tessella.tokenizers.binary_autoencoder import BinaryAutoencoderConfig
from tessella.tokenizers.build import build_tokenizer
from tessella.tokenizers.networks.conv_autoencoder import ConvAutoencoderConfig
from tessella.tokenizers.quantizers.bernoulli import BernoulliConfig
from tessella.tokenizers.quantizers.fsq import FSQConfig
from tessella.tokenizers.quantizers.lfq import LFQConfig
from tessella.tokenizers.quantizers.vq import VQConfig
from tessella.tokenizers.vqgan import VQGANConfig
from tessella.tokens.tokens import SpecMismatch, TokenSpec

NETWORKS = ConvAutoencoderConfig(
    base_channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1, norm_groups=4
)
KINDS: dict[str, Any] = {
    "lfq": VQGANConfig(resolution=32, autoencoder=NETWORKS, quantizer=LFQConfig(bits=6)),
    "vq": VQGANConfig(
        resolution=32,
        autoencoder=dataclasses.replace(NETWORKS, downsample="avg_pool", latent_channels=12),
        quantizer=VQConfig(codebook_size=16, dim=8),
    ),
    "fsq": VQGANConfig(
        resolution=32,
        pixel_range="unit",
        autoencoder=dataclasses.replace(
            NETWORKS, downsample="conv_symmetric", upsample="depth_to_space"
        ),
        quantizer=FSQConfig(levels=(5, 3)),
    ),
    "bernoulli": BinaryAutoencoderConfig(
        resolution=32, autoencoder=NETWORKS, quantizer=BernoulliConfig(bits=6)
    ),
}
LOOKING_AROUND = {
    "attention": dataclasses.replace(NETWORKS, mid_attention=True, attention_levels=(2,)),
    "adaptive_norm": dataclasses.replace(NETWORKS, adaptive_norm=True),
}


def tokenizer_of(config: Any) -> Tokenizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_tokenizer(config).eval()


def random_images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def without_norms(module: nn.Module) -> None:
    """Replace every normalization, which is over the whole image, by nothing.

    Convolutions get larger weights, or nothing of the image would reach the latents.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.GroupNorm):
            setattr(module, name, nn.Identity())
        if isinstance(child, nn.Conv2d):
            child.weight.data *= 1.6
        without_norms(child)


@pytest.mark.parametrize("kind", KINDS)
def test_the_spec_is_the_grid_of_the_image(kind: str) -> None:
    tokenizer = tokenizer_of(KINDS[kind])
    tokens = tokenizer.encode(random_images(2, 3, 20, 48), any_size=True)
    assert tokens.spec == TokenSpec((5, 12), tokenizer.spec.codebook_sizes)
    assert tokens.spec == tokenizer.spec_of(20, 48) and tokens.indices.shape[1] == 60
    decoded = tokenizer.decode(tokens, any_size=True)
    assert decoded.shape == (2, 3, 20, 48) and decoded.abs().max() <= 1
    own = random_images(2, 3, 32, 32)
    plain = tokenizer.encode(own)
    assert tokenizer.encode(own, any_size=True).equal(plain)
    assert torch.equal(tokenizer.decode(plain, any_size=True), tokenizer.decode(plain))


@pytest.mark.parametrize("kind", KINDS)
def test_inside_a_crop_tokens_and_pixels_are_those_of_the_image(kind: str) -> None:
    """Exact where no receptive field reaches the border of the crop, once the normalizations,
    which are over the whole image, are taken out. Of these networks, by a pixel or a latent that is
    not a number: a token sees 9 tokens far, a pixel 44 pixels, which are 11 tokens."""
    tokenizer = tokenizer_of(KINDS[kind])
    without_norms(tokenizer)
    images = random_images(1, 3, 208, 208)
    crop = images[..., 8:200, 8:200]
    whole, part = (tokenizer.encode(i, any_size=True) for i in (images, crop))
    grids = whole.indices.view(52, 52, -1)[2:50, 2:50], part.indices.view(48, 48, -1)
    assert torch.equal(grids[0][9:39, 9:39], grids[1][9:39, 9:39])
    assert not torch.equal(grids[0], grids[1])
    pictures = [tokenizer.decode(t, any_size=True) for t in (whole, part)]
    inside = (pictures[0][0, :, 8:200, 8:200], pictures[1][0])
    torch.testing.assert_close(
        inside[0][:, 80:112, 80:112], inside[1][:, 80:112, 80:112], rtol=0, atol=1e-5
    )


def test_with_normalizations_most_of_a_crop_is_the_same() -> None:
    """A quarter of noise has nearly the statistics of the whole."""
    tokenizer = tokenizer_of(KINDS["lfq"])
    images = random_images(1, 3, 128, 128)
    whole, part = (
        tokenizer.encode(i, any_size=True).bits() for i in (images, images[..., 32:96, 32:96])
    )
    same = whole.view(32, 32, 6)[8:24, 8:24][4:12, 4:12] == part.view(16, 16, 6)[4:12, 4:12]
    assert 0.9 < same.float().mean() < 1


@pytest.mark.parametrize("kind", LOOKING_AROUND)
def test_autoencoders_that_look_at_the_whole_image(kind: str) -> None:
    config = VQGANConfig(
        resolution=32, autoencoder=LOOKING_AROUND[kind], quantizer=LFQConfig(bits=6)
    )
    tokenizer = tokenizer_of(config)
    tokens = tokenizer.encode(random_images(1, 3, 24, 64), any_size=True)
    assert tokenizer.decode(tokens, any_size=True).shape == (1, 3, 24, 64)


def test_bits_are_drawn_at_any_size() -> None:
    config = dataclasses.replace(
        KINDS["bernoulli"], quantizer=BernoulliConfig(bits=6, draw="always")
    )
    tokenizer, images = tokenizer_of(config), random_images(1, 3, 16, 40)
    one, two = (
        tokenizer.encode(images, rng=torch.Generator().manual_seed(3), any_size=True)
        for _ in range(2)
    )
    assert one.equal(two) and one.spec.shape == (4, 10)
    assert not one.equal(tokenizer.encode(images, any_size=True))


def test_other_sizes_are_refused() -> None:
    tokenizer = tokenizer_of(KINDS["lfq"])
    for shape in ((1, 3, 30, 32), (1, 3, 32, 0), (1, 3, 4, 6)):
        with pytest.raises(ValueError, match=r"pixels \(height x width\), expected multiples of"):
            tokenizer.encode(torch.zeros(shape), any_size=True)
    with pytest.raises(ValueError, match=r"expected \(B, 3, 32, 64\), found \(1, 1, 32, 64\)"):
        tokenizer.encode(torch.zeros(1, 1, 32, 64), any_size=True)
    with pytest.raises(ValueError, match=r"expected \(B, 3, 32, 32\), found \(1, 3, 32, 64\)"):
        tokenizer.encode(torch.zeros(1, 3, 32, 64))
    wide = tokenizer.encode(torch.zeros(1, 3, 32, 64), any_size=True)
    with pytest.raises(SpecMismatch):
        tokenizer.decode(wide)
    other = tokenizer_of(KINDS["vq"]).encode(torch.zeros(1, 3, 32, 64), any_size=True)
    with pytest.raises(SpecMismatch):
        tokenizer.decode(other, any_size=True)
    tokenizer.stride = None
    with pytest.raises(ValueError, match="this tokenizer reads 32x32 pixels only"):
        tokenizer.encode(torch.zeros(1, 3, 32, 64), any_size=True)


def test_images_of_several_sizes_come_back_in_order() -> None:
    tokenizer = tokenizer_of(KINDS["lfq"])
    sizes = [(8, 12), (16, 16), (8, 12), (12, 8), (8, 12)]
    images = [random_images(3, *size).roll(i) for i, size in enumerate(sizes)]
    found = encode_sizes(tokenizer, images, batch_size=2)
    for image, tokens in zip(images, found, strict=True):
        assert tokens.equal(tokenizer.encode(image[None], any_size=True))
    with pytest.raises(ValueError, match="expected multiples of the stride 4"):
        encode_sizes(tokenizer, [*images, torch.zeros(3, 9, 8)])
    with pytest.raises(ValueError, match="batch_size: expected at least 1, found 0"):
        encode_sizes(tokenizer, images, batch_size=0)
    assert encode_sizes(tokenizer, []) == []


def test_crops_to_the_stride() -> None:
    image = torch.arange(7 * 11).view(1, 7, 11)
    assert torch.equal(crop_to_stride(image, 4), image[:, 1:5, 1:9])
    assert crop_to_stride(torch.zeros(2, 3, 8, 4), 4).shape == (2, 3, 8, 4)
    with pytest.raises(ValueError, match="found 3x11 pixels"):
        crop_to_stride(image[:, :3], 4)
