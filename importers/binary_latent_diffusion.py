"""Public checkpoints of Binary Latent Diffusion (arXiv:2304.04820): translation of state dicts.

The layout is that of ZeWang95/BinaryLatentDiffusion. The number of steps and the schedule follow
from the stored table of keep factors. The loss is in no tensor; the published one is assumed. The
files do not store the number of attention heads and the shape of the token grid: published values
are assumed for published sizes, and must be given otherwise.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from ..generators.binary_latent_diffusion import BinaryLatentDiffusionConfig
from ..generators.build import GeneratorConfig
from ..generators.networks.denoising_transformer import DenoisingTransformerConfig
from ..generators.processes.bernoulli import BernoulliDiffusion
from ..tokens.tokens import TokenSpec
from .tensors import LayoutError, shape_of
from .translation import (
    GeneratorTranslation,
    count_of,
    grid_of,
    matched,
    other_type,
    unknown_heads,
)

_HEADS = {768: 12}  # attention heads by width
_TOLERANCE = 1e-5  # largest deviation of a stored keep factor, which is a float32 product
_SCHEDULES: tuple[Literal["linear", "cos", "sigmoid"], ...] = ("linear", "cos", "sigmoid")
_DROP = (
    (r"scheduler\.\w+", "table that follows from the schedule"),
    (r"embedding_weight", "copy of the tokenizer's embedding"),
)
_NAMES = (
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


def translate_bld(
    stored: Mapping[str, Tensor],
    config: GeneratorConfig | None,
    spec: TokenSpec | None,
) -> GeneratorTranslation:
    """Translate a state dict; see `generator_formats.translate_generator`.

    The prefix `_denoise_fn.` of the network's keys is removed.
    """
    table = shape_of(stored, "scheduler.k_final", 1)
    num_bits, width = shape_of(stored, "_denoise_fn.tok_emb.weight", 2)
    num_classes = 0
    if "_denoise_fn.cls_embedding.bias" in stored:
        raise LayoutError(
            "_denoise_fn.cls_embedding has a bias, so this is a text-to-image model conditioned on "
            "CLIP vectors; such models cannot be imported"
        )
    if "_denoise_fn.cls_embedding.weight" in stored:
        num_classes = shape_of(stored, "_denoise_fn.cls_embedding.weight", 2)[0]
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
        raise other_type(config, "bld")
    if config.diffusion.num_steps != table[0] - 1 or not _same_table(config.diffusion, keep):
        raise LayoutError(
            f"the config says otherwise: {config.diffusion.num_steps} steps, "
            f"{config.diffusion.schedule}; scheduler.k_final has {table[0] - 1} steps"
        )
    if config.num_classes is None:
        config = dataclasses.replace(config, num_classes=num_classes)
    if spec is None:
        spec = TokenSpec(grid_of(shape_of(stored, "_denoise_fn.pos_emb", 3)[1]), (2,) * num_bits)
    names = [(ours, f"_denoise_fn.{public}") for ours, public in _NAMES]
    return matched(stored, config, spec, names, _DROP)


def _diffusion(keep: Tensor) -> BernoulliDiffusion:
    """The published diffusion process whose table of keep factors this is."""
    for schedule in _SCHEDULES:
        process = BernoulliDiffusion(
            num_steps=max(len(keep) - 1, 1),
            schedule=schedule,
            weights="image",
        )
        if _same_table(process, keep):
            return process
    raise LayoutError(
        f"scheduler.k_final is the table of none of the schedules {', '.join(_SCHEDULES)}"
    )


def _same_table(process: BernoulliDiffusion, keep: Tensor) -> bool:
    """Whether the keep factors of a process equal a stored table up to float32 rounding."""
    times = torch.arange(process.num_steps + 1)
    same = len(keep) == len(times)
    return same and bool((process.keep(times) - keep.double()).abs().max() < _TOLERANCE)


def _denoising_transformer(stored: Mapping[str, Tensor], width: int) -> DenoisingTransformerConfig:
    """Transformer config inferred from the shapes, with the published heads for its width."""
    if width not in _HEADS:
        raise unknown_heads(width)
    hidden = shape_of(stored, "_denoise_fn.blocks.0.mlp.0.weight", 2)[0]
    return DenoisingTransformerConfig(
        width=width,
        num_layers=count_of(stored, "_denoise_fn.blocks.{}.mlp.0.weight"),
        num_heads=_HEADS[width],
        mlp_ratio=hidden // width,
    )
