"""Linear and convolution layers with packed weights: against float layers of decoded weights."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tessella.kernels.packed_linear.encode import empty_weight, from_float
from tessella.kernels.packed_linear.formats import NUM_CODES
from tessella.low_bit.packed_files import from_tensors, to_tensors
from tessella.low_bit.packed_layers import PackedConv2d, PackedLinear
from tessella.tests.cases import over

TAGS = pytest.mark.parametrize("tag", NUM_CODES)

PATCHES = 3e-7
"""Relative L2 error of a product of patches beside a convolution in float32: 1.9e-7 found."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(module: nn.Module) -> Any:
    """The module with its parameters drawn anew, from a seed, as float32."""
    for i, parameter in enumerate(module.parameters()):
        parameter.data = normal(*parameter.shape, seed=i)
    return module


@TAGS
@over("bias", [False, True])
@over("cache", [False, True])
def test_linear_equals_the_layer_of_its_decoded_weight(tag: Any, bias: bool, cache: bool) -> None:
    linear = seeded(nn.Linear(48, 10, bias=bias))
    packed = PackedLinear.from_linear(linear, tag, group=16, cache=cache)
    x = normal(2, 5, 48, seed=9)
    linear.weight.data = packed.weight.dequantize()
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(packed(x), linear(x))


# channels, outputs, kernel, stride, padding, dilation, groups, size, as linear
CONVOLUTIONS = {
    "1x1": (24, 10, 1, 1, 0, 1, 1, (7, 5), True),
    "1x1-stride-2": (33, 10, 1, 2, 0, 1, 1, (7, 5), True),
    "1x1-same": (8, 10, 1, 1, "same", 1, 1, (4, 4), True),
    "1x1-padded": (8, 10, 1, 1, 1, 1, 1, (4, 4), False),
    "patch-2": (12, 6, 2, 2, 0, 1, 1, (7, 9), True),
    "patch-4-valid": (3, 6, 4, 4, "valid", 1, 1, (9, 8), True),
    "patch-exactly": (3, 6, 4, 4, 0, 1, 1, (4, 4), True),
    "patch-2x3": (5, 6, (2, 3), (2, 3), 0, 1, 1, (7, 9), True),
    "3x3": (24, 10, 3, 1, 1, 1, 1, (7, 5), False),
    "3x3-stride-2": (33, 6, 3, 2, 1, 1, 1, (9, 7), False),
    "3x3-unpadded": (5, 6, 3, 1, 0, 1, 1, (5, 7), False),
    "1x3": (5, 6, (1, 3), 1, (0, 1), 1, 1, (5, 7), False),
    "dilation": (5, 6, 3, 1, 2, (2, 2), 1, (9, 7), False),
    "groups": (12, 6, 3, 1, 1, 1, 3, (5, 7), False),
    "depthwise-1x1": (6, 6, 1, 1, 0, 1, 6, (5, 7), False),
}


@over("batch", [0, 1, 3])
@over("case", CONVOLUTIONS)
def test_convolution_equals_the_layer_of_its_decoded_weight(case: str, batch: int) -> None:
    channels, outputs, kernel, stride, padding, dilation, groups, size, linear = CONVOLUTIONS[case]
    for tag in ("bin1", "bin2", "tern3", "u4"):
        conv = seeded(nn.Conv2d(channels, outputs, kernel, stride, padding, dilation, groups))
        packed = PackedConv2d.from_conv(conv, tag)
        assert packed.is_linear == linear
        conv.weight.data = packed.weight.dense()
        x = normal(batch, channels, *size, seed=9)
        for order in (torch.contiguous_format, torch.channels_last):
            given = x.to(memory_format=order)
            with torch.no_grad():
                found, expected = packed(given), conv(given)
            assert found.shape == expected.shape
            assert found.is_contiguous(memory_format=order) or not linear
            if linear and batch:
                assert (found - expected).norm() / expected.norm() <= PATCHES
            else:
                assert torch.equal(found, expected)
        packed.cache = True
        with torch.no_grad():
            assert torch.equal(packed(x), conv(x))


def test_int8_activations_of_pixels() -> None:
    conv = seeded(nn.Conv2d(24, 10, 1))
    packed = PackedConv2d.from_conv(conv, "tern2", activations="int8")
    linear = PackedLinear(
        from_float(conv.weight[:, :, 0, 0], "tern2"), conv.bias, activations="int8"
    )
    x = normal(2, 24, 5, 3)
    assert torch.equal(packed(x), linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    step = torch.tensor([0.05])
    matrix = dataclasses.replace(packed.weight, shape=(10, 24))
    fixed = PackedLinear(matrix, conv.bias, activations="int8", act_scale=step)
    rows = normal(4, 24)
    clipped = (rows / step).round().clamp(-128, 127) * step
    with torch.no_grad():
        expected = F.linear(clipped, packed.weight.dequantize(), conv.bias)
    torch.testing.assert_close(fixed(rows), expected, rtol=1e-5, atol=1e-5)
    assert "_act_step" in fixed.state_dict()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casting_leaves_scales_alone(dtype: torch.dtype) -> None:
    conv = seeded(nn.Conv2d(6, 5, 3, padding=1))
    packed = PackedConv2d.from_conv(conv, "u4")
    scale = packed._weight_scale.clone()
    packed.to(dtype)
    assert packed._weight_scale.dtype == torch.float16 and packed.bias.dtype == dtype
    assert torch.equal(packed._weight_scale, scale)
    x = normal(2, 6, 5, 5).to(dtype)
    with torch.no_grad():
        conv.weight.data = packed.weight.dense()
        assert torch.equal(packed(x), conv.to(dtype)(x))


def test_a_state_is_what_a_file_holds() -> None:
    model = nn.Sequential()
    model.add_module("a", PackedLinear.from_linear(seeded(nn.Linear(20, 8)), "u4", 5))
    model.add_module("b", PackedLinear.from_linear(seeded(nn.Linear(8, 4)), "tern3"))
    weights = {f"{name}.weight": layer.weight for name, layer in model.named_children()}
    tensors, metadata = to_tensors(weights)
    state = model.state_dict()
    assert state.keys() == tensors.keys() | {"a.bias", "b.bias"}
    read = from_tensors(state, metadata)
    rebuilt = nn.Sequential()
    for name in ("a", "b"):
        rebuilt.add_module(name, PackedLinear(read[f"{name}.weight"], state[f"{name}.bias"]))
    x = normal(3, 20)
    assert torch.equal(rebuilt(x), model(x))


@pytest.mark.parametrize("size", [1e6, 1e-6])
@pytest.mark.parametrize("assign", [False, True])
def test_a_state_keeps_the_type_of_its_scales(size: float, assign: bool) -> None:
    linear = seeded(nn.Linear(20, 8))
    skeleton = PackedLinear(
        empty_weight("u4", (8, 20), 5),
        torch.empty(8),
        activations="int8",
        act_scale=torch.ones(1, dtype=torch.float16),
    )
    assert skeleton._weight_scale.dtype == torch.float16
    linear.weight.data *= size
    step = torch.tensor([1e-9])
    trained = PackedLinear.from_linear(linear, "u4", 5, activations="int8", act_scale=step)
    skeleton.load_state_dict(copy.deepcopy(trained.state_dict()), assign=assign)
    assert skeleton._weight_scale.dtype == torch.float32
    assert torch.equal(skeleton.weight.dequantize(), trained.weight.dequantize())
    assert torch.equal(skeleton._act_step, step)
    x = normal(3, 20)
    assert torch.equal(skeleton(x), trained(x))


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_of_wrong_types_is_refused(assign: bool) -> None:
    packed = PackedLinear.from_linear(seeded(nn.Linear(20, 8)), "u4", asymmetric=True)
    state = packed.state_dict()
    for name, dtype in (
        ("_weight_scale", torch.float64),
        ("_weight_qdata", torch.float32),
        ("_weight_zero", torch.int64),
    ):
        changed = state | {name: state[name].to(dtype)}
        with pytest.raises(RuntimeError, match=f"{name}: expected one of .* found {dtype}"):
            packed.load_state_dict(changed, assign=assign)


def test_a_skeleton_takes_no_memory_until_a_state_is_assigned() -> None:
    linear = seeded(nn.Linear(20, 8))
    packed = PackedLinear.from_linear(linear, "bin2", 5)
    with torch.device("meta"):
        skeleton = PackedLinear(empty_weight("bin2", (8, 20), 5), torch.empty(8))
        x = torch.empty(3, 20)
    assert all(tensor.is_meta for tensor in skeleton.state_dict().values())
    assert skeleton(x).shape == (3, 8)
    skeleton.load_state_dict(packed.state_dict(), assign=True)
    assert torch.equal(skeleton(normal(3, 20)), packed(normal(3, 20)))


def test_a_copy_made_in_inference_mode_serves_training() -> None:
    packed = PackedLinear.from_linear(seeded(nn.Linear(20, 8)), "u4", cache=True)
    x = normal(3, 20)
    with torch.inference_mode():
        packed(x)
    x.requires_grad_()
    packed(x).sum().backward()
    torch.testing.assert_close(x.grad, packed.weight.dequantize().sum(0).expand(3, 20))


def test_copies_are_not_made_while_a_cuda_graph_is_captured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed = PackedLinear.from_linear(seeded(nn.Linear(20, 8)), "u4", cache=True)
    x = normal(3, 20)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="call `prepare` on every packed layer before a CUDA"):
        packed(x)
    monkeypatch.undo()
    packed.prepare(torch.float32)
    assert packed._dense is not None


@pytest.mark.parametrize("assign", [False, True])
def test_loading_a_state_forgets_copies(assign: bool) -> None:
    one = PackedLinear.from_linear(seeded(nn.Linear(20, 8)), "bin2", cache=True)
    linear = nn.Linear(20, 8)
    linear.weight.data, linear.bias.data = normal(8, 20, seed=5), normal(8, seed=6)
    two = PackedLinear.from_linear(linear, "bin2", cache=True)
    x = normal(3, 20)
    before = one(x)
    assert one._dense is not None
    one.load_state_dict(copy.deepcopy(two.state_dict()), assign=assign)
    assert torch.equal(one(x), two(x)) and not torch.equal(one(x), before)


def test_the_cache_follows_the_type_of_the_input() -> None:
    packed = PackedLinear.from_linear(seeded(nn.Linear(20, 8)), "u2", cache=True)
    weight = packed.weight.dequantize()
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        x = normal(3, 20).to(dtype)
        expected = F.linear(x, weight.to(dtype), packed.bias.to(dtype))
        assert torch.equal(packed(x), expected)
        assert packed._dense is not None and packed._dense.dtype == dtype


def test_sizes_in_bytes() -> None:
    packed = PackedLinear.from_linear(nn.Linear(20, 8), "tern3")
    assert packed.num_bytes() == 8 * 4 + 8 * 2 + 8 * 4  # codes, scales, bias
    assert packed.num_bytes() == sum(t.nbytes for t in packed.state_dict().values())
    assert str(packed) == "PackedLinear(8x20, tern3, 2.400 bits per weight)"


def test_what_cannot_be_a_layer_is_refused() -> None:
    linear, conv = nn.Linear(8, 4), nn.Conv2d(4, 4, 3, padding=1)
    with pytest.raises(ValueError, match="cache: expected False with activations 'int8'"):
        PackedLinear.from_linear(linear, "bin1", activations="int8", cache=True)
    with pytest.raises(ValueError, match="weight: expected 4 axes"):
        PackedConv2d(from_float(linear.weight, "bin1"))
    with pytest.raises(ValueError, match=r"groups: .* 4 output channels, found 3"):
        PackedConv2d(from_float(conv.weight, "bin1"), groups=3)
    with pytest.raises(ValueError, match="activations: int8 needs a 1x1 kernel"):
        PackedConv2d.from_conv(conv, "bin1", activations="int8")
    with pytest.raises(ValueError, match="weight: expected 2 axes"):
        PackedLinear(from_float(conv.weight, "bin1"))
    with pytest.raises(ValueError, match="padding_mode: expected 'zeros', found 'circular'"):
        PackedConv2d.from_conv(nn.Conv2d(4, 4, 3, padding_mode="circular"), "bin1")


@over(
    ("settings", "message"),
    [
        ({"bias": torch.zeros(5)}, r"bias: expected \(4,\) float"),
        ({"activations": "int4"}, "activations: expected one of .* found 'int4'"),
        ({"act_scale": torch.ones(1)}, "act_scale: .* with int8 activations alone"),
        ({"route": "bogus"}, "route: expected one of .* found 'bogus'"),
        ({"backend": "bogus"}, "backend: expected one of .* found 'bogus'"),
        ({"groups": 0}, "groups: expected a divisor of 4 output channels, found 0"),
        ({"stride": 0}, "stride: expected one or two whole numbers of at least 1, found 0"),
        ({"stride": 1.5}, "stride: expected one or two whole numbers of at least 1, found 1.5"),
        ({"dilation": (1, 2, 3)}, "dilation: expected one or two whole numbers"),
        ({"padding": (0, -1)}, "padding: expected one or two whole numbers of at least 0"),
        ({"padding": "full"}, "padding: expected pixels, 'valid' or, .* found 'full'"),
        ({"padding": "same", "stride": 2}, "padding: .* found 'same' with stride"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    weight = from_float(nn.Conv2d(4, 4, 3).weight, "bin1")
    with pytest.raises(ValueError, match=message):
        PackedConv2d(weight, **settings)


def test_pixels_by_numbers_and_lists() -> None:
    weight = from_float(seeded(nn.Conv2d(3, 6, 4)).weight, "bin1")
    expected = PackedConv2d(weight, stride=(4, 4), padding=(0, 0), dilation=(1, 1))
    x = normal(2, 3, 8, 9)
    for pixels in (4, [4, 4]):
        packed = PackedConv2d(weight, stride=pixels, padding=0, dilation=[1, 1])
        assert packed.is_linear and torch.equal(packed(x), expected(x))


@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_images_without_a_batch(kernel: int) -> None:
    conv = seeded(nn.Conv2d(3, 6, kernel, stride=min(kernel, 2)))
    packed = PackedConv2d.from_conv(conv, "u4")
    x = normal(3, 5, 7)
    assert packed(x).shape == conv(x).shape
    assert torch.equal(packed(x), packed(x[None])[0])


def test_images_smaller_than_a_patch_are_refused() -> None:
    packed = PackedConv2d.from_conv(seeded(nn.Conv2d(3, 6, 4, stride=4)), "u4")
    for shape in ((2, 3, 3, 9), (3, 9, 3), (2, 3, 0, 4)):
        with pytest.raises(ValueError, match=r"x: expected .* of at least 4 x 4 pixels, found"):
            packed(normal(*shape))
    with pytest.raises(ValueError, match=r"x: expected .* found \(9, 9\)"):
        packed(normal(9, 9))


def test_a_cached_layer_compiles_once_prepared() -> None:
    packed = PackedLinear.from_linear(seeded(nn.Linear(20, 8)), "u4", cache=True)
    x = normal(3, 20)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="call `prepare` on every packed layer"):
        torch.compile(packed, fullgraph=True, backend="aot_eager")(x)
    assert packed._dense is None
    broken = torch.compile(copy.deepcopy(packed), backend="aot_eager")
    expected = packed.prepare(torch.float32)(x)
    assert torch.equal(broken(x), expected)
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), expected)


def test_compiles_into_one_graph() -> None:
    model = nn.Sequential(
        PackedConv2d.from_conv(seeded(nn.Conv2d(3, 8, 3, padding=1)), "bin2"),
        PackedConv2d.from_conv(seeded(nn.Conv2d(8, 6, 2, stride=2)), "tern3"),
        nn.Flatten(),
        PackedLinear.from_linear(seeded(nn.Linear(24, 5)), "u4", asymmetric=True),
    )
    x = normal(2, 3, 4, 4)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), model(x))


def test_moving_forgets_copies() -> None:
    packed = PackedLinear.from_linear(seeded(nn.Linear(20, 8)), "u4", cache=True)
    packed(normal(3, 20))
    assert packed._dense is not None
    assert nn.Sequential(packed).to("meta")[0]._dense is None
    assert packed.weight.qdata.device.type == packed.weight.scale.device.type == "meta"
