"""One numerics policy for every quantizer of the closed list: `Quantizer` writes it down."""

import copy
import typing
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tessella.tests.cases import naming
from tessella.tokenizers.base import Quantizer
from tessella.tokenizers.quantizers.bernoulli import BernoulliConfig
from tessella.tokenizers.quantizers.bsq import BSQConfig
from tessella.tokenizers.quantizers.build import QuantizerConfig, build_quantizer
from tessella.tokenizers.quantizers.ema_vq import EMAVQ, EMAVQConfig
from tessella.tokenizers.quantizers.fsq import FSQConfig
from tessella.tokenizers.quantizers.lfq import LFQConfig
from tessella.tokenizers.quantizers.vector import nearest_codes, rotation_trick, unit
from tessella.tokenizers.quantizers.vq import VQConfig
from tessella.train.losses import LeCam

WIDTH = 4
QUANTIZERS: dict[str, QuantizerConfig] = {
    "vq": VQConfig(codebook_size=16, dim=WIDTH, entropy_temperature=0.1),
    "vq_rotation": VQConfig(codebook_size=16, dim=WIDTH, gradient="rotation"),
    "vq_sphere": VQConfig(codebook_size=16, dim=WIDTH, normalize=True),
    "vq_sphere_rotation": VQConfig(
        codebook_size=16, dim=WIDTH, normalize=True, gradient="rotation"
    ),
    "ema_vq": EMAVQConfig(codebook_size=16, dim=WIDTH),
    "ema_vq_rotation": EMAVQConfig(codebook_size=16, dim=WIDTH, gradient="rotation"),
    "ema_vq_sphere": EMAVQConfig(codebook_size=16, dim=WIDTH, normalize=True),
    "lfq": LFQConfig(bits=WIDTH),
    "bsq": BSQConfig(bits=WIDTH),
    "bsq_joint": BSQConfig(bits=WIDTH, entropy_group_bits=4, ste_scale=1.0),
    "fsq": FSQConfig(levels=(8, 5, 5, 3)),
    "fsq_symmetric": FSQConfig(levels=(2, 4, 5, 8), symmetric=True),
    "bernoulli": BernoulliConfig(bits=6, dim=WIDTH, draw="never", free_nats=0.1),
}


def make(name: str) -> Quantizer:
    torch.manual_seed(0)
    quantizer = build_quantizer(QUANTIZERS[name])
    if isinstance(codebook := getattr(quantizer, "codebook", None), Tensor):
        nn.init.normal_(codebook)  # the published initial codes are so narrow that few are used
        quantizer.codebook.data.copy_(quantizer._project(codebook.data))
    return quantizer


def every_quantizer(check: Callable[[Quantizer], None]) -> Callable[[], None]:
    """A test that runs the check on a fresh one of every quantizer and names the one that fails."""

    def test() -> None:
        for name in QUANTIZERS:
            with naming(name):
                check(make(name))

    test.__name__, test.__doc__ = check.__name__, check.__doc__
    return test


def random_latents(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def step(quantizer: Quantizer, latents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes, quantized latents, sum of the losses, and the gradient that reaches the latents."""
    latents = latents.clone().requires_grad_()
    out = quantizer(latents)
    total = sum(out.losses.values(), torch.zeros(()))
    upstream = random_latents(*out.quantized.shape, seed=9)
    ((out.quantized * upstream).mean() + total).backward()
    return out.indices, out.quantized.detach(), total.detach(), latents.grad


def test_the_list_is_closed() -> None:
    union = typing.get_args(typing.get_args(QuantizerConfig)[0])
    assert {type(config) for config in QUANTIZERS.values()} == set(union)


@every_quantizer
def test_the_decoder_reads_exactly_what_lookup_gives(quantizer: Quantizer) -> None:
    for scale in (1e-30, 1e-3, 1.0, 1e4, 1e9, 1e15):
        latents = scale * random_latents(2, 32, WIDTH)
        before = copy.deepcopy(quantizer)
        indices, quantized, loss, gradient = step(quantizer.eval(), latents)
        assert torch.equal(quantized, before.lookup(indices)), scale
        assert torch.equal(before.encode(latents), indices), scale
        assert loss.isfinite() and gradient.isfinite().all(), scale
        sizes = torch.tensor(quantizer.codebook_sizes)
        assert (indices >= 0).all() and (indices < sizes).all()


@every_quantizer
def test_a_zero_latent_has_a_code_and_a_bounded_gradient(quantizer: Quantizer) -> None:
    """The rotation trick gave the decoder 0 instead of the code, and gradients of 1.6e12."""
    latents = random_latents(1, 8, WIDTH)
    latents[0, 2:4] = 0
    latents[0, 4] = torch.tensor([1e-38, -1e-38, 1e-38, 0.0])
    _, quantized, _, gradient = step(quantizer.eval(), latents)
    assert torch.equal(quantized, quantizer.lookup(quantizer.encode(latents)))
    assert gradient.isfinite().all()
    usual = gradient[0, [0, 1, 5, 6, 7]].abs().max()
    assert gradient.abs().max() <= 100 * max(usual, 0.01)


@every_quantizer
def test_statistics_stay_float32(quantizer: Quantizer) -> None:
    latents = random_latents(2, 64, WIDTH)
    converted = copy.deepcopy(quantizer)
    for convert in (nn.Module.bfloat16, nn.Module.half, nn.Module.double):
        convert(nn.Sequential(converted))
    converted = converted.to(torch.bfloat16)
    for buffer in converted.buffers():
        assert buffer.dtype in (torch.float32, torch.int64)
    floats = {name: value for name, value in quantizer.state_dict().items()}
    halved = {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in floats.items()
    }
    for assign in (False, True):
        loaded = copy.deepcopy(quantizer)
        loaded.load_state_dict(halved, assign=assign)
        for name, buffer in loaded.named_buffers():
            assert buffer.dtype in (torch.float32, torch.int64), (name, assign)
    out = converted.train()(latents.bfloat16())
    assert out.quantized.dtype == torch.float32
    assert all(buffer.dtype in (torch.float32, torch.int64) for buffer in converted.buffers())


@every_quantizer
def test_the_first_of_equally_near_codes_wins(quantizer: Quantizer) -> None:
    """Half-way points of bits and levels, and equal rows of a codebook wherever they stand."""
    codebook = getattr(quantizer, "codebook", None)
    if codebook is None:
        zeros = torch.zeros(1, 3, WIDTH)
        if quantizer.config.type == "bernoulli":
            quantizer.proj.bias.data.zero_()
        found = quantizer.encode(zeros)
        if quantizer.config.type != "fsq":
            assert not found.any()
        elif quantizer.config.symmetric:  # half-way between two levels for even numbers of them
            assert found[0, 0].tolist() == [0, 2, 2, 4]
        else:  # 0 is a level of every dimension
            assert found[0, 0].tolist() == [4, 2, 2, 1]
        return
    with torch.no_grad():
        for row in (15, 8, 11):
            codebook[row] = codebook[5]
    latents = quantizer.lookup(torch.tensor([[[5]]])) + 1e-3 * random_latents(1, 100, WIDTH)
    assert (quantizer.encode(latents) == 5).all()
    assert (quantizer.eval()(latents).indices == 5).all()


@every_quantizer
def test_codes_do_not_depend_on_the_rest_of_the_batch(quantizer: Quantizer) -> None:
    latents = random_latents(40, 7, WIDTH)
    if (codebook := getattr(quantizer, "codebook", None)) is not None:
        half_way = (codebook[:8] + codebook[8:]).detach() / 2
        latents[:8, 0] = half_way  # the hardest: near ties
    whole = quantizer.eval()(latents)
    assert torch.equal(quantizer.encode(latents), whole.indices)
    single = torch.cat([quantizer.encode(one[None]) for one in latents])
    flipped = quantizer.encode(latents.flip(0).repeat(3, 1, 1))[40:80].flip(0)
    inside = torch.cat([quantizer.encode(latents[:, i : i + 1]) for i in range(7)], 1)
    for found in (single, flipped, inside):
        assert torch.equal(found, whole.indices)
    alone = torch.cat([quantizer(one[None]).quantized for one in latents])
    torch.testing.assert_close(alone, whole.quantized, rtol=0, atol=1e-6)


@every_quantizer
def test_one_position_equal_latents_and_one_code_in_use(quantizer: Quantizer) -> None:
    one = random_latents(1, 1, WIDTH)
    for latents in (one, one.expand(3, 5, WIDTH), one.expand(3, 5, WIDTH)):
        indices, quantized, loss, gradient = step(quantizer.train(), latents)
        assert len(indices.flatten(0, 1).unique(dim=0)) == 1
        assert loss.isfinite() and gradient.isfinite().all() and quantized.isfinite().all()
        assert all(v.isfinite().all() for v in quantizer.state_dict().values())
    assert len(quantizer.encode(one.expand(3, 5, WIDTH)).flatten(0, 1).unique(dim=0)) == 1
    assert quantizer.encode(one[:0]).shape == (0, 1, len(quantizer.codebook_sizes))


@every_quantizer
def test_latents_that_are_not_finite(quantizer: Quantizer) -> None:
    """`encode` says so; `forward` gives NaN, codes in range, and no state takes it in."""
    quantizer.train()(random_latents(2, 32, WIDTH, seed=1))
    sizes = torch.tensor(quantizer.codebook_sizes)
    for value in (torch.nan, torch.inf, -torch.inf):
        latents = random_latents(2, 8, WIDTH)
        latents[1, 3, 2] = value
        with pytest.raises(ValueError, match="1 of 64 latents of the encoder are not finite"):
            quantizer.encode(latents)
        out = quantizer(latents)
        assert out.quantized[1, 3].isnan().any(), value
        good = torch.ones(2, 8, dtype=torch.bool)
        good[1, 3] = False
        assert out.quantized[good].isfinite().all()
        assert all(loss.isnan() for loss in out.losses.values())
        assert (out.indices >= 0).all() and (out.indices < sizes).all()
        assert all(v.isfinite().all() for v in quantizer.state_dict().values())
    with pytest.raises(ValueError, match="not finite"):
        quantizer.encode(torch.full((1, 1, WIDTH), 1e5).half())  # 65504 is the largest


def test_rotation_keeps_value_and_gradient_apart() -> None:
    codes = random_latents(4, 8, seed=3)
    latents = random_latents(4, 8)
    latents[1] = 0
    latents[2] *= 1e-9
    latents[3] = -2 * codes[3] + 1e-9
    latents.requires_grad_()
    out = rotation_trick(latents, codes)
    assert torch.equal(out, codes)
    upstream = random_latents(4, 8, seed=4)
    out.backward(upstream)
    assert torch.equal(latents.grad[1], upstream[1])
    assert torch.equal(latents.grad[2], upstream[2])
    for row, scale in ((0, codes[0].norm() / latents[0].norm()), (3, torch.tensor(0.5))):
        found = latents.grad[row].norm() / upstream[row].norm()
        assert found.item() == pytest.approx(scale.item(), rel=1e-3)  # orthogonal times lambda


def test_unit_is_normalization_without_its_edges() -> None:
    vectors = random_latents(50, 8).requires_grad_()
    expected = nn.functional.normalize(vectors, dim=-1)
    torch.testing.assert_close(unit(vectors), expected, rtol=1e-6, atol=1e-7)
    upstream = random_latents(50, 8, seed=1)
    ours, theirs = (torch.autograd.grad(v, vectors, upstream)[0] for v in (unit(vectors), expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    for scale in (1e-44, 1e-30, 1e25, 1e37):
        size = unit(scale * vectors.detach()).norm(dim=-1)
        assert (size - 1).abs().max() < (0.2 if scale == 1e-44 else 1e-6), scale
    zero = torch.zeros(1, 8, requires_grad=True)
    unit(zero).backward(upstream[:1])
    assert torch.equal(zero.grad, upstream[:1]) and not unit(zero).any()


@pytest.mark.parametrize("size,width", [(17, 3), (100, 8), (1000, 13), (33, 64)])
def test_equal_rows_are_the_lowest_at_any_place_of_the_matrix_product(
    size: int, width: int
) -> None:
    """Blocks and tails of a matrix product round differently; 671 of 16,000 were a later row."""
    codebook = random_latents(size, width)
    codebook[-1] = codebook[size // 2] = codebook[2]
    vectors = codebook[2] + 0.01 * random_latents(300, width, seed=1)
    assert (nearest_codes(vectors, codebook) == 2).all()
    assert all((nearest_codes(vectors[i : i + 1], codebook) == 2).all() for i in range(50))
    collapsed = torch.zeros(size, width)
    assert not nearest_codes(vectors, collapsed).any()


def test_nearest_codes_are_those_of_float64() -> None:
    """Among them thousands of near ties: codes on a fine grid, latents half-way between two."""
    grid = torch.arange(64.0) / 1024
    codebook = torch.cartesian_prod(grid[::8], grid[::8], torch.ones(1) * 3)
    codebook = codebook[torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    vectors = 300 * random_latents(2000, 3)
    vectors[:1000] = (codebook[:, None] + codebook[None]).reshape(-1, 3)[:1000] / 2
    exact = (vectors.double()[:, None] - codebook.double()).square().sum(-1)
    assert torch.equal(nearest_codes(vectors, codebook), exact.argmin(1))


def test_half_way_latents_get_one_code_in_every_batch() -> None:
    """Midpoints of codes: which one a matrix product prefers depends on the rows beside them."""
    codebook = random_latents(100, 64)
    codebook[:, 1:] *= 0.01  # far apart in one direction, so that both codes are the nearest
    codebook[:, 0] = 10.0 * torch.randperm(100, generator=torch.Generator().manual_seed(1))
    order = codebook[:, 0].argsort()
    vectors = (codebook[order[:-1]] + codebook[order[1:]]) / 2
    exact = (vectors.double()[:, None] - codebook.double()).square().sum(-1).argmin(1)
    assert torch.equal(nearest_codes(vectors, codebook), exact)
    for size in (1, 2, 7, 33):
        parts = [nearest_codes(part, codebook) for part in vectors.split(size)]
        assert torch.equal(torch.cat(parts), exact), size


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_coarse_matrix_products_do_not_reach_the_codes(precision: str) -> None:
    """TensorFloat-32 or bfloat16 products, which a program may allow, only make more candidates."""
    codebook, vectors = random_latents(500, 32), random_latents(300, 32, seed=1)
    exact = (vectors.double()[:, None] - codebook.double()).square().sum(-1).argmin(1)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert torch.equal(nearest_codes(vectors, codebook), exact)
    finally:
        torch.set_float32_matmul_precision(before)


def test_running_means_do_not_saturate_in_a_bfloat16_module() -> None:
    """bfloat16 counts stop at 256 steps of their last digit; the codebook then lags behind."""
    errors = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        quantizer = EMAVQ(codebook_size=4, dim=2, decay=0.999).to(dtype).train()
        for seed in range(60):
            quantizer((random_latents(1, 4096, 2, seed=seed) + 0.05 * seed).to(dtype))
        latents = random_latents(1, 4096, 2, seed=99) + 3
        errors.append((quantizer.lookup(quantizer.encode(latents)) - latents).square().mean())
    assert errors[1].item() == pytest.approx(errors[0].item(), rel=0.01)


def test_the_means_of_lecam_stay_float32() -> None:
    lecam = nn.Sequential(LeCam()).bfloat16()[0]
    assert lecam.real.dtype == lecam.fake.dtype == torch.float32
    for _ in range(2000):
        lecam(torch.ones(4), -torch.ones(4))
    assert lecam.real.item() == pytest.approx(1 - 0.999**2000, rel=1e-3)
