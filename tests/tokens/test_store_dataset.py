"""A store as a data set: samples, batches, reader processes, subsets."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset

from tessella.tokens import store as store_module
from tessella.tokens.store import TokenStore, TokenStoreWriter
from tessella.tokens.tokens import Tokens, TokenSpec

GRID, ORDERED = TokenSpec((2, 3), (2,) * 5), TokenSpec((4,), (1000,), ordered=True)
CAPTIONS = ["eins", None, "", "vier", None, None, None, "acht", None]


def make(path: Path, spec: TokenSpec, captions: list[str | None] | None = None) -> Tokens:
    """Nine rows of labels -1 to 7, in shards of four."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, spec.codebook_sizes, (9, spec.num_tokens, spec.num_codebooks))
    tokens = Tokens(torch.from_numpy(codes), spec)
    if spec.ordered:
        tokens = Tokens.cat([t.truncate(1 + i % 4) for i, t in enumerate(tokens.split())])
    facts: dict[str, Any] = {"fingerprint": "f", "tokenizer": "t", "source": "s"}
    with TokenStoreWriter(path, spec, resolution=4, rows_per_shard=4, **facts) as out:
        out.add(tokens, [f"{i}" for i in range(9)], torch.arange(9) - 1, captions)
    return tokens


def tokens_of(batches: list[dict[str, Any]], spec: TokenSpec) -> Tokens:
    return Tokens.cat([Tokens(b["indices"], spec, b.get("length")) for b in batches])


@pytest.mark.parametrize("spec", [GRID, ORDERED], ids=str)
@pytest.mark.parametrize("workers", [0, 2])
def test_an_ordinary_loader_reads_it(tmp_path: Path, spec: TokenSpec, workers: int) -> None:
    tokens = make(tmp_path / "store", spec, CAPTIONS)
    store = TokenStore(tmp_path / "store")
    batches = list(DataLoader(store, batch_size=4, num_workers=workers))
    assert [len(batch["label"]) for batch in batches] == [4, 4, 1]
    names = {"indices", "label", "caption", *(("length",) if spec.ordered else ())}
    assert all(batch.keys() == names for batch in batches)
    assert tokens_of(batches, spec).equal(tokens)
    assert torch.cat([b["label"] for b in batches]).tolist() == list(range(-1, 8))
    assert batches[0]["label"].dtype == batches[0]["indices"].dtype == torch.int64
    assert [c for b in batches for c in b["caption"]] == [c or "" for c in CAPTIONS]
    rng = torch.Generator().manual_seed(0)
    shuffled = DataLoader(store, batch_size=2, shuffle=True, num_workers=workers, generator=rng)
    found = list(shuffled)
    order = [int(label) + 1 for b in found for label in b["label"]]
    assert sorted(order) == list(range(9)) and order != list(range(9))
    assert tokens_of(found, spec).equal(tokens[order])


def test_samples_by_number(tmp_path: Path) -> None:
    tokens = make(tmp_path / "store", ORDERED)
    store = TokenStore(tmp_path / "store")
    sample = store[5]
    assert sample.keys() == {"indices", "label", "length"}, "no caption in the whole store"
    assert torch.equal(sample["indices"], tokens.indices[5]) and sample["label"] == 4
    assert sample["length"] == 2 and type(sample["label"]) is int
    for number in (-4, np.int64(5), torch.tensor(5)):
        assert torch.equal(store[number]["indices"], sample["indices"])
    assert [s["label"] for s in store] == list(range(-1, 8)), "iteration ends"
    for rows in ([5], (5,), range(5, 6), np.array([5]), torch.tensor([5])):
        assert store[rows].equal(tokens[5:6])
    assert store[-2:].equal(tokens[7:])


def test_subsets_joined_stores_and_pickles(tmp_path: Path) -> None:
    tokens = make(tmp_path / "store", GRID)
    store = pickle.loads(pickle.dumps(TokenStore(tmp_path / "store")))
    batches = list(DataLoader(Subset(store, [8, 0, 4]), batch_size=2))
    assert tokens_of(batches, GRID).equal(tokens[[8, 0, 4]])
    both = ConcatDataset([store, TokenStore(tmp_path / "store")])
    batches = list(DataLoader(both, batch_size=6))
    assert tokens_of(batches, GRID).equal(Tokens.cat([tokens, tokens]))


def test_a_batch_is_unpacked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes the plain way the fast one: one call for a batch, not one for a row."""
    make(tmp_path / "store", GRID)
    store, calls = TokenStore(tmp_path / "store"), []
    unpack = Tokens.unpack

    def counted(packed: torch.Tensor, *args: Any) -> Tokens:
        calls.append(len(packed))
        return unpack(packed, *args)

    monkeypatch.setattr(store_module.Tokens, "unpack", counted)
    for _ in DataLoader(store, batch_size=4, shuffle=True):
        pass
    assert calls == [4, 4, 1]
    calls.clear()
    for _ in DataLoader(Subset(store, range(8)), batch_size=8):
        pass
    assert calls == [8]
