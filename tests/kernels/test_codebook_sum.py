"""The multi-codebook embedding sum without Triton: against plain torch, float64 and itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tessella.kernels.bit_embedding.op import bit_embedding
from tessella.kernels.codebook_sum.op import (
    _codebook_embedding_sum,
    _codebook_embedding_sum_backward,
    codebook_embedding_sum,
)
from tessella.kernels.codebook_sum.reference import codebook_embedding_sum_reference
from tessella.tests.cases import over

FLOAT32 = 2e-6
"""Sums of at most 12 terms of size 1 in two orders."""


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def draw(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def inputs(
    sizes: tuple[int, ...] = (6, 4, 9), *, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Every term at once, with a class row and a per-group mask."""
    columns = [draw(size, 3, 4, seed=g) for g, size in enumerate(sizes)]
    return {
        "codes": torch.stack(columns, -1),
        "tables": [rand(size, 5, seed=10 + g, dtype=dtype) for g, size in enumerate(sizes)],
        "position": rand(5, 5, seed=3, dtype=dtype),
        "class_table": rand(7, 5, seed=4, dtype=dtype),
        "labels": torch.tensor([6, 0, 6]),
        "mask": draw(2, 3, 4, len(sizes), seed=5).bool(),
    }


def test_maskbit_with_splits_as_published() -> None:
    """Tables of one more row, the hidden one; summed; class row last; positions."""
    given = inputs((9, 9))
    embeddings = [nn.Embedding.from_pretrained(table) for table in given["tables"]]
    codes = given["codes"].masked_fill(given["mask"], 8)
    expected = embeddings[0](codes[..., 0]) + embeddings[1](codes[..., 1])
    expected = torch.cat([expected, given["class_table"][given["labels"]][:, None]], 1)
    expected = expected + given["position"]
    in_band = given | {"codes": codes, "mask": None}
    for case in (given, in_band, given | {"tables": torch.stack(given["tables"])}):
        torch.testing.assert_close(codebook_embedding_sum(**case), expected, rtol=0, atol=FLOAT32)


def test_unitok_as_published() -> None:
    """Eight codebooks, the codebook axis before the tokens, nothing else."""
    codes, tables = draw(16, 3, 8, 4), rand(8, 16, 5)
    expected = sum(tables[c][codes[:, c]] for c in range(8))
    found = codebook_embedding_sum(codes.transpose(1, 2), tables)
    torch.testing.assert_close(found, expected, rtol=0, atol=FLOAT32)


def test_tables_of_bits_are_the_bit_embedding() -> None:
    codes, weight = draw(9, 3, 4, 2), rand(6, 5)
    every = torch.arange(8)
    tables = torch.stack(
        [
            torch.cat([bit_embedding(every[:, None], rows, bits_per_group=3)[:, 0], rand(1, 5) * 0])
            for rows in weight.split(3)
        ]
    )
    found = codebook_embedding_sum(codes, tables)
    expected = bit_embedding(codes, weight, bits_per_group=3)
    torch.testing.assert_close(found, expected, rtol=0, atol=FLOAT32)


def test_layout_of_codes_and_hidden_codes_change_nothing() -> None:
    given = inputs()
    expected = codebook_embedding_sum(**given)
    moved = given["codes"].permute(2, 0, 1).contiguous().permute(1, 2, 0)
    hidden = given["codes"].masked_fill(given["mask"], -5)
    for codes in (given["codes"].int(), moved, hidden):
        assert torch.equal(codebook_embedding_sum(**given | {"codes": codes}), expected)
    whole = given | {"mask": given["mask"][..., :1].expand(3, 4, 3)}
    found = codebook_embedding_sum(**given | {"mask": given["mask"][..., 0]})
    assert torch.equal(found, codebook_embedding_sum(**whole))


@over("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@over("place", ["last", "first"])
@over("stacked", [False, True], ids=["own-tables", "stacked"])
def test_gradients_are_those_of_the_specification(
    dtype: torch.dtype, place: str, stacked: bool
) -> None:
    sizes = (6, 6) if stacked else (6, 4, 9)
    given = inputs(sizes, dtype=dtype) | {"class_position": place}
    if stacked:
        given["tables"] = torch.stack(given["tables"])
    grad = rand(3, 5, 5, seed=7, dtype=dtype)

    def gradients(function: Callable[..., Tensor], to: torch.dtype) -> dict[str, Tensor]:
        tables = [t.detach().to(to).requires_grad_() for t in given["tables"]]
        terms = {n: given[n].detach().to(to).requires_grad_() for n in ("position", "class_table")}
        passed: Any = tables
        if function is codebook_embedding_sum_reference:
            terms |= {"sizes": list(sizes)}
        elif stacked:
            passed = torch.stack(tables)
        function(**given | terms | {"tables": passed}).backward(grad.to(to))
        leaves = {f"tables[{g}]": table for g, table in enumerate(tables)}
        leaves |= {name: terms[name] for name in ("position", "class_table")}
        return {name: leaf.grad for name, leaf in leaves.items()}

    found = gradients(codebook_embedding_sum, dtype)
    expected = gradients(codebook_embedding_sum_reference, torch.float64)
    for name, exact in expected.items():
        assert found[name].dtype == dtype, name
        torch.testing.assert_close(found[name], exact.to(dtype), msg=lambda m, n=name: f"{n}: {m}")


WRONG = {
    "codes: expected int32 or int64": {"codes": torch.zeros(3, 4, 3)},
    "codes: expected (B, N, G)": {"codes": torch.zeros(3, 0, 3, dtype=torch.int64)},
    "codes[..., 1]: expected 0 to 3, found 4": {"codes": torch.full((3, 4, 3), 4), "mask": None},
    "codes[..., 0]: expected 0 to 5, found -1": {"codes": torch.full((3, 4, 3), -1), "mask": None},
    "tables: expected one per codebook, 3, found 2": {"tables": [torch.zeros(6, 5)] * 2},
    "tables: expected (G, V, D)": {"tables": torch.zeros(6, 5)},
    "tables: expected (V, D) float": {"tables": [torch.zeros(6)] * 3},
    "tables[1]: expected (4, 5)": {
        "tables": [torch.zeros(6, 5), torch.zeros(4, 4), torch.zeros(9, 5)]
    },
    "position: expected (5, 5)": {"position": torch.zeros(4, 5)},
    "class_table: expected (7, 5)": {"class_table": torch.zeros(7, 4)},
    "labels: class_table and labels go together": {"class_table": None},
    "labels: expected (3,) int32": {"labels": torch.zeros(2, dtype=torch.int64)},
    "labels: expected 0 to 6, found -1": {"labels": torch.tensor([0, -1, 0])},
    "mask: expected (3, 4) or (3, 4, 3) bool": {"mask": torch.zeros(3, 5, dtype=torch.bool)},
    "class_position: expected one of": {"class_position": "middle"},
}


@over("message", WRONG)
def test_wrong_input_is_one_clear_error(message: str) -> None:
    with pytest.raises(ValueError, match="^" + _literal(message)):
        codebook_embedding_sum(**inputs() | WRONG[message])


def _literal(message: str) -> str:
    return "".join(f"\\{c}" if c in "()[]*.+?|" else c for c in message)


@pytest.mark.slow
@pytest.mark.parametrize("num_tables", [1, 3])
def test_ops_are_registered_right(num_tables: int) -> None:
    given = inputs((6, 4, 9) if num_tables == 3 else (6, 6, 6))
    sizes = [len(table) for table in given["tables"]]
    tables = given["tables"] if num_tables == 3 else [torch.cat(given["tables"])]
    tables = [table.requires_grad_() for table in tables]
    terms = (given["position"].requires_grad_(), given["class_table"].requires_grad_())
    rest = (given["labels"], given["mask"], "last", True, "reference")
    torch.library.opcheck(_codebook_embedding_sum, (given["codes"], tables, sizes, *terms, *rest))
    backward = (rand(3, 5, 5), given["codes"], given["labels"], given["mask"], sizes)
    torch.library.opcheck(
        _codebook_embedding_sum_backward, (*backward, "first", 7, True, "reference")
    )


@pytest.mark.slow
def test_compiles_into_one_graph() -> None:
    given = inputs()
    leaves = [table.requires_grad_() for table in given["tables"]]

    def loss(codes: Tensor) -> Tensor:
        return (codebook_embedding_sum(**given | {"codes": codes}) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    found = torch.autograd.grad(compiled(given["codes"]), leaves)
    for ours, exact in zip(found, torch.autograd.grad(loss(given["codes"]), leaves), strict=True):
        torch.testing.assert_close(ours, exact)


def test_example_in_the_docstring() -> None:
    tables = torch.tensor([[[1.0], [2.0]], [[10.0], [20.0]]])
    found = codebook_embedding_sum(torch.tensor([[[0, 1], [1, 0]]]), tables)
    assert found.tolist() == [[[21], [12]]]
