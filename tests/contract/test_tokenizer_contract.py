"""What every tokenizer promises, over one list of tiny ones; a new tokenizer is added to it."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tessella.checkpoints import load_tokenizer, save_tokenizer
from tessella.tests.cases import naming
from tessella.tests.folders import assert_same
from tessella.tokenizers.base import Tokenizer
from tessella.tokenizers.binary_autoencoder import BinaryAutoencoderConfig
from tessella.tokenizers.build import TokenizerConfig, build_tokenizer
from tessella.tokenizers.networks.conv_autoencoder import ConvAutoencoderConfig
from tessella.tokenizers.quantizers.bernoulli import BernoulliConfig
from tessella.tokenizers.quantizers.bsq import BSQConfig
from tessella.tokenizers.quantizers.build import QuantizerConfig
from tessella.tokenizers.quantizers.ema_vq import EMAVQConfig
from tessella.tokenizers.quantizers.fsq import FSQConfig
from tessella.tokenizers.quantizers.lfq import LFQConfig
from tessella.tokenizers.quantizers.vq import VQConfig
from tessella.tokenizers.vqgan import VQGANConfig
from tessella.tokens.tokens import SpecMismatch, Tokens, TokenSpec

RESOLUTION = 16


def tiny(
    quantizer: QuantizerConfig, pixel_range: str = "symmetric", **network: object
) -> TokenizerConfig:
    """A VQGAN of a few thousand weights: 16 pixels, 8x8 tokens."""
    settings = {"base_channels": 8, "channel_multipliers": (1, 2), "norm_groups": 4}
    kind = BinaryAutoencoderConfig if isinstance(quantizer, BernoulliConfig) else VQGANConfig
    return kind(
        resolution=RESOLUTION,
        pixel_range=pixel_range,
        autoencoder=ConvAutoencoderConfig(**(settings | network)),
        quantizer=quantizer,
    )


TOKENIZERS: dict[str, TokenizerConfig] = {
    "vq": tiny(VQConfig(codebook_size=32, dim=4)),
    "vq_entropy": tiny(VQConfig(codebook_size=32, dim=4, entropy_temperature=0.1)),
    "vq_sphere_rotation": tiny(
        VQConfig(codebook_size=32, dim=4, normalize=True, gradient="rotation")
    ),
    "ema_vq": tiny(EMAVQConfig(codebook_size=32, dim=4)),
    "ema_vq_sphere": tiny(EMAVQConfig(codebook_size=32, dim=4, normalize=True)),
    "lfq": tiny(LFQConfig(bits=6)),
    "lfq_80_bits": tiny(LFQConfig(bits=80, entropy_group_bits=10)),
    "bsq": tiny(BSQConfig(bits=6)),
    "fsq": tiny(FSQConfig(levels=(8, 5, 5))),
    "bernoulli": tiny(
        BernoulliConfig(bits=6, dim=8, draw="never"),
        pixel_range="unit",
        conv_bias=True,
        attention_levels=(1,),
        mid_attention=True,
        head_kernel_size=3,
        head_activation=False,
        latent_norm=True,
    ),
    "fsq_symmetric": tiny(FSQConfig(levels=(2, 4, 5), symmetric=True)),
    "unit_pixels": tiny(LFQConfig(bits=6), pixel_range="unit", shortcut="legacy"),
    "maskgit": tiny(
        VQConfig(codebook_size=32, dim=4),
        pixel_range="unit",
        shortcut="legacy",
        downsample="avg_pool",
    ),
    "taming": tiny(
        VQConfig(codebook_size=32, dim=4),
        num_res_blocks_decoder=3,
        conv_bias=True,
        attention_levels=(1,),
        mid_attention=True,
        head_kernel_size=3,
        latent_channels=6,
    ),
}


def make(name: str) -> Tokenizer:
    torch.manual_seed(0)
    model = build_tokenizer(TOKENIZERS[name])
    if getattr(model.quantizer, "codebook", None) is not None:
        # The published initial codebooks are so narrow that a fresh network uses few codes.
        torch.nn.init.normal_(model.quantizer.codebook)
    return model


def every_tokenizer(check: Callable[[Tokenizer, Tensor], None]) -> Callable[[Tensor], None]:
    """A test that runs the check on a fresh one of every tokenizer and names the one that fails."""

    def test(images: Tensor) -> None:
        for name in TOKENIZERS:
            with naming(name):
                check(make(name), images)

    test.__name__, test.__doc__ = check.__name__, check.__doc__
    return test


@pytest.fixture
def images() -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, RESOLUTION, RESOLUTION, generator=rng) * 2 - 1


@every_tokenizer
def test_decoded_images_have_shape_dtype_and_range(tokenizer: Tokenizer, images: Tensor) -> None:
    decoded = tokenizer.decode(tokenizer.encode(images))
    assert decoded.shape == images.shape
    assert decoded.dtype == torch.float32
    assert not decoded.requires_grad
    assert decoded.abs().max() <= 1


@every_tokenizer
def test_tokens_fit_the_spec(tokenizer: Tokenizer, images: Tensor) -> None:
    tokens = tokenizer.encode(images)
    assert tokens.spec == tokenizer.spec
    assert len(tokens) == 2
    tokens.validate()
    assert tokens.indices.unique().numel() > 1


@every_tokenizer
def test_encoding_and_decoding_are_deterministic_and_change_nothing(
    tokenizer: Tokenizer, images: Tensor
) -> None:
    before = copy.deepcopy(tokenizer.state_dict())
    global_rng = torch.get_rng_state()
    tokens = tokenizer.encode(images)
    assert tokens.equal(tokenizer.encode(images))
    assert torch.equal(tokenizer.decode(tokens), tokenizer.decode(tokens))
    assert torch.equal(torch.get_rng_state(), global_rng)
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(value, before[name]), name


@every_tokenizer
def test_training_mode_does_not_change_the_codes(tokenizer: Tokenizer, images: Tensor) -> None:
    assert tokenizer.train().encode(images).equal(tokenizer.eval().encode(images))
    assert tokenizer.encode(images).equal(tokenizer(images).tokens)


@every_tokenizer
def test_lookup_of_the_indices_is_what_the_decoder_read(
    tokenizer: Tokenizer, images: Tensor
) -> None:
    """Bits are exact; codebooks to the rounding of z + (e - z)."""
    tokenizer.eval()
    latents = tokenizer._latents(images)
    out = tokenizer.quantizer(latents)
    looked_up = tokenizer.quantizer.lookup(out.indices)
    torch.testing.assert_close(out.quantized, looked_up, rtol=0, atol=2e-6)
    assert torch.equal(tokenizer.quantizer.encode(latents), out.indices)
    assert looked_up.dtype == torch.float32


@every_tokenizer
def test_training_step_returns_what_the_class_says(tokenizer: Tokenizer, images: Tensor) -> None:
    out = tokenizer(images)
    assert out.images.shape == images.shape
    assert out.images.dtype == torch.float32
    assert tuple(sorted(out.losses)) == tuple(sorted(tokenizer.loss_names))
    for name, loss in out.losses.items():
        assert loss.shape == (), name
        assert loss.isfinite(), name
    out.tokens.validate()


@every_tokenizer
def test_pack_and_regroup_round_trip(tokenizer: Tokenizer, images: Tensor) -> None:
    tokens = tokenizer.encode(images)
    packed = tokens.pack()
    assert packed.shape == (2, tokenizer.spec.packed_bytes)
    assert Tokens.unpack(packed, tokenizer.spec).equal(tokens)
    if 2 <= tokenizer.spec.vocab_size <= 2**62:
        joint = tokens.regroup([tokenizer.spec.vocab_size])
        assert joint.regroup(tokenizer.spec.codebook_sizes).equal(tokens)


@every_tokenizer
def test_a_batch_of_two_is_two_batches_of_one(tokenizer: Tokenizer, images: Tensor) -> None:
    """In float64, so that no code can flip on a rounding; the quantizer itself stays in float32."""
    model, images = tokenizer.double().eval(), images.double()
    both = model.encode(images)
    one_by_one = Tokens.cat([model.encode(images[i : i + 1]) for i in range(2)])
    assert both.equal(one_by_one)
    decoded = torch.cat([model.decode(single) for single in both.split()])
    torch.testing.assert_close(model.decode(both), decoded, rtol=0, atol=1e-6)


@every_tokenizer
def test_an_empty_batch_stays_empty(tokenizer: Tokenizer, images: Tensor) -> None:
    tokens = tokenizer.encode(images[:0])
    assert len(tokens) == 0
    assert tokenizer.decode(tokens).shape == (0, 3, RESOLUTION, RESOLUTION)


@every_tokenizer
def test_gradient_reaches_the_encoder(tokenizer: Tokenizer, images: Tensor) -> None:
    out = tokenizer(images)
    (out.images.square().mean() + sum(out.losses.values())).backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert tokenizer.encoder.conv_in.weight.grad.abs().sum() > 0


@every_tokenizer
def test_foreign_tokens_are_refused(tokenizer: Tokenizer, images: Tensor) -> None:
    foreign = TokenSpec((3, 3), (7,))
    with pytest.raises(SpecMismatch) as error:
        tokenizer.decode(Tokens(torch.zeros(1, 9, 1, dtype=torch.int64), foreign))
    assert str(foreign) in str(error.value)
    assert str(tokenizer.spec) in str(error.value)


@every_tokenizer
def test_arrays_of_codes_are_told_how_to_become_tokens(
    tokenizer: Tokenizer, images: Tensor
) -> None:
    tokens = tokenizer.encode(images)
    found = f"found Tensor {tuple(tokens.indices.shape)}"
    with pytest.raises(TypeError, match="decode: expected Tokens") as error:
        tokenizer.decode(tokens.indices)
    assert found in str(error.value)
    assert "tokenizer.tokens_of(codes)" in str(error.value)
    for codes in (tokens.indices, tokens.indices.numpy()):
        assert tokenizer.tokens_of(codes).equal(tokens)
    with pytest.raises(TypeError, match="found str"):
        tokenizer.decode("tokens")


WRONG: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "size": (lambda x: x[..., :-2], r"expected \(B, 3, 16, 16\), found \(2, 3, 16, 14\)"),
    "channels": (lambda x: x[:, :1], r"found \(2, 1, 16, 16\)"),
    "ndim": (lambda x: x[0], r"found \(3, 16, 16\)"),
    "dtype": (lambda x: (x * 127).byte(), r"found torch\.uint8"),
    "bytes": (lambda x: (x * 0 + 1) * 255, r"found \[255, 255\]; divide by 127\.5 and subtract 1"),
    "range": (lambda x: x.clamp(-1, 1) - 1.5, r"expected values in \[-1, 1\], found \[-2\."),
    "nan": (lambda x: x * float("nan"), r"found \[nan, nan\]"),
}


@every_tokenizer
def test_wrong_images_are_refused_saying_what_was_found(
    tokenizer: Tokenizer, images: Tensor
) -> None:
    for name, (spoil, found) in WRONG.items():
        with naming(name), pytest.raises(ValueError, match=found):
            tokenizer.encode(spoil(images))


@every_tokenizer
def test_saved_weights_restore_the_tokenizer(tokenizer: Tokenizer, images: Tensor) -> None:
    torch.manual_seed(5)
    other = build_tokenizer(tokenizer.config)
    other.load_state_dict(tokenizer.state_dict())
    tokens = tokenizer.encode(images)
    assert other.encode(images).equal(tokens)
    assert torch.equal(other.decode(tokens), tokenizer.decode(tokens))


def test_saving_and_loading_is_exact(tmp_path: Path) -> None:
    """Every tensor, also those of no file, after a training step that moves running means."""
    for name in TOKENIZERS:
        with naming(name):
            tokenizer = make(name)
            tokenizer(torch.rand(2, 3, RESOLUTION, RESOLUTION) * 2 - 1)
            save_tokenizer(tokenizer, tmp_path / name)
            assert_same(load_tokenizer(tmp_path / name), tokenizer)
