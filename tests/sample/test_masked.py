"""The unmasking loop against oracles: generators whose logits, and so whose samples, are known."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tessella.generators.noise import uniform
from tessella.sample.halton import halton_order
from tessella.sample.masked import draw, first
from tessella.sample.masked_steps import MaskedSampling, sampling_table
from tessella.tests.sample.masked_cases import (
    GRID,
    PAIRED,
    SAMPLERS,
    constant,
    random_tokens,
    sample,
)
from tessella.tokens.tokens import Tokens, TokenSpec


def close_shares(counts: Tensor, expected: Tensor, count: int) -> bool:
    """Whether every share of `count` samples is within 4 sigma of its expectation."""
    sigma = (expected * (1 - expected) / count).sqrt()
    return bool(((counts / count - expected).abs() <= 4 * sigma + 1e-9).all())


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_oracle_that_knows_the_tokens_gives_them(
    oracle: Any, sampler: str, guidance: float, temperature: float
) -> None:
    target = random_tokens(GRID, 3)
    codes = target.regroup(PAIRED).indices
    logits = torch.zeros(3, 16, 2, 8).scatter_(-1, codes[..., None], 1.0).log()

    def answer(call: Any) -> Tensor:
        return logits.repeat(len(call.indices) // 3, 1, 1, 1)

    generator = oracle(GRID, answer, groups=PAIRED)
    found = sample(
        generator, 3, sampler=sampler, num_steps=7, guidance=guidance, temperature=temperature
    )
    assert found.equal(target)
    found.validate()


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("sampler", ["entropy", "halton"])
def test_independent_slots_have_their_own_frequencies(
    oracle: Any, sampler: str, temperature: float, num_steps: int
) -> None:
    """n = 8192 images, 3 slots of 5 entries, one impossible: each within 4 sigma of
    softmax(logits / temperature). These orders do not look at what was drawn."""
    count, spec = 8192, TokenSpec((3,), (5,))
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 1, 5, generator=rng) * 1.5
    logits[1, 0, 2] = -torch.inf
    generator = oracle(spec, constant(logits))
    found = sample(
        generator, count, sampler=sampler, temperature=temperature, num_steps=num_steps
    ).indices[..., 0]
    expected = (logits[:, 0] / temperature).softmax(-1)
    counts = torch.stack([torch.bincount(found[:, n], minlength=5) for n in range(3)])
    assert close_shares(counts, expected, count)
    assert counts[1, 2] == 0
    joint = torch.bincount(found[:, 0] * 5 + found[:, 2], minlength=25)
    assert close_shares(joint, torch.outer(expected[0], expected[2]).flatten(), count)


@pytest.mark.parametrize("randomness", [0.0, 1.0, 8.0])
def test_confidence_has_the_frequencies_of_its_order(oracle: Any, randomness: float) -> None:
    """n = 16384 images of two slots in two steps, enumerated by hand.

    Step 1 draws (a, b) and keeps one: the likelier if randomness is 0 (ties: the first slot), else
    slot 0 with probability sigmoid((log p_a - log q_b) / (randomness / 2)), since the difference of
    two Gumbel numbers is logistic. The other slot is drawn again.
    """
    count, spec = 16_384, TokenSpec((2,), (3,))
    p, q = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.5, 0.3, 0.2])
    generator = oracle(spec, constant(torch.stack([p, q]).log()[:, None]))
    found = sample(generator, count, num_steps=2, randomness=randomness, schedule="linear").indices
    expected = torch.zeros(3, 3)
    for a, b in itertools.product(range(3), range(3)):
        gap = (p[a].log() - q[b].log()).item()
        scale = randomness / 2
        keep_first = 1 / (1 + math.exp(-gap / scale)) if scale else float(gap >= 0)
        weight = (p[a] * q[b]).item()
        expected[a] += weight * keep_first * q
        expected[:, b] += weight * (1 - keep_first) * p
    counts = torch.bincount(found[:, 0, 0] * 3 + found[:, 1, 0], minlength=9)
    assert close_shares(counts, expected.flatten(), count)
    if randomness == 0:  # and these are not simply p and q
        assert not close_shares(counts, torch.outer(p, q).flatten(), count)


def follow_the_first(call: Any) -> Tensor:
    """Uniform over 8 entries until some slot of the image is visible; then all must equal it."""
    shape = call.indices.shape
    seen = ~call.mask.flatten(1)
    value = call.indices.flatten(1).gather(1, seen.int().argmax(1, keepdim=True))
    certain = F.one_hot(value, 8).float().log().expand(shape[0], math.prod(shape[1:]), 8)
    logits = torch.where(seen.any(1)[:, None, None], certain, 0.0)
    return logits.reshape(*shape, 8)


@pytest.mark.parametrize("halton_groups", ["passes", "together"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_dependence_is_respected_when_slots_come_one_by_one(
    oracle: Any, sampler: str, halton_groups: str
) -> None:
    spec = TokenSpec((2, 3), (8,))
    together = sampler == "halton" and halton_groups == "together"
    generator = oracle(spec, follow_the_first)
    found = sample(generator, 64, sampler=sampler, num_steps=6, halton_groups=halton_groups).indices
    assert (found == found[:, :1]).all()
    assert found[:, 0].unique().numel() == 8
    at_once = sample(generator, 64, sampler=sampler, num_steps=1).indices
    assert (at_once != at_once[:, :1]).any()  # the oracle can be disobeyed
    both = oracle(TokenSpec((2, 3), (2,) * 6), follow_the_first, groups=PAIRED)
    steps = 6 if together else 12
    found = sample(both, 64, sampler=sampler, num_steps=steps, halton_groups=halton_groups)
    codes = found.regroup(PAIRED).indices
    if together:  # the groups of the first position are drawn at once, so they may differ
        assert (codes[..., 0] != codes[..., 1]).any()
    else:
        assert (codes == codes[:, :1, :1]).all()


def test_neighbors_that_are_seen_decide(oracle: Any) -> None:
    """Slot 1 must equal slot 0, and slot 0 is free: whichever comes first."""

    def answer(call: Any) -> Tensor:
        logits = torch.zeros(len(call.indices), 2, 1, 8)
        for mine, other in ((0, 1), (1, 0)):
            seen = ~call.mask[:, other, 0]
            certain = F.one_hot(call.indices[:, other, 0], 8).float().log()
            logits[:, mine, 0] = torch.where(seen[:, None], certain, 0.0)
        return logits

    for sampler in SAMPLERS:
        generator = oracle(TokenSpec((2,), (8,)), answer)
        found = sample(generator, 256, sampler=sampler, num_steps=2).indices[..., 0]
        assert (found[:, 0] == found[:, 1]).all()
        # n = 256 draws of 8 entries, each within 4 sigma of an eighth
        shares = torch.bincount(found[:, 0], minlength=8)
        assert close_shares(shares, torch.full((8,), 1 / 8), 256)


def editing(numbers: tuple[int, ...]) -> tuple[Tokens, Tensor]:
    """Known tokens of the grid, and a mask that hides so many positions of each image."""
    rng = torch.Generator().manual_seed(3)
    order = torch.rand(len(numbers), 16, generator=rng).argsort(1).argsort(1)
    return random_tokens(GRID, len(numbers)), order < torch.tensor(numbers)[:, None]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("schedule", ["arccos", "linear"])
@pytest.mark.parametrize("halton_groups", ["passes", "together"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_step_reveals_what_the_table_says_and_nothing_changes_later(
    oracle: Any, sampler: str, halton_groups: str, schedule: Any, guidance: float
) -> None:
    """For images with different numbers of slots to draw, as editing has them."""
    numbers = (16, 7, 4, 11)
    known, mask = editing(numbers)
    rng = torch.Generator().manual_seed(1)
    logits = torch.randn(16, 2, 8, generator=rng)
    generator = oracle(GRID, constant(logits), groups=PAIRED)
    settings = {"sampler": sampler, "halton_groups": halton_groups, "schedule": schedule}
    settings |= {"num_steps": 4, "guidance": guidance, "guidance_schedule": "constant"}
    found = sample(generator, 4, known=known, mask=mask, **settings)
    assert len(generator.calls) == 4
    final = found.regroup(PAIRED).indices
    config = MaskedSampling(**settings)
    unit = config.unit(2)
    hidden_before = mask.sum(1) * 2
    states = [call.mask[:4] for call in generator.calls] + [torch.zeros(4, 16, 2, dtype=torch.bool)]
    assert torch.equal(states[0], mask[..., None].expand(-1, -1, 2))
    for i, number in enumerate(numbers):
        rows = sampling_table(config, number * 2 // unit)
        counts = [int(state[i].sum()) for state in states]
        assert counts[0] == hidden_before[i]
        assert [a - b for a, b in itertools.pairwise(counts)] == [r.revealed * unit for r in rows]
    for before, after in itertools.pairwise(states):
        assert not (after & ~before).any()
    for call, state in zip(generator.calls, states, strict=False):
        assert torch.equal(call.indices[:4][~state], final[~state])
        assert not call.indices[:4][state].any()  # hidden slots hold nothing of the answer
        if guidance != 1:
            assert torch.equal(call.indices[4:], call.indices[:4])
            assert torch.equal(call.mask[4:], call.mask[:4])
    assert torch.equal(found.indices[~mask], known.indices[~mask])
    assert (found.indices[mask] != known.indices[mask]).any()
    found.validate()


def test_guidance_costs_a_second_pass_only_where_it_acts(oracle: Any) -> None:
    labels = torch.tensor([2, 0, 3])
    logits = torch.zeros(16, 2, 8)
    expected = {
        ("constant", 1.0): [3] * 5,
        ("cosine", 1.0): [3] * 5,
        ("constant", 3.0): [6] * 5,
        ("constant", 0.0): [6] * 5,
        ("cosine", 3.0): [3] + [6] * 4,
        ("linear", 3.0): [3] + [6] * 4,
    }
    for (schedule, guidance), batches in expected.items():
        generator = oracle(GRID, constant(logits), groups=PAIRED)
        fields = {"guidance_schedule": schedule, "guidance": guidance}
        sample(generator, 3, labels=labels, num_steps=5, **fields)
        assert [len(call.indices) for call in generator.calls] == batches, (schedule, guidance)
        for call in generator.calls:
            assert call.labels.tolist() == [2, 0, 3] + [3] * (len(call.labels) - 3)
    assert labels.tolist() == [2, 0, 3]


def test_guidance_moves_away_from_the_unconditional_logits(oracle: Any) -> None:
    """cond (2, 1.5, 0), uncond (2, 0, 0): entry 0 unguided, entry 1 from scale 4/3 on."""

    def answer(call: Any) -> Tensor:
        cond = (call.labels < 3)[:, None, None, None]
        rows = torch.where(cond, torch.tensor([2, 1.5, 0]), torch.tensor([2.0, 0, 0]))
        return rows.expand(-1, 4, 1, -1)

    for guidance, expected in ((1.0, 0), (1.3, 0), (1.4, 1), (5.0, 1), (0.0, 0)):
        generator = oracle(TokenSpec((4,), (3,)), answer)
        fields = {"guidance": guidance, "guidance_schedule": "constant", "temperature": 0.0}
        found = sample(generator, 2, num_steps=2, **fields)
        assert (found.indices == expected).all(), guidance


def reveal_order(generator: Any, **fields: Any) -> list[int]:
    """Slots of the first image in the order in which they are revealed, one a step."""
    slots = generator.spec.num_tokens * generator.num_groups
    generator.calls.clear()
    sample(generator, 2, num_steps=slots, **fields)
    masks = [call.mask[0].flatten() for call in generator.calls]
    masks.append(torch.zeros(slots, dtype=torch.bool))
    return [int((a & ~b).nonzero().item()) for a, b in itertools.pairwise(masks)]


def test_without_randomness_the_most_confident_slots_come_first(oracle: Any) -> None:
    """Invariant 7; and entropy is another order: slot 0 has the likelier entry, slot 1 less
    entropy."""
    rows = torch.tensor([[0.55, 0.225, 0.225], [0.5, 0.5, 0.0], [0.4, 0.3, 0.3], [0.9, 0.1, 0.0]])
    generator = oracle(TokenSpec((4,), (3,)), constant(rows.log()[:, None]))
    fields = {"temperature": 0.0, "randomness": 0.0}
    assert reveal_order(generator, sampler="confidence", **fields) == [3, 0, 1, 2]
    assert reveal_order(generator, sampler="entropy", **fields) == [3, 1, 0, 2]


def test_exactly_the_top_slots_are_kept_in_every_step(oracle: Any) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(16, 2, 8, generator=rng)
    generator = oracle(GRID, constant(logits), groups=PAIRED)
    sample(generator, 2, num_steps=6, randomness=0.0, temperature=0.0)
    order = logits.softmax(-1).amax(-1).flatten().argsort(descending=True)
    for call, row in zip(
        generator.calls[1:],
        sampling_table(MaskedSampling(num_steps=6), 32),
        strict=False,
    ):
        seen = (~call.mask[0]).flatten().nonzero().flatten()
        assert torch.equal(seen, order[: 32 - row.hidden].sort().values)


def test_randomness_shuffles_the_order_more_when_larger(oracle: Any) -> None:
    logits = torch.zeros(1, 8, 1, 4)
    logits[0, :, 0, 0] = torch.linspace(6, 2, 8)
    generator = oracle(TokenSpec((8,), (4,)), constant(logits[0]))
    fields = {"temperature": 0.0, "schedule": "linear"}
    assert reveal_order(generator, randomness=0.0, **fields) == list(range(8))
    assert reveal_order(generator, randomness=1e-6, **fields) == list(range(8))
    shuffled = reveal_order(generator, randomness=50.0, **fields)
    assert shuffled != list(range(8)) and sorted(shuffled) == list(range(8))


@pytest.mark.parametrize("sampler", ["confidence", "entropy"])
def test_the_first_slot_is_chosen_by_gumbel_max(oracle: Any, sampler: str) -> None:
    """Gumbel noise times r on scores c takes slot i first with probability softmax(c / r)_i; noise
    of the other sign would not. Four slots, r = 1.2 * (1 - 1/4); n = 8192, 4 sigma."""
    count = 8192
    rows = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.3, 0.2], [0.5, 0.5, 0.0], [0.34, 0.33, 0.33]])
    generator = oracle(TokenSpec((4,), (3,)), constant(rows.log()[:, None]))
    fields = {"sampler": sampler, "temperature": 0.0, "randomness": 1.2, "num_steps": 4}
    sample(generator, count, **fields)
    revealed = (~generator.calls[1].mask[..., 0]).int()
    assert (revealed.sum(1) == 1).all()
    entropy = torch.special.entr(rows).sum(-1)
    scores = rows.amax(-1).log() if sampler == "confidence" else -entropy
    expected = (scores / 0.9).softmax(0)
    assert close_shares(revealed.sum(0), expected, count)


@pytest.mark.parametrize("sampler", ["confidence", "entropy"])
def test_ties_reveal_as_many_as_planned_first_slots_first(oracle: Any, sampler: str) -> None:
    """The reference reveals too few, or all of them."""
    generator = oracle(GRID, constant(torch.zeros(16, 2, 8)), groups=PAIRED)
    sample(generator, 3, sampler=sampler, num_steps=5, randomness=0.0)
    rows = sampling_table(MaskedSampling(num_steps=5), 32)
    for call, row in zip(generator.calls[1:], rows, strict=False):
        assert torch.equal(
            call.mask.flatten(1), (torch.arange(32) >= 32 - row.hidden).expand(3, -1)
        )


def test_first_takes_the_highest() -> None:
    priority = torch.tensor([[1.0, 3.0, 3.0, -torch.inf], [0.0, 0.0, 0.0, 0.0]])
    found = first(priority, torch.tensor([[2], [3]]))
    assert found.tolist() == [[False, True, True, False], [True, True, True, False]]
    assert not first(priority, torch.tensor([[0], [0]])).any()


def test_halton_reveals_in_halton_order(oracle: Any) -> None:
    order = halton_order((4, 4)).tolist()
    logits = torch.randn(16, 2, 8, generator=torch.Generator().manual_seed(0))
    generator = oracle(GRID, constant(logits), groups=PAIRED)
    passes = [2 * cell + g for g in range(2) for cell in order]
    assert reveal_order(generator, sampler="halton", halton_roll=False) == passes
    generator.calls.clear()
    fields = {"sampler": "halton", "halton_groups": "together", "halton_roll": False}
    sample(generator, 2, num_steps=16, **fields)
    for step, call in enumerate(generator.calls):
        hidden = torch.ones(16, 2, dtype=torch.bool)
        hidden[order[:step]] = False
        assert torch.equal(call.mask, hidden.expand(2, -1, -1))


def test_halton_rolls_the_order_of_every_image_and_group(oracle: Any) -> None:
    order = halton_order((4, 4)).tolist()
    generator = oracle(GRID, constant(torch.zeros(16, 2, 8)), groups=PAIRED)
    rolled = reveal_order(generator, sampler="halton")
    starts = []
    for g in range(2):
        cells = [slot // 2 for slot in rolled[16 * g : 16 * g + 16]]
        assert {slot % 2 for slot in rolled[16 * g : 16 * g + 16]} == {g}
        at = order.index(cells[0])
        assert cells == order[at:] + order[:at]
        starts.append(at)
    assert starts[0] != starts[1]
    together = sample(generator, 64, sampler="halton", num_steps=2)
    assert len(together) == 64
    first_masks = generator.calls[-1].mask[..., 0].flatten(1)
    assert first_masks.unique(dim=0).shape[0] > 8  # of 16 offsets


def test_the_temperature_anneals(oracle: Any) -> None:
    """To 0 at the end: the last step takes the likeliest entry, the first does not always."""
    logits = torch.tensor([0.0, 0.5, 0.0, 0.0]).expand(64, 1, 4)
    generator = oracle(TokenSpec((64,), (4,)), constant(logits))
    fields = {"num_steps": 2, "sampler": "halton", "schedule": "linear", "temperature_end": 0.0}
    found = sample(generator, 8, **fields).indices
    last = generator.calls[1].mask
    assert (found[last] == 1).all()
    assert (found[~last] != 1).any()


def test_the_entries_of_a_step_are_its_first_draw(oracle: Any) -> None:
    """Which random number is used where is part of the format: seeds must mean the same later."""
    logits = torch.randn(16, 2, 8, generator=torch.Generator().manual_seed(0))
    generator = oracle(GRID, constant(logits), groups=PAIRED)
    found = sample(generator, 3, num_steps=1).regroup(PAIRED).indices
    u = uniform(torch.arange(3), 0, (16, 2))
    assert torch.equal(found, draw(logits.softmax(-1).expand(3, -1, -1, -1), u))
