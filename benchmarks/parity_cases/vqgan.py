"""VQGANs: CompVis/taming-transformers, FoundationVision/LlamaGen, TencentARC/SEED-Voken."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tessella.benchmarks.parity_cases.comparison import (
    Row,
    compare,
    discriminator_row,
    load,
    random_like,
    randomize,
    tokenizer_rows,
)
from tessella.tokenizers.quantizers.lfq import LFQ
from tessella.train.discriminator import PatchDiscriminatorConfig, build_discriminator


def llamagen(name: str) -> Iterator[Row]:
    """VQ-16 of FoundationVision/LlamaGen."""
    theirs = randomize(load("tokenizer.tokenizer_image.vq_model").VQ_models["VQ-16"]())
    yield from tokenizer_rows(
        name, "llamagen-vq", theirs.state_dict(),
        lambda images: theirs.quant_conv(theirs.encoder(images)),
        lambda z: theirs.quantize(z)[2][2],
        lambda grid, _: theirs.decode(grid),
    )  # fmt: skip


def taming(name: str) -> Iterator[Row]:
    """The VQGAN of 1,024 codes and the discriminator of CompVis/taming-transformers."""
    networks = load("taming.modules.diffusionmodules.model")
    settings = {
        "ch": 128, "out_ch": 3, "ch_mult": (1, 1, 2, 2, 4), "num_res_blocks": 2,
        "attn_resolutions": [16], "in_channels": 3, "resolution": 256, "z_channels": 256,
        "double_z": False,
    }  # fmt: skip
    quantize = load("taming.modules.vqvae.quantize").VectorQuantizer2(1024, 256, beta=0.25)
    with contextlib.redirect_stdout(None):
        decoder = networks.Decoder(**settings)
    theirs: Any = nn.ModuleDict(
        {
            "encoder": networks.Encoder(**settings),
            "decoder": decoder,
            "quantize": quantize,
            "quant_conv": nn.Conv2d(256, 256, 1),
            "post_quant_conv": nn.Conv2d(256, 256, 1),
        }
    )
    randomize(theirs)
    yield from tokenizer_rows(
        name, "taming-vqgan", theirs.state_dict(),
        lambda images: theirs["quant_conv"](theirs["encoder"](images)),
        lambda z: quantize(z)[2][2],
        lambda grid, _: theirs["decoder"](theirs["post_quant_conv"](grid)),
    )  # fmt: skip
    patch = load("taming.modules.discriminator.model").NLayerDiscriminator()
    yield discriminator_row(
        name, randomize(patch), build_discriminator(PatchDiscriminatorConfig()), False
    )


def open_magvit2(name: str) -> Iterator[Row]:
    """The tokenizer of 18 bits of TencentARC/SEED-Voken, and its entropy loss at 10 bits."""
    networks = load("src.Open_MAGVIT2.modules.diffusionmodules.improved_model")
    lookup_free = load("src.Open_MAGVIT2.modules.vqvae.lookup_free_quantize").LFQ
    settings = {
        "ch": 128, "out_ch": 3, "in_channels": 3, "num_res_blocks": 4, "z_channels": 18,
        "ch_mult": (1, 1, 2, 2, 4), "resolution": 128,
    }  # fmt: skip
    networks = {"encoder": networks.Encoder(**settings), "decoder": networks.Decoder(**settings)}
    theirs = randomize(nn.ModuleDict(networks))
    quantize = lookup_free(dim=18, codebook_size=2**18).eval()

    def codes(z: Tensor) -> Any:
        joint = quantize(z)[2].reshape(len(z), -1, 1)
        return joint >> torch.arange(18) & 1

    yield from tokenizer_rows(
        name, "open-magvit2", theirs.state_dict(), theirs["encoder"], codes,
        lambda grid, _: theirs["decoder"](grid),
    )  # fmt: skip
    latents = 0.05 * random_like(8, 10, 16, 16, seed=5)
    small = lookup_free(dim=10, codebook_size=2**10).train()
    expected = small(latents)[1]
    ours = LFQ(bits=10)(latents.flatten(2).mT).losses["entropy"]
    yield compare(name, "entropy loss, 10 bits", expected, ours)
