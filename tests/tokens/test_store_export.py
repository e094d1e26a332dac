"""Exports: what other programs read, and the way back to the same bytes."""

import importlib.util
import json
import math
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessella.files import SaveError
from tessella.tokens.row_files import FORMATS
from tessella.tokens.sequences import SequenceFormat
from tessella.tokens.store import StoreError, TokenStore, TokenStoreWriter
from tessella.tokens.store_export import export_store, import_store, read_export
from tessella.tokens.tokens import Tokens, TokenSpec

GRID, ORDERED = TokenSpec((2, 3), (4, 3)), TokenSpec((4,), (10,), ordered=True)
HAS_ARROW = importlib.util.find_spec("pyarrow") is not None
WITHOUT_ARROW = tuple(name for name in FORMATS if name != "parquet")


def make(
    path: Path, spec: TokenSpec = GRID, *, plain: bool = False, name: str = "é 1"
) -> TokenStore:
    """Seven rows in shards of three, with every column, or with none but the tokens."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, spec.codebook_sizes, (7, spec.num_tokens, spec.num_codebooks))
    tokens = Tokens(torch.from_numpy(codes), spec)
    if spec.ordered:
        tokens = Tokens.cat([t.truncate(1 + i % 4) for i, t in enumerate(tokens.split())])
    facts: dict[str, Any] = {"fingerprint": "f00d", "tokenizer": "t", "source": "s"}
    with TokenStoreWriter(path, spec, resolution=4, rows_per_shard=3, **facts) as writer:
        if plain:
            writer.add(tokens, [f"{i}" for i in range(7)])
        else:
            images = torch.arange(96, dtype=torch.uint8).reshape(2, 3, 4, 4)
            writer.add_probe(images, [1, 5], [30.1234567, 20.0])
            writer.add(
                tokens,
                [name, *(f"a/{i}.png" for i in range(6))],
                labels=[0, 5, -1, 2, 2, -1, 1],
                captions=["", None, "zwei\nZeilen", "三", None, None, "x"],
                augmentation=[0, 1, 0, 3, 0, 0, 0],
                psnr=[30.1, math.nan, 7.25, 1e-3, 99.0, math.nan, 3.0],
            )
    return TokenStore(path)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by name."""
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("spec", [GRID, ORDERED], ids=str)
def test_there_and_back_gives_the_same_bytes(
    tmp_path: Path, to: str, plain: bool, spec: TokenSpec
) -> None:
    if to == "parquet" and not HAS_ARROW:
        pytest.skip("pyarrow is not installed")
    store = make(tmp_path / "store", spec, plain=plain)
    sequences = [
        SequenceFormat(spec=spec),
        SequenceFormat(spec=spec, ids="groups", offset=2**31, bos=1, eos=2),
    ]
    if spec is GRID:
        sequences.append(SequenceFormat(spec=spec, order="hilbert", offset=9, eos=3))
    for number, sequence in enumerate(sequences):
        out, back = tmp_path / f"export-{number}", tmp_path / f"back-{number}"
        result = export_store(store, out, to=to, sequence=sequence)
        assert result["images"] == 7 and result["ids_per_image"] == sequence.length
        assert (result["first_id"], result["last_id"]) == (
            sequence.ids_used[0],
            sequence.ids_used[-1],
        )
        assert result["vocabulary"] == sequence.largest_id + 1
        assert read_export(out).sequence == sequence
        assert import_store(out, back) == {"store": str(back), "images": 7}
        assert contents(back) == contents(tmp_path / "store"), sequence


def test_files_say_what_they_are_without_us(tmp_path: Path) -> None:
    """Read by plain numpy, json and tarfile."""
    store = make(tmp_path / "store")
    sequence = SequenceFormat(spec=GRID, offset=100, bos=1)
    expected = sequence.encode(store.tokens()).tolist()
    for to in WITHOUT_ARROW:
        export_store(store, tmp_path / to, to=to, sequence=sequence)
    ids = np.load(tmp_path / "npy" / "ids.npy")
    assert ids.dtype == np.int32 and ids.tolist() == expected
    assert np.load(tmp_path / "npy" / "labels.npy").tolist() == store.labels.tolist()
    lines = (tmp_path / "npy" / "texts.jsonl").read_text().splitlines()
    assert [json.loads(line)["caption"] for line in lines] == store.captions
    files = sorted((tmp_path / "jsonl").glob("*.jsonl"))
    assert [f.name for f in files] == [f"rows-0000{i}.jsonl" for i in range(3)]
    rows = [json.loads(line) for f in files for line in f.read_text().splitlines()]
    assert [row["ids"] for row in rows] == expected
    assert rows[0] == {
        "ids": expected[0],
        "name": "é 1",
        "label": 0,
        "caption": "",
        "psnr": float(np.float32(30.1)),
    }
    assert rows[5] == {"ids": expected[5], "name": "a/4.png"}
    found: dict[str, bytes] = {}
    for path in sorted((tmp_path / "webdataset").glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {m.name: tar.extractfile(m).read() for m in tar}
    assert [n for n in found if n.startswith("000000003.")] == [
        f"000000003.{kind}" for kind in ("npy", "json", "cls", "txt")
    ]
    assert found["000000003.txt"].decode() == "三" and found["000000003.cls"] == b"2"
    (tmp_path / "row.npy").write_bytes(found["000000003.npy"])
    assert np.load(tmp_path / "row.npy").tolist() == expected[3]
    assert "000000005.cls" not in found and "000000005.txt" not in found


@pytest.mark.skipif(not HAS_ARROW, reason="pyarrow is not installed")
def test_parquet_has_typed_columns(tmp_path: Path) -> None:
    from pyarrow import parquet

    store = make(tmp_path / "store")
    export_store(store, tmp_path / "out", to="parquet")
    table = parquet.read_table(tmp_path / "out" / "rows-00001.parquet")
    types = {field.name: str(field.type) for field in table.schema}
    assert types["ids"].startswith("list<") and "int32" in types["ids"]
    assert types["label"] == "int64" and types["caption"] == "string" and types["psnr"] == "float"
    assert table["ids"].to_pylist() == SequenceFormat(spec=GRID).encode(store[3:6]).tolist()
    bad = make(tmp_path / "bad", name=os.fsdecode(b"\xe9"))
    with pytest.raises(StoreError, match="no place for bytes that are no UTF-8"):
        export_store(bad, tmp_path / "no", to="parquet")
    assert not (tmp_path / "no").exists()


def test_parquet_without_pyarrow_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    store = make(tmp_path / "store")
    with pytest.raises(StoreError, match=r"pip install 'tessella\[parquet\]'"):
        export_store(store, tmp_path / "out", to="parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("to", WITHOUT_ARROW)
def test_names_that_are_no_utf8_come_back(tmp_path: Path, to: str) -> None:
    store = make(tmp_path / "store", name=os.fsdecode(b"caf\xe9.png"))
    export_store(store, tmp_path / "out", to=to)
    import_store(tmp_path / "out", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "store")


@pytest.mark.parametrize("to", WITHOUT_ARROW)
def test_changed_files_are_refused_unless_asked_for(tmp_path: Path, to: str) -> None:
    store = make(tmp_path / "store")
    out = tmp_path / "out"
    export_store(store, out, to=to)
    for name in sorted(contents(out).keys() - {"export.json", ".tessella.json"}):
        before = (out / name).read_bytes()
        (out / name).write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(StoreError, match=rf"{name}: damaged, its SHA-256"):
            import_store(out, tmp_path / "back")
        (out / name).unlink()
        with pytest.raises(StoreError, match=rf"{name} is missing"):
            import_store(out, tmp_path / "back")
        (out / name).write_bytes(before)
    assert not (tmp_path / "back").exists()


def test_rows_of_a_language_model_become_a_store(tmp_path: Path) -> None:
    """Two rows that a model wrote, in the place of those exported."""
    store = make(tmp_path / "store", ORDERED)
    export_store(store, tmp_path / "out", to="jsonl", sequence=SequenceFormat(spec=ORDERED, eos=10))
    for path in (tmp_path / "out").glob("rows-0000[12].jsonl"):
        path.unlink()
    path = tmp_path / "out" / "rows-00000.jsonl"
    path.write_text('{"ids": [3, 1, 10]}\n{"ids": [9, 9, 9, 9, 10], "label": 4, "name": "m"}\n')
    import_store(tmp_path / "out", tmp_path / "back", verify=False)
    back = TokenStore(tmp_path / "back")
    assert back.lengths.tolist() == [2, 4] and back.labels.tolist() == [-1, 4]
    assert back.tokens().indices[..., 0].tolist() == [[3, 1, 0, 0], [9, 9, 9, 9]]
    assert back.ids == ["", "m"] and back.header.probe is None
    for line, message in (
        ('{"ids": [3, 1, 11]}', "row 0: found 11, expected eos 10"),
        ('{"ids": [3, 1.5, 10]}', "found ids float64"),
        ('{"ids": ["3", "10"]}', "found ids <U"),
        ('{"ids": [1, 1, 1, 1, 1, 10]}', "found 6 ids, expected up to 5"),
        ('{"ids": [10]}', "row 0 has 1 ids"),
        ('{"label": 1}', "KeyError"),
        ('{"ids": [3, 10], "label": "cat"}', "found label 'cat'"),
        ('{"ids": [3, 10], "label": -2}', "labels: expected -1 or more"),
        ('{"ids": [3, 10], "name": 7}', "found name 7"),
        ('{"ids": [3, 10]', "rows-00000.jsonl: line 1: not valid JSON"),
        ("[]", "line 1"),
    ):
        path.write_text(line + "\n")
        with pytest.raises(StoreError, match=message):
            import_store(tmp_path / "out", tmp_path / "no", verify=False)
        assert not (tmp_path / "no").exists() and not (tmp_path / "no.unfinished").exists()


@pytest.mark.parametrize("to", WITHOUT_ARROW)
def test_damage_is_told_in_one_line_even_unverified(tmp_path: Path, to: str) -> None:
    store = make(tmp_path / "store")
    export_store(store, tmp_path / "out", to=to)
    files = [
        p for p in (tmp_path / "out").iterdir() if p.name.startswith(("rows-", "ids", "texts"))
    ]
    for path in files:
        before = path.read_bytes()
        for blob in (b"", before[: len(before) // 3], b"\0" * 40, before[::-1]):
            path.write_bytes(blob)
            with pytest.raises(StoreError):
                import_store(tmp_path / "out", tmp_path / "no", verify=False)
        path.write_bytes(before)


def test_wrong_calls(tmp_path: Path) -> None:
    store = make(tmp_path / "store")
    with pytest.raises(ValueError, match="to: found 'csv', expected one of npy"):
        export_store(store, tmp_path / "out", to="csv")
    with pytest.raises(StoreError, match=r"export\.json is missing"):
        import_store(tmp_path / "store", tmp_path / "out")
    export_store(store, tmp_path / "out", to="npy")
    with pytest.raises(FileExistsError, match="exists already"):
        export_store(store, tmp_path / "out", to="npy")
    export_store(store, tmp_path / "out", to="jsonl", overwrite=True)
    data = json.loads((tmp_path / "out" / "export.json").read_text())
    for changes, message in (
        ({"to": "csv"}, "export of format 1 to 'csv'"),
        ({"format": 2}, "export of format 2"),
        ({"sequence": data["sequence"] | {"bos": 3}}, "bos: found 3"),
        ({"files": 3}, "files"),
    ):
        (tmp_path / "out" / "export.json").write_text(json.dumps(data | changes))
        with pytest.raises(StoreError, match=message):
            import_store(tmp_path / "out", tmp_path / "no")
    changed = data | {"sequence": data["sequence"] | {"offset": 1}}
    (tmp_path / "out" / "export.json").write_text(json.dumps(changed))
    with pytest.raises(StoreError, match=r"export\.json"):
        import_store(tmp_path / "out", tmp_path / "no")
    with pytest.raises(SaveError, match="cannot write"):
        export_store(store, tmp_path / "out" / "export.json" / "x", to="npy")


@pytest.mark.parametrize("to", ["jsonl", "npy"])
def test_lines_that_could_not_be_read_again_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    store = make(tmp_path / "store", name="n" * 300)
    monkeypatch.setattr("tessella.tokens.row_files.MOST_LINE", 300)
    with pytest.raises(StoreError, match=r"a line of 3\d\d bytes, expected at most 300"):
        export_store(store, tmp_path / "out", to=to)
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
