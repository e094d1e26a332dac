"""Low-bit attention without Triton: against exact attention, plain formulas and itself."""

import types
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tessella.kernels import backends
from tessella.kernels.low_bit_attention import op
from tessella.kernels.low_bit_attention.op import _low_bit_attention, low_bit_attention
from tessella.kernels.low_bit_attention.reference import (
    BLOCK,
    quantize_blocks,
    quantize_channels,
    round_int8,
)
from tessella.tests.cases import over

PRECISIONS = ("int8", "int8_fp8", "fp8")
SUMS = 2e-6
"""Float32 sums of at most a few hundred terms in two orders, relative."""


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(
    batch: int = 2,
    queries: int = 70,
    keys: int = 130,
    heads: int = 2,
    dim: int = 32,
    *,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Standard normal q, k and v."""
    shapes = {"q": queries, "k": keys, "v": keys}
    return {
        name: normal(batch, tokens, heads, dim, seed=seed, dtype=dtype)
        for seed, (name, tokens) in enumerate(shapes.items())
    }


def flags(batch: int, keys: int) -> Tensor:
    """Valid with probability .7."""
    return torch.rand(batch, keys, generator=torch.Generator().manual_seed(9)) < 0.7


def exact(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None = None) -> Tensor:
    """Attention in float64."""
    heads = (x.double().transpose(1, 2) for x in (q, k, v))
    mask = None if valid is None else valid[:, None, None]
    return F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2)


def relative(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected| in L2."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


# Least cosine, largest relative L1 distance, largest RMSE. The worst of the three head dims:
ACCURACY = {
    ("int8", 1): (0.9998, 0.02, 1.1e-3),  # .99991, .0131, 9.5e-4
    ("int8_fp8", 1): (0.999, 0.05, 3e-3),  # .99929, .0377, 2.7e-3
    ("fp8", 1): (0.998, 0.06, 4.5e-3),  # .99857, .0521, 4.0e-3
    ("int8", 3): (0.9996, 0.027, 1.15e-2),  # .99968, .0243, 1.04e-2
    ("int8_fp8", 3): (0.999, 0.05, 1.7e-2),  # .99928, .0364, 1.56e-2
    ("fp8", 3): (0.995, 0.095, 4.2e-2),  # .99596, .0849, 3.75e-2
}
"""Bounds by precision and factor of the queries; with 3 few weights count. Numbers behind "#": the
errors measured."""


@over("dim", [32, 64, 128])
@over(("precision", "sharpness"), ACCURACY)
def test_accuracy(precision: str, sharpness: int, dim: int) -> None:
    """Against float64, with values of mean 0: a common mean would hide every error."""
    given = inputs(1, 512, 512, 4, dim)
    given["q"] = given["q"] * sharpness
    expected = exact(**given)
    error = low_bit_attention(**given, precision=precision).double() - expected
    cosine = F.cosine_similarity((expected + error).flatten(), expected.flatten(), 0)
    least_cosine, largest_l1, largest_rmse = ACCURACY[precision, sharpness]
    assert cosine >= least_cosine
    assert error.abs().sum() / expected.abs().sum() <= largest_l1
    assert error.square().mean().sqrt() <= largest_rmse


# Error with smoothing over that without. Measured .26, .63 and .38: FP8 values cost the same.
SMOOTHED = {"int8": 0.3, "int8_fp8": 0.7, "fp8": 0.45}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_smoothing_helps_keys_with_offsets(precision: str) -> None:
    """Channels of mean 2, a tenth of them of mean 12."""
    given = inputs(1, 256, 256, 4, 64)
    offset = normal(4, 64, seed=5) + 2
    offset[:, ::10] *= 6
    given["k"] = given["k"] + offset
    expected = exact(**given)
    errors = [
        relative(low_bit_attention(**given, precision=precision, smooth_k=smooth), expected)
        for smooth in (True, False)
    ]
    assert errors[0] < SMOOTHED[precision] * errors[1]


def dense(q: Tensor, k: Tensor, v: Tensor, *, low: torch.dtype | None) -> Tensor:
    """INT8 scores, softmax over all keys at once, P and V rounded to `low`; K as given.

    Codes by their definition: x / s and a half more, cut off.
    """

    def coded(x: Tensor) -> Tensor:
        rows = []
        for block in x.split(BLOCK, 2):
            scale = block.abs().amax((2, 3), keepdim=True) / 127
            rows.append(torch.sign(block) * (block.abs() / scale + 0.5).floor() * scale)
        return torch.cat(rows, 2)

    queries, keys, values = (x.transpose(1, 2).double() for x in (q, k, v))
    scores = coded(queries * q.shape[-1] ** -0.5) @ coded(keys).mT
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    total = weights.sum(-1, keepdim=True)
    if low is not None:
        weights, values = weights.to(low).double(), values.to(low).double()
    return (weights @ values / total).transpose(1, 2)


def test_one_block_of_keys_as_written() -> None:
    given = inputs(2, 70, BLOCK, 2, 40)
    found = low_bit_attention(**given, smooth_k=False)
    # A weight at the middle of two bfloat16 numbers may go either way: measured 1e-5.
    assert relative(found, dense(**given, low=torch.bfloat16)) <= 2e-5
    given["k"] = given["k"] - given["k"].mean(1, keepdim=True)
    assert relative(low_bit_attention(**given), dense(**given, low=torch.bfloat16)) <= 2e-5


def test_blocks_of_keys_make_one_softmax() -> None:
    given = inputs(2, 70, 3 * BLOCK + 5, 2, 40, dtype=torch.float64)
    found = low_bit_attention(**given, smooth_k=False)
    # What rounding P and V to bfloat16 leaves: measured 2.1e-3.
    assert relative(found, dense(**given, low=None)) <= 2.5e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_int8_blocks(dtype: torch.dtype) -> None:
    x = normal(2, 3, 150, 8, dtype=dtype) * torch.linspace(0.01, 40, 150)[:, None]
    codes, scales = quantize_blocks(x, fp8=False)
    assert codes.dtype == dtype and torch.equal(codes, codes.round())
    assert ((x - codes * scales).abs() <= scales / 2 * (1 + 1e-5)).all()
    for block, scale in zip(codes.split(BLOCK, 2), scales.split(BLOCK, 2), strict=True):
        assert torch.equal(block.abs().amax((2, 3)), torch.full((2, 3), 127, dtype=dtype))
        assert torch.equal(scale, scale[:, :, :1].expand_as(scale))
    assert len(scales[0, 0].unique()) == 3


def test_halves_round_away_from_zero() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49999997, -0.49999997, 126.5, 0.0])
    expected = torch.tensor([1.0, 2, 3, -1, -2, -3, 0, 0, 127, 0])
    assert torch.equal(round_int8(2 * x), expected)


def test_fp8_blocks_and_channels() -> None:
    """e4m3 keeps 4 bits of a number: half a unit is a sixteenth, and 2^-10 near zero."""
    x = normal(2, 3, 150, 8) * torch.linspace(0.01, 40, 150)[:, None]
    for codes, scales in (quantize_blocks(x, fp8=True), quantize_channels(x)):
        assert torch.equal(codes, codes.to(torch.float8_e4m3fn).float())
        assert ((x - codes * scales).abs() <= x.abs() / 16 * (1 + 1e-6) + scales * 2**-10).all()
        assert codes.abs().max() == 448
    assert quantize_channels(x)[1].shape == (2, 3, 1, 8)


def test_zeros_have_finite_scales() -> None:
    zeros = torch.zeros(1, 1, 70, 8)
    for codes, scales in (
        quantize_blocks(zeros, fp8=False),
        quantize_blocks(zeros, fp8=True),
        quantize_channels(zeros),
    ):
        assert not codes.any() and (scales > 0).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("smooth", [True, False])
def test_blocks_of_zeros(precision: str, smooth: bool) -> None:
    """All scores equal: the mean of the values."""
    given = inputs()
    for name in ("q", "k"):
        zero = given | {name: torch.zeros_like(given[name])}
        found = low_bit_attention(**zero, precision=precision, smooth_k=smooth)
        expected = given["v"].mean(1, keepdim=True).expand_as(found)
        # Rounding of V alone: measured 1.2e-4 and 1.8e-3, where the mean has .068.
        assert (found - expected).abs().mean() <= (1.5e-4 if precision == "int8" else 2.2e-3)
    assert not low_bit_attention(
        **given | {"v": torch.zeros_like(given["v"])}, precision=precision
    ).any()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_key_gives_its_value(precision: str) -> None:
    """Exactly up to the value's own rounding; a channel of one value has that as its scale."""
    given = inputs(keys=1, dtype=torch.bfloat16)
    found = low_bit_attention(**given, precision=precision)
    assert torch.equal(found, given["v"].expand_as(found))
    given = inputs(keys=1)
    found = low_bit_attention(**given, precision=precision)
    tolerance = 2**-8 if precision == "int8" else 1e-6
    torch.testing.assert_close(found, given["v"].expand_as(found), rtol=tolerance, atol=0)


# Largest relative error where all values of a channel are the same: what rounding P leaves of
# sum(P) / l. Measured 6.7e-4, 7.9e-3 and 1.1e-2.
CONSTANT = {"int8": 8e-4, "int8_fp8": 9e-3, "fp8": 1.3e-2}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_constant_values_stay(precision: str) -> None:
    given = inputs()
    value = normal(2, 1, 2, 32, seed=7, dtype=torch.bfloat16).float()
    given["v"] = value.expand_as(given["v"])
    found = low_bit_attention(**given, precision=precision)
    torch.testing.assert_close(found, value.expand_as(found), rtol=CONSTANT[precision], atol=0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_constant_of_all_keys_changes_nothing(precision: str) -> None:
    """Keys and constant are multiples of 1/16, so that their sum is not rounded."""
    given = inputs()
    given["k"] = (given["k"] * 16).round() / 16
    moved = given["k"] + (normal(2, 32, seed=3) * 320).round() / 16
    expected = low_bit_attention(**given, precision=precision)
    found = low_bit_attention(**given | {"k": moved}, precision=precision)
    # The mean is rounded at its own size, and codes near the middle flip: measured 7.9e-4.
    assert relative(found, expected) <= 1e-3
    unsmoothed = low_bit_attention(**given | {"k": moved}, precision=precision, smooth_k=False)
    assert relative(unsmoothed, expected) > 0.1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_order_of_keys_in_a_block_is_nothing(precision: str) -> None:
    """Up to the order of float32 sums."""
    given = inputs(keys=2 * BLOCK) | {"valid": flags(2, 2 * BLOCK)}
    order = torch.cat(
        [torch.randperm(BLOCK, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    )
    order[BLOCK:] += BLOCK
    moved = given | {name: given[name][:, order] for name in ("k", "v", "valid")}
    found = low_bit_attention(**moved, precision=precision, smooth_k=False)
    expected = low_bit_attention(**given, precision=precision, smooth_k=False)
    assert relative(found, expected) <= SUMS


@pytest.mark.parametrize("precision", PRECISIONS)
def test_keys_that_are_not_valid_do_not_count(precision: str) -> None:
    """The same bits whatever they hold; a valid prefix is a shorter sequence."""
    given = inputs(keys=150)
    valid = flags(2, 150)
    expected = low_bit_attention(**given, valid=valid, precision=precision)
    hidden = ~valid[..., None, None]
    other = {"k": given["k"].masked_fill(hidden, -1e4), "v": given["v"].masked_fill(hidden, 777)}
    assert torch.equal(
        low_bit_attention(**given | other, valid=valid, precision=precision), expected
    )
    prefix = torch.arange(150).expand(2, -1) < 100
    found = low_bit_attention(**given, valid=prefix, precision=precision)
    short = given | {name: given[name][:, :100] for name in "kv"}
    assert relative(found, low_bit_attention(**short, precision=precision)) <= SUMS
    everything = low_bit_attention(**given, valid=torch.ones_like(valid), precision=precision)
    assert relative(everything, low_bit_attention(**given, precision=precision)) <= SUMS
    limit = {"int8": 0.02, "int8_fp8": 0.05, "fp8": 0.07}[precision]
    assert relative(expected, exact(**given, valid=valid)) <= limit


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_without_a_valid_key_are_zero(precision: str) -> None:
    given = inputs()
    valid = flags(2, 130)
    valid[1] = False
    found = low_bit_attention(**given, valid=valid, precision=precision)
    assert found[0].isfinite().all() and not found[1].any()
    valid[1, -1] = True  # in the last block of keys, after two of none
    found = low_bit_attention(**given, valid=valid, precision=precision)
    torch.testing.assert_close(found[1], given["v"][1, -1:].expand(70, 2, 32), rtol=1e-2, atol=0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nan_shows_in_what_is_computed_from_it(precision: str) -> None:
    """Not in another image or head, and not in rows without any valid key."""
    given = inputs(batch=3)
    valid = flags(3, 130)
    valid[0], valid[1, 5] = False, True
    for name in "qk":
        wrong = given[name].clone()
        wrong[:2, 5, 1, 3] = float("nan")
        found = low_bit_attention(**given | {name: wrong}, valid=valid, precision=precision)
        expected = torch.zeros(found.shape, dtype=torch.bool)
        expected[1, : BLOCK if name == "q" else None, 1] = True
        assert torch.equal(found.isnan(), expected), name
    wrong = given["v"].clone()
    wrong[1, 5, 1, 3] = float("nan")
    found = low_bit_attention(**given | {"v": wrong}, valid=valid, precision=precision)
    expected = torch.zeros(found.shape, dtype=torch.bool)
    expected[1, :, 1, 3] = True
    assert torch.equal(found.isnan(), expected)


def test_meta_tensors_have_a_shape() -> None:
    given = {name: x.to("meta") for name, x in inputs(dtype=torch.bfloat16).items()}
    found = low_bit_attention(**given)
    assert found.is_meta and found.shape == (2, 70, 2, 32) and found.dtype == torch.bfloat16


@pytest.mark.parametrize("precision", PRECISIONS)
def test_images_do_not_see_each_other(precision: str) -> None:
    """Up to the order of float32 sums, which a matrix product chooses by its size."""
    given = inputs(batch=3) | {"valid": flags(3, 130)}
    found = low_bit_attention(**given, precision=precision)
    for i in range(3):
        alone = low_bit_attention(
            **{name: x[i : i + 1] for name, x in given.items()}, precision=precision
        )
        assert relative(alone[0], found[i]) <= SUMS


@pytest.mark.parametrize("precision", PRECISIONS)
def test_strides_change_nothing(precision: str) -> None:
    qkv = normal(2, 70, 3, 2, 40)
    views = dict(zip("qkv", qkv.unbind(2), strict=True))
    valid = flags(70, 2).t()
    expected = low_bit_attention(
        **{name: x.contiguous() for name, x in views.items()},
        valid=valid.contiguous(),
        precision=precision,
    )
    assert expected.is_contiguous()
    found = low_bit_attention(**views, valid=valid, precision=precision)
    assert found.is_contiguous() and torch.equal(found, expected)
    apart = {name: x.mT.contiguous().mT for name, x in views.items()}
    assert torch.equal(low_bit_attention(**apart, valid=valid, precision=precision), expected)


@over("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@over("precision", PRECISIONS)
def test_types(precision: str, dtype: torch.dtype) -> None:
    given = inputs(dtype=dtype)
    found = low_bit_attention(**given, precision=precision)
    assert found.dtype == dtype and found.shape == (2, 70, 2, 32)
    limit = {"int8": 0.02, "int8_fp8": 0.05, "fp8": 0.07}[precision]
    assert relative(found, exact(**given)) <= limit


def test_autocast_casts_as_exact_attention_does() -> None:
    given = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = low_bit_attention(**given)
        wide = low_bit_attention(**{name: x.double() for name, x in given.items()})
    expected = low_bit_attention(**{name: x.bfloat16() for name, x in given.items()})
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)
    assert wide.dtype == torch.float64


def test_gradients_are_refused() -> None:
    given = inputs()
    for name in "qkv":
        needs = given | {name: given[name].clone().requires_grad_()}
        with pytest.raises(ValueError, match=f"{name}: needs a gradient.*straight_through"):
            low_bit_attention(**needs)
        with torch.no_grad():
            assert torch.equal(low_bit_attention(**needs), low_bit_attention(**given))


@pytest.mark.parametrize("masked", [False, True])
def test_straight_through_gives_the_gradients_of_exact_attention(masked: bool) -> None:
    given = inputs(dtype=torch.float64)
    valid = flags(2, 130) if masked else None
    leaves = [x.requires_grad_() for x in given.values()]
    grad = normal(2, 70, 2, 32, seed=8, dtype=torch.float64)
    out = low_bit_attention(*leaves, valid=valid, precision="fp8", straight_through=True)
    with torch.no_grad():
        assert torch.equal(out, low_bit_attention(*leaves, valid=valid, precision="fp8"))
    expected = torch.autograd.grad(exact(*leaves, valid=valid), leaves, grad)
    found = torch.autograd.grad(out, leaves, grad)
    for name, ours, theirs in zip("qkv", found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, msg=f"gradient of {name}")


def test_images_without_a_valid_key_have_no_gradient() -> None:
    leaves = [x.requires_grad_() for x in inputs().values()]
    valid = flags(2, 130)
    valid[0] = False
    out = low_bit_attention(*leaves, valid=valid, straight_through=True)
    for grad in torch.autograd.grad(out.square().sum() + out.sum(), leaves):
        assert not grad[0].any() and grad[1].isfinite().all() and grad[1].any()


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_registered_op(precision: str) -> None:
    leaves = [x.requires_grad_() for x in inputs(2, 9, 11).values()]
    arguments = (*leaves, flags(2, 11), precision, True, "reference")
    torch.library.opcheck(_low_bit_attention, arguments)


def test_compiles_into_one_graph() -> None:
    qkv = normal(2, 30, 3, 2, 32).requires_grad_()
    valid = flags(2, 30)

    def attention(qkv: Tensor, valid: Tensor) -> Tensor:
        return low_bit_attention(*qkv.unbind(2), valid=valid, straight_through=True)

    results = []
    for function in (attention, torch.compile(attention, fullgraph=True, backend="aot_eager")):
        out = function(qkv, valid)
        results.append((out, *torch.autograd.grad(out.square().sum(), qkv)))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)


X = torch.zeros(2, 5, 2, 32)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "integers": ({"q": X.int()}, r"q: expected .*float.* found \(2, 5, 2, 32\) torch.int32"),
    "three-axes": ({"q": X[0]}, r"q: expected \(B, Nq, H, d\).* found \(5, 2, 32\)"),
    "no-image": ({"q": X[:0]}, r"q: .*without empty axes, found \(0, 5, 2, 32\)"),
    "no-query": ({"q": X[:, :0]}, r"q: .*without empty axes, found \(2, 0, 2, 32\)"),
    "dim-24": ({"q": X[..., :24]}, "q: expected a head dim of 32, 40, ... or 128, found 24"),
    "dim-33": ({"q": torch.zeros(2, 5, 2, 33)}, "head dim .* found 33"),
    "dim-136": ({"q": torch.zeros(2, 5, 2, 136)}, "head dim .* found 136"),
    "no-key": (
        {"k": X[:, :0]},
        r"k: expected \(2, Nk, 2, 32\) with Nk >= 1, found \(2, 0, 2, 32",
    ),
    "heads": ({"k": X[:, :, :1]}, r"k: expected \(2, Nk, 2, 32\).* found \(2, 5, 1, 32\)"),
    "key-axes": ({"k": X[0]}, r"k: expected \(2, Nk, 2, 32\).* found \(5, 2, 32\)"),
    "values": ({"v": X[:, :4]}, r"v: expected the shape of k, \(2, 5, 2, 32\), found \(2, 4"),
    "key-type": ({"k": X.half()}, "k: expected torch.float32 on cpu as q, found torch.float16"),
    "value-device": ({"v": X.to("meta")}, "v: expected torch.float32 on cpu .* on meta"),
    "valid-type": (
        {"valid": torch.ones(2, 5)},
        r"valid: .*torch.bool .* torch.float32",
    ),
    "valid-shape": ({"valid": torch.ones(2, 4).bool()}, r"valid: expected \(2, 5\) .* \(2, 4\)"),
    "precision": ({"precision": "int4"}, "precision: expected one of .*int8_fp8.* found 'int4'"),
    "backend": ({"backend": "cuda"}, "backend: expected one of .*, found 'cuda'"),
}


@over("case", BAD)
def test_bad_input(case: str) -> None:
    wrong, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        low_bit_attention(**{"q": X, "k": X, "v": X} | wrong)


def test_fp8_needs_ada_or_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "triton_refusal", lambda device, dtype: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    q: Any = types.SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.bfloat16)
    assert op._resolve("triton", q, "int8") == "triton"
    for precision in ("int8_fp8", "fp8"):
        message = f"{precision}: compute capability 8.6 is below 8.9"
        with pytest.raises(RuntimeError, match=message):
            op._resolve("triton", q, precision)
        with pytest.warns(UserWarning, match=message):
            assert op._resolve("auto", q, precision) == "reference"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert op._resolve("triton", q, "fp8") == "triton"
