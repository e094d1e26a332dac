"""Bernoulli diffusion against brute force: every formula once more, over all states of few bits."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tessella.generators.processes.bernoulli import BernoulliDiffusion
from tessella.tests.cases import over

SCHEDULES = ("linear", "cos", "sigmoid")
STATES = torch.tensor(list(itertools.product((0, 1), repeat=8)))
"""All 256 states of 8 bits."""


def process(schedule: Any = "linear", num_steps: int = 16, **fields: Any) -> BernoulliDiffusion:
    return BernoulliDiffusion(num_steps=num_steps, schedule=schedule, **fields)


def times(*values: int) -> Tensor:
    return torch.tensor(values)


def single_steps(diffusion: BernoulliDiffusion) -> list[Tensor]:
    """Matrices (2, 2) of q(x_t | x_{t-1}) for t = 1 to T, from the ratio of keep factors."""
    keep = diffusion.keep(torch.arange(diffusion.num_steps + 1))
    half = torch.full((2, 2), 0.5, dtype=torch.float64)
    return [k * torch.eye(2, dtype=torch.float64) + (1 - k) * half for k in (keep[1:] / keep[:-1])]


def product(matrices: list[Tensor]) -> Tensor:
    result = torch.eye(2, dtype=torch.float64)
    for matrix in matrices:
        result = result @ matrix
    return result


def mixture(seed: int = 0) -> Tensor:
    """A distribution over `STATES`: four components of independent, mostly decided bits."""
    rng = torch.Generator().manual_seed(seed)
    chance = torch.rand(4, 8, generator=rng, dtype=torch.float64).mul(12).sub(6).sigmoid()
    likelihood = torch.where(STATES[:, None] == 1, chance, 1 - chance).prod(-1)
    return likelihood @ torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


def transition(rate: float) -> Tensor:
    """(256, 256): probability that one state becomes another if each bit flips with this rate."""
    differ = (STATES[:, None] != STATES).double()
    return (differ * rate + (1 - differ) * (1 - rate)).prod(-1)


@over("num_steps", [1, 2, 64, 256, 4000])
@over("schedule", SCHEDULES)
def test_schedules_fall_from_one_to_zero(schedule: str, num_steps: int) -> None:
    diffusion = process(schedule, num_steps)
    keep = diffusion.keep(torch.arange(num_steps + 1))
    assert keep.dtype == torch.float64
    assert keep[0] == 1 and keep[-1] == 0 and (keep[1:] < keep[:-1]).all()
    assert diffusion.flip_rate(times(num_steps)).item() == 0.5
    assert torch.equal(diffusion.flip_rate(torch.arange(num_steps + 1)), (1 - keep) / 2)


@pytest.mark.parametrize(
    "schedule,values",
    [
        ("linear", (0.9844, 0.75, 0.5, 0.25, 0.0156)),
        ("cos", (0.9994, 0.8536, 0.5, 0.1464, 0.0006)),
        ("sigmoid", (0.9693, 0.5418, 0.2306, 0.0706, 0.0028)),
    ],
)
def test_schedules_have_the_published_values(schedule: str, values: tuple[float, ...]) -> None:
    found = process(schedule, 64).keep(times(1, 16, 32, 48, 63))
    assert (found - torch.tensor(values)).abs().max() < 5.1e-5


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_forward_marginals_are_the_products_of_the_single_steps(schedule: str) -> None:
    """Over 8 bits too: the 256 states after the chain, from one state."""
    diffusion, steps = process(schedule), single_steps(process(schedule))
    for t in range(1, 17):
        rate = diffusion.flip_rate(times(t)).item()
        chain = product(steps[:t])
        assert abs(chain[0, 1].item() - rate) < 1e-12
        joint = torch.ones(1, dtype=torch.float64)
        for bit in STATES[37]:
            joint = torch.outer(joint, chain[bit]).flatten()
        assert (transition(rate)[37] - joint).abs().max() < 1e-12


def test_keep_factors_compose() -> None:
    """Between any times u < s < t, the steps multiply; cumulative products are the table."""
    for schedule in SCHEDULES:
        keep = process(schedule).keep(torch.arange(17))
        assert (torch.cumprod(keep[1:] / keep[:-1], 0) - keep[1:]).abs().max() < 1e-12
        steps = single_steps(process(schedule))
        for u, s, t in ((0, 3, 9), (2, 7, 16), (5, 6, 7)):
            direct = (1 - keep[t] / keep[u]) / 2
            assert abs(product(steps[u:t])[0, 1] - direct) < 1e-12
            assert (product(steps[u:s]) @ product(steps[s:t]))[0, 1].sub(direct).abs() < 1e-12


def test_corruption_flips_with_the_rate_of_the_time() -> None:
    """n = 4 x 80,000 bits: each within 4 sigma; what is flipped is told; bits stay int64."""
    diffusion, t = process(num_steps=64), times(1, 16, 48, 64)
    rng = torch.Generator().manual_seed(0)
    bits = torch.randint(2, (4, 2000, 40), generator=rng)
    x_t, flips = diffusion.corrupt(bits, t, torch.rand(bits.shape, generator=rng))
    assert x_t.dtype == bits.dtype and torch.equal((x_t != bits), flips)
    rate = diffusion.flip_rate(t)
    sigma = (rate * (1 - rate) / 80_000).sqrt()
    assert ((flips.double().mean((1, 2)) - rate).abs() < 4 * sigma).all()
    per_token = t[:, None].expand(4, 2000)
    again, _ = diffusion.corrupt(bits, per_token, torch.rand(bits.shape, generator=rng))
    assert (((again != bits).double().mean((1, 2)) - rate).abs() < 4 * sigma).all()


def test_times_are_uniform_and_never_zero() -> None:
    u = (torch.arange(6400) + 0.5) / 6400
    found = process(num_steps=64).draw_time(u)
    assert torch.bincount(found, minlength=65).tolist() == [0, *[100] * 64]
    edges = torch.tensor([2.0**-24, 1 - 2.0**-24])
    assert process(num_steps=100).draw_time(edges).tolist() == [1, 100]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_posteriors_are_those_of_enumeration(schedule: str) -> None:
    """q(x_s | x_t, x_0) of one bit, from q(x_s | x_0) q(x_t | x_s), for every s < t."""
    diffusion, steps = process(schedule), single_steps(process(schedule))
    for t in range(1, 17):
        for s in range(t):
            early, late = product(steps[:s]), product(steps[s:t])
            for x_0, x_t in itertools.product((0, 1), repeat=2):
                joint = early[x_0] * late[:, x_t]
                expected = joint[1 - x_t] / joint.sum()
                flips = torch.tensor([[[x_0 != x_t]]])
                differs, equals = diffusion.posterior(flips, times(s), times(t))
                assert abs(differs.item() - expected.item()) < 1e-12
                assert abs(differs.item() + equals.item() - 1) < 1e-12


@over("loss", ["plain", "balanced"])
@over("stride", [1, 5, 15])
@over("schedule", SCHEDULES)
def test_the_kernel_of_each_loss_is_exact_over_all_states(
    schedule: str, stride: int, loss: Any
) -> None:
    """P(bit of x_s differs | x_t) by summing over the 256 x_0 of a mixture and over x_s, for every
    x_t; the prediction is the exact posterior, or the posterior without the bit's own evidence."""
    diffusion, p_0 = process(schedule, loss=loss), mixture()
    differ = (STATES[:, None] != STATES).double()  # (x_0, x_t, bit)
    for t in (stride, 16):
        s = t - stride
        late = diffusion.flip_rate(times(t)).item()
        joint = p_0[:, None] * transition(late)
        posterior = joint / joint.sum(0)
        if loss == "plain":
            odds = torch.einsum("ab,abk->bk", posterior, differ)
            odds = odds / (1 - odds)
        else:  # the other bits' evidence only: divide each term by what the bit itself says
            own = differ * late + (1 - differ) * (1 - late)
            others = joint[..., None] / own
            odds = (others * differ).sum(0) / (others * (1 - differ)).sum(0)
        found, _ = diffusion.reverse(odds.log()[:, None], times(s), times(t))
        early = diffusion.flip_rate(times(s)).item()
        ratio = diffusion.keep(times(t)).item() / diffusion.keep(times(s)).item()
        between = transition((1 - ratio) / 2)
        back = (p_0 @ transition(early))[:, None] * between  # p(x_s) q(x_t | x_s)
        back = back / back.sum(0)
        expected = torch.einsum("sb,sbk->bk", back, differ)
        assert (found[:, 0] - expected).abs().max() < 1e-6


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_both_pairs_are_one_process_and_crossing_them_is_not(schedule: str) -> None:
    balanced, plain = process(schedule, 64), process(schedule, 64, loss="plain")
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 1, 3, generator=rng, dtype=torch.float64) * 4
    for t in range(1, 65):
        cavity = logits + balanced.evidence(times(t))
        assert (balanced.calibrated(cavity, times(t)) - logits).abs().max() < 1e-12
        assert plain.calibrated(logits, times(t)) is logits
        for s in {0, 1, t // 2, t - 1} - {t}:
            one = balanced.reverse(cavity, times(s), times(t))
            other = plain.reverse(logits, times(s), times(t))
            for mine, yours in zip(one, other, strict=True):
                assert (mine - yours).abs().max() < 1e-12
            crossed = balanced.reverse(logits, times(s), times(t))[0]
            if t == 64:
                assert (crossed - other[0]).abs().max() < 1e-12
            elif t < 32 and s == 0:
                assert (crossed - other[0]).abs().max() > 0.1


def test_a_crossed_pair_under_flips_as_computed_by_hand() -> None:
    """T = 64, t = 2 to 1, P(x_0 = 1) = 0.112, x_t = 1: kept with 0.553, crossed with 0.944."""
    logit = torch.tensor([[[math.log((1 - 0.112) / 0.112)]]])  # of the flip to 0
    right = process(num_steps=64, loss="plain").reverse(logit, times(1), times(2))[1]
    crossed = process(num_steps=64).reverse(logit, times(1), times(2))[1]
    assert abs(right.item() - 0.553) < 1e-3 and abs(crossed.item() - 0.944) < 1e-3


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_plug_in_kernel_multiplies_out_single_steps(schedule: str) -> None:
    """p(x_s) ~ (product of the steps s + 1 to t) * (k_s p_0 + (1 - k_s) / 2), for both x_t."""
    diffusion, steps = process(schedule), single_steps(process(schedule))
    p_0 = torch.linspace(0.01, 0.99, 23, dtype=torch.float64)
    for t in range(1, 17):
        for s in range(t):
            likelihood = product(steps[s:t])
            for x_t in (0, 1):
                prior = torch.stack([1 - p_0, p_0], -1) @ product(steps[:s])
                weight = prior * likelihood[:, x_t]
                expected = weight[:, 1 - x_t] / weight.sum(-1)
                flip = p_0 if x_t == 0 else 1 - p_0
                found, _ = diffusion.reverse(flip.logit()[:, None, None], times(s), times(t))
                assert (found[:, 0, 0] - expected).abs().max() < 1e-12


@pytest.mark.parametrize("loss", ["plain", "balanced"])
def test_probabilities_are_probabilities_for_any_logit(loss: Any) -> None:
    diffusion = process(num_steps=256, loss=loss)
    logits = torch.tensor([-math.inf, -200.0, -30.0, 0.0, 30.0, 200.0, math.inf])[None, None]
    for t, s in (*diffusion.steps(), *diffusion.steps(7), (256, 0)):
        for p in diffusion.reverse(logits, times(s), times(t)):
            assert p.dtype == torch.float32 and ((p >= 0) & (p <= 1)).all(), (t, s)
        differs, equals = diffusion.reverse(logits, times(s), times(t))
        assert (differs + equals - 1).abs().max() < 1e-6
        assert (differs.diff() >= 0).all()


def test_the_last_step() -> None:
    """To s = 0: sigma(l + logit rho_t) for the balanced loss, sigma(l) for the plain one."""
    logits = torch.linspace(-8, 8, 33, dtype=torch.float64)[:, None, None]
    for t in (1, 5, 16):
        rate = process().flip_rate(times(t))
        found, _ = process().reverse(logits, times(0), times(t))
        assert (found - (logits + rate.logit()).sigmoid()).abs().max() < 1e-12
        found, _ = process(loss="plain").reverse(logits, times(0), times(t))
        assert (found - logits.sigmoid()).abs().max() < 1e-12


@pytest.mark.parametrize("loss", ["plain", "balanced"])
def test_the_divergence_is_that_of_two_coins(loss: Any) -> None:
    diffusion, logits = process(loss=loss), torch.linspace(-5, 5, 21)[:, None, None]
    for flipped in (True, False):
        flips = torch.full_like(logits, flipped, dtype=torch.bool)
        for s, t in ((0, 1), (3, 4), (2, 11), (0, 16)):
            q, p = (
                f(x, times(s), times(t))[0]
                for f, x in ((diffusion.posterior, flips), (diffusion.reverse, logits.double()))
            )
            coins = [torch.distributions.Bernoulli(probs) for probs in (q, p)]
            expected = torch.distributions.kl_divergence(*coins)
            found = diffusion.step_divergence(logits, flips, times(s), times(t))
            assert (found - expected).abs().max() < 1e-9 and (found >= 0).all()
    certain = torch.tensor([[[math.inf, -math.inf]]])
    right = torch.tensor([[[True, False]]])
    assert (diffusion.step_divergence(certain, right, times(2), times(9)).abs() < 1e-15).all()
    assert diffusion.step_divergence(certain, ~right, times(0), times(9)).isinf().all()


def optimum(diffusion: BernoulliDiffusion, t: int, chance: float) -> float:
    """The logit whose expected loss is least where bits are flipped with this chance: bisection."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        logits = torch.full((1, 1, 2), middle, dtype=torch.float64, requires_grad=True)
        flips = torch.tensor([[[True, False]]])
        loss = diffusion.loss_per_bit(logits, flips, times(t))
        (loss * torch.tensor([chance, 1 - chance])).sum().backward()
        low, high = (middle, high) if logits.grad.sum() < 0 else (low, middle)
    return middle


@pytest.mark.parametrize("t", [1, 4, 15, 16])
def test_what_each_loss_leads_to(t: int) -> None:
    balanced, plain = process(), process(loss="plain")
    evidence = balanced.evidence(times(t)).item()
    for chance in (0.01, 0.3, 0.9):
        logit = math.log(chance / (1 - chance))
        assert abs(optimum(plain, t, chance) - logit) < 1e-6
        assert abs(optimum(balanced, t, chance) - logit - evidence) < 1e-6
    rate = balanced.flip_rate(times(t)).item()
    assert abs(optimum(balanced, t, rate)) < 1e-6  # knowing nothing but the rate


def test_weights() -> None:
    """Of the schedule, of what was flipped of an image, and of a token with 1 / K more."""
    rng = torch.Generator().manual_seed(0)
    logits, t = torch.randn(3, 5, 4, generator=rng), times(2, 9, 16)
    flips = torch.rand(3, 5, 4, generator=rng) < torch.tensor([0.1, 0.3, 0.5])[:, None, None]
    plain = F.binary_cross_entropy_with_logits(logits, flips.float(), reduction="none")
    rate = process().flip_rate(t)[:, None, None].float()
    valid = torch.arange(5) < times(5, 2, 4)[:, None]
    counted = flips & valid[..., None]
    shares = {
        "schedule": rate,
        "image": flips.float().mean((1, 2), True),
        "token": flips.float().mean(-1, True),
    }
    for weights, share in shares.items():
        found = process(weights=weights).loss_per_bit(logits, flips, t)
        expected = torch.where(flips, 1 - share, share) * plain
        if weights == "token":
            expected = expected + plain / 4
        torch.testing.assert_close(found, expected, msg=weights)
    found = process(weights="image").loss_per_bit(logits, flips, t, valid)
    share = (counted.sum((1, 2)) / (valid.sum(1) * 4))[:, None, None]
    torch.testing.assert_close(found, torch.where(flips, 1 - share, share) * plain)
    torch.testing.assert_close(process(loss="plain").loss_per_bit(logits, flips, t), plain)
    per_token = torch.tensor([[2, 2, 9, 9, 16]]).expand(3, 5)
    rate = process().flip_rate(per_token)[..., None].float()
    found = process().loss_per_bit(logits, flips, per_token)
    torch.testing.assert_close(found, torch.where(flips, 1 - rate, rate) * plain)


@pytest.mark.parametrize("num_steps", [1, 2, 63, 64, 256])
def test_chains_fall_from_the_last_time_to_zero(num_steps: int) -> None:
    diffusion = process(num_steps=num_steps)
    assert diffusion.steps() == tuple((t, t - 1) for t in range(num_steps, 0, -1))
    for count in range(1, num_steps + 1):
        pairs = diffusion.steps(count)
        assert len(pairs) == count and pairs[0][0] == num_steps and pairs[-1][1] == 0
        assert all(t > s for t, s in pairs)
        assert all(s == t for (_, s), (t, _) in itertools.pairwise(pairs))
        assert count == 1 or pairs[-1][0] == 1


def test_published_steps() -> None:
    times_of_16 = [t for t, _ in process(num_steps=64).steps(16)]
    assert times_of_16 == [64, 59, 55, 51, 47, 43, 38, 34, 30, 26, 22, 17, 13, 9, 5, 1]
    assert process(num_steps=64).steps(1) == ((64, 0),)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="num_steps: expected at least 1, found 0"):
        process(num_steps=0)
    with pytest.raises(ValueError, match="weights: image of the plain loss, which has none"):
        process(loss="plain", weights="image")
    for count in (0, 17, -1):
        with pytest.raises(ValueError, match=f"1 to the 16 of training, found {count}"):
            process().steps(count)
