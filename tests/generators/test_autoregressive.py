"""The autoregressive generator: exact likelihoods, what depends on what, published sizes."""

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tessella.generators.autoregressive import AutoregressiveConfig, AutoregressiveGenerator
from tessella.generators.networks.llama import LlamaConfig
from tessella.tokens.tokens import Tokens, TokenSpec

GRID = TokenSpec((2, 3), (4, 4, 4))
MIXED = TokenSpec((2, 3), (3, 5, 2))
TINY = TokenSpec((2,), (4, 4))
SMALL = LlamaConfig(width=16, num_layers=2, num_heads=2, mlp_width=24, dropout=0.0)
PUBLISHED = {
    "B": LlamaConfig(width=768, num_layers=12, num_heads=12),
    "L": LlamaConfig(width=1024, num_layers=24, num_heads=16),
    "XL": LlamaConfig(width=1280, num_layers=36, num_heads=20),
    "XXL": LlamaConfig(width=1536, num_layers=48, num_heads=24),
}


def make(spec: TokenSpec = GRID, *, fresh: bool = False, **fields: Any) -> AutoregressiveGenerator:
    """A small generator in eval mode, its parameters far from their initial values."""
    sizes = spec.codebook_sizes
    fields = {"transformer": SMALL, "num_classes": 3, "codebook_sizes": sizes} | fields
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = AutoregressiveGenerator(AutoregressiveConfig(**fields), spec).eval()
        if not fresh:
            with torch.no_grad():
                for parameter in generator.parameters():
                    parameter.copy_(torch.randn_like(parameter) * 0.4 + 0.05)
    return generator


def random_tokens(spec: TokenSpec = GRID, batch: int = 4, seed: int = 1) -> Tokens:
    rng = torch.Generator().manual_seed(seed)
    shape = (batch, spec.num_tokens)
    columns = [torch.randint(size, shape, generator=rng) for size in spec.codebook_sizes]
    return Tokens(torch.stack(columns, -1), spec)


def every(spec: TokenSpec, num_tokens: int | None = None) -> Tensor:
    """All sequences of so many positions, (S, N, G); positions after them are 0."""
    count = spec.num_tokens if num_tokens is None else num_tokens
    codes = itertools.product(*(range(size) for size in spec.codebook_sizes * count))
    found = torch.tensor(list(codes)).view(-1, count, spec.num_codebooks)
    return F.pad(found, (0, 0, 0, spec.num_tokens - count))


@pytest.mark.parametrize(
    ("name", "num_depth_layers", "millions"),
    [
        *(("B", 1, 143.14), ("L", 1, 389.32), ("XL", 1, 836.97), ("XXL", 1, 1489.62)),
        *(("B", 4, 164.38), ("L", 4, 427.86), ("XL", 4, 897.92), ("XXL", 4, 1574.57)),
    ],
)
def test_parameters_of_unitok(name: str, num_depth_layers: int, millions: float) -> None:
    """8 groups of 4,096, 256 positions: counts of the public code. To two places they are the same
    with 1,000 rows of classes and with the 1,001 here."""
    config = AutoregressiveConfig(
        transformer=PUBLISHED[name], num_depth_layers=num_depth_layers, num_classes=1000
    )
    with torch.device("meta"):
        generator = AutoregressiveGenerator(config, TokenSpec((16, 16), (4096,) * 8))
    assert round(generator.num_parameters()["total"] / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("name", "millions", "exact"),
    [("B", 111, 110_888_448), ("L", 343, 342_910_976), ("XL", 775, 774_699_520)],
)
def test_parameters_of_llamagen(name: str, millions: int, exact: int) -> None:
    config = AutoregressiveConfig(transformer=PUBLISHED[name], num_depth_layers=0, num_classes=1000)
    with torch.device("meta"):
        generator = AutoregressiveGenerator(config, TokenSpec((16, 16), (16384,)))
    assert generator.num_parameters()["total"] == exact and round(exact / 1e6) == millions


@pytest.mark.parametrize("spec", [GRID, MIXED, TokenSpec((3, 2), (7,))], ids=str)
def test_the_first_loss_is_that_of_knowing_nothing(spec: TokenSpec) -> None:
    generator, tokens = make(spec, fresh=True), random_tokens(spec)
    out = generator(tokens, seeds=torch.arange(4))
    expected = sum(map(math.log, spec.codebook_sizes)) / spec.num_codebooks
    assert generator.uniform_loss == pytest.approx(expected)
    assert out.loss.item() == pytest.approx(expected, abs=1e-6)
    total, count = out.metrics["bits_per_dim"]
    assert (total / count).item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(generator.bits_per_dim(tokens), torch.ones(4).double())


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("spec", [GRID, MIXED], ids=str)
def test_a_code_depends_on_those_before_it_only(spec: TokenSpec, layers: int) -> None:
    """Changing code (m, k) changes no logits up to and including its own, and all after it."""
    generator, codes = make(spec, num_depth_layers=layers), random_tokens(spec).indices
    labels, groups = torch.tensor([0, 1, 2, 3]), spec.num_codebooks
    with torch.no_grad():
        before = generator.logits(codes, labels).flatten(1, 2)
        for place in range(spec.num_tokens * groups):
            changed = codes.flatten(1).clone()
            size = spec.codebook_sizes[place % groups]
            changed[:, place] = (changed[:, place] + 1) % size
            after = generator.logits(changed.view_as(codes), labels).flatten(1, 2)
            assert torch.equal(after[:, : place + 1], before[:, : place + 1])
            rest = (after != before)[:, place + 1 :]
            assert rest.flatten(2).any(-1).all()


def test_the_label_and_the_order_of_positions_matter() -> None:
    generator, codes = make(), random_tokens().indices
    with torch.no_grad():
        rows = [generator.logits(codes, torch.full((4,), label)) for label in range(4)]
        for one, other in itertools.combinations(rows, 2):
            assert (one != other).flatten(2).any(-1).all()
        swapped = generator.logits(codes[:, [1, 0, 2, 3, 4, 5]], torch.zeros(4, dtype=torch.int64))
    assert not torch.allclose(swapped[:, 3:], rows[0][:, 3:], atol=1e-4)


def plain_logits(generator: AutoregressiveGenerator, codes: Tensor, label: int) -> Tensor:
    """Logits of one image of GRID (N, G), formula by formula, in float64; complex rotations."""
    state = {name: value.double() for name, value in generator.state_dict().items()}
    heads, width = SMALL.num_heads, SMALL.width

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * state[f"{name}.weight"]

    def rotated(x: Tensor) -> Tensor:
        """Channels (2i, 2i + 1) as one complex number; the class token becomes 0."""
        pairs, out = torch.view_as_complex(x.unflatten(-1, (-1, 2))), torch.zeros_like(x)
        for n in range(1, len(x)):
            row, column = divmod(n - 1, GRID.shape[1])
            frequencies = torch.tensor([1.0, 1e-2]).double()  # base 10,000, half of 8 channels
            angles = torch.cat([row * frequencies, column * frequencies])
            turned = pairs[n] * torch.polar(torch.ones_like(angles), angles)
            out[n] = torch.view_as_real(turned).flatten(-2)
        return out

    def blocks(x: Tensor, prefix: str, positions: bool) -> Tensor:
        number = 0
        while f"{prefix}.blocks.{number}.qkv.weight" in state:
            own = f"{prefix}.blocks.{number}"
            qkv = norm(x, f"{own}.norm1") @ state[f"{own}.qkv.weight"].T
            q, k, v = qkv.view(len(x), 3, heads, width // heads).unbind(1)
            if positions:
                q, k = rotated(q), rotated(k)
            mixed = torch.zeros_like(q)
            for n in range(len(x)):
                for h in range(heads):
                    weights = (k[: n + 1, h] @ q[n, h] / math.sqrt(width // heads)).softmax(0)
                    mixed[n, h] = weights @ v[: n + 1, h]
            x = x + mixed.flatten(1) @ state[f"{own}.out.weight"].T
            y = norm(x, f"{own}.norm2")
            gate = F.silu(y @ state[f"{own}.mlp_gate.weight"].T)
            inner = gate * (y @ state[f"{own}.mlp_in.weight"].T)
            x = x + inner @ state[f"{own}.mlp_out.weight"].T
            number += 1
        return norm(x, f"{prefix}.norm_out")

    rows = [state["class_embedding.weight"][label]]
    for code in codes[:-1].tolist():
        rows.append(sum(state[f"input.tables.{g}.weight"][c] for g, c in enumerate(code)))
    found = []
    for h, code in zip(blocks(torch.stack(rows), "trunk", True), codes.tolist(), strict=True):
        read = [h] + [state[f"head.tables.{g}.weight"][c] for g, c in enumerate(code[:-1])]
        out = blocks(torch.stack(read), "head.depth", False)
        found.append(out @ state["head.head.weight"].T + state["head.head.bias"])
    return torch.stack(found)


def test_the_network_is_the_published_one() -> None:
    generator, codes = make(num_depth_layers=2), random_tokens().indices
    with torch.no_grad():
        found = generator.logits(codes, torch.tensor([0, 1, 2, 3]))
    for i in range(4):
        expected = plain_logits(generator, codes[i], i).float()
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-5)


def test_without_depth_the_head_is_linear() -> None:
    """LlamaGen: no bias, no norm but the trunk's."""
    generator = make(TokenSpec((2, 3), (9,)), num_depth_layers=0)
    codes = random_tokens(generator.spec).indices
    with torch.no_grad():
        found = generator.logits(codes, torch.tensor([0, 1, 2, 3]))
        first = generator.class_embedding(torch.tensor([0, 1, 2, 3]))[:, None]
        h = generator.trunk(torch.cat([first, generator.input(codes)[:, :-1]], 1))
    torch.testing.assert_close(found[:, :, 0], h @ generator.head.head.weight.T)
    assert generator.head.head.bias is None and generator.head.depth is None


@pytest.mark.parametrize("spec", [TINY, TokenSpec((2,), (3, 4)), TokenSpec((1, 3), (5,))], ids=str)
def test_probabilities_of_all_sequences_sum_to_one(spec: TokenSpec) -> None:
    generator, codes = make(spec), every(spec)
    bits = generator.bits_per_dim(Tokens(codes, spec), torch.ones(len(codes), dtype=torch.int64))
    assert bits.dtype == torch.float64
    p = 2 ** (-bits * spec.bits_per_image)
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    assert p.max() > 3 / len(p)  # it has opinions


@pytest.mark.parametrize("num_tokens", [1, 2])
def test_shorter_sequences_have_a_distribution_of_their_own(num_tokens: int) -> None:
    spec = TokenSpec((3,), (4, 3), ordered=True)
    codes = every(spec, num_tokens)
    tokens = Tokens(codes, spec, torch.full((len(codes),), num_tokens))
    bits = make(spec).bits_per_dim(tokens) * num_tokens * spec.bits_per_token
    assert (2**-bits).sum().item() == pytest.approx(1, abs=1e-5)


def test_bits_per_dim_in_training_are_the_exact_ones() -> None:
    spec = TokenSpec((5,), (4, 3), ordered=True)
    generator, lengths = make(spec, label_dropout=0.0), torch.tensor([5, 1, 3, 2])
    codes = random_tokens(spec).indices * (torch.arange(5) < lengths[:, None])[..., None]
    tokens, labels = Tokens(codes, spec, lengths), torch.tensor([0, 1, 2, -1])
    out = generator(tokens, labels, seeds=torch.arange(4))
    exact = generator.bits_per_dim(tokens, labels)
    total, count = out.metrics["bits_per_dim"]
    capacity = lengths * spec.bits_per_token
    assert count.item() == pytest.approx(capacity.sum().item())
    assert (total / count).item() == pytest.approx(
        ((exact * capacity).sum() / capacity.sum()).item(), abs=1e-6
    )
    nats = (exact * capacity).sum().item() * math.log(2) / (2 * lengths.sum().item())
    assert out.loss.item() == pytest.approx(nats, abs=1e-6)
    assert out.weight.item() == 2 * lengths.sum().item()
    total, count = out.metrics["cross_entropy"]
    assert (total / count).item() == pytest.approx(nats, abs=1e-6)
    with torch.no_grad():
        likeliest = generator.logits(codes, torch.tensor([0, 1, 2, 3])).argmax(-1)
    right = ((likeliest == codes) & tokens.valid[..., None]).sum().item()
    assert out.metrics["accuracy"].tolist() == [right, 2 * lengths.sum().item()]
    torch.testing.assert_close(exact[2:3], generator.bits_per_dim(tokens[2:3], labels[2:3]))


def test_padding_is_never_seen() -> None:
    spec = TokenSpec((5,), (4, 3), ordered=True)
    generator, lengths = make(spec), torch.tensor([5, 1, 3, 2])
    real = (torch.arange(5) < lengths[:, None])[..., None]
    clean = random_tokens(spec).indices * real
    junk = torch.where(real, clean, 1)
    one, other = (
        generator(Tokens(codes, spec, lengths), seeds=torch.arange(4)) for codes in (clean, junk)
    )
    assert not torch.equal(clean, junk) and torch.equal(one.loss, other.loss)
    for name, value in one.metrics.items():
        assert torch.equal(value, other.metrics[name]), name


def test_labels_are_dropped_by_the_seed_of_the_image() -> None:
    generator, tokens = make(label_dropout=0.5), random_tokens(batch=64)
    labels, seeds = torch.arange(64) % 3, torch.arange(64)
    nothing, all_ = torch.full((64,), 3), generator.bits_per_dim(tokens, labels)
    none = generator.bits_per_dim(tokens, nothing)
    assert torch.equal(none, generator.bits_per_dim(tokens, torch.full((64,), -1)))
    dropped = 0
    for i in range(64):
        rows = slice(i, i + 1)
        out = generator(tokens[rows], labels[rows], seeds=seeds[rows])
        total, count = out.metrics["bits_per_dim"].tolist()
        is_none = abs(total / count - none[i]) < abs(total / count - all_[i])
        assert total / count == pytest.approx((none if is_none else all_)[i].item(), abs=1e-6)
        dropped += bool(is_none)
    assert 20 <= dropped <= 44  # 32 +- 3 standard deviations of 4
    whole = generator(tokens, labels, seeds=seeds)
    assert torch.equal(whole.loss, generator(tokens, labels, seeds=seeds).loss)
    assert not torch.equal(whole.loss, generator(tokens, labels, seeds=seeds + 64).loss)


def test_cached_logits_are_the_teacher_forced_ones() -> None:
    for spec in (GRID, MIXED, TokenSpec((2, 3), (5,))):
        generator, codes = make(spec), random_tokens(spec).indices
        labels = torch.tensor([0, 1, 2, 3])
        with torch.no_grad():
            expected = generator.logits(codes, labels)
            caches, depth_caches = generator.trunk.new_caches(6), generator.head.new_caches()
            x = generator.class_embedding(labels)
            for n in range(6):
                read = generator.trunk.step(x, caches, n)
                for g, size in enumerate(spec.codebook_sizes):
                    found = generator.head.step(read, depth_caches, g)
                    torch.testing.assert_close(found, expected[:, n, g, :size], rtol=0, atol=1e-5)
                    if g + 1 < generator.num_groups:
                        read = generator.head.embed(codes[:, n, g], g)
                x = generator.input(codes[:, n])


def test_smaller_groups_have_no_probability_beyond_their_size() -> None:
    generator, codes = make(MIXED), random_tokens(MIXED).indices
    logits = generator.logits(codes, torch.tensor([0, 1, 2, 3]))
    assert logits.shape == (4, 6, 3, 5) and logits.dtype == torch.float32
    for g, size in enumerate(MIXED.codebook_sizes):
        assert logits[:, :, g, :size].isfinite().all()
        assert (logits[:, :, g, size:] == -math.inf).all()
    loss = generator.train()(Tokens(codes, MIXED), seeds=torch.arange(4)).loss
    loss.backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_bits_are_read_in_the_groups_asked_for() -> None:
    spec = TokenSpec((2, 3), (2,) * 6)
    generator = make(spec, codebook_sizes=(8, 4, 2))
    assert generator.codebook_sizes == (8, 4, 2) and generator.num_groups == 3
    tokens = random_tokens(spec)
    regrouped = tokens.regroup((8, 4, 2)).indices
    out = generator(tokens, torch.tensor([0, 1, 2, 0]), seeds=torch.full((4,), 2))
    with torch.no_grad():
        nats = -generator.logits(regrouped, torch.tensor([0, 1, 2, 0])).log_softmax(-1)
    expected = nats.gather(-1, regrouped[..., None]).mean().item()
    assert out.loss.item() == pytest.approx(expected, abs=1e-6)
    assert make(spec, codebook_sizes=None).codebook_sizes == (64,)


def test_new_tables_are_small_and_codes_equally_likely() -> None:
    """Normal with a deviation of .02, as published, but for the scores' layer of zeros."""
    generator = make(TokenSpec((4, 4), (256, 256)), fresh=True)
    for name in ("class_embedding.weight", "input.tables.0.weight", "head.tables.0.weight"):
        rows = generator.get_parameter(name)
        if rows.numel() > 1000:
            assert rows.std().item() == pytest.approx(0.02, rel=0.1), name
    assert not generator.head.head.weight.any() and not generator.head.head.bias.any()


def test_what_the_trunk_reads_is_dropped_in_part_too() -> None:
    generator = make(transformer=dataclasses.replace(SMALL, dropout=0.5)).train()
    read: list[Tensor] = []
    generator.trunk.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    generator(random_tokens(), seeds=torch.arange(4))
    assert 0.3 < (read[0] == 0).float().mean().item() < 0.7


def test_dropout_acts_in_training_only() -> None:
    trunk = LlamaConfig(width=16, num_layers=1, num_heads=2, dropout=0.5, attention_dropout=0.3)
    generator, tokens = make(transformer=trunk), random_tokens()
    seeds = torch.arange(4)
    quiet = generator(tokens, seeds=seeds).loss
    assert torch.equal(quiet, generator(tokens, seeds=seeds).loss)
    generator.train()
    assert not torch.equal(generator(tokens, seeds=seeds).loss, generator(tokens, seeds=seeds).loss)


def test_attention_can_be_chosen() -> None:
    generator, codes = make(), random_tokens().indices
    assert generator.attention == "auto"
    labels = torch.tensor([0, 1, 2, 3])
    expected = generator.logits(codes, labels)
    for backend in ("plain", "sdpa", "fastest"):
        generator.set_attention_backend(backend)
        assert generator.attention == backend
        blocks = [*generator.trunk.blocks, *generator.head.depth.blocks]
        assert {block.attention for block in blocks} == {backend}
        torch.testing.assert_close(generator.logits(codes, labels), expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="attention: low_bit is not causal"):
        generator.set_attention_backend("low_bit", "int8")
    with pytest.raises(ValueError, match="attention: expected one of"):
        generator.set_attention_backend("quick")
    assert generator.attention == "fastest"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_depth_layers": -1}, "num_depth_layers: expected at least 0, found -1"),
        ({"num_classes": -2}, "num_classes: expected at least 0, found -2"),
        ({"label_dropout": 1.5}, "label_dropout: expected 0 to 1, found 1.5"),
        ({"transformer": LlamaConfig(attention="low_bit")}, "attention: low_bit is not causal"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoregressiveConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": None}, "num_classes: not given; 0 is unconditional"),
        ({"num_depth_layers": 0}, r"0 goes with one code per position, here there are 3, \[4, 4"),
        ({"codebook_sizes": (8, 8, 8)}, "has 64 joint values"),
        ({"transformer": LlamaConfig(width=12, num_heads=2)}, "num_heads: heads of 6 channels"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**fields)


def test_unconditional() -> None:
    generator, tokens = make(num_classes=0), random_tokens()
    assert generator.class_embedding.weight.shape == (1, 16)
    seeds = torch.arange(4)
    assert torch.equal(
        generator(tokens, seeds=seeds).loss, generator(tokens, -torch.ones(4).long()).loss
    )
