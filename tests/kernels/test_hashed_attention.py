"""Hashed attention and its hash: against the full similarity matrix, plain formulas and itself."""

import copy
import io
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.kernels.binary_attention.hashing import KernelHash, _descend, hashed_attention
from tessella.kernels.binary_attention.reference import signs
from tessella.tests.cases import over


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(
    *, queries: int = 6, keys: int = 9, dtype: torch.dtype = torch.float64
) -> dict[str, Any]:
    """Codes of 5 bits, two samples, three heads; the second sample lacks some keys."""
    return {
        "q_hash": signs(rand(2, queries, 3, 5, dtype=dtype)),
        "k_hash": signs(rand(2, keys, 3, 5, seed=1, dtype=dtype)),
        "v": rand(2, keys, 3, 4, seed=2, dtype=dtype),
        "valid": torch.arange(keys) < torch.tensor([[keys], [keys - 3]]),
    }


def similarity(q_hash: Tensor, k_hash: Tensor, valid: Tensor | None) -> Tensor:
    """h_i . h_j + b + 1 of every pair, 0 for invalid keys, (B, H, Nq, Nk)."""
    weights = torch.einsum("bihn,bjhn->bhij", q_hash, k_hash) + q_hash.shape[-1] + 1
    return weights if valid is None else weights * valid[:, None, None]


@pytest.mark.parametrize("masked", [False, True], ids=["all-keys", "masked"])
def test_equals_the_full_similarity_matrix(masked: bool) -> None:
    given = inputs()
    if not masked:
        given["valid"] = None
    weights = similarity(given["q_hash"], given["k_hash"], given["valid"])
    assert (weights.min() >= 1 or masked) and weights.max() <= 11
    expected = weights / weights.sum(-1, keepdim=True)
    expected = torch.einsum("bhij,bjhd->bihd", expected, given["v"])
    torch.testing.assert_close(hashed_attention(**given), expected, rtol=0, atol=1e-14)


def test_own_value_as_published() -> None:
    """b + 1 times the token's own value in the numerator, and once per key in the denominator."""
    given = inputs(queries=9)
    weights = similarity(given["q_hash"], given["k_hash"], given["valid"])
    total = weights.sum(-1).transpose(1, 2)[..., None]
    products = torch.einsum("bihn,bjhn->bhij", given["q_hash"], given["k_hash"])
    products = products * given["valid"][:, None, None]
    own = 6 * given["v"] * given["valid"][..., None, None]
    expected = (torch.einsum("bhij,bjhd->bihd", products, given["v"]) + own) / total
    found = hashed_attention(**given, value_sum="own")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    assert not torch.allclose(found, hashed_attention(**given))


def test_gradients_are_those_of_the_formula() -> None:
    given = inputs()
    leaves = [given[name].requires_grad_() for name in ("q_hash", "k_hash", "v")]
    weights = similarity(given["q_hash"], given["k_hash"], given["valid"])
    expected = weights / weights.sum(-1, keepdim=True)
    expected = torch.einsum("bhij,bjhd->bihd", expected, given["v"])
    grad = rand(2, 6, 3, 4, seed=5)
    pairs = zip(
        ("q_hash", "k_hash", "v"),
        torch.autograd.grad(hashed_attention(**given), leaves, grad),
        torch.autograd.grad(expected, leaves, grad),
        strict=True,
    )
    for name, ours, exact in pairs:
        torch.testing.assert_close(ours, exact, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("value_sum", ["all", "own"])
def test_no_valid_key_gives_zero_and_no_gradient(value_sum: str) -> None:
    given = inputs(queries=9)
    given["valid"] = torch.tensor([[False], [True]]).expand(2, 9)
    given["v"][0] = float("nan")
    leaves = [given[name].requires_grad_() for name in ("q_hash", "k_hash", "v")]
    found = hashed_attention(**given, value_sum=value_sum)
    assert not found[0].any() and found[1].isfinite().all()
    for gradient in torch.autograd.grad(found.square().sum(), leaves):
        assert gradient.isfinite().all() and not gradient[0].any()


def test_one_key_returns_its_value() -> None:
    given = inputs(keys=4)
    given["valid"] = torch.arange(4) == torch.tensor([[0], [2]])
    expected = torch.stack([given["v"][0, 0], given["v"][1, 2]])[:, None].expand(2, 6, 3, 4)
    torch.testing.assert_close(hashed_attention(**given), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types_and_autocast(dtype: torch.dtype) -> None:
    given = inputs(dtype=dtype)
    wide = {n: x.double() if n != "valid" else x for n, x in given.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = hashed_attention(**given)
    assert found.dtype == dtype
    unit = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(found.double(), hashed_attention(**wide), rtol=1.1 * unit, atol=unit)


WRONG: dict[str, dict[str, Any]] = {
    "value_sum: expected one of ('all', 'own'), found 'none'": {"value_sum": "none"},
    "value_sum: 'own' expects as many queries as keys, found 6 and 9": {"value_sum": "own"},
    "q_hash: expected (B, Nq, H, b) float": {"q_hash": torch.zeros(2, 6, 3)},
    "q_hash: expected (B, Nq, H, b) float without empty axes, found (2, 6, 3, 5) torch.int8": {
        "q_hash": torch.zeros(2, 6, 3, 5, dtype=torch.int8)
    },
    "v: expected (B, Nk, H, d) without empty axes": {"v": torch.zeros(2, 9, 3, 0)},
    "k_hash: expected (2, 9, 3, 5) torch.float64": {"k_hash": rand(2, 9, 3, 4)},
    "v: expected (2, 9, 3, 4) torch.float64 on cpu, found (2, 9, 3, 4) torch.float32": {
        "v": torch.zeros(2, 9, 3, 4)
    },
    "valid: expected (2, 9) torch.bool": {"valid": torch.ones(2, 6, dtype=torch.bool)},
}


@over("message", WRONG)
def test_wrong_input_is_one_clear_error(message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        hashed_attention(**inputs() | WRONG[message])


def fitted(lr: float = 5e-4, seed: int = 3, num_bits: int = 8) -> tuple[KernelHash, Any, Tensor]:
    """A hash of two heads of 6 channels fitted to 40 tokens of two samples, and those."""
    x = rand(2, 40, 2, 6, dtype=torch.float32)
    hashing = KernelHash(2, 6, num_bits=num_bits, num_anchors=7)
    rng = torch.Generator().manual_seed(seed)
    return hashing, hashing.fit(x, rng=rng, num_neighbors=5, lr=lr), x


def test_codes_are_signs_of_centred_kernels() -> None:
    """sign(A (exp(-|x - anchor|^2 / (2 sigma)) - mean)) for one sample and head at a time."""
    hashing, _, x = fitted()
    codes = hashing(x)
    assert codes.shape == (2, 40, 2, 8) and set(codes.unique().tolist()) == {-1, 1}
    units = x / x.norm(dim=-1, keepdim=True)
    for b in range(2):
        for h in range(2):
            distance = torch.cdist(units[b, :, h].double(), hashing.anchors[h].double()).square()
            kernel = torch.exp(-distance / (2 * distance.mean())) - hashing.kernel_mean[h]
            projected = kernel @ hashing.weight[h].double().t()
            assert projected.abs().min() > 1e-6  # no sign that rounding decides
            assert torch.equal(codes[b, :, h].double(), signs(projected))
    anchors_of_head = units[0, :, 1][:, None].eq(hashing.anchors[1]).all(-1)
    assert anchors_of_head.sum() == 7, "anchors are tokens of the first sample"


def test_gradient_passes_the_sign_inside_its_window() -> None:
    hashing, _, x = fitted(lr=1.0)
    x = x.double().requires_grad_()
    units = x / x.norm(dim=-1, keepdim=True)
    distance = (units[:, :, None] - hashing.anchors.double().transpose(0, 1)).square().sum(-1)
    sigma = distance.mean((1, 2), keepdim=True)
    kernel = torch.exp(-distance / (2 * sigma)) - hashing.kernel_mean.double().t()
    projected = torch.einsum("bnmh,hkm->bnhk", kernel, hashing.weight.double())
    grad = rand(2, 40, 2, 8, seed=6)
    inside = projected.abs() <= 1
    assert 0.1 < inside.double().mean() < 0.9
    (expected,) = torch.autograd.grad(projected, x, grad * inside)
    (found,) = torch.autograd.grad(hashing(x), x, grad)
    torch.testing.assert_close(found, expected)


def test_scale_of_the_input_and_padding_change_nothing() -> None:
    hashing, _, x = fitted()
    codes = hashing(x)
    assert torch.equal(hashing(4 * x), codes)
    padded = torch.cat([x, torch.full((2, 3, 2, 6), float("nan"))], 1)
    valid = (torch.arange(43) < 40).expand(2, 43)
    assert torch.equal(hashing(padded, valid)[:, :40], codes)
    assert not torch.equal(hashing(torch.cat([x, -x[:, :9] - 1], 1))[:, :40], codes)


def test_fit_lowers_its_loss() -> None:
    hashing, fit, x = fitted(lr=1.0)
    assert fit.before.shape == fit.after.shape == (8,)
    assert (fit.after <= fit.before).all() and (fit.after < fit.before).sum() >= 6
    units = x / x.norm(dim=-1, keepdim=True)
    scores = torch.einsum("bihd,bjhd->bhij", units, units)
    order = scores.argsort(-1)
    target = torch.zeros_like(scores).scatter_(-1, order[..., -5:], 1.0)
    target.scatter_(-1, order[..., :5], -1.0)
    errors = []
    for weight in (rand(*hashing.weight.shape, dtype=torch.float32), hashing.weight.clone()):
        hashing.weight.copy_(weight)
        codes = hashing(x)
        agreement = torch.einsum("bihn,bjhn->bhij", codes, codes)
        errors.append(float((8 * target - agreement).square().mean()))
    assert errors[1] < 0.9 * errors[0], errors


def test_first_loss_by_hand() -> None:
    """-h^T S h / (N b) of the first bit, whose target S is b at neighbours and -b at strangers."""
    hashing, fit, x = fitted(num_bits=1)
    codes = hashing(x)[..., 0].transpose(1, 2)  # (B, H, N)
    units = (x / x.norm(dim=-1, keepdim=True)).transpose(1, 2)
    total = 0.0
    for b in range(2):
        for h in range(2):
            for i in range(40):
                order = (units[b, h] @ units[b, h, i]).argsort()
                h_i, others = codes[b, h, i], codes[b, h]
                total -= float(h_i * (others[order[-5:]].sum() - others[order[:5]].sum()))
    assert abs(float(fit.after[0]) - total / 4 / 40) < 1e-5


def test_descent_is_nesterov_momentum_on_a_smooth_sign() -> None:
    """tanh(x / 2) in place of the sign; v <- mu v + g, then w <- w - lr (g + mu v)."""
    kernel, target, weight = rand(2, 3, 9, 4), rand(2, 3, 9, 9, seed=1), rand(3, 4, seed=2)
    found = _descend(kernel, target, weight, 5, 3, lr=2.0, momentum=0.9)
    velocity = torch.zeros_like(weight)
    for _ in range(3):
        smooth = torch.tanh(torch.einsum("bhnm,hm->bhn", kernel, weight) / 2)
        slope = torch.einsum("bhij,bhj->bhi", target + target.mT, smooth) / -(9 * 5 * 6)
        slope = slope * (1 - smooth.square()) / 2
        gradient = torch.einsum("bhn,bhnm->hm", slope, kernel)
        velocity = 0.9 * velocity + gradient
        weight = weight - 2 * (gradient + 0.9 * velocity)
    torch.testing.assert_close(found, weight)


def test_fit_is_reproducible_and_needs_no_global_state() -> None:
    (one, first, _), state = fitted(), torch.get_rng_state()
    two, second, _ = fitted()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.after, second.after)
    for name, value in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], value), name
    other, _, _ = fitted(seed=4)
    assert not torch.equal(other.anchors, one.anchors)
    assert not any(p.requires_grad for p in one.parameters()) and not one.weight.requires_grad


def test_state_dict_round_trip() -> None:
    hashing, _, x = fitted()
    file = io.BytesIO()
    torch.save(hashing.state_dict(), file)
    file.seek(0)
    loaded = torch.nn.Sequential(KernelHash(2, 6, num_bits=8, num_anchors=7))
    with pytest.raises(RuntimeError, match="KernelHash: expected a fitted hash"):
        loaded(x)
    state = torch.load(file, weights_only=True)
    loaded.load_state_dict({f"0.{name}": value for name, value in state.items()})
    assert torch.equal(loaded(x), hashing(x))
    hashing.load_state_dict(KernelHash(2, 6, num_bits=8, num_anchors=7).state_dict())
    with pytest.raises(RuntimeError, match="KernelHash: expected a fitted hash"):
        hashing(x)


def test_flag_written_in_place_is_seen() -> None:
    """As when another process broadcasts its buffers."""
    source, _, x = fitted()
    target = KernelHash(2, 6, num_bits=8, num_anchors=7)
    for mine, theirs in zip(target.buffers(), source.buffers(), strict=True):
        mine.copy_(theirs)
    assert torch.equal(target(x), source(x))


def test_a_hash_that_is_reset_refuses() -> None:
    hashing, _, x = fitted()
    hashing(x)
    hashing.fitted.fill_(False)
    with pytest.raises(RuntimeError, match="KernelHash: expected a fitted hash"):
        hashing(x)


def test_buffers_stay_float32() -> None:
    """Rounded to bfloat16 they would flip codes; what moves them still moves them."""
    hashing, _, x = fitted()
    codes = hashing(x)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        moved = copy.deepcopy(hashing).to(dtype)
        assert {b.dtype for b in moved.buffers()} == {torch.float32, torch.bool}
        assert torch.equal(moved(x), codes)
    assert all(b.is_meta for b in hashing.to(device="meta", dtype=torch.bfloat16).buffers())


def test_meta_tensors_have_a_shape() -> None:
    hashing = KernelHash(2, 6, num_bits=8, num_anchors=7).to("meta")
    codes = hashing(torch.empty(3, 5, 2, 6, device="meta"))
    assert codes.is_meta and codes.shape == (3, 5, 2, 8)
    assert hashed_attention(codes, codes, codes).shape == codes.shape


@pytest.mark.slow
def test_copied_buffers_answer_in_a_compiled_first_call() -> None:
    """As after an average of weights or a broadcast has written them in place."""
    source, _, x = fitted()
    target = KernelHash(2, 6, num_bits=8, num_anchors=7)
    for mine, theirs in zip(target.buffers(), source.buffers(), strict=True):
        mine.copy_(theirs)
    compiled = torch.compile(target, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), source(x))


def test_wrong_vectors_and_settings_are_one_clear_error() -> None:
    hashing, _, x = fitted()
    rng = torch.Generator()
    with pytest.raises(ValueError, match=r"^num_bits: expected at least 1, found 0"):
        KernelHash(2, 6, num_bits=0)
    with pytest.raises(ValueError, match=r"^x: expected \(B, N, 2, 6\) float"):
        hashing(x[..., :5])
    with pytest.raises(ValueError, match=r"^x: .*found \(2, 40, 2, 6\) torch.int64"):
        hashing(x.long())
    with pytest.raises(ValueError, match=r"^valid: expected \(2, 40\) torch.bool"):
        hashing(x, torch.ones(2, 39, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^x: expected at least 10 tokens to fit, found 9"):
        hashing.fit(x[:, :9], rng=rng)
    with pytest.raises(ValueError, match=r"^num_steps, num_neighbors: expected at least 0 and 1"):
        hashing.fit(x, rng=rng, num_neighbors=0)


@pytest.mark.slow
def test_hash_and_attention_compile_into_one_graph() -> None:
    hashing, _, x = fitted(lr=1.0)
    v = rand(2, 40, 2, 4, seed=8, dtype=torch.float32)
    x.requires_grad_()

    def loss(x: Tensor) -> Tensor:
        codes = hashing(x)
        return hashed_attention(codes, codes, v).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (found,), (expected,) = (torch.autograd.grad(f(x), x) for f in (compiled, loss))
    assert expected.any()
    torch.testing.assert_close(found, expected)
