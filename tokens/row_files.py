"""Files of other programs that hold rows of token stores as sequences of ids.

Every format has a writer of all rows to a folder and a reader. What a format has no place for is
left out and given back as it was: no label (-1), no caption, view 0, no PSNR.
"""

import contextlib
import io
import json
import math
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..documents import MOST_LINE, parse_json, read_json_lines
from ..errors import DAMAGED_ARRAY
from .sequences import PADDING
from .store_format import StoreError

FORMATS = ("npy", "jsonl", "webdataset", "parquet")
"""Formats of `tessella store export --to`."""
MOST_MEMBER = 1 << 26
"""Largest size of a file in a tar that is read, in bytes."""


@dataclass(frozen=True, eq=False)
class SequenceRows:
    """Consecutive rows as sequences.

    Args:
        ids: Ids, (B, L) int64, -1 after the end of shorter sequences.
        labels: Class of each image, (B,) int64; -1: none.
        augmentation: Augmented view of each image, (B,) int64.
        psnr: PSNR of each reconstruction in dB, (B,) float32; NaN: unknown.
        names: Name of each image in its source.
        captions: Caption of each image, or None.
    """

    ids: np.ndarray
    labels: np.ndarray
    augmentation: np.ndarray
    psnr: np.ndarray
    names: list[str]
    captions: list[str | None]

    def __len__(self) -> int:
        return len(self.ids)

    def sequences(self) -> Iterator[np.ndarray]:
        """Each row without its padding."""
        for row, count in zip(self.ids, (self.ids != PADDING).sum(1), strict=True):
            yield row[:count]

    @classmethod
    def of(cls, records: list[dict[str, Any]], length: int) -> "SequenceRows":
        """Rows of records with `ids` and, where there are any, the other columns.

        Raises:
            ValueError: If a sequence is longer than `length`, or a value of another type.
        """
        ids = np.full((len(records), length), PADDING)
        for row, record in enumerate(records):
            found = np.asarray(record["ids"])
            if found.size and (found.dtype.kind not in "iu" or found.ndim != 1):
                raise ValueError(f"found ids {found.dtype} {found.shape}, expected (L,) integers")
            if len(found) > length:
                raise ValueError(f"found {len(found)} ids, expected up to {length}")
            ids[row, : len(found)] = found

        def column(name: str, default: Any) -> list[Any]:
            kinds = (int, float) if isinstance(default, float) else type(default)
            values = [record.get(name) for record in records]
            for value in values:
                if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
                    raise ValueError(f"found {name} {value!r}")
            return [default if value is None else value for value in values]

        texts = zip(records, column("caption", ""), strict=True)
        return cls(
            ids,
            np.array(column("label", -1), np.int64),
            np.array(column("augmentation", 0), np.int64),
            np.array(column("psnr", math.nan), np.float32),
            column("name", ""),
            [None if record.get("caption") is None else text for record, text in texts],
        )

    def records(self) -> Iterator[dict[str, Any]]:
        """Each row as JSON values, without what it has not."""
        columns = (self.labels, self.augmentation, self.psnr)
        rest = zip(*(c.tolist() for c in columns), self.names, self.captions, strict=True)
        for ids, (label, view, psnr, name, caption) in zip(self.sequences(), rest, strict=True):
            record: dict[str, Any] = {"ids": ids.tolist(), "name": name}
            record |= {"label": label} if label != -1 else {}
            record |= {"caption": caption} if caption is not None else {}
            record |= {"augmentation": view} if view else {}
            yield record | ({} if math.isnan(psnr) else {"psnr": psnr})


@dataclass(frozen=True)
class Shape:
    """What a writer and a reader know before the first row.

    Args:
        count: Number of rows.
        length: Largest number of ids of a row.
        dtype: Integer type of the ids, `int32` or `int64`.
    """

    count: int
    length: int
    dtype: str


def _write_npy(folder: Path, parts: Iterable[SequenceRows], shape: Shape) -> None:
    """`ids.npy`, arrays of the other numbers beside it, and `texts.jsonl`."""
    kinds = {"ids": shape.dtype, "labels": "int64", "augmentation": "int64", "psnr": "float32"}
    known = False  # whether there is any PSNR
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / f"{name}.npy", "wb")) for name in kinds}
        for name, kind in kinds.items():
            sizes = (shape.count, shape.length) if name == "ids" else (shape.count,)
            header = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": sizes}
            np.lib.format.write_array_header_1_0(files[name], header)
        texts = stack.enter_context(open(folder / "texts.jsonl", "w", encoding="utf-8"))
        for rows in parts:
            for name, kind in kinds.items():
                files[name].write(np.ascontiguousarray(getattr(rows, name), kind).tobytes())
            for name, caption in zip(rows.names, rows.captions, strict=True):
                texts.write(_line({"name": name, "caption": caption}))
            known = known or not np.isnan(rows.psnr).all()
    if not known:
        (folder / "psnr.npy").unlink()


def _read_npy(folder: Path, shape: Shape) -> Iterator[SequenceRows]:
    arrays = {"ids": _load(folder / "ids.npy", 2, "iu")}
    count = len(arrays["ids"])
    for name, kinds in (("labels", "iu"), ("augmentation", "iu"), ("psnr", "f")):
        path = folder / f"{name}.npy"
        if name == "psnr" and not path.exists():
            arrays[name] = np.full(count, math.nan, np.float32)
        else:
            arrays[name] = _load(path, 1, kinds)
        if len(arrays[name]) != count:
            raise StoreError(f"{path}: {len(arrays[name])} rows, but {count} sequences of ids")
    texts = read_json_lines(folder / "texts.jsonl", dict[str, Any], error=StoreError)
    for start in range(0, count, _PART):
        some = slice(start, start + _PART)
        found = [_unless_error(next(texts, None)) for _ in arrays["ids"][some]]
        if None in found:
            raise StoreError(f"{folder / 'texts.jsonl'}: fewer than {count} lines")
        chosen = {name: np.array(array[some]) for name, array in arrays.items()}
        ids = chosen["ids"].astype(np.int64)
        if ids.shape[1] < shape.length:
            ids = np.pad(ids, ((0, 0), (0, shape.length - ids.shape[1])), constant_values=PADDING)
        yield SequenceRows(
            ids,
            chosen["labels"].astype(np.int64),
            chosen["augmentation"].astype(np.int64),
            chosen["psnr"].astype(np.float32),
            [str((text or {}).get("name", "")) for text in found],
            [(text or {}).get("caption") for text in found],
        )
    if next(texts, None) is not None:
        raise StoreError(f"{folder / 'texts.jsonl'}: more than {count} lines")


_BROKEN: tuple[type[Exception], ...] = (tarfile.TarError, *DAMAGED_ARRAY)
"""Errors of a damaged archive of arrays."""
_PART = 16384
"""Number of rows that are read at once."""


def _load(path: Path, ndim: int, kinds: str) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGED_ARRAY as error:
        reason = " ".join(str(error).split())
        raise StoreError(f"{path}: not a whole .npy file ({reason})") from None
    if not isinstance(array, np.ndarray) or array.ndim != ndim or array.dtype.kind not in kinds:
        raise StoreError(f"{path}: expected an array of {ndim} dimensions and type {kinds}")
    return array


def _unless_error(line: Any) -> Any:
    if isinstance(line, ValueError):
        raise line
    return line


def _write_jsonl(folder: Path, parts: Iterable[SequenceRows], shape: Shape) -> None:
    """`rows-00000.jsonl` and so on: an object on each line."""
    for number, rows in enumerate(parts):
        with open(folder / f"rows-{number:05d}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(_line(record) for record in rows.records())


def _line(record: dict[str, Any]) -> str:
    """A line of JSON, which the import reads again.

    Raises:
        StoreError: If it is longer than lines that are read.
    """
    text = json.dumps(record) + "\n"
    if len(text) > MOST_LINE:
        raise StoreError(
            f"{record['name']!r}: a line of {len(text):,} bytes, expected at most {MOST_LINE:,}; "
            "choose another format, such as webdataset"
        )
    return text


def _read_jsonl(folder: Path, shape: Shape) -> Iterator[SequenceRows]:
    for path in _numbered(folder, "jsonl"):
        lines = read_json_lines(path, dict[str, Any], error=StoreError)
        yield _checked(path, [_unless_error(line) for line in lines], shape)


def _write_webdataset(folder: Path, parts: Iterable[SequenceRows], shape: Shape) -> None:
    """`rows-00000.tar` and so on: `KEY.npy`, `.json`, and `.cls` and `.txt` where there are any."""
    row = 0
    for number, rows in enumerate(parts):
        with tarfile.open(folder / f"rows-{number:05d}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for ids, record in zip(rows.sequences(), rows.records(), strict=True):
                del record["ids"]
                label, caption = record.pop("label", None), record.pop("caption", None)
                array = io.BytesIO()
                np.lib.format.write_array(array, ids.astype(shape.dtype), allow_pickle=False)
                files = {"npy": array.getvalue(), "json": json.dumps(record).encode()}
                files |= {"cls": str(label).encode()} if label is not None else {}
                files |= {"txt": caption.encode("utf-8", _ANY)} if caption is not None else {}
                for kind, blob in files.items():
                    member = tarfile.TarInfo(f"{row:09d}.{kind}")
                    member.size = len(blob)
                    tar.addfile(member, io.BytesIO(blob))
                row += 1


_ANY = "surrogatepass"
"""Rule for characters that UTF-8 does not have, which names of files may hold."""


def _read_webdataset(folder: Path, shape: Shape) -> Iterator[SequenceRows]:
    for path in _numbered(folder, "tar"):
        samples: dict[str, dict[str, Any]] = {}
        try:
            if _tail(path).strip(b"\0"):
                raise ValueError("its end is missing")  # of which tarfile says nothing
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    key, _, kind = member.name.partition(".")
                    file = tar.extractfile(member) if member.size <= MOST_MEMBER else None
                    if file is None:
                        raise ValueError(f"{member.name} is no small file")
                    samples.setdefault(key, {}).update(_member(kind, file.read()))
        except _BROKEN as error:
            raise StoreError(f"{path}: damaged, or not of an export ({error})") from None
        yield _checked(path, list(samples.values()), shape)


def _tail(path: Path) -> bytes:
    """The last two blocks of a tar, which are zeros."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 2 * tarfile.BLOCKSIZE))
        return file.read()


def _member(kind: str, blob: bytes) -> dict[str, Any]:
    """Columns in one file of a sample; files of other kinds have none."""
    match kind:
        case "npy":
            return {"ids": np.lib.format.read_array(io.BytesIO(blob), allow_pickle=False)}
        case "json":
            return dict(parse_json(blob, name="json"))
        case "cls":
            return {"label": int(blob)}
        case "txt":
            return {"caption": blob.decode("utf-8", _ANY)}
    return {}


def _write_parquet(folder: Path, parts: Iterable[SequenceRows], shape: Shape) -> None:
    """`rows-00000.parquet` and so on: columns ids, name, label, caption, augmentation, psnr."""
    arrow, parquet = _arrow()
    for number, rows in enumerate(parts):
        counts = (rows.ids != PADDING).sum(1)
        flat = arrow.array(np.concatenate(list(rows.sequences())).astype(shape.dtype))
        starts = arrow.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
        for text in (*rows.names, *filter(None, rows.captions)):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise StoreError(
                    f"{text!r}: parquet has no place for bytes that are no UTF-8; expected "
                    "another format"
                ) from None
        columns = {
            "ids": arrow.ListArray.from_arrays(starts, flat),
            "name": arrow.array(rows.names, arrow.string()),
            "label": arrow.array(rows.labels),
            "caption": arrow.array(rows.captions, arrow.string()),
            "augmentation": arrow.array(rows.augmentation),
            "psnr": arrow.array(rows.psnr, mask=np.isnan(rows.psnr)),
        }
        parquet.write_table(arrow.table(columns), folder / f"rows-{number:05d}.parquet")


def _read_parquet(folder: Path, shape: Shape) -> Iterator[SequenceRows]:
    arrow, parquet = _arrow()
    for path in _numbered(folder, "parquet"):
        try:
            table = parquet.read_table(path)
        except (arrow.ArrowException, OSError) as error:
            raise StoreError(f"{path}: damaged ({' '.join(str(error).split())})") from None
        yield _checked(path, table.to_pylist(), shape)


def _arrow() -> tuple[Any, Any]:
    """The modules `pyarrow` and `pyarrow.parquet`.

    Raises:
        StoreError: If pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise StoreError(
            "parquet: pyarrow is not installed; pip install 'tessella[parquet]', or export to npy, "
            "jsonl or webdataset"
        ) from None
    return pyarrow, pyarrow.parquet


def _numbered(folder: Path, suffix: str) -> list[Path]:
    """Files of rows in their order."""
    found = sorted(folder.glob(f"rows-*.{suffix}"))
    if not found:
        raise StoreError(f"{folder}: no rows-00000.{suffix}; expected an export")
    return found


def _checked(path: Path, records: list[dict[str, Any]], shape: Shape) -> SequenceRows:
    """Rows of records that a reader found, at least one."""
    if not records:
        raise StoreError(f"{path}: no rows; expected at least one")
    try:
        return SequenceRows.of(records, shape.length)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise StoreError(f"{path}: not rows of an export ({error!r})") from None


Writer = Callable[[Path, Iterable[SequenceRows], Shape], None]
Reader = Callable[[Path, Shape], Iterator[SequenceRows]]

WRITERS: dict[str, Writer] = {
    "npy": _write_npy,
    "jsonl": _write_jsonl,
    "webdataset": _write_webdataset,
    "parquet": _write_parquet,
}
READERS: dict[str, Reader] = {
    "npy": _read_npy,
    "jsonl": _read_jsonl,
    "webdataset": _read_webdataset,
    "parquet": _read_parquet,
}
