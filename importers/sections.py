"""Where the weights are in a checkpoint: sections of names and tensors, found whatever holds them.

A section is a mapping of names to tensors, at the top of a checkpoint or nested in it, or the part
of one whose names share a prefix: `ema_model.` beside `model.`. Prefixes that wrappers put before
or into names (`module.`, `_orig_mod.`) are no part of them. Averages of the weights are told by
their names; one that is a list of tensors, as optimizers hold it, gets the names of the weights
that it is the average of.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import CheckpointError

DEEPEST, MOST_SECTIONS = 5, 1000
"""Depth of nesting to which sections are looked for, and most mappings that are looked at."""
PREFERRED = (
    *("", "state_dict", "model", "model_state_dict", "params", "module", "net_g", "generator"),
    *("state_dict.model", "model.state_dict", "weights", "net", "network", "vae", "vqgan"),
)
"""Sections of weights that come first, in this order, where a checkpoint has several."""
_AVERAGE = re.compile(r"(^|[._])(ema|averaged?|swa|shadow|polyak)([._]|$)")
_OTHERS = re.compile(
    r"(^|[._])(optim\w*|opt|opt_[a-z]+|scheduler\w*|lr_\w+|scaler|rng\w*|callbacks|loops|disc\w*|"
    r"loss\w*|lpips|perceptual|teacher|net_d)([._]|$)"
)
_PREFIXES = ("module", "model", "ema_model", "model_ema", "online_model", "net_g", "net_g_ema")
_PREFIX = re.compile(rf"({'|'.join(_PREFIXES)}|_orig_mod|_forward_module)\.(.+)", re.DOTALL)
_INSIDE = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_BUFFERS = re.compile(r"(.*\.)?(num_batches_tracked|running_mean|running_var)")


@dataclass(frozen=True, eq=False)
class Section:
    """Weights in a checkpoint.

    Args:
        label: Keys that lead to it, joined by dots; "" = the checkpoint holds nothing else.
        tensors: Tensors by name, without prefixes of wrappers; none where an average is a list
            that does not fit the weights.
        averaged: Whether its name says that it is a running average.
        completed: Number of its tensors that are those of the weights, which the average lacked.
    """

    label: str
    tensors: dict[str, Tensor]
    averaged: bool
    completed: int = 0


def find_sections(content: Any) -> list[Section]:
    """All sections of a checkpoint, in the order in which they stand.

    Args:
        content: What a checkpoint file holds, as plain values and tensors.

    Raises:
        CheckpointError: If two names of a section differ only by the prefixes of wrappers.
    """
    found: list[Section] = []
    lists: list[tuple[tuple[str, ...], list[Tensor]]] = []
    for path, value in _walk(content):
        if isinstance(value, Mapping):
            tensors = {n: t for n, t in value.items() if isinstance(t, Tensor)}
            found += _split(path, tensors)
        else:
            lists.append((path, value))
    weights = [one for one in found if not one.averaged and not _OTHERS.search(one.label)]
    for path, values in lists:
        label = ".".join(path)
        if _AVERAGE.search(label) and not _OTHERS.search(label):
            found.append(Section(label, _named(values, weights), averaged=True))
    return [_completed(one, weights) if one.averaged else one for one in found]


def choose_section(sections: Sequence[Section], *, average: bool, name: str | None) -> Section:
    """The section to take.

    Args:
        sections: Sections of a checkpoint, at least one.
        average: Whether an average comes before the weights that it is the average of.
        name: Label of the section to take; None: chosen by its name.

    Raises:
        CheckpointError: If there is no section `name`, or if several are equally likely.
    """
    labels = ", ".join(repr(one.label) for one in sections)
    if name is not None:
        likely = [one for one in sections if one.label == name]
        if not likely:
            raise CheckpointError(f"there is no section {name!r}; there are {labels}")
    else:
        likely = [one for one in sections if not _OTHERS.search(one.label)] or list(sections)
    averages = [one for one in likely if one.averaged]
    weights = [one for one in likely if not one.averaged]
    wanted = (averages or weights) if average else (weights or averages)
    largest = max(_numbers(one) for one in wanted)
    wanted = sorted((one for one in wanted if 10 * _numbers(one) >= largest), key=_rank)
    if len(wanted) > 1 and _rank(wanted[0]) == _rank(wanted[1]):
        raise CheckpointError(
            f"several sections may be the weights: {labels}; name the one to take (--section)"
        )
    if not wanted[0].tensors:
        raise CheckpointError(
            f"the average {wanted[0].label!r} is a list of tensors that are not the parameters of "
            "the weights in number and shape; the weights are taken with --no-average"
        )
    return wanted[0]


def _numbers(section: Section) -> int:
    return sum(tensor.numel() for tensor in section.tensors.values())


def _rank(section: Section) -> int:
    return PREFERRED.index(section.label) if section.label in PREFERRED else len(PREFERRED)


def _walk(
    value: Any, path: tuple[str, ...] = (), seen: set[int] | None = None
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Mappings that hold named tensors, and lists of tensors, with the keys that lead to them."""
    seen = set() if seen is None else seen
    if id(value) in seen or len(path) > DEEPEST or len(seen) > MOST_SECTIONS:
        return
    if isinstance(value, list | tuple):
        if value and all(isinstance(part, Tensor) for part in value):
            yield path, list(value)
        return
    if not isinstance(value, Mapping):
        return
    seen.add(id(value))
    named = {key: part for key, part in value.items() if isinstance(key, str)}
    if any(isinstance(part, Tensor) and part.ndim for part in named.values()):
        yield path, named
    for key, part in named.items():
        yield from _walk(part, (*path, key), seen)


def _split(path: tuple[str, ...], tensors: dict[str, Tensor]) -> Iterator[Section]:
    """Sections of a mapping: of all of its names, or one for each prefix that some of them have."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _PREFIX.fullmatch(name)
        groups.setdefault(match[1] if match else "", {})[match[2] if match else name] = tensor
    for prefix in [p for p in groups if p and not any("." in name for name in groups[p])]:
        for name, tensor in groups.pop(prefix).items():  # of a format: averages without dots
            groups.setdefault("", {})[f"{prefix}.{name}"] = tensor
    only = len(groups) == 1
    for prefix, group in groups.items():
        if not only and not any(t.is_floating_point() and t.numel() > 1 for t in group.values()):
            continue  # a few numbers beside the weights
        averaged = bool(_AVERAGE.search(".".join((*path, prefix))))
        if only and prefix:  # perhaps more prefixes, as of compiled modules in parallel ones
            for one in _split(path, group):
                yield Section(one.label, one.tensors, one.averaged or averaged)
        else:
            if not only and not prefix and all(map(_OTHERS.match, group)):
                prefix = next(iter(group)).partition(".")[0]  # losses beside the weights
            label = ".".join([*path, *([prefix] if prefix else [])])
            yield Section(label, _plain(group, label), averaged)


def _plain(tensors: dict[str, Tensor], label: str) -> dict[str, Tensor]:
    """Tensors by their names without what wrappers put into them."""
    plain = {_INSIDE.sub("", name): tensor for name, tensor in tensors.items()}
    if len(plain) < len(tensors):
        raise CheckpointError(
            f"section {label!r}: two names are the same without _orig_mod. and the like"
        )
    return plain


def _named(values: list[Tensor], weights: list[Section]) -> dict[str, Tensor]:
    """An average that is a list, by the names of the parameters of the weights, in their order."""
    for one in weights:
        whole = {n: t for n, t in one.tensors.items() if t.is_floating_point()}
        without = {n: t for n, t in whole.items() if not _BUFFERS.fullmatch(n)}
        for named in (whole, without):
            shapes = [tensor.shape for tensor in named.values()]
            if shapes == [value.shape for value in values]:
                return dict(zip(named, values, strict=True))
    return {}


def _completed(average: Section, weights: list[Section]) -> Section:
    """An average of parameters alone, with the other tensors of the weights that it belongs to."""
    for one in weights:
        if average.tensors and average.tensors.keys() < one.tensors.keys():
            rest = one.tensors.keys() - average.tensors.keys()
            return Section(average.label, one.tensors | average.tensors, True, len(rest))
    return average


def check_stored(tensors: Mapping[str, Tensor], file_bytes: int, name: str) -> None:
    """Refuse tensors that take more memory than their file has bytes.

    A tensor in a pickle may repeat a few stored numbers to any size, and many tensors may show
    the same ones; a weight that is shared by two names is no matter.

    Raises:
        CheckpointError: If so, or if a tensor is sparse or has no values.
    """
    odd = [n for n, t in tensors.items() if t.layout != torch.strided or t.is_meta]
    if odd:
        raise CheckpointError(
            f"{name}: {odd[0]} is sparse or has no values; expected dense tensors"
        )
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    if total > 2 * file_bytes + 2**20:
        raise CheckpointError(
            f"{name}: its tensors take {total:,} bytes, from a file of {file_bytes:,}; weights are "
            "stored in full, so these are not read"
        )
