"""Binarized attention without Triton: against loops, straight-through autograd and itself."""

import itertools
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tessella.kernels.binary_attention.op import (
    _binary_attention,
    _binary_attention_backward,
    binary_attention,
)
from tessella.kernels.binary_attention.reference import binary_sign, mean_magnitude, signs
from tessella.tests.cases import over
from tessella.tests.kernels.contract import relative_l2

METHODS = pytest.mark.parametrize("method", ["bibert", "bivit", "binary_qk"])
SETTINGS = pytest.mark.parametrize(
    ("method", "row_norm"),
    [("bibert", False), ("bivit", False), ("bivit", True), ("binary_qk", False)],
    ids=["bibert", "bivit", "bivit-row-norm", "binary_qk"],
)


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(
    method: str,
    *,
    queries: int = 5,
    keys: int = 7,
    width: int = 4,
    masked: bool = True,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Any]:
    """Two samples, three heads; the second sample lacks some keys."""
    given: dict[str, Any] = {
        "q": rand(2, queries, 3, width, dtype=dtype),
        "k": rand(2, keys, 3, width, seed=1, dtype=dtype),
        "v": rand(2, keys, 3, width, seed=2, dtype=dtype),
        "method": method,
    }
    if masked:
        given["valid"] = torch.arange(keys) < torch.tensor([[keys], [max(1, keys - 3)]])
    if method == "binary_qk":
        given["bias"] = rand(3, queries, keys, seed=3, dtype=dtype)
    return given


def by_loops(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    method: str,
    valid: Tensor | None = None,
    bias: Tensor | None = None,
    row_norm: bool = False,
) -> Tensor:
    """One query after the other, in Python numbers."""

    def sign(x: float) -> float:
        return 1.0 if x >= 0 else -1.0

    def magnitude(x: Tensor, tokens: list[int]) -> float:
        values = [abs(float(c)) for n in tokens for c in x[n]]
        return sum(values) / max(1, len(values))

    (batch, num_queries, heads, width), num_keys = q.shape, k.shape[1]
    out = torch.zeros(batch, num_queries, heads, width, dtype=torch.float64)
    for b, h, i in itertools.product(range(batch), range(heads), range(num_queries)):
        real = [j for j in range(num_keys) if valid is None or valid[b, j]]
        factor = 1 / math.sqrt(width)
        if method == "binary_qk":
            factor *= magnitude(q[b, :, h], list(range(num_queries))) * magnitude(k[b, :, h], real)
        scores, ones = {}, {}
        for j in real:
            pairs = [(float(x), float(y)) for x, y in zip(q[b, i, h], k[b, j, h], strict=True)]
            if method != "bivit":
                pairs = [(sign(x), sign(y)) for x, y in pairs]
            scores[j] = factor * sum(x * y for x, y in pairs)
            if bias is not None:
                scores[j] += float(bias[h, i, j])
        total = sum(math.exp(s) for s in scores.values())
        p = {j: math.exp(s) / total for j, s in scores.items()}
        for j in real:
            ones[j] = scores[j] > 1e-9 if method == "bibert" else p[j] >= 0.25 * max(p.values())
        weights = p if method == "binary_qk" else {j: float(one) for j, one in ones.items()}
        if row_norm:
            weights = {j: weight / sum(ones.values()) for j, weight in weights.items()}
        for j, c in itertools.product(real, range(width)):
            value = float(v[b, j, h, c])
            out[b, i, h, c] += weights[j] * (sign(value) if method == "bibert" else value)
    return out


@METHODS
@over("masked", [False, True], ids=["all-keys", "masked"])
@over("shape", [(5, 7, 4), (1, 1, 1), (3, 9, 5)], ids=str)
def test_equals_loops(shape: tuple[int, int, int], masked: bool, method: str) -> None:
    queries, keys, width = shape
    given = inputs(method, queries=queries, keys=keys, width=width, masked=masked)
    found = binary_attention(**given)
    torch.testing.assert_close(found, by_loops(**given), rtol=0, atol=1e-14)


def test_row_norm_divides_by_the_number_of_ones() -> None:
    given = inputs("bivit") | {"row_norm": True}
    found = binary_attention(**given)
    torch.testing.assert_close(found, by_loops(**given), rtol=0, atol=1e-14)
    ones = binary_attention(**given | {"v": torch.ones_like(given["v"])})
    torch.testing.assert_close(ones, torch.ones_like(ones))


def straight_through(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    method: str,
    valid: Tensor | None = None,
    bias: Tensor | None = None,
    row_norm: bool = False,
) -> Tensor:
    """The forward with autograd's own gradients: hard values on soft paths, masks by -inf."""
    keep = torch.ones(k.shape[:2], dtype=torch.bool) if valid is None else valid
    keep = keep[:, None, None]
    soft = {"q": q.transpose(1, 2), "k": k.transpose(1, 2), "v": v.transpose(1, 2)}

    def hard(name: str) -> Tensor:
        x = soft[name]
        return torch.where(x >= 0, 1.0, -1.0) + x.clamp(-1, 1) - x.clamp(-1, 1).detach()

    if method == "bibert":
        scores = hard("q") @ hard("k").mT / q.shape[-1] ** 0.5
        window = torch.where(scores.abs() < 1, scores, scores.detach())
        weights = (scores > 0) + window - window.detach()
        return (weights.masked_fill(~keep, 0) @ hard("v")).transpose(1, 2)
    if method == "bivit":
        scores = soft["q"] @ soft["k"].mT / q.shape[-1] ** 0.5
    else:
        mean_q = soft["q"].abs().mean((-2, -1), keepdim=True)
        count = keep.sum(-1, keepdim=True) * q.shape[-1]
        mean_k = (soft["k"].abs() * keep.mT).sum((-2, -1), keepdim=True) / count
        scores = (mean_q * hard("q")) @ (mean_k * hard("k")).mT / q.shape[-1] ** 0.5
        scores = scores if bias is None else scores + bias
    p = scores.masked_fill(~keep, -math.inf).softmax(-1)
    if method == "binary_qk":
        return (p @ soft["v"]).transpose(1, 2)
    weights = (p >= 0.25 * p.amax(-1, keepdim=True)).to(p.dtype)
    weights = weights / weights.sum(-1, keepdim=True) if row_norm else weights
    return ((weights + p - p.detach()) @ soft["v"]).transpose(1, 2)


@SETTINGS
@pytest.mark.parametrize("masked", [False, True], ids=["all-keys", "masked"])
def test_gradients_are_straight_through(method: str, masked: bool, row_norm: bool) -> None:
    given = inputs(method, masked=masked, queries=6, keys=11, width=16) | {"row_norm": row_norm}
    given["v"][0, 0, 0, :4] = torch.tensor([1.0, -1.0, 0.0, -0.0])
    given["q"][0, 0, 0, :4] = given["k"][0, 0, 0, :4] = torch.tensor([1.0, -1.0, 0.0, -0.0])
    leaves = [name for name in ("q", "k", "v", "bias") if name in given]
    grad = rand(2, 6, 3, 16, seed=5)
    results = []
    for function in (binary_attention, straight_through):
        now = given | {name: given[name].detach().requires_grad_() for name in leaves}
        out = function(**now)
        results.append(torch.autograd.grad(out, [now[name] for name in leaves], grad))
    for name, found, expected in zip(leaves, *results, strict=True):
        torch.testing.assert_close(
            found, expected, rtol=0, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert found.any(), name


def test_windows_of_bibert_by_hand() -> None:
    """d = 4: one query, keys whose scores are 2, 1, 0, -1 and -2; |S| < 1 is the third alone."""
    q = torch.full((1, 1, 1, 4), 0.5, dtype=torch.float64)
    rows = [[1, 1, 1, 1], [1, 1, 1, -1], [1, 1, -1, -1], [1, -1, -1, -1], [-1, -1, -1, -1]]
    k = torch.tensor(rows, dtype=torch.float64).view(1, 5, 1, 4) * 0.5
    k[0, 2, 0, 0] = 1.0  # on the edge of the window
    k[0, 2, 0, 1] = 1.5  # outside
    v = torch.tensor([2.0, 1.0, -0.5, 0.5, 0.5], dtype=torch.float64)
    v = v.view(1, 5, 1, 1).expand(1, 5, 1, 4).clone()
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    out = binary_attention(q, k, v, method="bibert")
    assert out.flatten().tolist() == [2.0] * 4  # the first two keys, each a sign of +1
    out.sum().backward()
    assert v.grad[0, :, 0, 0].tolist() == [0, 1, 0, 0, 0]  # 2.0 is outside, -0.5 has no weight
    # dS = sum of the signs of v = -4 at the third key, over sqrt(d) = 2.
    assert q.grad.flatten().tolist() == [-2, -2, 2, 2]
    assert k.grad[0, 2, 0].tolist() == [-2, 0, -2, -2]
    assert not k.grad[0, [0, 1, 3, 4]].any()


def test_gradient_of_the_scale_by_hand() -> None:
    """One channel, one query and one key: a softmax over one score has no gradient but to v."""
    q, k = (torch.tensor([[[[x]]]], requires_grad=True) for x in (0.5, 2.0))
    v = torch.tensor([[[[3.0]]]], requires_grad=True)
    binary_attention(q, k, v, method="binary_qk").backward()
    assert v.grad.item() == 1 and q.grad.item() == k.grad.item() == 0
    # Two keys of signs +1 and -1, y = p_0 with S = +-c: dy/dc = 2 p_0 p_1, and c = |q| mean|k|.
    q = torch.tensor([0.5]).view(1, 1, 1, 1).requires_grad_()
    k = torch.tensor([3.0, -2.0]).view(1, 2, 1, 1).requires_grad_()
    v = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    binary_attention(q, k, v, method="binary_qk").backward()
    slope = 2 * torch.sigmoid(torch.tensor(2.5)) * torch.sigmoid(torch.tensor(-2.5))
    # q: by its sign (|q| <= 1) c's share mean|k| * |q|, and by its mean the sign times mean|k|.
    torch.testing.assert_close(q.grad.flatten()[0], slope * 2.5 * (0.5 + 1))
    # k: outside the window of the sign, so the mean alone, |q| / 2 each way.
    torch.testing.assert_close(k.grad.flatten(), slope * torch.tensor([0.25, -0.25]))


def test_binary_sign_and_its_window() -> None:
    x = torch.tensor([-1.5, -1.0, -0.3, -0.0, 0.0, 0.3, 1.0, 1.5], requires_grad=True)
    y = binary_sign(x)
    assert y.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1] == signs(x.detach()).tolist()
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 1, 0]


def test_published_bivit_binarizes_its_inputs_first() -> None:
    """Its module: signs of q, k and v, threshold on the softmax, gradients through all of them."""
    q, k, v = (rand(2, 9, 3, 16, seed=s).requires_grad_() for s in range(3))
    found = binary_attention(*(binary_sign(x) for x in (q, k, v)), method="bivit")
    expected = straight_through(*(binary_sign(x) for x in (q, k, v)), method="bivit")
    torch.testing.assert_close(found, expected)
    pairs = zip(
        torch.autograd.grad(found.sum(), [q, k, v]),
        torch.autograd.grad(expected.sum(), [q, k, v]),
        strict=True,
    )
    for ours, exact in pairs:
        torch.testing.assert_close(ours, exact)


def test_a_row_of_bivit_has_at_least_one_one() -> None:
    given = inputs("bivit", queries=50, keys=33)
    given["q"] = given["q"] * 100
    given["v"] = torch.ones_like(given["v"])
    found = binary_attention(**given)
    assert found.min() >= 1 and found.max() <= 33 and found.unique().numel() > 1
    torch.testing.assert_close(found, found.round(), rtol=0, atol=0)


def test_bibert_with_positive_scores_is_the_sum_of_the_signs_of_v() -> None:
    given = inputs("bibert", queries=4, keys=9)
    given |= {"q": given["q"].abs(), "k": given["k"].abs()}
    expected = (signs(given["v"]) * given["valid"][..., None, None]).sum(1, keepdim=True)
    assert torch.equal(binary_attention(**given), expected.expand(-1, 4, -1, -1))


@METHODS
def test_order_of_keys_changes_nothing(method: str) -> None:
    given = inputs(method, keys=11)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(4))
    permuted = given | {n: given[n][:, order] for n in ("k", "v", "valid")}
    if "bias" in given:
        permuted["bias"] = given["bias"][..., order]
    torch.testing.assert_close(binary_attention(**permuted), binary_attention(**given))


@METHODS
def test_a_sample_does_not_depend_on_its_batch(method: str) -> None:
    given = inputs(method)
    found = binary_attention(**given)
    for i in range(2):
        alone = given | {n: given[n][i : i + 1] for n in ("q", "k", "v", "valid")}
        torch.testing.assert_close(binary_attention(**alone), found[i : i + 1])


@METHODS
def test_invalid_keys_are_as_good_as_absent(method: str) -> None:
    given = inputs(method)
    given["k"][1, 4:] = float("nan")
    given["v"][1, 4:] = float("inf")
    leaves = {n: given[n].requires_grad_() for n in ("q", "k", "v")}
    found = binary_attention(**given)
    cut = {n: given[n][1:, :4] for n in ("k", "v")}
    short = given | cut | {"q": given["q"][1:], "valid": None}
    if "bias" in given:
        short["bias"] = given["bias"][..., :4]
    torch.testing.assert_close(found[1:], binary_attention(**short))
    found.sum().backward()
    for name, leaf in leaves.items():
        assert leaf.grad.isfinite().all(), name
    assert not leaves["k"].grad[1, 4:].any() and not leaves["v"].grad[1, 4:].any()


@SETTINGS
def test_nan_shows_in_the_rows_that_read_it(method: str, row_norm: bool) -> None:
    """And nowhere else: not in another sample or head, nor in rows without valid keys."""
    given = inputs(method) | {"row_norm": row_norm}
    given["valid"] = torch.tensor([[False], [True]]).expand(2, 7)
    for name in ("q", "k", "v"):
        wrong = given[name].clone()
        wrong[:, 2, 1, 3] = float("nan")
        expected = torch.zeros(2, 5, 3, 4, dtype=torch.bool)
        rows = slice(2, 3) if name == "q" and method != "binary_qk" else slice(None)
        expected[1, rows, 1, slice(3, 4) if name == "v" else slice(None)] = True
        assert torch.equal(binary_attention(**given | {name: wrong}).isnan(), expected), name


def test_meta_tensors_have_a_shape() -> None:
    q = torch.empty(2, 5, 3, 4, device="meta")
    found = binary_attention(q, q, q, method="bibert")
    assert found.is_meta and found.shape == q.shape


@SETTINGS
def test_no_valid_key_gives_zero_and_no_gradient(method: str, row_norm: bool) -> None:
    given = inputs(method) | {"row_norm": row_norm}
    given["valid"] = torch.tensor([[False], [True]]).expand(2, 7)
    leaves = {n: given[n].requires_grad_() for n in ("q", "k", "v")}
    found = binary_attention(**given)
    assert not found[0].any() and found[1].any()
    found.square().sum().backward()
    for name, leaf in leaves.items():
        assert leaf.grad.isfinite().all() and not leaf.grad[0].any(), name


@METHODS
def test_one_key_returns_its_value(method: str) -> None:
    given = inputs(method, keys=1, masked=False)
    if method == "bibert":
        given |= {"q": given["q"].abs(), "k": given["k"].abs()}
    value = signs(given["v"]) if method == "bibert" else given["v"]
    torch.testing.assert_close(binary_attention(**given), value.expand(-1, 5, -1, -1))


@METHODS
def test_layout_changes_nothing(method: str) -> None:
    given = inputs(method)
    expected = binary_attention(**given)
    strided = dict(given)
    for name in ("q", "k", "v"):
        room = torch.full((4, 3, given[name].shape[1] + 2, 9), float("nan"), dtype=torch.float64)
        view = room.permute(0, 2, 1, 3)[::2, 1:-1, :, 1::2]
        strided[name] = view.copy_(given[name])
    strided["valid"] = given["valid"].t().contiguous().t()
    found = binary_attention(**strided)
    assert torch.equal(found, expected) and found.is_contiguous()


@METHODS
@over(
    ("dtype", "tolerance"),
    [(torch.float32, 3e-7), (torch.float16, 2.5e-4), (torch.bfloat16, 2e-3)],
    ids=["float32", "float16", "bfloat16"],
)
def test_types(method: str, dtype: torch.dtype, tolerance: float) -> None:
    """Output and gradients in the type of q, as float64 of the same numbers; under autocast too."""
    given = inputs(method, queries=33, keys=40, width=32, dtype=dtype)
    wide = {n: x.double() if torch.is_tensor(x) and n != "valid" else x for n, x in given.items()}
    results = []
    for now in (given, wide):
        leaves = [now[n].requires_grad_() for n in ("q", "k", "v")]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = binary_attention(**now)
        results.append((out.detach(), *torch.autograd.grad(out.sum(), leaves)))
    for name, found, expected in zip(("output", "q", "k", "v"), *results, strict=True):
        assert found.dtype == dtype, name
        error = relative_l2(found, expected)
        assert error <= tolerance, f"{name}: {error}"


def test_mean_magnitude() -> None:
    x, valid = rand(2, 5, 3, 4), torch.tensor([[True] * 5, [True, False, True, False, False]])
    torch.testing.assert_close(mean_magnitude(x), x.abs().mean((1, 3)))
    expected = torch.stack([x[0].abs().mean((0, 2)), x[1, [0, 2]].abs().mean((0, 2))])
    torch.testing.assert_close(mean_magnitude(x, valid), expected)
    assert not mean_magnitude(x, torch.zeros_like(valid)).any()


@pytest.mark.parametrize(
    ("method", "expected"), [("binary_qk", 0.732), ("bivit", 0.633), ("bibert", 0.483)]
)
def test_use_without_training_destroys_attention(method: str, expected: float) -> None:
    """Cosine to softmax attention on random numbers, as the reference's docstring says it."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1024, 8, 64) for _ in range(3))
    found = binary_attention(q, k, v, method=method)
    exact = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    cosine = float(F.cosine_similarity(found.flatten(), exact.flatten(), 0))
    assert abs(cosine - expected) < 0.001


WRONG: dict[str, dict[str, Any]] = {
    "method: expected one of ('bibert', 'bivit', 'binary_qk'), found 'xnor'": {"method": "xnor"},
    "q: expected (B, Nq, H, d) float without empty axes, found (2, 5, 3) torch": {
        "q": torch.zeros(2, 5, 3)
    },
    "q: expected (B, Nq, H, d) float without empty axes, found (2, 0, 3, 4)": {
        "q": torch.zeros(2, 0, 3, 4)
    },
    "q: expected (B, Nq, H, d) float without empty axes, found (2, 5, 3, 4) torch.int64": {
        "q": torch.zeros(2, 5, 3, 4, dtype=torch.int64)
    },
    "k: expected (B, Nk, H, d) without empty axes, found (2, 7, 12)": {"k": torch.zeros(2, 7, 12)},
    "k: expected (2, 7, 3, 4) torch.float64 on cpu, found (2, 7, 3, 5)": {
        "k": torch.zeros(2, 7, 3, 5, dtype=torch.float64)
    },
    "k: expected (2, 7, 3, 4) torch.float64 on cpu, found (2, 7, 3, 4) torch.float32": {
        "k": torch.zeros(2, 7, 3, 4)
    },
    "v: expected (2, 7, 3, 4) torch.float64": {"v": torch.zeros(2, 6, 3, 4, dtype=torch.float64)},
    "valid: expected (2, 7) torch.bool on cpu, found (2, 5) torch.bool": {
        "valid": torch.ones(2, 5, dtype=torch.bool)
    },
    "valid: expected (2, 7) torch.bool on cpu, found (2, 7) torch.uint8": {
        "valid": torch.ones(2, 7, dtype=torch.uint8)
    },
    "bias: expected (3, 5, 7) torch.float64": {"bias": rand(5, 7)},
    "bias: expected None with method 'bivit'": {"method": "bivit"},
    "row_norm: expected False with method 'binary_qk', found True": {"row_norm": True},
    "backend: expected one of": {"backend": "cuda"},
}


@over("message", WRONG)
def test_wrong_input_is_one_clear_error(message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        binary_attention(**inputs("binary_qk") | WRONG[message])


def test_triton_by_name_is_never_replaced() -> None:
    given = inputs("bibert", dtype=torch.float32)
    with pytest.raises(RuntimeError, match="binary_attention: backend 'triton' cannot run here"):
        binary_attention(**given, backend="triton")


@pytest.mark.slow
@METHODS
def test_ops_are_registered_right(method: str) -> None:
    given = inputs(method, dtype=torch.float32)
    tensors = [given[n] for n in ("q", "k", "v")]
    bias = given.get("bias")
    leaves = [x.requires_grad_() for x in tensors]
    bias = None if bias is None else bias.requires_grad_()
    row_norm = method == "bivit"
    for valid in (None, given["valid"]):
        torch.library.opcheck(
            _binary_attention, (*leaves, valid, bias, method, row_norm, "reference")
        )
        plain = [x.detach() for x in leaves]
        grad = rand(2, 5, 3, 4, seed=7, dtype=torch.float32)
        detached = None if bias is None else bias.detach()
        backward = (grad, *plain, valid, detached, method, row_norm)
        torch.library.opcheck(_binary_attention_backward, backward)


@pytest.mark.slow
@METHODS
def test_compiles_into_one_graph(method: str) -> None:
    given = inputs(method)
    names = [n for n in ("q", "k", "v", "bias") if n in given]
    leaves = [given[n].requires_grad_() for n in names]

    def loss(q: Tensor) -> Tensor:
        return binary_attention(**given | {"q": q}).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    found = torch.autograd.grad(compiled(given["q"]), leaves)
    expected = torch.autograd.grad(loss(given["q"]), leaves)
    for name, ours, exact in zip(names, found, expected, strict=True):
        torch.testing.assert_close(ours, exact, msg=lambda m, n=name: f"{n}: {m}")


def test_example_in_the_docstring() -> None:
    q = k = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
    v = torch.tensor([3.0, 5.0]).view(1, 2, 1, 1)
    assert binary_attention(q, k, v, method="bivit").flatten().tolist() == [3, 5]
