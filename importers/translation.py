"""Translation of public generator checkpoints: the parts that all formats share."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ..building import build_on_meta
from ..generators.build import GeneratorConfig, build_generator
from ..tokens.tokens import TokenSpec
from .tensors import LayoutError, match_tensors

GRIDS = {256: (16, 16), 1024: (32, 32)}
"""Published grids by number of positions: 256 and 512 pixels at stride 16."""


@dataclass(frozen=True, eq=False)
class GeneratorTranslation:
    """A public generator checkpoint, translated.

    Args:
        config: Config of the generator to build.
        spec: Spec of the tokens that it generates.
        state: Weights by Tessella name, float32.
        dropped: Reasons of the keys that were left out, by public name.
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
    """Match the tensors of the generator that a config describes by a table of names.

    Args:
        stored: Tensors of the file by their public names.
        config: Config of the generator; it is built on the meta device to learn the shapes.
        spec: Spec of the tokens that it generates.
        names: Pairs of a regular expression for Tessella names, without `.weight` or `.bias`, and
            the replacement that gives the public name.
        drop: Pairs of a regular expression for public names to leave out and the reason.

    Raises:
        LayoutError: If the config cannot be built, or the tensors of the file are not exactly
            those of the generator and the ones left out.
    """
    try:
        generator = build_on_meta(partial(build_generator, config, spec))
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
    """Error for a config of another generator type than the file's."""
    return LayoutError(f"the config says otherwise: type is {config.type}, expected {expected}")


def unknown_heads(width: int) -> LayoutError:
    """Error for a trunk whose number of attention heads is not published for its width."""
    return LayoutError(
        f"the number of attention heads of a trunk of width {width} is in no tensor; give a "
        "config with generator.transformer"
    )


def count_of(stored: Mapping[str, Tensor], pattern: str) -> int:
    """Number of consecutive tensors, counted from 0.

    Args:
        stored: Tensors of the file by their public names.
        pattern: Name of a tensor with `{}` in place of its number.
    """
    names = (pattern.format(i) for i in itertools.count())
    return len(list(itertools.takewhile(lambda name: name in stored, names)))


def unknown_grid(num_tokens: int) -> LayoutError:
    """Error for a number of token positions whose grid shape cannot be inferred."""
    return LayoutError(
        f"the shape of a grid of {num_tokens} positions is in no tensor; give the tokenizer"
    )


def grid_of(num_tokens: int) -> tuple[int, int]:
    """Shape (H, W) of the published grid with this number of positions.

    Raises:
        LayoutError: If no published grid has this number of positions.
    """
    if num_tokens not in GRIDS:
        raise unknown_grid(num_tokens)
    return GRIDS[num_tokens]
