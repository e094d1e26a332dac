"""Binary latent diffusion: sizes, what the network sees, the loss, the bound against oracles."""

import itertools
import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tessella.config import build_config
from tessella.generators.base import GeneratorOutput
from tessella.generators.binary_latent_diffusion import (
    BinaryLatentDiffusion,
    BinaryLatentDiffusionConfig,
)
from tessella.generators.build import GeneratorFileConfig, build_generator
from tessella.generators.networks.denoising_transformer import (
    DenoisingTransformer,
    DenoisingTransformerConfig,
    position_table,
    time_sinusoid,
)
from tessella.generators.noise import uniform
from tessella.generators.processes.bernoulli import BernoulliDiffusion
from tessella.tokens.tokens import SpecMismatch, Tokens, TokenSpec

TRUNK = DenoisingTransformerConfig(width=16, num_layers=2, num_heads=2)
GRID = TokenSpec((3, 4), (8, 4))
ORDERED = TokenSpec((5,), (16,), ordered=True)


def make(spec: TokenSpec = GRID, *, process: Any = None, **fields: Any) -> BinaryLatentDiffusion:
    """A small model with weights far from their initial values, in eval mode."""
    process = BernoulliDiffusion(**{"num_steps": 8, **(process or {})})
    fields = {"transformer": TRUNK, "diffusion": process, "num_classes": 3} | fields
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BinaryLatentDiffusion(BinaryLatentDiffusionConfig(**fields), spec).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def tokens(spec: TokenSpec = GRID, batch: int = 4, seed: int = 2) -> Tokens:
    rng = torch.Generator().manual_seed(seed)
    columns = [
        torch.randint(size, (batch, spec.num_tokens), generator=rng) for size in spec.codebook_sizes
    ]
    found = Tokens(torch.stack(columns, -1), spec)
    return found.truncate(3) if spec.ordered else found


def on_meta(spec: TokenSpec, **fields: Any) -> int:
    with torch.device("meta"):
        model = build_generator(BinaryLatentDiffusionConfig(**fields), spec)
    assert all(parameter.is_meta for parameter in model.parameters())
    return model.num_parameters()["total"]


def test_published_sizes() -> None:
    """24 blocks of 7,089,408 and the rest, 64 bits; 1024 pixels are 32 x 32 positions."""
    spec, block = TokenSpec((16, 16), (2,) * 64), 7_089_408
    one, two = (DenoisingTransformerConfig(num_layers=count) for count in (1, 2))
    rest = on_meta(spec, num_classes=0, transformer=one) - block
    assert on_meta(spec, num_classes=0, transformer=two) == rest + 2 * block
    assert DenoisingTransformerConfig().num_layers == 24 and rest + 24 * block == 171_623_488
    classes = {"num_classes": 1000, "transformer": one}
    assert on_meta(spec, null_label="absent", **classes) + 23 * block == 172_391_488
    assert on_meta(spec, **classes) + 23 * block == 172_391_488 + 768
    large = TokenSpec((32, 32), (2,) * 64)  # only positions are more: 1024 instead of 256
    assert on_meta(large, num_classes=0, transformer=one) == rest + block + 768 * 768


def test_positions_are_sines_of_column_then_row() -> None:
    """Against the formula, entry by entry; a sequence has one axis, what is left over is 0."""
    table = position_table((3, 5), 16)
    for row, column in itertools.product(range(3), range(5)):
        for channel in range(16):
            place = column if channel < 8 else row
            angle = place * 10_000 ** (-(channel % 4) / 4)
            value = math.sin(angle) if channel % 8 < 4 else math.cos(angle)
            assert abs(table[row * 5 + column, channel].item() - value) < 1e-6
    sequence = position_table((7,), 6)
    assert sequence[3].tolist() == pytest.approx(
        [f(3 * 10_000 ** (-i / 3)) for f in (math.sin, math.cos) for i in range(3)], abs=1e-6
    )
    volume = position_table((2, 3, 2), 32)
    assert volume.shape == (12, 32) and (volume[:, 30:] == 0).all()
    assert len(volume.unique(dim=0)) == 12
    network = DenoisingTransformer(TRUNK, (3, 4), 5, 0)
    assert torch.equal(network.position[0], position_table((3, 4), 16))


def test_time_is_4000_times_its_share_at_log_spaced_frequencies() -> None:
    found = time_sinusoid(torch.tensor([0.0, 0.25, 1.0]), 8)
    for time, row in zip((0.0, 0.25, 1.0), found, strict=True):
        angles = [time * 4000 * 10_000 ** (-i / 3) for i in range(4)]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert row.tolist() == pytest.approx(expected, abs=2e-4)


def test_the_time_is_that_of_training_whatever_the_sampler() -> None:
    """(t - 1) / T: the network is shown 0 at t = 1 and 7/8 at t = T = 8."""
    model, bits = make(), tokens().bits()
    labels = torch.full((4,), 3)
    t = torch.tensor([1, 2, 5, 8])
    direct = model.network(2.0 * bits - 1, torch.tensor([0, 1 / 8, 4 / 8, 7 / 8]), labels)
    assert torch.equal(model.predict(bits, t, labels), direct)
    assert (model.predict(bits, t + 0 * t.flip(0), labels) - direct).abs().max() == 0
    assert (model.predict(bits, t.flip(0), labels) - direct).abs().min() > 0


def test_the_network_written_down_once_more() -> None:
    """Pre-norm blocks with a scale per channel, eps 1e-5, exact GELU; time and class at the end."""
    model, t = make(), torch.tensor([1, 3, 8, 8])
    bits, labels = tokens().bits(), torch.tensor([0, 2, 1, 3])
    weight = dict(model.network.named_parameters())

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weight[f"{name}.weight"], weight[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (16,), weight[f"{name}.weight"], weight[f"{name}.bias"], 1e-5)

    signs = (2 * bits - 1).float()
    time = time_sinusoid((t - 1) / 8, 16)
    time = linear(F.silu(linear(time, "time_in")), "time_out")
    rows = signs @ weight["bit_embedding"] + weight["position"]
    x = torch.cat([rows, time[:, None], weight["class_embedding.weight"][labels][:, None]], 1)
    for i in range(2):
        name = f"trunk.blocks.{i}"
        q, k, v = (
            part.unflatten(-1, (2, 8)).transpose(1, 2)
            for part in linear(norm(x, f"{name}.norm1"), f"{name}.qkv").chunk(3, -1)
        )
        mixed = (q @ k.mT / math.sqrt(8)).softmax(-1) @ v
        mixed = linear(mixed.transpose(1, 2).flatten(2), f"{name}.out")
        x = x + weight[f"{name}.out.scale"] * mixed
        hidden = F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp_in"))
        x = x + weight[f"{name}.mlp_out.scale"] * linear(hidden, f"{name}.mlp_out")
    expected = linear(norm(x, "trunk.norm_out"), "head")[:, :12]
    with torch.no_grad():
        found = model.predict(bits, t, labels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found.dtype == torch.float32


def test_values_need_not_be_signs() -> None:
    """Linear in the values before the first block: halves lie between."""
    network = make().network
    t, labels = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    ones = torch.ones(1, 12, 5)
    parts = [network.embed(scale * ones, t, labels)[0] for scale in (-1.0, 0.5, 1.0)]
    torch.testing.assert_close(parts[1], 0.25 * parts[0] + 0.75 * parts[2])


def test_initial_weights() -> None:
    """Scales 1, bias of queries, keys and values 0, bits normal with std 0.02."""
    torch.manual_seed(0)
    network = DenoisingTransformer(
        DenoisingTransformerConfig(width=128, num_layers=2, num_heads=4), (4, 4), 64, 0
    )
    assert network.class_embedding is None
    for name, parameter in network.named_parameters():
        if name.endswith(".scale"):
            assert (parameter == 1).all()
        if name.endswith("qkv.bias"):
            assert (parameter == 0).all()
    assert abs(network.bit_embedding.std().item() - 0.02) < 0.001


def test_no_label_is_a_learned_token_or_none_at_all() -> None:
    """Absent: as the same weights without the class token; in one batch with labelled images."""
    bits, t = tokens().bits(), torch.tensor([1, 3, 8, 8])
    labels, nothing = torch.tensor([0, 3, 2, 3]), torch.full((4,), 3)
    absent = make(null_label="absent")
    without = make(num_classes=0)
    state = {n: p for n, p in absent.state_dict().items() if "class_embedding" not in n}
    without.load_state_dict(state)
    with torch.no_grad():
        mixed = absent.predict(bits, t, labels)
        none = without.predict(bits, t, nothing)
        assert (mixed[1::2] - none[1::2]).abs().max() < 1e-5
        assert (mixed[::2] - none[::2]).abs().amax((1, 2)).min() > 1e-3
        assert torch.equal(without.predict(bits, t, labels), none)
        learned = make()
        assert (learned.predict(bits, t, labels) - mixed).abs().amax((1, 2)).min() > 1e-3
    assert len(absent.network.class_embedding.weight) == 3
    assert len(learned.network.class_embedding.weight) == 4


def test_padding_is_not_seen_and_does_not_count() -> None:
    model = make(ORDERED)
    codes = tokens(ORDERED)
    other = codes.indices.masked_fill(~codes.valid[..., None], 0).clone()
    other[:, 3:] = 7
    t, labels = torch.tensor([1, 3, 8, 8]), torch.zeros(4, dtype=torch.int64)
    with torch.no_grad():
        shown = model.predict(codes.bits(), t, labels, codes.valid)[:, :3]
        hidden = Tokens(other, ORDERED, codes.lengths).bits()
        assert torch.equal(model.predict(hidden, t, labels, codes.valid)[:, :3], shown)
        output = model(codes, labels, seeds=torch.arange(4))
        padded = model(Tokens(other, ORDERED, codes.lengths), labels, seeds=torch.arange(4))
    assert output.weight.item() == 4 * 3 * 4
    assert torch.equal(output.loss, padded.loss)


def written_out(model: BinaryLatentDiffusion, seeds: Tensor) -> tuple[Tensor, ...]:
    """Times, flips and logits of a training step, from the same random numbers."""
    bits, draws = tokens().bits(), uniform(seeds, 0, (2,))
    t = (draws[:, 0] * 8).floor().long() + 1
    flips = uniform(seeds, 1, (12, 5)) < (t / 16)[:, None, None]
    noisy = torch.where(flips, 1 - bits, bits)
    dropped = draws[:, 1] < 0.1
    labels = torch.where(dropped, 3, torch.tensor([0, 1, 2, 0]))
    return t, flips, model.predict(noisy, t, labels)


@pytest.mark.parametrize("loss", ["balanced", "plain"])
def test_the_training_step_is_the_loss_of_the_paper(loss: Any) -> None:
    model, seeds = make(process={"loss": loss}), torch.tensor([3, 1, 4, 15])
    t, flips, logits = written_out(model, seeds)
    output = model(tokens(), torch.tensor([0, 1, 2, 0]), seeds=seeds)
    assert isinstance(output, GeneratorOutput)
    entropy = F.binary_cross_entropy_with_logits(logits, flips.float(), reduction="none")
    rate = (t / 16)[:, None, None]
    weight = torch.where(flips, 1 - rate, rate) if loss == "balanced" else torch.ones(())
    torch.testing.assert_close(output.loss, (weight * entropy).mean())
    assert output.weight.item() == 4 * 12 * 5
    value, count = output.metrics["bits_per_dim"].tolist()
    s, shape = t - 1, (4, 1, 1)
    if loss == "plain":
        p = logits.double().sigmoid()
    else:
        p = (logits.double() - ((1 - rate) / rate).log()).sigmoid()
    q_flip, q_stay = (step_flip(x, s.view(shape) / 8, t.view(shape) / 8) for x in (1.0, 0.0))
    true = torch.where(flips, q_flip, q_stay)
    predicted = step_flip(p, s.view(shape) / 8, t.view(shape) / 8)
    coins = [torch.distributions.Bernoulli(x) for x in (true, predicted)]
    bound = 8 * torch.distributions.kl_divergence(*coins).sum() / math.log(2)
    assert value / count == pytest.approx(bound.item() / 240, rel=1e-4)
    right = ((p > 0.5) == flips).float().mean()
    value, count = output.metrics["bit_accuracy"].tolist()
    assert value / count == pytest.approx(right.item())
    parts = [output.metrics[f"flip_loss_{low}_{low + 25}"] for low in range(0, 100, 25)]
    torch.testing.assert_close(torch.stack(parts).sum(0), output.metrics["flip_loss"])


def step_flip(p: Any, s: Tensor, t: Tensor) -> Tensor:
    """P(x_s != x_t) by summing over x_0, linear schedule, times as shares."""
    early, late, delta = s / 2, t / 2, (1 - (1 - t) / (1 - s)) / 2
    p = torch.as_tensor(p, dtype=torch.float64)
    return p * (1 - early) * delta / late + (1 - p) * early * delta / (1 - late)


def test_an_image_s_step_depends_on_its_seed_alone() -> None:
    model, codes = make(), tokens()
    labels, seeds = torch.tensor([0, 1, 2, 0]), torch.tensor([9, 8, 7, 6])
    whole = model(codes, labels, seeds=seeds)
    single = [model(codes[i : i + 1], labels[i : i + 1], seeds=seeds[i : i + 1]) for i in range(4)]
    mean = torch.stack([output.loss for output in single]).mean()
    torch.testing.assert_close(whole.loss, mean, rtol=1e-5, atol=1e-6)
    torch.manual_seed(0)
    drawn = model(codes, labels).loss
    torch.manual_seed(0)
    assert torch.equal(model(codes, labels).loss, drawn)


def test_hidden_labels_are_those_of_the_share() -> None:
    never, always = make(label_dropout=0.0), make(label_dropout=1.0)
    codes, labels, seeds = tokens(), torch.tensor([0, 1, 2, 0]), torch.arange(4)
    assert not torch.equal(never(codes, labels, seeds=seeds).loss, never(codes, seeds=seeds).loss)
    assert torch.equal(always(codes, labels, seeds=seeds).loss, never(codes, seeds=seeds).loss)
    assert torch.equal(
        never(codes, labels * 0 - 1, seeds=seeds).loss,
        never(codes, labels * 0 + 3, seeds=seeds).loss,
    )


# The bound, for the exact denoiser of a known source of 8 bits.

STATES = torch.tensor(list(itertools.product((0, 1), repeat=8)))
DIFFER = (STATES[:, None] != STATES).double()
EIGHT = TokenSpec((2,), (2,) * 4)


def source() -> Tensor:
    """A distribution over `STATES`: four components of independent, mostly decided bits."""
    rng = torch.Generator().manual_seed(0)
    chance = torch.rand(4, 8, generator=rng, dtype=torch.float64).mul(12).sub(6).sigmoid()
    likelihood = torch.where(STATES[:, None] == 1, chance, 1 - chance).prod(-1)
    return likelihood @ torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


@cache
def joint_with(t: int, num_steps: int) -> Tensor:
    """p(x_0, x_t), (256, 256), linear schedule."""
    rate = t / num_steps / 2
    return source()[:, None] * (DIFFER * rate + (1 - DIFFER) * (1 - rate)).prod(-1)


@cache
def posterior_of(t: int, num_steps: int) -> Tensor:
    joint = joint_with(t, num_steps)
    return torch.einsum("ab,abk->bk", joint / joint.sum(0), DIFFER)


class Oracle(BinaryLatentDiffusion):
    """Predicts the exact posterior of the source, in the sense of its loss."""

    def predict(self, bits: Tensor, t: Tensor, *rest: Any) -> Tensor:
        states = (bits.flatten(1) * 2 ** torch.arange(7, -1, -1)).sum(1)
        logits = posterior_of(int(t[0]), self.diffusion.num_steps).logit()[states].view_as(bits)
        if self.diffusion.loss == "balanced":
            logits = logits + self.diffusion.evidence(t)[:, None, None]
        return logits


def oracle(num_steps: int, loss: Any) -> Oracle:
    process = BernoulliDiffusion(num_steps=num_steps, loss=loss)
    config = BinaryLatentDiffusionConfig(transformer=TRUNK, diffusion=process, num_classes=0)
    return Oracle(config, EIGHT).eval()


def exact_bound(model: Oracle, count: int) -> float:
    """Expected bound in bits per bit: every (x_0, x_t) with its probability."""
    total, process = 0.0, model.diffusion
    for t, s in process.steps(count):
        p, joint = posterior_of(t, process.num_steps), joint_with(t, process.num_steps)
        times = (torch.tensor(s / process.num_steps), torch.tensor(t / process.num_steps))
        predicted = step_flip(p, *times)
        for flipped in (0.0, 1.0):
            q = step_flip(flipped, *times).expand_as(predicted)
            coins = [torch.distributions.Bernoulli(x) for x in (q, predicted)]
            chance = torch.einsum("ab,abk->bk", joint, DIFFER if flipped else 1 - DIFFER)
            total += (chance * torch.distributions.kl_divergence(*coins)).sum().item()
    return total / 8 / math.log(2)


@pytest.mark.parametrize("loss", ["plain", "balanced"])
def test_the_bound_is_above_the_entropy_and_tight(loss: Any) -> None:
    """Enumerated: never below, nearer with more steps, 0.6 % above at 64 steps; and the method
    finds it within 4 sigma from n = 4,000 draws of the source."""
    p = source()
    entropy = -(p * p.log2()).sum().item() / 8
    model = oracle(64, loss)
    bounds = [exact_bound(model, count) for count in (1, 4, 16, 64)]
    assert all(low > high > entropy for low, high in itertools.pairwise(bounds))
    assert bounds[-1] < 1.01 * entropy
    draws = torch.multinomial(p, 4000, True, generator=torch.Generator().manual_seed(0))
    codes = Tokens(STATES[draws].view(-1, 2, 4), EIGHT)
    found = model.bits_per_dim(codes, seeds=torch.arange(4000), num_steps=16)
    assert found.shape == (4000,) and found.dtype == torch.float64
    sigma = found.std().item() / math.sqrt(4000)
    assert abs(found.mean().item() - bounds[2]) < 4 * sigma
    assert sigma < 0.02


def test_the_bound_belongs_to_the_seeds() -> None:
    model, codes, seeds = make(), tokens(), torch.tensor([4, 5, 6, 7])
    labels = torch.tensor([0, 1, 2, -1])
    found = model.bits_per_dim(codes, labels, seeds=seeds)
    assert torch.equal(model.bits_per_dim(codes, labels, seeds=seeds), found)
    one = model.bits_per_dim(codes[2:3], labels[2:3], seeds=seeds[2:3])
    assert one.item() == pytest.approx(found[2].item(), rel=1e-4)
    assert not torch.equal(model.bits_per_dim(codes, labels, seeds=seeds + 9), found)
    with pytest.raises(ValueError, match="num_steps: expected 1 to the 8 of training, found 9"):
        model.bits_per_dim(codes, labels, seeds=seeds, num_steps=9)


def test_knowing_nothing_needs_one_bit_per_bit() -> None:
    """Logit 0 of the balanced loss is "no idea of x_0", whatever the chain."""
    model = make()
    torch.nn.init.zeros_(model.network.head.weight)
    torch.nn.init.zeros_(model.network.head.bias)
    many = Tokens(tokens().indices.repeat(64, 1, 1), GRID)
    for count in (1, 3, 8):
        found = model.bits_per_dim(many, seeds=torch.arange(256), num_steps=count)
        assert found.mean().item() == pytest.approx(1.0, abs=4 * found.std().item() / 16 + 1e-9)


def test_configs_survive_a_file_and_say_what_is_impossible() -> None:
    data = {
        "generator": {
            "type": "bld",
            "transformer": {"width": 32, "num_layers": 1, "num_heads": 2},
            "diffusion": {"num_steps": 64, "schedule": "cos", "loss": "plain"},
        },
        "tokens": {"shape": [2, 2], "codebook_sizes": [2, 2]},
    }
    config = build_config(GeneratorFileConfig, data).generator
    assert isinstance(config, BinaryLatentDiffusionConfig)
    assert config.diffusion == BernoulliDiffusion(num_steps=64, schedule="cos", loss="plain")
    assert config.transformer.norm == "pre" and config.transformer.dropout == 0
    for changes, message in (
        ({"num_classes": -1}, "num_classes: expected at least 0, found -1"),
        ({"label_dropout": 1.5}, "label_dropout: expected 0 to 1, found 1.5"),
        ({"diffusion": {"weights": "token"}}, "token goes with one time per token"),
        ({"diffusion": {"loss": "plain", "kernel": "plug_in"}}, "kernel"),
        ({"transformer": {"norm": "post"}}, "norm"),
        ({"transformer": {"width": 9, "num_heads": 3}}, "width: expected an even number from 4"),
    ):
        with pytest.raises(ValueError, match=message):
            build_config(GeneratorFileConfig, data | {"generator": {"type": "bld"} | changes})


def test_what_is_not_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="binary latent diffusion reads bits, and 4x4 tokens of"):
        make(TokenSpec((4, 4), (1000,)))
    with pytest.raises(ValueError, match="num_classes: not given; 0 is unconditional"):
        make(num_classes=None)
    with pytest.raises(SpecMismatch, match="this generator reads"):
        make()(tokens(EIGHT))
    with pytest.raises(SpecMismatch, match="this generator reads"):
        make().bits_per_dim(tokens(EIGHT), seeds=torch.arange(4))


def test_attention_is_that_of_the_trunk() -> None:
    model = make()
    assert model.attention == "auto"
    bits, t = tokens().bits(), torch.tensor([1, 3, 8, 8])
    labels = torch.zeros(4, dtype=torch.int64)
    with torch.no_grad():
        expected = model.predict(bits, t, labels)
        for backend in ("sdpa", "plain"):
            model.set_attention_backend(backend)
            assert model.attention == backend
            assert (model.predict(bits, t, labels) - expected).abs().max() < 1e-4


def test_hashes_are_fitted_before_the_first_step() -> None:
    trunk = DenoisingTransformerConfig(
        width=16, num_layers=1, num_heads=2, binarized_attention="hashed"
    )
    spec = TokenSpec((8, 8), (2,) * 4)
    model = make(spec, transformer=trunk)
    before = {n: p.clone() for n, p in model.state_dict().items()}
    codes, labels = tokens(spec, 8), torch.zeros(8, dtype=torch.int64)
    model.calibrate(codes, labels, seed=0)
    changed = [n for n, p in model.state_dict().items() if not torch.equal(p, before[n])]
    assert changed and all(".hash." in name for name in changed)
    assert model(codes, labels, seeds=torch.arange(8)).loss.isfinite()
    assert make().calibrate(tokens(), torch.zeros(4, dtype=torch.int64), seed=0) is None
