"""Text files: JSON, JSON lines and YAML are read here, and nowhere else.

A file of somebody else, or a damaged one, ends in one error of one line that names it. Limits on
size and depth keep any text from exhausting memory, time or the stack. JSON has no repeated keys,
and NaN only where asked for; YAML no anchors, aliases or unusual tags. Pydantic checks structure.
"""

import dataclasses
import functools
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import yaml
from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

MOST_JSON, MOST_LINE, MOST_YAML = 2**26, 2**20, 2**20
"""Largest size in bytes of a JSON file, of a line of JSON lines, and of a YAML file."""
MOST_DEPTH = 64
"""Deepest nesting of lists and mappings."""
MOST_NODES = 100_000
"""Most keys and values of a YAML text, of which some 30,000 are read in a second."""
_STREAMS = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
"""Places of what the shell hands over, as in `--config <(command)`; no other pipe is read."""


class DocumentError(ValueError):
    """A text file that cannot be read, or does not hold what is expected of it."""


def read_text(
    path: str | os.PathLike[str], *, most: int = MOST_JSON, error: type[ValueError] = DocumentError
) -> str:
    """Read a file of UTF-8 text.

    Args:
        path: The file.
        most: Largest size in bytes.
        error: Type of the error that is raised.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: Of the type `error`, if it is no regular file, too large, or not UTF-8, or if
            the system cannot read it.
    """
    try:
        with _open(path, error) as file:
            data = file.read(most + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path}: no such file") from None
    except OSError as fault:
        raise error(f"{path}: cannot be read ({fault.strerror})") from None
    if len(data) > most:
        raise error(f"{path}: larger than {most:,} bytes, the most that is read of such a file")
    return _decoded(data, str(path), error)


def _open(path: str | os.PathLike[str], error: type[ValueError]) -> Any:
    """Open a file to read bytes; a pipe without a writer would never answer, and is refused."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise error(f"{path}: a folder, expected a file")
    if not stat.S_ISREG(mode) and not os.fspath(path).startswith(_STREAMS):
        raise error(f"{path}: no regular file, but a pipe or a device")
    return open(path, "rb")


def _decoded(data: bytes, name: str, error: type[ValueError]) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as fault:
        raise error(f"{name}: not UTF-8 text (byte {fault.start:,})") from None


def parse_json(
    text: str | bytes,
    *,
    name: str,
    error: type[ValueError] = DocumentError,
    non_finite: bool = False,
) -> Any:
    """Parse JSON text to plain values.

    Args:
        text: JSON text; bytes are UTF-8.
        name: Name of the text in error messages, e.g. its file.
        error: Type of the error that is raised.
        non_finite: Whether `NaN`, `Infinity` and `-Infinity` are numbers, as Python writes them.

    Raises:
        ValueError: Of the type `error`, if it is not JSON, a key of an object repeats, or lists
            and objects are nested too deep.
    """
    if isinstance(text, bytes):
        text = _decoded(text, name, error)
    decoder = _ANY_NUMBER if non_finite else _FINITE
    try:
        value = decoder.decode(text)
    except json.JSONDecodeError as fault:
        where = f"line {fault.lineno}, column {fault.colno}"
        raise error(f"{name}: not valid JSON: {fault.msg} ({where})") from None
    except ValueError as fault:
        raise error(f"{name}: not valid JSON: {fault}") from None
    except RecursionError:
        raise error(f"{name}: {_TOO_DEEP}") from None
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return value
    raise error(f"{name}: {_TOO_DEEP}")


_LONE = re.compile("[\ud800-\udfff]")
_TOO_DEEP = f"lists and mappings nested more than {MOST_DEPTH} deep"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} appears twice")
    return found


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


_FINITE = json.JSONDecoder(object_pairs_hook=_object, parse_float=_number, parse_constant=_number)
_ANY_NUMBER = json.JSONDecoder(object_pairs_hook=_object)


def read_json(
    path: str | os.PathLike[str],
    schema: type[T],
    *,
    error: type[ValueError] = DocumentError,
    non_finite: bool = False,
    most: int = MOST_JSON,
) -> T:
    """Read a JSON file with a given structure; arguments and errors as of the other functions.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: Of the type `error`, if it cannot be read or does not fit the schema.
    """
    text = read_text(path, most=most, error=error)
    data = parse_json(text, name=str(path), error=error, non_finite=non_finite)
    return check(data, schema, name=str(path), error=error)


def read_json_lines(
    path: str | os.PathLike[str],
    schema: type[T],
    *,
    error: type[ValueError] = DocumentError,
    non_finite: bool = False,
) -> Iterator[T | ValueError]:
    """Read a file with one JSON value on each line.

    Args:
        path: The file.
        schema: Structure of a value, as for `check`.
        error: Type of errors.
        non_finite: As for `parse_json`.

    Yields:
        For each line that is not blank its value, or the error of that line, which names file and
        line; whoever asks raises it, or leaves the line out and says so.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: Of the type `error`, if the file cannot be read.
    """
    try:
        with _open(path, error) as file:
            number = 0
            while line := file.readline(MOST_LINE + 1):
                number, name = number + 1, f"{path}: line {number + 1}"
                if len(line) > MOST_LINE:
                    yield error(f"{name}: longer than {MOST_LINE:,} bytes")
                    while line and not line.endswith(b"\n"):
                        line = file.readline(MOST_LINE)
                elif line.strip():
                    try:
                        data = parse_json(line, name=name, error=error, non_finite=non_finite)
                        yield check(data, schema, name=name, error=error)
                    except error as fault:
                        yield fault
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path}: no such file") from None
    except OSError as fault:
        raise error(f"{path}: cannot be read ({fault.strerror})") from None


def check(data: Any, schema: type[T], *, name: str, error: type[ValueError] = DocumentError) -> T:
    """Check plain values against a structure, strictly: no string becomes a number.

    Args:
        data: Dicts, lists, strings, numbers, bools and None.
        schema: A dataclass, a pydantic model, or a type such as `dict[str, int]`.
        name: Name of the values in error messages.
        error: Type of the error that is raised.

    Raises:
        ValueError: Of the type `error`; the message has the first three faults.
    """
    names: dict[str, str] = {}  # by what stands for them: pydantic reads nothing but UTF-8
    plain = _strings(data, functools.partial(_stand_in, names=names))
    try:
        found = adapter_of(cast(Any, schema)).validate_json(json.dumps(plain), strict=True)
    except ValidationError as fault:
        faults = fault.errors(include_url=False)
        told = [_fault(found) for found in faults[:3]] + ["..."] * (len(faults) > 3)
        raise error(f"{name}: {'; '.join(told)}") from None
    except TypeError as fault:  # a value that JSON does not have, such as a date of YAML
        raise error(f"{name}: {fault}") from None
    return cast(T, _strings(found, lambda text: names.get(text, text)) if names else found)


def _stand_in(name: str, names: dict[str, str]) -> str:
    """Text with private characters for bytes of a file name that are no UTF-8."""
    if (found := _LONE.sub(lambda match: chr(ord(match[0]) + 0x102000), name)) != name:
        names[found] = name
    return found


def _strings(value: Any, change: Callable[[str], str]) -> Any:
    """The same lists, mappings and dataclasses with every string changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_strings(key, change): _strings(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_strings(inner, change) for inner in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **_strings(fields, change))
    return value


@functools.cache
def adapter_of(schema: Any) -> TypeAdapter[Any]:
    """The validator of a schema; building one costs milliseconds, so each is kept."""
    return TypeAdapter(schema)


def _fault(fault: Any) -> str:
    """One error of pydantic as `key.key: message (found value)`."""
    where = ".".join(map(str, fault["loc"]))
    message = str(fault["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    found = fault.get("input")
    if fault["type"] in ("missing", "missing_argument"):
        message = "required, not given"
    elif found is None or isinstance(found, str | int | float):
        message += f" (found {shortened(found)})"
    else:
        message += f" (found a {'list' if isinstance(found, list) else 'mapping'})"
    return f"{where}: {message}" if where else message


def shortened(value: Any, most: int = 60) -> str:
    """`repr` of a value, cut to a number of characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


class YamlLoader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """SafeLoader of plain values: `1e-4` is a float, dates are strings, keys never repeat.

    As in YAML 1.2, only true and false are booleans: `mixed_precision: no` is the string "no".
    Anchors and aliases, which multiply, and tags of other types are errors.
    """

    depth = nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one node, refusing what is no plain value, before it is built."""
        event = self.peek_event()
        problem = ""
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            problem = "anchors (&name) and aliases (*name) are not read"
        elif event.tag not in _TAGS:
            problem = f"the tag {shortened(event.tag)} is not read"
        elif self.depth > MOST_DEPTH:
            problem = _TOO_DEEP
        elif self.nodes >= MOST_NODES:
            problem = f"more than {MOST_NODES:,} keys and values"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self.depth, self.nodes = self.depth + 1, self.nodes + 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class YamlDumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML has no types
    """SafeDumper that quotes strings that `YamlLoader` would read as numbers, without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """A value that occurs twice is written twice."""
        return True


_PREFIX = "tag:yaml.org,2002:"
_SCALARS = ("str", "null", "bool", "int", "float")
_TAGS = {None, "!", *(f"{_PREFIX}{name}" for name in (*_SCALARS, "map", "seq"))}
_FLOAT = re.compile(
    r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.\d+(?:[eE][-+]?\d+)?)$"
)
_TRUTH = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_REPLACED = (f"{_PREFIX}float", f"{_PREFIX}timestamp")  # dates stay strings
for _class in (YamlLoader, YamlDumper):
    _class.yaml_implicit_resolvers = {
        key: [pair for pair in pairs if pair[0] not in _REPLACED]
        for key, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _class.add_implicit_resolver(f"{_PREFIX}float", _FLOAT, list("-+0123456789."))
YamlLoader.yaml_implicit_resolvers = {  # the dumper still quotes "no", for other readers
    key: [pair for pair in pairs if pair[0] != f"{_PREFIX}bool"]
    for key, pairs in YamlLoader.yaml_implicit_resolvers.items()
}
YamlLoader.add_implicit_resolver(f"{_PREFIX}bool", _TRUTH, list("tTfF"))


def _mapping(loader: YamlLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    """Construct a mapping; keys that repeat or are not scalars are errors."""
    seen: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node)
        if not isinstance(key, str | int | float | bool | None):
            problem = f"a key must be a word, found {type(key).__name__}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
        if key in seen:
            problem = f"key {key!r} appears twice"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


def _scalar(loader: YamlLoader, node: Any) -> Any:
    """Construct a number or a truth value; one that only looks like it (`0x_`) is an error."""
    name = node.tag.removeprefix(_PREFIX)
    try:
        return getattr(yaml.SafeLoader, f"construct_yaml_{name}")(loader, node)
    except (ValueError, LookupError, AttributeError):
        problem = f"{shortened(node.value)} is not of the type {name}"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


YamlLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
for _name in ("bool", "int", "float"):
    YamlLoader.add_constructor(f"{_PREFIX}{_name}", _scalar)


def parse_yaml(text: str, *, name: str, error: type[ValueError] = DocumentError) -> Any:
    """Parse YAML text to plain values.

    Args:
        text: YAML text.
        name: Name of the text in error messages, e.g. its file.
        error: Type of the error that is raised.

    Raises:
        ValueError: Of the type `error`, if the text is not YAML of plain values; with line and
            column.
    """
    if len(text) > MOST_YAML:
        raise error(f"{name}: YAML of more than {MOST_YAML:,} characters")
    try:
        return yaml.load(text, Loader=YamlLoader)  # a SafeLoader subclass
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = " ".join(filter(None, (fault.context, fault.problem)))
        raise error(f"{name}: not valid YAML: {' '.join(problem.split())}{where}") from None
    except yaml.YAMLError as fault:  # characters that YAML does not have
        raise error(f"{name}: not valid YAML: {' '.join(str(fault).split())}") from None


def yaml_text(data: Any) -> str:
    """Plain values as YAML text that `parse_yaml` reads, keys in their order."""
    text = yaml.dump(data, Dumper=YamlDumper, sort_keys=False, default_flow_style=None, width=100)
    return str(text)
