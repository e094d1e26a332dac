"""The sampler of Bayesian flows: exact posteriors give the data back, seeds, editing, guidance."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tessella.config import ConfigError, build_config
from tessella.generators.bayesian_flow_network import (
    BayesianFlowNetwork,
    BayesianFlowNetworkConfig,
)
from tessella.generators.networks.denoising_transformer import DenoisingTransformerConfig
from tessella.sample.bayesian_flow import FlowSampling, sample_flow
from tessella.sample.request import Request
from tessella.tokens.tokens import SpecMismatch, Tokens, TokenSpec

TRUNK = DenoisingTransformerConfig(width=16, num_layers=1, num_heads=2)
GRID = TokenSpec((2, 3), (2,) * 4)
KINDS = [("bits", GRID), ("classes", TokenSpec((2, 3), (5,)))]


def network(over: str, spec: TokenSpec, **fields: Any) -> BayesianFlowNetwork:
    """A tiny network with decided opinions, in eval mode."""
    fields = {"transformer": TRUNK, "num_classes": 3} | fields
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = BayesianFlowNetwork(BayesianFlowNetworkConfig(over=over, **fields), spec).eval()
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return generator


def sample(generator: BayesianFlowNetwork, batch: int, **fields: Any) -> Tokens:
    """`sample_flow` with seeds 0, 1, 2, ... and settings in place of a config."""
    names, predict = ("known", "mask", "lengths"), fields.pop("predict", None)
    state = {name: fields.pop(name) for name in names if name in fields}
    labels = fields.pop("labels", torch.zeros(batch, dtype=torch.int64))
    seeds = fields.pop("seeds", torch.arange(batch))
    request = Request(labels, seeds, **state)
    return sample_flow(generator, request, FlowSampling(**fields), predict=predict)


def strings(num_bits: int) -> Tensor:
    """All of them; string i has the bits of i, lowest first."""
    return torch.tensor(list(itertools.product((0, 1), repeat=num_bits))).flip(1)


def mixture(num_bits: int, components: int = 4) -> Tensor:
    """P(x) of a mixture of products over all strings, float64."""
    rng = torch.Generator().manual_seed(0)
    p = torch.rand(components, num_bits, generator=rng, dtype=torch.float64)
    p = torch.where(p > 0.5, 0.9 + p / 10, p / 10)
    x = strings(num_bits)
    return torch.where(x[:, None] == 1, p, 1 - p).prod(-1).mean(1)


def oracle(p: Tensor) -> Any:
    """Exact posterior logits of every bit of one position, given the beliefs about all."""
    x = strings(int(math.log2(len(p)))).double()

    def predict(beliefs: Tensor, t: Tensor, labels: Tensor, *rest: Any) -> Tensor:
        joint = torch.softmax(beliefs.flatten(1).double() @ x.T + p.log(), -1)
        return torch.logit(joint @ x, eps=1e-12).view(beliefs.shape)

    return predict


def counts(tokens: Tokens) -> Tensor:
    """How often each string of all bits of an image was drawn, float64."""
    bits = tokens.bits().flatten(1)
    numbers = (bits * 2 ** torch.arange(bits.shape[1])).sum(1)
    return torch.bincount(numbers, minlength=2 ** bits.shape[1]).double()


def within_4_sigma(found: Tensor, p: Tensor) -> bool:
    count = found.sum()
    return bool(((found - count * p).abs() <= 4 * (count * p * (1 - p)).sqrt() + 1e-9).all())


@pytest.mark.parametrize("num_steps", [1, 3, 20])
def test_a_single_variable_comes_out_exactly(num_steps: int) -> None:
    """With its exact posterior, for every number of steps: bits, and five classes."""
    count = 10_000
    for over, spec, p in (
        ("bits", TokenSpec((1,), (2,)), torch.tensor([0.8, 0.2])),
        ("classes", TokenSpec((1,), (5,)), torch.tensor([0.5, 0.05, 0.25, 0.0, 0.2])),
    ):
        p = p.double()
        generator = network(over, spec)
        prior = (p[1] / p[0]).log() if over == "bits" else p.log().clamp(min=-1e4)

        def predict(beliefs: Tensor, *rest: Any, prior: Tensor = prior) -> Tensor:
            return beliefs + prior

        tokens = sample(generator, count, num_steps=num_steps, final="sample", predict=predict)
        found = torch.bincount(tokens.indices.flatten(), minlength=len(p)).double()
        assert within_4_sigma(found, p)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_few_steps_give_what_quadrature_gives(num_steps: int) -> None:
    """Two equal bits: values are drawn independently at first, which a sum over all draws and
    Gauss-Hermite points predicts. The step bias is there, and it is the exact one."""
    p, accuracy = torch.tensor([0.45, 0.05, 0.05, 0.45], dtype=torch.float64), 1.5
    generator = network("bits", TokenSpec((1,), (2, 2)), accuracy=accuracy)
    points, weights = np.polynomial.hermite_e.hermegauss(16)
    noise = torch.tensor(list(itertools.product(points, repeat=2)))
    mass = torch.tensor(np.outer(weights, weights).ravel()) / (2 * math.pi)
    beliefs, share = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    x = strings(2)

    def probabilities(beliefs: Tensor) -> Tensor:
        """Of all strings, each bit drawn by its own posterior, (B, 4)."""
        joint = torch.softmax(beliefs @ x.T.double() + p.log(), -1)
        one = (joint @ x.double())[:, None]
        return torch.where(x == 1, one, 1 - one).prod(-1)

    for i in range(num_steps):
        alpha = accuracy * (2 * i + 1) / num_steps**2
        steps = 2 * alpha * (2 * x - 1)[:, None] + 2 * math.sqrt(alpha) * noise  # (4, points, 2)
        each = share[:, None] * probabilities(beliefs)
        share = (each[:, :, None] * mass).flatten()
        beliefs = (beliefs[:, None, None] + steps).flatten(0, 2)
    expected = share @ probabilities(beliefs)
    assert expected.sum().item() == pytest.approx(1, abs=1e-9)
    assert (expected - p).abs().max() > 0.02
    tokens = sample(generator, 20_000, num_steps=num_steps, final="sample", predict=oracle(p))
    assert within_4_sigma(counts(tokens), expected)


def test_more_steps_approach_the_data() -> None:
    """A mixture over 6 bits: total variation within sampling noise plus the root of half the excess
    of the n-step bound (Pinsker), and falling."""
    num_bits, count = 6, 8000
    p, spec = mixture(num_bits), TokenSpec((1,), (2,) * num_bits)
    generator, predict = network("bits", spec), oracle(p)
    generator.predict = lambda *state: predict(*state, *(None,) * (4 - len(state)))
    rng = torch.Generator().manual_seed(1)
    numbers = torch.multinomial(p, 2000, replacement=True, generator=rng)
    data = Tokens(strings(num_bits)[numbers][:, None], spec)
    exact = -p.log()[numbers]
    noise = (
        2 * p * (1 - p) / (math.pi * count)
    ).sqrt().sum() / 2  # mean of |N(0, s)| is s sqrt(2/pi)
    found = {}
    for steps in (1, 4, 16, 64):
        tokens = sample(generator, count, num_steps=steps, final="sample", predict=predict)
        found[steps] = (counts(tokens) / count - p).abs().sum().item() / 2
        nats = generator.bits_per_dim(data, seeds=torch.arange(2000), num_steps=steps)
        excess = (nats * num_bits * math.log(2) - exact).mean().item()
        bias = math.sqrt(max(excess, 0) / 2)
        assert found[steps] < bias + noise + 4 * math.sqrt(1 / (4 * count))
    assert found[64] < found[16] < found[4] < found[1]
    assert found[64] < 0.05 and found[1] > 0.2


@pytest.mark.parametrize(("over", "spec"), KINDS)
def test_image_i_depends_on_seed_i_alone(over: str, spec: TokenSpec) -> None:
    generator = network(over, spec)
    labels, seeds = torch.arange(8) % 4, torch.arange(8) * 5
    fields = {"num_steps": 4, "guidance": 1.5, "final": "sample"}
    together = sample(generator, 8, labels=labels, seeds=seeds, **fields)
    together.validate()
    assert together.spec == spec and together.indices.flatten(1).unique(dim=0).shape[0] == 8
    order = torch.tensor([5, 0, 3])
    some = sample(generator, 3, labels=labels[order], seeds=seeds[order], **fields)
    assert some.equal(together[order])


@pytest.mark.parametrize(("over", "spec"), KINDS)
def test_steps_times_and_beliefs(over: str, spec: TokenSpec) -> None:
    """n + 1 passes at t = 0, 1/n, ..., 1; the first beliefs are 0; with a network that is sure,
    beliefs follow the flow of what it says, and that comes out."""
    generator, shown = network(over, spec), []
    rng = torch.Generator().manual_seed(0)
    truth = torch.randint(generator.flow.size, (1, *generator.variables(
        Tokens(torch.zeros(1, 6, spec.num_codebooks, dtype=torch.int64), spec)).shape[1:]),
        generator=rng)  # fmt: skip
    sure = 2 * truth - 1 if over == "bits" else torch.eye(5)[truth]

    def predict(beliefs: Tensor, t: Tensor, *rest: Any) -> Tensor:
        shown.append((beliefs, t))
        return (100.0 * sure).expand(beliefs.shape)

    batch = 400
    tokens = sample(generator, batch, num_steps=5, predict=predict)
    assert torch.equal(generator.variables(tokens), truth.expand(batch, *truth.shape[1:]))
    assert [float(t[0]) for _, t in shown] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert (shown[0][0] == 0).all()
    for beliefs, t in shown[1:]:
        beta, count = generator.flow.accuracy * float(t[0]) ** 2, beliefs.numel()
        if over == "bits":
            mean, variance = 2 * beta * (2 * truth - 1), 4 * beta
        else:
            mean, variance = beta * (5 * torch.eye(5)[truth] - 1), 5 * beta
        rest = beliefs - mean
        assert abs(rest.mean().item()) < 4 * math.sqrt(variance / count)
        assert rest.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / count))


@pytest.mark.parametrize(("over", "spec"), KINDS)
@pytest.mark.parametrize("final", ["mode", "sample"])
def test_known_positions_stay_and_are_believed_from_the_start(
    over: str, spec: TokenSpec, final: str
) -> None:
    """At the mean of the flow at t = 1, in every step; what lay under the mask does not matter."""
    generator, batch, shown = network(over, spec), 20, []
    rng = torch.Generator().manual_seed(2)
    columns = [torch.randint(size, (batch, 6), generator=rng) for size in spec.codebook_sizes]
    known = Tokens(torch.stack(columns, -1), spec)
    mask = torch.rand(batch, 6, generator=rng) < 0.5
    mask[:, 0] = True

    def predict(beliefs: Tensor, t: Tensor, *rest: Any) -> Tensor:
        shown.append(beliefs)
        return generator.predict(beliefs, t, *rest)

    fields = {"num_steps": 3, "mask": mask, "final": final}
    found = sample(generator, batch, known=known, predict=predict, **fields)
    assert torch.equal(found.indices[~mask], known.indices[~mask])
    assert not torch.equal(found.indices[mask], known.indices[mask])
    x = generator.variables(known)[~mask]
    mean = 18 * (2.0 * x - 1) if over == "bits" else 3.6 * (5 * torch.eye(5)[x] - 1)
    for beliefs in shown:
        torch.testing.assert_close(beliefs[~mask], mean.double(), rtol=1e-6, atol=0)
    assert (shown[0][mask] == 0).all() and (shown[1][mask] != 0).all()
    other = Tokens(torch.where(mask[..., None], 0, known.indices), spec)
    assert sample(generator, batch, known=other, **fields).equal(found)


@pytest.mark.parametrize("num_steps", [8, 64])
def test_known_positions_condition_the_others(num_steps: int) -> None:
    """Two positions that agree in 9 of 10 images: for a single new bit, with its exact posterior,
    for every number of steps."""
    p = torch.tensor([0.45, 0.05, 0.05, 0.45], dtype=torch.float64)
    generator, count = network("bits", TokenSpec((2,), (2,))), 10_000
    known = Tokens((torch.arange(count) % 2)[:, None, None].expand(-1, 2, 1), generator.spec)
    mask = torch.tensor([False, True]).expand(count, 2)
    fields = {"num_steps": num_steps, "final": "sample", "predict": oracle(p)}
    found = sample(generator, count, known=known, mask=mask, **fields)
    assert within_4_sigma(counts(found), p)


def test_all_positions_hidden_is_sampling() -> None:
    generator = network("bits", GRID)
    known = Tokens(torch.ones(3, 6, 4, dtype=torch.int64), GRID)
    mask = torch.ones(3, 6, dtype=torch.bool)
    found = sample(generator, 3, num_steps=3, known=known, mask=mask)
    assert found.equal(sample(generator, 3, num_steps=3))


@pytest.mark.parametrize("over", ["bits", "classes"])
def test_lengths_of_ordered_tokens(over: str) -> None:
    spec = TokenSpec((6,), (4,), ordered=True)
    generator = network(over, spec)
    lengths, fields = torch.tensor([2, 6, 4]), {"num_steps": 3, "guidance": 2.0}
    found = sample(generator, 3, lengths=lengths, **fields)
    found.validate()
    assert found.lengths is not None and found.lengths.tolist() == [2, 6, 4]
    for i in range(3):
        rows = slice(i, i + 1)
        alone = sample(generator, 1, seeds=torch.tensor([i]), lengths=lengths[rows], **fields)
        assert alone.equal(found[rows])
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[:, 1] = True
    longer = torch.tensor([4, 6, 5])
    shown: list[Tensor] = []

    def predict(beliefs: Tensor, *rest: Any) -> Tensor:
        shown.append(beliefs[:3])  # of the labels' half
        return generator.predict(beliefs, *rest)

    state = {"known": found, "mask": mask, "lengths": longer, "predict": predict}
    edited = sample(generator, 3, **state, **fields)
    edited.validate()
    added = ~found.valid & edited.valid  # was never known, so it is drawn
    assert added.any() and (shown[0][added] == 0).all() and (shown[1][added] != 0).all()
    kept = found.valid & ~mask
    assert torch.equal(edited.indices[kept], found.indices[kept])
    assert edited.lengths is not None and edited.lengths.tolist() == [4, 6, 5]


@pytest.mark.parametrize(("over", "spec"), KINDS)
def test_guidance_and_temperature_act_on_the_logits(over: str, spec: TokenSpec) -> None:
    """uncond + scale * (cond - uncond), over the temperature: one network that gives just that."""
    generator = network(over, spec)
    labels = torch.tensor([0, 1, 2, 3])

    def guided(beliefs: Tensor, t: Tensor, labels: Tensor, *rest: Any) -> Tensor:
        cond = generator.predict(beliefs, t, labels, *rest)
        uncond = generator.predict(beliefs, t, torch.full_like(labels, 3), *rest)
        return (uncond + 2.5 * (cond - uncond)) / 0.7

    fields = {"labels": labels, "num_steps": 4, "final": "sample"}
    found = sample(generator, 4, guidance=2.5, temperature=0.7, **fields)
    assert found.equal(sample(generator, 4, predict=guided, **fields))
    assert not found.equal(sample(generator, 4, **fields))
    passes = []

    def spy(beliefs: Tensor, *rest: Any) -> Tensor:
        passes.append(len(beliefs))
        return generator.predict(beliefs, *rest)

    sample(generator, 4, predict=spy, **fields)
    sample(generator, 4, predict=spy, guidance=2.0, **fields)
    assert passes == [4] * 5 + [8] * 5


def test_the_mode_is_the_likeliest_and_a_sample_is_drawn() -> None:
    generator = network("bits", TokenSpec((50,), (2,)))

    def predict(beliefs: Tensor, *rest: Any) -> Tensor:
        return torch.full(beliefs.shape, math.log(0.7 / 0.3))

    assert sample(generator, 100, num_steps=1, predict=predict).indices.all()
    drawn = sample(generator, 100, num_steps=1, final="sample", predict=predict)
    share = drawn.indices.double().mean().item()
    assert share == pytest.approx(0.7, abs=4 * math.sqrt(0.21 / 5000))


@pytest.mark.parametrize("fault", [math.nan, math.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("step", [1, 3])
def test_logits_that_are_not_finite_are_an_error_naming_the_step(
    step: int, guidance: float, fault: float
) -> None:
    generator, calls = network("bits", GRID), []

    def predict(beliefs: Tensor, *rest: Any) -> Tensor:
        calls.append(0)
        logits = torch.zeros(beliefs.shape)
        if len(calls) == step:
            logits[1, 2, 3] = fault
        return logits

    with pytest.raises(ValueError, match=f"logits are not finite in step {step}$"):
        sample(generator, 2, num_steps=2, guidance=guidance, predict=predict)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_steps": 0}, "num_steps: expected 1 to 100,000, found 0"),
        ({"guidance": -1.0}, r"guidance: expected at least 0, found -1\.0"),
        ({"temperature": 0.0}, r"temperature: must be > 0, found 0\.0"),
        ({"temperature": math.inf}, "temperature: must be > 0, found inf"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowSampling(**fields)
    with pytest.raises(ConfigError, match="final"):
        build_config(FlowSampling, {"type": "flow", "final": "map"})


def test_what_does_not_fit_is_refused() -> None:
    generator = network("bits", GRID)
    known = Tokens(torch.zeros(2, 6, 4, dtype=torch.int64), GRID)
    mask = torch.ones(2, 6, dtype=torch.bool)
    foreign = Tokens(torch.zeros(2, 6, 1, dtype=torch.int64), TokenSpec((2, 3), (16,)))
    for fields, message in (
        ({"known": known}, "go together"),
        ({"mask": mask}, "go together"),
        ({"known": known, "mask": mask[:, :5]}, r"mask: expected \(2, 6\) bool, found \(2, 5\)"),
        ({"known": known, "mask": mask.long()}, r"mask: expected \(2, 6\) bool, found.*int64"),
        ({"known": known[:1], "mask": mask}, "known: expected 2 images, found 1"),
    ):
        with pytest.raises(ValueError, match=message):
            sample(generator, 2, **fields)
    with pytest.raises(ValueError, match="nothing to draw anew"):
        Request.make(generator, num=2, known=known, mask=mask & False)
    with pytest.raises(SpecMismatch, match="the generator reads"):
        sample(generator, 2, known=foreign, mask=mask)
    with pytest.raises(ValueError, match="guidance: this generator is unconditional"):
        sample(network("bits", GRID, num_classes=0), 2, guidance=2.0)
