"""Causal attention against each query on its own, and the cache against the whole sequence."""

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.generators.networks.attention import (
    AttentionBackend,
    attention,
    compute_attention,
)
from tessella.generators.networks.attention_rules import AttentionKernel
from tessella.generators.networks.causal_llama import CausalTransformer
from tessella.generators.networks.llama import LlamaConfig
from tessella.tests.cases import over

ATOL = 1e-6
"""Softmax sums of unit numbers in float32, added in another order."""


def qkv(num_tokens: int = 7) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(2, num_tokens, 3, 4, generator=rng) for _ in range(3)]


def trunk(**fields: Any) -> CausalTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(width=16, num_heads=2, dropout=0.0, **fields)
        return CausalTransformer(config, 2, (2, 3)).eval()


@pytest.mark.parametrize("way", ["plain", "sdpa", "flash", "math"])
def test_a_query_sees_the_keys_up_to_itself(way: AttentionKernel) -> None:
    q, k, v = qkv()
    found = compute_attention(way, q, k, v, causal=True)
    for n in range(7):
        seen = (q[:, n : n + 1], k[:, : n + 1], v[:, : n + 1])
        alone = attention(*seen, causal=True, backend="sdpa")  # one query, which is the last
        torch.testing.assert_close(found[:, n : n + 1], alone, rtol=0, atol=ATOL)
        scores = torch.einsum("bhd,bmhd->bhm", q[:, n], k[:, : n + 1]) / 2
        expected = torch.einsum("bhm,bmhd->bhd", scores.softmax(-1), v[:, : n + 1])
        torch.testing.assert_close(found[:, n], expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("backend", ["plain", "sdpa"])
def test_no_gradient_comes_from_later_positions(backend: AttentionBackend) -> None:
    q, k, v = (x.requires_grad_() for x in qkv())
    attention(q, k, v, causal=True, backend=backend)[:, 3].square().sum().backward()
    for x in (k, v):
        assert x.grad is not None
        assert x.grad[:, 4:].abs().max() == 0 and x.grad[:, :4].abs().amin((0, 2, 3)).min() > 0


def test_impossible_calls_are_refused() -> None:
    q, k, v = qkv()
    with pytest.raises(ValueError, match="expected 7 queries, as there are keys, or 1, found 3"):
        attention(q[:, :3], k, v, causal=True)
    with pytest.raises(ValueError, match="low_bit is not causal; expected one of auto, fastest"):
        attention(q, k, v, causal=True, backend="low_bit")
    with pytest.raises(ValueError, match="low_bit is not causal"):
        trunk(attention="low_bit")
    with pytest.raises(ValueError, match="low_bit is not causal"):
        trunk().set_attention_backend("low_bit")


def test_the_fastest_way_is_never_low_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a rule prefers it, other attention takes it and causal attention does not."""
    asked: list[bool] = []

    def choose(*_: Any, lossy: bool, **__: Any) -> str:
        asked.append(lossy)
        return "sdpa"

    monkeypatch.setattr("tessella.generators.networks.attention.choose_kernel", choose)
    q, k, v = (x.repeat(1, 1, 1, 8) for x in qkv())  # heads that low_bit takes
    attention(q, k, v, backend="fastest")
    attention(q, k, v, backend="fastest", causal=True)
    attention(q[:, :1], k, v, backend="fastest", causal=True)
    assert asked == [True, False, False]


def test_xformers_gets_its_own_triangle(monkeypatch: pytest.MonkeyPatch) -> None:
    class Triangle:
        pass

    biases: list[Any] = []
    package, ops = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    ops.LowerTriangularMask = Triangle  # type: ignore[attr-defined]
    ops.memory_efficient_attention = lambda q, *_, attn_bias, p: biases.append(attn_bias) or q  # type: ignore[attr-defined]
    package.ops = ops  # type: ignore[attr-defined]
    monkeypatch.setattr("tessella.generators.networks.attention.check_backend", lambda _: None)
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    q, k, v = qkv()
    attention(q, k, v, causal=True, backend="xformers")
    attention(q[:, :1], k, v, causal=True, backend="xformers")
    assert isinstance(biases[0], Triangle) and biases[1] is None


@over("backend", ["auto", "plain", "fastest"])
@over("shape", [(2, 3), (6,), None])
def test_cached_steps_are_the_whole_sequence(backend: AttentionBackend, shape: Any) -> None:
    config = LlamaConfig(width=16, num_heads=2, dropout=0.0, attention=backend)
    torch.manual_seed(0)
    model = CausalTransformer(config, 3, shape).eval()
    x = torch.randn(4, 7, 16)
    with torch.no_grad():
        expected, caches = model(x), model.new_caches(7)
        found = torch.stack([model.step(x[:, n], caches, n) for n in range(7)], 1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        storage = [cache.stored for cache in caches]
        again = torch.stack([model.step(x[:, n], caches, n) for n in range(7)], 1)
    assert torch.equal(again, found)  # what a cache held is written over
    assert all(a is cache.stored for a, cache in zip(storage, caches, strict=True))  # in place


def test_places_are_told_apart_where_there_is_a_shape() -> None:
    """One block sums over what a position sees: the order of that matters only on a grid."""
    config = LlamaConfig(width=16, num_heads=2, dropout=0.0)
    x = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(1))
    swapped = x[:, [0, 2, 1, 3, 4, 5, 6]]
    for shape, same in (((2, 3), False), (None, True)):
        torch.manual_seed(0)
        model = CausalTransformer(config, 1, shape).eval()
        with torch.no_grad():
            one, other = model(x)[:, 3:], model(swapped)[:, 3:]
        assert torch.allclose(one, other, atol=1e-6) == same
