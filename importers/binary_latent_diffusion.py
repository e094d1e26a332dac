"""Public checkpoints of Binary Latent Diffusion (arXiv:2304.04820) in our terms.

File layout: ZeWang95/BinaryLatentDiffusion.
"""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from ..generators.binary_latent_diffusion import BinaryLatentDiffusionConfig
from ..generators.build import GeneratorConfig
from ..generators.networks.denoising_transformer import DenoisingTransformerConfig
from ..generators.processes.bernoulli import BernoulliDiffusion
from ..tokens.tokens import TokenSpec
from .translation import (
    GeneratorTranslation,
    count_of,
    grid_of,
    matched,
    other_type,
    shape_of,
    unknown_heads,
)
from .vqgan import LayoutError

BLD_FORMAT = "bld"
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


def translate_bld(
    stored: Mapping[str, Tensor],
    config: GeneratorConfig | None,
    spec: TokenSpec | None,
) -> GeneratorTranslation:
    """Keys of the network lose their prefix `_denoise_fn.`, and all keys a `module.` before it."""
    if all(name.startswith("module.") for name in stored):
        stored = {name.removeprefix("module."): tensor for name, tensor in stored.items()}
    table = shape_of(stored, "scheduler.k_final", 1)
    num_bits, width = shape_of(stored, "_denoise_fn.tok_emb.weight", 2)
    num_classes = 0
    if "_denoise_fn.cls_embedding.bias" in stored:
        raise LayoutError(
            "_denoise_fn.cls_embedding has a bias: a text-to-image model, conditioned on CLIP "
            "vectors, which is not read"
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
    names = [(ours, f"_denoise_fn.{public}") for ours, public in _BLD_NAMES]
    return matched(stored, config, spec, names, _BLD_DROP)


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
        raise unknown_heads(width)
    hidden = shape_of(stored, "_denoise_fn.blocks.0.mlp.0.weight", 2)[0]
    return DenoisingTransformerConfig(
        width=width,
        num_layers=count_of(stored, "_denoise_fn.blocks.{}.mlp.0.weight"),
        num_heads=_BLD_HEADS[width],
        mlp_ratio=hidden // width,
    )
