"""Configs: YAML files and `key.sub=value` overrides become frozen dataclasses.

Every config class is a plain frozen, keyword-only dataclass defined next to the class it
configures. pydantic validates strictly (no
string becomes a number, no bool an int), and its errors are rewritten so that each names the key,
the value found and what was expected, with a "did you mean" for unknown keys.
"""

import copy
import dataclasses
import difflib
import json
import os
import re
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from . import documents

T = TypeVar("T")

STRICT = {"extra": "forbid", "strict": True}
"""Value of `__pydantic_config__` in every config dataclass."""


class ConfigError(ValueError):
    """Raised for a config that cannot be used; the message lists every fault found."""


def parse_yaml(text: str, *, name: str = "config") -> Any:
    """Parse YAML text to plain values.

    Args:
        text: YAML text.
        name: Name of the text in error messages, e.g. a file name.

    Raises:
        ConfigError: If the text is not valid YAML; with line and column.
    """
    return documents.parse_yaml(text, name=name, error=ConfigError)


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML file as a dict of plain values.

    Raises:
        ConfigError: If the file cannot be read, is not YAML, or is not a mapping at the top level.
    """
    try:
        text = documents.read_text(path, most=documents.MOST_YAML, error=ConfigError)
    except FileNotFoundError:
        raise ConfigError(f"{path}: cannot read the config: no such file") from None
    data = parse_yaml(text, name=os.fspath(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found {type(data).__name__}")
    return data


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Copy `data` with each `key.sub=value` applied; values are parsed as YAML.

    A mapping as value replaces the old mapping as a whole if its `type` differs and is merged into
    it otherwise, so `tokenizer.quantizer="{type: bsq, bits: 12}"` keeps no key of another
    quantizer. `null` removes the key, so that its default applies.

    Args:
        data: Nested dicts of plain values.
        overrides: Strings of the form `key.sub=value`.

    Raises:
        ConfigError: If an override is not of that form, or leads through a key that holds a value.
    """
    result = copy.deepcopy(data)
    for override in overrides:
        path, found, text = override.partition("=")
        if not found or not path:
            raise ConfigError(f"override {override!r}: expected key=value, e.g. run.steps=100")
        node, keys = result, path.split(".")
        for key in keys[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ConfigError(f"override {override!r}: {key!r} holds a value, not a section")
        value, old = parse_yaml(text, name=f"override {override!r}"), node.get(keys[-1])
        if isinstance(value, dict) and isinstance(old, dict):
            value = value if value.get("type", old.get("type")) != old.get("type") else old | value
        if value is None:
            node.pop(keys[-1], None)
        else:
            node[keys[-1]] = value
    return result


def parse_setting(word: str) -> tuple[str, Any]:
    """Name and value of one `name=value` word; the value is read as YAML.

    Raises:
        ConfigError: If the word has another form.
    """
    name, found, text = word.partition("=")
    if not found or not name.isidentifier():
        raise ConfigError(f"setting {word!r}: expected name=value, e.g. num_steps=16")
    return name, parse_yaml(text, name=f"setting {word!r}")


def build_config(cls: type[T], data: Any, *, name: str = "config") -> T:
    """Build and validate a config from plain values.

    A float without a fraction, such as `1e3`, is the whole number where one is expected.

    Args:
        cls: A config dataclass, or a union of them discriminated by `type`.
        data: Nested dicts, lists, strings, numbers, bools and None.
        name: Name of the config in error messages, e.g. the file name.

    Raises:
        ConfigError: If a key is unknown or a value is wrong; the message lists all faults.
    """
    try:
        checked: T = documents.adapter_of(typing.cast(Any, cls)).validate_json(
            json.dumps(_whole_numbers(data)), strict=True
        )
        return checked
    except TypeError as error:
        raise ConfigError(f"{name}: {error}") from None
    except ValidationError as error:
        faults = [_describe(fault, cls) for fault in error.errors(include_url=False)]
        raise ConfigError(f"{name}: " + "; ".join(faults)) from None


def _whole_numbers(data: Any) -> Any:
    """Plain values with floats that are whole numbers as such; float fields take both."""
    if isinstance(data, dict):
        return {key: _whole_numbers(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_whole_numbers(value) for value in data]
    exact = isinstance(data, float) and abs(data) < 2**53 and data.is_integer()
    return int(data) if exact else data


def load_config(cls: type[T], path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> T:
    """Read a YAML file, apply overrides, and build the validated config.

    Args:
        cls: A config dataclass, or a union of them discriminated by `type`.
        path: The YAML file.
        overrides: Strings of the form `key.sub=value`.

    Raises:
        ConfigError: If the file, an override or the resulting config is invalid.
    """
    return build_config(cls, apply_overrides(read_yaml(path), overrides), name=str(path))


def to_dict(config: Any) -> dict[str, Any]:
    """Config as nested plain values, defaults included; the inverse of `build_config`."""
    data: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return data


def to_yaml(config: Any) -> str:
    """Config as YAML text, defaults included, keys in the order of declaration."""
    return documents.yaml_text(to_dict(config))


def _describe(fault: Any, cls: Any) -> str:
    """Format one pydantic error as `section.key: fault (value found)`."""
    location, _ = _walk(cls, fault["loc"])
    prefix = "".join(f"{part}." for part in location)
    where = prefix.removesuffix(".") or "top level"
    if fault["type"] == "unexpected_keyword_argument":
        _, sections = _walk(cls, fault["loc"][:-1])
        known = sorted(
            {field.name for section in sections for field in dataclasses.fields(section)}
        )
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    if fault["type"].startswith("missing"):
        return f"{where}: required, not given"
    if fault["type"] == "union_tag_not_found":
        return f"{prefix}type: required, not given"
    if fault["type"] == "union_tag_invalid":
        tag, expected = fault["ctx"]["tag"], fault["ctx"]["expected_tags"]
        near = difflib.get_close_matches(tag, re.findall(r"'(\w+)'", expected), n=1)
        hint = f"did you mean {near[0]!r}? there are" if near else "there are"
        return f"{prefix}type: unknown {tag!r}; {hint} {expected}"
    found = fault.get("input")
    plain = found is None or isinstance(found, str | int | float | bool)
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not location and fault["type"] == "value_error":
        return message  # a check of the whole config, whose message names the key
    return f"{where}: {message}" + (f" (found {found!r})" if plain else "")


def _walk(cls: Any, location: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Follow the location of an error.

    Returns:
        The keys without union tags, and the dataclasses that the last key may hold.
    """
    sections, keys = _members(cls), []
    for part in location:
        tagged = [s for s in sections if getattr(s, "type", None) == part]
        if len(sections) > 1 and tagged:
            sections = tagged
            continue
        keys.append(part)
        hints = [typing.get_type_hints(s, include_extras=True).get(part) for s in sections]
        sections = [member for hint in hints if hint is not None for member in _members(hint)]
    return keys, sections


def _members(annotation: Any) -> list[Any]:
    """Dataclasses that an annotation admits, with unions and Annotated resolved."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [member for arg in typing.get_args(annotation) for member in _members(arg)]
    return [annotation] if dataclasses.is_dataclass(annotation) else []
