"""Translation of public tokenizer checkpoints: a state dict to a config and renamed weights.

The sizes are inferred from the tensor shapes, and every tensor of the resulting tokenizer is looked
up under its public name; missing or unexpected tensors are errors that list the keys. Some files
number the decoder levels from fine to coarse and others from coarse to fine, even within one
format; the finest level is the one that does not upsample, so the order is inferred from the file.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..building import TooLarge, build_on_meta
from ..config import ConfigError, to_dict
from ..tokenizers.build import TokenizerConfig, build_tokenizer, tokenizer_config
from .binary_autoencoder import (
    LISTS,
    flat_name,
    infer_flat,
    projection_as_matrix,
    unused_shortcut,
)
from .tensors import LayoutError, listed, match_tensors, multipliers_of, size_of
from .tokenizer_formats import FORMATS, MAX_MID, USUAL_SETTINGS, Layout, PublicFormat

PUBLISHED_RESOLUTION = 256
_UNUSED = "shortcut that is not used where a block's channels match"


@dataclass(frozen=True, eq=False)
class TokenizerTranslation:
    """A public tokenizer checkpoint, translated.

    Args:
        config: Config of the tokenizer to build.
        state: Weights by Tessella name, float32.
        dropped: Reasons of the keys that were left out, by public name.
        averaged: Whether the weights are a running average (EMA) that the state dict holds beside
            those of the last step.
    """

    config: TokenizerConfig
    state: dict[str, Tensor]
    dropped: dict[str, str]
    averaged: bool


def translate_tokenizer(
    stored: Mapping[str, Tensor],
    format_name: str,
    *,
    config: TokenizerConfig | None = None,
    resolution: int = PUBLISHED_RESOLUTION,
    average: bool = True,
) -> TokenizerTranslation:
    """Translate a public state dict to Tessella's names and config; nothing is ignored silently.

    Args:
        stored: Tensors of the file by their public names.
        format_name: A key of `FORMATS`.
        config: Config of the tokenizer to build; None: inferred from the shapes and the format.
        resolution: Image size of the inferred config in pixels; it cannot be inferred from the
            weights.
        average: Whether to take the running average of the weights where the state dict holds one.

    Raises:
        LayoutError: If keys are missing, unexpected or of another shape (all are listed), or the
            file is of another format or contradicts `config`.
    """
    names = set(stored)
    try:
        return _translate(stored, FORMATS[format_name], config, resolution, average)
    except LayoutError as error:
        hint = _other_format(names, format_name)
        raise LayoutError(f"does not fit the format {format_name}: {error}{hint}") from None


def _translate(
    stored: Mapping[str, Tensor],
    public: PublicFormat,
    config: TokenizerConfig | None,
    resolution: int,
    average: bool,
) -> TokenizerTranslation:
    if not public.layouts:
        return _translate_flat(stored, public, config, resolution)
    reader = _Reader(stored, public, average)
    if config is None:
        config = _infer(reader, public, resolution)
    _check_settings(public, config)
    wanted = _shapes(config)
    drop = list(public.drop)
    if public.dotless_average:
        others = "|".join(re.escape(reader.name(ours, other_copy=True)) for ours in wanted)
        kinds = ("weights of the last step", "running average")
        used, unused = reversed(kinds) if reader.averaged else kinds
        drop.append((others, f"{unused}; used: {used}"))
    state, dropped = match_tensors(stored, wanted, reader.name, drop)
    return TokenizerTranslation(config, state, dropped, reader.averaged)


def _translate_flat(
    stored: Mapping[str, Tensor],
    public: PublicFormat,
    config: TokenizerConfig | None,
    resolution: int,
) -> TokenizerTranslation:
    """Translate a state dict in which each network is one numbered list of modules."""
    if config is None:
        config = _completed(public, resolution, *infer_flat(stored, resolution))
    _check_settings(public, config)
    networks, wanted = config.autoencoder, _shapes(config)
    blocks = [n.removesuffix(".conv1.weight") for n in wanted if n.endswith(".conv1.weight")]
    unused = [block for block in blocks if f"{block}.shortcut.weight" not in wanted]
    state, dropped = match_tensors(
        projection_as_matrix(stored),
        wanted,
        lambda ours: flat_name(networks, ours),
        [*public.drop, *((unused_shortcut(networks, block), _UNUSED) for block in unused)],
    )
    return TokenizerTranslation(config, state, dropped, averaged=False)


def _shapes(config: TokenizerConfig) -> dict[str, torch.Size]:
    """Shape of every tensor of the tokenizer that a config describes, by Tessella name."""
    try:
        tokenizer = build_on_meta(partial(build_tokenizer, config))
    except TooLarge as error:
        raise LayoutError(str(error)) from None
    return {name: tensor.shape for name, tensor in tokenizer.state_dict().items()}


class _Reader:
    """Look-up of the tensors of a file by Tessella name, in one layout and copy of the weights."""

    def __init__(self, stored: Mapping[str, Tensor], public: PublicFormat, average: bool) -> None:
        self.stored = stored
        averages = [n for n in stored if n.startswith("model_ema.")]
        averages = [n for n in averages if not any(re.fullmatch(p, n) for p, _ in public.drop)]
        self.averaged = bool(public.dotless_average and average and averages)
        layouts = [one for one in public.layouts if _has_layout(set(stored), one, self.averaged)]
        if not layouts:
            expected = [_stored_name(public.layouts[0], ours, self.averaged) for ours in _PROBES]
            raise LayoutError(f"{' and '.join(expected)} are missing; found {listed(stored)}")
        self.layout, self.num_levels, self.fine_first = layouts[0], 0, False
        self.num_levels = self.count("encoder.levels.{}.blocks.0.conv1.weight")
        first, last = (
            self.shape(f"decoder.levels.{i}.resample.conv.weight") for i in (0, self.num_levels - 1)
        )
        self.fine_first = first is None and last is not None

    def name(self, ours: str, *, other_copy: bool = False) -> str:
        """Public name of a tensor, in the copy of the weights in use or in the other copy."""
        averaged = self.averaged != other_copy
        return _stored_name(self.layout, ours, averaged, self.num_levels, self.fine_first)

    def shape(self, ours: str) -> torch.Size | None:
        """Shape of a tensor; None if the file does not hold it."""
        name = self.name(ours)
        return self.stored[name].shape if name in self.stored else None

    def size(self, ours: str, axis: int, num_axes: int = 4) -> int:
        """Length of one axis of a required tensor."""
        return size_of(self.stored, self.name(ours), axis, num_axes)

    def count(self, template: str) -> int:
        """Number of consecutive tensors, counted from 0 in place of `{}`."""
        return next(i for i in itertools.count() if self.shape(template.format(i)) is None)


def _infer(reader: _Reader, public: PublicFormat, resolution: int) -> TokenizerConfig:
    """Infer the config from the shapes and the format."""
    base, shape = reader.size("encoder.conv_in.weight", 0), reader.shape
    levels = range(reader.num_levels)
    widths = [reader.size(f"encoder.levels.{i}.blocks.0.conv1.weight", 0) for i in levels]
    blocks, decoder_blocks = (
        reader.count(f"{side}.levels.0.blocks.{{}}.conv1.weight") for side in ("encoder", "decoder")
    )
    autoencoder: dict[str, Any] = {
        "base_channels": base,
        "channel_multipliers": multipliers_of(base, widths),
        "num_res_blocks": blocks,
        "num_res_blocks_decoder": None if decoder_blocks == blocks else decoder_blocks,
        "conv_bias": shape("encoder.conv_in.bias") is not None,
        "attention_levels": [
            i for i in levels if shape(f"encoder.levels.{i}.attention.0.q.weight") is not None
        ],
        "num_mid_blocks": sum(
            shape(f"encoder.mid.{i}.conv1.weight") is not None for i in range(MAX_MID)
        ),
        "mid_attention": shape("encoder.mid.1.q.weight") is not None,
        "head_kernel_size": reader.size("encoder.conv_out.weight", 3),
    }
    if shape("quant_conv.weight") is not None:
        autoencoder["latent_channels"] = reader.size("quant_conv.weight", 1)
    quantizer: dict[str, Any]
    if "lfq" in public.quantizers and shape("quantizer.codebook") is None:
        quantizer = {"type": "lfq", "bits": reader.size("encoder.conv_out.weight", 0)}
    else:
        rows, dim = (reader.size("quantizer.codebook", axis, 2) for axis in (0, 1))
        quantizer = {"type": "vq", "codebook_size": rows, "dim": dim}
    return _completed(public, resolution, autoencoder, quantizer)


def _completed(
    public: PublicFormat, resolution: int, autoencoder: dict[str, Any], quantizer: dict[str, Any]
) -> TokenizerConfig:
    """Build the config from the inferred sections and the unwritten settings of the format."""
    kind = "binary_autoencoder" if quantizer["type"] == "bernoulli" else "vqgan"
    data = {"type": kind, "resolution": resolution}
    data |= {"autoencoder": autoencoder, "quantizer": quantizer}
    for path in USUAL_SETTINGS:
        section, _, key = path.rpartition(".")
        if path != "quantizer.normalize" or quantizer["type"] == "vq":
            (data[section] if section else data)[key] = public.setting(path)  # type: ignore[index]
    try:
        return tokenizer_config(data, name="config inferred from the shapes")
    except ConfigError as error:
        raise LayoutError(str(error)) from None


def _check_settings(public: PublicFormat, config: TokenizerConfig) -> None:
    """Refuse a config that contradicts the format in a setting that no shape shows."""
    found, wrong = to_dict(config), []
    if config.quantizer.type not in public.quantizers:
        expected = " or ".join(public.quantizers)
        wrong.append(f"quantizer.type is {config.quantizer.type}, expected {expected}")
    for path in USUAL_SETTINGS:
        section, _, key = path.rpartition(".")
        fields, value = found[section] if section else found, public.setting(path)
        if key in fields and fields[key] != value:
            wrong.append(f"{path} is {fields[key]}, expected {value}")
    if wrong:
        raise LayoutError(f"the config says otherwise: {'; '.join(wrong)}")


_PROBES = ("encoder.levels.0.blocks.0.conv1.weight", "encoder.mid.0.conv1.weight")


def _stored_name(
    layout: Layout, ours: str, averaged: bool, num_levels: int = 1, fine_first: bool = False
) -> str:
    """Name of a tensor in the file; running averages are stored without dots in their names."""
    name = layout.name(ours, num_levels, fine_first)
    return f"model_ema.{name.replace('.', '')}" if averaged else name


def _has_layout(names: set[str], layout: Layout, averaged: bool) -> bool:
    """Whether the first level and the middle of the encoder have the names of a layout."""
    return all(_stored_name(layout, probe, averaged) in names for probe in _PROBES)


def _other_format(names: set[str], format_name: str) -> str:
    """Hint at another format whose layout and kind of downsampling the keys have, or ""."""
    for other, public in FORMATS.items():
        if not public.layouts and other != format_name and f"{LISTS['encoder']}.0.weight" in names:
            return f"; the keys are those of the format {other}"
        pools = public.setting("autoencoder.downsample") == "avg_pool"
        for layout in public.layouts if other != format_name else ():
            strided = layout.name("encoder.levels.0.resample.conv.weight", 1, False) in names
            if _has_layout(names, layout, False) and strided != pools:
                return f"; the keys are those of the format {other}"
    return ""
