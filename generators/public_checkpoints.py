"""Public MaskBit generators in our terms: a state dict in, config, spec and our state dict out.

Two layouts of markweberdev/maskbit (arXiv:2409.16211): the bit-reading generator, whose input layer
is called `input_proj` or, in the files on the hub, `token_emb`; and the index-reading baseline. The
files say nothing of attention heads and of the shape of the grid: the published ones are assumed
where the size is a published one, and asked for where it is not.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..tokenizers.public_checkpoints import LayoutError, listed, match_tensors
from ..tokenizers.tokens import TokenSpec
from .build import build_generator
from .masked import MaskBitConfig, MaskGITConfig
from .transformer import TransformerConfig

Config = MaskBitConfig | MaskGITConfig

FORMAT = "maskbit"
_HEADS = {1024: 16, 768: 8}  # by width: MaskBit's, the original MaskGIT's
_GRIDS = {256: (16, 16), 1024: (32, 32)}  # by positions: 256 and 512 pixels at stride 16
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


@dataclass(frozen=True, eq=False)
class GeneratorTranslation:
    """A public generator checkpoint in our terms.

    Args:
        config: What to build.
        spec: For which tokens.
        state: Weights by our names, float32.
        dropped: Keys that were left out, each with the reason.
    """

    config: Config
    spec: TokenSpec
    state: dict[str, Tensor]
    dropped: dict[str, str]


def translate_generator(
    stored: Mapping[str, Tensor],
    *,
    config: Config | None = None,
    spec: TokenSpec | None = None,
) -> GeneratorTranslation:
    """A public state dict in our terms; nothing is ignored silently.

    Args:
        stored: The file's tensors by their public names.
        config: What to build; None: what the shapes say, with the published number of heads. A
            `num_classes` that it does not give is read off the shapes.
        spec: Of the tokenizer; None: a square grid of published size, of bits where a position
            has several groups or is read as bits.

    Raises:
        LayoutError: Listing keys that are missing, unexpected or of another shape, or saying what
            cannot be known.
    """
    try:
        return _translate(stored, config, spec)
    except LayoutError as error:
        raise LayoutError(f"does not fit the format {FORMAT}: {error}") from None


def _translate(
    stored: Mapping[str, Tensor],
    config: Config | None,
    spec: TokenSpec | None,
) -> GeneratorTranslation:
    old_name = "token_emb.weight" in stored
    reads_bits = old_name or "input_proj.weight" in stored
    if not reads_bits and "tok_emb_list.0.weight" not in stored:
        raise LayoutError(
            "token_emb.weight, input_proj.weight and tok_emb_list.0.weight are all missing; "
            f"found {listed(stored)}"
        )
    sizes = _group_sizes(stored, reads_bits)
    num_classes = _shape(stored, "class_emb.weight", 2)[0] - 1
    if config is None:
        common = {"num_classes": num_classes, "codebook_sizes": sizes}
        transformer = _transformer(stored)
        if reads_bits:
            config = MaskBitConfig(transformer=transformer, **common)  # type: ignore[arg-type]
        else:  # the baseline was trained with MaskBit's recipe
            config = MaskGITConfig(
                transformer=transformer,
                mask_schedule="arccos",
                unmasked_weight=1.0,
                **common,  # type: ignore[arg-type]
            )
    elif isinstance(config, MaskBitConfig) != reads_bits:
        kinds = ("maskbit", "maskgit") if reads_bits else ("maskgit", "maskbit")
        raise LayoutError(f"the config says otherwise: type is {kinds[1]}, expected {kinds[0]}")
    config = _completed(config, num_classes, sizes)
    if spec is None:
        spec = _spec(_shape(stored, "pos_emb", 3)[1] - 1, sizes, reads_bits)
    try:
        with torch.device("meta"):
            generator = build_generator(config, spec)
    except ValueError as error:
        raise LayoutError(str(error)) from None
    wanted = {name: tensor.shape for name, tensor in generator.state_dict().items()}

    def name(ours: str) -> str:
        if ours.startswith("input.project."):
            leaf = ours.rpartition(".")[2]
            return f"token_emb.{leaf}" if old_name else f"input_proj.{leaf}"
        for pattern, public in _NAMES:
            found = re.fullmatch(rf"({pattern})(\.weight|\.bias|)", ours)
            if found:
                return re.sub(pattern, public, found[1]) + found[found.re.groups]
        raise AssertionError(f"no public name for {ours}")

    state, dropped = match_tensors(stored, wanted, name, _DROP)
    return GeneratorTranslation(config, spec, state, dropped)


def _shape(stored: Mapping[str, Tensor], name: str, num_axes: int) -> torch.Size:
    """Shape of a tensor that must be there."""
    if name not in stored or stored[name].ndim != num_axes:
        found = f"has shape {tuple(stored[name].shape)}" if name in stored else "is missing"
        raise LayoutError(f"{name} {found}; expected {num_axes} axes, which tell the sizes")
    return stored[name].shape


def _group_sizes(stored: Mapping[str, Tensor], reads_bits: bool) -> tuple[int, ...]:
    """Sizes of the groups of a position."""
    if not reads_bits:
        tables = (f"tok_emb_list.{g}.weight" for g in itertools.count())
        present = itertools.takewhile(lambda name: name in stored, tables)
        return tuple(_shape(stored, name, 2)[0] - 1 for name in present)
    name = "token_emb.weight" if "token_emb.weight" in stored else "input_proj.weight"
    num_bits, rows = _shape(stored, name, 2)[1], _shape(stored, "prediction_layer.weight", 2)[0]
    splits = [g for g in range(1, num_bits + 1) if num_bits % g == 0]
    fitting = [g for g in splits if g * 2 ** (num_bits // g) == rows]
    if "bits_to_indices" in stored:  # tells 1 x 2 bits from 2 x 1
        fitting = [g for g in fitting if num_bits // g == stored["bits_to_indices"].numel()]
    if not fitting:
        raise LayoutError(
            f"prediction_layer.weight has {rows} rows, which no split of {num_bits} bits into "
            "equal groups gives"
        )
    return (2 ** (num_bits // fitting[0]),) * fitting[0]


def _transformer(stored: Mapping[str, Tensor]) -> TransformerConfig:
    """The trunk that the shapes say, with the published number of heads for its width."""
    width = _shape(stored, "class_emb.weight", 2)[1]
    if width not in _HEADS:
        raise LayoutError(
            f"the number of attention heads of a trunk of width {width} is in no tensor; give a "
            "config with generator.transformer"
        )
    hidden = _shape(stored, "transformer.layers.0.1.net.0.weight", 2)[0]
    layers = (f"transformer.layers.{i}.1.net.0.weight" for i in itertools.count())
    return TransformerConfig(
        width=width,
        num_layers=len(list(itertools.takewhile(lambda name: name in stored, layers))),
        num_heads=_HEADS[width],
        mlp_ratio=hidden // width,
        norm="pre" if "norm_after_transformer.weight" in stored else "post",
    )


def _completed(config: Config, num_classes: int, sizes: tuple[int, ...]) -> Config:
    """The config with what it leaves open as the file has it."""
    return dataclasses.replace(
        config,
        num_classes=num_classes if config.num_classes is None else config.num_classes,
        codebook_sizes=sizes if config.codebook_sizes is None else config.codebook_sizes,
    )


def _spec(num_tokens: int, sizes: tuple[int, ...], reads_bits: bool) -> TokenSpec:
    """The tokens of a published tokenizer."""
    if num_tokens not in _GRIDS:
        raise LayoutError(
            f"the shape of a grid of {num_tokens} positions is in no tensor; give the tokenizer"
        )
    num_bits = sum(size.bit_length() - 1 for size in sizes)
    bits = reads_bits or len(sizes) > 1
    return TokenSpec(_GRIDS[num_tokens], (2,) * num_bits if bits else sizes)
