"""The public layout of the binary autoencoder: each network is one numbered list of modules.

The level of a module follows only from its position in the list. So the names of tensors follow
from a config, and a config is inferred from the order of the kinds of modules. The tables were made
by reading the public code of ZeWang95/BinaryLatentDiffusion and haoosz/BiGR; no code was copied.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ..tokenizers.networks.conv_autoencoder import ConvAutoencoderConfig
from .tensors import LayoutError, listed, multipliers_of, size_of

LISTS = {"encoder": "ae.encoder.blocks", "decoder": "ae.generator.blocks"}
"""Prefixes of the lists of modules."""
ATTENTION_SIDE = 16
"""Side of the feature map, in positions, at the level that has attention."""
_PROJECTION = "ae.quantize.proj.0.weight"
_QUANTIZER = {
    "quantizer.proj.weight": _PROJECTION,
    "quantizer.proj.bias": "ae.quantize.proj.0.bias",
    "quantizer.embedding": "ae.quantize.embed.weight",
}
_ORDER = {
    "encoder": "c(?P<levels>(ra?)+(d(ra?)+)*)rarnc",
    "decoder": "(?P<norm>n?)crar(?P<levels>(ra?)+(d(ra?)+)*)nc",
}
"""Patterns of the letters of `_kinds`; resampling modules (d) separate the levels."""


def flat_name(config: ConvAutoencoderConfig, ours: str) -> str:
    """Public name of a tensor of the tokenizer.

    Args:
        config: Config of encoder and decoder, which decides the numbers of modules.
        ours: Name of the tensor in the state dict of Tessella.
    """
    side, _, rest = ours.partition(".")
    for number, module in enumerate(_in_order_of_use(config, side) if side in LISTS else ()):
        if rest.startswith(f"{module}."):
            leaf, *others = rest.removeprefix(f"{module}.").split(".")
            public = {"shortcut": "conv_out", "out": "proj_out"}.get(leaf, leaf)
            return ".".join([LISTS[side], str(number), public, *others])
    return _QUANTIZER.get(ours, ours)


def unused_shortcut(config: ConvAutoencoderConfig, block: str) -> str:
    """Pattern of the unused shortcut of a residual block: all public blocks store one."""
    return re.escape(flat_name(config, f"{block}.shortcut.")) + "(weight|bias)"


def _in_order_of_use(config: ConvAutoencoderConfig, side: str) -> Iterator[str]:
    """Names of the modules of an encoder or decoder, in the order of its forward pass."""
    decoder, depth = side == "decoder", len(config.widths)
    mid = [f"mid.{i}" for i in range(config.num_mid_blocks + config.mid_attention)]
    num_blocks = (decoder and config.num_res_blocks_decoder) or config.num_res_blocks
    if decoder and config.latent_norm:
        yield "latent_norm"
    yield "conv_in"
    yield from mid if decoder else ()
    for place in range(depth):
        for block in range(num_blocks):
            yield f"levels.{place}.blocks.{block}"
            if (depth - 1 - place if decoder else place) in config.attention_levels:
                yield f"levels.{place}.attention.{block}"
        if place < depth - 1:
            yield f"levels.{place}.resample"
    yield from () if decoder else mid
    yield "norm_out"
    yield "conv_out"


def infer_flat(
    stored: Mapping[str, Tensor], resolution: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Infer the config sections `autoencoder` and `quantizer` from the module order and the shapes.

    Args:
        stored: Tensors of the file by their public names.
        resolution: Image size in pixels.

    Raises:
        LayoutError: If the modules are in an unknown order, a tensor is missing, or attention is
            not at the level where the public code puts it at this resolution.
    """
    orders = {side: _kinds(stored, prefix) for side, prefix in LISTS.items()}
    encoder, decoder = (re.fullmatch(_ORDER[side], orders[side]) for side in LISTS)
    if encoder is None or decoder is None:
        found = ", ".join(f"{LISTS[side]}: {order or 'none'}" for side, order in orders.items())
        raise LayoutError(
            f"modules in an unknown order ({found}; c: convolution, n: norm, r: residual block, "
            f"a: attention, d: resampling); found {listed(stored)}"
        )
    levels = encoder["levels"].split("d")
    starts = itertools.accumulate((len(level) + 1 for level in levels[:-1]), initial=1)
    base = size_of(stored, f"{LISTS['encoder']}.0.weight", 0)
    widths = [size_of(stored, f"{LISTS['encoder']}.{i}.conv1.weight", 0) for i in starts]
    attention = [i for i, level in enumerate(levels) if "a" in level]
    usual = [i for i in range(len(levels)) if resolution == ATTENTION_SIDE << i]
    if attention != usual:
        raise LayoutError(
            f"attention in the levels {attention}, where a network for {resolution} pixels has it "
            f"in {usual}; give the resolution of the model, or a config with these levels"
        )
    blocks, decoder_blocks = (
        order["levels"].partition("d")[0].count("r") for order in (encoder, decoder)
    )
    autoencoder = {
        "base_channels": base,
        "channel_multipliers": multipliers_of(base, widths),
        "num_res_blocks": blocks,
        "num_res_blocks_decoder": None if decoder_blocks == blocks else decoder_blocks,
        "conv_bias": True,
        "attention_levels": attention,
        "mid_attention": True,
        "head_kernel_size": 3,
        "latent_norm": bool(decoder["norm"]),
    }
    bits, dim = (size_of(stored, _QUANTIZER["quantizer.embedding"], axis, 2) for axis in (0, 1))
    return autoencoder, {"type": "bernoulli", "bits": bits, "dim": dim}


def _kinds(stored: Mapping[str, Tensor], prefix: str) -> str:
    """Kinds of the modules of a list, one letter each: c, n, r, a or d (see `_ORDER`).

    c is a convolution, n a norm, r a residual block, a attention, and d down- or upsampling.
    """
    kinds = ""
    while True:
        start = f"{prefix}.{len(kinds)}."
        parts = {n.removeprefix(start).split(".")[0] for n in stored if n.startswith(start)}
        if not parts:
            return kinds
        if "weight" in parts:
            kinds += "c" if stored[f"{start}weight"].ndim == 4 else "n"
        elif "conv" in parts:
            kinds += "d"
        else:
            kinds += "a" if "q" in parts else "r"


def projection_as_matrix(stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors with the 1x1 convolution of the quantizer reshaped to a matrix."""
    weight = stored.get(_PROJECTION)
    if weight is None or weight.shape[2:] != (1, 1):
        return stored
    return {**stored, _PROJECTION: weight.flatten(1)}
