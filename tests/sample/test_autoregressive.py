"""The autoregressive sampler: against the model's own distribution, and what its loop keeps."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.config import ConfigError
from tessella.generators.autoregressive import AutoregressiveConfig, AutoregressiveGenerator
from tessella.generators.networks.llama import LlamaConfig
from tessella.generators.noise import gumbel
from tessella.sample.autoregressive import (
    AutoregressiveSampling,
    keep_likeliest,
    sample_autoregressive,
)
from tessella.sample.generate import generate
from tessella.sample.guidance import guide
from tessella.sample.request import Request
from tessella.sample.samplers import choose_sampling, with_steps
from tessella.tests.probes import NoWaiting
from tessella.tokens.tokens import Tokens, TokenSpec

GRID = TokenSpec((3, 3), (6, 6))
MIXED = TokenSpec((3, 3), (3, 6))
SEEDS = torch.tensor([3, 11, 4, 2**40])
LABELS = torch.tensor([0, 2, 1, 3])
PLAIN = AutoregressiveSampling()
GUIDED = AutoregressiveSampling(guidance=2.5, temperature=0.8)


def build(
    spec: TokenSpec = GRID, *, num_classes: int = 3, depth: int = 1, scale: float = 0.5
) -> AutoregressiveGenerator:
    """A small network with decided opinions, in eval mode."""
    config = AutoregressiveConfig(
        transformer=LlamaConfig(width=16, num_layers=2, num_heads=2, mlp_width=24),
        num_depth_layers=depth,
        num_classes=num_classes,
        codebook_sizes=spec.codebook_sizes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = AutoregressiveGenerator(config, spec).eval()
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.copy_(torch.randn_like(parameter) * scale + 0.05)
    return generator


def draw(
    generator: AutoregressiveGenerator,
    labels: Tensor,
    seeds: Tensor,
    settings: AutoregressiveSampling,
    **given: Any,
) -> Tokens:
    """`sample_autoregressive` of a request with these labels and seeds, and what else is given."""
    return sample_autoregressive(generator, Request(labels, seeds, **given), settings)


def random_tokens(spec: TokenSpec = GRID, batch: int = 4, seed: int = 5) -> Tokens:
    rng = torch.Generator().manual_seed(seed)
    shape = (batch, spec.num_tokens)
    columns = [torch.randint(size, shape, generator=rng) for size in spec.codebook_sizes]
    return Tokens(torch.stack(columns, -1), spec)


@torch.no_grad()
def guided_logits(
    generator: AutoregressiveGenerator, codes: Tensor, labels: Tensor, scale: float
) -> Tensor:
    """All at once, with the true codes before each."""
    cond = generator.logits(codes, labels)
    uncond = generator.logits(codes, torch.full_like(labels, generator.num_classes))
    return guide(cond, uncond, scale)


@pytest.mark.parametrize(
    "config", [PLAIN, GUIDED, AutoregressiveSampling(top_k=3, top_p=0.8, temperature=2.5)]
)
@pytest.mark.parametrize("spec", [GRID, MIXED, TokenSpec((3, 3), (7,))], ids=str)
def test_a_code_is_the_best_of_teacher_forced_logits_and_its_noise(
    spec: TokenSpec, config: AutoregressiveSampling
) -> None:
    """The cache, the guidance of every code, and where the noise comes from, all in one."""
    generator, groups = build(spec), spec.num_codebooks
    codes = draw(generator, LABELS, SEEDS, config).validate().indices
    logits = guided_logits(generator, codes, LABELS, config.guidance) / config.temperature
    for n in range(9):
        for g, size in enumerate(spec.codebook_sizes):
            scores = keep_likeliest(logits[:, n, g, :size], config.top_k, config.top_p)
            scores = scores + gumbel(SEEDS, n * groups + g, (size,))
            assert torch.equal(scores.argmax(-1), codes[:, n, g])


@pytest.mark.parametrize("depth", [0, 1])
def test_top_1_takes_the_likeliest_code(depth: int) -> None:
    generator = build(TokenSpec((3, 3), (7,)) if depth == 0 else GRID, depth=depth)
    greedy = AutoregressiveSampling(top_k=1)
    found = draw(generator, LABELS, SEEDS, greedy)
    logits = guided_logits(generator, found.indices, LABELS, 1.0)
    assert torch.equal(logits.argmax(-1), found.indices)
    assert found.equal(draw(generator, LABELS, SEEDS + 1, greedy))
    nucleus = AutoregressiveSampling(top_p=1e-6)
    assert found.equal(draw(generator, LABELS, SEEDS, nucleus))
    assert not found.equal(draw(generator, LABELS, SEEDS, PLAIN))


def brute_force(
    generator: AutoregressiveGenerator, label: int, config: AutoregressiveSampling
) -> tuple[Tensor, Tensor]:
    """All sequences (S, N, G) and their probabilities (S,), from teacher-forced logits."""
    spec = generator.spec
    sizes = spec.codebook_sizes * spec.num_tokens
    codes = torch.tensor(list(itertools.product(*(range(size) for size in sizes))))
    codes = codes.view(-1, spec.num_tokens, spec.num_codebooks)
    labels = torch.full((len(codes),), label)
    logits = guided_logits(generator, codes, labels, config.guidance).double()
    log_p = torch.zeros(len(codes), dtype=torch.float64)
    for n in range(spec.num_tokens):
        for g, size in enumerate(spec.codebook_sizes):
            scores = logits[:, n, g, :size] / config.temperature
            if config.top_k is not None:
                least = scores.topk(config.top_k).values[:, -1:]
                scores = scores.masked_fill(scores < least, -math.inf)
            log_p += scores.log_softmax(-1).gather(-1, codes[:, n, g, None])[:, 0]
    return codes, log_p.exp()


@pytest.mark.parametrize(
    "config", [PLAIN, GUIDED, AutoregressiveSampling(top_k=2)], ids=["plain", "guided", "top_k"]
)
def test_frequencies_are_the_models_own_probabilities(config: AutoregressiveSampling) -> None:
    generator = build(TokenSpec((2,), (3, 3)), scale=0.4)
    count = 20_000
    _, p = brute_force(generator, 1, config)
    assert p.sum().item() == pytest.approx(1, abs=1e-6)
    if config == PLAIN:
        exact = generator.bits_per_dim(
            Tokens(brute_force(generator, 1, config)[0], generator.spec), torch.full((81,), 1)
        )
        torch.testing.assert_close(
            2 ** (-exact * generator.spec.bits_per_image), p, rtol=1e-5, atol=0
        )
    labels = torch.full((count,), 1)
    found = draw(generator, labels, torch.arange(count), config).indices
    rows = (found.flatten(1) * torch.tensor([27, 9, 3, 1])).sum(1)
    frequency = torch.bincount(rows, minlength=81) / count
    sigma = (p * (1 - p) / count).sqrt()
    assert ((frequency - p).abs() <= 4 * sigma + 1e-12).all()
    assert (p > 0.02).sum() >= 10  # there is something to tell apart


def test_known_codes_stay_and_hidden_ones_are_drawn() -> None:
    generator, known = build(), random_tokens()
    mask = torch.rand(4, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[:, 4] = True
    mask[0] = torch.arange(9) == 8  # the last one alone
    mask[1] = torch.arange(9) == 0  # the first one alone
    found = draw(generator, LABELS, SEEDS, GUIDED, known=known, mask=mask)
    assert torch.equal(found.indices[~mask], known.indices[~mask])
    assert (found.indices != known.indices)[mask].any(-1).float().mean() > 0.5
    logits = guided_logits(generator, found.indices, LABELS, GUIDED.guidance) / 0.8
    noise = torch.stack([gumbel(SEEDS, draw, (6,)) for draw in range(18)], 1).view(4, 9, 2, 6)
    assert torch.equal((logits + noise).argmax(-1)[mask], found.indices[mask])
    for i in range(4):  # the masks of other images do not matter
        rows = slice(i, i + 1)
        given = {"known": known[rows], "mask": mask[rows]}
        alone = draw(generator, LABELS[rows], SEEDS[rows], GUIDED, **given)
        assert alone.equal(found[rows])


def test_a_drawn_position_sees_known_ones_before_it_only() -> None:
    generator, known = build(), random_tokens()
    mask = (torch.arange(9) == 4).expand(4, 9)
    found = draw(generator, LABELS, SEEDS, PLAIN, known=known, mask=mask)
    later = known.indices.clone()
    later[:, 5:] = (later[:, 5:] + 1) % 6
    other = Tokens(later, GRID)
    same = draw(generator, LABELS, SEEDS, PLAIN, known=other, mask=mask)
    assert torch.equal(same.indices[:, 4], found.indices[:, 4])
    assert torch.equal(same.indices[:, 5:], later[:, 5:])
    results = set()
    for seed in range(20):  # the positions before it do matter
        before = random_tokens(seed=seed)
        drawn = draw(generator, LABELS, SEEDS, PLAIN, known=before, mask=mask)
        results.add(tuple(drawn.indices[:, 4].flatten().tolist()))
    assert len(results) > 1


def test_nothing_is_computed_after_the_last_hidden_position() -> None:
    generator, known = build(), random_tokens()
    positions: list[int] = []
    step = generator.trunk.step
    generator.trunk.step = lambda x, caches, n, *rest: positions.append(n) or step(x, caches, n)  # type: ignore
    mask = torch.zeros(4, 9, dtype=torch.bool)
    mask[:, 2] = mask[1, 5] = True
    draw(generator, LABELS, SEEDS, PLAIN, known=known, mask=mask)
    assert positions == [0, 1, 2, 3, 4, 5]


def test_an_image_does_not_depend_on_its_batch() -> None:
    generator = build()
    labels = (torch.arange(16) % 4).tolist()
    parts = [
        generate(generator, [x if x < 3 else -1 for x in labels], batch_size=size, guidance=3.0)
        for size in (1, 7, 16)
    ]
    assert parts[0].equal(parts[1]) and parts[1].equal(parts[2])
    assert len({tuple(x.flatten().tolist()) for x in parts[0].indices}) == 16


def test_guidance_acts_on_labelled_images_only() -> None:
    generator = build()
    plain, guided = (
        draw(generator, LABELS, SEEDS, AutoregressiveSampling(guidance=scale))
        for scale in (1.0, 6.0)
    )
    assert torch.equal(plain.indices[3], guided.indices[3])  # no label
    assert not torch.equal(plain.indices[:3], guided.indices[:3])
    none = torch.full_like(LABELS, 3)
    zero = draw(generator, LABELS, SEEDS, AutoregressiveSampling(guidance=0.0))
    assert zero.equal(draw(generator, none, SEEDS, PLAIN))


def test_lengths_of_ordered_tokens() -> None:
    generator = build(TokenSpec((8,), (4, 3), ordered=True))
    lengths = torch.tensor([3, 8, 5, 1])
    found = draw(generator, LABELS, SEEDS, GUIDED, lengths=lengths).validate()
    full = draw(generator, LABELS, SEEDS, GUIDED)
    assert torch.equal(found.lengths, lengths) and full.lengths is None
    for i, length in enumerate(lengths.tolist()):  # a shorter image is a prefix of the longer one
        assert torch.equal(found.indices[i, :length], full.indices[i, :length])
    longer = torch.full((4,), 8)
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[1, 7] = mask[:, 0] = True
    grown = draw(generator, LABELS, SEEDS, GUIDED, known=found, mask=mask, lengths=longer)
    assert torch.equal(grown.lengths, longer)
    kept = found.valid & ~mask
    assert torch.equal(grown.indices[kept], found.indices[kept])


def test_groups_become_the_tokenizers_codes_again() -> None:
    """A generator that reads six bits as (8, 4, 2) gives bits."""
    spec = TokenSpec((2, 2), (2,) * 6)
    read = build(TokenSpec((2, 2), (8, 4, 2)))
    config = AutoregressiveConfig(
        transformer=read.config.transformer, num_classes=3, codebook_sizes=(8, 4, 2)
    )
    generator = AutoregressiveGenerator(config, spec).eval()
    generator.load_state_dict(read.state_dict())
    found = draw(generator, LABELS, SEEDS, GUIDED)
    assert found.spec == spec
    assert found.regroup((8, 4, 2)).equal(draw(read, LABELS, SEEDS, GUIDED))


def test_the_loop_never_waits_for_the_device() -> None:
    generator = build(MIXED)
    config = AutoregressiveSampling(guidance=2.0, top_k=4, top_p=0.9)
    expected = draw(generator, LABELS, SEEDS, config)
    watch = NoWaiting(9)
    generator.trunk.step = watch.counting(generator.trunk.step)  # type: ignore[method-assign]
    with watch:
        found = draw(generator, LABELS, SEEDS, config)
    assert watch.calls == 9 and found.equal(expected)


@pytest.mark.parametrize("fault", [math.nan, math.inf])
@pytest.mark.parametrize("step", [1, 4, 9])
def test_predictions_that_are_not_finite_are_an_error(step: int, fault: float) -> None:
    generator = build()
    kept = generator.head.step
    calls: list[int] = []

    def broken(x: Tensor, caches: Any, group: int) -> Tensor:
        calls.append(group)
        logits = kept(x, caches, group)
        if len(calls) == 2 * step:
            logits[1, 2] = fault
        return logits

    generator.head.step = broken  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=f"logits are not finite in step {step}$"):
        draw(generator, LABELS, SEEDS, PLAIN)


def test_likeliest_entries() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]]).log()
    none = -math.inf

    def kept(top_k: int | None, top_p: float) -> list[list[bool]]:
        found = keep_likeliest(logits, top_k, top_p)
        assert torch.equal(found[found > none], logits[found > none])
        return (found > none).tolist()

    all_, first = [True] * 4, [True, False, False, False]
    assert kept(None, 1.0) == kept(4, 1.0) == kept(99, 1.0) == [all_, all_]
    assert kept(2, 1.0) == [[False, True, False, True], [True, True, False, False]]
    assert kept(1, 1.0) == kept(None, 0.2) == [[False, True, False, False], first]
    assert kept(None, 0.6) == [[False, True, False, True], [True, True, True, False]]
    assert kept(None, 0.75) == [[False, True, True, True], [True, True, True, False]]
    # top_p is a share of what top_k leaves: 4/7 and 3/7; 1/2 and 1/2
    assert kept(2, 0.55)[0] == [False, True, False, False]
    assert kept(2, 0.6)[0] == [False, True, False, True]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_steps": 0}, "num_steps: expected at least 1, found 0"),
        ({"top_k": 0}, "top_k: expected at least 1, found 0"),
        ({"top_p": 0.0}, "top_p: expected above 0 to 1, found 0.0"),
        ({"top_p": 1.2}, "top_p: expected above 0 to 1, found 1.2"),
        ({"temperature": 0.0}, "temperature: must be > 0, found 0.0"),
        ({"temperature": math.inf}, "temperature: must be > 0, found inf"),
        ({"guidance": -1.0}, "guidance: expected at least 0, found -1.0"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoregressiveSampling(**fields)


def test_the_number_of_steps_is_that_of_the_positions() -> None:
    generator = build()
    assert with_steps(generator, GUIDED).num_steps == 9
    assert with_steps(generator, choose_sampling(generator, None, {"num_steps": 9})).num_steps == 9
    message = "draws position by position, here 9; expected 9 or none, found 4"
    with pytest.raises(ValueError, match=message):
        with_steps(generator, AutoregressiveSampling(num_steps=4))
    with pytest.raises(ValueError, match=message):
        generate(generator, [0, 1], num_steps=4)
    named = generate(generator, [0, 1], num_steps=9, top_k=3)
    assert named.equal(generate(generator, [0, 1], top_k=3))


def test_impossible_calls_are_refused() -> None:
    generator, known = build(), random_tokens()
    with pytest.raises(ValueError, match="known tokens and the mask"):
        draw(generator, LABELS, SEEDS, PLAIN, known=known)
    with pytest.raises(ValueError, match="nothing to draw anew"):
        nothing = torch.zeros(4, 9, dtype=torch.bool)
        Request.make(generator, seeds=SEEDS, known=known, mask=nothing)
    with pytest.raises(ValueError, match="compile: not for generators of type ar"):
        generate(generator, [0], compile=True)
    with pytest.raises(TypeError, match="unknown argument 'top_q'; did you mean 'top_p'"):
        generate(generator, [0], top_q=0.5)
    with pytest.raises(ConfigError, match="top_p: expected above 0 to 1, found 3"):
        generate(generator, [0], top_p=3.0)
    unconditional = build(num_classes=0)
    with pytest.raises(ValueError, match="guidance: this generator is unconditional"):
        generate(unconditional, num=1, guidance=2.0)
    generate(unconditional, num=2).validate()
