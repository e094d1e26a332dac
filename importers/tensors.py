"""Strict matching of the tensors of a public checkpoint by name, with faults listed by name."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

_LISTED = 20


class LayoutError(ValueError):
    """Raised for a state dict that does not fit its format; the message lists the keys."""


def match_tensors(
    stored: Mapping[str, Tensor],
    wanted: Mapping[str, torch.Size],
    name: Callable[[str], str],
    drop: Sequence[tuple[str, str]],
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Select the wanted tensors and rename them to Tessella's names, in float32.

    Args:
        stored: Tensors of the file by public name.
        wanted: Shapes of the tensors to find by Tessella name.
        name: Function from a Tessella name to the public name.
        drop: Pairs of a regular expression for public names to leave out and the reason.

    Returns:
        The tensors by Tessella name, and the reasons of the keys left out by public name.

    Raises:
        LayoutError: If keys are missing, unexpected, of another shape or not of a float type, or
            hold values that are not finite; the message lists them.
    """
    places = {name(ours): ours for ours in wanted}
    found = {n: ours for n, ours in places.items() if n in stored}
    left = [n for n in stored if n not in places]
    dropped = {
        key: reason
        for pattern, reason in reversed(drop)
        for key in left
        if re.fullmatch(pattern, key)
    }
    faults = {
        "missing": [n for n in places if n not in stored],
        "unexpected": [n for n in left if n not in dropped],
        "of another shape": [
            f"{n} {tuple(stored[n].shape)} instead of {tuple(wanted[ours])}"
            for n, ours in found.items()
            if stored[n].shape != wanted[ours]
        ],
        "not of a float type": [n for n in found if not stored[n].is_floating_point()],
    }
    if any(faults.values()):
        raise LayoutError("; ".join(f"{what}: {listed(keys)}" for what, keys in faults.items()))
    state = {ours: stored[n].float() for n, ours in found.items()}
    spoiled = [n for n, ours in found.items() if not state[ours].isfinite().all()]
    if spoiled:
        raise LayoutError(f"values that are not finite: {listed(spoiled)}")
    return state, dropped


def listed(keys: Iterable[str]) -> str:
    """Join up to 20 sorted keys and the number of the others; `none` if there are none."""
    keys = sorted(keys)
    more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return (", ".join(keys[:_LISTED]) + more) or "none"


def shape_of(stored: Mapping[str, Tensor], name: str, num_axes: int) -> torch.Size:
    """Shape of a required tensor.

    Raises:
        LayoutError: If the tensor is missing or does not have `num_axes` axes of at least 1.
    """
    shape = stored[name].shape if name in stored else None
    if shape is None or len(shape) != num_axes or 0 in shape:
        found = "is missing" if shape is None else f"has shape {tuple(shape)}"
        raise LayoutError(
            f"{name} {found}; expected {num_axes} axes, from which the sizes of the network are "
            "inferred"
        )
    return shape


def size_of(stored: Mapping[str, Tensor], name: str, axis: int, num_axes: int = 4) -> int:
    """Length of one axis of a required tensor.

    Raises:
        LayoutError: If the tensor is missing or does not have `num_axes` axes.
    """
    return shape_of(stored, name, num_axes)[axis]


def multipliers_of(base: int, widths: Sequence[int]) -> list[int]:
    """Channel multipliers of the levels: their widths divided by the width of the stem.

    Raises:
        LayoutError: If a width is not a multiple of the stem's.
    """
    uneven = [width for width in widths if width % base]
    if uneven:
        raise LayoutError(f"a level has {uneven[0]} channels, no multiple of the stem's {base}")
    return [width // base for width in widths]
