"""The contract of the fused binarized attention: the forward against the reference."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.kernels.backends import INTERPRETED
from tessella.kernels.binary_attention.op import binary_attention
from tessella.tests.kernels.contract import (
    CONTRACT,
    DEVICE,
    DTYPES,
    TOLERANCE,
    Source,
    relative_l2,
)

pytestmark = CONTRACT

METHODS = pytest.mark.parametrize("method", ["bibert", "bivit", "binary_qk"])

# batch, queries, keys, heads, width, masked keys, bias and row norm
CASES = {
    "one-token": (1, 1, 1, 1, 32, False, False),
    "63-keys": (2, 65, 63, 1, 40, True, True),
    "65-keys": (1, 127, 65, 2, 64, False, True),
    "two-blocks-of-queries": (2, 129, 31, 2, 72, True, False),
    "cross-d128": (1, 17, 130, 3, 128, True, True),
}


def inputs(case: str, method: str, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of a case: heads before tokens in memory, a channel stride of 2 in the keys."""
    batch, num_queries, num_keys, heads, width, masked, extra = CASES[case]
    draw = Source(dtype)
    given: dict[str, Any] = {
        "q": draw.normal(batch, heads, num_queries, width).transpose(1, 2),
        "k": draw.normal(batch, num_keys, heads, width, 2)[..., 0],
        "v": draw.normal(batch, heads, num_keys, width).transpose(1, 2),
        "method": method,
    }
    if masked:
        given["valid"] = ~draw.flags(batch, num_keys)
    if extra and method == "binary_qk":
        given["bias"] = draw.normal(heads, num_queries, num_keys)
    if extra and method == "bivit":
        given["row_norm"] = True
    return given


def margin(q: Tensor, k: Tensor, valid: Tensor | None, **others: Any) -> float:
    """How far the score nearest to the threshold of `bivit` is from it."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) / math.sqrt(q.shape[-1])
    if valid is not None:
        scores = scores.masked_fill(~valid[:, None, None], -math.inf)
    gaps = scores - scores.amax(-1, keepdim=True) - math.log(0.25)
    return float(gaps.abs().nan_to_num(math.inf).min())


@DTYPES
@METHODS
@pytest.mark.parametrize("case", CASES)
def test_forward(case: str, method: str, dtype: torch.dtype) -> None:
    if INTERPRETED and dtype != torch.float32 and case not in ("63-keys", "cross-d128"):
        pytest.skip("the types differ in few instructions, and the interpreter is slow")
    given = inputs(case, method, dtype)
    if method == "bivit":
        # Far from where the order of a sum decides, so that every backend keeps the same keys.
        assert margin(**{"valid": None} | given) > 5e-6
    expected = binary_attention(**given, backend="reference")
    found = binary_attention(**given, backend="triton")
    assert found.dtype == dtype and found.is_contiguous()
    assert torch.equal(found, binary_attention(**given, backend="triton")), "runs differ"
    if method == "bibert":
        assert torch.equal(found, expected)  # whole numbers
    error = relative_l2(found, expected)
    assert error <= TOLERANCE[dtype], error


@METHODS
def test_what_invalid_keys_hold_changes_nothing(method: str) -> None:
    given = inputs("63-keys", method, torch.float32)
    given["valid"][1] = False
    found = binary_attention(**given, backend="triton")
    hidden = ~given["valid"][:, :, None, None]
    for name in ("k", "v"):
        given[name] = given[name].masked_fill(hidden, float("nan"))
    assert torch.equal(binary_attention(**given, backend="triton"), found)
    assert not found[1].any() and found[0].any()


@METHODS
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_nan_is_where_the_reference_has_it(name: str, method: str) -> None:
    given = inputs("63-keys", method, torch.float32)
    given["valid"][0] = False
    given["valid"][1, 40] = True
    given[name] = given[name].clone()
    given[name][:, 40, 0, 3] = float("nan")
    expected = binary_attention(**given, backend="reference")
    found = binary_attention(**given, backend="triton")
    assert torch.equal(found.isnan(), expected.isnan())
    assert found.isnan().any() and not found[0].any()


@METHODS
def test_gradients_are_those_of_the_reference(method: str) -> None:
    given = inputs("63-keys", method, torch.float32)
    leaves = [n for n in ("q", "k", "v", "bias") if n in given]
    results = []
    for backend in ("reference", "triton"):
        now = given | {n: given[n].detach().requires_grad_() for n in leaves}
        out = binary_attention(**now, backend=backend)
        results.append(torch.autograd.grad(out.sum(), [now[n] for n in leaves]))
    for name, expected, found in zip(leaves, *results, strict=True):
        assert torch.equal(found, expected), name


@METHODS
def test_zeros_count_as_plus_one(method: str) -> None:
    """Both zeros, in tokens whose padded channels are none."""
    q = torch.zeros(1, 3, 1, 40, device=DEVICE)
    q[:, 1] = -0.0
    given: dict[str, Any] = {"q": q, "k": q, "v": q - 2 * (q < 0).float(), "method": method}
    found = binary_attention(**given, backend="triton")
    assert torch.equal(found, binary_attention(**given, backend="reference"))
    if method == "bibert":
        assert torch.equal(found, torch.full_like(found, 3))


def test_large_scores_neither_overflow_nor_vanish() -> None:
    """Scales at which every exponential but the largest is 0, from the first key on."""
    draw = Source(torch.float32)
    q, k, v = (draw.normal(1, 40, 1, 32) for _ in range(3))
    for size in (1e4, 1e-6):
        given: dict[str, Any] = {"q": q * size, "k": k * size, "v": v, "method": "binary_qk"}
        found = binary_attention(**given, backend="triton")
        expected = binary_attention(**given, backend="reference")
        assert relative_l2(found, expected) <= TOLERANCE[torch.float32]


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
@METHODS
def test_runs_in_a_cuda_graph(method: str) -> None:
    given = inputs("63-keys", method, torch.bfloat16)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        binary_attention(**given, backend="triton")
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = binary_attention(**given, backend="triton")
    given["q"].neg_()
    graph.replay()
    assert torch.equal(captured, binary_attention(**given, backend="triton"))


@pytest.mark.skipif(INTERPRETED, reason="too many programs for the interpreter")
@DTYPES
@METHODS
@pytest.mark.parametrize("width", [32, 64, 128])
def test_large_blocks(width: int, method: str, dtype: torch.dtype) -> None:
    """Enough queries for blocks of 128; whole numbers in q and k keep `bivit` off the threshold."""
    draw = Source(dtype)
    q, k, v = (draw.normal(8, 1024, 16, width) for _ in range(3))
    given: dict[str, Any] = {"q": q.round(), "k": k.round(), "v": v, "method": method}
    found = binary_attention(**given, backend="triton")
    expected = binary_attention(**given, backend="reference")
    assert relative_l2(found, expected) <= TOLERANCE[dtype]
