"""Public layouts, written down here a second time, come back as the generator they were."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.generators.build import build_generator
from tessella.generators.masked import MaskBitConfig, MaskedGenerator, MaskGITConfig
from tessella.generators.networks.bert import TransformerConfig
from tessella.importers.generator_formats import translate_generator
from tessella.importers.tensors import LayoutError
from tessella.tests.cases import over
from tessella.tokens.tokens import TokenSpec

State = dict[str, Tensor]
BITS = TokenSpec((2, 3), (2,) * 6)
TRUNK = TransformerConfig(width=16, num_layers=2, num_heads=4)
INPUTS = ("input_proj", "token_emb")


def published(generator: MaskedGenerator, input_name: str = "input_proj") -> State:
    """The state dict under public names: the table of keys, once more."""
    result: State = {}
    for name, tensor in generator.state_dict().items():
        block = re.fullmatch(r"trunk\.blocks\.(\d+)\.(\w+)\.(weight|bias)", name)
        if block:
            layer, part, leaf = block.groups()
            places = {
                "qkv": f"0.mha.in_proj_{leaf}",
                "out": f"0.mha.out_proj.{leaf}",
                "norm1": f"0.norm.{leaf}",
                "mlp_in": f"1.net.0.{leaf}",
                "mlp_out": f"1.net.2.{leaf}",
                "norm2": f"1.norm.{leaf}",
            }
            result[f"transformer.layers.{layer}.{places[part]}"] = tensor
            continue
        stem, _, leaf = name.rpartition(".")
        stems = {
            "input.project": input_name,
            "class_embedding": "class_emb",
            "input_norm": "first_layer.0",
            "trunk.norm_out": "norm_after_transformer",
            "dense": "last_layer.0",
            "dense_norm": "last_layer.2",
            "head": "prediction_layer",
            "biases": "bias",
        }
        if name == "position":
            result["pos_emb"] = tensor
        elif stem.startswith("input.tables."):
            result[f"tok_emb_list.{stem.rpartition('.')[2]}.{leaf}"] = tensor
        else:
            result[f"{stems[stem]}.{leaf}"] = tensor
    return result


def example(make: Any, kind: str = "maskbit", **fields: Any) -> MaskedGenerator:
    if kind == "maskgit":
        fields = {"mask_schedule": "arccos", "unmasked_weight": 1.0} | fields
    fields = {"transformer": TRUNK, "num_classes": 5, "codebook_sizes": (8, 8)} | fields
    return make.randomised(kind, BITS, **fields)


@pytest.mark.parametrize("input_name", INPUTS)
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_bit_reader_comes_back(make: Any, input_name: str, norm: str) -> None:
    trunk = TransformerConfig(width=16, num_layers=2, num_heads=4, norm=norm)
    generator = example(make, transformer=trunk)
    stored = published(generator, input_name) | {"bits_to_indices": torch.tensor([1, 2, 4])}
    given = MaskBitConfig(transformer=trunk)
    found = translate_generator(stored, "maskbit", config=given, spec=BITS)
    assert found.config == generator.config and found.spec == BITS
    assert list(found.dropped) == ["bits_to_indices"]
    check_same(generator, found)


@pytest.mark.parametrize("sizes", [(8, 8), (64,)])
def test_index_reader_comes_back(make: Any, sizes: tuple[int, ...]) -> None:
    generator = example(make, "maskgit", codebook_sizes=sizes)
    given = MaskGITConfig(transformer=TRUNK, mask_schedule="arccos", unmasked_weight=1.0)
    found = translate_generator(published(generator), "maskbit", config=given, spec=BITS)
    assert found.config == generator.config
    check_same(generator, found)


def check_same(generator: MaskedGenerator, found: Any) -> None:
    """Equal logits for tokens of which some groups are hidden."""
    again = build_generator(found.config, found.spec)
    again.load_state_dict(found.state)
    rng = torch.Generator().manual_seed(0)
    sizes = generator.codebook_sizes
    indices = torch.stack([torch.randint(k, (3, 6), generator=rng) for k in sizes], -1)
    mask = torch.rand(indices.shape, generator=rng) < 0.5
    labels = torch.tensor([0, 5, 2])
    with torch.no_grad():
        expected = generator.predict(indices, mask, labels)
        assert torch.equal(again.eval().predict(indices, mask, labels), expected)


@pytest.mark.parametrize(
    "num_bits,groups,kind",
    [(10, 2, "maskbit"), (18, 2, "maskbit"), (10, 1, "maskgit"), (14, 2, "maskgit")],
)
def test_published_sizes_are_read_off_the_shapes(num_bits: int, groups: int, kind: str) -> None:
    """Counts of the published models; the tensors take no memory, and fewer layers little time."""
    sizes = (2 ** (num_bits // groups),) * groups
    fields = {"num_classes": 1000, "codebook_sizes": sizes}
    trunk = TransformerConfig(num_layers=1)
    tokens = sizes if groups == 1 else (2,) * num_bits
    with torch.device("meta"):
        if kind == "maskbit":
            config: Any = MaskBitConfig(transformer=trunk, **fields)
        else:
            config = MaskGITConfig(
                transformer=trunk, mask_schedule="arccos", unmasked_weight=1.0, **fields
            )
        generator = MaskedGenerator(config, TokenSpec((16, 16), tokens))
    stored = {n: torch.zeros(()).expand(t.shape) for n, t in published(generator).items()}
    found = translate_generator(stored, "maskbit")
    assert found.config == config
    assert found.spec == TokenSpec((16, 16), tokens)
    published_total = {
        (10, 2, "maskbit"): 304_728_128,
        (18, 2, "maskbit"): 305_720_320,
        (10, 1, "maskgit"): 305_963_008,
        (14, 2, "maskgit"): 304_980_992,
    }
    total = sum(t.numel() for t in found.state.values()) + 23 * 12_596_224
    assert total == published_total[num_bits, groups, kind]


@pytest.mark.parametrize("sizes", [(4, 4), (2, 2, 2, 2)])
def test_the_table_of_bits_tells_ambiguous_splits_apart(make: Any, sizes: tuple[int, ...]) -> None:
    """Two groups of 4 and four groups of 2 both need 8 rows."""
    spec = TokenSpec((2, 3), (2,) * 4)
    fields = {"transformer": TRUNK, "num_classes": 5, "codebook_sizes": sizes}
    generator = make.randomised("maskbit", spec, **fields)
    table = 2 ** torch.arange(sizes[0].bit_length() - 1)
    stored = published(generator) | {"bits_to_indices": table}
    found = translate_generator(
        stored, "maskbit", config=MaskBitConfig(transformer=TRUNK), spec=spec
    )
    assert found.config == generator.config


@over(
    "changes,message",
    [
        ({"class_emb.weight": None}, r"class_emb\.weight is missing"),
        ({"last_layer.0.bias": None}, r"missing: last_layer\.0\.bias; unexpected: none"),
        ({"extra.weight": torch.ones(1)}, r"unexpected: extra\.weight"),
        (
            {"first_layer.0.weight": torch.ones(4)},
            r"first_layer\.0\.weight \(4,\) instead of \(16,\)",
        ),
        ({"pos_emb": torch.ones(1, 5, 16)}, r"pos_emb \(1, 5, 16\) instead of \(1, 7, 16\)"),
        ({"pos_emb": torch.full((1, 7, 16), torch.inf)}, "not finite: pos_emb"),
        ({"prediction_layer.weight": torch.ones(9, 16)}, "9 rows, which no split of 6 bits"),
        ({"input_proj.weight": None}, "are all missing; found bits_to_indices|are all missing"),
    ],
)
def test_what_does_not_come_out_even_is_refused(
    make: Any, changes: dict[str, Tensor | None], message: str
) -> None:
    stored = published(example(make)) | changes
    stored = {name: tensor for name, tensor in stored.items() if tensor is not None}
    with pytest.raises(LayoutError, match=r"^does not fit the format maskbit: ") as caught:
        translate_generator(stored, "maskbit", config=MaskBitConfig(transformer=TRUNK), spec=BITS)
    assert re.search(message, str(caught.value)), caught.value


def test_what_no_tensor_shows_is_asked_for(make: Any) -> None:
    stored = published(example(make))
    with pytest.raises(LayoutError, match="number of attention heads of a trunk of width 16"):
        translate_generator(stored, "maskbit", spec=BITS)
    with pytest.raises(LayoutError, match=r"shape of a grid of 6 positions .* give the tokenizer"):
        translate_generator(stored, "maskbit", config=MaskBitConfig(transformer=TRUNK))
    with pytest.raises(LayoutError, match="type is maskgit, expected maskbit"):
        translate_generator(stored, "maskbit", config=MaskGITConfig(transformer=TRUNK), spec=BITS)


def test_tokens_of_another_size_are_refused(make: Any) -> None:
    other = TokenSpec((2, 3), (2,) * 7)
    with pytest.raises(LayoutError, match="does not fit the format maskbit"):
        translate_generator(
            published(example(make)), "maskbit", config=MaskBitConfig(transformer=TRUNK), spec=other
        )
