"""Public BiGR checkpoints (arXiv:2410.14672): translation of the state dicts of haoosz/BiGR.

All sizes follow from the shapes except the number of heads, which is inferred from the published
width of a head, 64 channels. The loss is in no tensor; the published one is assumed. The head is
stored twice, and both copies must be equal.
"""

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..generators.bigr import BigrConfig
from ..generators.build import GeneratorConfig
from ..generators.networks.binary_transcoder import BinaryTranscoderConfig
from ..generators.networks.llama import LlamaConfig
from ..generators.processes.bernoulli import BernoulliDiffusion
from ..tokens.tokens import TokenSpec
from .tensors import LayoutError, listed, size_of
from .translation import (
    GeneratorTranslation,
    count_of,
    matched,
    other_type,
    unknown_grid,
    unknown_heads,
)

_HEAD_WIDTH = 64
_COPY, _ORIGINAL = "diffusion_processor._denoise_fn.", "denoise_mlp."
_KEEP = "diffusion_processor.scheduler.k_final"
_TOLERANCE = 1e-5  # largest deviation of a stored keep factor, which is a float32 product
_DROP = (
    (r"diffusion_processor\._denoise_fn\..+", "second copy of denoise_mlp, equal to it"),
    (r"diffusion_processor\.scheduler\.\w+", "table that follows from the number of steps"),
)
_NAMES = (
    (r"input", "tok_embeddings"),
    (r"mask_token", "mask_tok"),
    (r"class_embedding", "cls_embedding.embedding_table"),
    (r"position", "diffusion_pos_embed_learned"),
    (r"trunk\.modulation", "adaLN.1"),
    (r"trunk\.norm_out", "norm"),
    (r"trunk\.blocks\.(\d+)\.table", r"layers.\1.ada_gss"),
    (r"trunk\.blocks\.(\d+)\.norm1", r"layers.\1.attention_norm"),
    (r"trunk\.blocks\.(\d+)\.qkv", r"layers.\1.attention.wqkv"),
    (r"trunk\.blocks\.(\d+)\.out", r"layers.\1.attention.wo"),
    (r"trunk\.blocks\.(\d+)\.norm2", r"layers.\1.ffn_norm"),
    (r"trunk\.blocks\.(\d+)\.mlp_gate", r"layers.\1.feed_forward.w1"),
    (r"trunk\.blocks\.(\d+)\.mlp_in", r"layers.\1.feed_forward.w3"),
    (r"trunk\.blocks\.(\d+)\.mlp_out", r"layers.\1.feed_forward.w2"),
    (r"head\.input", "denoise_mlp.x_embedder"),
    (r"head\.condition", "denoise_mlp.c_embedder"),
    (r"head\.time_in", "denoise_mlp.t_embedder.mlp.0"),
    (r"head\.time_out", "denoise_mlp.t_embedder.mlp.2"),
    (r"head\.blocks\.(\d+)\.mlp_in", r"denoise_mlp.blocks.\1.mlp.0"),
    (r"head\.blocks\.(\d+)\.mlp_out", r"denoise_mlp.blocks.\1.mlp.2"),
    (r"head\.blocks\.(\d+)\.modulation", r"denoise_mlp.blocks.\1.adaLN_modulation.1"),
    (r"head\.modulation", "denoise_mlp.final_layer.adaLN_modulation.1"),
    (r"head\.output", "denoise_mlp.final_layer.linear"),
)


def translate_bigr(
    stored: Mapping[str, Tensor],
    config: GeneratorConfig | None,
    spec: TokenSpec | None,
) -> GeneratorTranslation:
    """Translate a state dict; see `generator_formats.translate_generator`.

    Without a spec the tokens are bits on a square grid, as those of all published models.
    """
    _check_copy(stored)
    num_steps = _check_table(stored)
    num_classes = size_of(stored, "cls_embedding.embedding_table.weight", 0, 2) - 1
    if config is None:
        config = BigrConfig(
            transformer=_trunk(stored),
            head=BinaryTranscoderConfig(
                width=size_of(stored, "denoise_mlp.x_embedder.weight", 0, 2),
                num_blocks=count_of(stored, "denoise_mlp.blocks.{}.mlp.0.weight"),
            ),
            diffusion=BernoulliDiffusion(num_steps=num_steps, weights="token"),
            mask_ratio="batch",
        )
    if not isinstance(config, BigrConfig):
        raise other_type(config, "bigr")
    if (config.diffusion.num_steps, config.diffusion.schedule) != (num_steps, "linear"):
        raise LayoutError(
            f"the config says otherwise: {config.diffusion.num_steps} steps, "
            f"{config.diffusion.schedule}; {_KEEP} has {num_steps} steps, linear"
        )
    if config.num_classes is None:
        config = dataclasses.replace(config, num_classes=num_classes)
    spec = _spec(stored) if spec is None else spec
    return matched(stored, config, spec, _NAMES, _DROP)


def _check_copy(stored: Mapping[str, Tensor]) -> None:
    """Refuse a second copy of the head that differs from the first."""
    copies = {n: _ORIGINAL + n.removeprefix(_COPY) for n in stored if n.startswith(_COPY)}
    different = [
        name
        for name, original in copies.items()
        if original not in stored or not torch.equal(stored[name], stored[original])
    ]
    if different:
        raise LayoutError(f"differ from their copies under {_ORIGINAL}: {listed(different)}")


def _check_table(stored: Mapping[str, Tensor]) -> int:
    """Number of steps of the diffusion process; its keep factors must be those of `linear`."""
    num_steps = size_of(stored, _KEEP, 0, 1) - 1
    if num_steps < 1:
        raise LayoutError(f"{_KEEP} has {num_steps + 1} entries; expected at least 2")
    linear = 1 - torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    if (stored[_KEEP].double() - linear).abs().max() > _TOLERANCE:
        raise LayoutError(f"{_KEEP} is not the table of the linear schedule")
    return num_steps


def _trunk(stored: Mapping[str, Tensor]) -> LlamaConfig:
    """Transformer config inferred from the shapes, with heads of the published width."""
    width = size_of(stored, "tok_embeddings.weight", 0, 2)
    if width % _HEAD_WIDTH:
        raise unknown_heads(width)
    config = LlamaConfig(
        width=width,
        num_layers=count_of(stored, "layers.{}.attention.wqkv.weight"),
        num_heads=width // _HEAD_WIDTH,
    )
    hidden = size_of(stored, "layers.0.feed_forward.w1.weight", 0, 2)
    return (
        config if hidden == config.hidden_width else dataclasses.replace(config, mlp_width=hidden)
    )


def _spec(stored: Mapping[str, Tensor]) -> TokenSpec:
    """Token spec of bits on a square grid, inferred from the shapes."""
    num_tokens = size_of(stored, "diffusion_pos_embed_learned", 1, 3)
    side = math.isqrt(num_tokens)
    if side**2 != num_tokens:
        raise unknown_grid(num_tokens)
    return TokenSpec((side, side), (2,) * size_of(stored, "tok_embeddings.weight", 1, 2))
