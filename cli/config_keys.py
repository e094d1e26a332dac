"""Every key of a config with its type, default and meaning, read from the dataclasses.

The meaning of a key is its line in the docstring of the class, or of the class that it inherits
the key from. A config within a config is a section of its own; where a key takes one of several
configs by `type`, each of them is a section.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .settings_help import Setting, argument_lines, sampler_settings, yaml_text

REQUIRED = "required"
"""What stands in the place of the default of a key without one."""
_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}
_MANY = {int: "whole numbers", float: "numbers", str: "texts", Any: "values"}


@dataclass(frozen=True)
class Key(Setting):
    """A key of a section.

    Args:
        kind: Type of its values in words.
        configs: Configs that it takes by the value of `type`; by "" the only one; empty: none.
    """

    kind: str
    configs: Mapping[str, type]


@dataclass
class Section:
    """The keys of one config class, and the places where it stands.

    Args:
        about: Description of the class.
        keys: Its keys.
        places: Types of the sections around it, by path (`optimizer.lr`, "" at the top) and then by
            the path of the section that has the type.
        tag: Its own value of `type`, "" without one.
    """

    about: str
    keys: list[Key]
    tag: str
    places: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Paths and types in one line, e.g. `tokenizer.quantizer, type: lfq`."""
        found = []
        for path, around in self.places.items():
            words = [f"{at} type: {' or '.join(tags)}" for at, tags in around.items()]
            found.append(path + (f" ({', '.join(words)})" if words else ""))
        text = ", ".join(found) or "top level"
        return f"{text}, type: {self.tag}" if self.tag else text


def keys_of(cls: type) -> list[Key]:
    """Keys of a config class, `type` first, then in the order of declaration."""
    hints = typing.get_type_hints(cls, include_extras=True)
    about = {"type": "Chooses the other keys of this section."}
    for base in reversed(cls.__mro__):
        about |= argument_lines(inspect.cleandoc(base.__dict__.get("__doc__") or ""))
    found = []
    for item in dataclasses.fields(cls):
        configs = {_tag(c): c for c in _configs(hints[item.name])}
        default = REQUIRED
        if item.default is not dataclasses.MISSING:
            default = yaml_text(item.default)
        elif item.default_factory is not dataclasses.MISSING:
            default = "{}"
        meaning = about.get(item.name, "").replace("None:", "null:")
        kind = "text" if item.name == "type" else _kind(hints[item.name])
        found.append(Key(item.name, default, meaning, kind, configs))
    return sorted(found, key=lambda key: key.name != "type")


def sections_of(root: type) -> list[Section]:
    """All sections of a config, the top first; a class in several places is one section."""
    found: dict[type, Section] = {}

    def visit(cls: type, path: str, around: dict[str, str]) -> None:
        known = cls in found
        if not known:
            found[cls] = Section(_description(cls), keys_of(cls), _tag(cls))
        section = found[cls]
        if path:
            place = section.places.setdefault(path, {})
            for at, tag in around.items():
                tags = place.setdefault(at, [])
                tags += [tag] if tag not in tags else []
        inner = around | ({path: section.tag} if section.tag else {})
        for key in section.keys:
            for config in key.configs.values():
                visit(config, f"{path}.{key.name}".removeprefix("."), inner)

    visit(root, "", {})
    return list(found.values())


def sampler_sections() -> list[Section]:
    """Settings of the samplers, the keys of `samples` of a generator's training."""
    return [
        Section(
            "Settings of the sampler; those that are not given have their defaults.",
            [Key(s.name, s.default, s.about, "", {}) for s in settings],
            "",
            {"samples": {"generator": list(kinds)}},
        )
        for kinds, settings in sampler_settings()
    ]


def choose(key: Key, path: str, chosen: Mapping[str, str]) -> str:
    """The type to show of a key that takes several configs: the chosen one, or the first."""
    return chosen.get(path, next(iter(key.configs)))


def unions_of(root: type) -> dict[str, list[str]]:
    """Types that can be chosen, by path."""
    found: dict[str, list[str]] = {}
    for section in sections_of(root):
        for path in section.places or [""]:
            for key in section.keys:
                if len(key.configs) > 1:
                    found[f"{path}.{key.name}".removeprefix(".")] = list(key.configs)
    return found


def _description(cls: type) -> str:
    """Docstring of a class up to its list of arguments, as one paragraph."""
    text = inspect.cleandoc(cls.__doc__ or "")
    for heading in ("\n\nArgs:", "\n\nAttributes:", "\n\nSource:", "\n\nRaises:"):
        text = text.partition(heading)[0]
    return " ".join(text.split())


def _tag(cls: type) -> str:
    """Value of `type` of a config class; "" without one."""
    return str(getattr(cls, "type", ""))


def _configs(annotation: Any) -> Iterator[type]:
    """Config classes that an annotation admits."""
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        yield annotation
    elif typing.get_origin(annotation) is typing.Annotated:
        yield from _configs(typing.get_args(annotation)[0])
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _configs(part)


def _kind(annotation: Any) -> str:
    """Type of a key's values in words."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _WORDS:
        return _WORDS[annotation]
    if annotation is type(None):
        return "null"
    if dataclasses.is_dataclass(annotation):
        return "section"
    if origin is typing.Annotated:
        return _kind(parts[0])
    if origin is typing.Literal:
        return _either([yaml_text(value) for value in parts])
    if origin in (typing.Union, types.UnionType):
        return _either(list(dict.fromkeys(_kind(part) for part in parts)))
    if origin is tuple:
        count = "" if parts[-1] is Ellipsis else f"{len(parts)} "
        return f"list of {count}{_MANY[parts[0]]}"
    if origin is dict:
        return f"{_MANY[parts[1]]} by name"
    raise TypeError(f"a key of type {annotation} has no words for it")


def _either(words: list[str]) -> str:
    """Words as alternatives: `a`, `a or b`, `a, b or c`."""
    return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
