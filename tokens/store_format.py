"""Format of a token store: its header `store.json`, its errors, the checks of its files."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config import STRICT
from ..documents import check, read_json
from ..files import sha256_file
from ..manifest import check_files
from .tokens import TokenSpec

FORMAT_VERSION = 1
HEADER, PROBE = "store.json", "probe.safetensors"
UNFINISHED = ".unfinished"
"""End of the name of the folder of a store that is being written."""


class StoreError(ValueError):
    """A token store is missing, incomplete, damaged, or made by another tokenizer."""


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One file of a store, as `store.json` lists it.

    Args:
        file: Name of the file in the folder.
        rows: Number of images in the file.
        num_bytes: Size of the file in bytes.
        sha256: Checksum of the file, hexadecimal.
    """

    __pydantic_config__ = STRICT
    file: str
    rows: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class StorePart:
    """Place of a store in a larger one that several writers share.

    Args:
        index: Number of the part, from 0.
        count: Number of all parts.
        settings: What decides the rows, the same for every part; JSON values by name.
    """

    __pydantic_config__ = STRICT
    index: int
    count: int
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"part {self.index}/{self.count}: expected 0/{self.count} to "
                f"{self.count - 1}/{self.count}"
            )


@dataclass(frozen=True, kw_only=True)
class StoreHeader:
    """Content of `store.json`.

    Args:
        format: Version of the layout.
        spec: Description of the tokens.
        fingerprint: Fingerprint of the tokenizer that made the tokens.
        tokenizer: Path or name of the tokenizer, as the user gave it.
        source: Data source that was encoded, as the user gave it.
        resolution: Height and width of the images, in pixels.
        classes: Class names by label; empty if there are none.
        count: Number of images in the store.
        shards: Token files, in row order.
        probe: File of original images, or None if none were kept.
        part: Place of the store in a larger one; None, and not in the file, if it is whole.
    """

    __pydantic_config__ = STRICT
    format: int = FORMAT_VERSION
    spec: TokenSpec
    fingerprint: str
    tokenizer: str
    source: str
    resolution: int
    classes: tuple[str, ...] = ()
    count: int = 0
    shards: tuple[StoredFile, ...] = ()
    probe: StoredFile | None = None
    part: StorePart | None = None


def read_header(folder: Path) -> StoreHeader:
    """Read the header of a store.

    Raises:
        StoreError: If it is missing, damaged, or of another format version.
    """
    path = folder / HEADER
    try:
        data = read_json(path, dict[str, Any], error=StoreError)
    except FileNotFoundError:
        work, found = folder.with_name(folder.name + UNFINISHED), "this is not a token store"
        if folder.name.endswith(UNFINISHED) or work.is_dir():
            found = "the store is unfinished; encode it again with resume (--resume)"
        raise StoreError(f"{folder}: {HEADER} is missing; {found}") from None
    if "format" not in data:
        raise StoreError(f"{path}: damaged, not the header of a token store: no format")
    version = data["format"]
    if version != FORMAT_VERSION:
        raise StoreError(
            f"{folder}: token store of format {version!r}; this version of tessella reads "
            f"format {FORMAT_VERSION}"
        )
    header = check(data, StoreHeader, name=f"{path}: damaged", error=StoreError)
    rows = [shard.rows for shard in header.shards]
    if header.count < 1 or header.count != sum(rows):
        raise StoreError(f"{path}: damaged, {header.count} images but shards of {rows} rows")
    check_files(folder, (HEADER,), error=StoreError)
    return header


def header_bytes(header: StoreHeader) -> bytes:
    """Content of `store.json`; characters that UTF-8 does not have are escaped."""
    data = asdict(header)
    if header.part is None:
        del data["part"]
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def check_file(path: Path, stored: StoredFile, *, verify: bool) -> None:
    """Compare a file with its entry in the header.

    Args:
        path: Path of the file.
        stored: Entry of the header.
        verify: Compare the checksum as well as the size.

    Raises:
        StoreError: If it is missing, truncated or changed.
    """
    if not path.is_file():
        raise StoreError(f"{path.parent}: {path.name} is missing; the store is incomplete")
    size = path.stat().st_size
    if size != stored.num_bytes:
        what = "truncated" if size < stored.num_bytes else "not the file that was written"
        raise StoreError(f"{path}: {what}, {size} bytes where {stored.num_bytes} were written")
    if verify and (found := sha256_file(path)) != stored.sha256:
        raise StoreError(
            f"{path}: damaged, its SHA-256 is {found[:16]}..., {stored.sha256[:16]}... when written"
        )
