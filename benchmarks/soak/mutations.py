"""Changes of a file's bytes: damage of disks and networks, and what a hostile author writes."""

import json
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

Rng = np.random.Generator
Mutation = Callable[[bytes, Rng], bytes]

HOSTILE = (
    "[" * 10_000,
    '{"a":' * 10_000,
    "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n",
    "!!timestamp x",
    "a: !!python/object/apply:os.system [id]\n",
    "NaN",
    "[]",
    "null",
    '"text"',
    "\x1b]0;title\x07",
    "{" * 5_000,
    "- " * 5_000,
    "1" * 5_000,
)
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 10**9, 10**18, 10**400, 1e308, "", "x", [], {}, [[]], "\ud800"),
    *("../../x", "/dev/zero", "\x1b[2J"),
)


def flip_bits(data: bytes, rng: Rng) -> bytes:
    """One to eight bits the other way."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 9)) if data else 0):
        changed[int(rng.integers(len(changed)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def cut(data: bytes, rng: Rng) -> bytes:
    """The end is missing."""
    return data[: int(rng.integers(len(data) + 1))]


def lose(data: bytes, rng: Rng) -> bytes:
    """A piece is missing."""
    start = int(rng.integers(len(data) + 1))
    return data[:start] + data[start + int(rng.integers(1, 4096)) :]


def repeat(data: bytes, rng: Rng) -> bytes:
    """A piece is there twice."""
    start = int(rng.integers(len(data) + 1))
    end = start + int(rng.integers(1, 4096))
    return data[:end] + data[start:]


def fill(data: bytes, rng: Rng) -> bytes:
    """A piece is zeros, ones or noise, as a bad sector."""
    start, size = int(rng.integers(len(data) + 1)), int(rng.integers(1, 1024))
    piece = (bytes(size), b"\xff" * size, rng.bytes(size))[int(rng.integers(3))]
    return data[:start] + piece[: len(data) - start] + data[start + size :]


def replace_all(data: bytes, rng: Rng) -> bytes:
    """Nothing, noise, a page of a web server, a pointer to large files, or hostile text."""
    page = b"<!DOCTYPE html><html><body>404</body></html>"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    texts = [b"", rng.bytes(int(rng.integers(1, 4096))), page, pointer]
    texts += [text.encode("utf-8", "surrogatepass") for text in HOSTILE]
    return texts[int(rng.integers(len(texts)))]


def lie_about_a_number(data: bytes, rng: Rng) -> bytes:
    """Four bytes say another size, as the headers of pictures and archives have them."""
    values = (0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 10**9, 65_535)
    if len(data) < 8:
        return data
    start = int(rng.integers(min(len(data) - 4, 512)))
    order = "<I" if rng.integers(2) else ">I"
    number = struct.pack(order, values[int(rng.integers(len(values)))])
    return data[:start] + number + data[start + 4 :]


def change_json(data: bytes, rng: Rng) -> bytes:
    """One value of a JSON text, or of the JSON header of a safetensors file, is another one."""
    header = b""
    text = data
    if len(data) > 9 and data[8:9] == b"{" and (size := struct.unpack("<Q", data[:8])[0]) < 10**8:
        header, text, data = data[:8], data[8 : 8 + size], data[8 + size :]
    else:
        data = b""
    lines = text.splitlines(keepends=True) or [b""]
    chosen = int(rng.integers(len(lines)))
    try:
        values = [json.loads(text)]
        lines, chosen = [text], 0
    except ValueError:
        try:
            values = [json.loads(lines[chosen])]
        except ValueError:
            return fill(text, rng)
    places: list[tuple[Any, Any]] = [(values, 0)]
    for place, key in places:
        if isinstance(inner := place[key], dict | list):
            keys = list(inner) if isinstance(inner, dict) else range(len(inner))
            places += [(inner, k) for k in keys]
    place, key = places[int(rng.integers(len(places)))]
    if isinstance(place, dict) and rng.integers(4) == 0:
        del place[key]
    else:
        place[key] = VALUES[int(rng.integers(len(VALUES)))]
    lines[chosen] = json.dumps(values[0]).encode() + b"\n" * lines[chosen].endswith(b"\n")
    text = b"".join(lines)
    return (struct.pack("<Q", len(text)) if header else b"") + text + data


def change_yaml(data: bytes, rng: Rng) -> bytes:
    """One value of a YAML text is another one, or hostile text stands in its place."""
    found = list(re.finditer(rb": *([^\s{}\[\],:]+)", data))
    if not found:
        return fill(data, rng)
    match = found[int(rng.integers(len(found)))]
    values = [json.dumps(value) for value in VALUES] + list(HOSTILE)
    value = values[int(rng.integers(len(values)))].encode("utf-8", "surrogatepass")
    return data[: match.start(1)] + value + data[match.end(1) :]


DAMAGE: tuple[Mutation, ...] = (flip_bits, cut, lose, repeat, fill, replace_all)
"""Changes of any file."""
BINARY: tuple[Mutation, ...] = (*DAMAGE, lie_about_a_number)
JSON: tuple[Mutation, ...] = (*DAMAGE, change_json, change_json, change_json)
YAML: tuple[Mutation, ...] = (*DAMAGE, change_yaml, change_yaml, change_yaml)


def mutations_of(name: str) -> tuple[Mutation, ...]:
    """The changes that suit a file of this name."""
    ending = name.rpartition(".")[2]
    if ending in ("json", "jsonl"):
        return JSON
    if ending == "safetensors":
        return (*BINARY, change_json, change_json)
    return YAML if ending == "yaml" else BINARY
