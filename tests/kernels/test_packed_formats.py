"""Low-bit formats: bytes, what they decode to, sizes, files, and textbook scales."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tessella.kernels.packed_linear.encode import empty_weight, from_float, pack
from tessella.kernels.packed_linear.formats import (
    NUM_CODES,
    SYMMETRIC_LEVELS,
    PackedWeight,
    integer_levels,
    pack_rows,
    unpack_rows,
)
from tessella.kernels.packed_linear.prepack import prepack
from tessella.low_bit.packed_files import from_tensors, part_name, to_tensors
from tessella.tests.cases import over

TAGS = pytest.mark.parametrize("tag", NUM_CODES)


def draw(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@TAGS
@over("num_columns", [1, 7, 8, 9, 31, 33, 255, 256, 257])
def test_packing_is_a_bijection(tag: str, num_columns: int) -> None:
    high = NUM_CODES[tag]
    cases = [torch.zeros(3, num_columns), torch.full((3, num_columns), high - 1)]
    for codes in [*cases, draw(high, 3, num_columns), draw(high, 2, 3, num_columns)]:
        packed = pack_rows(codes.long(), tag)
        per_byte = {"tern3": 5}.get(tag, 8 // {2: 1, 3: 2, 4: 2, 16: 4}[high])
        assert packed.shape == (*codes.shape[:-1], -(-num_columns // per_byte))
        assert packed.dtype == torch.uint8
        assert torch.equal(unpack_rows(packed, tag, num_columns), codes.to(torch.uint8))


def test_bin1_is_little_endian() -> None:
    codes = draw(2, 5, 37)
    expected = np.packbits(codes.numpy().astype(np.uint8), axis=1, bitorder="little")
    assert np.array_equal(pack_rows(codes, "bin1").numpy(), expected)


@pytest.mark.parametrize(
    ("tag", "codes", "expected"),
    [
        ("tern2", [0, 1, 2, 1, 2], [0b01100100, 0b10]),
        ("u2", [3, 0, 1, 2], [0b10010011]),
        ("u4", [1, 2, 15], [0x21, 0x0F]),
        ("tern3", [2, 2, 2, 2, 2, 0, 0, 0, 0, 1], [255, 2]),
    ],
)
def test_bytes_by_hand(tag: str, codes: list[int], expected: list[int]) -> None:
    assert pack_rows(torch.tensor(codes), tag).tolist() == expected


def test_every_five_trits() -> None:
    trits = torch.tensor(list(itertools.product(range(3), repeat=5)))
    packed = pack_rows(trits, "tern3")
    v = torch.arange(243, dtype=torch.float64)
    assert torch.equal(packed[:, 0].double(), torch.ceil(v * 256 / 243))
    assert torch.equal(unpack_rows(packed, "tern3", 5).long(), trits)
    assert packed.unique().numel() == 243


def test_bytes_that_no_trits_give_are_refused() -> None:
    valid = {-(-256 * v // 243) for v in range(243)}
    for byte in range(256):
        qdata = torch.tensor([[byte]], dtype=torch.uint8)
        weight = PackedWeight("tern3", (1, 5), qdata, torch.ones(1))
        if byte in valid:
            weight.check_values()
        else:
            with pytest.raises(ValueError, match=f"qdata: .* tern3, found byte {byte}"):
                weight.check_values()


def test_code_3_of_tern2_is_refused_but_in_the_padding() -> None:
    qdata = torch.tensor([[0b11000000], [0]], dtype=torch.uint8)
    PackedWeight("tern2", (2, 3), qdata, torch.ones(2)).check_values()
    with pytest.raises(ValueError, match="code 3 of tern2 is invalid, row 0 column 3"):
        PackedWeight("tern2", (2, 4), qdata, torch.ones(2)).check_values()


def one_weight(tag: str, code: int, levels: Any = None, zero: Any = None) -> float:
    """Decoded value of a code, by the table of `formats.py`."""
    if tag == "bin1":
        return 2 * code - 1
    if zero is not None:
        return code - zero
    return levels[code] if tag == "u2" else code - (8 if tag == "u4" else 1)


@over("grouped", ["tensor", "channel", "group"])
@over("tag", ["bin1", "tern2", "tern3", "u2", "u4", "u2 zero", "u4 zero"])
def test_decodes_to_scale_times_level(tag: str, grouped: str) -> None:
    tag, *asymmetric = tag.split()
    high, (rows, columns, groups) = NUM_CODES[tag], (3, 14, 2 if grouped == "group" else 1)
    codes = draw(high, rows, columns)
    scale = normal({"tensor": 1, "channel": rows, "group": rows * groups}[grouped])
    scale = scale.view(rows, groups) if grouped == "group" else scale
    zero = draw(high, rows, groups, seed=1).to(torch.uint8) if asymmetric else None
    levels = (-0.75, 0.3, 0.5, 7.0) if tag == "u2" and not asymmetric else None
    weight = pack(tag, codes, scale, zero=zero, level_table=levels)
    table = scale.expand(rows) if grouped == "tensor" else scale
    for n, k in itertools.product(range(rows), range(columns)):
        group = k * groups // columns
        s = table[n, group] if grouped == "group" else table[n]
        z = None if zero is None else int(zero[n, group])
        expected = s * one_weight(tag, int(codes[n, k]), levels, z)
        assert weight.dequantize()[n, k] == expected


@pytest.mark.parametrize("groups", [0, 3])
def test_two_planes_are_added(groups: int) -> None:
    codes = draw(2, 2, 4, 9)
    scale = normal(2, 4, groups) if groups else normal(2, 4)
    weight = pack("bin2", codes, scale)
    both = [pack("bin1", codes[i], scale[i]).dequantize() for i in range(2)]
    assert torch.equal(weight.dequantize(), both[0] + both[1])
    assert torch.equal(weight.codes().long(), codes)


def test_negative_scales_keep_their_sign() -> None:
    weight = pack("bin1", torch.tensor([[1, 0]]), torch.tensor([-2.0]))
    assert weight.dequantize().tolist() == [[-2.0, 2.0]]


TABLE = {
    (224, 224, 3, 3): (1.008, 2.016, 1.611, 2.008, 4.254),
    (896, 896, 3, 3): (1.002, 2.004, 1.602, 2.002, 4.250),
    (224, 448, 1, 1): (1.036, 2.071, 1.643, 2.036, 4.250),
    (3072, 3072): (1.005, 2.010, 1.607, 2.005, 4.250),
    (64, 64): (1.250, 2.500, 1.875, 2.250, 4.250),
}
"""Bits per weight by shape, computed by hand: bin1, bin2, tern3, tern2, u4 in groups of 64 (2016
columns would make 31.5 groups, so that no weight has them)."""


@pytest.mark.parametrize("shape", TABLE)
def test_bits_per_weight_as_published(shape: tuple[int, ...]) -> None:
    tags = [("bin1", None), ("bin2", None), ("tern3", None), ("tern2", None), ("u4", 64)]
    weights = [
        empty_weight(tag, shape, group, device="meta")
        for tag, group in tags
        if group is None or shape != (224, 224, 3, 3)
    ]
    found = tuple(round(weight.bits_per_weight(), 3) for weight in weights)
    assert found == TABLE[shape][: len(weights)]


@TAGS
def test_sizes_agree(tag: str) -> None:
    for group, asymmetric in itertools.product([None, 8], [False, True]):
        if asymmetric and tag[0] != "u":
            continue
        weight = from_float(normal(6, 16), tag, group, asymmetric=asymmetric)
        tensors, _ = to_tensors({"weight": weight})
        assert weight.num_bytes() == sum(t.nbytes for t in tensors.values())
        assert weight.bits_per_weight() == 8 * weight.num_bytes() / 96
        empty = empty_weight(tag, (6, 16), group, asymmetric=asymmetric)
        for name in ("qdata", "scale", "zero"):
            ours, theirs = getattr(weight, name), getattr(empty, name)
            assert (ours is None) == (theirs is None)
            assert ours is None or (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert weight.level_table == empty.level_table


def some_weights() -> dict[str, PackedWeight]:
    """One weight of every kind."""
    kinds = [(tag, group, False) for tag in NUM_CODES for group in (None, 6)]
    kinds += [(tag, group, True) for tag in ("u2", "u4") for group in (None, 6)]
    weights = {
        f"blocks.{i}.weight": from_float(normal(5, 12, seed=i), tag, group, asymmetric=asymmetric)
        for i, (tag, group, asymmetric) in enumerate(kinds)
    }
    weights["weight"] = from_float(normal(4, 3, 2, 5), "bin2", group=6)
    weights["head.weight"] = from_float(normal(4, 7), "tern3", per_tensor=True)
    return weights


def test_files_give_back_the_same_weights(tmp_path: Path) -> None:
    weights, path = some_weights(), tmp_path / "model.safetensors"
    tensors, metadata = to_tensors(weights)
    assert "blocks.0._weight_qdata" in tensors and "_weight_scale" in tensors
    save_file({**tensors, "blocks.0.bias": torch.zeros(5)}, path, metadata)
    with safe_open(path, "pt") as file:
        read = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = from_tensors(read, file.metadata())
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(found[name].dense(), weight.dense()), name
        for field in dataclasses.fields(weight):
            ours, theirs = getattr(weight, field.name), getattr(found[name], field.name)
            if isinstance(ours, Tensor):
                assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype, name
            else:
                assert ours == theirs, name


def test_one_weight_under_two_names_can_be_saved(tmp_path: Path) -> None:
    weight = from_float(normal(5, 12), "u4", 6)
    tensors, metadata = to_tensors({"a.weight": weight, "b.weight": weight})
    save_file(tensors, tmp_path / "tied.safetensors", metadata)
    assert len(tensors) == 4


def test_a_file_without_low_bit_weights_has_none() -> None:
    assert from_tensors({"weight": torch.zeros(2, 2)}, None) == {}


def changed(metadata: dict[str, str], **entry: Any) -> dict[str, str]:
    """Header strings with some keys of the one layer replaced, or removed by None."""
    layers = json.loads(metadata["lowbit.layers"])
    layers["a.weight"] |= entry
    layers["a.weight"] = {k: v for k, v in layers["a.weight"].items() if v != "removed"}
    return metadata | {"lowbit.layers": json.dumps(layers)}


@over(
    ("entry", "message"),
    [
        ({"tag": "u3"}, "a.weight: tag: expected one of .* found 'u3'"),
        ({"tag": "removed"}, "a.weight: tag: expected one of .* found None"),
        ({"shape": [5, 13]}, r"a.weight: qdata: expected \(5, 7\) uint8"),
        ({"shape": [5, 11]}, "a.weight: scale: K = 11 columns cannot be divided into 2"),
        ({"group": 3}, "a.weight: expected group 6 by its tensors, found 3"),
        ({"k_order": "cikhkw"}, "a.weight: expected k_order 'khkwci' .* found 'cikhkw'"),
        ({"orig_layout": "oihw"}, "a.weight: expected orig_layout 'oi'"),
        ({"zero_point": "removed"}, "a.weight: expected zero_point in its entry, found none"),
        ({"zero_point": True}, "a.weight: expected a._weight_zero in the file, found none"),
        ({"level_table": [0, 1, 2]}, "a.weight: level_table: expected None for u4, found"),
        ({"level_table": "0123"}, "a.weight: level_table: expected a list or null, found '0123'"),
        ({"shape": 5}, "a.weight: shape: expected a list, found 5"),
        ({"shape": None}, "a.weight: shape: expected a list, found None"),
        ({"shape": "ab"}, "a.weight: shape: expected a list, found 'ab'"),
        ({"shape": ["a", "b"]}, "a.weight: shape: expected a tuple of 2 or 4 sizes"),
        ({"shape": [5.0, 12.0]}, "a.weight: shape: expected a tuple of 2 or 4 sizes"),
        ({"shape": [5, 2**70]}, r"a.weight: qdata: expected \(5, 59\d+\) uint8"),
        ({"act": "int8"}, "a.weight: act is a key that this version does not know"),
        ({"transposed": True}, "a.weight: transposed is a key that this version does not know"),
    ],
)
def test_entries_that_do_not_fit_are_refused(entry: dict[str, Any], message: str) -> None:
    tensors, metadata = to_tensors({"a.weight": from_float(normal(5, 12), "u4", 6)})
    from_tensors(tensors, changed(metadata, source="a remark"))
    with pytest.raises(ValueError, match=message):
        from_tensors(tensors, changed(metadata, **entry))


def test_files_that_do_not_fit_are_refused() -> None:
    tensors, metadata = to_tensors({"a.weight": from_float(normal(5, 12), "tern2")})
    with pytest.raises(ValueError, match=r"a\.weight: expected a\._weight_scale in the file"):
        from_tensors({"a._weight_qdata": tensors["a._weight_qdata"]}, metadata)
    with pytest.raises(ValueError, match=r"a\._weight_scale_in is a part that tern2"):
        from_tensors(tensors | {"a._weight_scale_in": torch.ones(12)}, metadata)
    with pytest.raises(ValueError, match=r"lowbit.version: expected '1', found '2'"):
        from_tensors(tensors, metadata | {"lowbit.version": "2"})
    for layers, found in {
        '{"a.weight": ': "lowbit.layers: not valid JSON",
        '["a.weight"]': "lowbit.layers: input should be an object",
        '{"a.weight": []}': r"a\.weight: expected an object, found \[\]",
    }.items():
        with pytest.raises(ValueError, match=found):
            from_tensors(tensors, metadata | {"lowbit.layers": layers})
    tensors["a._weight_qdata"][1, 1] = 0xFF
    with pytest.raises(ValueError, match="code 3 of tern2 is invalid, row 1 column 4"):
        from_tensors(tensors, metadata)


def test_names_of_parts() -> None:
    assert part_name("a.b.weight", "scale") == "a.b._weight_scale"
    assert part_name("weight", "scale") == "_weight_scale"


def test_convolution_columns_run_over_height_width_channels() -> None:
    weight = normal(4, 3, 2, 5)  # a kernel of 2 x 5
    packed = from_float(weight, "bin1")
    codes = packed.codes()
    for n, c, h, w in itertools.product(range(4), range(3), range(2), range(5)):
        assert codes[n, (h * 5 + w) * 3 + c] == (weight[n, c, h, w] >= 0)
    signs = torch.where(weight >= 0, 1.0, -1.0)
    scale = weight.abs().mean((1, 2, 3), keepdim=True).half().float()
    assert torch.equal(packed.dense(), signs * scale) and packed.dense().is_contiguous()


def test_binary_scales_are_least_squares() -> None:
    weight = normal(6, 40)
    one = from_float(weight, "bin1", scale_dtype=torch.float32)
    signs = one.codes() * 2.0 - 1
    for n in range(6):
        best = torch.linalg.lstsq(signs[n][:, None].double(), weight[n][:, None].double()).solution
        assert abs(float(best) - float(one.scale[n])) < 1e-6
    two = from_float(weight, "bin2", scale_dtype=torch.float32)
    assert torch.equal(two.codes()[0], one.codes())
    rest = weight - one.dequantize()
    assert torch.equal(two.codes()[1] == 1, rest >= 0)
    torch.testing.assert_close(two.scale[1], rest.abs().mean(1))
    errors = [(weight - p.dequantize()).norm(dim=1) for p in (one, two)]
    assert (errors[1] < errors[0]).all()


def test_zero_counts_as_positive() -> None:
    weight = torch.tensor([[0.0, -0.0, 1.0, -1.0]])
    assert from_float(weight, "bin1").codes().tolist() == [[1, 1, 1, 0]]


@pytest.mark.parametrize("per_tensor", [False, True])
def test_ternary_by_absolute_mean(per_tensor: bool) -> None:
    weight = normal(6, 20)
    for tag in ("tern2", "tern3"):
        packed = from_float(weight, tag, per_tensor=per_tensor, scale_dtype=torch.float32)
        mean = weight.abs().mean() if per_tensor else weight.abs().mean(1, keepdim=True)
        expected = (weight / mean).round().clamp(-1, 1) * mean
        assert packed.scale.shape == ((1,) if per_tensor else (6,))
        torch.testing.assert_close(packed.dequantize(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("tag", "asymmetric"), [("u2", False), ("u4", False), ("u2", True), ("u4", True)]
)
def test_integers_are_the_nearest_level(tag: str, asymmetric: bool) -> None:
    weight = normal(6, 32)
    weight[0], weight[1] = weight[0].abs() + 1, 0
    for group in (None, 8):
        packed = from_float(weight, tag, group, asymmetric=asymmetric, scale_dtype=torch.float32)
        scale = packed.scale.view(6, -1, 1)
        codes = torch.arange(NUM_CODES[tag]).float()
        if asymmetric:
            assert packed.zero is not None
            levels = codes - packed.zero[..., None].float()
        elif tag == "u2":
            levels = torch.tensor(SYMMETRIC_LEVELS).expand(6, scale.shape[1], 4)
        else:
            levels = (codes - 8).expand(6, scale.shape[1], 16)
        rows = weight.unflatten(1, (scale.shape[1], -1))
        distance = (rows[..., None] - (levels * scale)[:, :, None]).abs()
        found = packed.dequantize().view_as(rows)
        torch.testing.assert_close((rows - found).abs(), distance.amin(-1), rtol=0, atol=1e-6)


def test_scales_take_float16_where_they_are_normal_numbers_there() -> None:
    for size, expected in [(1.0, torch.float16), (1e-6, torch.float32), (1e6, torch.float32)]:
        packed = from_float(normal(4, 8) * size, "u4")
        assert packed.scale.dtype == expected
        assert float((packed.dense() - normal(4, 8) * size).norm()) < 0.3 * size * 4
    assert from_float(torch.zeros(2, 8), "u4").scale.dtype == torch.float16
    assert not from_float(torch.zeros(2, 8), "u4").dense().any()
    assert from_float(normal(4, 8), "bin1", scale_dtype=torch.bfloat16).scale.dtype == (
        torch.bfloat16
    )


def test_levels_as_integers() -> None:
    assert integer_levels((-0.75, -0.25, 0.25, 0.75)) == (0.25, (-3, -1, 1, 3))
    assert integer_levels((-2.0, 0.0, 2.0, 4.0)) == (2.0, (-1, 0, 1, 2))
    assert integer_levels((-1.0, -0.3, 0.3, 1.0)) is None
    assert integer_levels((-200.0, 0.0, 1.0, 2.0)) is None


@over(
    ("change", "message"),
    [
        ({"tag": "fp4"}, "tag: expected one of .* found 'fp4'"),
        ({"shape": [4, 16]}, r"shape: expected a tuple .* found \[4, 16\]"),
        ({"shape": (4.0, 16)}, r"shape: expected a tuple .* found \(4.0, 16\)"),
        ({"shape": (4, 16, 1)}, "shape: expected a tuple of 2 or 4 sizes"),
        ({"shape": (4, 0)}, "shape: expected a tuple of 2 or 4 sizes"),
        ({"qdata": torch.zeros(4, 7, dtype=torch.uint8)}, r"qdata: expected \(4, 8\) uint8"),
        ({"qdata": torch.zeros(4, 8)}, r"qdata: expected .*float32"),
        ({"scale": torch.ones(5)}, r"scale: expected \(4,\) or \(4, 'G'\) or \(1,\)"),
        ({"scale": torch.ones(4).double()}, "scale: expected .*float64"),
        ({"scale": torch.ones(4, 3)}, "scale: K = 16 columns cannot be divided into 3"),
        ({"scale": torch.ones(4, 2)}, r"zero: expected \(4, 2\) uint8, found \(4, 1\)"),
        ({"zero": torch.zeros(4, 1)}, r"zero: expected \(4, 1\) uint8, found .*float32"),
        ({"level_table": (0.0, 1.0, 2.0, 3.0)}, "level_table: expected None for u4"),
        ({"scale": torch.full((4,), torch.nan)}, "scale: expected finite values"),
        ({"zero": torch.full((4, 1), 16, dtype=torch.uint8)}, "zero: expected 0 to 15, found 16"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    weight = from_float(normal(4, 16), "u4", asymmetric=True)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(weight, **change).check_values()


def test_other_parts_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="zero: only u2 and u4 have zero points"):
        dataclasses.replace(
            from_float(normal(4, 16), "bin1"), zero=torch.zeros(4, 1, dtype=torch.uint8)
        )
    with pytest.raises(
        ValueError, match=r"level_table: expected a tuple of 4 finite .* for u2, found None"
    ):
        dataclasses.replace(from_float(normal(4, 16), "u2"), level_table=None)
    with pytest.raises(ValueError, match=r"scale: expected \(2, 4\) or \(2, 4, 'G'\) float16"):
        dataclasses.replace(from_float(normal(4, 16), "bin2"), scale=torch.ones(1))


@over(
    ("given", "message"),
    [
        ({"tag": "fp4"}, "tag: expected one of"),
        ({"group": 5}, "group: expected a divisor of the K = 16 columns, found 5"),
        ({"group": 0}, "group: expected a divisor of the K = 16 columns, found 0"),
        ({"asymmetric": True}, "asymmetric: only u2 and u4 have zero points, found bin1"),
        ({"per_tensor": True, "group": 8}, "per_tensor: expected .* found bin1 with group 8"),
        ({"per_tensor": True, "tag": "bin2"}, "per_tensor: expected .* found bin2 with group None"),
        ({"weight": torch.zeros(3)}, "weight: expected 2 or 4 axes"),
        (
            {"weight": torch.zeros(5, 0)},
            r"weight: expected 2 or 4 axes of at least 1, found \(5, 0",
        ),
        ({"weight": torch.full((2, 2), torch.nan)}, "weight: .* finite"),
        ({"weight": torch.full((2, 2), 1e39, dtype=torch.float64)}, "weight: .* finite"),
        (
            {"weight": torch.zeros(2, 2, device="meta")},
            "weight: expected values to encode, found a meta tensor",
        ),
        (
            {"weight": normal(4, 16) * 1e-9, "scale_dtype": torch.float16},
            "scale_dtype: torch.float16 turns a scale of .*e-10 into 0.0",
        ),
        (
            {"weight": normal(4, 16) * 1e6, "scale_dtype": torch.float16},
            "scale_dtype: torch.float16 turns a scale of .* into inf",
        ),
    ],
)
def test_weights_that_cannot_be_encoded_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_float(**{"weight": normal(4, 16), "tag": "bin1"} | given)


@pytest.mark.parametrize(
    "levels",
    [
        (0.0, 1.0, 2.0),
        [0.0, 1.0, 2.0, 3.0],
        (0.0, 1.0, float("nan"), 3.0),
        (0.0, 1.0, 1e39, 3.0),
        (0.0, 1.0, float("-inf"), 3.0),
        (0.0, 1.0, "2", 3.0),
    ],
)
def test_levels_must_be_finite_numbers(levels: Any) -> None:
    weight = from_float(normal(4, 16), "u2")
    with pytest.raises(
        ValueError, match=r"level_table: expected a tuple of 4 finite float32 numbers"
    ):
        dataclasses.replace(weight, level_table=levels)


def test_weights_are_equal_to_themselves_alone() -> None:
    weight = from_float(normal(4, 16), "u2")
    handle = prepack(weight)
    assert weight == weight and weight != dataclasses.replace(weight)
    assert handle == handle and handle != prepack(weight)
    assert len({weight, handle}) == 2


def test_codes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"codes: expected integers or bool, found torch.float32"):
        pack("u4", torch.tensor([[0.9, 1.9]]), torch.ones(1))
    with pytest.raises(ValueError, match="codes: expected 0 to 2 for tern3, found 0 to 3"):
        pack_rows(torch.tensor([[0, 3]]), "tern3")
    with pytest.raises(ValueError, match="codes: expected 0 to 1 for bin1, found -1 to 1"):
        pack_rows(torch.tensor([[-1, 1]]), "bin1")
    with pytest.raises(ValueError, match=r"codes: expected \(2, N, K\) for bin2, found \(4, 16\)"):
        pack("bin2", draw(2, 4, 16), torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"shape: .* N x K = \(4, 16\) as .*, found \(4, 2, 2, 2"):
        pack("bin1", draw(2, 4, 16), torch.ones(4), shape=(4, 2, 2, 2))
