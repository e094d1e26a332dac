"""BSQ: corners of the sphere, the projected straight-through gradient, grouped entropy."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tessella.tokenizers.quantizers.bsq import BSQ, BSQConfig


def random_latents(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", range(1, 13))
def test_every_code_round_trips(bits: int, all_bits: Callable[[int], Tensor]) -> None:
    quantizer = BSQ(BSQConfig(bits=bits))
    codes = all_bits(bits)[None]
    assert torch.equal(quantizer.encode(quantizer.lookup(codes)), codes)


def test_zero_is_bit_zero() -> None:
    quantizer = BSQ(BSQConfig(bits=4))
    out = quantizer(torch.zeros(1, 1, 4))
    assert out.indices.tolist() == [[[0, 0, 0, 0]]]
    assert out.quantized.tolist() == [[[-0.5, -0.5, -0.5, -0.5]]]


@pytest.mark.parametrize("bits", [1, 9, 18, 36, 128])
def test_values_are_unit_vectors_and_fixed_points(bits: int) -> None:
    quantizer = BSQ(BSQConfig(bits=bits))
    out = quantizer(random_latents(2, 16, bits, scale=40))
    assert torch.equal(out.quantized, quantizer.lookup(out.indices))
    assert (out.quantized.norm(dim=-1) - 1).abs().max() < 1e-6
    again = quantizer(out.quantized)
    assert torch.equal(again.indices, out.indices)
    assert again.losses["commitment"].item() < 1e-12


@pytest.mark.parametrize("scale,expected", [(None, 1 / math.sqrt(6)), (1.0, 1.0), (0.25, 0.25)])
def test_gradient_is_the_scaled_projection(scale: float | None, expected: float) -> None:
    """d value / d z = ste_scale (I - u u^T) / |z|."""
    quantizer = BSQ(BSQConfig(bits=6, ste_scale=scale))
    z = random_latents(6, seed=2)
    jacobian = torch.autograd.functional.jacobian(
        lambda vector: quantizer(vector[None, None]).quantized[0, 0], z
    )
    u = z / z.norm()
    torch.testing.assert_close(
        jacobian, expected * (torch.eye(6) - torch.outer(u, u)) / z.norm(), rtol=1e-5, atol=1e-6
    )


def test_commitment_is_the_squared_distance_to_the_corner() -> None:
    latents = random_latents(2, 8, 9)
    unit = latents.double() / latents.double().norm(dim=-1, keepdim=True)
    corners = torch.where(unit > 0, 1.0, -1.0) / 3
    expected = (unit - corners).square().sum(-1).mean().item()
    found = BSQ(BSQConfig(bits=9))(latents).losses["commitment"].item()
    assert found == pytest.approx(expected, rel=1e-6)
    assert found <= 2 - 2 / 3


@pytest.mark.parametrize("tau", [1.0, 100.0])
@pytest.mark.parametrize("group", [1, 2, 5, 10])
def test_entropy_against_brute_force(
    tau: float, group: int, code_softmax: Callable[[Tensor], Tensor]
) -> None:
    quantizer = BSQ(
        BSQConfig(
            bits=10,
            inverse_temperature=tau,
            entropy_group_bits=group,
            sample_entropy_weight=0.7,
            batch_entropy_weight=1.3,
        )
    )
    latents = random_latents(2, 32, 10)
    unit = latents.double() / latents.double().norm(dim=-1, keepdim=True)
    logits = 4 * tau * unit / math.sqrt(10)
    full = code_softmax(logits).flatten(0, 1)
    sample = -torch.special.xlogy(full, full).sum(1).mean()
    batch = torch.zeros((), dtype=torch.float64)
    for part in logits.flatten(0, 1).split(group, dim=1):
        p = code_softmax(part).mean(0)
        batch -= torch.special.xlogy(p, p).sum()
    expected = (0.7 * sample - 1.3 * batch) / tau
    found = quantizer(latents).losses["entropy"].double()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits,nats", [(18, 12.366), (36, 24.898)])
def test_unit_temperature_is_almost_flat(bits: int, nats: float) -> None:
    """At a corner and tau = 1 the sample entropy is near its maximum of n ln 2."""
    quantizer = BSQ(BSQConfig(bits=bits, batch_entropy_weight=0.0))
    corner = quantizer.lookup(torch.ones(1, 1, bits, dtype=torch.int64))
    assert quantizer(corner).losses["entropy"].item() == pytest.approx(nats, abs=1e-3)


@pytest.mark.parametrize("bits", [36, 62, 128])
@pytest.mark.parametrize("group", [1, 9])
def test_no_tensor_grows_with_the_vocabulary(bits: int, group: int, largest_tensor) -> None:
    latents = random_latents(4, 64, bits).requires_grad_()
    quantizer = BSQ(BSQConfig(bits=bits, entropy_group_bits=group))
    with largest_tensor:
        out = quantizer(latents)
        (out.quantized.sum() + out.losses["entropy"] + out.losses["commitment"]).backward()
    assert largest_tensor.numel <= 4 * 64 * max(bits, 2**5)
    assert latents.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_latents_give_the_codes_of_their_float32_upcast(dtype: torch.dtype) -> None:
    latents = random_latents(2, 64, 8, scale=1e-5).to(dtype)
    quantizer = BSQ(BSQConfig(bits=8))
    half, full = quantizer(latents), quantizer(latents.float())
    assert torch.equal(half.indices, full.indices)
    assert torch.equal(quantizer.encode(latents), full.indices)
    assert torch.equal(half.losses["entropy"], full.losses["entropy"])


def test_autocast_changes_nothing() -> None:
    latents = random_latents(2, 64, 8)
    quantizer = BSQ(BSQConfig(bits=8, entropy_group_bits=8))
    plain = quantizer(latents)
    with torch.autocast("cpu", torch.bfloat16):
        cast = quantizer(latents)
    assert torch.equal(plain.quantized, cast.quantized)
    assert torch.equal(plain.losses["entropy"], cast.losses["entropy"])
