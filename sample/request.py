"""What to draw: labels, seeds, known tokens and lengths, checked before anything is drawn."""

import difflib
import reprlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ..generators.base import Generator
from ..tokens.tokens import Tokens


def check_labels(generator: Generator, labels: Sequence[int] | Tensor | None, count: int) -> Tensor:
    """Labels as (count,) int64 in [0, num_classes], `num_classes` for none.

    Raises:
        ValueError: If one is out of range, with the range and the class names.
    """
    if labels is None:
        return torch.full((count,), generator.num_classes, dtype=torch.int64)
    given = whole_numbers(labels, "labels")
    wrong = given[(given < -1) | (given >= generator.num_classes)].unique().tolist()
    if wrong:
        if not generator.num_classes:
            raise ValueError(f"labels: this generator is unconditional, found {wrong}")
        names = ", ".join(f"{i} {name}" for i, name in enumerate(generator.classes[:20]))
        raise ValueError(
            f"labels: expected 0 to {generator.num_classes - 1}, or -1 for none, found {wrong}"
            + (f"; classes: {names}" if names else "")
        )
    return torch.where(given < 0, generator.num_classes, given)


def whole_numbers(given: Sequence[int] | Tensor, name: str) -> Tensor:
    """Whole numbers as (B,) int64 on the CPU.

    Raises:
        ValueError: If they are anything else.
    """
    try:
        numbers = torch.as_tensor(given, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        numbers = torch.empty(())
    if numbers.numel() and (numbers.is_floating_point() or numbers.dtype == torch.bool):
        numbers = torch.empty(())
    if numbers.ndim != 1:
        found = " ".join(reprlib.repr(given).split())
        raise ValueError(f"{name}: expected whole numbers, one per image, found {found}")
    return numbers.long()


def check_lengths(generator: Generator, lengths: Sequence[int] | Tensor, count: int) -> Tensor:
    """Lengths as (count,) int64 in [1, N].

    Raises:
        ValueError: If the spec is not ordered, or one is missing or out of range.
    """
    if not generator.spec.ordered:
        raise ValueError(f"lengths: {generator.spec} is not ordered, a prefix does not decode")
    given = torch.as_tensor(lengths).cpu()
    most = generator.spec.num_tokens
    whole = given.shape == (count,) and not given.is_floating_point()
    if not whole or ((given < 1) | (given > most)).any():
        raise ValueError(f"lengths: expected {count} numbers from 1 to {most}, found {lengths}")
    return given.long()


def labels_of(generator: Generator, names: Sequence[str]) -> list[int]:
    """Labels of class names, in their order.

    Raises:
        ValueError: If a name is unknown; suggests near ones.
    """
    classes = {name.casefold(): label for label, name in enumerate(generator.classes)}
    if not classes:
        raise ValueError("this generator has no class names; give labels instead")
    labels = []
    for name in names:
        if name.strip().casefold() not in classes:
            near = difflib.get_close_matches(
                name.strip().casefold(), list(classes), n=3, cutoff=0.5
            )
            hint = (
                f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(classes)}"
            )
            raise ValueError(f"class {name.strip()!r}: unknown; {hint}")
        labels.append(classes[name.strip().casefold()])
    return labels


def broadcast(known: Tokens | None, count: int) -> Tokens | None:
    """One image for all, or one each."""
    if known is None or len(known) == count:
        return known
    if len(known) != 1:
        raise ValueError(f"known: expected 1 or {count} images, found {len(known)}")
    return known[torch.zeros(count, dtype=torch.int64, device=known.device)]


def rows_of(mask: Tensor, count: int) -> Tensor:
    mask = mask[None] if mask.ndim == 1 else mask
    if mask.ndim != 2 or len(mask) not in (1, count):
        raise ValueError(f"mask: expected (N,) or (1 or {count}, N), found {tuple(mask.shape)}")
    return mask.expand(count, -1)
