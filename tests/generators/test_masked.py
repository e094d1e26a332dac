"""MaskBit and MaskGIT as networks: published sizes, reading of groups, inputs and logits."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tessella.generators.build import build_generator
from tessella.generators.masked import MaskBitConfig, MaskedConfig, MaskGITConfig, read_sizes
from tessella.generators.networks.bert import TransformerConfig
from tessella.tests.cases import over
from tessella.tokenizers.base import Tokenizer
from tessella.tokens.tokens import SpecMismatch, Tokens, TokenSpec

ATOL = 1e-5
"""Logits of size 1 after two matrix products of width 16 in float32."""
KINDS = ("maskbit", "maskgit")
BITS = TokenSpec((3, 4), (2,) * 6)
VQ = TokenSpec((3, 4), (32,))
MIXED = TokenSpec((3, 4), (8, 5, 3))
ORDERED = TokenSpec((12,), (16,), ordered=True)
PAIRS = [
    ("maskbit", BITS, None),
    ("maskbit", VQ, (8, 4)),
    ("maskgit", VQ, None),
    ("maskgit", BITS, (8, 8)),
    ("maskgit", MIXED, (8, 5, 3)),
    ("maskbit", ORDERED, (4, 4)),
    ("maskgit", ORDERED, None),
]


def published(config: Any, bits: int, **trunk: Any) -> int:
    with torch.device("meta"):
        model = build_generator(
            config(num_classes=1000, transformer=TransformerConfig(**trunk)),
            TokenSpec((16, 16), (2**bits,)),
        )
    assert all(p.is_meta for p in model.parameters())
    return model.num_parameters()["total"]


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (10, 304_728_128),
        (12, 304_795_776),
        (14, 304_929_024),
        (16, 305_193_472),
        (18, 305_720_320),
    ],
)
def test_maskbit_has_the_published_sizes(bits: int, expected: int) -> None:
    assert published(MaskBitConfig, bits) == expected


@pytest.mark.parametrize(
    ("bits", "sizes", "trunk", "expected"),
    [
        (10, (1024,), {}, 305_963_008),
        (10, (32, 32), {}, 304_735_232),
        (12, (64, 64), {}, 304_817_152),
        (14, (128, 128), {}, 304_980_992),
        (10, None, {"width": 768, "num_heads": 8}, 172_718_080),
    ],
)
def test_maskgit_has_the_published_sizes(
    bits: int, sizes: tuple[int, ...] | None, trunk: dict[str, int], expected: int
) -> None:
    def config(**fields: Any) -> MaskGITConfig:
        return MaskGITConfig(codebook_sizes=sizes, **fields)

    assert published(config, bits, **trunk) == expected


def test_parameters_are_counted_by_part(make: Any) -> None:
    generator = make("maskgit", VQ)
    counts = generator.num_parameters()
    assert sum(n for name, n in counts.items() if name != "total") == counts["total"]
    assert counts["position"] == 13 * 16
    assert counts["class_embedding"] == 4 * 16
    assert counts["biases"] == 12 * 32
    assert counts["input"] == 33 * 16


def test_defaults_are_the_published_training() -> None:
    maskbit, maskgit = MaskBitConfig(), MaskGITConfig()
    assert (maskbit.mask_schedule, maskbit.unmasked_weight) == ("arccos", 1.0)
    assert (maskgit.mask_schedule, maskgit.unmasked_weight) == ("cosine", 0.0)
    for config in (maskbit, maskgit):
        assert (config.label_smoothing, config.label_dropout) == (0.1, 0.1)
        assert config.mask_count == "independent"
        trunk = config.transformer
        assert (trunk.width, trunk.num_layers, trunk.num_heads) == (1024, 24, 16)
        assert (trunk.mlp_ratio, trunk.dropout, trunk.norm) == (4, 0.1, "post")


@over(
    ("kind", "sizes", "expected"),
    [
        ("maskbit", (1024,), (32, 32)),
        ("maskbit", (2,) * 8, (16, 16)),
        ("maskbit", (2,) * 9, (32, 16)),
        ("maskbit", (2**10,), (32, 32)),
        ("maskbit", (2**14,), (128, 128)),
        ("maskbit", (2**18,), (512, 512)),
        ("maskbit", (2,) * 20, (128, 128, 64)),
        ("maskbit", (2,) * 24, (256, 256, 256)),
        ("maskbit", (2,), (2,)),
        ("maskbit", (4,), (2, 2)),
        ("maskbit", (4096,) * 4, (256,) * 6),
        ("maskbit", (2, 4, 8), (8, 8)),
        ("maskgit", (1024,), (1024,)),
        ("maskgit", (2**14,), (2**14,)),
        ("maskgit", (2,) * 14, (2**14,)),
        ("maskgit", (2,) * 15, (256, 128)),
        ("maskgit", (2,) * 24, (256, 256, 256)),
        ("maskgit", (8, 5, 5, 5), (1000,)),
        ("maskgit", (4096,) * 4, (4096,) * 4),
        ("maskgit", (1000, 1000), (1000, 1000)),
        ("maskgit", (8, 5, 3), (120,)),
    ],
)
def test_groups_of_every_kind_of_spec(
    make: Any, kind: str, sizes: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    spec = TokenSpec((2, 2), sizes)
    generator = make(kind, spec)
    assert generator.codebook_sizes == expected
    assert generator.num_groups == len(expected)
    assert generator.masked_spec == TokenSpec((2, 2), expected)
    tokens = make.tokens(spec)
    assert tokens.regroup(expected).regroup(sizes).equal(tokens)
    out = generator(tokens, torch.tensor([0, 1, 2]), seeds=torch.arange(3))
    assert out.loss.isfinite()
    mean_log = sum(map(math.log, expected)) / len(expected)
    assert generator.uniform_loss == pytest.approx(mean_log)


def test_bits_of_any_width_are_read_in_the_fewest_groups_as_equal_as_can_be() -> None:
    for num_bits in range(2, 40):
        sizes = read_sizes(MaskBitConfig(), TokenSpec((2, 2), (2,) * num_bits))
        assert math.prod(sizes) == 2**num_bits
        assert len(sizes) == max(2, math.ceil(num_bits / 9))
        assert max(sizes) <= 512 and max(sizes) <= 2 * min(sizes)
        assert list(sizes) == sorted(sizes, reverse=True)


@over(
    ("kind", "sizes", "groups", "message"),
    [
        ("maskbit", (8, 5, 5, 5), None, r"MaskBit reads bits.*use \{type: maskgit\}"),
        ("maskbit", (1000,), None, r"MaskBit reads bits, and 2x2 tokens of \(1000\)"),
        ("maskgit", (2**18,), None, r"a head of 262144 entries.*split the 18 bits of .*\[A, B"),
        ("maskbit", (2**18,), (2**18,), "a head of 262144 entries is too large"),
        ("maskgit", (10**6, 7), None, "a head of 1000000 entries is too large"),
        ("maskbit", (2,) * 8, (32, 16), r"regroup: .* has 256 joint values, \(32, 16\) has 512"),
        ("maskbit", (64,), (6, 11), r"MaskBit needs powers of two, found \[6, 11\]"),
        ("maskgit", (8, 5, 5, 5), (10, 10), r"has 1000 joint values, \(10, 10\) has 100"),
        ("maskgit", (32,), (32, 1), "expected 2 to 2.*62 each, found 1"),
        ("maskgit", (32,), (), "expected at least one entry"),
        ("maskgit", (5**14,) * 2, (25,) * 14, "more than 2.*62 joint values"),
    ],
)
def test_readings_that_are_impossible_are_refused_with_the_reason(
    make: Any, kind: str, sizes: tuple[int, ...], groups: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(kind, TokenSpec((2, 2), sizes), codebook_sizes=groups)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": -1}, "num_classes: expected at least 0, found -1"),
        ({"unmasked_weight": -0.1}, r"unmasked_weight: expected 0 to 1, found -0\.1"),
        ({"unmasked_weight": 1.5}, r"unmasked_weight: expected 0 to 1, found 1\.5"),
        ({"label_smoothing": float("nan")}, "label_smoothing: expected 0 to 1, found nan"),
        ({"label_dropout": 2.0}, r"label_dropout: expected 0 to 1, found 2\.0"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskedConfig(**fields)


def test_the_number_of_classes_must_be_known(make: Any) -> None:
    with pytest.raises(ValueError, match="num_classes: not given; 0 is unconditional"):
        make("maskbit", BITS, num_classes=None)


def test_foreign_tokens_are_refused(make: Any) -> None:
    generator = make("maskbit", BITS)
    with pytest.raises(SpecMismatch, match=r"this generator reads 3x4 tokens of \(6x2\)"):
        generator(make.tokens(VQ))


def test_the_tokenizer_must_fit_and_is_no_part_of_the_module(make: Any) -> None:
    generator = make("maskbit", BITS)
    with pytest.raises(RuntimeError, match=r"set generator\.tokenizer"):
        _ = generator.tokenizer
    names, tokenizer = set(generator.state_dict()), Tokenizer()
    tokenizer.weight = torch.nn.Parameter(torch.ones(3))
    tokenizer.spec = VQ
    with pytest.raises(ValueError, match=r"the generator emits 3x4 tokens of .*reads"):
        generator.tokenizer = tokenizer
    tokenizer.spec = BITS
    generator.tokenizer = tokenizer
    assert generator.tokenizer is tokenizer
    assert set(generator.state_dict()) == names
    assert tokenizer not in list(generator.modules())
    assert generator.double().tokenizer.weight.dtype == torch.float32


@pytest.mark.parametrize("num_bits", [4, 6, 9, 12])
def test_bits_of_the_groups_are_the_code_vector_of_the_tokenizer(make: Any, num_bits: int) -> None:
    """Invariant 1: splitting is a bijection, and the signs equal the code, bit for bit."""
    count = 2**num_bits
    joint = Tokens(torch.arange(count)[:, None, None], TokenSpec((1,), (count,)))
    code = torch.stack([(torch.arange(count) >> i & 1) * 2.0 - 1 for i in range(num_bits)], -1)
    for groups in (g for g in range(1, num_bits + 1) if num_bits % g == 0):
        sizes = (2 ** (num_bits // groups),) * groups
        generator = make("maskbit", joint.spec, codebook_sizes=sizes)
        split = joint.regroup(sizes).indices
        assert split.flatten(1).unique(dim=0).shape[0] == count
        back = sum(split[..., g] << (g * num_bits // groups) for g in range(groups))
        assert torch.equal(back, joint.indices[..., 0])
        nothing_hidden = torch.zeros_like(split, dtype=torch.bool)
        assert torch.equal(generator.input.signs(split, nothing_hidden)[:, 0], code)


def test_a_half_masked_position_is_half_zero(make: Any) -> None:
    """The example of the spec: 8 bits, first group 1101, second hidden."""
    generator = make("maskbit", TokenSpec((1,), (2,) * 8))
    indices, mask = torch.tensor([[[0b1101, 0b0110]]]), torch.tensor([[[False, True]]])
    signs = generator.input.signs(indices, mask)
    assert signs.flatten().tolist() == [1, -1, 1, 1, 0, 0, 0, 0]


def test_a_masked_group_adds_nothing(make: Any) -> None:
    """Invariant 2: exactly 0 before the bias."""
    generator = make.randomised("maskbit", BITS)
    indices = make.tokens(BITS).regroup(generator.codebook_sizes).indices
    hidden = torch.ones_like(indices, dtype=torch.bool)
    bias = generator.input.project.bias
    assert torch.equal(generator.input(indices, hidden), bias.expand(3, 12, -1))
    for g, width in enumerate(generator.input.widths):
        mask = hidden.clone()
        mask[..., g] = False
        start = sum(generator.input.widths[:g])
        columns = generator.input.project.weight[:, start : start + width]
        bits = (indices[..., g, None] >> torch.arange(width) & 1) * 2.0 - 1
        expected = bits @ columns.T + bias
        torch.testing.assert_close(generator.input(indices, mask), expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize(("kind", "spec", "sizes"), PAIRS)
def test_hidden_entries_are_not_read(
    make: Any, kind: str, spec: TokenSpec, sizes: tuple[int, ...] | None
) -> None:
    """Invariant 2: what is hidden cannot influence any logit; what is visible does."""
    generator = make.randomised(kind, spec, codebook_sizes=sizes)
    rng = torch.Generator().manual_seed(0)
    first, second = (
        make.tokens(spec, seed=s).regroup(generator.codebook_sizes).indices for s in (1, 2)
    )
    mask = torch.rand(first.shape, generator=rng) < 0.5
    labels = torch.tensor([0, 1, 3])
    mixed = torch.where(mask, second, first)
    assert torch.equal(
        generator.predict(first, mask, labels), generator.predict(mixed, mask, labels)
    )
    other = generator.predict(torch.where(mask, first, second), mask, labels)
    assert not torch.allclose(other, generator.predict(first, mask, labels), atol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fully_masked_image_depends_on_position_and_class_only(make: Any, kind: str) -> None:
    generator = make.randomised(kind, BITS)
    indices = make.tokens(BITS).regroup(generator.codebook_sizes).indices
    mask = torch.ones_like(indices, dtype=torch.bool)
    same = generator.predict(indices, mask, torch.tensor([1, 1, 1]))
    assert torch.equal(same[0], same[1]) and torch.equal(same[0], same[2])
    other = generator.predict(indices, mask, torch.tensor([1, 2, 3]))
    assert torch.allclose(other[0], same[0], atol=ATOL)
    assert not torch.allclose(other[0], other[1], atol=0.01)
    assert not torch.allclose(other[1], other[2], atol=1e-3)
    assert not torch.allclose(same[0, 0], same[0, 1], atol=0.01)  # positions differ


def test_bits_are_an_embedding_bag(make: Any) -> None:
    """Invariant 3: the bit input equals tables T_g[v] = W_g bits(v), T_g[hidden] = 0, plus bias."""
    generator = make.randomised("maskbit", TokenSpec((3, 4), (2,) * 6), codebook_sizes=(8, 4, 2))
    weight, bias = generator.input.project.weight, generator.input.project.bias
    tables, start = [], 0
    for width in (3, 2, 1):
        bits = torch.stack(
            [torch.tensor([v >> i & 1 for i in range(width)]) for v in range(2**width)]
        )
        rows = (bits * 2.0 - 1) @ weight[:, start : start + width].T
        tables.append(torch.cat([rows, torch.zeros(1, 16)]))
        start += width
    indices = make.tokens(BITS).regroup((8, 4, 2)).indices
    mask = torch.rand(indices.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    rows = torch.where(mask, torch.tensor([8, 4, 2]), indices)
    expected = sum(F.embedding(rows[..., g], table) for g, table in enumerate(tables)) + bias
    torch.testing.assert_close(generator.input(indices, mask), expected, rtol=0, atol=ATOL)


def test_maskgit_adds_up_a_row_per_group_and_ties_the_logits(make: Any) -> None:
    generator = make.randomised("maskgit", MIXED, codebook_sizes=(8, 5, 3))
    tables = [table.weight for table in generator.input.tables]
    assert [len(table) for table in tables] == [9, 6, 4]
    indices = make.tokens(MIXED).indices
    mask = torch.rand(indices.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    rows = torch.where(mask, torch.tensor([8, 5, 3]), indices)
    expected = sum(tables[g][rows[..., g]] for g in range(3))
    torch.testing.assert_close(generator.input(indices, mask), expected, rtol=0, atol=ATOL)
    states = []
    generator.dense_norm.register_forward_hook(lambda m, a, out: states.append(out))
    logits = generator.predict(indices, mask, torch.tensor([0, 1, 2]))
    assert logits.shape == (3, 12, 3, 8)
    for g, size in enumerate((8, 5, 3)):
        expected = states[0] @ tables[g][:size].T + generator.biases[g]
        torch.testing.assert_close(logits[:, :, g, :size], expected, rtol=0, atol=ATOL)
        assert (logits[:, :, g, size:] == -torch.inf).all()
    assert generator.head is None


def test_the_network_is_the_one_of_the_table(make: Any) -> None:
    """Section 2 written out once more: class token last, norm before the blocks, GELU before LN."""
    generator = make.randomised("maskbit", BITS)
    indices = make.tokens(BITS).regroup(generator.codebook_sizes).indices
    mask = torch.rand(indices.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    labels = torch.tensor([0, 3, 2])
    bits = make.tokens(BITS).bits().float() * 2 - 1
    signs = bits.masked_fill(mask.repeat_interleave(3, -1), 0)
    x = torch.cat(
        [generator.input.project(signs), generator.class_embedding.weight[labels][:, None]], 1
    )
    x = generator.input_norm(x + generator.position)
    x = generator.trunk(x)[:, :12]
    x = generator.dense_norm(F.gelu(generator.dense(x)))
    expected = generator.head(x).view(3, 12, 2, 8)
    found = generator.predict(indices, mask, labels)
    torch.testing.assert_close(found, expected, rtol=0, atol=ATOL)
    assert found.dtype == torch.float32


def test_permuting_groups_with_their_weights_permutes_the_logits(make: Any) -> None:
    """Invariant 12."""
    generator = make.randomised("maskbit", BITS, codebook_sizes=(4, 4, 4))
    order = [2, 0, 1]
    columns = torch.tensor([2 * g + i for g in order for i in range(2)])
    rows = torch.tensor([4 * g + v for g in order for v in range(4)])
    permuted = make.randomised("maskbit", BITS, codebook_sizes=(4, 4, 4))
    with torch.no_grad():
        permuted.input.project.weight.copy_(generator.input.project.weight[:, columns])
        permuted.head.weight.copy_(generator.head.weight[rows])
        permuted.head.bias.copy_(generator.head.bias[rows])
    indices = make.tokens(BITS).regroup((4, 4, 4)).indices
    mask = torch.rand(indices.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    labels = torch.tensor([0, 1, 2])
    expected = generator.predict(indices, mask, labels)[:, :, order]
    found = permuted.predict(indices[..., order], mask[..., order], labels)
    torch.testing.assert_close(found, expected, rtol=0, atol=ATOL)
    assert not torch.allclose(expected, generator.predict(indices, mask, labels), atol=0.01)


def test_prenorm_reaches_the_trunk(make: Any) -> None:
    trunk = TransformerConfig(width=16, num_layers=1, num_heads=2, dropout=0.0, norm="pre")
    generator = make("maskbit", BITS, transformer=trunk)
    assert generator.trunk.norm_out.weight.numel() == 16
    assert generator(make.tokens(BITS)).loss.isfinite()
