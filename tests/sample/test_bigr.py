"""The sampler of BiGR: against a plain version of it, and what its loop keeps."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.config import build_config, to_dict
from tessella.generators.bigr import BiGR, BigrConfig
from tessella.generators.networks.binary_transcoder import BinaryTranscoderConfig
from tessella.generators.networks.llama import LlamaConfig
from tessella.generators.noise import gumbel, uniform
from tessella.generators.processes.bernoulli import BernoulliDiffusion
from tessella.sample.bigr import BigrSampling, bigr_table, sample_bigr
from tessella.sample.request import Request
from tessella.sample.samplers import with_steps
from tessella.tests.probes import NoWaiting
from tessella.tokens.tokens import Tokens, TokenSpec

GRID = TokenSpec((4, 4), (2,) * 6)
SEEDS = torch.tensor([3, 11, 4, 2**40])
LABELS = torch.tensor([0, 2, 1, 3])
QUICK = BigrSampling(num_steps=5, head_steps=4, guidance=2.0)


def build(spec: TokenSpec = GRID, *, loss: Any = "balanced", num_classes: int = 3) -> BiGR:
    """A small network with decided opinions, in eval mode."""
    config = BigrConfig(
        transformer=LlamaConfig(width=16, num_layers=2, num_heads=2, mlp_width=24),
        head=BinaryTranscoderConfig(width=12, num_blocks=2),
        diffusion=BernoulliDiffusion(num_steps=16, loss=loss),
        num_classes=num_classes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = BiGR(config, spec).eval()
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.5 + 0.05)
    return generator


def draw(
    generator: BiGR, labels: Tensor, seeds: Tensor, settings: BigrSampling, **given: Any
) -> Tokens:
    """`sample_bigr` of a request with these labels and seeds, and what else is given."""
    state = {name: given.pop(name) for name in ("known", "mask", "lengths") if name in given}
    return sample_bigr(generator, Request(labels, seeds, **state), settings, **given)


def random_tokens(spec: TokenSpec = GRID, batch: int = 4, seed: int = 5) -> Tokens:
    rng = torch.Generator().manual_seed(seed)
    shape = (batch, spec.num_tokens, spec.num_codebooks)
    return Tokens(torch.randint(spec.codebook_sizes[0], shape, generator=rng), spec)


def answer(
    generator: BiGR, logits: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Let the head answer logits(x_t, t, conditions); the bits and masks shown to the trunk."""
    shown: list[tuple[Tensor, Tensor]] = []

    def predict(bits: Tensor, mask: Tensor, classes: Tensor, *rest: Any) -> Tensor:
        shown.append((bits.clone(), mask.clone()))
        return BiGR.predict(generator, bits, mask, classes, *rest)

    generator.predict, generator.predict_flips = predict, logits  # type: ignore[method-assign]
    return shown


def towards(targets: Tensor, sure: float = 30.0) -> Any:
    """Logits of a head that knows x_0 = targets (K,) of every token."""

    def logits(x_t: Tensor, t: Tensor, conditions: Tensor) -> Tensor:
        return torch.where(x_t == targets, -sure, sure)

    return logits


def test_published_counts() -> None:
    table = bigr_table(BigrSampling(num_steps=20), 256)
    counts = [1, 3, 4, 5, 7, 8, 10, 11, 13, 13, 15, 16, 17, 17, 19, 18, 20, 19, 20, 20]
    assert [row.revealed for row in table] == counts


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_counts_sum_to_the_tokens(schedule: Any) -> None:
    for num_tokens in (1, 2, 7, 64):
        for steps in range(1, num_tokens + 1):
            table = bigr_table(BigrSampling(num_steps=steps, schedule=schedule), num_tokens)
            counts = [row.revealed for row in table]
            assert len(counts) == steps and sum(counts) == num_tokens and min(counts) >= 1
            assert table[-1].hidden == 0
    assert len(bigr_table(BigrSampling(), 256)) == 20 and len(bigr_table(BigrSampling(), 6)) == 6


def test_ramps_of_the_table() -> None:
    config = BigrSampling(num_steps=4, guidance=3.0, randomness=0.8)
    table = bigr_table(config, 64)
    assert [row.guidance for row in table] == [3] * 4
    assert [row.randomness for row in table] == [0.8] * 4
    config = dataclasses.replace(config, guidance_schedule="linear", randomness_schedule="down")
    table = bigr_table(config, 64)
    assert [row.guidance for row in table] == pytest.approx([1.5, 2, 2.5, 3])
    assert [row.randomness for row in table] == pytest.approx([0.6, 0.4, 0.2, 0])
    table = bigr_table(dataclasses.replace(config, randomness_schedule="up"), 64)
    assert [row.randomness for row in table] == pytest.approx([0.2, 0.4, 0.6, 0.8])


def plainly(generator: BiGR, label: int, seed: int, config: BigrSampling) -> Tensor:
    """One image the long way: the head runs on every token, hidden or not, and each branch on its
    own; bits (N, K)."""
    process, seeds = generator.diffusion, torch.tensor([seed])
    num_tokens, num_bits = generator.spec.num_tokens, generator.num_bits
    chain = process.steps(config.head_steps)
    bits = torch.zeros(1, num_tokens, num_bits, dtype=torch.int64)
    hidden = torch.ones(1, num_tokens, dtype=torch.bool)
    classes = [generator.embed_classes(torch.tensor([i])) for i in (label, generator.num_classes)]
    for step, row in enumerate(bigr_table(config, num_tokens)):
        draw = step * (len(chain) + 2)
        conditions = [generator.predict(bits, hidden, c) for c in classes]
        x = (uniform(seeds, draw, (num_tokens, num_bits)) < 0.5).long()
        for number, (t, s) in enumerate(chain, 1):
            at, before = torch.tensor([t]), torch.tensor([s])
            cond, uncond = (generator.predict_flips(x, at, c) for c in conditions)
            logits = (uncond + row.guidance * (cond - uncond)) / config.temperature
            u = uniform(seeds, draw + number, (num_tokens, num_bits))
            if s:
                x = x ^ (u < process.reverse(logits, before, at)[0])
        cavity = logits
        if process.loss == "plain":
            cavity = logits + process.evidence(at).float()
        flip = cavity.sigmoid()
        p = torch.where(x == 1, 1 - flip, flip)
        drawn = {
            "reference": u < p,
            "threshold": p > 0.5,
            "sample": (x == 1) ^ (u < process.reverse(logits, before, at)[0]),
        }[config.final].long()
        certainty = (2 * p - 1).abs().mean(-1)
        if config.confidence == "entropy":
            h = -(p * p.log() + (1 - p) * (1 - p).log()).nan_to_num()
            certainty = math.log(2) - h.mean(-1)
        noise = gumbel(seeds, draw + len(chain) + 1, (num_tokens,))
        priority = (certainty + row.randomness * noise).masked_fill(~hidden, -torch.inf)
        chosen = priority.topk(row.revealed).indices[0]
        bits[0, chosen] = drawn[0, chosen]
        hidden[0, chosen] = False
    assert not hidden.any()
    return bits[0]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"guidance": 1.0, "temperature": 0.7},
        {"confidence": "entropy", "final": "threshold"},
        {"final": "sample", "randomness_schedule": "down", "guidance_schedule": "linear"},
        {"head_steps": 1, "num_steps": 1},
        {"head_steps": 16, "num_steps": 3, "schedule": "linear"},
    ],
)
@pytest.mark.parametrize("loss", ["balanced", "plain"])
def test_same_as_with_the_head_on_every_token(loss: Any, fields: dict[str, Any]) -> None:
    """So the head's answers for hidden tokens alone are those for all, of the same numbers."""
    generator = build(loss=loss)
    config = dataclasses.replace(QUICK, **fields)
    found = draw(generator, LABELS, SEEDS, config)
    assert found.spec == GRID
    with torch.no_grad():
        expected = [
            plainly(generator, int(label), int(seed), config)
            for label, seed in zip(LABELS, SEEDS, strict=True)
        ]
    assert torch.equal(found.bits(), torch.stack(expected))
    assert len(found.bits().flatten(0, 1).unique(dim=0)) > 8


def test_image_i_depends_on_seed_i_alone() -> None:
    generator = build()
    found = draw(generator, LABELS, SEEDS, QUICK)
    for i in range(4):
        alone = draw(generator, LABELS[i : i + 1], SEEDS[i : i + 1], QUICK)
        assert alone.equal(found[i : i + 1])
    order = torch.tensor([2, 0, 3, 1])
    assert draw(generator, LABELS[order], SEEDS[order], QUICK).equal(found[order])
    assert not draw(generator, LABELS, SEEDS + 1, QUICK).equal(found)


@pytest.mark.parametrize("num_steps", [1, 3, 16])
def test_every_token_is_revealed_once_and_stays(num_steps: int) -> None:
    generator = build()
    shown = answer(generator, generator.predict_flips)
    config = dataclasses.replace(QUICK, num_steps=num_steps, guidance=1.0)
    found = draw(generator, LABELS, SEEDS, config).bits()
    assert len(shown) == num_steps
    for row, (bits, hidden), (_, after) in zip(
        bigr_table(config, 16), shown, [*shown[1:], (found, torch.zeros(4, 16).bool())], strict=True
    ):
        assert (hidden.sum(1) == row.hidden + row.revealed).all()
        assert not (after & ~hidden).any()
        assert torch.equal(bits[~hidden], found[~hidden])


def test_a_small_edit_takes_fewer_steps_than_a_whole_image() -> None:
    known, mask = random_tokens(), torch.arange(16) < 2
    config = BigrSampling(head_steps=2, num_steps=12)
    generator = build()
    shown = answer(generator, generator.predict_flips)
    draw(generator, LABELS, SEEDS, config, known=known, mask=mask.expand(4, -1))
    assert len(shown) == 2


def test_known_tokens_never_change_and_the_schedule_is_of_the_others() -> None:
    """Also where more tokens are known than hidden, each image with a number of its own."""
    known = random_tokens()
    rng = torch.Generator().manual_seed(0)
    for count in (1, 4, 13):
        mask = torch.rand(4, 16, generator=rng).argsort(1) < torch.tensor([[count], [3], [5], [16]])
        config = BigrSampling(head_steps=2, guidance=2.0)
        generator = build()
        shown = answer(generator, generator.predict_flips)
        found = draw(generator, LABELS, SEEDS, config, known=known, mask=mask)
        assert torch.equal(found.indices[~mask], known.indices[~mask])
        assert not torch.equal(found.indices[mask], known.indices[mask])
        assert len(shown) == 16
        for step, (bits, hidden) in enumerate(shown):
            left = (mask.sum(1) - step).clamp(min=0)
            assert torch.equal(hidden[:4].sum(1), left)
            assert torch.equal(bits[:4][~mask], known.bits()[~mask])


def test_what_is_known_of_one_image_does_not_matter_for_another() -> None:
    generator = build()
    known = random_tokens()
    mask = torch.zeros(4, 16, dtype=torch.bool)
    for i, count in enumerate((2, 16, 7, 5)):
        mask[i, torch.randperm(16, generator=torch.Generator().manual_seed(i))[:count]] = True
    config = BigrSampling(head_steps=3, guidance=2.0)
    found = draw(generator, LABELS, SEEDS, config, known=known, mask=mask)
    for i in range(4):
        rows = slice(i, i + 1)
        alone = draw(
            generator, LABELS[rows], SEEDS[rows], config, known=known[rows], mask=mask[rows]
        )
        assert alone.equal(found[rows])


def test_hidden_values_of_known_tokens_do_not_matter() -> None:
    generator = build()
    mask = torch.arange(16).expand(4, -1) % 3 == 0
    known, other = random_tokens(), random_tokens(seed=6)
    mixed = Tokens(torch.where(mask[..., None], other.indices, known.indices), GRID)
    one = draw(generator, LABELS, SEEDS, QUICK, known=known, mask=mask)
    assert draw(generator, LABELS, SEEDS, QUICK, known=mixed, mask=mask).equal(one)


def test_scale_1_is_the_conditional_branch_at_its_price() -> None:
    generator = build()
    shown = answer(generator, generator.predict_flips)
    free = dataclasses.replace(QUICK, guidance=1.0)
    found = draw(generator, LABELS, SEEDS, free)
    assert all(len(bits) == 4 for bits, _ in shown)
    shown.clear()
    near = dataclasses.replace(QUICK, guidance=1.0 + 1e-6)
    assert draw(generator, LABELS, SEEDS, near).equal(found)
    assert all(len(bits) == 8 for bits, _ in shown)
    assert not draw(generator, LABELS, SEEDS, QUICK).equal(found)


def test_guidance_has_no_effect_without_a_label() -> None:
    generator = build()
    shown = answer(generator, generator.predict_flips)
    nothing = torch.full((4,), 3)
    free = draw(generator, nothing, SEEDS, dataclasses.replace(QUICK, guidance=1.0))
    strong = dataclasses.replace(QUICK, guidance=9.0)
    assert draw(generator, nothing, SEEDS, strong).equal(free)
    assert all(len(bits) == 4 for bits, _ in shown)
    mixed = draw(generator, torch.tensor([0, 3, 3, 1]), SEEDS, strong)
    assert mixed[1:3].equal(free[1:3])


@pytest.mark.parametrize("final", ["reference", "threshold", "sample"])
@pytest.mark.parametrize("loss", ["balanced", "plain"])
def test_a_sure_head_is_believed(loss: Any, final: Any) -> None:
    generator = build(loss=loss)
    targets = torch.tensor([1, 0, 0, 1, 1, 0])
    answer(generator, towards(targets))
    config = dataclasses.replace(QUICK, final=final)
    assert (draw(generator, LABELS, SEEDS, config).bits() == targets).all()


@pytest.mark.parametrize("final", ["reference", "sample"])
@pytest.mark.parametrize("loss", ["balanced", "plain"])
def test_bits_have_the_frequencies_that_the_head_knows(loss: Any, final: Any) -> None:
    """A head that knows the probability of every bit, in the sense of its loss: 4 sigma."""
    generator = build(loss=loss)
    chances = torch.tensor([0.05, 0.3, 0.5, 0.7, 0.9, 0.99])

    def logits(x_t: Tensor, t: Tensor, conditions: Tensor) -> Tensor:
        cavity = torch.where(x_t == 1, -chances.logit(), chances.logit())
        return cavity if loss == "balanced" else cavity - generator.diffusion.evidence(t).float()

    answer(generator, logits)
    config = BigrSampling(num_steps=4, head_steps=8, final=final)
    batch = 500
    found = draw(generator, torch.zeros(batch).long(), torch.arange(batch), config).bits()
    sigma = (chances * (1 - chances) / (16 * batch)).sqrt()
    assert ((found.float().mean((0, 1)) - chances).abs() < 4 * sigma).all()
    pairs = found[..., 1] * found[..., 3]  # bits of one token are independent here
    expected = (chances[1] * chances[3]).item()
    assert abs(pairs.float().mean() - expected) < 4 * math.sqrt(
        expected * (1 - expected) / (16 * batch)
    )


@pytest.mark.parametrize("confidence", ["linear", "entropy"])
def test_the_most_certain_tokens_come_first(confidence: Any) -> None:
    """Certainty falls with the place that the position table tells the head."""
    generator = build()
    place = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    generator.predict = lambda bits, mask, classes, *rest: (  # type: ignore[method-assign]
        shown.append(mask) or place[None, :, None].expand(len(bits), -1, 1).float()
    )
    shown: list[Tensor] = []
    generator.predict_flips = lambda x, t, conditions: (  # type: ignore[method-assign]
        torch.where(x == 1, -1, 1) * (8 - conditions / 3).expand(x.shape)
    )
    config = BigrSampling(
        num_steps=16, schedule="linear", head_steps=2, randomness=0.0, confidence=confidence
    )
    draw(generator, LABELS, SEEDS, config)
    for step, mask in enumerate(shown):
        assert torch.equal(mask, (place >= step).expand(4, -1))
    shown.clear()
    draw(generator, LABELS, SEEDS, dataclasses.replace(config, randomness=50.0))
    assert any(not torch.equal(m, (place >= s).expand(4, -1)) for s, m in enumerate(shown))


def test_the_head_runs_on_hidden_tokens_only() -> None:
    """The static widths that the schedule tells; with guidance both branches in one call."""
    generator = build()
    widths: list[tuple[int, ...]] = []
    generator.predict_flips = lambda x, t, conditions: (  # type: ignore[method-assign]
        widths.append((*x.shape, *t.shape)) or BiGR.predict_flips(generator, x, t, conditions)
    )
    draw(generator, LABELS, SEEDS, QUICK)
    left = [row.hidden + row.revealed for row in bigr_table(QUICK, 16)]
    assert widths == [(8, count, 6) for count in left for _ in range(4)]


def test_lengths_of_ordered_tokens() -> None:
    spec = TokenSpec((8,), (8,) * 2, ordered=True)
    generator = build(spec)
    lengths = torch.tensor([3, 8, 5, 4])
    config = dataclasses.replace(QUICK, num_steps=3)
    found = draw(generator, LABELS, SEEDS, config, lengths=lengths)
    found.validate()
    assert torch.equal(found.lengths, lengths)
    for i in range(4):
        rows = slice(i, i + 1)
        alone = draw(generator, LABELS[rows], SEEDS[rows], config, lengths=lengths[rows])
        assert alone.equal(found[rows])


def test_other_functions_stand_in_for_the_networks() -> None:
    generator = build()
    expected = draw(generator, LABELS, SEEDS, QUICK)
    calls: list[str] = []
    kept = generator.predict, generator.predict_flips

    def refuse(*_: Any) -> Tensor:
        raise AssertionError("not asked")

    generator.predict = generator.predict_flips = refuse  # type: ignore[method-assign]
    found = draw(
        generator,
        LABELS,
        SEEDS,
        QUICK,
        predict=lambda *given: calls.append("trunk") or kept[0](*given),
        predict_flips=lambda *given: calls.append("head") or kept[1](*given),
    )
    assert found.equal(expected) and calls == (["trunk"] + ["head"] * 4) * 5


@pytest.mark.parametrize("final", ["reference", "threshold", "sample"])
def test_the_loop_never_waits_for_the_device(final: Any) -> None:
    generator = build()
    config = dataclasses.replace(QUICK, final=final)
    watch = NoWaiting(5 * 4)
    flips = watch.counting(generator.predict_flips)
    with watch:
        found = draw(generator, LABELS, SEEDS, config, predict_flips=flips)
    assert watch.calls == 5 * 4
    assert found.equal(draw(generator, LABELS, SEEDS, config))


@pytest.mark.parametrize("fault", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["trunk", "head"])
@pytest.mark.parametrize("step", [1, 3])
def test_predictions_that_are_not_finite_are_an_error(where: str, step: int, fault: float) -> None:
    generator = build()
    shown: list[int] = []

    def predict(*given: Any) -> Tensor:
        shown.append(1)
        found = BiGR.predict(generator, *given)
        return found * fault if where == "trunk" and len(shown) == step else found

    def flips(x: Tensor, t: Tensor, conditions: Tensor) -> Tensor:
        found = BiGR.predict_flips(generator, x, t, conditions)
        if where == "head" and len(shown) == step and t == 16:
            found[1, 0, 2] = fault
        return found

    with pytest.raises(ValueError, match=f"logits are not finite in step {step}$"):
        draw(generator, LABELS, SEEDS, QUICK, predict=predict, predict_flips=flips)


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"num_steps": 17}, "17 steps for 16 slots to reveal"),
        ({"head_steps": 17}, "head_steps: expected 1 to the 16 of training, found 17"),
    ],
)
def test_more_steps_than_there_are_is_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(build(), LABELS, SEEDS, dataclasses.replace(QUICK, **fields))
    with pytest.raises(ValueError, match=message):
        with_steps(build(), dataclasses.replace(QUICK, **fields))
    assert with_steps(build(), QUICK).num_steps == 5
    open_settings = with_steps(build(), BigrSampling())
    assert (open_settings.num_steps, open_settings.head_steps) == (16, 16)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="unconditional, there is nothing to guide"):
        draw(build(num_classes=0), torch.zeros(4).long(), SEEDS, QUICK)
    with pytest.raises(ValueError, match="go together"):
        draw(build(), LABELS, SEEDS, QUICK, known=random_tokens())
    mask = torch.zeros(4, 16, dtype=torch.bool)
    with pytest.raises(ValueError, match="nothing to draw anew in at least one image"):
        Request.make(build(), seeds=SEEDS, known=random_tokens(), mask=mask)


def test_an_unconditional_model_samples() -> None:
    config = dataclasses.replace(QUICK, guidance=1.0)
    found = draw(build(num_classes=0), torch.zeros(4).long(), SEEDS, config)
    assert len(found.bits().flatten(1).unique(dim=0)) == 4


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"num_steps": 0}, "num_steps: expected at least 1, found 0"),
        ({"head_steps": 0}, "head_steps: expected at least 1, found 0"),
        ({"guidance": -1.0}, "guidance: expected at least 0, found -1.0"),
        ({"randomness": math.inf}, "randomness: expected at least 0, found inf"),
        ({"temperature": 0.0}, "temperature: must be > 0, found 0.0"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BigrSampling(**fields)


def test_settings_survive_their_file() -> None:
    config = BigrSampling(head_steps=7, confidence="entropy", randomness_schedule="up")
    assert build_config(BigrSampling, to_dict(config)) == config
