"""Low-bit and binarized attention in a generator: settings, training, sampling, records."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tessella.config import build_config, to_dict, to_yaml
from tessella.generators.bayesian_flow_network import BayesianFlowNetworkConfig
from tessella.generators.binary_latent_diffusion import BinaryLatentDiffusionConfig
from tessella.generators.build import GeneratorConfig, build_generator
from tessella.generators.masked import MaskBitConfig, MaskedGenerator
from tessella.generators.networks.attention import attention, takes_low_bit
from tessella.generators.networks.attention_rules import (
    RULES_VARIABLE,
    AttentionRule,
    RuleFile,
    choose_kernel,
    measured_rules,
)
from tessella.generators.networks.bert import TransformerConfig
from tessella.generators.networks.denoising_transformer import DenoisingTransformerConfig
from tessella.kernels.low_bit_attention.op import HEAD_DIMS
from tessella.sample.generate import generate
from tessella.tokens.tokens import Tokens, TokenSpec

SPEC = TokenSpec((4, 4), (2,) * 8)


def build(*, std: float = 0.15, spec: TokenSpec = SPEC, **changes: Any) -> MaskedGenerator:
    """A generator with heads of 32, its parameters the same whatever its attention."""
    settings = {"width": 64, "num_layers": 2, "num_heads": 2, "dropout": 0.0} | changes
    config = MaskBitConfig(transformer=TransformerConfig(**settings), num_classes=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = MaskedGenerator(config, spec)
        for parameter in generator.parameters():
            torch.nn.init.normal_(parameter, 0.02, std)
    return generator


def slots() -> tuple[Tensor, Tensor, Tensor]:
    """Indices, mask and labels."""
    rng = torch.Generator().manual_seed(1)
    indices = torch.randint(16, (2, 16, 2), generator=rng)
    return indices, torch.rand(2, 16, 2, generator=rng) < 0.5, torch.tensor([0, 3])


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("int8", 0.02), ("int8_fp8", 0.06), ("fp8", 0.06)]
)
def test_low_bit_predicts_nearly_the_same(precision: Any, tolerance: float) -> None:
    exact, quantized = build(), build(attention="low_bit", low_bit_precision=precision)
    with torch.no_grad():
        expected, found = exact.predict(*slots()), quantized.predict(*slots())
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < tolerance, error


def test_set_attention_backend_changes_the_backend_and_not_the_config() -> None:
    generator, quantized = build(dropout=0.1).eval(), build(attention="low_bit").eval()
    before = to_dict(generator.config)
    assert generator.attention == "auto"
    generator.set_attention_backend("low_bit")
    with torch.no_grad():
        assert torch.equal(generator.predict(*slots()), quantized.predict(*slots()))
    assert (generator.attention, quantized.attention) == ("low_bit int8", "low_bit int8")
    assert to_dict(generator.config) == before
    generator.set_attention_backend("low_bit", "fp8")
    assert generator.attention == "low_bit fp8"


def test_low_bit_trains_straight_through() -> None:
    exact, quantized = build(), build(attention="low_bit")
    tokens = Tokens(slots()[0], quantized.masked_spec).regroup(SPEC.codebook_sizes)
    gradients = []
    for generator in (exact, quantized):
        generator(tokens, torch.tensor([0, 1]), seeds=torch.arange(2)).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in generator.parameters()]))
    assert F.cosine_similarity(*gradients, 0) > 0.999


@pytest.mark.parametrize("method", ["bibert", "bivit", "binary_qk"])
def test_binarized_attention_is_another_function_and_learns(method: Any) -> None:
    softmax, generator = build(std=0.4), build(std=0.4, binarized_attention=method)
    assert generator.attention == method
    with torch.no_grad():
        difference = softmax.predict(*slots()) - generator.predict(*slots())
    assert difference.abs().max() > 0.01
    generator = build(binarized_attention=method)
    tokens = Tokens(slots()[0], generator.masked_spec).regroup(SPEC.codebook_sizes)
    optimizer = torch.optim.Adam(generator.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = generator(tokens, torch.tensor([0, 1]), seeds=torch.arange(2)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2, losses
    with pytest.raises(ValueError, match=f"binarized_attention: {method}, which no backend"):
        generator.set_attention_backend("sdpa")


def test_hashes_are_fitted_before_training_and_stored() -> None:
    spec = TokenSpec((5, 5), (2,) * 8)
    generator, again = (build(spec=spec, binarized_attention="hashed") for _ in range(2))
    assert generator.trunk.blocks[0].qkv.weight.shape == (128, 64)  # queries are keys
    rng = torch.Generator().manual_seed(0)
    tokens = Tokens(torch.randint(2, (4, 25, 8), generator=rng), spec)
    labels, seeds = torch.tensor([0, 1, 2, -1]), torch.arange(4)
    with pytest.raises(RuntimeError, match="expected a fitted hash"):
        generator(tokens, labels, seeds=seeds)
    for one in (generator, again):
        one.train().calibrate(tokens, labels, seed=7)
        assert one.training
    stored = generator.state_dict()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in stored.items())
    loss = generator(tokens, labels, seeds=seeds).loss
    loss.backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    loaded = build(spec=spec, std=0.1, binarized_attention="hashed")
    loaded.load_state_dict(stored)
    assert torch.equal(loaded(tokens, labels, seeds=seeds).loss, loss)


def test_hashes_want_as_many_tokens_as_anchors() -> None:
    with pytest.raises(ValueError, match=r"hashed compares with 25 tokens, .* has 17"):
        build(binarized_attention="hashed")
    assert build(spec=TokenSpec((4, 6), (2,) * 8), binarized_attention="hashed")


@pytest.mark.parametrize("kind", [BinaryLatentDiffusionConfig, BayesianFlowNetworkConfig])
def test_generators_over_time_refuse_the_same_tokens(kind: Any) -> None:
    for method, message in (("hashed", "compares with 25"), ("binary_qk", "several lengths")):
        trunk = DenoisingTransformerConfig(
            width=64, num_layers=1, num_heads=2, binarized_attention=method
        )
        config = kind(transformer=trunk, num_classes=3)
        spec = TokenSpec((16,), (2,) * 8, ordered=True)
        with pytest.raises(ValueError, match=message):
            build_generator(config, spec)


@pytest.mark.parametrize("way", [{"attention": "low_bit"}, {"binarized_attention": "bivit"}])
def test_sampling_with_it(way: dict[str, Any]) -> None:
    generator = build(**way).eval()
    tokens = generate(generator, [0, 1, 2], num_steps=4)
    again = generate(generator, [1], seeds=[1], num_steps=4)
    assert torch.equal(tokens.indices[1:2], again.indices), "an image depends on its batch"


def test_configs_of_before_still_mean_softmax() -> None:
    config = build().config
    stored = to_dict(config)
    del stored["transformer"]["binarized_attention"], stored["transformer"]["low_bit_precision"]
    assert build_config(GeneratorConfig, stored) == config
    changed = dataclasses.replace(config.transformer, binarized_attention="bivit")
    assert to_dict(changed)["binarized_attention"] == "bivit"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attention": "low_bit", "dropout": 0.1},
            "attention_dropout: low_bit has none, found 0.1; set attention_dropout: 0",
        ),
        (
            {"binarized_attention": "bivit", "attention_dropout": 0.2},
            "attention_dropout: bivit has none, found 0.2",
        ),
        (
            {"binarized_attention": "bivit", "attention": "sdpa"},
            "attention: sdpa computes softmax attention, and binarized_attention: bivit is another",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_binary_qk_is_refused_for_tokens_of_several_lengths() -> None:
    with pytest.raises(ValueError, match="binary_qk scales queries by their mean over all"):
        build(spec=TokenSpec((16,), (2,) * 8, ordered=True), binarized_attention="binary_qk")


def test_dropout_with_low_bit_is_refused_when_it_acts() -> None:
    generator = build(dropout=0.1)
    generator.set_attention_backend("low_bit")
    generator.eval().predict(*slots())
    with pytest.raises(ValueError, match="low_bit has no dropout of attention weights"):
        generator.train().predict(*slots())
    q = torch.randn(1, 3, 2, 32)
    with pytest.raises(ValueError, match=r"found 0\.5; set attention_dropout: 0"):
        attention(q, q, q, dropout=0.5, backend="low_bit")


def test_a_head_that_the_kernel_cannot_take_says_so() -> None:
    generator = build(num_heads=8)
    with pytest.raises(ValueError, match="this model's are 8"):
        generator.set_attention_backend("low_bit")
    with pytest.raises(ValueError, match="this model's are 8"):
        build(num_heads=8, attention="low_bit")
    assert [d for d in range(200) if takes_low_bit(d)] == list(HEAD_DIMS)


def test_wrong_names_are_refused_at_once() -> None:
    generator = build()
    with pytest.raises(ValueError, match=r"attention: expected one of \('auto'.*found 'bogus'"):
        generator.set_attention_backend("bogus")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"low_bit_precision: expected one of .* found 'int4'"):
        generator.set_attention_backend("low_bit", "int4")  # type: ignore[arg-type]
    assert generator.attention == "auto"
    with pytest.raises(ValueError, match="fp8 is of attention: low_bit or fastest, found auto"):
        build(low_bit_precision="fp8")


@pytest.fixture
def low_bit_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine where low_bit was measured to be the fastest."""
    rule = AttentionRule(way="low_bit", device="cpu", source="a test")
    path = tmp_path / "rules.yaml"
    path.write_text(to_yaml(RuleFile(about="a test", rules=(rule,))), encoding="utf-8")
    monkeypatch.setenv(RULES_VARIABLE, str(path))
    for cached in (choose_kernel, measured_rules):
        cached.cache_clear()
    yield
    monkeypatch.undo()
    for cached in (choose_kernel, measured_rules):
        cached.cache_clear()


@pytest.mark.usefixtures("low_bit_rule")
def test_fastest_takes_low_bit_where_it_can() -> None:
    rng = torch.Generator().manual_seed(0)
    for dim, dropout, lossy in ((32, 0.0, True), (24, 0.0, False), (32, 0.5, False)):
        q = torch.randn(1, 9, 2, dim, generator=rng)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            found = attention(q, q, q, dropout=dropout, backend="fastest")
            torch.manual_seed(0)
            exact = attention(q, q, q, dropout=dropout, backend="plain")
        difference = (found - exact).norm() / exact.norm()
        assert (difference > 1e-4) == lossy, (dim, dropout)
    wanting = q.clone().requires_grad_()
    assert attention(wanting, wanting, wanting, backend="fastest").grad_fn is not None


def test_compiles_with_shapes_that_change() -> None:
    compiled = torch.compile(attention, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens, dim in ((9, 32), (140, 32), (9, 64), (9, 24)):
        q = torch.randn(1, tokens, 2, dim, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(compiled(q, q, q), attention(q, q, q))


@pytest.mark.slow
@pytest.mark.parametrize("way", [{"attention": "low_bit"}, {"binarized_attention": "bibert"}, {}])
def test_compiles_into_one_graph(way: dict[str, Any]) -> None:
    generator = build(**way).eval()
    compiled = torch.compile(generator.predict, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(*slots()), generator.predict(*slots()))
