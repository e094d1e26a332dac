"""The bit-token embedding without Triton: against plain torch, tables, float64 and itself."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.kernels.bit_embedding.op import (
    _bit_embedding,
    _bit_embedding_backward,
    bit_embedding,
    check_values,
)
from tessella.kernels.bit_embedding.reference import bit_embedding_reference
from tessella.tests.cases import over

FLOAT32 = 2e-6
"""Sums of at most 62 terms of size 1 in two orders."""


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def draw(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def inputs(
    groups: int = 2, bits: int = 3, width: int = 5, *, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Every term at once, with a class row and a per-group mask."""
    return {
        "codes": draw(2**bits + 1, 3, 4, groups),
        "weight": rand(groups * bits, width, seed=1, dtype=dtype),
        "bias": rand(width, seed=2, dtype=dtype),
        "position": rand(5, width, seed=3, dtype=dtype),
        "class_table": rand(7, width, seed=4, dtype=dtype),
        "labels": torch.tensor([6, 0, 6]),
        "mask": draw(2, 3, 4, groups, seed=5).bool(),
        "bits_per_group": bits,
    }


def test_maskbit_as_published() -> None:
    """Groups of 5 bits, least significant first; hidden groups 0; class row last; positions."""
    given = inputs(groups=2, bits=5) | {"mask": None}
    codes, linear = given["codes"], torch.nn.Linear(10, 5)
    rows = []
    for g in range(2):
        bits = [(codes[..., g] // 2**i) % 2 for i in range(5)]
        signs = torch.stack(bits, -1).float() * 2 - 1
        signs[codes[..., g] == 32] = 0
        rows.append(signs)
    expected = linear(torch.cat(rows, -1))
    expected = torch.cat([expected, given["class_table"][given["labels"]][:, None]], 1)
    given |= {"weight": linear.weight.t(), "bias": linear.bias}
    found = bit_embedding(**given)
    torch.testing.assert_close(found, expected + given["position"], rtol=0, atol=FLOAT32)


def test_bigr_as_published() -> None:
    """Float bits {0, 1}; a hidden token is the mask token; condition first; no positions."""
    bits, hidden = draw(2, 3, 6, 20).float(), draw(2, 3, 6, seed=1).bool()
    linear, token = torch.nn.Linear(20, 5), rand(5, seed=2)
    table, labels = rand(4, 5, seed=3), torch.tensor([1, 1, 3])
    expected = torch.where(hidden[..., None], token, linear(bits))
    expected = torch.cat([table[labels][:, None], expected], 1)
    found = bit_embedding(
        bits.long(),
        linear.weight.t(),
        linear.bias,
        class_table=table,
        labels=labels,
        mask=hidden,
        mask_token=token,
        bits_per_group=1,
        values="01",
        class_position="first",
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=FLOAT32)


def test_binary_latent_diffusion_as_published() -> None:
    """Float bits {0, 1} as 2 b - 1 times an embedding table of one row per bit, no bias."""
    bits, table = draw(2, 3, 6, 32).float(), torch.nn.Embedding(32, 5)
    found = bit_embedding(bits.long(), table.weight, bits_per_group=1)
    expected = (bits * 2 - 1) @ table.weight
    torch.testing.assert_close(found, expected, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("values", ["pm1", "01"])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_every_code_equals_a_sum_over_bits_and_a_table(groups: int, values: str) -> None:
    bits = 3
    codes = torch.tensor(list(itertools.product(range(2**bits + 1), repeat=groups)))[None]
    weight, bias = rand(groups * bits, 5), rand(5, seed=1)
    found = bit_embedding(codes, weight, bias, bits_per_group=bits, values=values)
    low = -1 if values == "pm1" else 0
    tables = torch.zeros(groups, 2**bits + 1, 5)  # the last row is the hidden one
    for g, code, i in itertools.product(range(groups), range(2**bits), range(bits)):
        tables[g, code] += (1 if code >> i & 1 else low) * weight[g * bits + i]
    expected = bias + sum(tables[g][codes[0, :, g]] for g in range(groups))
    torch.testing.assert_close(found[0], expected, rtol=0, atol=FLOAT32)


def test_flipping_a_bit_adds_twice_its_row() -> None:
    weight = rand(12, 5)
    codes = draw(64, 1, 1, 2)
    for k in range(12):
        flipped = codes.clone()
        flipped[..., k // 6] ^= 1 << k % 6
        step = bit_embedding(flipped, weight, bits_per_group=6)
        step = step - bit_embedding(codes, weight, bits_per_group=6)
        sign = 1 if flipped[0, 0, k // 6] >> k % 6 & 1 else -1
        torch.testing.assert_close(step[0, 0], sign * 2 * weight[k], rtol=0, atol=FLOAT32)


def test_bits_01_are_half_of_pm1_and_half_the_rows() -> None:
    codes, weight = draw(16, 2, 3, 3), rand(12, 5)
    found = bit_embedding(codes, weight, bits_per_group=4, values="01")
    expected = (bit_embedding(codes, weight, bits_per_group=4) + weight.sum(0)) / 2
    torch.testing.assert_close(found, expected, rtol=0, atol=FLOAT32)


def test_all_hidden_is_bias_and_position_exactly() -> None:
    given = inputs()
    expected = (given["bias"] + given["position"][:4]).expand(3, 4, 5)
    for hide in ({"mask": torch.ones(3, 4, dtype=torch.bool)}, {"codes": torch.full((3, 4, 2), 8)}):
        assert torch.equal(bit_embedding(**given | hide)[:, :4], expected)
    weight = given["weight"].requires_grad_()
    bit_embedding(**given | {"mask": torch.ones(3, 4, dtype=torch.bool)}).sum().backward()
    assert not weight.grad.any()


def test_in_band_and_separate_masks_hide_the_same() -> None:
    given = inputs() | {"codes": draw(8, 3, 4, 2)}
    in_band = given["codes"].masked_fill(given["mask"], 8)
    expected = bit_embedding(**given)
    assert torch.equal(bit_embedding(**given | {"codes": in_band, "mask": None}), expected)
    assert torch.equal(bit_embedding(**given | {"codes": in_band}), expected)
    garbage = given["codes"].masked_fill(given["mask"], -(2**40))
    assert torch.equal(bit_embedding(**given | {"codes": garbage}), expected)


def test_linear_in_all_its_parameters() -> None:
    one, two = inputs(dtype=torch.float64), inputs(dtype=torch.float64)
    names = ("weight", "bias", "position", "class_table")
    two |= {name: rand(*one[name].shape, seed=9, dtype=torch.float64) for name in names}
    mixed = one | {name: 2 * one[name] - 3 * two[name] for name in names}
    expected = 2 * bit_embedding(**one) - 3 * bit_embedding(**two)
    torch.testing.assert_close(bit_embedding(**mixed), expected)


def test_layout_of_codes_changes_nothing() -> None:
    given = inputs()
    expected = bit_embedding(**given)
    wide = torch.full((4, 6, 5), 99)
    wide[1:, 1:5, 1:4:2] = given["codes"]
    for codes in (
        given["codes"].int(),
        given["codes"].permute(2, 0, 1).contiguous().permute(1, 2, 0),
        wide[1:, 1:5, 1:4:2],
    ):
        assert torch.equal(bit_embedding(**given | {"codes": codes}), expected)
    flat = {"codes": draw(8, 3, 4), "weight": given["weight"][:3], "mask": draw(2, 3, 4).bool()}
    found = bit_embedding(**given | flat)
    flat |= {"codes": flat["codes"][..., None], "mask": flat["mask"][..., None]}
    assert torch.equal(found, bit_embedding(**given | flat))


@over("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@over("replace", [False, True], ids=["zero-bits", "mask-token"])
@over("place", ["last", "first"])
def test_gradients_are_those_of_the_specification(
    dtype: torch.dtype, replace: bool, place: str
) -> None:
    given = inputs(dtype=dtype) | {"class_position": place}
    names = ["weight", "bias", "position", "class_table"]
    if replace:
        given |= {"mask": given["mask"][..., 0], "mask_token": rand(5, seed=8, dtype=dtype)}
        names.append("mask_token")
    grad = rand(3, 5, 5, seed=7, dtype=dtype)

    def gradients(function: Callable[..., Tensor], to: torch.dtype) -> tuple[Tensor, ...]:
        leaves = {name: given[name].detach().to(to).requires_grad_() for name in names}
        return torch.autograd.grad(function(**given | leaves), list(leaves.values()), grad.to(to))

    found = gradients(bit_embedding, dtype)
    expected = gradients(bit_embedding_reference, torch.float64)
    for name, ours, exact in zip(names, found, expected, strict=True):
        assert ours.dtype == dtype, name
        torch.testing.assert_close(ours, exact.to(dtype), msg=lambda m, n=name: f"{n}: {m}")
    bias, position = found[1], found[2]
    if not replace and dtype == torch.float64:
        tokens = position[:4] if place == "last" else position[1:]
        torch.testing.assert_close(bias, tokens.sum(0))


def test_only_what_needs_a_gradient_gets_one() -> None:
    given = inputs()
    given["bias"].requires_grad_()
    bit_embedding(**given).sum().backward()
    assert torch.equal(given["bias"].grad, torch.full((5,), 12.0))
    assert not bit_embedding(**inputs()).requires_grad


def test_autocast_gives_its_type_and_float32_gradients() -> None:
    given = inputs()
    weight = given["weight"].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = bit_embedding(**given)
    assert found.dtype == torch.bfloat16
    rounded = given | {"weight": weight.bfloat16().float()}
    expected = bit_embedding(**rounded).bfloat16()
    assert torch.equal(found, expected)
    found.float().sum().backward()
    assert weight.grad.dtype == torch.float32


WRONG = {
    "codes: expected int32 or int64": {"codes": torch.zeros(3, 4, 2)},
    "codes: expected (B, N, G)": {"codes": torch.zeros(0, 4, 2, dtype=torch.int64)},
    "codes: expected at most 62 bits per position, found 3 groups x 30 bits": {
        "codes": torch.zeros(3, 4, 3, dtype=torch.int64),
        "bits_per_group": 30,
    },
    "bits_per_group: expected 1 to 30": {"bits_per_group": 31},
    "codes: expected 0 to 2**3": {"codes": torch.full((3, 4, 2), 9), "mask": None},
    "codes: expected 0 to 2**3 ": {"codes": torch.full((3, 4, 2), -1), "mask": None},
    "weight: expected 2 groups x 3 bits = 6 rows": {"weight": torch.zeros(5, 5)},
    "weight: expected (K, D) float": {"weight": torch.zeros(6, 5, dtype=torch.int64)},
    "bias: expected (5,)": {"bias": torch.zeros(4)},
    "bias: expected (5,) torch.float32": {"bias": torch.zeros(5, dtype=torch.bfloat16)},
    "position: expected (5, 5)": {"position": torch.zeros(4, 5)},
    "class_table: expected (1, 5)": {"class_table": torch.zeros(0, 5)},
    "class_table: expected (7, 5)": {"class_table": torch.zeros(7, 4)},
    "labels: class_table and labels go together": {"labels": None},
    "labels: expected (3,) int32": {"labels": torch.zeros(2, dtype=torch.int64)},
    "labels: expected (3,) int32 or int64, found (3,) torch.float32": {"labels": torch.zeros(3)},
    "labels: expected 0 to 6, found 7": {"labels": torch.tensor([0, 7, 0])},
    "mask: expected (3, 4) or (3, 4, 2) bool": {"mask": torch.zeros(3, 4, 3, dtype=torch.bool)},
    "mask: expected (3, 4) or (3, 4, 2) bool, found (3, 4, 1) torch.uint8": {
        "mask": torch.zeros(3, 4, dtype=torch.uint8)
    },
    "mask: expected (3, 4) with a mask_token": {"mask_token": torch.zeros(5)},
    "mask_token: expected (5,)": {"mask_token": torch.zeros(6)},
    "values: expected one of ('pm1', '01')": {"values": "bits"},
    "class_position: expected one of ('last', 'first')": {"class_position": "middle"},
    "backend: expected one of": {"backend": "cuda"},
}


@over("message", WRONG)
def test_wrong_input_is_one_clear_error(message: str) -> None:
    with pytest.raises(ValueError, match="(?s)^" + _literal(message)):
        bit_embedding(**inputs() | WRONG[message])


def _literal(message: str) -> str:
    return "".join(f"\\{c}" if c in "()[]*.+?|" else c for c in message)


def test_values_are_checked_on_request_only() -> None:
    given = inputs() | {"codes": torch.full((3, 4, 2), 9), "mask": None}
    assert bit_embedding(**given, validate=False).shape == (3, 5, 5)
    check_values(draw(9, 3, 4, 2), None, torch.tensor([6]), 7, 3)


def op_arguments(*, replace: bool, place: str) -> tuple[Any, ...]:
    given = inputs()
    mask = given["mask"][..., :1] if replace else given["mask"]
    token = rand(5, seed=8).requires_grad_() if replace else None
    leaves = [given[n].requires_grad_() for n in ("weight", "bias", "position", "class_table")]
    settings = (3, "pm1", place, torch.float32, True, "reference")
    return (given["codes"], *leaves, given["labels"], mask, token, *settings)


@pytest.mark.slow
@pytest.mark.parametrize("replace", [False, True], ids=["zero-bits", "mask-token"])
def test_ops_are_registered_right(replace: bool) -> None:
    arguments = op_arguments(replace=replace, place="last")
    torch.library.opcheck(_bit_embedding, arguments)
    codes, labels, mask = arguments[0], arguments[5], arguments[6]
    backward = (rand(3, 5, 5), codes, labels, mask, 3, "01", "first", 7, replace, True)
    torch.library.opcheck(_bit_embedding_backward, (*backward, "reference"))
    torch.library.opcheck(
        _bit_embedding_backward,
        (rand(3, 4, 5), codes, None, None, 3, "01", "last", 0, replace, False, "reference"),
    )


@pytest.mark.slow
def test_compiles_into_one_graph() -> None:
    given = inputs()
    leaves = {n: given[n].requires_grad_() for n in ("weight", "bias", "position", "class_table")}

    def loss(codes: Tensor) -> Tensor:
        return (bit_embedding(**given | {"codes": codes}) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    found = torch.autograd.grad(compiled(given["codes"]), list(leaves.values()))
    expected = torch.autograd.grad(loss(given["codes"]), list(leaves.values()))
    for name, ours, exact in zip(leaves, found, expected, strict=True):
        torch.testing.assert_close(ours, exact, msg=lambda m, n=name: f"{n}: {m}")


def test_example_in_the_docstring() -> None:
    codes = torch.tensor([[[3, 0], [4, 1]]])
    found = bit_embedding(codes, torch.eye(4), bits_per_group=2)
    assert found.tolist() == [[[1, 1, -1, -1], [0, 0, 1, -1]]]
