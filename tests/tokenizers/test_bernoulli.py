"""Bernoulli bits: sums of rows, draws that follow the probabilities, the gradient, regularisers."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tessella.metrics.codes import CodeStatistics
from tessella.tokenizers.quantizers.bernoulli import Bernoulli, BernoulliConfig, draw


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_latents(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(*shape, generator=seeded(seed))


def build(bits: int, dim: int = 5, **settings: object) -> Bernoulli:
    torch.manual_seed(0)
    return Bernoulli(BernoulliConfig(bits=bits, dim=dim, **settings))


def direct(bits: int, **settings: object) -> Bernoulli:
    """Its latents are the logits."""
    quantizer = build(bits, bits, **settings)
    nn.init.eye_(quantizer.proj.weight)
    nn.init.zeros_(quantizer.proj.bias)
    return quantizer


@pytest.mark.parametrize("bits", [1, 7])
def test_lookup_adds_the_rows_of_the_set_bits(bits: int, all_bits: Callable[[int], Tensor]) -> None:
    quantizer = build(bits)
    codes = all_bits(bits)
    rows = quantizer.embedding.detach().double()
    expected = [sum((rows[k] for k in range(bits) if code[k]), rows.new_zeros(5)) for code in codes]
    found = quantizer.lookup(codes[None])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[0].double(), torch.stack(expected), rtol=0, atol=1e-6)


def test_flipping_a_bit_moves_by_its_row() -> None:
    quantizer = build(8)
    with torch.no_grad():
        quantizer.embedding.copy_(torch.randint(-9, 10, (8, 5), generator=seeded(1)))
    code = torch.randint(0, 2, (1, 1, 8), generator=seeded(2))
    for k in range(8):
        flipped = code.clone()
        flipped[..., k] = 1 - flipped[..., k]
        sign = 1 - 2 * int(code[0, 0, k])
        moved = quantizer.lookup(flipped) - quantizer.lookup(code)
        assert torch.equal(moved[0, 0], sign * quantizer.embedding[k])


@pytest.mark.parametrize("setting", ["training", "always", "never"])
@pytest.mark.parametrize("training", [True, False])
def test_values_are_exactly_those_of_the_bits(setting: str, training: bool) -> None:
    quantizer = build(24, draw=setting).train(training)
    out = quantizer(random_latents(2, 16, 5, scale=3), rng=seeded(0))
    assert torch.equal(out.quantized, quantizer.lookup(out.indices))
    assert out.indices.dtype == torch.int64
    assert set(out.indices.unique().tolist()) == {0, 1}


@pytest.mark.parametrize("setting", ["training", "never"])
def test_gradient_passes_straight_to_the_probabilities(setting: str) -> None:
    """d value / d logit = Emb p (1 - p), whatever was drawn."""
    quantizer = direct(6, draw=setting)
    latents = random_latents(3, 4, 6, scale=2).requires_grad_()
    upstream = random_latents(3, 4, 6, seed=1)
    out = quantizer(latents, rng=seeded(3))
    out.quantized.backward(upstream)
    p = 1 / (1 + torch.exp(-latents.detach().double()))
    to_bits = upstream.double() @ quantizer.embedding.detach().double().T
    expected = to_bits * p * (1 - p)
    torch.testing.assert_close(latents.grad.double(), expected, rtol=1e-5, atol=1e-6)
    bits = out.indices.double()
    rows = torch.einsum("bnk,bnd->kd", bits, upstream.double())
    torch.testing.assert_close(quantizer.embedding.grad.double(), rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_bits_are_drawn_with_their_probabilities(training: bool) -> None:
    """Shares of 20,000 draws, each within five standard errors."""
    p = torch.tensor([0.0, 0.02, 0.3, 0.5, 0.9, 1.0])
    quantizer = direct(6).train(training)
    latents = torch.logit(p).clamp(-30, 30).expand(1, 20_000, 6)
    found = quantizer(latents, rng=seeded(4)).indices.double().mean((0, 1))
    error = 5 * (p * (1 - p) / 20_000).sqrt()
    assert ((found - p).abs() <= error).all(), found
    assert found[0] == 0 and found[5] == 1


def test_draws_belong_to_the_rng() -> None:
    quantizer, latents = build(24), random_latents(2, 16, 5)
    before = torch.get_rng_state()
    first, again, other = (quantizer(latents, rng=seeded(s)).indices for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(7)
    globally = quantizer(latents).indices
    assert torch.equal(globally, quantizer(latents, rng=seeded(7)).indices)
    assert not torch.equal(torch.get_rng_state(), before)


def test_no_draw_where_none_is_wanted() -> None:
    quantizer, latents = build(24, draw="never"), random_latents(2, 16, 5)
    before = torch.get_rng_state()
    assert torch.equal(quantizer(latents).indices, quantizer.encode(latents))
    assert torch.equal(torch.get_rng_state(), before)


def test_encoding_takes_the_more_probable_bit() -> None:
    quantizer = direct(5, draw="always")
    latents = torch.tensor([[[0.0, -0.0, 1e-3, -1e-3, 90.0]]])
    assert quantizer.encode(latents).tolist() == [[[0, 0, 1, 0, 1]]]
    latents = random_latents(2, 16, 5)
    expected = (torch.sigmoid(latents) > 0.5).long()
    assert torch.equal(quantizer.encode(latents), expected)
    assert torch.equal(quantizer.encode(latents), quantizer.train().encode(latents))


def test_logits_are_an_affine_map() -> None:
    quantizer, latents = build(7), random_latents(2, 3, 5)
    weight, bias = quantizer.proj.weight.double(), quantizer.proj.bias.double()
    expected = torch.einsum("bnd,kd->bnk", latents.double(), weight) + bias
    torch.testing.assert_close(quantizer.logits(latents).double(), expected, rtol=0, atol=1e-6)
    p = quantizer.probabilities(latents)
    assert not p.requires_grad
    torch.testing.assert_close(p.double(), 1 / (1 + torch.exp(-expected)), rtol=0, atol=1e-6)


def test_commitment_is_the_variance_of_the_coins() -> None:
    """Of p itself: the sigmoid of p, as in the public code, would never leave [0.19, 0.25]."""
    quantizer = direct(6)
    latents = random_latents(2, 8, 6, scale=4)
    p = torch.sigmoid(latents.double())
    found = quantizer(latents).losses
    assert list(found) == list(quantizer.loss_names) == ["commitment"]
    assert found["commitment"].item() == pytest.approx((p * (1 - p)).mean().item(), rel=1e-6)
    assert quantizer(torch.zeros(1, 2, 6)).losses["commitment"].item() == 0.25
    assert quantizer(torch.full((1, 2, 6), 60.0)).losses["commitment"].item() == 0


@pytest.mark.parametrize("free", [0.0, 0.2])
def test_kl_is_the_divergence_from_a_fair_coin_beyond_what_is_free(free: float) -> None:
    quantizer = direct(6, free_nats=free)
    latents = (random_latents(4, 16, 6, scale=2) * torch.arange(6)).requires_grad_()
    loss = quantizer(latents).losses["kl"]
    p = torch.sigmoid(latents.detach().double())
    both = torch.stack([p, 1 - p])
    divergence = (torch.special.xlogy(both, both) + both * math.log(2)).sum(0).mean((0, 1))
    expected = (divergence - free).clamp(min=0).mean().item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    paid = latents.grad.abs().sum((0, 1)) > 0
    assert paid.tolist() == (divergence > free).tolist()
    assert paid.any() and not paid.all()


def test_kl_of_certain_bits_is_all_that_a_bit_has() -> None:
    quantizer = direct(3, free_nats=0.0)
    certain = quantizer(torch.full((1, 4, 3), -80.0)).losses["kl"].item()
    assert certain == pytest.approx(math.log(2), rel=1e-6)
    assert quantizer(torch.zeros(1, 4, 3)).losses["kl"].item() == pytest.approx(0, abs=1e-7)


def test_a_dead_bit_is_counted() -> None:
    """What the training log reports as `num_stuck_bits`, with an alarm."""
    quantizer = build(8)
    with torch.no_grad():
        quantizer.proj.weight[[2, 5]] = 0
        quantizer.proj.bias[[2, 5]] = torch.tensor([20.0, -20.0])
    statistics = CodeStatistics(quantizer.codebook_sizes)
    statistics.update(quantizer(random_latents(4, 64, 5), rng=seeded(0)).indices)
    found = statistics.compute()
    assert found["num_stuck_bits"] == 2
    assert (found["bit_mean_min"], found["bit_mean_max"]) == (0, 1)


def test_a_draw_on_another_device_uses_the_same_uniforms() -> None:
    """Nothing can be read on the meta device; the uniforms were taken from the CPU all the same."""
    rng, expected = seeded(0), seeded(0)
    assert draw(torch.empty(3, 4, device="meta"), rng).device.type == "meta"
    torch.rand(3, 4, generator=expected)
    assert torch.equal(rng.get_state(), expected.get_state())


@pytest.mark.parametrize("bits", [64, 128])
def test_no_tensor_grows_with_the_vocabulary(bits: int, largest_tensor) -> None:
    quantizer = build(bits, 16, free_nats=0.1)
    latents = random_latents(4, 64, 16).requires_grad_()
    with largest_tensor:
        out = quantizer(latents)
        (out.quantized.sum() + sum(out.losses.values())).backward()
    assert largest_tensor.numel <= 4 * 64 * bits
    assert latents.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_latents_give_the_codes_of_their_float32_upcast(dtype: torch.dtype) -> None:
    latents, quantizer = random_latents(2, 64, 5).to(dtype), build(8)
    half, full = (quantizer(x, rng=seeded(0)) for x in (latents, latents.float()))
    assert torch.equal(half.indices, full.indices)
    assert torch.equal(half.quantized, full.quantized)
    assert half.losses["commitment"].dtype == torch.float32


def test_autocast_changes_nothing() -> None:
    latents, quantizer = random_latents(2, 64, 5), build(8, free_nats=0.1)
    plain = quantizer(latents, rng=seeded(0))
    with torch.autocast("cpu", torch.bfloat16):
        cast = quantizer(latents, rng=seeded(0))
        assert torch.equal(quantizer.lookup(plain.indices), plain.quantized)
    assert torch.equal(plain.indices, cast.indices)
    assert torch.equal(plain.quantized, cast.quantized)
    assert plain.losses == cast.losses


@pytest.mark.parametrize(
    "settings,found",
    [
        ({"bits": 0}, "bits: expected 1 to 4096, found 0"),
        ({"bits": 4097}, "bits.*found 4097"),
        ({"bits": 8, "dim": 0}, "dim.*found 0"),
        ({"bits": 8, "free_nats": -0.1}, "free_nats.*found -0.1"),
        ({"bits": 8, "free_nats": 0.7}, "free_nats.*ln 2.*found 0.7"),
    ],
)
def test_impossible_configs_are_refused(settings: dict, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        BernoulliConfig(**settings)
