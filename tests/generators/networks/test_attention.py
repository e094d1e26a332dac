"""Attention against the formula, with padding against the shorter sequence, and its backends."""

import importlib.machinery
import importlib.util
import math
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tessella.generators.networks.attention import AttentionBackend, attention, check_backend
from tessella.generators.networks.bert import Transformer, TransformerConfig
from tessella.tests.cases import over

ATOL = 1e-6
"""Softmax sums of unit numbers in float32, added in another order."""


def qkv(batch: int = 2, num_tokens: int = 7, heads: int = 3, dim: int = 4) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(batch, num_tokens, heads, dim, generator=rng) for _ in range(3)]


def brute_force(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every query and head on its own, in float64."""
    out = torch.zeros_like(v)
    for b in range(q.shape[0]):
        for n in range(q.shape[1]):
            for h in range(q.shape[2]):
                scores = (k[b, :, h].double() @ q[b, n, h].double()) / math.sqrt(q.shape[3])
                out[b, n, h] = (scores.softmax(0) @ v[b, :, h].double()).float()
    return out


BACKENDS = ("auto", "sdpa", "plain")


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_softmax_of_scaled_products(backend: AttentionBackend) -> None:
    q, k, v = qkv()
    found = attention(q, k, v, backend=backend)
    torch.testing.assert_close(found, brute_force(q, k, v), rtol=0, atol=ATOL)
    assert found.shape == q.shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_is_as_if_it_were_not_there(backend: AttentionBackend) -> None:
    q, k, v = qkv()
    lengths = [4, 7]
    valid = torch.arange(7) < torch.tensor(lengths)[:, None]
    padded = attention(q, k, v, valid=valid, backend=backend)
    for b, n in enumerate(lengths):
        alone = attention(*(x[b : b + 1, :n] for x in (q, k, v)), backend=backend)
        torch.testing.assert_close(padded[b : b + 1, :n], alone, rtol=0, atol=ATOL)
    k[0, 4:] = 1e4  # and its content is never looked at
    v[0, 4:] = -1e4
    again = attention(q, k, v, valid=valid, backend=backend)
    assert torch.equal(again[0, :4], padded[0, :4]) and torch.equal(again[1], padded[1])


@pytest.mark.parametrize("backend", ["sdpa", "plain"])
def test_backends_have_the_same_gradients(backend: AttentionBackend) -> None:
    """Against the formula in float64, written out with einsum; `plain` takes its softmax in
    float32, so gradients of size 10 agree to 1e-5."""
    valid = torch.arange(7) < torch.tensor([4, 7])[:, None]
    found, expected = ([x.double().requires_grad_() for x in qkv()] for _ in range(2))
    attention(*found, valid=valid, backend=backend).square().sum().backward()
    q, k, v = expected
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / 2
    scores = scores.masked_fill(~valid[:, None, None, :], -torch.inf)
    torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).square().sum().backward()
    for name, ours, theirs in zip("qkv", found, expected, strict=True):
        assert theirs.grad.abs().max() > 0.1
        torch.testing.assert_close(
            ours.grad, theirs.grad, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_padding_in_the_middle_works_too() -> None:
    q, k, v = qkv(batch=1)
    kept = torch.tensor([0, 2, 3, 6])
    valid = torch.zeros(1, 7, dtype=torch.bool)
    valid[0, kept] = True
    padded = attention(q, k, v, valid=valid)[:, kept]
    alone = attention(q[:, kept], k[:, kept], v[:, kept])
    torch.testing.assert_close(padded, alone, rtol=0, atol=ATOL)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_drops_weights_and_keeps_the_mean(backend: AttentionBackend) -> None:
    """With equal scores and values 1 the result is 2 x the share kept: n = 2 * 3 * 16 * 16 draws
    at rate 1/2, the mean within 4 sigma, sigma = 1 / sqrt(n)."""
    q, k, v = qkv(num_tokens=16)
    q, v = torch.zeros_like(q), torch.ones_like(v)
    torch.manual_seed(0)
    dropped = attention(q, k, v, dropout=0.5, backend=backend)
    assert dropped.std() > 0.1
    draws = 2 * 3 * 16 * 16
    assert abs(dropped.mean().item() - 1) < 4 / math.sqrt(draws)
    full = attention(q, k, v, backend=backend)
    torch.testing.assert_close(full, v, rtol=0, atol=ATOL)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_without_a_valid_key_is_zero(backend: AttentionBackend) -> None:
    q, k, v = (x.requires_grad_() for x in qkv())
    valid = torch.tensor([[False] * 7, [True] * 7])
    found = attention(q, k, v, valid=valid, backend=backend)
    assert not found[0].any() and found[1].all()
    found.sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


@over("backend", BACKENDS)
@over(
    ("dtype", "scale", "tolerance"),
    [(torch.bfloat16, 6, 4e-3), (torch.float16, 6, 6e-4), (torch.float16, 120, 6e-4)],
)
def test_scores_of_half_precision_keep_their_accuracy(
    backend: AttentionBackend, dtype: torch.dtype, scale: float, tolerance: float
) -> None:
    """Rounded to 16 bits themselves, scores of a hundred would be off by half, or infinite."""
    q, k, v = (x.to(dtype) for x in qkv(dim=64))
    q, k = q * scale, k * scale
    exact = brute_force(q.double(), k.double(), v.double())
    found = attention(q, k, v, backend=backend).double()
    assert (found - exact).norm() <= tolerance * exact.norm()


def test_auto_is_plain_for_training_on_short_sequences_in_bf16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fused, calls = F.scaled_dot_product_attention, []

    def counted(*args: Any) -> Tensor:
        calls.append(args[0].shape[2])
        return fused(*args)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    for num_tokens in (7, 128, 129):
        half = [x.bfloat16().requires_grad_() for x in qkv(num_tokens=num_tokens)]
        attention(*half)
    assert calls == [129]
    attention(*qkv(num_tokens=8))
    with torch.no_grad():
        attention(*(x.bfloat16() for x in qkv(num_tokens=9)))
    assert calls == [129, 8, 9]
    attention(*qkv(), backend="sdpa")
    attention(*qkv(num_tokens=129), backend="plain")
    assert calls == [129, 8, 9, 7]


def test_xformers_that_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "xformers" else find_spec(name, *rest),
    )
    with pytest.raises(RuntimeError, match=r"xformers is not installed; pip install 'tessella\["):
        attention(*qkv(), backend="xformers")
    with pytest.raises(RuntimeError, match="xformers is not installed"):
        check_backend("xformers")
    with pytest.raises(RuntimeError, match="xformers is not installed"):
        Transformer(TransformerConfig(width=8, num_layers=1, num_heads=1, attention="xformers"))
    for backend in BACKENDS:
        check_backend(backend)


class FakeXformers:
    """Stands in for `xformers.ops.memory_efficient_attention`: checks shapes, computes by torch."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, attn_bias: Tensor | None = None, p: float = 0.0
    ) -> Tensor:
        self.calls.append({"shape": tuple(q.shape), "bias": attn_bias, "p": p})
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(q.shape[-1])
        if attn_bias is not None:
            assert attn_bias.shape == scores.shape and attn_bias.dtype == q.dtype
            scores = scores + attn_bias
        return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v)


@pytest.fixture
def xformers(monkeypatch: pytest.MonkeyPatch) -> FakeXformers:
    fake = FakeXformers()
    package, ops = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    package.__spec__ = importlib.machinery.ModuleSpec("xformers", None)
    ops.memory_efficient_attention = fake
    package.ops = ops
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    return fake


def test_xformers_is_called_with_batch_positions_heads_dim(xformers: FakeXformers) -> None:
    q, k, v = qkv(batch=2, num_tokens=7, heads=3, dim=4)
    found = attention(q, k, v, backend="xformers", dropout=0.25)
    assert xformers.calls == [{"shape": (2, 7, 3, 4), "bias": None, "p": 0.25}]
    torch.testing.assert_close(found, attention(q, k, v), rtol=0, atol=ATOL)


def test_xformers_gets_padding_as_a_bias(xformers: FakeXformers) -> None:
    q, k, v = qkv()
    valid = torch.arange(7) < torch.tensor([4, 7])[:, None]
    found = attention(q, k, v, valid=valid, backend="xformers")
    torch.testing.assert_close(found, attention(q, k, v, valid=valid), rtol=0, atol=ATOL)
    assert xformers.calls[0]["bias"] is not None


def test_auto_does_not_use_xformers_by_itself(xformers: FakeXformers) -> None:
    attention(*qkv())
    assert not xformers.calls
