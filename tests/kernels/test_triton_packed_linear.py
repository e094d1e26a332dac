"""The contract of the packed linear kernels: every format and route against the reference."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.kernels.backends import INTERPRETED
from tessella.kernels.packed_linear.encode import from_float, pack
from tessella.kernels.packed_linear.formats import NUM_CODES, PackedWeight
from tessella.kernels.packed_linear.op import packed_linear, unpack_weight
from tessella.kernels.packed_linear.prepack import PrepackedWeight, prepack
from tessella.low_bit.packed_layers import PackedConv2d, PackedLinear
from tessella.tests.kernels.contract import (
    CONTRACT,
    DEVICE,
    TOLERANCE,
    Source,
    fenced,
    relative_l2,
)

pytestmark = CONTRACT

ROUNDED = {torch.float32: 0.0, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Relative L2 error at most where one rounding to the type of x may differ. Found in the
interpreter: fp16 2.8e-5; bf16, which it truncates, 4.3e-3."""
FLOAT32 = 2e-7
"""The same of exact integer sums times float32 scales, groups and splits added in another order."""
TYPES = pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16], ids=lambda d: str(d).removeprefix("torch.")
)

# rows, outputs, columns, group, zero points
SHAPES = {
    "one-row": (1, 33, 40, None, False),
    "ragged": (21, 40, 500, None, False),
    "17-rows-even": (17, 64, 512, None, False),
    "64-rows": (64, 30, 200, None, False),
    "g32": (16, 64, 512, 32, False),
    "g96": (33, 40, 480, 96, False),
    "g64-zero": (5, 40, 320, 64, True),
    "zero": (7, 40, 70, None, True),
}
CASES = [
    (tag, name)
    for tag in NUM_CODES
    for name, (*_, asymmetric) in SHAPES.items()
    if not asymmetric or tag[0] == "u"
]


def weight_of(tag: str, name: str) -> PackedWeight:
    """A weight on the device."""
    _, outputs, columns, group, asymmetric = SHAPES[name]
    weight = Source(torch.float32).normal(outputs, columns).cpu()
    return from_float(weight, tag, group, asymmetric=asymmetric).to(DEVICE)


def handle_of(weight: PackedWeight) -> PrepackedWeight:
    """What the kernels read, its scales between NaN and its bytes between others."""
    handle = prepack(weight)
    zero = None if handle.zero is None else fenced(handle.zero.cpu())
    return PrepackedWeight(weight, fenced(handle.qdata.cpu()), fenced(handle.scale.cpu()), zero)


def both(x: Tensor, weight: Any, bias: Tensor | None, **settings: Any) -> float:
    """Error of the kernels beside the reference; the same bits twice."""
    found = packed_linear(x, weight, bias, backend="triton", **settings)
    again = packed_linear(x, weight, bias, backend="triton", **settings)
    settings.pop("route", None)
    expected = packed_linear(x, weight, bias, backend="reference", **settings)
    assert found.dtype == expected.dtype == x.dtype
    assert torch.equal(found, again), "runs differ"
    return relative_l2(found, expected)


@TYPES
@pytest.mark.parametrize(("tag", "name"), CASES)
def test_float_activations(tag: str, name: str, dtype: torch.dtype) -> None:
    if INTERPRETED and dtype == torch.bfloat16 and name not in ("ragged", "g64-zero"):
        pytest.skip("the types differ in few instructions, and the interpreter is slow")
    draw, (rows, outputs, columns, *_) = Source(dtype), SHAPES[name]
    handle = handle_of(weight_of(tag, name))
    x, bias = draw.normal(rows, columns), draw.normal(outputs)
    assert both(x, handle, bias, route="fused") <= ROUNDED[dtype]


@pytest.mark.parametrize(("tag", "name"), CASES)
def test_int8_activations(tag: str, name: str) -> None:
    draw, (rows, outputs, columns, *_) = Source(torch.float32), SHAPES[name]
    handle = handle_of(weight_of(tag, name))
    x, bias = draw.normal(rows, columns), draw.normal(outputs)
    assert both(x, handle, bias, activations="int8") <= FLOAT32


@TYPES
def test_int8_codes_of_16_bit_activations(dtype: torch.dtype) -> None:
    x, weight = Source(dtype).normal(9, 500) * 3, weight_of("u4", "ragged")
    assert both(x, weight, None, activations="int8") <= ROUNDED[dtype]
    step = torch.tensor([0.03], device=DEVICE)
    assert both(x, weight, None, activations="int8", act_scale=step) <= ROUNDED[dtype]


@pytest.mark.parametrize("tag", NUM_CODES)
def test_integer_sums_are_exact(tag: str) -> None:
    """With scales of 1 every output is an integer below 2^24."""
    draw = Source(torch.float32)
    weight = from_float(draw.normal(40, 512).cpu(), tag).to(DEVICE)
    ones = torch.ones_like(weight.scale)
    weight = PackedWeight(weight.tag, weight.shape, weight.qdata, ones, None, weight.level_table)
    x = draw.integers(256, 20, 512) - 128
    step = torch.ones(1, device=DEVICE)
    found = packed_linear(x.float(), weight, activations="int8", act_scale=step, backend="triton")
    expected = x.cpu() @ weight.dequantize().cpu().long().t()
    assert torch.equal(found.cpu().long(), expected)


def test_token_codes_equal_those_of_the_reference() -> None:
    """Halves to even, sizes from 1e-30 to 1e30, rows of zeros, static clipping."""
    from tessella.kernels.packed_linear.launches import quantize_launch
    from tessella.kernels.packed_linear.reference import quantize_tokens

    draw = Source(torch.float32)
    x = draw.normal(13, 1100) * 10.0 ** torch.linspace(-30, 30, 13, device=DEVICE)[:, None]
    x[3] = 0
    x[4] = torch.arange(1100, device=DEVICE) % 255 - 127 + 0.5
    x[4, 0] = 127
    for step in (None, torch.tensor([0.25], device=DEVICE)):
        launch = quantize_launch(x, step, 1152)
        launch.run(x.device)
        codes, scale = quantize_tokens(x, step)
        assert torch.equal(launch.arguments["codes"][:, :1100], codes)
        assert not launch.arguments["codes"][:, 1100:].any()
        assert torch.equal(launch.arguments["scales"], scale)


@pytest.mark.parametrize("static", [False, True])
def test_a_token_with_nan_is_a_row_of_nan(static: bool) -> None:
    weight, x = weight_of("u4", "g64-zero"), Source(torch.float16).normal(5, 320)
    x[1, 7], x[3, 5] = torch.nan, -torch.inf
    step = torch.tensor([0.02], device=DEVICE) if static else None
    settings: dict[str, Any] = {"activations": "int8", "act_scale": step}
    found = packed_linear(x, weight, backend="triton", **settings)
    assert found[1].isnan().all() and found[[0, 2, 4]].isfinite().all()
    expected = packed_linear(x, weight, backend="reference", **settings)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("dtype", ROUNDED, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize(
    ("tag", "name"), [c for c in CASES if c[1] in ("ragged", "g96", "g64-zero", "zero")]
)
def test_unpacked_weights(tag: str, name: str, dtype: torch.dtype) -> None:
    if INTERPRETED and dtype == torch.bfloat16 and name != "ragged":
        pytest.skip("the interpreter truncates to bf16")
    weight = weight_of(tag, name)
    found = unpack_weight(handle_of(weight), dtype, backend="triton")
    assert found.dtype == dtype
    assert relative_l2(found, weight.dequantize()) <= ROUNDED[dtype]
    if dtype != torch.bfloat16:  # exact products rounded once, as torch does
        assert torch.equal(found, unpack_weight(weight, dtype, backend="reference"))


def test_routes() -> None:
    """float32 has one; 16 bits take the plain product from 512 rows."""
    draw, weight = Source(torch.float32), weight_of("u4", "g64-zero")
    x, bias = draw.normal(9, 320), draw.normal(40)
    assert both(x, weight, bias) <= TOLERANCE[torch.float32]
    with pytest.raises(RuntimeError, match="float32 activations have only the route 'unpack'"):
        packed_linear(x, weight, route="fused", backend="triton")
    many = draw.normal(512, 320).half()
    plain = packed_linear(many, weight, backend="triton", route="unpack")
    assert torch.equal(packed_linear(many, weight, backend="triton"), plain)
    few = packed_linear(many[:511], weight, backend="triton")
    assert torch.equal(few, packed_linear(many[:511], weight, backend="triton", route="fused"))
    assert both(many, weight, bias, route="unpack") <= 1e-3


def test_levels_of_fractions() -> None:
    draw = Source(torch.float16)
    codes = draw.integers(4, 20, 160)
    scale = draw.normal(20)
    for levels in [(-0.75, -0.25, 0.25, 0.75), (-1.0, 0.0, 1.0, 2.0)]:
        weight = pack("u2", codes, scale, level_table=levels)
        assert both(draw.normal(5, 160), weight, None, route="fused") <= 1e-3
        assert both(draw.normal(5, 160), weight, None, activations="int8") <= 1e-3


def test_what_kernels_cannot_take_is_refused_by_name() -> None:
    draw = Source(torch.float16)
    weight = from_float(draw.normal(4, 48).cpu(), "u4", 24).to(DEVICE)
    for call in (
        lambda: packed_linear(draw.normal(2, 48), weight, backend="triton"),
        lambda: unpack_weight(weight, torch.float16, backend="triton"),
    ):
        with pytest.raises(RuntimeError, match="groups of 24 columns are not a multiple of 32"):
            call()
    with pytest.raises(RuntimeError, match="no kernel computes in float64"):
        packed_linear(draw.normal(2, 48).double(), weight, backend="triton")


def test_rows_of_any_stride_and_shape() -> None:
    draw, weight = Source(torch.float16), weight_of("u4", "zero")
    wide = draw.normal(2, 3, 80)
    views = (wide[..., 10:], draw.normal(70, 3).t(), wide[:, 0, :70], wide[:0, ..., :70])
    for x in views:
        assert both(x, weight, None, route="fused") <= 1e-3


def test_many_splits_and_one_add_up_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    from tessella.kernels.packed_linear import launches

    draw = Source(torch.float32)
    weight, x, bias = weight_of("bin2", "17-rows-even"), draw.normal(17, 512), draw.normal(64)
    split = packed_linear(x, weight, bias, activations="int8", backend="triton")
    monkeypatch.setattr(launches, "MAX_SPLITS", 1)
    whole = packed_linear(x, weight, bias, activations="int8", backend="triton")
    assert relative_l2(split, whole) <= FLOAT32


def test_layers() -> None:
    """The prepacked copy is made once, and anew for another state."""
    draw = Source(torch.float16)
    rng = torch.Generator().manual_seed(0)

    def float_layers() -> tuple[torch.nn.Conv2d, torch.nn.Linear]:
        conv, linear = torch.nn.Conv2d(32, 8, 3, padding=1), torch.nn.Linear(8, 4)
        for parameter in (*conv.parameters(), *linear.parameters()):
            parameter.data = torch.randn(parameter.shape, generator=rng)
        return conv, linear

    def packed(backend: Any, conv: torch.nn.Conv2d, linear: torch.nn.Linear) -> torch.nn.Module:
        return torch.nn.Sequential(
            PackedConv2d.from_conv(conv, "tern3", backend=backend),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            PackedLinear.from_linear(linear, "bin1", backend=backend),
        ).to(DEVICE)

    one, two = float_layers(), float_layers()
    x = draw.normal(2, 32, 5, 7)
    kernels = packed("triton", *one)
    for layers in (one, two):
        reference = packed("reference", *layers)
        kernels.load_state_dict(reference.state_dict())
        assert relative_l2(kernels(x), reference(x)) <= 1e-3
        handle = kernels[3]._prepacked
        assert handle is not None and kernels(x).isfinite().all()
        assert kernels[3]._prepacked is handle


def test_compiles_into_one_graph() -> None:
    draw, weight = Source(torch.float16), prepack(weight_of("u4", "g64-zero"))
    layer = PackedLinear(weight.stored, backend="triton").prepare()

    def step(x: Tensor) -> Tensor:
        return packed_linear(x, weight, activations="int8", backend="triton") + layer(x)

    x = draw.normal(3, 320)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="call `prepare` on every packed layer"):
        torch.compile(PackedLinear(weight.stored, backend="triton"), fullgraph=True)(x)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), step(x))


@pytest.mark.skipif(INTERPRETED, reason="too many programs for the interpreter")
@pytest.mark.parametrize("rows", [1, 16, 64, 300, 4096])
@pytest.mark.parametrize("tag", NUM_CODES)
def test_sizes_of_generators(tag: str, rows: int) -> None:
    draw = Source(torch.bfloat16)
    for group in (None, 64):
        weight = prepack(from_float(draw.normal(1024, 4096).cpu(), tag, group).to(DEVICE))
        x, bias = draw.normal(rows, 4096), draw.normal(1024)
        for settings in ({"route": "fused"}, {"route": "unpack"}, {"activations": "int8"}):
            assert both(x, weight, bias, **settings) <= ROUNDED[torch.bfloat16]


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
def test_runs_in_a_cuda_graph() -> None:
    draw = Source(torch.bfloat16)
    weight, x = prepack(weight_of("u4", "17-rows-even")), draw.normal(17, 512)

    def step() -> Tensor:
        return packed_linear(x, weight) + packed_linear(x, weight, activations="int8")

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.copy_(draw.normal(17, 512))
    graph.replay()
    assert torch.equal(captured, step())
