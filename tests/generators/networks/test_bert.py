"""The trunk against torch's own encoder layer, its norms, its sizes and its refusals."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tessella.generators.networks.bert import (
    NORM_EPS,
    Block,
    LayerNorm,
    Transformer,
    TransformerConfig,
)
from tessella.generators.networks.initialization import initialize
from tessella.tests.cases import over

ATOL = 2e-6
"""Two layers of unit-sized float32 sums in another order."""


def tiny(**changes: object) -> TransformerConfig:
    settings = {"width": 16, "num_layers": 2, "num_heads": 4, "dropout": 0.0}
    return TransformerConfig(**(settings | changes))


def randomised(module: nn.Module) -> nn.Module:
    """Every parameter random, norms and biases included, so that none can be left out."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.3 + 0.1)
    return module.eval()


def encoder_layer(block: Block, norm_first: bool) -> nn.TransformerEncoderLayer:
    """torch's layer with the same weights."""
    config = block.config
    layer = nn.TransformerEncoderLayer(
        config.width,
        config.num_heads,
        config.width * config.mlp_ratio,
        config.dropout,
        activation=F.gelu,
        layer_norm_eps=NORM_EPS,
        batch_first=True,
        norm_first=norm_first,
    ).eval()
    names = {
        "self_attn.in_proj_weight": "qkv.weight",
        "self_attn.in_proj_bias": "qkv.bias",
        "self_attn.out_proj.weight": "out.weight",
        "self_attn.out_proj.bias": "out.bias",
        "linear1.weight": "mlp_in.weight",
        "linear1.bias": "mlp_in.bias",
        "linear2.weight": "mlp_out.weight",
        "linear2.bias": "mlp_out.bias",
    }
    names |= {f"norm{i}.{p}": f"norm{i}.{p}" for i in (1, 2) for p in ("weight", "bias")}
    ours = block.state_dict()
    layer.load_state_dict({theirs: ours[name] for theirs, name in names.items()})
    return layer


def states(batch: int = 2, num_tokens: int = 5, width: int = 16) -> Tensor:
    return torch.randn(batch, num_tokens, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_block_is_torchs_encoder_layer(norm: str, padded: bool) -> None:
    block = randomised(Block(tiny(norm=norm, mlp_ratio=3)))
    reference = encoder_layer(block, norm_first=norm == "pre")
    x = states()
    valid = torch.arange(5) < torch.tensor([3, 5])[:, None] if padded else None
    found = block(x, valid)
    # gradients on: with them off, torch takes a fused path that zeroes padding
    expected = reference(x, src_key_padding_mask=None if valid is None else ~valid)
    keep = slice(None) if valid is None else valid
    torch.testing.assert_close(found[keep], expected[keep], rtol=0, atol=ATOL * 10)
    other = encoder_layer(block, norm_first=norm != "pre")(x)
    assert (found - other).abs().max() > 0.1  # the two orders differ visibly


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_the_trunk_is_its_blocks_in_order(norm: str) -> None:
    trunk = randomised(Transformer(tiny(norm=norm)))
    x = states()
    expected = x
    for block in trunk.blocks:
        expected = encoder_layer(block, norm_first=norm == "pre")(expected)
    if norm == "pre":
        weight, bias = trunk.norm_out.weight, trunk.norm_out.bias
        expected = F.layer_norm(expected, (16,), weight, bias, NORM_EPS)
    else:
        assert not list(trunk.norm_out.parameters())
    torch.testing.assert_close(trunk(x), expected, rtol=0, atol=ATOL * 10)


def test_a_published_block_has_the_published_size() -> None:
    with torch.device("meta"):
        block = Block(TransformerConfig())
    assert sum(p.numel() for p in block.parameters()) == 12_596_224


def test_prenorm_adds_one_norm_after_the_stack() -> None:
    post, pre = Transformer(tiny()), Transformer(tiny(norm="pre"))
    count = [sum(p.numel() for p in trunk.parameters()) for trunk in (post, pre)]
    assert count[1] - count[0] == 2 * 16


def test_dropout_acts_in_training_only() -> None:
    trunk = Transformer(tiny(dropout=0.5))
    x = states()
    torch.manual_seed(0)
    assert not torch.equal(trunk(x), trunk(x))
    trunk.eval()
    assert torch.equal(trunk(x), trunk(x))


def test_attention_dropout_acts_in_training_only() -> None:
    block = randomised(Block(tiny(dropout=0.5)))
    block.dropout.p = 0.0
    block.mlp_out.weight.data.zero_()
    x = states()
    assert torch.equal(block(x, None), block(x, None))
    block.train()
    assert not torch.equal(block(x, None), block(x, None))


def test_attention_dropout_can_be_set_apart() -> None:
    x = states()
    for dropout, inside, random in ((0.5, 0.0, False), (0.0, 0.5, True), (0.5, None, True)):
        block = randomised(Block(tiny(dropout=dropout, attention_dropout=inside))).train()
        block.dropout.p = 0.0
        torch.manual_seed(0)
        assert torch.equal(block(x, None), block(x, None)) is not random


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_are_computed_in_float32(dtype: torch.dtype) -> None:
    """A row of 1000 + {-1, 1} has spread 1: its float16 mean of squares would overflow."""
    norm = LayerNorm(8)
    x = (torch.tensor([1.0, -1.0] * 4) + 256).to(dtype)[None]
    expected = torch.tensor([1.0, -1.0] * 4)[None]
    found = norm(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    tiny_values = x.float().sub(256).mul(1e-4).to(dtype)  # eps 1e-5 would shrink them to nothing
    torch.testing.assert_close(norm(tiny_values), expected, rtol=0, atol=2e-2)


def test_norms_stay_float32_under_bf16_autocast() -> None:
    trunk = randomised(Transformer(tiny()))
    seen = []
    for block in trunk.blocks:
        for norm in (block.norm1, block.norm2):
            norm.register_forward_hook(lambda m, a, out: seen.append((a[0].dtype, out.dtype)))
    x = states()
    with torch.autocast("cpu", torch.bfloat16):
        found = trunk(x)
    assert seen == [(torch.float32, torch.float32)] * 4
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, trunk(x), rtol=0, atol=0.2)
    assert not torch.equal(found, trunk(x))


def test_a_bf16_trunk_gives_bf16() -> None:
    trunk = randomised(Transformer(tiny())).to(torch.bfloat16)
    assert trunk(states().to(torch.bfloat16)).dtype == torch.bfloat16


def test_initialisation_is_the_published_one() -> None:
    """n = 64 x 4096 weights: the standard deviation within 4 sigma, sigma = std / sqrt(2 n)."""
    torch.manual_seed(0)
    linear, table = nn.Linear(64, 4096), nn.Embedding(4096, 64)
    nn.init.ones_(linear.bias)
    for module in (linear, table):
        initialize(module)
        count = module.weight.numel()
        assert abs(module.weight.std().item() - 0.02) < 4 * 0.02 / (2 * count) ** 0.5
        assert abs(module.weight.mean().item()) < 4 * 0.02 / count**0.5
    assert not linear.bias.any()


@over(
    ("changes", "message"),
    [
        ({"width": 0}, "width: expected at least 1, found 0"),
        ({"num_layers": 0}, "num_layers: expected at least 1, found 0"),
        ({"num_heads": 0}, "num_heads: expected at least 1, found 0"),
        ({"mlp_ratio": -1}, "mlp_ratio: expected at least 1, found -1"),
        ({"num_heads": 3}, "num_heads: 3 does not divide the width 16"),
        ({"dropout": 1.0}, "dropout: expected 0 to below 1, found 1"),
        ({"attention_dropout": 1.5}, r"attention_dropout: expected 0 to below 1, found 1\.5"),
        ({"dropout": -0.1}, r"dropout: expected 0 to below 1, found -0\.1"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)
