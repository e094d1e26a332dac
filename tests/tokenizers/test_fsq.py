"""FSQ: level formulas, index bijection, gradient of the bound, the symmetric variant."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from tessella.tests.cases import over
from tessella.tokenizers.quantizers.fsq import FSQ, FSQConfig
from tessella.tokens.tokens import Tokens, TokenSpec

LEVELS = [(3,), (8, 6, 5), (8, 5, 5, 5), (7, 5, 5, 5, 5), (4, 16)]
AWAY_FROM_TIES = 1e-4


def grid_of_latents(dim: int) -> Tensor:
    return torch.linspace(-4, 4, 401)[None, :, None].expand(1, 401, dim).contiguous()


def bounded(z: Tensor, level: int) -> Tensor:
    """The bounded value of arXiv:2309.15505 in float64, integers at the levels, 0 in the middle."""
    half = (level - 1) * (1 + 1e-3) / 2
    offset = 0.5 if level % 2 == 0 else 0.0
    return torch.tanh(z.double() + math.atanh(offset / half)) * half - offset


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_and_values_follow_the_formulas(levels: tuple[int, ...]) -> None:
    quantizer = FSQ(FSQConfig(levels=levels))
    latents = grid_of_latents(len(levels))
    out = quantizer(latents)
    assert torch.equal(out.indices, quantizer.encode(latents))
    for i, level in enumerate(levels):
        y = bounded(latents[0, :, i], level)
        clear = (y - y.floor() - 0.5).abs() > AWAY_FROM_TIES
        codes = y.round().long() + level // 2
        assert torch.equal(out.indices[0, clear, i], codes[clear])
        assert out.indices[..., i].min() == 0
        assert out.indices[..., i].max() == level - 1
        values = (out.indices[0, :, i] - level // 2).double() / (level // 2)
        torch.testing.assert_close(out.quantized[0, :, i].double(), values, rtol=0, atol=1e-6)


def test_even_levels_are_asymmetric_and_hold_zero() -> None:
    eight = FSQ(FSQConfig(levels=(8,))).lookup(torch.arange(8)[None, :, None]).flatten()
    assert eight.tolist() == [-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75]
    five = FSQ(FSQConfig(levels=(5,))).lookup(torch.arange(5)[None, :, None]).flatten()
    assert five.tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    for level in range(3, 20):
        assert FSQ(FSQConfig(levels=(level,)))(torch.zeros(1, 1, 1)).quantized.item() == 0


@pytest.mark.parametrize("level,widths", [(8, [0.63, 0.355, 0.294, 0.294, 0.355, 0.63])])
def test_cell_widths(level: int, widths: list[float]) -> None:
    """Widths of the inner cells in latent units, as measured on the reference code."""
    z = torch.linspace(-3, 3, 60_001)
    codes = FSQ(FSQConfig(levels=(level,))).encode(z[None, :, None]).flatten()
    edges = z[1:][codes.diff() != 0]
    assert edges.diff().tolist() == pytest.approx(widths, abs=6e-3)


@pytest.mark.parametrize("levels", [(8, 6, 5), (5, 4)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_code_round_trips(levels: tuple[int, ...], symmetric: bool) -> None:
    """The values of a code, taken back through the bound, give the code again."""
    quantizer = FSQ(FSQConfig(levels=levels, symmetric=symmetric))
    codes = torch.tensor([row[::-1] for row in itertools.product(*map(range, levels[::-1]))])[None]
    tokens = Tokens(codes, TokenSpec((codes.shape[1],), levels))
    assert torch.equal(
        tokens.regroup([math.prod(levels)]).indices.flatten(), torch.arange(codes.shape[1])
    )
    inverse = torch.empty(codes.shape)
    for i, level in enumerate(levels):
        half = (level - 1) / 2 * (1 if symmetric else 1 + 1e-3)
        offset = 0.0 if symmetric or level % 2 else 0.5
        middle = (level - 1) / 2 if symmetric else level // 2 - offset
        shift = math.atanh(offset / half)
        inside = ((codes[..., i] - middle) / half).double().clamp(-1 + 1e-9, 1 - 1e-9)
        inverse[..., i] = torch.atanh(inside) - shift
    assert torch.equal(quantizer.encode(inverse), codes)


@pytest.mark.parametrize("levels", LEVELS)
def test_gradient_is_that_of_the_bound(levels: tuple[int, ...]) -> None:
    """half sech^2(z + shift) / floor(L / 2), rounding being the identity."""
    latents = grid_of_latents(len(levels)).requires_grad_()
    FSQ(FSQConfig(levels=levels))(latents).quantized.sum().backward()
    for i, level in enumerate(levels):
        half = (level - 1) * (1 + 1e-3) / 2
        shift = math.atanh((0.5 if level % 2 == 0 else 0.0) / half)
        z = latents.detach()[0, :, i].double()
        expected = half / torch.cosh(z + shift).square() / (level // 2)
        torch.testing.assert_close(latents.grad[0, :, i].double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("level", [2, 3, 4, 7, 8])
def test_symmetric_variant(level: int) -> None:
    quantizer = FSQ(FSQConfig(levels=(level,), symmetric=True))
    latents = grid_of_latents(1)
    values = quantizer(latents).quantized.flatten().double()
    z = latents.flatten().double()
    position = (level - 1) * (torch.tanh(z) + 1) / 2
    clear = (position - position.floor() - 0.5).abs() > AWAY_FROM_TIES
    expected = 2 / (level - 1) * torch.floor(position + 0.5) - 1
    torch.testing.assert_close(values[clear], expected[clear], rtol=0, atol=1e-6)
    table = quantizer.lookup(torch.arange(level)[None, :, None]).flatten()
    torch.testing.assert_close(table, torch.linspace(-1, 1, level))


def test_two_symmetric_levels_are_the_sign() -> None:
    latents = torch.tensor([[[-3.0], [-1e-3], [1e-3], [3.0]]])
    values = FSQ(FSQConfig(levels=(2,), symmetric=True))(latents).quantized
    torch.testing.assert_close(values.flatten(), torch.tensor([-1.0, -1.0, 1.0, 1.0]))


def test_symmetric_gradient() -> None:
    latents = grid_of_latents(1).requires_grad_()
    FSQ(FSQConfig(levels=(6,), symmetric=True))(latents).quantized.sum().backward()
    torch.testing.assert_close(
        latents.grad, 1 - torch.tanh(latents.detach()).square(), rtol=1e-4, atol=1e-6
    )


@over("symmetric", [False, True])
@over("level", [3, 4, 255, 256])
def test_codes_stay_in_range_for_any_latent(level: int, symmetric: bool) -> None:
    latents = torch.tensor([-1e30, -50.0, 0.0, 50.0, 1e30])[None, :, None]
    codes = FSQ(FSQConfig(levels=(level,), symmetric=symmetric)).encode(latents).flatten()
    assert codes[0] == codes[1] == 0
    assert codes[3] == codes[4] == level - 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_latents_give_the_codes_of_their_float32_upcast(dtype: torch.dtype) -> None:
    """In bfloat16 arithmetic nearly every index of a large product grid would be wrong."""
    quantizer = FSQ(FSQConfig(levels=(8, 8, 8, 6, 5)))
    latents = torch.randn(2, 200, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    full = quantizer(latents.float()).indices
    assert torch.equal(quantizer(latents).indices, full)
    assert torch.equal(quantizer.encode(latents), full)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(latents.float()).indices, full)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_converting_the_module_changes_nothing(dtype: torch.dtype, symmetric: bool) -> None:
    """The bound of 8 levels is 3.5035; bfloat16 would store 3.5 and never round up to the last."""
    quantizer = FSQ(FSQConfig(levels=(8, 7), symmetric=symmetric))
    latents = grid_of_latents(2)
    before, after = quantizer(latents), quantizer.to(dtype)(latents)
    assert torch.equal(before.indices, after.indices)
    assert torch.equal(before.quantized, after.quantized)
    assert quantizer.lookup(after.indices).dtype == torch.float32


def test_has_no_losses_and_no_state() -> None:
    quantizer = FSQ(FSQConfig(levels=(8, 5, 5, 5)))
    assert quantizer.loss_names == ()
    assert not quantizer.state_dict()
    assert quantizer(torch.zeros(1, 1, 4)).losses == {}


@pytest.mark.parametrize(
    "levels,symmetric", [((), False), ((2, 3), False), ((1,), True), ((257,), True)]
)
def test_impossible_levels_are_refused(levels: tuple[int, ...], symmetric: bool) -> None:
    with pytest.raises(ValueError, match="levels"):
        FSQConfig(levels=levels, symmetric=symmetric)
