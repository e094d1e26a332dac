"""VQ: search against brute force, gradients of both estimators, losses on the right terms."""

import pytest
import torch
from torch import Tensor

from tessella.tokenizers.quantizers import vector
from tessella.tokenizers.quantizers.vector import nearest_codes, rotation_trick, squared_distances
from tessella.tokenizers.quantizers.vq import VQ, VQConfig


def random_vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build_vq(codebook: Tensor, **settings: object) -> VQ:
    """A `VQ` with the given codebook."""
    size, dim = codebook.shape
    quantizer = VQ(VQConfig(codebook_size=size, dim=dim, **settings))
    quantizer.codebook.data.copy_(codebook)
    return quantizer


def brute_force(vectors: Tensor, codebook: Tensor) -> Tensor:
    """First code of least squared distance, in float64."""
    distances = (vectors.double()[:, None] - codebook.double()[None]).square().sum(-1)
    return distances.argmin(1)


@pytest.mark.parametrize("size,dim", [(2, 1), (64, 8), (257, 3)])
def test_search_is_the_brute_force_argmin(size: int, dim: int) -> None:
    vectors, codebook = random_vectors(500, dim), random_vectors(size, dim, seed=1)
    assert torch.equal(nearest_codes(vectors, codebook), brute_force(vectors, codebook))
    expected = (vectors[:, None] - codebook[None]).square().sum(-1)
    torch.testing.assert_close(squared_distances(vectors, codebook), expected, rtol=1e-4, atol=1e-4)


def test_ties_go_to_the_lowest_index() -> None:
    """On a grid of integers distances are exact: equidistant codes and repeated rows."""
    rng = torch.Generator().manual_seed(0)
    codebook = torch.randint(-2, 3, (100, 2), generator=rng).float()
    codebook[60:] = codebook[:40]
    vectors = torch.randint(-4, 5, (400, 2), generator=rng) / 2
    found = nearest_codes(vectors, codebook)
    assert torch.equal(found, brute_force(vectors, codebook))
    assert found.max() < 60


@pytest.mark.parametrize("elements", [1, 64, 1000, 64 * 500])
def test_chunks_do_not_change_the_codes(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, codebook = random_vectors(500, 8), random_vectors(64, 8, seed=1)
    whole = nearest_codes(vectors, codebook)
    monkeypatch.setattr(vector, "_CHUNK_ELEMENTS", elements)
    assert torch.equal(nearest_codes(vectors, codebook), whole)


def test_chunks_bound_the_distance_table(monkeypatch: pytest.MonkeyPatch, largest_tensor) -> None:
    monkeypatch.setattr(vector, "_CHUNK_ELEMENTS", 640)
    vectors, codebook = random_vectors(500, 1), random_vectors(64, 1, seed=1)
    with largest_tensor:
        nearest_codes(vectors, codebook)
    assert largest_tensor.numel <= 640


def test_no_vectors_no_codes() -> None:
    assert nearest_codes(torch.empty(0, 4), torch.ones(3, 4)).shape == (0,)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_decoder_reads_the_codes(normalize: bool, gradient: str) -> None:
    quantizer = build_vq(random_vectors(32, 6), normalize=normalize, gradient=gradient)
    latents = random_vectors(2, 20, 6, seed=1)
    out = quantizer(latents)
    assert torch.equal(out.indices, quantizer.encode(latents))
    torch.testing.assert_close(out.quantized, quantizer.lookup(out.indices), rtol=0, atol=2e-6)
    if normalize:
        unit = torch.nn.functional.normalize
        expected = brute_force(
            unit(latents, dim=-1).flatten(0, 1), unit(quantizer.codebook, dim=-1)
        )
        assert torch.equal(out.indices.flatten(), expected)
        lengths = quantizer.lookup(out.indices).norm(dim=-1)
        torch.testing.assert_close(lengths, torch.ones(2, 20))


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_every_code_is_its_own_nearest(gradient: str) -> None:
    quantizer = build_vq(random_vectors(50, 4), gradient=gradient)
    indices = torch.arange(50)[None, :, None]
    assert torch.equal(quantizer.encode(quantizer.lookup(indices)), indices)
    out = quantizer(quantizer.lookup(indices))
    assert out.losses["commitment"].item() == out.losses["codebook"].item() == 0


def test_losses_and_the_terms_they_train() -> None:
    quantizer = build_vq(random_vectors(16, 4))
    latents = random_vectors(2, 8, 4, seed=1).requires_grad_()
    out = quantizer(latents)
    codes = quantizer.lookup(out.indices).detach()
    for name in ("commitment", "codebook"):
        expected = (latents - codes).square().mean().item()
        assert out.losses[name].item() == pytest.approx(expected, rel=1e-6)
    z_grad, table_grad = torch.autograd.grad(
        out.losses["commitment"],
        [latents, quantizer.codebook],
        allow_unused=True,
        retain_graph=True,
    )
    torch.testing.assert_close(z_grad, 2 * (latents.detach() - codes) / latents.numel())
    assert table_grad is None
    z_grad, table_grad = torch.autograd.grad(
        out.losses["codebook"], [latents, quantizer.codebook], allow_unused=True
    )
    assert z_grad is None
    expected = torch.zeros(16, 4).index_add_(
        0, out.indices.flatten(), (2 * (codes - latents.detach()) / latents.numel()).flatten(0, 1)
    )
    torch.testing.assert_close(table_grad, expected, rtol=1e-5, atol=1e-8)


def test_only_rows_that_were_hit_get_gradient() -> None:
    quantizer = build_vq(random_vectors(64, 4))
    out = quantizer(random_vectors(1, 20, 4, seed=1))
    out.losses["codebook"].backward()
    hit = torch.zeros(64, dtype=torch.bool)
    hit[out.indices.flatten()] = True
    assert torch.equal(quantizer.codebook.grad.abs().sum(1) > 0, hit)


def test_straight_through_gradient_is_the_identity() -> None:
    quantizer = build_vq(random_vectors(16, 4))
    latents = random_vectors(2, 8, 4, seed=1).requires_grad_()
    upstream = random_vectors(2, 8, 4, seed=2)
    quantizer(latents).quantized.backward(upstream)
    assert torch.equal(latents.grad, upstream)
    assert quantizer.codebook.grad is None


@pytest.mark.parametrize("dim", [2, 3, 8])
def test_rotation_trick_jacobian(dim: int) -> None:
    """J = lambda R with R orthogonal, det R = +1, R unit(z) = unit(q); forward value q."""
    for seed in range(10):
        z = random_vectors(dim, seed=seed).double()
        q = 3 * random_vectors(dim, seed=100 + seed).double()
        torch.testing.assert_close(rotation_trick(z, q), q)
        jacobian = torch.autograd.functional.jacobian(lambda v, q=q: rotation_trick(v, q), z)
        scale = q.norm() / z.norm()
        identity = torch.eye(dim, dtype=torch.float64)
        torch.testing.assert_close(jacobian @ jacobian.T, scale**2 * identity)
        assert torch.det(jacobian / scale).item() == pytest.approx(1.0)
        torch.testing.assert_close(jacobian @ z, q)


def test_rotation_trick_in_opposite_directions_and_at_zero() -> None:
    z = random_vectors(5, 4).requires_grad_()
    q = -2 * z.detach()
    out = rotation_trick(z, q)
    torch.testing.assert_close(out, q)
    out.sum().backward()
    assert z.grad.isfinite().all()
    zero = torch.zeros(1, 4, requires_grad=True)
    out = rotation_trick(zero, torch.ones(1, 4))
    out.sum().backward()
    assert out.isfinite().all()
    assert zero.grad.isfinite().all()


def test_rotation_trick_gives_the_codebook_no_gradient() -> None:
    quantizer = build_vq(random_vectors(16, 4), gradient="rotation")
    latents = random_vectors(1, 8, 4, seed=1).requires_grad_()
    quantizer(latents).quantized.sum().backward()
    assert quantizer.codebook.grad is None
    assert latents.grad.abs().sum() > 0


@pytest.mark.parametrize("normalize", [False, True])
def test_entropy_loss_against_brute_force(normalize: bool) -> None:
    codebook = random_vectors(16, 4)
    quantizer = build_vq(
        codebook, normalize=normalize, entropy_temperature=0.5, batch_entropy_weight=0.4
    )
    assert quantizer.loss_names == ("commitment", "codebook", "entropy")
    latents = random_vectors(2, 8, 4, seed=1)
    z, table = latents.double().flatten(0, 1), codebook.double()
    if normalize:
        z, table = torch.nn.functional.normalize(z), torch.nn.functional.normalize(table)
    p = torch.softmax(-(z[:, None] - table).square().sum(-1) / 0.5, dim=1)
    sample = -torch.special.xlogy(p, p).sum(1).mean()
    batch = -torch.special.xlogy(p.mean(0), p.mean(0)).sum()
    found = quantizer(latents).losses["entropy"]
    assert found.item() == pytest.approx((sample - 0.4 * batch).item(), rel=1e-5)
    found.backward()
    assert (quantizer.codebook.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_latents_give_the_codes_of_their_float32_upcast(dtype: torch.dtype) -> None:
    quantizer = build_vq(random_vectors(256, 8))
    latents = random_vectors(2, 100, 8, seed=1).to(dtype)
    full = quantizer(latents.float())
    assert torch.equal(quantizer(latents).indices, full.indices)
    with torch.autocast("cpu", torch.bfloat16):
        cast = quantizer(latents.float())
        assert torch.equal(quantizer.encode(latents.float()), full.indices)
    assert torch.equal(cast.indices, full.indices)
    assert torch.equal(cast.losses["codebook"], full.losses["codebook"])


def test_initial_codebook_lies_within_one_over_k() -> None:
    codebook = VQ(VQConfig(codebook_size=50, dim=8)).codebook
    assert codebook.abs().max() <= 1 / 50
    assert codebook.abs().max() > 0.9 / 50


@pytest.mark.parametrize(
    "settings,found",
    [
        ({"codebook_size": 1, "dim": 4}, "codebook_size.*found 1"),
        ({"codebook_size": 8, "dim": 0}, "dim.*found 0"),
        ({"codebook_size": 8, "dim": 4, "entropy_temperature": 0.0}, "found 0.0"),
    ],
)
def test_impossible_configs_are_refused(settings: dict, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        VQConfig(**settings)
