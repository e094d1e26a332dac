"""`embedding: fused` is the same generator as `embedding: plain`."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.config import build_config, to_dict
from tessella.generators.build import GeneratorConfig
from tessella.generators.masked import MaskBitConfig, MaskedGenerator, MaskGITConfig
from tessella.generators.networks.bert import TransformerConfig
from tessella.tokens.tokens import Tokens, TokenSpec

LOGITS = 1e-6
"""Largest difference of logits."""
GRADIENTS = 3e-6
"""Largest difference of gradients, relative to the largest entry: two orders of summation."""

KINDS = {
    "maskbit": (MaskBitConfig, (2,) * 10),
    "maskbit-groups-of-6-and-5": (MaskBitConfig, (2,) * 11),
    "maskbit-one-group": (MaskBitConfig, (2,) * 3),
    "maskgit": (MaskGITConfig, (64, 64, 64)),
    "maskgit-fsq": (MaskGITConfig, (8, 5, 5)),
}


def build(kind: str, embedding: str, **fields: Any) -> MaskedGenerator:
    """A generator whose parameters are far from their initial values, the same for both."""
    config, sizes = KINDS[kind]
    trunk = TransformerConfig(width=32, num_layers=2, num_heads=2, dropout=0.0)
    fields = {"transformer": trunk, "num_classes": 3, "embedding": embedding} | fields
    if kind.endswith("fsq"):
        fields["codebook_sizes"] = sizes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = MaskedGenerator(config(**fields), TokenSpec((3, 4), sizes))
        for parameter in generator.parameters():
            torch.nn.init.normal_(parameter, 0.05, 0.3)
    return generator


def slots(generator: MaskedGenerator) -> tuple[Tensor, Tensor, Tensor]:
    """Indices, mask and labels; "no label" is among them."""
    rng = torch.Generator().manual_seed(1)
    columns = [torch.randint(k, (4, 12), generator=rng) for k in generator.codebook_sizes]
    indices = torch.stack(columns, -1)
    mask = torch.rand(indices.shape, generator=rng) < 0.5
    return indices, mask, torch.tensor([0, 3, 2, 3])


@pytest.mark.parametrize("kind", KINDS)
def test_same_logits_and_gradients(kind: str) -> None:
    logits, gradients = [], []
    for embedding in ("plain", "fused"):
        generator = build(kind, embedding)
        out = generator.predict(*slots(generator))
        scores = out.masked_fill(out == -torch.inf, 0)
        (scores * torch.linspace(-1, 1, scores.numel()).view_as(scores)).sum().backward()
        logits.append(scores.detach())
        gradients.append({name: p.grad for name, p in generator.named_parameters()})
    assert (logits[0] - logits[1]).abs().max() <= LOGITS
    assert list(gradients[0]) == list(gradients[1])
    for name, plain in gradients[0].items():
        difference = (plain - gradients[1][name]).abs().max()
        assert difference <= GRADIENTS * plain.abs().max(), name


@pytest.mark.parametrize("kind", ["maskbit", "maskgit"])
def test_same_training_step(kind: str) -> None:
    plain, fused = build(kind, "plain"), build(kind, "fused")
    indices, _, labels = slots(plain)
    tokens = Tokens(indices, plain.masked_spec).regroup(plain.spec.codebook_sizes)
    labels = labels.where(labels < 3, -1)
    seeds = torch.arange(4)
    torch.testing.assert_close(
        fused(tokens, labels, seeds=seeds).loss, plain(tokens, labels, seeds=seeds).loss
    )


def test_weights_and_configs_of_plain_generators_fit() -> None:
    plain, fused = build("maskbit", "plain"), build("maskbit", "fused")
    fused.load_state_dict(plain.state_dict())
    stored = to_dict(plain.config)
    del stored["embedding"]  # a folder written before this field
    assert build_config(GeneratorConfig, stored) == plain.config


def test_too_many_bits_are_refused_when_built() -> None:
    spec = TokenSpec((2, 2), (2,) * 64)
    trunk = TransformerConfig(width=8, num_layers=1, num_heads=1)
    config = MaskBitConfig(transformer=trunk, num_classes=0, embedding="fused")
    with pytest.raises(ValueError, match="embedding: fused reads up to 62 bits"):
        MaskedGenerator(config, spec)
    assert MaskedGenerator(replace(config, embedding="plain"), spec)


@pytest.mark.slow
def test_compiles_into_one_graph() -> None:
    generator = build("maskbit", "fused").eval()
    given = slots(generator)
    compiled = torch.compile(generator.predict, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(*given), generator.predict(*given))
