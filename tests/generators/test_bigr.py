"""BiGR: sizes, what the trunk and the head see, and the training step against other formulas."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tessella.config import build_config, to_dict
from tessella.generators.bigr import BiGR, BigrConfig
from tessella.generators.build import build_generator
from tessella.generators.networks.binary_transcoder import (
    BinaryTranscoder,
    BinaryTranscoderConfig,
    time_sinusoid,
)
from tessella.generators.networks.llama import LlamaConfig, LlamaTrunk
from tessella.generators.networks.rotation import rotate, rotation_table
from tessella.generators.noise import uniform
from tessella.generators.processes.bernoulli import BernoulliDiffusion
from tessella.tests.cases import over
from tessella.tokens.tokens import Tokens, TokenSpec

GRID = TokenSpec((3, 4), (2,) * 6)
TRUNK = LlamaConfig(width=16, num_layers=2, num_heads=2, mlp_width=24, dropout=0.0)
HEAD = BinaryTranscoderConfig(width=12, num_blocks=2)


def build(spec: TokenSpec = GRID, *, randomised: bool = True, **fields: Any) -> BiGR:
    """A tiny generator in eval mode; randomised: every parameter far from its initial value."""
    fields = {"transformer": TRUNK, "head": HEAD, "num_classes": 3} | fields
    fields.setdefault("diffusion", BernoulliDiffusion(num_steps=16))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = BiGR(BigrConfig(**fields), spec).eval()
        if randomised:
            with torch.no_grad():
                for parameter in generator.parameters():
                    parameter.copy_(torch.randn_like(parameter) * 0.3 + 0.05)
    return generator


def random_tokens(spec: TokenSpec = GRID, batch: int = 3, seed: int = 1) -> Tokens:
    rng = torch.Generator().manual_seed(seed)
    shape = (batch, spec.num_tokens, spec.num_codebooks)
    return Tokens(torch.randint(spec.codebook_sizes[0], shape, generator=rng), spec)


def inputs(generator: BiGR, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Bits, mask and class embeddings, one without a class."""
    rng = torch.Generator().manual_seed(2)
    shape = (batch, generator.spec.num_tokens)
    mask = torch.rand(shape, generator=rng) < 0.5
    labels = torch.tensor([0, 2, 3])[:batch]
    tokens = random_tokens(generator.spec, batch)
    return tokens.bits(), mask, generator.embed_classes(labels)


PUBLISHED = {
    # width, layers, heads, head blocks, head width, side, bits: parameters, those of the head
    (1024, 24, 16, 3, 1024, 16, 24): (336_346_136, 20_255_768),
    (1024, 24, 16, 3, 1024, 16, 32): (336_370_720, None),
    (1280, 36, 20, 6, 1280, 16, 24): (799_372_824, 56_140_824),
    (1280, 36, 20, 6, 1280, 16, 32): (799_403_552, None),
    (1536, 48, 24, 8, 1536, 16, 24): (1_480_028_184, 104_346_648),
    (1536, 48, 24, 8, 1536, 16, 32): (1_480_065_056, None),
    (1024, 24, 16, 6, 1280, 32, 32): (372_718_624, 55_833_632),
}


@pytest.mark.parametrize("sizes", PUBLISHED)
def test_published_sizes(sizes: tuple[int, ...]) -> None:
    width, layers, heads, blocks, head_width, side, bits = sizes
    config = BigrConfig(
        transformer=LlamaConfig(width=width, num_layers=layers, num_heads=heads),
        head=BinaryTranscoderConfig(width=head_width, num_blocks=blocks),
        num_classes=1000,
    )
    with torch.device("meta"):
        counts = build_generator(config, TokenSpec((side, side), (2,) * bits)).num_parameters()
    total, head = PUBLISHED[sizes]
    assert counts["total"] == total
    assert head is None or counts["head"] == head


def test_rotation_is_complex_multiplication() -> None:
    """Pairs of channels as complex numbers, row first; the class token is multiplied by 0."""
    table = rotation_table((2, 3), 8)
    assert table.shape == (7, 4, 2) and not table[0].any()
    x = torch.randn(1, 7, 2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = rotate(x, table)
    assert not found[:, 0].any()
    for place in range(6):
        row, column = divmod(place, 3)
        angles = torch.tensor([row, row / 100, column, column / 100])
        numbers = torch.view_as_complex(x[0, place + 1].unflatten(-1, (4, 2)).contiguous())
        turned = numbers * torch.polar(torch.ones_like(angles), angles)
        expected = torch.view_as_real(turned).flatten(-2)
        torch.testing.assert_close(found[0, place + 1], expected, atol=1e-6, rtol=0)


def test_scores_depend_on_distances_alone() -> None:
    """Of rotated queries and keys: the same for pairs of positions with one offset."""
    rng = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=rng).expand(2, 1, 17, 1, 8)
    table = rotation_table((4, 4), 8)
    scores = (rotate(q, table)[0, 1:, 0] @ rotate(k, table)[0, 1:, 0].T).view(4, 4, 4, 4)
    torch.testing.assert_close(scores[0, 0, 1, 2], scores[2, 1, 3, 3], atol=1e-5, rtol=0)
    assert (scores[0, 0, 1, 2] - scores[0, 0, 2, 1]).abs() > 1e-3


def test_the_class_token_attends_evenly_and_is_attended_to_with_score_0() -> None:
    """One block by hand: softmax over scores of which those of the class token are 0."""
    config = dataclasses.replace(TRUNK, num_layers=1)
    torch.manual_seed(0)
    trunk = LlamaTrunk(config, (2, 2)).double()
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(1, 5, 16, generator=rng, dtype=torch.float64)
    condition = torch.randn(1, 16, generator=rng, dtype=torch.float64)
    torch.nn.init.normal_(trunk.modulation.weight, std=0.3)
    block: Any = trunk.blocks[0]
    parts = F.linear(F.silu(condition), trunk.modulation.weight, trunk.modulation.bias)
    shift1, scale1, gate1, shift2, scale2, gate2 = (parts.view(6, 16) + block.table[0, 0]).unbind(0)

    def norm(x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    q, k, v = F.linear(norm(x) * (1 + scale1) + shift1, block.qkv.weight).view(5, 3, 2, 8).unbind(1)
    q, k = (rotate(part[None], trunk.rotation)[0] for part in (q, k))
    mixed = []
    for head in range(2):
        scores = q[:, head] @ k[:, head].T / math.sqrt(8)
        assert not scores[0].any() and not scores[:, 0].any()
        mixed.append(scores.softmax(-1) @ v[:, head])
    hidden = x[0] + gate1 * F.linear(torch.cat(mixed, -1), block.out.weight)
    y = norm(hidden) * (1 + scale2) + shift2
    y = F.silu(F.linear(y, block.mlp_gate.weight)) * F.linear(y, block.mlp_in.weight)
    expected = norm(hidden + gate2 * F.linear(y, block.mlp_out.weight))
    with torch.no_grad():
        # The norms and rotations are computed in float32.
        torch.testing.assert_close(trunk(x, condition)[0], expected, atol=2e-5, rtol=0)


def test_head_by_hand() -> None:
    torch.manual_seed(0)
    head = BinaryTranscoder(BinaryTranscoderConfig(width=8, num_blocks=1), 4, 6)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    bits, conditions = torch.tensor([0, 1, 1, 0]), torch.randn(6)
    angles = torch.tensor([4 * 10_000 ** (-i / 128) for i in range(128)])
    sinusoid = torch.cat([angles.cos(), angles.sin()])
    c = F.silu(head.condition(conditions) + head.time_out(F.silu(head.time_in(sinusoid))))
    x = head.input(torch.tensor([-1.0, 1, 1, -1]))

    def norm(x: Tensor) -> Tensor:
        return (x - x.mean()) / (x.var(unbiased=False) + 1e-6).sqrt()

    block: Any = head.blocks[0]
    shift, scale, gate = block.modulation(c).chunk(3)
    x = x + gate * block.mlp_out(F.silu(block.mlp_in(norm(x) * (1 + scale) + shift)))
    shift, scale = head.modulation(c).chunk(2)
    expected = head.output(norm(x) * (1 + scale) + shift)
    found = head(bits, torch.tensor(5), conditions)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_times_are_told_apart() -> None:
    table = time_sinusoid(torch.arange(256))
    distances = torch.cdist(table, table) + 10 * torch.eye(256)
    assert table.shape == (256, 256) and distances.min() > 0.5


def test_times_and_conditions_are_of_each_token() -> None:
    """A batch of tokens is the tokens one by one, and a scalar time stands for one each."""
    head = build().head
    rng = torch.Generator().manual_seed(0)
    bits = torch.randint(2, (2, 5, 6), generator=rng)
    t = torch.randint(1, 17, (2, 5), generator=rng)
    conditions = torch.randn(2, 5, 16, generator=rng)
    with torch.no_grad():
        found = head(bits, t, conditions)
        for i in range(2):
            for j in range(5):
                alone = head(bits[i, j], t[i, j], conditions[i, j])
                torch.testing.assert_close(found[i, j], alone, atol=1e-5, rtol=1e-4)
        same = head(bits, torch.tensor(7), conditions)
        torch.testing.assert_close(same, head(bits, torch.full((2, 5), 7), conditions))


def test_what_stands_at_hidden_positions_is_never_read() -> None:
    generator = build()
    bits, mask, classes = inputs(generator)
    other = torch.where(mask[..., None], 1 - bits, bits)
    visible = torch.where(mask[..., None], bits, 1 - bits)
    with torch.no_grad():
        found = generator.predict(bits, mask, classes)
        assert torch.equal(found, generator.predict(other, mask, classes))
        assert not torch.equal(found, generator.predict(visible, mask, classes))


def test_every_position_sees_every_other() -> None:
    """A changed token or label changes the condition of every position, before and after it."""
    generator = build()
    bits, mask, classes = inputs(generator)
    mask[:, [0, 5, 11]] = False
    with torch.no_grad():
        found = generator.predict(bits, mask, classes)
        for place in (0, 5, 11):
            other = bits.clone()
            other[:, place] ^= 1
            changed = (generator.predict(other, mask, classes) != found).any(-1)
            assert changed.all()
        assert (generator.predict(bits, mask, classes.roll(1, 0)) != found).any(-1).all()


def test_permuted_positions_give_permuted_conditions() -> None:
    """If rotations and position table are permuted along."""
    generator, other = build(), build()
    bits, mask, classes = inputs(generator)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        other.position.copy_(generator.position[:, order])
        other.trunk.rotation.copy_(
            generator.trunk.rotation[torch.cat([torch.zeros(1).long(), order + 1])]
        )
        expected = generator.predict(bits, mask, classes)[:, order]
        found = other.predict(bits[:, order], mask[:, order], classes)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_conditions_are_of_each_image() -> None:
    generator = build()
    bits, mask, classes = inputs(generator)
    with torch.no_grad():
        together = generator.predict(bits, mask, classes)
        for i in range(3):
            alone = generator.predict(bits[i : i + 1], mask[i : i + 1], classes[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)


def test_padding_is_not_read() -> None:
    spec = TokenSpec((8,), (2,) * 6, ordered=True)
    generator = build(spec)
    bits, mask, classes = inputs(generator)
    lengths = torch.tensor([3, 8, 5])
    valid = torch.arange(8) < lengths[:, None]
    other = torch.where(valid[..., None], bits, 1 - bits)
    with torch.no_grad():
        found = generator.predict(bits, mask, classes, valid)
        again = generator.predict(other, mask & valid, classes, valid)
        assert torch.equal(found[valid], again[valid])
        whole = generator.predict(bits, mask, classes)
        real = torch.ones_like(valid)
        torch.testing.assert_close(generator.predict(bits, mask, classes, real), whole)
    assert not torch.allclose(found[0, :3], whole[0, :3])


@pytest.mark.parametrize(
    "loss,weights", [("balanced", "schedule"), ("balanced", "token"), ("plain", "schedule")]
)
def test_a_new_model_is_in_doubt_of_every_bit(loss: Any, weights: Any) -> None:
    """The output starts at 0: ln 2 for every bit before it is weighted."""
    process = BernoulliDiffusion(num_steps=16, loss=loss, weights=weights)
    generator = build(randomised=False, diffusion=process)
    bits, mask, classes = inputs(generator)
    t = torch.full((3, 12), 3)
    with torch.no_grad():
        logits = generator.predict_flips(bits, t, generator.predict(bits, mask, classes))
        output = generator(random_tokens(), seeds=torch.arange(3))
    assert not logits.any()
    if loss == "plain":
        assert output.loss.item() == pytest.approx(math.log(2), rel=1e-6)
    assert generator.trunk.modulation.weight.abs().sum() == 0
    assert generator.input.weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert generator.mask_token.std().item() == pytest.approx(1, rel=0.5)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("ratio", ["image", "batch"])
def test_hidden_counts_are_the_published_ones(ratio: Any, schedule: Any) -> None:
    """floor(N gamma(i / N)) for i from 0 to N - 1, and at least 1; positions are of the seed."""
    generator = build(mask_ratio=ratio, mask_schedule=schedule)
    seeds = torch.arange(40)
    seen: list[Tensor] = []
    generator.predict = lambda bits, mask, *rest: (  # type: ignore[method-assign]
        seen.append(mask) or BiGR.predict(generator, bits, mask, *rest)
    )
    tokens = random_tokens(batch=40)
    with torch.no_grad():
        generator(tokens, seeds=seeds)
        generator(tokens[5:9], seeds=seeds[5:9])
    counts = seen[0].sum(1)
    step = (uniform(seeds, 0, (2,))[:, 0] * 12).floor()
    step = step[:1].expand(40) if ratio == "batch" else step
    gamma = {"cosine": lambda x: math.cos(math.pi / 2 * x), "linear": lambda x: 1 - x}[schedule]
    expected = [max(1, math.floor(12 * gamma(i / 12) + 1e-9)) for i in step.tolist()]
    assert counts.tolist() == expected
    assert (len(set(expected)) > 5) == (ratio == "image")
    assert torch.equal(seen[1], seen[0][5:9]) == (ratio == "image")
    assert len(seen[0].unique(dim=0)) > 20 or ratio == "batch"


@pytest.mark.parametrize("weights", ["schedule", "token"])
def test_loss_is_of_hidden_tokens_at_times_of_their_own(weights: Any) -> None:
    process = BernoulliDiffusion(num_steps=16, weights=weights)
    generator = build(diffusion=process, label_dropout=0.0)
    tokens, labels, seeds = random_tokens(), torch.tensor([2, -1, 0]), torch.tensor([7, 8, 9])
    seen: dict[str, Any] = {}

    def flips_of(bits: Tensor, t: Tensor, conditions: Tensor) -> Tensor:
        seen["x_t"], seen["t"] = bits, t
        seen["logits"] = BiGR.predict_flips(generator, bits, t, conditions)
        return seen["logits"]

    def predict(bits: Tensor, mask: Tensor, classes: Tensor, *rest: Any) -> Tensor:
        seen["mask"], seen["classes"] = mask, classes
        return BiGR.predict(generator, bits, mask, classes, *rest)

    generator.predict_flips, generator.predict = flips_of, predict  # type: ignore[method-assign]
    output = generator(tokens, labels, seeds=seeds)
    rows = generator.class_embedding.weight[[2, 3, 0]]
    assert torch.equal(seen["classes"], rows)
    x_0, t = tokens.bits(), seen["t"]
    assert t.shape == (3, 12) and len(t.unique()) > 5 and t.min() >= 1 and t.max() <= 16
    total, count = 0.0, 0
    for i, j in seen["mask"].nonzero().tolist():
        flipped = seen["x_t"][i, j] != x_0[i, j]
        rate = t[i, j].item() / 32
        share = flipped.float().mean().item()
        for k in range(6):
            p = seen["logits"][i, j, k].sigmoid().item()
            y = flipped[k].item()
            weight = (1 - rate if y else rate) if weights == "schedule" else 0.0
            if weights == "token":
                weight = (1 - share if y else share) + 1 / 6
            total -= weight * math.log(p if y else 1 - p)
            count += 1
    assert output.loss.item() == pytest.approx(total / count, rel=1e-5)
    assert output.weight.item() == count
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.parameters())


def test_metrics_of_a_model_that_knows_nothing() -> None:
    """Plain loss: flips cost ln 2 and half of the bits are told; buckets add up to the whole."""
    generator = build(randomised=False, diffusion=BernoulliDiffusion(num_steps=16, loss="plain"))
    with torch.no_grad():
        metrics = generator(random_tokens(batch=64), seeds=torch.arange(64)).metrics
    means = {name: (pair[0] / pair[1]).item() for name, pair in metrics.items()}
    assert means["flip_loss"] == pytest.approx(math.log(2), rel=1e-5)
    buckets = [pair for name, pair in metrics.items() if name.startswith("masked_bits_per_dim_")]
    assert len(buckets) == 4
    torch.testing.assert_close(torch.stack(buckets).sum(0), metrics["masked_bits_per_dim"])


def test_the_bound_of_an_oracle_that_knows_nothing_but_the_process() -> None:
    """Logits of a fair coin given x_t: 1 bit for each bit, by any loss; 4 sigma of 2,000 images."""
    for loss in ("balanced", "plain"):
        process = BernoulliDiffusion(num_steps=8, loss=loss)  # type: ignore[arg-type]
        generator = build(diffusion=process)

        def flips_of(bits: Tensor, t: Tensor, conditions: Tensor, p: Any = process) -> Tensor:
            calibrated = -p.evidence(t)[..., None].float().expand(bits.shape)
            return torch.zeros_like(calibrated) if p.loss == "balanced" else calibrated

        generator.predict_flips = flips_of  # type: ignore[method-assign]
        with torch.no_grad():
            metrics = generator(random_tokens(batch=2000), seeds=torch.arange(2000)).metrics
        bits, count = metrics["masked_bits_per_dim"].tolist()
        # A term is at most 8 times that of one step, below 1 bit; so sigma is below 8 / sqrt(n).
        assert bits / count == pytest.approx(1, abs=4 * 8 / math.sqrt(count) / 2)


def test_a_step_depends_on_the_seed_of_the_image_alone() -> None:
    generator = build()
    tokens, labels = random_tokens(batch=6), torch.tensor([0, 1, 2, -1, 3, 0])
    seeds = torch.arange(6)
    with torch.no_grad():
        whole = generator(tokens, labels, seeds=seeds)
        parts = [
            generator(tokens[i : i + 1], labels[i : i + 1], seeds=seeds[i : i + 1])
            for i in range(6)
        ]
    for name, pair in whole.metrics.items():
        torch.testing.assert_close(sum(p.metrics[name] for p in parts), pair)
    mean = sum(p.loss * p.weight for p in parts) / sum(p.weight for p in parts)
    torch.testing.assert_close(mean, whole.loss)


def test_labels_are_dropped_at_their_rate() -> None:
    generator = build(label_dropout=0.25)
    seen: list[Tensor] = []
    generator.embed_classes = lambda labels: (  # type: ignore[method-assign]
        seen.append(labels) or BiGR.embed_classes(generator, labels)
    )
    with torch.no_grad():
        generator(random_tokens(batch=2000), torch.ones(2000).long(), seeds=torch.arange(2000))
    share = (seen[0] == 3).float().mean().item()
    assert share == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 2000))
    assert set(seen[0].tolist()) == {1, 3}


def test_padding_is_neither_hidden_nor_counted() -> None:
    spec = TokenSpec((8,), (4,) * 2, ordered=True)
    generator = build(spec)
    tokens = random_tokens(spec, 3)
    lengths = torch.tensor([1, 8, 4])
    valid = torch.arange(8) < lengths[:, None]
    tokens = Tokens(tokens.indices * valid[..., None], spec, lengths)
    seen: list[Tensor] = []
    generator.predict = lambda bits, mask, *rest: (  # type: ignore[method-assign]
        seen.append(mask) or BiGR.predict(generator, bits, mask, *rest)
    )
    with torch.no_grad():
        output = generator(tokens, seeds=torch.arange(3))
    assert not (seen[0] & ~valid).any() and seen[0].any(1).all()
    assert output.weight == seen[0].sum() * 4


def test_features_are_means_between_the_blocks() -> None:
    generator = build()
    tokens, labels = random_tokens(), torch.tensor([0, 1, -1])
    found = generator.features(tokens, labels)
    assert found.shape == (3, 2, 16) and found.dtype == torch.float32
    bits = tokens.bits()
    with torch.no_grad():
        classes = generator.embed_classes(torch.tensor([0, 1, 3]))
        x = torch.cat([classes[:, None], generator.input(bits.float())], 1)
        for layer, hidden in enumerate(generator.trunk.layers(x, classes)):
            torch.testing.assert_close(found[:, layer], hidden[:, 1:].mean(1))
        final = generator.predict(bits, torch.zeros(3, 12).bool(), classes) - generator.position
        torch.testing.assert_close(generator.trunk.norm_out(hidden)[:, 1:], final)
    assert torch.equal(generator.features(tokens, labels, layers=[1]), found[:, 1:])
    nothing = generator.features(tokens)
    assert torch.equal(nothing[2], found[2]) and not torch.allclose(nothing[0], found[0])


def test_features_leave_padding_out() -> None:
    spec = TokenSpec((8,), (2,) * 6, ordered=True)
    generator = build(spec)
    tokens = random_tokens(spec, 2).truncate(3)
    other = Tokens(random_tokens(spec, 2, seed=9).indices, spec, tokens.lengths)
    joined = torch.where(tokens.valid[..., None], tokens.indices, other.indices)
    found = generator.features(tokens)
    assert torch.equal(found, generator.features(Tokens(joined, spec, tokens.lengths)))


@pytest.mark.parametrize("layers", [[], [0, 2], [1, 0], [0, 0], [-1]])
def test_layers_that_are_not_there_are_refused(layers: list[int]) -> None:
    with pytest.raises(ValueError, match=r"layers: expected rising numbers from 0 to 1, found"):
        build().features(random_tokens(), layers=layers)


def test_attention_backends_agree() -> None:
    wide = LlamaConfig(width=64, num_layers=2, num_heads=2, mlp_width=24)  # low_bit needs that
    generator = build(transformer=wide, randomised=False)
    torch.nn.init.normal_(generator.trunk.modulation.weight, std=0.1)
    arguments = inputs(generator)
    with torch.no_grad():
        generator.set_attention_backend("plain")
        plain = generator.predict(*arguments)
        assert generator.attention == "plain"
        generator.set_attention_backend("sdpa")
        torch.testing.assert_close(generator.predict(*arguments), plain, atol=1e-5, rtol=1e-5)
        generator.set_attention_backend("low_bit", "int8")
        assert generator.attention == "low_bit int8"
        low = generator.predict(*arguments)
    assert low.isfinite().all()  # the class token's queries and keys are 0
    assert (low - plain).abs().max() < 0.1 * plain.abs().max()


def test_logits_stay_float32_under_autocast() -> None:
    generator = build()
    bits, mask, classes = inputs(generator)
    t = torch.full((3, 12), 5)
    with torch.no_grad():
        exact = generator.predict_flips(bits, t, generator.predict(bits, mask, classes))
        with torch.autocast("cpu", torch.bfloat16):
            conditions = generator.predict(bits, mask, classes)
            logits = generator.predict_flips(bits, t, conditions)
    assert conditions.dtype == logits.dtype == torch.float32
    assert (logits - exact).abs().max() < 0.1 * exact.abs().max()
    assert not torch.equal(logits, logits.bfloat16().float())


def test_groups_of_bits_are_the_same_bits() -> None:
    """Tokens of 3 entries of 4 or 6 of 2: one loss."""
    paired = TokenSpec((3, 4), (4,) * 3)
    one, other = build(), build(paired)
    tokens = random_tokens()
    with torch.no_grad():
        expected = one(tokens, seeds=torch.arange(3)).loss
        assert torch.equal(other(tokens.regroup((4,) * 3), seeds=torch.arange(3)).loss, expected)


def test_config_survives_its_file() -> None:
    config = BigrConfig(transformer=TRUNK, head=HEAD, num_classes=3, mask_ratio="batch")
    assert build_config(BigrConfig, to_dict(config)) == config


@over(
    "make,message",
    [
        (lambda: BigrConfig(num_classes=-1), "num_classes: expected at least 0, found -1"),
        (lambda: BigrConfig(label_dropout=1.5), "label_dropout: expected 0 to 1, found 1.5"),
        (
            lambda: BigrConfig(diffusion=BernoulliDiffusion(weights="image")),
            "image goes with one time per image",
        ),
        (lambda: BinaryTranscoderConfig(num_blocks=0), "num_blocks: expected at least 1, found 0"),
        (lambda: LlamaConfig(mlp_width=0), "mlp_width: expected at least 1, found 0"),
        (lambda: LlamaConfig(num_heads=3), "num_heads: 3 does not divide the width 1024"),
        (lambda: LlamaConfig(dropout=1.0), "dropout: expected 0 to below 1, found 1.0"),
        (
            lambda: LlamaConfig(attention="low_bit", attention_dropout=0.1),
            "low_bit has none, found 0.1",
        ),
        (lambda: BiGR(BigrConfig(), GRID), "num_classes: not given; 0 is unconditional"),
        (lambda: build(TokenSpec((4,), (3,))), "BiGR reads bits, and 4 tokens of"),
        (
            lambda: build(transformer=dataclasses.replace(TRUNK, num_heads=8)),
            r"heads of 2 channels; the 2 axes of \(3, 4\) need a multiple of 4",
        ),
    ],
)
def test_impossible_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
