"""One small generator of every kind, and quick settings of its sampler."""

from typing import Any

import torch

from tessella.generators.autoregressive import AutoregressiveConfig
from tessella.generators.base import Generator
from tessella.generators.bayesian_flow_network import BayesianFlowNetworkConfig
from tessella.generators.bigr import BigrConfig
from tessella.generators.binary_latent_diffusion import BinaryLatentDiffusionConfig
from tessella.generators.build import build_generator
from tessella.generators.masked import MaskBitConfig, MaskGITConfig
from tessella.generators.networks.bert import TransformerConfig
from tessella.generators.networks.binary_transcoder import BinaryTranscoderConfig
from tessella.generators.networks.denoising_transformer import DenoisingTransformerConfig
from tessella.generators.networks.llama import LlamaConfig
from tessella.generators.processes.bernoulli import BernoulliDiffusion
from tessella.tokens.tokens import TokenSpec

GRID = TokenSpec((4, 4), (2,) * 6)
TRUNK = TransformerConfig(width=16, num_layers=1, num_heads=2, dropout=0.0)
LLAMA = LlamaConfig(width=16, num_layers=1, num_heads=2, mlp_width=24, dropout=0.0)
DENOISER = DenoisingTransformerConfig(width=16, num_layers=1, num_heads=2)
CHAIN = BernoulliDiffusion(num_steps=16)
HEAD = BinaryTranscoderConfig(width=12, num_blocks=1)
GENERATORS: dict[str, tuple[Any, dict[str, int]]] = {
    "maskbit": (MaskBitConfig(transformer=TRUNK, num_classes=3), {"num_steps": 2}),
    "maskgit": (MaskGITConfig(transformer=TRUNK, num_classes=3), {"num_steps": 2}),
    "bld": (
        BinaryLatentDiffusionConfig(transformer=DENOISER, diffusion=CHAIN, num_classes=3),
        {"num_steps": 3},
    ),
    "bld_absent": (
        BinaryLatentDiffusionConfig(
            transformer=DENOISER, diffusion=CHAIN, num_classes=3, null_label="absent"
        ),
        {"num_steps": 3},
    ),
    "bigr": (
        BigrConfig(transformer=LLAMA, head=HEAD, diffusion=CHAIN, num_classes=3),
        {"num_steps": 2, "head_steps": 2},
    ),
    "bfn": (BayesianFlowNetworkConfig(transformer=DENOISER, num_classes=3), {"num_steps": 3}),
    "ar": (AutoregressiveConfig(transformer=LLAMA, num_depth_layers=1, num_classes=3), {}),
}
"""A small config of every kind, and quick settings of its sampler."""


def make(kind: str, spec: TokenSpec = GRID) -> Generator:
    """With decided opinions: weights far from their small initial values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = build_generator(GENERATORS[kind][0], spec).eval()
        with torch.no_grad():
            for name, parameter in generator.named_parameters():
                strength = 3.0 if name.endswith("class_embedding.weight") else 0.3
                parameter.mul_(2).add_(torch.randn_like(parameter) * strength)
    return generator
