"""Bayesian flow networks: what they read, the training step, and bounds on known entropies."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.config import ConfigError, build_config
from tessella.generators.bayesian_flow_network import (
    BayesianFlowNetwork,
    BayesianFlowNetworkConfig,
)
from tessella.generators.build import GeneratorConfig, build_generator
from tessella.generators.networks.denoising_transformer import DenoisingTransformerConfig
from tessella.generators.noise import normal, uniform
from tessella.tokens.tokens import SpecMismatch, Tokens, TokenSpec

TRUNK = DenoisingTransformerConfig(width=16, num_layers=1, num_heads=2)
BITS = TokenSpec((2, 3), (2,) * 4)
CODES = TokenSpec((2, 3), (5,))
KINDS = [("bits", BITS), ("classes", CODES)]
LN2 = math.log(2)


def build(over: str, spec: TokenSpec, *, seed: int = 0, **fields: Any) -> BayesianFlowNetwork:
    """A tiny network with decided opinions, in eval mode."""
    fields = {"transformer": TRUNK, "num_classes": 3} | fields
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = BayesianFlowNetwork(BayesianFlowNetworkConfig(over=over, **fields), spec).eval()
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return generator


def answering(generator: BayesianFlowNetwork, answer: Any) -> BayesianFlowNetwork:
    """The same, but it predicts answer(beliefs, t) in float32."""
    generator.predict = lambda beliefs, t, *rest: answer(beliefs, t).float()
    return generator


def mixture(num_bits: int, components: int = 4, seed: int = 0) -> Tensor:
    """P(x) of a mixture of products over all 2**n strings, float64, string i has bits of i."""
    rng = torch.Generator().manual_seed(seed)
    p = torch.rand(components, num_bits, generator=rng, dtype=torch.float64) * 0.9 + 0.05
    p = torch.where(p > 0.5, 0.9 + p / 10, p / 10)
    x = strings(num_bits)
    return torch.where(x[:, None] == 1, p, 1 - p).prod(-1).mean(1)


def strings(num_bits: int) -> Tensor:
    return torch.tensor(list(itertools.product((0, 1), repeat=num_bits))).flip(1)


def oracle(p: Tensor, num_bits: int) -> Any:
    """Exact posterior logits of every bit of one position, given all beliefs about it."""
    x = strings(num_bits).double()

    def answer(beliefs: Tensor, t: Tensor) -> Tensor:
        joint = torch.softmax(beliefs[:, 0].double() @ x.T + p.log(), -1)
        return torch.logit(joint @ x, eps=1e-12)[:, None]

    return answer


@pytest.mark.parametrize(
    ("over", "spec", "shape", "beliefs"),
    [
        ("bits", TokenSpec((2, 3), (2,) * 4), (3, 6, 4), (6, 4)),
        ("bits", TokenSpec((6,), (8, 4)), (3, 6, 5), (6, 5)),
        ("classes", TokenSpec((2, 3), (5,)), (3, 6), (6, 5)),
        ("classes", TokenSpec((2, 3), (3, 4)), (3, 6), (6, 12)),
        ("classes", TokenSpec((6,), (2,) * 3, ordered=True), (3, 6), (6, 8)),
    ],
)
def test_variables_are_the_tokens_read_anew(
    make: Any, over: str, spec: TokenSpec, shape: tuple[int, ...], beliefs: tuple[int, ...]
) -> None:
    generator, tokens = build(over, spec), make.tokens(spec)
    x = generator.variables(tokens)
    assert tuple(x.shape) == shape and generator.belief_shape == beliefs
    assert generator.tokens(x, tokens.lengths).equal(tokens)
    expected = tokens.bits() if over == "bits" else tokens.regroup((spec.vocab_size,)).indices
    assert torch.equal(x.flatten(), expected.flatten())
    logits = generator.predict(torch.zeros(3, *beliefs), torch.zeros(3), torch.tensor([0, 1, 3]))
    assert logits.shape == (3, *beliefs) and logits.dtype == torch.float32


def test_the_default_accuracy_keeps_the_gap() -> None:
    """K beta_1 = 18 for every K, as published for bits; text8's 0.5625 is near its 18 / 27."""
    for over, spec, expected in (("bits", BITS, 9.0), ("classes", CODES, 3.6)):
        assert build(over, spec).flow.accuracy == pytest.approx(expected)
        assert build(over, spec, accuracy=2.5).flow.accuracy == 2.5


def test_it_is_a_generator_by_its_config() -> None:
    config = build_config(GeneratorConfig, {"type": "bfn", "over": "classes", "num_classes": 0})
    assert config == BayesianFlowNetworkConfig(over="classes", num_classes=0)
    small = BayesianFlowNetworkConfig(transformer=TRUNK, num_classes=2)
    assert isinstance(build_generator(small, BITS), BayesianFlowNetwork)


@pytest.mark.parametrize(("over", "spec"), KINDS)
def test_the_network_sees_the_input_of_the_flow(over: str, spec: TokenSpec) -> None:
    generator = build(over, spec)
    beliefs = torch.randn(2, *generator.belief_shape, dtype=torch.float64) * 3
    t, labels = torch.tensor([0.1, 0.9]), torch.tensor([0, 2])
    read = beliefs.div(2).tanh() if over == "bits" else 2 * beliefs.softmax(-1) - 1
    expected = generator.network(read, t, labels)
    assert torch.equal(generator.predict(beliefs, t, labels), expected)
    other = generator.predict(beliefs, t.flip(0), labels)
    assert (other - expected).abs().max() > 1e-3
    added = build(over, spec, add_beliefs=True).predict(beliefs, t, labels)
    torch.testing.assert_close(added, expected + beliefs.float())


@pytest.mark.parametrize(("over", "spec"), KINDS)
def test_with_beliefs_added_an_untrained_network_costs_one_bit_per_bit(
    make: Any, over: str, spec: TokenSpec
) -> None:
    """Its output is next to nothing at first, so it knows what its beliefs say."""
    torch.manual_seed(0)
    config = BayesianFlowNetworkConfig(
        transformer=TRUNK, num_classes=3, over=over, add_beliefs=True
    )
    generator, tokens = BayesianFlowNetwork(config, spec), make.tokens(spec, 100)
    torch.nn.init.normal_(generator.network.head.weight, std=1e-3)
    torch.nn.init.zeros_(generator.network.head.bias)
    found = generator.bits_per_dim(tokens, seeds=torch.arange(100), num_times=16)
    assert found.mean().item() == pytest.approx(1, abs=4 * found.std().item() / 10 + 1e-3)


@pytest.mark.parametrize(("over", "spec"), KINDS)
def test_the_training_step_is_the_loss_at_a_time_of_the_seed(
    make: Any, over: str, spec: TokenSpec
) -> None:
    """Computed again by the formulas, from the numbers that belong to each image."""
    generator, tokens = build(over, spec, label_dropout=0.5), make.tokens(spec, 16)
    labels, seeds = torch.arange(16) % 3, torch.arange(16) + 40
    found = generator(tokens, labels, seeds=seeds)
    flow, x = generator.flow, generator.variables(tokens)
    draws = uniform(seeds, 0, (2,))
    t, hidden = draws[:, 0], draws[:, 1] < 0.5
    assert 0 < hidden.sum() < 16
    noise = normal(seeds, 1, generator.belief_shape)
    beta = flow.accuracy * t.double().view(-1, 1, 1) ** 2
    if over == "bits":
        beliefs = 2 * beta * (2 * x - 1) + 2 * beta.sqrt() * noise
    else:
        beliefs = beta * (5 * torch.eye(5)[x] - 1) + (5 * beta).sqrt() * noise
    logits = generator.predict(beliefs, t, torch.where(hidden, 3, labels))
    if over == "bits":
        loss = 4 * 9 * t.view(-1, 1, 1) * (x - logits.sigmoid()) ** 2
        right = (logits > 0) == (x == 1)
    else:
        loss = 18 * t[:, None] * ((torch.eye(5)[x] - logits.softmax(-1)) ** 2).sum(-1)
        right = logits.argmax(-1) == x
    assert found.loss.item() == pytest.approx(loss.mean().item(), rel=1e-5)
    assert found.weight.item() == x.numel()
    nats, count = found.metrics["flow_loss"].tolist()
    assert nats / count == pytest.approx(loss.mean().item(), rel=1e-5) and count == x.numel()
    assert found.metrics["accuracy"].tolist() == [right.sum().item(), x.numel()]
    first = (t <= 0.25).nonzero().flatten()
    sums = found.metrics["flow_loss_0_25"].tolist()
    assert sums == pytest.approx(
        [loss[first].sum().item(), len(first) * x[0].numel()], rel=1e-5
    ) and len(first)
    buckets = [found.metrics[f"flow_loss_{low}_{low + 25}"] for low in (0, 25, 50, 75)]
    assert sum(buckets).tolist() == pytest.approx([nats, count], rel=1e-5)


@pytest.mark.parametrize(("over", "spec"), KINDS)
def test_what_is_drawn_for_an_image_depends_on_its_seed_alone(
    make: Any, over: str, spec: TokenSpec
) -> None:
    generator, tokens = build(over, spec), make.tokens(spec, 6)
    labels, seeds = torch.arange(6) % 3, torch.arange(6) * 7
    shown: list[tuple[Tensor, Tensor]] = []
    predict = generator.predict

    def spy(beliefs: Tensor, t: Tensor, *rest: Any) -> Tensor:
        shown.append((beliefs, t))
        return predict(beliefs, t, *rest)

    generator.predict = spy
    together = generator(tokens, labels, seeds=seeds)
    alone = [generator(tokens[i : i + 1], labels[i : i + 1], seeds=seeds[i : i + 1])
             for i in range(6)]  # fmt: skip
    for i, (beliefs, t) in enumerate(shown[1:]):
        assert torch.equal(beliefs[0], shown[0][0][i]) and torch.equal(t[0], shown[0][1][i])
    mean = sum(one.loss.item() for one in alone) / 6
    assert together.loss.item() == pytest.approx(mean, rel=1e-5)
    assert shown[0][1].unique().numel() == 6


def test_times_are_uniform() -> None:
    generator = answering(build("bits", BITS), lambda beliefs, t: beliefs)
    times: list[Tensor] = []
    predict = generator.predict
    generator.predict = lambda beliefs, t, *rest: (times.append(t), predict(beliefs, t, *rest))[1]
    tokens = Tokens(torch.zeros(4000, 6, 4, dtype=torch.int64), BITS)
    generator(tokens, seeds=torch.arange(4000))
    counts = torch.histc(times[0], 8, 0, 1)
    assert (counts - 500).abs().max() < 4 * math.sqrt(500 * 7 / 8)


@pytest.mark.parametrize("over", ["bits", "classes"])
def test_padding_has_no_influence(make: Any, over: str) -> None:
    spec = TokenSpec((6,), (4,), ordered=True)
    generator, tokens = build(over, spec), make.tokens(spec, 5)
    seeds, labels = torch.arange(5), torch.zeros(5, dtype=torch.int64)
    found = generator(tokens, labels, seeds=seeds)
    junk = Tokens(torch.where(tokens.valid[..., None], tokens.indices, 3), spec, tokens.lengths)
    assert torch.equal(generator(junk, labels, seeds=seeds).loss, found.loss)
    per_position = 2 if over == "bits" else 1
    assert found.weight.item() == tokens.lengths.sum().item() * per_position
    for steps in (None, 2):
        fields = {"seeds": seeds, "num_steps": steps, "num_times": 2}
        bits = generator.bits_per_dim(tokens, labels, **fields)
        assert torch.equal(generator.bits_per_dim(junk, labels, **fields), bits)


@pytest.mark.parametrize("num_steps", [None, 3], ids=["continuous", "steps"])
@pytest.mark.parametrize(("over", "spec"), KINDS)
def test_bits_per_dim_depend_on_seed_and_label_alone(
    make: Any, over: str, spec: TokenSpec, num_steps: int | None
) -> None:
    generator, tokens = build(over, spec), make.tokens(spec, 5)
    fields = {"num_steps": num_steps, "num_times": 4}
    seeds, labels = torch.arange(5) + 9, torch.tensor([0, 1, 2, -1, 3])
    bits = generator.bits_per_dim(tokens, labels, seeds=seeds, **fields)
    assert bits.shape == (5,) and bits.dtype == torch.float64
    for i in range(5):
        rows = slice(i, i + 1)
        alone = generator.bits_per_dim(tokens[rows], labels[rows], seeds=seeds[rows], **fields)
        assert alone.item() == pytest.approx(bits[i].item(), rel=1e-5)
    none = generator.bits_per_dim(tokens, None, seeds=seeds, **fields)
    assert torch.allclose(none[3:], bits[3:], rtol=1e-5)
    assert (none[:3] - bits[:3]).abs().min() > 1e-3
    assert not torch.equal(generator.bits_per_dim(tokens, labels, seeds=seeds + 5, **fields), bits)


@pytest.mark.parametrize(("over", "spec", "size"), [("bits", BITS, 2), ("classes", CODES, 5)])
def test_bits_per_dim_of_a_network_that_says_nothing(
    make: Any, over: str, spec: TokenSpec, size: int
) -> None:
    """p = 1 / K: the continuous loss is K beta_1 (1 - 1 / K) / 2 nats, the reconstruction ln K."""
    generator = answering(build(over, spec), lambda beliefs, t: 0 * beliefs)
    found = generator.bits_per_dim(make.tokens(spec, 200), seeds=torch.arange(200), num_times=16)
    expected = (18 * (1 - 1 / size) / 2 + math.log(size)) / math.log(size)
    sigma = 18 * (1 - 1 / size) / math.log(size) / 16 / math.sqrt(12 * 16 * 200)
    assert found.mean().item() == pytest.approx(expected, abs=4 * sigma)


@pytest.mark.parametrize("num_steps", [None, 1, 5], ids=["continuous", "1", "5"])
@pytest.mark.parametrize(("over", "spec"), KINDS)
def test_knowing_nothing_costs_one_bit_per_bit(
    make: Any, over: str, spec: TokenSpec, num_steps: int | None
) -> None:
    """Uniform data and its exact posterior, the beliefs themselves: 1, within 4 sigma."""
    generator = answering(build(over, spec), lambda beliefs, t: beliefs)
    count = 400
    found = generator.bits_per_dim(
        make.tokens(spec, count), seeds=torch.arange(count), num_steps=num_steps, num_times=16
    )
    sigma = found.std().item() / math.sqrt(count)
    assert sigma < 0.02
    assert found.mean().item() == pytest.approx(1, abs=4 * sigma)


def test_bounds_stay_above_the_entropy_and_tighten() -> None:
    """A mixture over 6 bits with exact posteriors of each bit: continuous <= n-step <= ... <= 1,
    all above the entropy, the continuous one by less than a tenth of it."""
    num_bits, count = 6, 3000
    p, spec = mixture(num_bits), TokenSpec((1,), (2,) * num_bits)
    entropy = -(p * p.log2()).sum().item() / num_bits
    rng = torch.Generator().manual_seed(3)
    x = strings(num_bits)[torch.multinomial(p, count, replacement=True, generator=rng)]
    generator = answering(build("bits", spec), oracle(p, num_bits))
    exact = -torch.log2(p)[(x * 2 ** torch.arange(num_bits)).sum(1)] / num_bits
    means = {}
    for steps in (None, 16, 4, 1):
        found = generator.bits_per_dim(
            Tokens(x[:, None], spec), seeds=torch.arange(count), num_steps=steps, num_times=16
        )
        excess = found - exact  # less noise than the bound itself: the data drops out
        sigma = excess.std().item() / math.sqrt(count)
        means[steps] = excess.mean().item()
        assert means[steps] > -4 * sigma and sigma < 0.01
    assert means[None] < means[16] < means[4] < means[1]
    assert 0.02 < entropy < 1 and means[None] < 0.1 * entropy
    wrong = answering(generator, oracle(mixture(num_bits, seed=1), num_bits))
    found = wrong.bits_per_dim(Tokens(x[:, None], spec), seeds=torch.arange(count), num_times=16)
    assert (found - exact).mean().item() > means[None] + 0.05


@pytest.mark.parametrize(("over", "spec"), KINDS)
def test_a_class_is_learned(make: Any, over: str, spec: TokenSpec) -> None:
    """Two images, two labels: the loss falls below a tenth, and a wrong label costs bits."""
    tokens = make.tokens(spec, 2)
    torch.manual_seed(0)
    config = BayesianFlowNetworkConfig(transformer=TRUNK, num_classes=2, over=over)
    generator = BayesianFlowNetwork(config, spec)
    optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-2)
    both, labels, losses = tokens[torch.arange(16) % 2], torch.arange(16) % 2, []
    for step in range(60):
        loss = generator(both, labels, seeds=torch.arange(16) + 16 * step).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.1 * sum(losses[:5])
    generator.eval()
    fields = {"seeds": torch.arange(2), "num_times": 32}
    right = generator.bits_per_dim(tokens, torch.tensor([0, 1]), **fields).mean()
    wrong = generator.bits_per_dim(tokens, torch.tensor([1, 0]), **fields).mean()
    assert right < 0.5 and wrong > 2 * right


def test_hashes_are_fitted_before_the_first_step(make: Any) -> None:
    trunk = DenoisingTransformerConfig(
        width=16, num_layers=2, num_heads=2, binarized_attention="hashed"
    )
    spec = TokenSpec((5, 5), (2,) * 4)
    generator, tokens = build("bits", spec, transformer=trunk), make.tokens(spec, 4)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    generator.calibrate(tokens, torch.zeros(4, dtype=torch.int64), seed=0)
    after = generator.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("hash" in name for name in changed)
    assert generator.attention == "hashed"
    assert generator(tokens, seeds=torch.arange(4)).loss.isfinite()


def test_attention_is_chosen_by_name() -> None:
    generator = build("bits", BITS)
    generator.set_attention_backend("plain")
    assert generator.attention == "plain"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"accuracy": 0.0}, r"accuracy: must be > 0, found 0\.0"),
        ({"accuracy": math.inf}, "accuracy: must be > 0, found inf"),
        ({"num_classes": -1}, "num_classes: expected at least 0, found -1"),
        ({"label_dropout": 1.5}, r"label_dropout: expected 0 to 1, found 1\.5"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BayesianFlowNetworkConfig(**fields)
    with pytest.raises(ConfigError, match="over"):
        build_config(GeneratorConfig, {"type": "bfn", "over": "tokens"})


def test_tokens_that_it_cannot_read_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"over: bits.*not powers of two; use over: classes"):
        build("bits", CODES)
    with pytest.raises(ValueError, match=r"up to 16384 values of a position.*32768; use over: bit"):
        build("classes", TokenSpec((4,), (2**15,)))
    with pytest.raises(ValueError, match="num_classes: not given"):
        build("bits", BITS, num_classes=None)
    generator = build("bits", BITS)
    with pytest.raises(SpecMismatch, match="this generator reads 2x3 tokens of"):
        generator(make.tokens(CODES))
    with pytest.raises(ValueError, match="num_times: expected at least 1, found 0"):
        generator.bits_per_dim(make.tokens(BITS), seeds=torch.arange(3), num_times=0)
    with pytest.raises(ValueError, match="num_steps: expected 1 to 100,000, found 0"):
        generator.bits_per_dim(make.tokens(BITS), seeds=torch.arange(3), num_steps=0)
