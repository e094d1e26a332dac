"""The sampler of Bernoulli diffusion against oracles: exact denoisers of known distributions.

The chain that an oracle and the kernel make is enumerated over all states of 8 bits, by formulas of
its own, and compared with what is sampled.
"""

import itertools
import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.generators.binary_latent_diffusion import (
    BinaryLatentDiffusion,
    BinaryLatentDiffusionConfig,
)
from tessella.generators.networks.denoising_transformer import DenoisingTransformerConfig
from tessella.generators.processes.bernoulli import BernoulliDiffusion
from tessella.sample.binary_latent_diffusion import BernoulliSampling, sample_bernoulli
from tessella.sample.request import Request
from tessella.tokens.tokens import SpecMismatch, Tokens, TokenSpec

TRUNK = DenoisingTransformerConfig(width=16, num_layers=2, num_heads=2)
SPEC = TokenSpec((2,), (2,) * 4)
GRID = TokenSpec((4, 4), (8, 8))
STATES = torch.tensor(list(itertools.product((0, 1), repeat=8)))
WEIGHTS = 2 ** torch.arange(7, -1, -1)
"""Number of a state: its bits, the first one highest."""
DIFFER = (STATES[:, None] != STATES).double()  # (x_0, x_t, bit)
STEPS = 32


class Oracle(BinaryLatentDiffusion):
    """A model whose logits are a known function of what it is shown; remembers every call."""

    def __init__(
        self, spec: TokenSpec, answer: Any, *, num_classes: int = 3, **fields: Any
    ) -> None:
        process = BernoulliDiffusion(**{"num_steps": STEPS, **fields})
        super().__init__(
            BinaryLatentDiffusionConfig(
                transformer=TRUNK, diffusion=process, num_classes=num_classes
            ),
            spec,
        )
        self.answer = answer
        self.calls: list[tuple[Tensor, ...]] = []
        self.eval()

    def predict(self, bits: Tensor, t: Tensor, labels: Tensor, *rest: Any) -> Tensor:
        self.calls.append((bits.clone(), t.clone(), labels.clone()))
        return self.answer(bits, t, labels)


def network(spec: TokenSpec, **fields: Any) -> BinaryLatentDiffusion:
    """A small random network with decided opinions."""
    process = BernoulliDiffusion(num_steps=8)
    fields = {"transformer": TRUNK, "diffusion": process, "num_classes": 3} | fields
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BinaryLatentDiffusion(BinaryLatentDiffusionConfig(**fields), spec).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def sample(generator: Any, batch: int, *, labels: Tensor | None = None, **fields: Any) -> Tokens:
    """`sample_bernoulli` with seeds 0, 1, 2, ... and settings in place of a config."""
    names, predict = ("known", "mask", "lengths"), fields.pop("predict", None)
    state = {name: fields.pop(name) for name in names if name in fields}
    labels = torch.zeros(batch, dtype=torch.int64) if labels is None else labels
    seeds = fields.pop("seeds", torch.arange(batch))
    request = Request(labels, seeds, **state)
    return sample_bernoulli(generator, request, BernoulliSampling(**fields), predict=predict)


def random_tokens(spec: TokenSpec, batch: int, seed: int = 5) -> Tokens:
    rng = torch.Generator().manual_seed(seed)
    columns = [
        torch.randint(size, (batch, spec.num_tokens), generator=rng) for size in spec.codebook_sizes
    ]
    return Tokens(torch.stack(columns, -1), spec)


def mixture() -> Tensor:
    """A distribution over `STATES`: four components of independent, mostly decided bits."""
    rng = torch.Generator().manual_seed(0)
    chance = torch.rand(4, 8, generator=rng, dtype=torch.float64).mul(12).sub(6).sigmoid()
    likelihood = torch.where(STATES[:, None] == 1, chance, 1 - chance).prod(-1)
    return likelihood @ torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


def between(rate: float) -> Tensor:
    """(256, 256): probability of one state from another if each bit flips with this rate."""
    return (DIFFER * rate + (1 - DIFFER) * (1 - rate)).prod(-1)


@cache
def flip_posterior(t: int) -> Tensor:
    """P(bit of x_0 differs | x_t) for every x_t, (256, 8), linear schedule: by summing over x_0."""
    joint = mixture()[:, None] * between(t / STEPS / 2)
    return torch.einsum("ab,abk->bk", joint / joint.sum(0), DIFFER)


def exact(loss: str) -> Any:
    """The exact posterior as logits in the sense of a loss."""

    def answer(bits: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        time = int(t[0])
        logits = flip_posterior(time).logit()
        if loss == "balanced":
            rate = time / STEPS / 2
            logits = logits + math.log((1 - rate) / rate)
        return logits[(bits.flatten(1) * WEIGHTS).sum(1)].view_as(bits)

    return answer


def chain(pairs: tuple[tuple[int, int], ...]) -> Tensor:
    """Where the chain of these steps ends: the sum over x_0 of q(x_s | x_t, x_0) p(x_0 | x_t) per
    bit, as matrices over all states, from fair coins; linear schedule."""
    state = torch.full((256,), 1 / 256, dtype=torch.float64)
    for t, s in pairs:
        f, early, late = flip_posterior(t), s / STEPS / 2, t / STEPS / 2
        delta = (1 - (1 - t / STEPS) / (1 - s / STEPS)) / 2
        flip = f * (1 - early) * delta / late + (1 - f) * early * delta / (1 - late)
        matrix = (DIFFER * flip[:, None] + (1 - DIFFER) * (1 - flip[:, None])).prod(-1)
        state = state @ matrix
    return state


def counts(tokens: Tokens) -> Tensor:
    states = (tokens.bits().flatten(1) * WEIGHTS).sum(1)
    return torch.bincount(states, minlength=256)


def variation(p: Tensor, q: Tensor) -> float:
    """Total-variation distance."""
    return (p - q).abs().sum().item() / 2


def test_more_steps_are_nearer_to_the_data() -> None:
    """Bits of one step are independent of each other, so few steps lose their dependence."""
    steps = BernoulliDiffusion(num_steps=STEPS).steps
    distances = [variation(chain(steps(count)), mixture()) for count in (1, 8, 16, 32)]
    assert distances == pytest.approx([0.578, 0.088, 0.042, 0.022], abs=1e-3)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 16, 32])
@pytest.mark.parametrize("loss", ["plain", "balanced"])
def test_samples_are_those_of_the_enumerated_chain(loss: Any, num_steps: int) -> None:
    """n = 20,000 images of 8 bits: every one of the 256 states within 4 sigma, at any stride."""
    generator, count = Oracle(SPEC, exact(loss), loss=loss), 20_000
    expected = chain(generator.diffusion.steps(num_steps))
    found = counts(sample(generator, count, num_steps=num_steps))
    sigma = (expected * (1 - expected) / count).sqrt()
    assert ((found / count - expected).abs() <= 4 * sigma + 0.5 / count).all()
    assert [int(t[0]) for _, t, _ in generator.calls] == [
        t for t, _ in generator.diffusion.steps(num_steps)
    ]


def test_a_crossed_pair_misses() -> None:
    """The balanced kernel with calibrated logits, which no config can ask for."""
    count, data = 20_000, mixture()
    crossed = counts(sample(Oracle(SPEC, exact("plain"), loss="balanced"), count)) / count
    right = counts(sample(Oracle(SPEC, exact("balanced"), loss="balanced"), count)) / count
    assert variation(crossed, data) > 0.3
    assert variation(right, data) < 0.1


def test_the_last_step() -> None:
    """`map` takes the likelier bits, `reference` the sign of the logit; the loss decides whether
    these are the same."""
    target = torch.linspace(-3, 3, 8).view(1, 2, 4)
    evidence = math.log(63)  # rho_1 = 1 / 64

    def answer(bits: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return target.expand(len(bits), -1, -1) + (evidence - 1 if t[0] == 1 else 0)

    for loss, final, shift in (
        ("balanced", "map", -1.0),
        ("balanced", "reference", evidence - 1),
        ("plain", "map", evidence - 1),
        ("plain", "reference", evidence - 1),
    ):
        generator = Oracle(SPEC, answer, loss=loss)
        found = sample(generator, 4, final=final).bits()
        before = generator.calls[-1][0]
        assert torch.equal(found != before, (target + shift > 0).expand(4, -1, -1)), (loss, final)
    drawn = sample(Oracle(SPEC, answer), 4000).bits()
    generator = Oracle(SPEC, answer)
    assert torch.equal(sample(generator, 4000).bits(), drawn)
    flipped = (drawn != generator.calls[-1][0]).double().mean(0)
    p = (target[0].double() - 1).sigmoid()
    assert ((flipped - p).abs() < 4 * (p * (1 - p) / 4000).sqrt()).all()


def test_guidance_and_temperature_of_1_are_off_bit_for_bit() -> None:
    model = network(GRID)
    labels = torch.tensor([0, 1, 2, 3])
    plain = sample(model, 4, labels=labels)
    assert sample(model, 4, labels=labels, guidance=1.0, temperature=1.0).equal(plain)
    calls = []

    def counted(*arguments: Any) -> Tensor:
        calls.append(len(arguments[0]))
        return model.predict(*arguments)

    assert sample(model, 4, labels=labels, guidance=1.0, predict=counted).equal(plain)
    assert calls == [4] * 8
    guided = sample(model, 4, labels=labels, guidance=3.0, predict=counted)
    assert calls[8:] == [8] * 8 and not guided.equal(plain)
    assert guided[3:].equal(plain[3:])  # without a label there is nothing to guide


def test_guidance_is_of_the_house() -> None:
    """uncond + w (cond - uncond) over the temperature: a model of constant logits at one step."""
    cond, uncond = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(0))

    def answer(bits: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return torch.where((labels == 3)[:, None, None], uncond, cond)

    generator, count = Oracle(SPEC, answer), 8192
    sampled = sample(generator, count, guidance=2.5, temperature=0.7, num_steps=1).bits()
    half = len(generator.calls[0][0]) // 2
    assert half == count and (generator.calls[0][2][half:] == 3).all()
    p = ((uncond + 2.5 * (cond - uncond)) / 0.7).double().sigmoid()
    flipped = (sampled != generator.calls[0][0][:half]).double().mean(0)
    assert ((flipped - p).abs() < 4 * (p * (1 - p) / count).sqrt()).all()


def test_an_image_depends_on_its_seed_alone() -> None:
    model, labels = network(GRID), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    seeds = torch.tensor([5, -1, 2**40, 0, 3, 9, 5])
    whole = sample(model, 7, labels=labels, seeds=seeds, guidance=2.0)
    order = torch.tensor([3, 6, 0])
    some = sample(model, 3, labels=labels[order], seeds=seeds[order], guidance=2.0)
    assert some.equal(whole[order])
    other = sample(model, 7, labels=labels, seeds=seeds + 1, guidance=2.0)
    assert not other.equal(whole)
    whole.validate()
    assert whole.spec == GRID


def test_known_positions_never_change_and_are_shown_as_they_are() -> None:
    known = random_tokens(GRID, 3)
    mask = torch.rand(3, 16, generator=torch.Generator().manual_seed(1)) < 0.5
    model = Oracle(GRID, lambda bits, t, labels: torch.full(bits.shape, 30.0))
    found = sample(model, 3, known=known, mask=mask)
    kept = ~mask[..., None].expand_as(found.indices)
    assert torch.equal(found.indices[kept], known.indices[kept])
    kept = ~mask[..., None].expand(-1, -1, 6)
    for bits, _, _ in model.calls:
        assert torch.equal(bits[kept], known.bits()[kept])
    assert (found.indices != known.indices)[mask].any()
    real = network(GRID)
    found = sample(real, 3, known=known, mask=mask, guidance=2.0)
    assert torch.equal(found.indices[~mask], known.indices[~mask])
    everything = torch.ones_like(mask)
    assert sample(real, 3, known=known, mask=everything).equal(sample(real, 3))


def test_lengths() -> None:
    """Padding is 0 and not seen; known images keep their lengths unless told otherwise."""
    spec = TokenSpec((5,), (16,), ordered=True)
    model, lengths = network(spec), torch.tensor([5, 2, 3])
    found = sample(model, 3, lengths=lengths)
    assert torch.equal(found.lengths, lengths)
    found.validate()
    again = sample(model, 3, known=found, mask=torch.ones(3, 5, dtype=torch.bool))
    assert again.equal(found)
    known = sample(model, 3, lengths=torch.tensor([4, 2, 3]))
    nothing = torch.zeros(3, 5, dtype=torch.bool)
    longer = sample(model, 3, known=known, mask=nothing, lengths=torch.full((3,), 5))
    assert torch.equal(longer.indices[known.valid], known.indices[known.valid])
    assert longer.indices[~known.valid].any()


def test_what_is_not_possible_is_refused() -> None:
    model = network(GRID)
    known, mask = random_tokens(GRID, 2), torch.ones(2, 16, dtype=torch.bool)
    with pytest.raises(ValueError, match="num_steps: expected 1 to the 8 of training, found 9"):
        sample(model, 2, num_steps=9)
    with pytest.raises(ValueError, match="go together"):
        sample(model, 2, known=known)
    with pytest.raises(ValueError, match=r"mask: expected \(2, 16\) bool, found \(2, 15\)"):
        sample(model, 2, known=known, mask=mask[:, 1:])
    with pytest.raises(ValueError, match="known: expected 2 images, found 1"):
        sample(model, 2, known=known[:1], mask=mask)
    with pytest.raises(ValueError, match="nothing to draw anew in at least one image"):
        one = mask & torch.tensor([[True], [False]])
        Request.make(model, num=2, known=known, mask=one)
    with pytest.raises(SpecMismatch, match="the generator reads"):
        sample(model, 2, known=random_tokens(SPEC, 2), mask=mask)
    unconditional = network(GRID, num_classes=0)
    with pytest.raises(ValueError, match="guidance: this generator is unconditional"):
        sample(unconditional, 2, guidance=2.0)


@pytest.mark.parametrize("fault", [math.nan, math.inf, -math.inf])
def test_predictions_that_are_not_finite_are_reported(fault: float) -> None:
    def answer(bits: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return torch.full(bits.shape, fault if t[0] == STEPS - 2 else 0.0)

    with pytest.raises(ValueError, match="the predicted logits are not finite in step 3"):
        sample(Oracle(SPEC, answer), 2)


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"num_steps": 0}, "num_steps: expected at least 1, found 0"),
        ({"guidance": -1.0}, "guidance: expected at least 0, found -1.0"),
        ({"guidance": math.nan}, "guidance: expected at least 0, found nan"),
        ({"temperature": 0.0}, "temperature: must be > 0, found 0.0"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BernoulliSampling(**fields)
