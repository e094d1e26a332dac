"""Bayesian flows against Bayes' rule on densities, quadrature and the entropy of a single bit."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from tessella.generators.noise import normal
from tessella.generators.processes.bayesian_flow import BayesianFlow, BitFlow, ClassFlow
from tessella.tests.cases import over

BITS, CLASSES = BitFlow(9.0), ClassFlow(3.0, codebook_size=5)
FLOWS = {"bits": BITS, "classes": CLASSES}
ROUNDING = 1e-12  # of float64, over sums of some dozens
DRAWS = 40_000


def example(flow: BayesianFlow, count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Data (count, 1), beliefs or logits, and noise, random, float64."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(flow.size, (count, 1), generator=rng)
    shape = (count, 1) if isinstance(flow, BitFlow) else (count, 1, flow.size)
    return (
        x,
        torch.randn(shape, generator=rng, dtype=torch.float64) * 2,
        torch.randn(shape, generator=rng, dtype=torch.float64),
    )


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def as_classes(bits: Tensor) -> Tensor:
    """Logits of bits as those of two classes."""
    return torch.stack([torch.zeros_like(bits), bits], -1)


def hermite(count: int = 120) -> tuple[Tensor, Tensor]:
    """Points and weights that integrate against a standard normal density."""
    points, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.tensor(points), torch.tensor(weights / math.sqrt(2 * math.pi))


@over("flow", FLOWS.values(), ids=FLOWS)
@over("steps", [1, 2, 7, 100, 1000])
def test_alphas_are_the_differences_of_beta_and_sum_to_all_of_it(
    flow: BayesianFlow, steps: int
) -> None:
    alphas = flow.alphas(steps)
    times = torch.arange(steps + 1, dtype=torch.float64) / steps
    assert alphas.shape == (steps,) and alphas.dtype == torch.float64
    assert alphas.sum().item() == pytest.approx(flow.accuracy, rel=1e-14)
    torch.testing.assert_close(alphas, flow.beta(times).diff(), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
def test_means_and_variances_of_messages_add_up(flow: BayesianFlow) -> None:
    """Exactly: those of n messages sum to those of one message of accuracy beta_1."""
    x, _, noise = example(flow, 50)
    alphas, whole = flow.alphas(13), number(flow.accuracy)
    silent = torch.zeros_like(noise)
    means = torch.stack([flow.message(x, alpha, silent) for alpha in alphas])
    spreads = torch.stack([flow.message(x, a, noise) - flow.message(x, a, silent) for a in alphas])
    mean = flow.message(x, whole, silent)
    torch.testing.assert_close(means.sum(0), mean, rtol=0, atol=1e-11)
    squares = (flow.message(x, whole, noise) - mean).square()
    torch.testing.assert_close(spreads.square().sum(0), squares, rtol=1e-11, atol=0)


@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
def test_updates_compose_to_the_flow_distribution(flow: BayesianFlow) -> None:
    """Eight drawn messages up to t = 0.5 against the published moments, and against one message."""
    x = torch.ones(DRAWS, 1, dtype=torch.int64)
    shape = (1,) if isinstance(flow, BitFlow) else (1, flow.size)
    seeds = torch.arange(DRAWS)
    beliefs = sum(
        flow.message(x, alpha, normal(seeds, i, shape))
        for i, alpha in enumerate(flow.alphas(16)[:8])
    )
    assert isinstance(beliefs, Tensor)
    beta, size = flow.accuracy / 4, flow.size
    if isinstance(flow, BitFlow):
        mean, variance = torch.tensor([2 * beta]), 4 * beta
    else:
        mean, variance = beta * (size * torch.eye(size)[1] - 1), size * beta
    flat = beliefs.flatten(1)
    assert ((flat.mean(0) - mean).abs() < 4 * math.sqrt(variance / DRAWS)).all()
    assert ((flat.var(0) - variance).abs() < 4 * variance * math.sqrt(2 / DRAWS)).all()
    once = flow.message(x, flow.beta(number(0.5)), normal(seeds, 99, shape))
    levels, found = torch.linspace(-0.9, 0.9, 7), []
    for one in (beliefs, once):  # what is believed of the true value
        read = flow.network_input(one)
        read = read if isinstance(flow, BitFlow) else read[..., 1]
        found.append((read > levels).double().mean(0))
    sigma = (found[1] * (1 - found[1]) * 2 / DRAWS).sqrt()
    assert ((found[0] - found[1]).abs() < 4 * sigma).all()


def test_the_flow_of_bits_has_the_published_moments() -> None:
    """N(2 beta (2x - 1), 4 beta): mean +-4.5 and variance 9 at beta = 2.25."""
    noise = normal(torch.arange(DRAWS), 0, (2,))
    x = torch.tensor([0, 1]).expand(DRAWS, 2)
    beliefs = BITS.message(x, BITS.beta(number(0.5)), noise)
    assert BITS.beta(number(0.5)).item() == 2.25
    error = 4 * 3 / math.sqrt(DRAWS)
    assert beliefs.mean(0).tolist() == pytest.approx([-4.5, 4.5], abs=error)
    assert beliefs.var(0).tolist() == pytest.approx([9, 9], rel=4 * math.sqrt(2 / DRAWS))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_adding_a_message_is_bayes_rule_on_the_densities_of_senders(size: int) -> None:
    flow = ClassFlow(2.0, codebook_size=size)
    x, beliefs, noise = example(flow, 200)
    alpha = number(0.7)
    y = flow.message(x, alpha, noise)
    means = alpha * (size * torch.eye(size, dtype=torch.float64) - 1)
    density = Normal(means, (size * alpha).sqrt()).log_prob(y[..., None, :]).sum(-1).exp()
    posterior = torch.softmax(beliefs, -1) * density
    posterior /= posterior.sum(-1, keepdim=True)
    torch.testing.assert_close(torch.softmax(beliefs + y, -1), posterior, rtol=1e-9, atol=ROUNDING)


def test_bits_are_two_classes_in_log_odds() -> None:
    """Messages, inputs, losses and probabilities, with the noise of bits from that of classes."""
    flow = ClassFlow(9.0, codebook_size=2)
    x, logits, noise = example(flow, 300)
    odds, single = logits[..., 1] - logits[..., 0], (noise[..., 1] - noise[..., 0]) / math.sqrt(2)
    t = torch.linspace(0, 1, 300, dtype=torch.float64)
    accuracy, close = flow.beta(t), {"rtol": 1e-10, "atol": ROUNDING}
    message = flow.message(x, accuracy, noise)
    torch.testing.assert_close(
        BITS.message(x, accuracy, single), message[..., 1] - message[..., 0], **close
    )
    for found, expected in (
        (BITS.network_input(odds), flow.network_input(logits)[..., 1]),
        (BITS.network_input(odds), -flow.network_input(logits)[..., 0]),
        (BITS.loss(odds, x, t), flow.loss(logits, x, t)),
        (BITS.log_probability(odds, x), flow.log_probability(logits, x)),
        (BITS.step_loss(odds, x, accuracy, single), flow.step_loss(logits, x, accuracy, noise)),
    ):
        torch.testing.assert_close(found, expected, **close)


def test_loss_of_a_bit_is_a_brier_score() -> None:
    x, logits, _ = example(BITS, 200)
    t = torch.rand(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = 4 * 9.0 * t[:, None] * (x - logits.sigmoid()).square()
    torch.testing.assert_close(BITS.loss(logits, x, t), expected, rtol=1e-12, atol=0)


def test_loss_of_classes_is_the_published_one() -> None:
    x, logits, _ = example(CLASSES, 200)
    t = torch.rand(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    e_x = torch.eye(5, dtype=torch.float64)[x[:, 0]]
    expected = 5 * 3.0 * t * (e_x - logits[:, 0].softmax(-1)).norm(dim=-1) ** 2
    torch.testing.assert_close(CLASSES.loss(logits, x, t)[:, 0], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
def test_losses_are_zero_where_the_prediction_is_certain_and_right_only(flow: BayesianFlow) -> None:
    """With 4,000 nats of log-odds, either way; and positive for every doubt."""
    x, logits, noise = example(flow, 400)
    t = torch.full((400,), 0.5, dtype=torch.float64)
    sure = 2.0 * x - 1 if isinstance(flow, BitFlow) else torch.eye(flow.size)[x]
    sure = sure.double() * 4000
    assert (flow.loss(sure, x, t) == 0).all()
    assert (flow.step_loss(sure, x, number(0.1), noise) == 0).all()
    assert (flow.log_probability(sure, x) == 0).all()
    assert (flow.loss(-sure, x, t) >= flow.loss(torch.zeros_like(sure), x, t)).all()
    assert (flow.loss(logits, x, t) > 0).all()
    assert (flow.loss(logits, x, torch.zeros_like(t)) == 0).all()


@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
def test_step_loss_is_the_difference_of_log_densities(flow: BayesianFlow) -> None:
    """log N(y; sender of x) - log sum_k p_k N(y; sender of k), as the paper writes it."""
    size, alpha = flow.size, number(0.4)
    classes = ClassFlow(flow.accuracy, codebook_size=size)
    x, logits, noise = example(classes, 300)
    y = classes.message(x, alpha, noise)
    means = alpha * (size * torch.eye(size, dtype=torch.float64) - 1)
    senders = Normal(means, (size * alpha).sqrt()).log_prob(y[..., None, :]).sum(-1)
    receiver = torch.logsumexp(torch.log_softmax(logits, -1) + senders, -1)
    expected = senders.gather(-1, x[..., None])[..., 0] - receiver
    if isinstance(flow, BitFlow):
        odds, single = logits[..., 1] - logits[..., 0], (noise[..., 1] - noise[..., 0]) / 2**0.5
        found = flow.step_loss(odds, x, alpha, single)
    else:
        found = flow.step_loss(logits, x, alpha, noise)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_many_small_messages_cost_the_continuous_loss() -> None:
    """n E[step loss] at t = (i - 1) / n tends to it with error O(1 / n), by quadrature."""
    points, weights = hermite()
    logits = torch.tensor([[-3.0], [-0.5], [0.0], [2.0]], dtype=torch.float64)
    x, t = torch.tensor([[1], [0], [1], [1]]), torch.tensor(0.6, dtype=torch.float64)
    exact = BITS.loss(logits, x, t)
    errors = []
    for steps in (100, 1000, 10_000):
        alpha = BITS.alphas(steps)[round(0.6 * steps)]
        cost = BITS.step_loss(logits, x, alpha, points.expand(4, -1))
        errors.append((steps * (cost * weights).sum(1, keepdim=True) - exact).abs().max().item())
    assert errors[2] < 0.02 and errors[0] > 5 * errors[1] > 25 * errors[2]


@pytest.mark.parametrize("p", [0.5, 0.2, 0.03])
@pytest.mark.parametrize("wrong", [0.0, 1.5])
def test_the_bound_of_one_bit_is_its_entropy_and_more_for_a_wrong_prior(
    p: float, wrong: float
) -> None:
    """With the exact posterior, messages plus reconstruction cost H(p) nats, for every number of
    steps and in continuous time; with a prior off by 1.5 nats, the divergence of the two more."""
    points, weights = hermite()
    logit = math.log(p / (1 - p))
    q = 1 / (1 + math.exp(-logit - wrong))
    expected = -p * math.log(q) - (1 - p) * math.log(1 - q)
    x = torch.tensor([[0], [1]])
    share = torch.tensor([1 - p, p], dtype=torch.float64)

    def mean(values: Tensor) -> float:
        """Of (2, points): over the noise, then over x."""
        return float(share @ (values @ weights))

    def posterior(beta: Tensor) -> Tensor:
        return logit + wrong + BITS.message(x, beta, points.expand(2, -1))

    end = mean(-BITS.log_probability(posterior(number(BITS.accuracy)), x.expand(2, 120)))
    times, parts = np.polynomial.legendre.leggauss(60)
    cost = 0.0
    for t, part in zip((times + 1) / 2, parts / 2, strict=True):
        logits = posterior(BITS.beta(number(t)))
        cost += part * mean(BITS.loss(logits, x.expand(2, 120), number(t)))
    assert cost + end == pytest.approx(expected, abs=1e-4)
    for steps in (1, 3, 10):
        cost = 0.0
        for i, alpha in enumerate(BITS.alphas(steps)):
            logits = posterior(BITS.beta(number(i / steps)))[..., None].expand(-1, -1, 120)
            noise, every = points.expand(2, 120, -1), x[..., None].expand(2, 120, 120)
            cost += mean(BITS.step_loss(logits, every, alpha, noise) @ weights)
        assert cost + end == pytest.approx(expected, abs=1e-4)


def test_the_network_reads_nothing_at_the_start() -> None:
    for noise in (torch.randn(6, 4), 1e6 * torch.ones(6, 4)):
        bits = torch.arange(24).view(6, 4) % 2
        assert (BITS.network_input(BITS.message(bits, BITS.beta(number(0)), noise)) == 0).all()
        beliefs = CLASSES.message(bits, CLASSES.beta(number(0)), noise[..., None].expand(6, 4, 5))
        read = CLASSES.network_input(beliefs)
        torch.testing.assert_close(read, torch.full_like(read, 2 / 5 - 1))


def test_extreme_beliefs_do_not_overflow() -> None:
    for value in (40.0, 1e4, 1e30):
        beliefs = torch.tensor([[-value, value]])
        assert BITS.network_input(beliefs).tolist() == [[-1, 1]]
        two = ClassFlow(9.0, codebook_size=2)
        assert two.network_input(beliefs).tolist() == [[-1, 1]]


def test_draws_follow_the_prediction() -> None:
    logits = torch.tensor([0.1, 0.0, 0.6, 0.3]).log()  # 0.0: never
    u = (torch.arange(1000) + 0.5) / 1000
    flow = ClassFlow(3.0, codebook_size=4)
    drawn = flow.draw(logits.expand(1000, 4), u)
    assert drawn.bincount(minlength=4).tolist() == [100, 0, 600, 300]
    assert flow.mode(logits[None]).item() == 2
    bits = BITS.draw(torch.full((1000,), math.log(0.3 / 0.7)), u)
    assert bits.sum().item() == 300
    assert BITS.mode(torch.tensor([-1.0, 0.0, 1.0])).tolist() == [0, 0, 1]


def test_draws_reach_both_ends_and_stay_inside() -> None:
    logits = torch.randn(500, 7, generator=torch.Generator().manual_seed(0)) * 30
    flow = ClassFlow(3.0, codebook_size=7)
    p = logits.softmax(-1)
    for u in (2.0**-24, 1 - 2.0**-24):
        drawn = flow.draw(logits, torch.full((500,), u))
        assert drawn.min() >= 0 and drawn.max() <= 6
        assert (p.gather(-1, drawn[:, None]) > 0).all()
    assert flow.draw(torch.zeros(1, 7), torch.tensor([2.0**-24])).item() == 0
    assert flow.draw(torch.zeros(1, 7), torch.tensor([1 - 2.0**-24])).item() == 6


def test_normal_numbers_are_normal_and_belong_to_their_seed() -> None:
    seeds = torch.arange(1000)
    noise = normal(seeds, 3, (10, 4))
    assert noise.dtype == torch.float64 and noise.shape == (1000, 10, 4)
    flat, count = noise.flatten(), 40_000
    assert abs(flat.mean()) < 4 / math.sqrt(count)
    assert abs(flat.var() - 1) < 4 * math.sqrt(2 / count)
    assert abs((flat**4).mean() - 3) < 4 * math.sqrt(96 / count)
    assert torch.equal(noise[[7, 3]], normal(torch.tensor([7, 3]), 3, (10, 4)))
    assert not torch.equal(noise, normal(seeds, 4, (10, 4)))


def test_impossible_flows_are_refused() -> None:
    for accuracy in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match=f"accuracy: must be > 0, found {accuracy}"):
            BitFlow(accuracy)
    with pytest.raises(ValueError, match="accuracy: must be > 0"):
        ClassFlow(0.0, codebook_size=4)
    with pytest.raises(ValueError, match="codebook_size: expected at least 2, found 1"):
        ClassFlow(1.0, codebook_size=1)
    with pytest.raises(ValueError, match="num_steps: expected 1 to 100,000, found 0"):
        BITS.alphas(0)
