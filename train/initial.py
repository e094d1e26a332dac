"""Starting from a trained model: the weights that are taken, and what is different."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ..manifest import some_of
from .run_folder import RunError

TOKENIZER = "tokenizer"
"""Name in `init_ignore` by which a generator may have been trained on tokens of another one."""
_LONGEST = 60
"""Longest text of a setting in a message, such as a list of classes."""
_SUGGESTED = 4
"""Most names that a message suggests for `init_ignore`."""


def check_ignored(init: str | None, ignore: Sequence[str]) -> None:
    """Refuse an `init_ignore` that says nothing.

    Raises:
        ValueError: If there is no `init`, or a pattern is empty.
    """
    if ignore and init is None:
        raise ValueError(f"init_ignore: found {list(ignore)} without init, to which it belongs")
    if "" in ignore:
        raise ValueError("init_ignore: expected names of weights or patterns, found ''")


def is_named(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern (`*`, `?`) matches a name of weights, or a part that they belong to.

    `head` and `head.*` name `head.weight`, but not `head_norm.weight`.
    """
    return any(fnmatchcase(name, p) or fnmatchcase(name, f"{p}.*") for p in patterns)


@torch.no_grad()
def take_weights(
    modules: Mapping[str, nn.Module],
    trained: nn.Module,
    path: str,
    *,
    settings: tuple[dict[str, Any], dict[str, Any]],
    ignore: Sequence[str] = (),
) -> dict[str, Any]:
    """Fill modules of one architecture with the weights of a trained one.

    Args:
        modules: Modules by name, all with tensors of the same names and shapes.
        trained: Trained model.
        path: Place of the trained model, for messages.
        settings: Config of the trained model and of this one, as one level of plain values.
        ignore: Patterns of tensors that keep their own values, and need not be there.

    Returns:
        What a card tells of it: `new` has the names of tensors that were not taken, `settings` the
        values of other settings, [then, now].

    Raises:
        RunError: If the weights have other names or shapes, with the settings that differ, a
            pattern names nothing, or no weights are left. Nothing is changed then.
    """
    module_name, module = next(iter(modules.items()))
    ours = {name: list(t.shape) for name, t in module.state_dict().items()}
    weights = trained.state_dict()
    theirs = {name: list(t.shape) for name, t in weights.items()}
    patterns = [pattern for pattern in ignore if pattern != TOKENIZER]
    unused = [p for p in patterns if not any(is_named(n, [p]) for n in ours.keys() | theirs.keys())]
    if unused:
        raise RunError(
            f"init_ignore: {', '.join(unused)}: no weights have this name; the parts of the "
            f"{module_name} are {', '.join(_parts(ours))}"
        )
    then, now = settings
    names = sorted(then.keys() | now.keys())
    other = {n: [then.get(n), now.get(n)] for n in names if then.get(n) != now.get(n)}
    misfits = [
        name
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name) and not is_named(name, patterns)
    ]
    if misfits:
        raise RunError(f"init: {path}: {_describe(misfits, theirs, ours, other)}")
    taken = {name: weights[name] for name in ours if not is_named(name, patterns)}
    if not taken:
        raise RunError(f"init_ignore: {', '.join(patterns)}: leaves no weights of {path} to take")
    for filled in modules.values():
        own: dict[str, Tensor] = filled.state_dict()
        filled.load_state_dict(own | taken)
    return {"new": [name for name in ours if name not in taken], "settings": other}


def describe_start(init: dict[str, Any] | None) -> str:
    """One line about the model that a run starts from; "" if there is none."""
    if init is None or "new" not in init:
        return ""
    line = f"starts from {init['path']} (fingerprint {init['fingerprint']})"
    if init["new"]:
        line += f", but from random weights in {some_of(init['new'])}"
    if init["settings"]:
        line += f"; settings that are others here: {_changes(init['settings'])}"
    return line


def _describe(
    misfits: Sequence[str],
    theirs: Mapping[str, list[int]],
    ours: Mapping[str, list[int]],
    settings: Mapping[str, Sequence[Any]],
) -> str:
    """What does not fit, by kind, and the patterns that would allow it."""
    shapes = [f"{n} {theirs[n]}, here {ours[n]}" for n in misfits if n in theirs and n in ours]
    missing = [n for n in misfits if n not in theirs]
    unexpected = [n for n in misfits if n not in ours]
    kinds = {
        "settings": [_changes(settings)] if settings else [],
        "tensors of other shapes": shapes,
        "missing": missing,
        "unexpected": unexpected,
    }
    found = [f"{kind}: {some_of(names)}" for kind, names in kinds.items() if names]
    parts = list(dict.fromkeys(name.rpartition(".")[0] or name for name in misfits))
    if len(parts) > _SUGGESTED:
        parts = _parts(misfits)
    return (
        f"does not fit the config; {'; '.join(found)}; make the config that of the model, or let "
        f"these parts start from random weights by init_ignore=[{', '.join(parts)}]"
    )


def _parts(names: Any) -> list[str]:
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def _changes(settings: Mapping[str, Sequence[Any]]) -> str:
    return some_of(
        f"{name} {_short(then)}, here {_short(now)}" for name, (then, now) in settings.items()
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
