"""Public generators in our terms: a state dict in, config, spec and our state dict out.

- `maskbit`, two layouts of markweberdev/maskbit (arXiv:2409.16211): the bit-reading generator,
  whose input layer is called `input_proj` or, in the files on the hub, `token_emb`; and the
  index-reading baseline.
- `bld`, the Bernoulli diffusion of ZeWang95/BinaryLatentDiffusion (arXiv:2304.04820). The number of
  steps and the schedule are those of the stored table of keep factors; the loss is in no tensor,
  and the published one is assumed.

The files say nothing of attention heads and of the shape of the grid: the published ones are
assumed where the size is a published one, and asked for where it is not.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..tokenizers.public_checkpoints import LayoutError, listed, match_tensors
from ..tokenizers.tokens import TokenSpec
from .bernoulli_diffusion import BernoulliDiffusion
from .binary_latent_diffusion import BinaryLatentDiffusionConfig
from .build import GeneratorConfig, build_generator
from .denoising_transformer import DenoisingTransformerConfig
from .masked import MaskBitConfig, MaskGITConfig
from .transformer import TransformerConfig

FORMAT, BLD_FORMAT = "maskbit", "bld"
FORMATS = (FORMAT, BLD_FORMAT)
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
_BLD_HEADS = {768: 12}
_BLD_TABLE = 1e-5  # most that a stored table of keep factors may differ, float32 products
_BLD_SCHEDULES = ("linear", "cos", "sigmoid")
_BLD_DROP = (
    (r"scheduler\.\w+", "table that follows from the schedule"),
    (r"embedding_weight", "copy of the tokenizer's embedding"),
)
_BLD_NAMES = (
    (r"network\.bit_embedding", "tok_emb.weight"),
    (r"network\.position", "pos_emb"),
    (r"network\.class_embedding", "cls_embedding"),
    (r"network\.time_in", "time_step_embedding.l0"),
    (r"network\.time_out", "time_step_embedding.linear"),
    (r"network\.trunk\.blocks\.(\d+)\.norm([12])", r"blocks.\1.ln\2"),
    (r"network\.trunk\.blocks\.(\d+)\.qkv", r"blocks.\1.attn.qkv"),
    (r"network\.trunk\.blocks\.(\d+)\.out\.scale", r"blocks.\1.gamma_1"),
    (r"network\.trunk\.blocks\.(\d+)\.out", r"blocks.\1.attn.proj"),
    (r"network\.trunk\.blocks\.(\d+)\.mlp_in", r"blocks.\1.mlp.0"),
    (r"network\.trunk\.blocks\.(\d+)\.mlp_out\.scale", r"blocks.\1.gamma_2"),
    (r"network\.trunk\.blocks\.(\d+)\.mlp_out", r"blocks.\1.mlp.2"),
    (r"network\.trunk\.norm_out", "ln_f"),
    (r"network\.head", "head"),
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

    config: GeneratorConfig
    spec: TokenSpec
    state: dict[str, Tensor]
    dropped: dict[str, str]


def translate_generator(
    stored: Mapping[str, Tensor],
    format_name: str = FORMAT,
    *,
    config: GeneratorConfig | None = None,
    spec: TokenSpec | None = None,
) -> GeneratorTranslation:
    """A public state dict in our terms; nothing is ignored silently.

    Args:
        stored: The file's tensors by their public names.
        format_name: One of `FORMATS`.
        config: What to build; None: what the shapes say, with the published number of heads. A
            `num_classes` that it does not give is read off the shapes.
        spec: Of the tokenizer; None: a square grid of published size, of bits where a position
            has several groups or is read as bits.

    Raises:
        LayoutError: Listing keys that are missing, unexpected or of another shape, or saying what
            cannot be known.
    """
    translate = {FORMAT: _translate_maskbit, BLD_FORMAT: _translate_bld}[format_name]
    try:
        return translate(stored, config, spec)
    except LayoutError as error:
        raise LayoutError(f"does not fit the format {format_name}: {error}") from None


def _translate_maskbit(
    stored: Mapping[str, Tensor],
    config: GeneratorConfig | None,
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
    expected = MaskBitConfig if reads_bits else MaskGITConfig
    if not isinstance(config, expected):
        raise _other_type(config, expected.type)
    config = _completed(config, num_classes, sizes)
    if spec is None:
        spec = _spec(_shape(stored, "pos_emb", 3)[1] - 1, sizes, reads_bits)
    old_input = "token_emb" if old_name else "input_proj"
    names = ((r"input\.project", old_input), *_NAMES)
    return _matched(stored, config, spec, names, _DROP)


def _translate_bld(
    stored: Mapping[str, Tensor],
    config: GeneratorConfig | None,
    spec: TokenSpec | None,
) -> GeneratorTranslation:
    """Keys of the network lose their prefix `_denoise_fn.`, and all keys a `module.` before it."""
    if all(name.startswith("module.") for name in stored):
        stored = {name.removeprefix("module."): tensor for name, tensor in stored.items()}
    table = _shape(stored, "scheduler.k_final", 1)
    num_bits, width = _shape(stored, "_denoise_fn.tok_emb.weight", 2)
    num_classes = 0
    if "_denoise_fn.cls_embedding.bias" in stored:
        raise LayoutError(
            "_denoise_fn.cls_embedding has a bias: a text-to-image model, conditioned on CLIP "
            "vectors, which is not read"
        )
    if "_denoise_fn.cls_embedding.weight" in stored:
        num_classes = _shape(stored, "_denoise_fn.cls_embedding.weight", 2)[0]
    keep = stored["scheduler.k_final"]
    if config is None:
        process = _diffusion(keep)
        config = BinaryLatentDiffusionConfig(
            transformer=_denoising_transformer(stored, width),
            diffusion=process,
            num_classes=num_classes,
            null_label="absent",
        )
    if not isinstance(config, BinaryLatentDiffusionConfig):
        raise _other_type(config, "bld")
    if config.diffusion.num_steps != table[0] - 1 or not _same_table(config.diffusion, keep):
        raise LayoutError(
            f"the config says otherwise: {config.diffusion.num_steps} steps, "
            f"{config.diffusion.schedule}; scheduler.k_final has {table[0] - 1} steps"
        )
    if config.num_classes is None:
        config = dataclasses.replace(config, num_classes=num_classes)
    if spec is None:
        spec = TokenSpec(_grid(_shape(stored, "_denoise_fn.pos_emb", 3)[1]), (2,) * num_bits)
    names = [(ours, f"_denoise_fn.{public}") for ours, public in _BLD_NAMES]
    return _matched(stored, config, spec, names, _BLD_DROP)


def _matched(
    stored: Mapping[str, Tensor],
    config: GeneratorConfig,
    spec: TokenSpec,
    names: Sequence[tuple[str, str]],
    drop: Sequence[tuple[str, str]],
) -> GeneratorTranslation:
    """The tensors of what the config builds, by a table from our names to the public ones.

    Args:
        stored: The file's tensors by their public names.
        config: What to build.
        spec: For which tokens.
        names: Patterns of our names, less `.weight` or `.bias`, with the public ones.
        drop: Patterns of public names to leave out, each with the reason.
    """
    try:
        with torch.device("meta"):
            generator = build_generator(config, spec)
    except ValueError as error:
        raise LayoutError(str(error)) from None
    wanted = {name: tensor.shape for name, tensor in generator.state_dict().items()}

    def name(ours: str) -> str:
        for pattern, public in names:
            found = re.fullmatch(rf"({pattern})(\.weight|\.bias|)", ours)
            if found:
                return re.sub(pattern, public, found[1]) + found[found.re.groups]
        raise AssertionError(f"no public name for {ours}")

    state, dropped = match_tensors(stored, wanted, name, drop)
    return GeneratorTranslation(config, spec, state, dropped)


def _other_type(config: GeneratorConfig, expected: str) -> LayoutError:
    return LayoutError(f"the config says otherwise: type is {config.type}, expected {expected}")


def _diffusion(keep: Tensor) -> BernoulliDiffusion:
    """The published process with these keep factors."""
    for schedule in _BLD_SCHEDULES:
        process = BernoulliDiffusion(
            num_steps=max(len(keep) - 1, 1),
            schedule=schedule,  # type: ignore[arg-type]
            weights="image",
        )
        if _same_table(process, keep):
            return process
    raise LayoutError(
        f"scheduler.k_final is the table of none of the schedules {', '.join(_BLD_SCHEDULES)}"
    )


def _same_table(process: BernoulliDiffusion, keep: Tensor) -> bool:
    times = torch.arange(process.num_steps + 1)
    same = len(keep) == len(times)
    return same and bool((process.keep(times) - keep.double()).abs().max() < _BLD_TABLE)


def _denoising_transformer(stored: Mapping[str, Tensor], width: int) -> DenoisingTransformerConfig:
    """The trunk that the shapes say, with the published number of heads for its width."""
    if width not in _BLD_HEADS:
        raise _no_heads(width)
    hidden = _shape(stored, "_denoise_fn.blocks.0.mlp.0.weight", 2)[0]
    return DenoisingTransformerConfig(
        width=width,
        num_layers=_count(stored, "_denoise_fn.blocks.{}.mlp.0.weight"),
        num_heads=_BLD_HEADS[width],
        mlp_ratio=hidden // width,
    )


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
        raise _no_heads(width)
    hidden = _shape(stored, "transformer.layers.0.1.net.0.weight", 2)[0]
    return TransformerConfig(
        width=width,
        num_layers=_count(stored, "transformer.layers.{}.1.net.0.weight"),
        num_heads=_HEADS[width],
        mlp_ratio=hidden // width,
        norm="pre" if "norm_after_transformer.weight" in stored else "post",
    )


def _no_heads(width: int) -> LayoutError:
    return LayoutError(
        f"the number of attention heads of a trunk of width {width} is in no tensor; give a "
        "config with generator.transformer"
    )


def _count(stored: Mapping[str, Tensor], pattern: str) -> int:
    """How many tensors there are, of names numbered from 0."""
    names = (pattern.format(i) for i in itertools.count())
    return len(list(itertools.takewhile(lambda name: name in stored, names)))


def _completed(
    config: MaskBitConfig | MaskGITConfig, num_classes: int, sizes: tuple[int, ...]
) -> MaskBitConfig | MaskGITConfig:
    """The config with what it leaves open as the file has it."""
    return dataclasses.replace(
        config,
        num_classes=num_classes if config.num_classes is None else config.num_classes,
        codebook_sizes=sizes if config.codebook_sizes is None else config.codebook_sizes,
    )


def _spec(num_tokens: int, sizes: tuple[int, ...], reads_bits: bool) -> TokenSpec:
    """The tokens of a published tokenizer."""
    num_bits = sum(size.bit_length() - 1 for size in sizes)
    bits = reads_bits or len(sizes) > 1
    return TokenSpec(_grid(num_tokens), (2,) * num_bits if bits else sizes)


def _grid(num_tokens: int) -> tuple[int, int]:
    """The shape of a published grid."""
    if num_tokens not in _GRIDS:
        raise LayoutError(
            f"the shape of a grid of {num_tokens} positions is in no tensor; give the tokenizer"
        )
    return _GRIDS[num_tokens]
