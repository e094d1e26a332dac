"""The packed linear layer without Triton: against decoded weights, integers and itself."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tessella.kernels.packed_linear import reference
from tessella.kernels.packed_linear.encode import empty_weight, from_float, pack
from tessella.kernels.packed_linear.formats import NUM_CODES, PackedWeight, pack_rows
from tessella.kernels.packed_linear.op import (
    _packed_linear,
    _unpack_weight,
    packed_linear,
    unpack_weight,
)
from tessella.kernels.packed_linear.prepack import (
    DEPTH,
    affine_levels,
    kernel_refusal,
    prepack,
)
from tessella.kernels.packed_linear.reference import quantize_tokens
from tessella.tests.cases import over
from tessella.tests.probes import LargestTensor

KINDS = {
    f"{tag}{'' if group is None else ' g32'}{' zero' if asymmetric else ''}": (
        tag,
        group,
        asymmetric,
    )
    for tag in NUM_CODES
    for group in (None, 32)
    for asymmetric in ((False, True) if tag[0] == "u" else (False,))
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)

BLOCKS = 3e-7
"""Relative L2 error of float32 sums by row blocks beside one product: 2.0e-7 found at blocks of 7
rows, 1.3e-8 at blocks of 341 rows of 3072."""
INTEGERS = 1e-7
"""The same of exact integer sums times float32 scales, beside float64: 2e-8 to 3e-8 found."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight_of(kind: str, rows: int = 9, columns: int = 96) -> PackedWeight:
    tag, group, asymmetric = KINDS[kind]
    return from_float(normal(rows, columns), tag, group, asymmetric=asymmetric)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@EVERY_KIND
@over("dtype", [torch.float32, torch.float64])
def test_equals_a_linear_layer_of_the_decoded_weight(kind: str, dtype: torch.dtype) -> None:
    weight, x, bias = weight_of(kind), normal(2, 5, 96, seed=1).to(dtype), normal(9).to(dtype)
    for term in (None, bias):
        expected = F.linear(x, weight.dequantize().to(dtype), term)
        assert torch.equal(packed_linear(x, weight, term), expected)


@EVERY_KIND
@over("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_are_rounded_once(kind: str, dtype: torch.dtype) -> None:
    weight, x, bias = weight_of(kind), normal(5, 96, seed=1).to(dtype), normal(9)
    expected = F.linear(x.float(), weight.dequantize(), bias).to(dtype)
    assert torch.equal(packed_linear(x, weight, bias), expected)


@EVERY_KIND
@over("static", [False, True])
def test_int8_activations_have_exact_sums(kind: str, static: bool) -> None:
    weight, x, bias = weight_of(kind), normal(5, 96, seed=1), normal(9)
    step = torch.tensor([0.02]) if static else None
    found = packed_linear(x, weight, bias, activations="int8", act_scale=step)
    codes, scale = quantize_tokens(x, step)
    product = codes.double() @ weight.dequantize().double().t()
    expected = product * scale.double()[:, None] + bias.double()
    assert relative(found, expected) <= INTEGERS


@EVERY_KIND
def test_integers_in_integers_out(kind: str) -> None:
    """With scales of 1 every sum is an integer, and none is rounded."""
    weight = weight_of(kind)
    weight = dataclasses.replace(weight, scale=torch.ones_like(weight.scale))
    x = torch.randint(-128, 128, (7, 96), generator=torch.Generator().manual_seed(2))
    expected = x @ weight.dequantize().long().t()
    one = torch.ones(1)
    found = packed_linear(x.float(), weight, activations="int8", act_scale=one)
    assert torch.equal(found.long(), expected) and torch.equal(found, found.round())


def test_levels_of_fractions_have_exact_sums() -> None:
    codes = torch.randint(4, (9, 64), generator=torch.Generator().manual_seed(0))
    weight = pack("u2", codes, torch.ones(9), level_table=(-0.75, -0.25, 0.25, 0.75))
    x = torch.arange(128.0).view(2, 64) - 64
    found = packed_linear(x, weight, activations="int8", act_scale=torch.ones(1))
    assert torch.equal(found, F.linear(x, weight.dequantize()))
    weight = dataclasses.replace(weight, level_table=(-0.75, -0.3, 0.3, 0.75))
    assert torch.equal(packed_linear(x, weight), F.linear(x, weight.dequantize()))
    with pytest.raises(ValueError, match="level_table: int8 activations need integers"):
        packed_linear(x, weight, activations="int8")


def test_zero_points_are_corrections_by_row_sums() -> None:
    weight, x = weight_of("u4 zero"), normal(5, 96, seed=1)
    assert weight.zero is not None
    codes, scale = quantize_tokens(x, None)
    raw = codes.long() @ weight.codes().long().t()
    total = raw - codes.long().sum(1, keepdim=True) * weight.zero.long().t()
    expected = total.float() * weight.scale.float() * scale[:, None]
    found = packed_linear(x, weight, activations="int8")
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_tokens_as_integers() -> None:
    x = torch.tensor([[0.5, 1.5, -2.5, 127.0], [0, 0, 0, 0], [1e-3, -1e-3, 0, 0]])
    codes, scale = quantize_tokens(x, None)
    assert codes[0].tolist() == [0, 2, -2, 127]  # halves to even
    assert not codes[1].any() and codes[2].tolist() == [127, -127, 0, 0]
    assert torch.equal(scale[:2], torch.ones(2))
    x = normal(50, 64) * 10 ** normal(50, 1, seed=1)
    codes, scale = quantize_tokens(x, None)
    assert torch.equal(codes.abs().amax(1), torch.full((50,), 127, dtype=torch.int8))
    error = (x - codes * scale[:, None]).abs()
    assert (error <= scale[:, None] * 0.5001).all()
    codes, scale = quantize_tokens(torch.tensor([[1000.0, -1000.0, 0.3]]), torch.tensor([0.1]))
    assert codes.tolist() == [[127, -128, 3]] and scale.tolist() == [pytest.approx(0.1)]


@pytest.mark.parametrize("static", [False, True])
def test_a_token_with_nan_is_a_row_of_nan(static: bool) -> None:
    weight, x = weight_of("tern2"), normal(4, 96, seed=1)
    expected = packed_linear(x, weight, activations="int8")
    step = torch.tensor([0.02]) if static else None
    x[1, 7] = torch.nan
    x[2, 5] = -torch.inf
    found = packed_linear(x, weight, normal(9), activations="int8", act_scale=step)
    assert found[1].isnan().all() and found[[0, 3]].isfinite().all()
    assert found[2].isfinite().all() if static else found[2].isnan().all()
    assert torch.equal(packed_linear(x, weight, activations="int8")[[0, 3]], expected[[0, 3]])


@pytest.mark.parametrize("kind", ["bin1", "tern3", "u4 zero"])
def test_prepacking_takes_little_memory(kind: str) -> None:
    weight = weight_of(kind, 64, 1024)
    with LargestTensor() as largest:
        prepack(weight)
    assert 64 * 1024 <= largest.num_bytes <= 64 * 1024 + 256  # a byte a code


def test_on_meta_there_are_shapes() -> None:
    with torch.device("meta"):
        weight = empty_weight("u4", (9, 96), 32)
        x = torch.empty(2, 5, 96)
    assert packed_linear(x, weight, activations="int8").shape == (2, 5, 9)
    assert unpack_weight(weight, torch.float16).is_meta


@pytest.mark.parametrize("activations", ["float", "int8"])
def test_flipping_a_bit_changes_one_channel(activations: Any) -> None:
    x = normal(4, 40, seed=1)
    for tag, plane in (("bin1", 0), ("bin2", 0), ("bin2", 1)):
        weight = from_float(normal(6, 40), tag)
        before = packed_linear(x, weight, activations=activations)
        for n, k in ((0, 0), (3, 17), (5, 39)):
            qdata = weight.qdata.clone()
            (qdata[plane] if tag == "bin2" else qdata)[n, k // 8] ^= 1 << k % 8
            after = packed_linear(
                x, dataclasses.replace(weight, qdata=qdata), activations=activations
            )
            scale = (weight.scale[plane] if tag == "bin2" else weight.scale)[n].float()
            value = x[:, k]
            if activations == "int8":
                codes, step = quantize_tokens(x, None)
                value = codes[:, k] * step
            torch.testing.assert_close(
                (after - before).abs()[:, n], 2 * scale * value.abs(), rtol=0, atol=4e-6
            )
            others = torch.arange(6) != n
            assert torch.equal(after[:, others], before[:, others])


@pytest.mark.parametrize("activations", ["float", "int8"])
@pytest.mark.parametrize("kind", ["bin1", "bin2 g32", "tern3", "u4 zero"])
def test_workspace_does_not_grow_with_the_rows(
    kind: str, activations: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "BLOCK_ELEMENTS", 2**12)
    bound = 8 * 2**12 + 64
    weight, x = weight_of(kind, 1000, 96), normal(2, 96, seed=1)
    with LargestTensor() as largest:
        found = reference.packed_linear_reference(
            x,
            weight.qdata,
            weight.scale,
            weight.zero,
            tag=weight.tag,
            level_table=weight.level_table,
            activations=activations,
        )
    allowed = max(bound, weight.qdata.numel())  # the packed weight is passed around whole
    assert largest.num_bytes <= allowed < 1000 * 96 * 4, largest.num_bytes
    whole = packed_linear(x, weight, activations=activations)
    assert relative(found, F.linear(x, weight.dequantize())) <= (
        BLOCKS if activations == "float" else 0.02
    )
    assert torch.equal(whole, packed_linear(x, weight, activations=activations))


@pytest.mark.parametrize("kind", ["tern2", "u4 g32", "bin2 g32", "u2 zero", "u4 g32 zero"])
def test_row_blocks_together_are_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x, bias = weight_of(kind, 50), normal(70, 96, seed=1), normal(50, seed=2)
    whole = packed_linear(x, weight, bias, activations="int8")
    monkeypatch.setattr(reference, "BLOCK_ELEMENTS", 7 * 96)
    assert torch.equal(packed_linear(x, weight, bias, activations="int8"), whole)
    expected = F.linear(x, weight.dequantize(), bias)
    assert relative(packed_linear(x, weight, bias), expected) <= BLOCKS
    assert torch.equal(unpack_weight(weight, torch.float32), weight.dequantize())


@EVERY_KIND
@over("columns", [32, 96, 288])
def test_prepacking_loses_nothing(kind: str, columns: int) -> None:
    weight = weight_of(kind, 5, columns)
    handle = prepack(weight)
    per_byte = {"b": 8, "t": 4, "u": 4 if weight.tag == "u2" else 2}[weight.tag[0]]
    blocks = -(-columns // (per_byte * DEPTH))
    planes = 2 if weight.tag == "bin2" else 1
    assert handle.qdata.shape == (planes, 5, blocks * DEPTH) and handle.qdata.is_contiguous()
    codes = weight.codes().view(planes, 5, columns)
    for i, j, block in itertools.product(range(per_byte), range(DEPTH), range(blocks)):
        column = (block * per_byte + i) * DEPTH + j
        field = handle.qdata[:, :, block * DEPTH + j].int() >> (i * 8 // per_byte)
        field = field & (2 ** (8 // per_byte) - 1)
        expected = codes[:, :, column] if column < columns else 0
        assert torch.equal(field, torch.zeros_like(field) + expected)
    affine = affine_levels(weight.tag, weight.level_table, weight.zero is not None)
    assert affine is not None
    levels = affine[1] * codes.float() + affine[2]
    if handle.zero is not None:
        levels = levels - handle.zero.t().float().repeat_interleave(weight.group_size, 1)
    scale = handle.scale.transpose(1, 2).repeat_interleave(weight.group_size, 2)
    torch.testing.assert_close((levels * scale).sum(0), weight.dequantize(), rtol=0, atol=0)


def test_what_kernels_refuse() -> None:
    weight = from_float(normal(4, 48), "u4", 24)
    with pytest.raises(ValueError, match="prepack: groups of 24 columns are not a multiple of 32"):
        prepack(weight)
    assert packed_linear(normal(2, 48), weight).shape == (2, 4)
    for levels in [(0.0, 1.0, 2.0, 4.0), (3.0, 2.0, 1.0, 0.0), (0.0, 0.3, 0.6, 0.9)]:
        reason = kernel_refusal("u2", torch.ones(4), None, levels, 48)
        assert reason is not None and "are not equally spaced small integers" in reason
    for levels in [(-3.0, -1.0, 1.0, 3.0), (-0.5, 0.0, 0.5, 1.0), (0.0, 1.0, 2.0, 3.0)]:
        assert kernel_refusal("u2", torch.ones(4), None, levels, 48) is None


def test_a_handle_is_the_same_weight() -> None:
    weight, x = weight_of("tern3 g32"), normal(3, 96, seed=1)
    handle = prepack(weight)
    assert torch.equal(packed_linear(x, handle), packed_linear(x, weight))
    assert torch.equal(unpack_weight(handle, torch.float16), weight.dequantize().half())


@over("shape", [(0, 96), (2, 0, 96), (96,), (3, 1, 2, 96)])
@over("activations", ["float", "int8"])
def test_any_leading_axes(shape: tuple[int, ...], activations: Any) -> None:
    weight, x = weight_of("u4"), normal(*shape)
    found = packed_linear(x, weight, activations=activations)
    assert found.shape == (*shape[:-1], 9)
    rows = packed_linear(x.reshape(-1, 96), weight, activations=activations)
    assert torch.equal(found.reshape(-1, 9), rows)


def test_strided_rows() -> None:
    weight, x = weight_of("bin1"), normal(96, 8, seed=1).t()
    assert relative(packed_linear(x, weight), packed_linear(x.contiguous(), weight)) <= BLOCKS


def test_autocast_casts_the_input() -> None:
    weight, x = weight_of("u4"), normal(3, 96)
    expected = packed_linear(x.bfloat16(), weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = packed_linear(x, weight)
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)


@over(
    ("change", "message"),
    [
        ({"x": normal(3, 95)}, r"x: expected \(..., 96\) float on cpu, found \(3, 95\)"),
        ({"x": torch.zeros(3, 96, dtype=torch.int8)}, "x: .* found .* torch.int8 on cpu"),
        ({"x": torch.zeros(3, 96, device="meta")}, "x: .* on cpu, found .* on meta"),
        ({"bias": normal(8)}, r"bias: expected \(9,\) float on cpu, found \(8,\)"),
        ({"bias": torch.zeros(9).long()}, "bias: .* found .* torch.int64"),
        ({"activations": "int4"}, "activations: expected one of .* found 'int4'"),
        ({"route": "cublas"}, "route: expected one of .* found 'cublas'"),
        (
            {"activations": "int8", "route": "unpack"},
            "route: expected auto or fused .* found 'unpack'",
        ),
        ({"act_scale": torch.ones(1)}, "act_scale: .* with int8 activations alone"),
        ({"act_scale": torch.ones(3), "activations": "int8"}, r"act_scale: .* found \(3,\)"),
        ({"x": normal(3, 96).requires_grad_()}, "packed_linear has no gradient"),
        ({"bias": normal(9).requires_grad_()}, "packed_linear has no gradient"),
        ({"backend": "cuda"}, "backend: expected one of .* found 'cuda'"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        packed_linear(**{"x": normal(3, 96), "weight": weight_of("bin1")} | change)


def test_inputs_that_need_gradients_pass_without_grad_mode() -> None:
    x = normal(3, 96).requires_grad_()
    with torch.no_grad():
        assert not packed_linear(x, weight_of("bin1")).requires_grad


def test_unpacking_to_integers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dtype: expected one of .* torch\.int8"):
        unpack_weight(weight_of("bin1"), torch.int8)


@pytest.mark.parametrize("kind", ["bin2 g32", "u4 zero", "u2"])
@pytest.mark.parametrize("activations", ["float", "int8"])
def test_opcheck(kind: str, activations: str) -> None:
    weight = weight_of(kind)
    tensors = (weight.qdata, weight.scale, weight.zero)
    levels = list(weight.level_table or ())
    step = torch.ones(1) if activations == "int8" else None
    auto = ("auto", "auto")
    torch.library.opcheck(
        _packed_linear,
        (normal(2, 3, 96), *tensors, [], normal(9), step, weight.tag, levels, activations, *auto),
    )
    handle = prepack(weight).tensors
    torch.library.opcheck(
        _unpack_weight, (*tensors, handle, weight.tag, levels, 96, torch.bfloat16, "auto")
    )


def test_compiles_into_one_graph() -> None:
    weight, handle = weight_of("u4"), prepack(weight_of("tern2 g32"))

    def both(x: Tensor) -> Tensor:
        return packed_linear(x, weight, activations="int8") + packed_linear(x, handle).relu()

    x = normal(4, 96)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), both(x))


def test_padding_bits_are_never_read() -> None:
    for kind, filled in (("bin1", 0xF0), ("tern2", 0xF0), ("u4", 0xF0)):
        columns = {"bin1": 4, "tern2": 2, "u4": 1}[kind] + 8
        weight, x = weight_of(kind, 5, columns), normal(3, columns, seed=1)
        qdata = weight.qdata.clone()
        qdata[:, -1] |= filled
        other = dataclasses.replace(weight, qdata=qdata)
        assert torch.equal(packed_linear(x, other), packed_linear(x, weight))
        assert torch.equal(prepack(other).qdata, prepack(weight).qdata)
        assert torch.equal(pack_rows(other.codes(), weight.tag), weight.qdata)
