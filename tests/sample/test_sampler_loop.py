"""What the unmasking loop keeps: seeds, padding, static shapes, no waiting, and NaN seen."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.sample.generate import generate
from tessella.sample.masked import draw, sample_masked
from tessella.sample.masked_steps import MaskedSampling
from tessella.sample.request import Request
from tessella.tests.probes import NoWaiting
from tessella.tests.sample.masked_cases import (
    GRID,
    PAIRED,
    SAMPLERS,
    constant,
    random_tokens,
    sample,
)
from tessella.tokens.tokens import TokenSpec


@pytest.mark.parametrize("fault", [float("nan"), float("inf")], ids=["nan", "inf"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("step", [1, 3, 4])
def test_logits_that_are_not_finite_are_an_error_naming_the_step(
    oracle: Any, step: int, temperature: float, guidance: float, fault: float
) -> None:
    def answer(call: Any) -> Tensor:
        logits = torch.zeros(len(call.indices), 16, 2, 8)
        if len(generator.calls) >= step:
            logits[1, 3, 1, 2] = fault
        return logits

    generator = oracle(GRID, answer, groups=PAIRED)
    with pytest.raises(ValueError, match=f"logits are not finite in step {step}$"):
        sample(generator, 2, num_steps=4, temperature=temperature, guidance=guidance)


def test_draw_inverts_the_cumulative_distribution() -> None:
    p = torch.tensor([0.2, 0.0, 0.5, 0.3])
    u = torch.tensor([1e-7, 0.19, 0.21, 0.69, 0.71, 1 - 2.0**-24])
    assert draw(p.expand(6, -1), u).tolist() == [0, 0, 2, 2, 3, 3]
    assert draw(7 * p.expand(6, -1), u).tolist() == [0, 0, 2, 2, 3, 3]  # need not sum to 1


def test_draw_never_gives_an_impossible_entry() -> None:
    """20,000 random distributions with zeros anywhere, at both ends of u and between."""
    rng = torch.Generator().manual_seed(0)
    for size in (2, 3, 64, 1024):
        p = torch.rand(20_000 // size + 1, 5, size, generator=rng) ** 4
        p = p.masked_fill(torch.rand(p.shape, generator=rng) < 0.6, 0.0)
        p[..., 0][p.sum(-1) == 0] = 1e-30
        p = p / p.sum(-1, keepdim=True)
        between = torch.rand(p.shape[:-1], generator=rng).clamp(2.0**-24, 1 - 2.0**-24)
        for u in (
            torch.full_like(between, 2.0**-24),
            torch.full_like(between, 1 - 2.0**-24),
            between,
        ):
            drawn = draw(p, u)
            assert drawn.max() < size
            assert (p.gather(-1, drawn[..., None]) > 0).all()


def test_draw_takes_the_first_entry_that_reaches_u() -> None:
    p = torch.tensor([0.25, 0.0, 0.25, 0.5])
    assert draw(p.expand(3, -1), torch.tensor([0.25, 0.5, 1.0])).tolist() == [0, 2, 3]


def test_draw_reaches_both_ends() -> None:
    p = torch.tensor([[0.0, 0.4, 0.6, 0.0]])
    assert draw(p, torch.tensor([2.0**-24])).item() == 1
    assert draw(p, torch.tensor([1 - 2.0**-24])).item() == 2


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_i_depends_on_seed_i_alone(network: Any, sampler: str) -> None:
    """Batches of 1, 7 and 16, and other neighbours, with guidance and every kind of ramp."""
    generator = network("maskbit", TokenSpec((4, 4), (2,) * 8))
    labels = [i % 4 - 1 for i in range(16)]
    seeds = [3 * i + 1 for i in range(16)]
    fields = {"sampler": sampler, "num_steps": 6, "guidance": 2.5, "temperature_end": 0.7}
    found = {
        size: generate(generator, labels, seeds=seeds, batch_size=size, **fields)
        for size in (1, 7, 16)
    }
    assert found[1].equal(found[7]) and found[1].equal(found[16])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = generate(
        generator,
        torch.tensor(labels)[order],
        seeds=torch.tensor(seeds)[order],
        batch_size=5,
        **fields,
    )
    assert shuffled.equal(found[16][order])
    assert found[1].indices.flatten(1).unique(dim=0).shape[0] == 16
    found[1].validate()


@pytest.mark.parametrize("kind", ["maskbit", "maskgit"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_lengths_of_ordered_tokens(network: Any, kind: str, sampler: str) -> None:
    spec = TokenSpec((10,), (16,), ordered=True)
    generator = network(kind, spec)
    lengths = [3, 10, 6, 4]
    fields = {"sampler": sampler, "num_steps": 3, "guidance": 2.0}
    labels, seeds = [0, 1, 2, -1], [5, 6, 7, 8]
    found = generate(generator, labels, seeds=seeds, lengths=lengths, **fields)
    found.validate()
    assert found.lengths.tolist() == lengths
    assert found.indices.unique().numel() > 4
    for i in range(4):
        alone = generate(
            generator,
            labels[i : i + 1],
            seeds=seeds[i : i + 1],
            lengths=lengths[i : i + 1],
            **fields,
        )
        assert alone.equal(found[i : i + 1])
    full = generate(generator, labels, seeds=seeds, **fields)
    assert full.lengths is None


def test_the_padding_is_shown_as_padding(oracle: Any) -> None:
    spec = TokenSpec((6,), (4,), ordered=True)
    generator = oracle(spec, constant(torch.zeros(6, 1, 4)))
    lengths = torch.tensor([2, 6])
    sample(generator, 2, num_steps=2, lengths=lengths, guidance=2.0, guidance_schedule="constant")
    valid = torch.arange(6) < lengths[:, None]
    for call in generator.calls:
        assert torch.equal(call.valid, valid.repeat(2, 1))
        assert not call.mask[..., 0][~call.valid].any()


def test_known_tokens_can_be_shortened_and_lengthened(network: Any) -> None:
    spec = TokenSpec((10,), (16,), ordered=True)
    generator = network("maskgit", spec)
    known = random_tokens(spec, 1).truncate(6)
    mask = torch.zeros(1, 10, dtype=torch.bool)
    mask[:, :2] = True
    same = generate(generator, [0], known=known, mask=mask, num_steps=2).validate()
    assert same.lengths.tolist() == [6]
    assert torch.equal(same.indices[:, 2:], known.indices[:, 2:])
    shorter = generate(generator, [0], known=known, mask=mask, lengths=[4], num_steps=2).validate()
    assert torch.equal(shorter.indices[:, 2:4], known.indices[:, 2:4])
    longer = generate(generator, [0], known=known, mask=mask, lengths=[9], num_steps=2).validate()
    assert longer.lengths.tolist() == [9]
    assert torch.equal(longer.indices[:, 2:6], known.indices[:, 2:6])
    assert longer.indices[:, 6:9].any()  # drawn, for nobody knew them


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("lengths", [None, [3, 12]])
def test_the_loop_never_waits_for_the_device(
    network: Any, sampler: str, lengths: list[int] | None
) -> None:
    """From the first forward pass to the last, with guidance, annealing and lengths."""
    spec = TokenSpec((12,), (16,), ordered=True)
    generator = network("maskbit", spec)
    watch, passes = NoWaiting(6), []

    def predict(*state: Any) -> Tensor:
        passes.append(len(state[0]))
        return generator.predict(*state)

    config = MaskedSampling(sampler=sampler, num_steps=6, guidance=3.0, temperature_end=0.5)
    with watch:
        sample_masked(
            generator,
            Request(
                torch.tensor([0, 3]),
                torch.arange(2),
                lengths=None if lengths is None else torch.tensor(lengths) + 3,
            ),
            config,
            predict=watch.counting(predict),
        )
    assert passes == [2, 4, 4, 4, 4, 4]
    assert watch.operations > 200


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: int(x.sum()),
        lambda x: x[x > 0],
        lambda x: torch.equal(x, x),
        lambda x: torch.tensor([1.0]) + x,
    ],
)
def test_the_watch_sees_waiting(oracle: Any, wait: Any) -> None:
    """The test above can fail."""
    watch = NoWaiting(2)

    def answer(call: Any) -> Tensor:
        watch.calls = 1
        wait(call.indices.float())
        return torch.zeros(len(call.indices), 16, 2, 8)

    with watch, pytest.raises(AssertionError, match="waits"):
        sample(oracle(GRID, answer, groups=PAIRED), 2, num_steps=2)


def test_a_compiled_network_gives_the_same_tokens(network: Any) -> None:
    for kind, spec in (("maskbit", GRID), ("maskgit", TokenSpec((12,), (16,), ordered=True))):
        generator = network(kind, spec)
        compiled = torch.compile(generator.predict, fullgraph=True, backend="eager", dynamic=False)
        config = MaskedSampling(num_steps=4, guidance=2.0)
        lengths = torch.tensor([5, 12, 7]) if spec.ordered else None
        request = Request(torch.tensor([0, 1, 3]), torch.arange(3), lengths=lengths)
        expected = sample_masked(generator, request, config)
        assert sample_masked(generator, request, config, predict=compiled).equal(expected)
