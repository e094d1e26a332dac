"""Tensors of public checkpoints by name: matched strictly, faults listed by name."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

_LISTED = 20


class LayoutError(ValueError):
    """A state dict that is not what its format says; the message lists the keys."""


def match_tensors(
    stored: Mapping[str, Tensor],
    wanted: Mapping[str, torch.Size],
    name: Callable[[str], str],
    drop: Sequence[tuple[str, str]],
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The wanted tensors under our names as float32, and what was left out, with the reasons.

    Args:
        stored: Tensors by public name.
        wanted: Shapes by our name.
        name: Our name to the public one.
        drop: Patterns of public names to leave out, each with the reason.

    Raises:
        LayoutError: Listing keys that are missing, unexpected, of another shape, not of a float
            type, or with values that are not finite.
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
    """Up to 20 keys, and how many more there are; `none` for none."""
    keys = sorted(keys)
    more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return (", ".join(keys[:_LISTED]) + more) or "none"


def size_of(stored: Mapping[str, Tensor], name: str, axis: int, num_axes: int = 4) -> int:
    """Length of an axis of a tensor that must be there."""
    shape = stored[name].shape if name in stored else None
    if shape is None or len(shape) != num_axes:
        found = "is missing" if shape is None else f"has shape {tuple(shape)}"
        raise LayoutError(f"{name} {found}; expected {num_axes} axes, which tell the sizes")
    return shape[axis]


def multipliers_of(base: int, widths: Sequence[int]) -> list[int]:
    """Widths of levels over that of the stem."""
    uneven = [width for width in widths if width % base]
    if uneven:
        raise LayoutError(f"a level has {uneven[0]} channels, no multiple of the stem's {base}")
    return [width // base for width in widths]
