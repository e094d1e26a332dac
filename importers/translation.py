"""A public generator checkpoint in our terms: what every importer of generators shares."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..generators.build import GeneratorConfig, build_generator
from ..generators.masked import MaskBitConfig, MaskGITConfig
from ..tokens.tokens import TokenSpec
from .vqgan import LayoutError, match_tensors

GRIDS = {256: (16, 16), 1024: (32, 32)}  # by positions: 256 and 512 pixels at stride 16


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


def matched(
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


def other_type(config: GeneratorConfig, expected: str) -> LayoutError:
    return LayoutError(f"the config says otherwise: type is {config.type}, expected {expected}")


def shape_of(stored: Mapping[str, Tensor], name: str, num_axes: int) -> torch.Size:
    """Shape of a tensor that must be there."""
    if name not in stored or stored[name].ndim != num_axes:
        found = f"has shape {tuple(stored[name].shape)}" if name in stored else "is missing"
        raise LayoutError(f"{name} {found}; expected {num_axes} axes, which tell the sizes")
    return stored[name].shape


def unknown_heads(width: int) -> LayoutError:
    return LayoutError(
        f"the number of attention heads of a trunk of width {width} is in no tensor; give a "
        "config with generator.transformer"
    )


def count_of(stored: Mapping[str, Tensor], pattern: str) -> int:
    """How many tensors there are, of names numbered from 0."""
    names = (pattern.format(i) for i in itertools.count())
    return len(list(itertools.takewhile(lambda name: name in stored, names)))


def completed(
    config: MaskBitConfig | MaskGITConfig, num_classes: int, sizes: tuple[int, ...]
) -> MaskBitConfig | MaskGITConfig:
    """The config with what it leaves open as the file has it."""
    return dataclasses.replace(
        config,
        num_classes=num_classes if config.num_classes is None else config.num_classes,
        codebook_sizes=sizes if config.codebook_sizes is None else config.codebook_sizes,
    )


def spec_of_grid(num_tokens: int, sizes: tuple[int, ...], reads_bits: bool) -> TokenSpec:
    """The tokens of a published tokenizer."""
    num_bits = sum(size.bit_length() - 1 for size in sizes)
    bits = reads_bits or len(sizes) > 1
    return TokenSpec(grid_of(num_tokens), (2,) * num_bits if bits else sizes)


def grid_of(num_tokens: int) -> tuple[int, int]:
    """The shape of a published grid."""
    if num_tokens not in GRIDS:
        raise LayoutError(
            f"the shape of a grid of {num_tokens} positions is in no tensor; give the tokenizer"
        )
    return GRIDS[num_tokens]
