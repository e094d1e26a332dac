"""The contract of the fused embeddings: forward and every gradient against the reference."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.kernels.backends import INTERPRETED
from tessella.kernels.bit_embedding.op import bit_embedding
from tessella.kernels.codebook_sum.op import codebook_embedding_sum
from tessella.tests.kernels.contract import (
    CONTRACT,
    DEVICE,
    DTYPES,
    TOLERANCE,
    Source,
    relative_l2,
)

pytestmark = CONTRACT


def compare(
    function: Callable[..., Tensor], given: dict[str, Any], leaves: dict[str, Tensor], dtype: Any
) -> None:
    """Forward and the gradient of every leaf, by name; twice the same bits."""
    results = {}
    for backend in ("reference", "triton", "triton"):
        inputs = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
        passed: dict[str, Any] = {n: v for n, v in inputs.items() if "[" not in n}
        if any("[" in name for name in inputs):
            passed["tables"] = [v for n, v in inputs.items() if "[" in n]
        out = function(**given | passed, backend=backend)
        rng = torch.Generator().manual_seed(1)
        grad = torch.randn(out.shape, generator=rng).to(dtype).to(DEVICE)
        gradients = torch.autograd.grad(out, list(inputs.values()), grad)
        found = {"output": out.detach(), **dict(zip(inputs, gradients, strict=True))}
        if backend in results:
            for name, value in found.items():
                assert torch.equal(value, results[backend][name]), f"{name}: runs differ"
        results[backend] = found
    for name, expected in results["reference"].items():
        ours = results["triton"][name]
        assert ours.dtype == expected.dtype == dtype and ours.shape == expected.shape, name
        error = relative_l2(ours, expected)
        assert error <= TOLERANCE[dtype], f"{name}: {error}"


# batch, tokens, groups, bits, width, class row, values, mask: none, group, token, mask token
BIT_CASES = {
    "one-row": (1, 1, 1, 1, 16, None, "pm1", None),
    "31-rows": (1, 31, 1, 10, 40, None, "01", "group"),
    "32-rows": (1, 31, 2, 6, 33, "last", "pm1", "group"),
    "33-rows": (1, 32, 2, 8, 128, "first", "pm1", "position"),
    "K17-mask-token": (2, 9, 1, 17, 130, "first", "01", "token"),
    "K18": (5, 7, 2, 9, 200, "last", "pm1", "group"),
    "K31-bits": (2, 17, 31, 1, 24, None, "01", "token"),
    "K60": (3, 6, 2, 30, 20, "last", "pm1", "group"),
    "G3": (2, 20, 3, 4, 1, "last", "01", "position"),
}


@DTYPES
@pytest.mark.parametrize("case", BIT_CASES)
def test_bit_embedding(case: str, dtype: torch.dtype) -> None:
    if INTERPRETED and dtype != torch.float32 and case not in ("K17-mask-token", "K18"):
        pytest.skip("the types differ in few instructions, and the interpreter is slow")
    batch, tokens, groups, bits, width, place, values, hide = BIT_CASES[case]
    draw = Source(dtype)
    int_type = torch.int32 if groups % 2 else torch.int64
    codes = draw.integers(2**bits + 1, batch, groups, tokens, dtype=int_type).transpose(1, 2)
    given: dict[str, Any] = {"codes": codes, "bits_per_group": bits, "values": values}
    leaves = {
        "weight": draw.normal(width, groups * bits).t(),
        "bias": draw.normal(width),
        "position": draw.normal(tokens + (place is not None), width),
    }
    if place:
        given |= {"labels": draw.integers(7, batch), "class_position": place}
        leaves["class_table"] = draw.normal(7, width)
    if hide:
        shape = (batch, tokens, groups) if hide == "group" else (batch, tokens)
        given["mask"] = draw.flags(*shape)
    if hide == "token":
        leaves["mask_token"] = draw.normal(width)
    compare(bit_embedding, given, leaves, dtype)


def test_bit_embedding_without_any_term() -> None:
    draw = Source(torch.float32)
    given = {"codes": draw.integers(9, 2, 5, 2), "bits_per_group": 3}
    compare(bit_embedding, given, {"weight": draw.normal(6, 32)}, torch.float32)


def test_bit_embedding_with_everything_hidden_is_exact() -> None:
    draw = Source(torch.float32)
    codes = torch.full((2, 5, 2), 8, device=DEVICE)
    weight, bias, position = draw.normal(6, 32), draw.normal(32), draw.normal(5, 32)
    weight.requires_grad_()
    out = bit_embedding(codes, weight, bias, position, bits_per_group=3, backend="triton")
    assert torch.equal(out, (bias + position).expand(2, 5, 32))
    out.sum().backward()
    assert weight.grad is not None and not weight.grad.any()


def test_bit_embedding_under_autocast_reads_float32_weights() -> None:
    draw = Source(torch.float32)
    codes, weight, bias = draw.integers(9, 2, 5, 2), draw.normal(6, 32), draw.normal(32)
    outs = {}
    with torch.autocast(DEVICE, dtype=torch.float16):
        for backend in ("reference", "triton"):
            outs[backend] = bit_embedding(codes, weight, bias, bits_per_group=3, backend=backend)
    assert outs["triton"].dtype == torch.float16
    assert relative_l2(outs["triton"], outs["reference"]) <= 1e-3


def test_unknown_labels_read_and_write_nothing() -> None:
    draw = Source(torch.float32)
    codes, weight, table = draw.integers(8, 2, 3, 2), draw.normal(6, 32), draw.normal(4, 32)
    labels = torch.tensor([2**20, -1], device=DEVICE)
    terms = {"class_table": table, "labels": labels, "validate": False}
    out = bit_embedding(codes, weight, bits_per_group=3, backend="triton", **terms)
    assert not out[:, -1].any()


# batch, tokens, sizes, width, class row, mask
CODEBOOK_CASES = {
    "one-row": (1, 1, (2,), 16, None, None),
    "G8": (2, 9, (5,) * 8, 40, "last", "group"),
    "sizes": (3, 11, (5, 9, 2), 130, "first", "position"),
    "G1": (2, 33, (17,), 33, "last", "group"),
    "rows-of-no-code": (1, 2, (20, 3), 16, None, "group"),
}


@DTYPES
@pytest.mark.parametrize("stacked", [False, True], ids=["own-tables", "stacked"])
@pytest.mark.parametrize("case", CODEBOOK_CASES)
def test_codebook_sum(case: str, dtype: torch.dtype, stacked: bool) -> None:
    batch, tokens, sizes, width, place, hide = CODEBOOK_CASES[case]
    if stacked and len(set(sizes)) > 1:
        pytest.skip("tables of several sizes cannot be stacked")
    if INTERPRETED and dtype != torch.float32 and case != "sizes":
        pytest.skip("the types differ in few instructions, and the interpreter is slow")
    if INTERPRETED and stacked and case != "G8":
        pytest.skip("the interpreter is slow")
    draw = Source(dtype)
    columns = [draw.integers(size, batch, tokens) for size in sizes]
    given: dict[str, Any] = {"codes": torch.stack(columns, 1).transpose(1, 2)}
    leaves = {f"tables[{g}]": draw.normal(size, width) for g, size in enumerate(sizes)}
    if stacked:
        leaves = {"tables": draw.normal(len(sizes), sizes[0], width)}
    leaves["position"] = draw.normal(tokens + (place is not None), width)
    if place:
        given |= {"labels": draw.integers(7, batch), "class_position": place}
        leaves["class_table"] = draw.normal(7, width)
    if hide:
        shape = (batch, tokens, len(sizes)) if hide == "group" else (batch, tokens)
        given["mask"] = draw.flags(*shape)
    compare(codebook_embedding_sum, given, leaves, dtype)


def test_codebook_sum_of_unknown_codes_is_zero() -> None:
    draw = Source(torch.float32)
    codes = torch.tensor([[[0, 2**20], [-1, 1]]], device=DEVICE)
    tables = draw.normal(2, 3, 16).requires_grad_()
    out = codebook_embedding_sum(codes, tables, validate=False, backend="triton")
    assert torch.equal(out, torch.stack([tables[0, 0], tables[1, 1]])[None])
    out.sum().backward()
    expected = torch.zeros(2, 3, 16, device=DEVICE)
    expected[0, 0] = expected[1, 1] = 1
    assert torch.equal(tables.grad, expected)


def small_inputs() -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of both operations, with every term, and parameters that need gradients."""
    draw = Source(torch.float32)
    shared = {
        "position": draw.normal(6, 16).requires_grad_(),
        "class_table": draw.normal(4, 16).requires_grad_(),
        "labels": draw.integers(4, 2),
        "mask": draw.flags(2, 5, 2),
        "validate": False,
        "backend": "triton",
    }
    codes = draw.integers(8, 2, 5, 2)
    bits = {"codes": codes, "weight": draw.normal(6, 16).requires_grad_(), "bits_per_group": 3}
    tables = {"codes": codes, "tables": draw.normal(2, 8, 16).requires_grad_()}
    return bits | shared, tables | shared


def test_compiles_into_one_graph() -> None:
    given, others = small_inputs()

    def both(bits: Tensor, tables: Tensor) -> Tensor:
        return bit_embedding(**given | {"weight": bits}) + codebook_embedding_sum(
            **others | {"tables": tables}
        )

    leaves = [given["weight"], others["tables"], given["position"], others["class_table"]]
    results = []
    for function in (both, torch.compile(both, fullgraph=True, backend="aot_eager")):
        out = function(*leaves[:2])
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
def test_runs_in_a_cuda_graph() -> None:
    given, others = small_inputs()

    def step() -> list[Tensor]:
        leaves = [given["weight"], others["tables"], given["position"], others["class_table"]]
        out = bit_embedding(**given) + codebook_embedding_sum(**others)
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    given["codes"].copy_(7 - given["codes"])  # the same tensor in both
    graph.replay()
    for replayed, eager in zip(captured, step(), strict=True):
        assert torch.equal(replayed, eager)


@pytest.mark.skipif(INTERPRETED, reason="too many programs for the interpreter")
@DTYPES
def test_maskbit_sizes(dtype: torch.dtype) -> None:
    """Enough rows for the large blocks and for no splits of the batch."""
    draw = Source(dtype)
    given = {
        "codes": draw.integers(513, 64, 256, 2),
        "labels": draw.integers(1001, 64),
        "bits_per_group": 9,
    }
    leaves = {
        "weight": draw.normal(18, 1024),
        "bias": draw.normal(1024),
        "position": draw.normal(257, 1024),
        "class_table": draw.normal(1001, 1024),
    }
    compare(bit_embedding, given, leaves, dtype)
    del given["bits_per_group"]
    given |= {"codes": draw.integers(4096, 16, 256, 8), "mask": draw.flags(16, 256, 8)}
    given["labels"] = given["labels"][:16]
    leaves = {"tables": draw.normal(8, 4097, 1024), "position": leaves["position"]}
    leaves["class_table"] = draw.normal(1001, 1024)
    compare(codebook_embedding_sum, given, leaves, dtype)
