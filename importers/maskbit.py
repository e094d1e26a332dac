"""Public MaskBit checkpoints: translation of the state dicts of markweberdev/maskbit.

Two layouts (arXiv:2409.16211): the bit-reading generator, whose input layer is called `input_proj`
or, in the files on the hub, `token_emb`; and the index-reading baseline, which becomes a MaskGIT
generator. The files do not store the number of attention heads and the shape of the token grid:
published values are assumed for published sizes, and must be given otherwise.
"""

import dataclasses
import itertools
from collections.abc import Mapping

from torch import Tensor

from ..generators.build import GeneratorConfig
from ..generators.masked import MaskBitConfig, MaskGITConfig
from ..generators.networks.bert import TransformerConfig
from ..tokens.tokens import TokenSpec
from .tensors import LayoutError, listed, shape_of
from .translation import (
    GeneratorTranslation,
    count_of,
    grid_of,
    matched,
    other_type,
    unknown_heads,
)

_HEADS = {1024: 16, 768: 8}  # attention heads by width: of MaskBit, and of the original MaskGIT
_DROP = ((r"bits_to_indices", "table that follows from the number of bits"),)
_NAMES = (
    (r"input\.tables\.(\d+)", r"tok_emb_list.\1"),
    (r"biases\.(\d+)", r"bias.\1"),
    (r"class_embedding", "class_emb"),
    (r"position", "pos_emb"),
    (r"input_norm", "first_layer.0"),
    (r"trunk\.norm_out", "norm_after_transformer"),
    (r"trunk\.blocks\.(\d+)\.qkv\.(weight|bias)", r"transformer.layers.\1.0.mha.in_proj_\2"),
    (r"trunk\.blocks\.(\d+)\.out", r"transformer.layers.\1.0.mha.out_proj"),
    (r"trunk\.blocks\.(\d+)\.norm1", r"transformer.layers.\1.0.norm"),
    (r"trunk\.blocks\.(\d+)\.mlp_in", r"transformer.layers.\1.1.net.0"),
    (r"trunk\.blocks\.(\d+)\.mlp_out", r"transformer.layers.\1.1.net.2"),
    (r"trunk\.blocks\.(\d+)\.norm2", r"transformer.layers.\1.1.norm"),
    (r"dense", "last_layer.0"),
    (r"dense_norm", "last_layer.2"),
    (r"head", "prediction_layer"),
)


def translate_maskbit(
    stored: Mapping[str, Tensor],
    config: GeneratorConfig | None,
    spec: TokenSpec | None,
) -> GeneratorTranslation:
    """Translate a state dict of either layout; see `generator_formats.translate_generator`."""
    old_name = "token_emb.weight" in stored
    reads_bits = old_name or "input_proj.weight" in stored
    if not reads_bits and "tok_emb_list.0.weight" not in stored:
        raise LayoutError(
            "token_emb.weight, input_proj.weight and tok_emb_list.0.weight are all missing; "
            f"found {listed(stored)}"
        )
    sizes = _group_sizes(stored, reads_bits)
    num_classes = shape_of(stored, "class_emb.weight", 2)[0] - 1
    if config is None:
        transformer = _transformer(stored)
        if reads_bits:
            config = MaskBitConfig(
                transformer=transformer, num_classes=num_classes, codebook_sizes=sizes
            )
        else:  # the baseline was trained with MaskBit's recipe
            config = MaskGITConfig(
                transformer=transformer,
                num_classes=num_classes,
                codebook_sizes=sizes,
                mask_schedule="arccos",
                unmasked_weight=1.0,
            )
    expected = MaskBitConfig if reads_bits else MaskGITConfig
    if not isinstance(config, expected):
        raise other_type(config, expected.type)
    config = dataclasses.replace(
        config,
        num_classes=num_classes if config.num_classes is None else config.num_classes,
        codebook_sizes=sizes if config.codebook_sizes is None else config.codebook_sizes,
    )
    if spec is None:
        spec = _published_spec(shape_of(stored, "pos_emb", 3)[1] - 1, sizes, reads_bits)
    old_input = "token_emb" if old_name else "input_proj"
    names = ((r"input\.project", old_input), *_NAMES)
    return matched(stored, config, spec, names, _DROP)


def _group_sizes(stored: Mapping[str, Tensor], reads_bits: bool) -> tuple[int, ...]:
    """Codebook sizes of the groups of a position, inferred from the shapes."""
    if not reads_bits:
        tables = (f"tok_emb_list.{g}.weight" for g in itertools.count())
        present = itertools.takewhile(lambda name: name in stored, tables)
        return tuple(shape_of(stored, name, 2)[0] - 1 for name in present)
    name = "token_emb.weight" if "token_emb.weight" in stored else "input_proj.weight"
    num_bits, rows = shape_of(stored, name, 2)[1], shape_of(stored, "prediction_layer.weight", 2)[0]
    splits = [g for g in range(1, num_bits + 1) if num_bits % g == 0]
    fitting = [g for g in splits if g * 2 ** (num_bits // g) == rows]
    if "bits_to_indices" in stored:  # distinguishes 1 x 2 bits from 2 x 1
        fitting = [g for g in fitting if num_bits // g == stored["bits_to_indices"].numel()]
    if not fitting:
        raise LayoutError(
            f"prediction_layer.weight has {rows} rows, which no split of {num_bits} bits into "
            "equal groups gives"
        )
    return (2 ** (num_bits // fitting[0]),) * fitting[0]


def _published_spec(num_tokens: int, sizes: tuple[int, ...], reads_bits: bool) -> TokenSpec:
    """Token spec of the published tokenizer: bits if they are read as bits or in several groups."""
    num_bits = sum(size.bit_length() - 1 for size in sizes)
    bits = reads_bits or len(sizes) > 1
    return TokenSpec(grid_of(num_tokens), (2,) * num_bits if bits else sizes)


def _transformer(stored: Mapping[str, Tensor]) -> TransformerConfig:
    """Transformer config inferred from the shapes, with the published heads for its width."""
    width = shape_of(stored, "class_emb.weight", 2)[1]
    if width not in _HEADS:
        raise unknown_heads(width)
    hidden = shape_of(stored, "transformer.layers.0.1.net.0.weight", 2)[0]
    return TransformerConfig(
        width=width,
        num_layers=count_of(stored, "transformer.layers.{}.1.net.0.weight"),
        num_heads=_HEADS[width],
        mlp_ratio=hidden // width,
        norm="pre" if "norm_after_transformer.weight" in stored else "post",
    )
