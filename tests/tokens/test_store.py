"""Token stores: round trips, random access, damage, and that nothing half-written stays."""

import json
import math
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tessella.data.images import to_uint8
from tessella.files import add_to_marker
from tessella.tokenizers.base import Tokenizer
from tessella.tokenizers.probe import check_store, verify_store_probe
from tessella.tokens.store import StoreError, TokenStore, TokenStoreWriter, load_tokens
from tessella.tokens.store_writer import MAX_PROBES
from tessella.tokens.tokens import SpecMismatch, Tokens, TokenSpec

SPEC = TokenSpec((2, 3), (2,) * 5)
ORDERED = TokenSpec((4,), (1000,), ordered=True)
SIDE = 4


class Painter(Tokenizer):
    """Paints each image in the grey that its first index says."""

    def __init__(self, fingerprint: str | None = "f00d", shift: float = 0.0) -> None:
        super().__init__()
        self.spec, self.fingerprint = SPEC, fingerprint
        self.shift = torch.nn.Parameter(torch.tensor(shift))

    def decode(self, tokens: Tokens, *, rng: torch.Generator | None = None) -> torch.Tensor:
        grey = tokens.require(self.spec).bits().flatten(1).double().mean(1) - 0.5 + self.shift
        return grey[:, None, None, None].expand(-1, 3, SIDE, SIDE)


def random_tokens(spec: TokenSpec, count: int, *, seed: int = 0) -> Tokens:
    rng = torch.Generator().manual_seed(seed)
    shape = (count, spec.num_tokens, spec.num_codebooks)
    tokens = Tokens(torch.randint(0, spec.codebook_sizes[0], shape, generator=rng), spec)
    if not spec.ordered:
        return tokens
    parts = [image.truncate(1 + i % spec.num_tokens) for i, image in enumerate(tokens.split())]
    return Tokens.cat(parts)


def writer(path: Path, spec: TokenSpec = SPEC, **changes: object) -> TokenStoreWriter:
    facts = {
        "fingerprint": "f00d",
        "tokenizer": "bundled:painter",
        "source": "bundled:emoji",
        "resolution": SIDE,
        "classes": ("ant", "bee"),
        "rows_per_shard": 4,
    }
    return TokenStoreWriter(path, spec, **(facts | changes))


def names(count: int, start: int = 0) -> list[str]:
    return [f"image-{i}" for i in range(start, start + count)]


def make(path: Path, count: int = 10, spec: TokenSpec = SPEC) -> Tokens:
    tokens = random_tokens(spec, count)
    with writer(path, spec) as store:
        store.add(tokens, names(count))
    return tokens


def edit_header(path: Path, **changes: object) -> None:
    data = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps(data | changes))
    add_to_marker(path, "store.json")


@pytest.mark.parametrize("spec", [SPEC, ORDERED], ids=str)
@pytest.mark.parametrize("batch", [1, 3, 10])
def test_round_trip_whatever_the_batches(tmp_path: Path, spec: TokenSpec, batch: int) -> None:
    tokens = random_tokens(spec, 10)
    with writer(tmp_path / "store", spec) as out:
        for start in range(0, 10, batch):
            part = tokens[start : start + batch]
            out.add(part, names(len(part), start))
            assert len(out) == min(10, start + batch)
    store = TokenStore(tmp_path / "store")
    assert len(store) == 10
    assert store.spec == spec
    assert [shard.rows for shard in store.header.shards] == [4, 4, 2]
    assert store.tokens().equal(tokens)
    assert load_tokens(tmp_path / "store").equal(tokens)
    assert store[3:9].equal(tokens[3:9])
    assert store[::-3].equal(tokens[[9, 6, 3, 0]])
    assert store.rows([9, 0, 4, 4]).equal(tokens[[9, 0, 4, 4]])
    assert store.rows(torch.tensor([7])).equal(tokens[7:8])
    assert len(store[5:5]) == len(store.rows([])) == 0
    assert store.ids == names(10)
    assert store.bits_per_image == tokens.bits_per_image
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_columns_and_header(tmp_path: Path) -> None:
    with writer(tmp_path / "store") as out:
        out.add(random_tokens(SPEC, 3), names(3))
        out.add(
            random_tokens(SPEC, 2),
            names(2, 3),
            labels=torch.tensor([1, 0]),
            captions=["一只蜜蜂", None],
            augmentation=[0, 7],
            psnr=[30.5, math.nan],
        )
    store = TokenStore(tmp_path / "store")
    assert store.labels.tolist() == [-1, -1, -1, 1, 0]
    assert store.labels.dtype == store.augmentation.dtype == torch.int64
    assert store.augmentation.tolist() == [0, 0, 0, 0, 7]
    assert store.captions == [None, None, None, "一只蜜蜂", None]
    assert store.psnr.isnan().tolist() == [True, True, True, False, True]
    assert store.psnr[3].item() == 30.5
    assert store.lengths is None
    assert store.classes == ("ant", "bee")
    assert (store.fingerprint, store.header.tokenizer) == ("f00d", "bundled:painter")
    assert (store.header.source, store.header.resolution) == ("bundled:emoji", SIDE)


def test_packed_rows_take_no_more_than_their_bits(tmp_path: Path) -> None:
    make(tmp_path / "store", 4)
    shard = (tmp_path / "store" / "shard-00000.safetensors").read_bytes()
    (header_bytes,) = struct.unpack("<Q", shard[:8])
    assert len(shard) - 8 - header_bytes == 4 * (SPEC.packed_bytes + 8 + 8)


def test_full_length_rows_of_an_ordered_spec_get_lengths(tmp_path: Path) -> None:
    tokens = Tokens(torch.ones(2, 4, 1, dtype=torch.int64), ORDERED)
    with writer(tmp_path / "store", ORDERED) as out:
        out.add(tokens, names(2))
    store = TokenStore(tmp_path / "store")
    assert store.lengths.tolist() == [4, 4]
    assert store.bits_per_image == ORDERED.bits_per_image


@pytest.mark.parametrize("wrong", [-1, 10])
def test_rows_outside_are_refused(tmp_path: Path, wrong: int) -> None:
    make(tmp_path / "store")
    store = TokenStore(tmp_path / "store")
    with pytest.raises(IndexError, match=rf"row {wrong}: .* rows 0 to 9"):
        store.rows([0, wrong])
    with pytest.raises(IndexError, match=r"row -11|row 10"):
        store[-11 if wrong < 0 else 10]
    with pytest.raises(TypeError, match=r"found torch\.bool"):
        store.rows(torch.ones(10, dtype=torch.bool))
    for index in (True, 1.0, "3", None):
        with pytest.raises(TypeError, match="expected"):
            store[index]


class Rows(Dataset):
    def __init__(self, store: TokenStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> Tokens:
        return self.store.rows([index])


def test_pickles_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = make(tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    store = TokenStore("store")
    store.tokens()
    monkeypatch.chdir("/")
    pickled = pickle.dumps(store)
    assert len(pickled) < 500
    assert pickle.loads(pickled).tokens().equal(tokens)
    batches = list(DataLoader(Rows(store), batch_size=4, collate_fn=Tokens.cat, num_workers=1))
    assert Tokens.cat(batches).equal(tokens)


def test_shards_are_mapped_not_read(tmp_path: Path) -> None:
    """A sparse shard of 2 GB opens, and gives a row, within 64 MB of resident memory."""
    path = tmp_path / "store"
    make(path, 1)
    rows = 2_000_000_000 // SPEC.packed_bytes
    size = rows * SPEC.packed_bytes
    header = {
        "packed": {"dtype": "U8", "shape": [rows, SPEC.packed_bytes], "data_offsets": [0, size]}
    }
    blob = json.dumps(header).encode()
    blob += b" " * (-len(blob) % 8)
    with open(path / "shard-00000.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(blob)) + blob)
        file.truncate(8 + len(blob) + size)
    shard = {
        "file": "shard-00000.safetensors",
        "rows": rows,
        "num_bytes": 8 + len(blob) + size,
        "sha256": "",
    }
    edit_header(path, shards=[shard], count=rows)
    before = resident_bytes()
    store = TokenStore(path, verify=False)  # kept alive until memory is read again
    assert not store.rows([rows - 1]).indices.any()
    assert resident_bytes() - before < 64e6


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_refuses_other_specs_and_wrong_arguments(tmp_path: Path) -> None:
    tokens = random_tokens(SPEC, 2)
    bad = Tokens(tokens.indices + 2, SPEC)
    calls: list[tuple[type[Exception], str, Callable[[TokenStoreWriter], None]]] = [
        (
            SpecMismatch,
            "the token store .* reads 2x3",
            lambda w: w.add(random_tokens(ORDERED, 1), ["a"]),
        ),
        (ValueError, "expected 0 to 1", lambda w: w.add(bad, names(2))),
        (ValueError, "ids: expected 2, one per image, found 3", lambda w: w.add(tokens, names(3))),
        (ValueError, "captions: expected 2", lambda w: w.add(tokens, names(2), captions=["a"])),
        (ValueError, r"labels: expected \(2,\)", lambda w: w.add(tokens, names(2), labels=[0])),
        (ValueError, "expected -1 to 1, found 2", lambda w: w.add(tokens, names(2), labels=[0, 2])),
        (ValueError, "found torch.float64", lambda w: w.add(tokens, names(2), labels=[0.0, 1.0])),
        (ValueError, "expected torch.float32", lambda w: w.add(tokens, names(2), psnr=[30, 20])),
        (ValueError, r"probe images: expected \(P, 3, 4, 4\)", lambda w: add_probe(w, side=5)),
        (ValueError, "at most 4 images, found 5", lambda w: add_probe(w, count=MAX_PROBES + 1)),
        (ValueError, "probe psnr: expected numbers", lambda w: add_probe(w, psnr=math.nan)),
        (ValueError, r"probe rows: expected 0 to 1, found \[5\]", lambda w: add_probe(w, row=5)),
    ]
    for kind, message, call in calls:
        with pytest.raises(kind, match=message), writer(tmp_path / "store") as out:
            out.add(tokens, names(2))
            call(out)
        assert not list(tmp_path.iterdir())


def add_probe(
    out: TokenStoreWriter, *, side: int = SIDE, count: int = 1, psnr: float = 9.0, row: int = 0
) -> None:
    images = torch.zeros(count, 3, side, side, dtype=torch.uint8)
    out.add_probe(images, [row] * count, [psnr] * count)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_inside_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), writer(tmp_path / "store") as out:
        out.add(random_tokens(SPEC, 9), names(9))  # two shards are on disk already
        raise error
    assert not list(tmp_path.iterdir())


def test_refuses_empty_stores_and_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one image"), writer(tmp_path / "store"):
        pass
    with pytest.raises(ValueError, match="needs the fingerprint"):
        writer(tmp_path / "store", fingerprint=None)
    with pytest.raises(ValueError, match="rows_per_shard: expected at least 1"):
        writer(tmp_path / "store", rows_per_shard=0)
    assert not list(tmp_path.iterdir())


def test_overwrites_only_when_asked(tmp_path: Path) -> None:
    old = make(tmp_path / "store")
    with pytest.raises(FileExistsError, match="exists already"), writer(tmp_path / "store"):
        pass
    with pytest.raises(RuntimeError), writer(tmp_path / "store", overwrite=True) as out:
        out.add(old[:1], ["a"])
        raise RuntimeError
    assert TokenStore(tmp_path / "store").tokens().equal(old)
    with writer(tmp_path / "store", overwrite=True) as out:
        out.add(old[:1], ["a"])
    assert len(TokenStore(tmp_path / "store")) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_too_much_metadata_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessella.tokens.store_rows.MAX_METADATA_BYTES", 100)
    with pytest.raises(ValueError, match="lower rows_per_shard"), writer(tmp_path / "s") as out:
        out.add(random_tokens(SPEC, 4), ["x" * 40] * 4)
    assert not list(tmp_path.iterdir())


def flip_byte(path: Path) -> None:
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(blob)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "store.json").unlink(), r"store\.json is missing"),
        (lambda p: (p / "store.json").write_text("{"), r"store\.json: not valid JSON"),
        (lambda p: (p / "store.json").write_text("{}"), r"store\.json: damaged"),
        (lambda p: edit_header(p, format=2), "format 2; this version of tessella reads format 1"),
        (lambda p: edit_header(p, spec={"shape": [0]}), r"store\.json: damaged"),
        (lambda p: edit_header(p, surprise=1), r"damaged.*surprise"),
        (lambda p: edit_header(p, count=11), r"11 images but shards of rows \[4, 4, 2\]|11 images"),
        (lambda p: (p / "shard-00001.safetensors").unlink(), "shard-00001.safetensors is missing"),
        (lambda p: cut(p / "shard-00001.safetensors"), "shard-00001.safetensors: truncated"),
        (lambda p: flip_byte(p / "shard-00002.safetensors"), "shard-00002.* damaged.*SHA-256"),
    ],
)
def test_damage_is_found_on_opening(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    make(tmp_path / "store")
    damage(tmp_path / "store")
    with pytest.raises(StoreError, match=message):
        TokenStore(tmp_path / "store")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_verify_can_be_turned_off(tmp_path: Path) -> None:
    make(tmp_path / "store")
    flip_byte(tmp_path / "store" / "shard-00002.safetensors")
    assert len(TokenStore(tmp_path / "store", verify=False)) == 10
    with pytest.raises(StoreError, match="not a token store"):
        TokenStore(tmp_path / "nothing")


def test_check_tokenizer_compares_spec_and_fingerprint(tmp_path: Path) -> None:
    make(tmp_path / "store")
    store = TokenStore(tmp_path / "store")
    check_store(store, Painter())
    with pytest.raises(StoreError, match=r"bundled:painter with fingerprint f00d; .* has beef"):
        check_store(store, Painter("beef"))
    with pytest.raises(StoreError, match="no fingerprint"):
        check_store(store, Painter(None))
    other = SimpleNamespace(spec=ORDERED, fingerprint="f00d")
    with pytest.raises(SpecMismatch, match="the tokenizer reads 4 tokens"):
        check_store(store, other)


@pytest.fixture
def probed(tmp_path: Path) -> TokenStore:
    """Three probes: one 8 grey levels off, one exact, one 16 off."""
    tokens, painter = random_tokens(SPEC, 10), Painter()
    rows, errors = [7, 0, 3], torch.tensor([8.0, 0.0, 16.0])
    exact = to_uint8(painter.decode(tokens[rows]))
    images = (exact + errors[:, None, None, None]).to(torch.uint8)
    psnr = 20 * torch.log10(255 / errors)
    with writer(tmp_path / "store") as out:
        out.add_probe(images, rows, psnr)
        out.add(tokens, names(10))
    return TokenStore(tmp_path / "store")


def test_probe_proves_the_tokenizer(probed: TokenStore) -> None:
    pairs = verify_store_probe(probed, Painter())
    assert [stored for stored, _ in pairs] == pytest.approx([30.069, 100, 24.048], abs=1e-3)
    assert [now for _, now in pairs] == pytest.approx([stored for stored, _ in pairs], abs=1e-4)


def test_probe_refuses_another_tokenizer(probed: TokenStore) -> None:
    with pytest.raises(StoreError, match=r"row 7 decodes at 3\d\.\d\d dB, 30\.07 dB when"):
        verify_store_probe(probed, Painter(shift=2 / 127.5))
    assert len(verify_store_probe(probed, Painter(shift=2 / 127.5), tolerance_db=math.inf)) == 3
    with pytest.raises(StoreError, match="row 7"):
        verify_store_probe(probed, Painter(shift=-0.2))


def test_probe_damage_and_absence(probed: TokenStore, tmp_path: Path) -> None:
    flip_byte(probed.path / "probe.safetensors")
    with pytest.raises(StoreError, match=r"probe\.safetensors: damaged"):
        TokenStore(probed.path)
    make(tmp_path / "bare")
    with pytest.raises(StoreError, match="no probe images"):
        verify_store_probe(TokenStore(tmp_path / "bare"), Painter())
