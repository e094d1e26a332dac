"""Text files: what is refused, in one line that names the file, and what is read."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tessella.documents import (
    MOST_DEPTH,
    MOST_NODES,
    MOST_YAML,
    DocumentError,
    check,
    parse_json,
    parse_yaml,
    read_json,
    read_json_lines,
    read_text,
    yaml_text,
)
from tessella.tests.cases import over

FIELD = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Shard:
    """A structure, as stores have them."""

    file: str
    rows: int


@dataclasses.dataclass(frozen=True)
class Store:
    """A structure with a list of others."""

    shards: tuple[Shard, ...]
    names: dict[str, int]


@over(
    ("text", "message"),
    [
        ("[" * 10_000, "nested more than 64 deep"),
        ('{"a":' * 10_000, "nested more than 64 deep"),
        ("[" * (MOST_DEPTH + 2) + "]" * (MOST_DEPTH + 2), "nested more than 64 deep"),
        ('{"a": 1, "b": 2, "a": 3}', "key 'a' appears twice"),
        ('{"a": NaN}', "NaN is not a finite number"),
        ('{"a": -Infinity}', "-Infinity is not a finite number"),
        ('{"a": 1e999}', "1e999 is not a finite number"),
        ('{"a": ' + "1" * 5000 + "}", "not valid JSON: Exceeds the limit"),
        ('{"a":\n1,', r"line 2, column 3"),
        ("", r"Expecting value \(line 1, column 1\)"),
        (b"\xff\xfe", r"not UTF-8 text \(byte 0\)"),
    ],
)
def test_json_that_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(DocumentError, match=rf"^card: .*{message}") as caught:
        parse_json(text, name="card")
    assert "\n" not in str(caught.value)


def test_json_that_is_read() -> None:
    deep = "[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1)
    assert json.dumps(parse_json(deep, name="deep")) == deep
    text = '{"a": [1, 2.5, "\u2028", null, true], "b": {}}'
    assert parse_json(text, name="x") == json.loads(text)
    found = parse_json('{"loss": NaN, "psnr": Infinity}', name="log", non_finite=True)
    assert found["loss"] != found["loss"] and found["psnr"] == float("inf")


@over(
    ("text", "message"),
    [
        ("a: &x [1, 2]\nb: *x", r"anchors \(&name\) and aliases \(\*name\) are not read"),
        ("a: &x 1", "anchors"),
        ("!!timestamp x", "tag 'tag:yaml.org,2002:timestamp' is not read"),
        ("!!binary x", "tag 'tag:yaml.org,2002:binary' is not read"),
        ("!!set {a}", "tag 'tag:yaml.org,2002:set' is not read"),
        ("a: !!int x", r"'x' is not of the type int \(line 1, column 4\)"),
        ("a: !!bool x", "'x' is not of the type bool"),
        ("a: 0x_", "'0x_' is not of the type int"),
        ("a: " + "1" * 5000, "is not of the type int"),
        ("[" * 10_000, "nested more than 64 deep"),
        ("{" * 10_000, "nested more than 64 deep"),
        ("- " * 10_000, "nested more than 64 deep"),
        ("".join(" " * i + "a:\n" for i in range(100)), "nested more than 64 deep"),
        ("a: [1", r"expected ',' or ']', but got '<stream end>' \(line 1, column 6\)"),
        ("a: \x01", "special characters are not allowed"),
        ("<<: {a: 1}", "could not determine a constructor"),
        ("x" * (MOST_YAML + 1), "more than 1,048,576 characters"),
        ("[" + ",".join("1" * (MOST_NODES + 1)) + "]", "more than 100,000 keys and values"),
    ],
)
def test_yaml_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(DocumentError, match=rf"^run\.yaml: .*{message}") as caught:
        parse_yaml(text, name="run.yaml")
    assert "\n" not in str(caught.value)


def test_yaml_comes_back_without_anchors() -> None:
    shared = [1, 2]
    data = {"a": shared, "b": shared, "c": "no", "d": 1e-5, "e": float("inf"), "f": "2026-11-21"}
    assert parse_yaml(yaml_text(data), name="again") == data


def test_files_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        read_json(tmp_path / "nothing.json", FIELD)
    (tmp_path / "file").write_text("{}")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "file" / "card.json", FIELD)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DocumentError, match=r"folder\.json: a folder, expected a file"):
        read_json(tmp_path / "folder.json", FIELD)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DocumentError, match=r"pipe\.json: no regular file"):
        read_json(tmp_path / "pipe.json", FIELD)
    (tmp_path / "large.json").write_text(json.dumps({"a": "x" * 100}))
    with pytest.raises(DocumentError, match="larger than 50 bytes"):
        read_json(tmp_path / "large.json", FIELD, most=50)
    assert read_text(tmp_path / "file") == "{}"


def test_what_the_shell_hands_over_is_read() -> None:
    end, start = os.pipe()
    os.write(start, b"a: 1")
    os.close(start)
    assert read_text(f"/dev/fd/{end}") == "a: 1"
    os.close(end)


@over(
    ("data", "message"),
    [
        ([], "should be an object"),
        ({"shards": 3, "names": {}}, r"shards: .* \(found 3\)"),
        ({"shards": [{"file": "a", "rows": "3"}], "names": {}}, r"shards\.0\.rows: .*found '3'"),
        ({"shards": [{"rows": 3}], "names": {}}, r"shards\.0\.file: required, not given"),
        ({"shards": [], "names": {"a": [1]}}, r"names\.a: .* \(found a list\)"),
    ],
)
def test_structures_are_checked(data: Any, message: str) -> None:
    with pytest.raises(DocumentError, match=rf"^store: .*{message}"):
        check(data, Store, name="store")


def test_a_structure_is_built(tmp_path: Path) -> None:
    path = tmp_path / "store.json"
    path.write_text('{"shards": [{"file": "a", "rows": 3}], "names": {"b": 1}}')
    assert read_json(path, Store) == Store((Shard("a", 3),), {"b": 1})


def test_lines_that_are_damaged_cost_no_other_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    name = "line separator \u2028 and next line \x85"
    lines = [json.dumps({"step": 1, "name": name}, ensure_ascii=False).encode(), b'{"step": 2, "lo']
    lines += [b"[3]", b"", b'{"step": "' + b"x" * 2**21 + b'"}', b"\xff", b'{"step": 4}']
    path.write_bytes(b"\n".join(lines))
    found = list(read_json_lines(path, FIELD))
    assert [record for record in found if isinstance(record, dict)] == [
        {"step": 1, "name": name},
        {"step": 4},
    ]
    faults = [str(fault) for fault in found if isinstance(fault, DocumentError)]
    assert len(faults) == 4
    for number, message in (
        (2, "not valid JSON"),
        (3, "an object"),
        (5, "longer than"),
        (6, "UTF"),
    ):
        assert any(f"line {number}: " in fault and message in fault for fault in faults), faults


@dataclasses.dataclass(frozen=True)
class Named:
    name: str
    parts: tuple[str, ...] = ()
    about: dict[str, Any] = dataclasses.field(default_factory=dict)


def test_names_of_files_that_are_no_utf8_pass_the_check() -> None:
    """Python has lone surrogates for such bytes, and pydantic refuses them."""
    name, other = os.fsdecode(b"caf\xe9.png"), "caf\U0010dce9.png"
    data = {"name": name, "parts": [other, "x", name], "about": {name: [name, 1, {"a": name}]}}
    found = check(data, Named, name="names")
    assert found == Named(name, (other, "x", name), {name: [name, 1, {"a": name}]})
    parsed = parse_json(json.dumps(data), name="names")
    assert check(parsed, dict[str, Any], name="names") == data
    with pytest.raises(DocumentError, match=r"parts\.0: input should be a valid string"):
        check(data | {"parts": [1]}, Named, name="names")
