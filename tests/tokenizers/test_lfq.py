"""LFQ: bit convention, exact straight-through gradient, losses, memory."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tessella
from tessella.config import read_yaml
from tessella.tokenizers.build import tokenizer_config
from tessella.tokenizers.quantizers.lfq import LFQ, LFQConfig
from tessella.tokens.tokens import Tokens, TokenSpec

CONFIGS = Path(tessella.__file__).parent / "configs/tokenizer"
TEMPERATURE = 0.01


def random_latents(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", range(1, 13))
def test_every_code_round_trips(bits: int, all_bits: Callable[[int], Tensor]) -> None:
    quantizer = LFQ(LFQConfig(bits=bits))
    codes = all_bits(bits)[None]
    signs = quantizer.lookup(codes)
    assert torch.equal(quantizer.encode(signs), codes)
    tokens = Tokens(codes, TokenSpec((2**bits,), (2,) * bits))
    joint = tokens.regroup([2**bits]) if bits > 1 else tokens
    assert torch.equal(joint.indices[0, :, 0], torch.arange(2**bits))
    assert torch.equal(joint.regroup((2,) * bits).indices, codes)


def test_bit_k_alone_weighs_two_to_the_k() -> None:
    latents = torch.eye(5)[None] * 2 - 1
    indices = LFQ(LFQConfig(bits=5)).encode(latents)
    assert Tokens(indices, TokenSpec((5,), (2,) * 5)).regroup([32]).indices.flatten().tolist() == [
        1,
        2,
        4,
        8,
        16,
    ]


def test_zero_is_bit_zero() -> None:
    quantizer = LFQ(LFQConfig(bits=3))
    latents = torch.tensor([[[0.0, -0.0, 1e-30]]])
    assert quantizer.encode(latents).tolist() == [[[0, 0, 1]]]
    assert quantizer(latents).quantized.tolist() == [[[-1.0, -1.0, 1.0]]]


@pytest.mark.parametrize("training", [True, False])
def test_values_are_signs_and_the_gradient_is_the_identity(training: bool) -> None:
    quantizer = LFQ(LFQConfig(bits=9)).train(training)
    latents = random_latents(2, 16, 9, scale=30).requires_grad_()
    out = quantizer(latents)
    assert set(out.quantized.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(out.quantized, quantizer.lookup(out.indices))
    assert torch.equal(out.indices, quantizer.encode(latents))
    upstream = random_latents(2, 16, 9, seed=1)
    out.quantized.backward(upstream)
    assert torch.equal(latents.grad, upstream)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e3, 1e6])
def test_straight_through_sum_is_exact_for_any_sane_latent(size: float) -> None:
    latents = random_latents(1, 64, 4, scale=size)
    assert set(LFQ(LFQConfig(bits=4))(latents).quantized.unique().tolist()) == {-1.0, 1.0}


def test_commitment_and_its_gradient() -> None:
    quantizer = LFQ(LFQConfig(bits=6))
    latents = random_latents(2, 8, 6).requires_grad_()
    loss = quantizer(latents).losses["commitment"]
    signs = torch.where(latents > 0, 1.0, -1.0)
    assert loss.item() == pytest.approx((latents - signs).square().mean().item(), rel=1e-6)
    loss.backward()
    torch.testing.assert_close(latents.grad, 2 * (latents - signs).detach() / latents.numel())
    assert quantizer(signs).losses["commitment"].item() == 0


@pytest.mark.parametrize("gamma", [1.0, 0.3])
def test_entropy_is_the_full_table_form(
    gamma: float, code_softmax: Callable[[Tensor], Tensor]
) -> None:
    """Softmax over all codes of 2 <z, c> / T, whose bit logits are 4 z / T."""
    quantizer = LFQ(LFQConfig(bits=10, batch_entropy_weight=gamma))
    latents = random_latents(2, 32, 10, scale=0.02)
    p = code_softmax(latents * (4 / TEMPERATURE)).flatten(0, 1)
    sample = -torch.special.xlogy(p, p).sum(1).mean()
    batch = -torch.special.xlogy(p.mean(0), p.mean(0)).sum()
    found = quantizer(latents).losses["entropy"].double()
    torch.testing.assert_close(found, sample - gamma * batch, rtol=1e-6, atol=1e-6)


def test_sample_entropy_gradient_is_a_thin_band_around_zero() -> None:
    """Published check of the MaskBit form: |dH/dz| is 0.18 at |z| = 0.025, 1.6e-5 at 0.05."""
    quantizer = LFQ(LFQConfig(bits=1, batch_entropy_weight=0.0))
    for z, size in ((0.025, 0.18), (0.05, 1.6e-5)):
        latents = torch.full((1, 1, 1), z, requires_grad=True)
        quantizer(latents).losses["entropy"].backward()
        assert abs(latents.grad.item()) == pytest.approx(size, rel=0.1)


@pytest.mark.parametrize("bits", [36, 62, 128])
def test_no_tensor_grows_with_the_vocabulary(bits: int, largest_tensor) -> None:
    latents = random_latents(4, 64, bits).requires_grad_()
    quantizer = LFQ(LFQConfig(bits=bits, entropy_group_bits=10))
    with largest_tensor:
        out = quantizer(latents)
        (out.quantized.sum() + out.losses["entropy"] + out.losses["commitment"]).backward()
    half_group = 2**5  # of entropy_group_bits 10
    assert largest_tensor.numel <= 4 * 64 * max(bits, half_group)
    assert latents.grad.isfinite().all()
    assert out.indices.shape == (4, 64, bits)


def test_has_no_state() -> None:
    assert not LFQ(LFQConfig(bits=128, entropy_group_bits=8)).state_dict()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_latents_give_the_codes_of_their_float32_upcast(dtype: torch.dtype) -> None:
    latents = random_latents(2, 64, 8, scale=1e-4).to(dtype)
    quantizer = LFQ(LFQConfig(bits=8))
    half, full = quantizer(latents), quantizer(latents.float())
    assert torch.equal(half.indices, full.indices)
    assert torch.equal(quantizer.encode(latents), full.indices)
    for name in quantizer.loss_names:
        assert half.losses[name].dtype == torch.float32
        assert torch.equal(half.losses[name], full.losses[name])


def test_autocast_changes_nothing() -> None:
    latents = random_latents(2, 64, 8, scale=0.02)
    quantizer = LFQ(LFQConfig(bits=8))
    plain = quantizer(latents)
    with torch.autocast("cpu", torch.bfloat16):
        cast = quantizer(latents)
    assert torch.equal(plain.indices, cast.indices)
    assert torch.equal(plain.losses["entropy"], cast.losses["entropy"])


def test_entropy_of_balanced_confident_bits() -> None:
    """All 16 codes once, |z| = 1: H_sample is 0 and H_batch is 4 ln 2."""
    quantizer = LFQ(LFQConfig(bits=4))
    indices = torch.arange(16)[None, :, None] >> torch.arange(4) & 1
    loss = quantizer(quantizer.lookup(indices)).losses["entropy"].item()
    assert loss == pytest.approx(-4 * math.log(2), rel=1e-6)


def test_a_bit_that_copies_another_costs_its_entropy() -> None:
    """14 bits as published: groups of 7 + 7, the default before 0.6, did not see the copy."""
    indices = torch.arange(2**13)[None, :, None] >> torch.arange(13) & 1
    latents = torch.cat([indices, indices[..., :1]], -1).float() * 2 - 1
    joint = LFQ(LFQConfig(bits=14))(latents).losses["entropy"].item()
    assert joint == pytest.approx(-13 * math.log(2), rel=1e-6)
    grouped = LFQ(LFQConfig(bits=14, entropy_group_bits=10))(latents).losses["entropy"].item()
    assert grouped == pytest.approx(-14 * math.log(2), rel=1e-6)


def test_published_recipes_have_the_joint_entropy_and_old_configs_their_groups() -> None:
    for name in ("maskbit_14bit_256", "open_magvit2_256"):
        data = read_yaml(CONFIGS / f"{name}.yaml")["tokenizer"]
        assert tokenizer_config(data, name=name).quantizer.group_bits == data["quantizer"]["bits"]
    saved = {"type": "lfq", "bits": 14, "entropy_group_bits": 10}
    config = tokenizer_config({"type": "vqgan", "quantizer": saved}, name="saved by version 0.5")
    assert config.quantizer.group_bits == 10


@pytest.mark.parametrize(
    "settings,found",
    [
        ({"bits": 0}, "bits.*found 0"),
        ({"bits": 4097}, "bits.*found 4097"),
        ({"bits": 8, "entropy_group_bits": 25}, "entropy_group_bits.*found 25"),
        ({"bits": 19}, "entropy_group_bits: required beyond 18 bits, found none for 19"),
        ({"bits": 8, "entropy_temperature": 0.0}, "entropy_temperature.*found 0.0"),
    ],
)
def test_impossible_configs_are_refused(settings: dict, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        LFQConfig(**settings)
