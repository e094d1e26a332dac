"""Rows per second of a token store, read in the ways a training reads it.

    python benchmarks/token_store.py [--rows 20000] [--batch-size 64] [--workers 2]

A store of random tokens, 16 x 16 positions of 1,024 codes or of 18 bits, is read in random order:
by `store.rows`, by a `DataLoader` over the store, by one over a data set of one row at a time,
which is what a data set without `__getitems__` gives, and by reader processes. Seconds are those
of the CPU, of this process alone; with reader processes, of the clock.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch.utils.data import DataLoader, Dataset

from tessella.tokens.store import TokenStore, TokenStoreWriter
from tessella.tokens.tokens import Tokens, TokenSpec

SPECS = {
    "1,024 codes": TokenSpec((16, 16), (1024,)),
    "18 bits": TokenSpec((16, 16), (2,) * 18),
}


class OneByOne(Dataset[dict[str, Any]]):
    """Rows of a store without `__getitems__`."""

    def __init__(self, store: TokenStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.store[index]


def speed(work: Callable[[], int], clock: Callable[[], float]) -> float:
    """Rows per second of `work`, which returns their number."""
    start = clock()
    count = work()
    return count / (clock() - start)


def read(dataset: Dataset[dict[str, Any]], batch_size: int, **options: Any) -> int:
    """Read a data set once in random order; returns its number of rows."""
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=True, **options)
    return sum(len(batch["label"]) for batch in loader)


def read_rows(store: TokenStore, count: int, batch_size: int) -> int:
    """Read rows in random order without a `DataLoader`."""
    order = torch.randperm(len(store))[:count]
    batches = [order[start : start + batch_size] for start in range(0, count, batch_size)]
    return sum(len(store.rows(numbers)) for numbers in batches)


def measure(store: TokenStore, batch_size: int, workers: int) -> dict[str, float]:
    """Rows per second of each way."""
    read_rows(store, batch_size, batch_size)  # opens the shards
    few = torch.utils.data.Subset(OneByOne(store), range(min(len(store), 1000)))
    cpu, wall = time.process_time, time.perf_counter
    with_workers = f"DataLoader(store, num_workers={workers}), clock"
    return {
        "store.rows": speed(lambda: read_rows(store, len(store), batch_size), cpu),
        "DataLoader(store)": speed(lambda: read(store, batch_size), cpu),
        "one row at a time": speed(lambda: read(few, batch_size), cpu),
        with_workers: speed(lambda: read(store, batch_size, num_workers=workers), wall),
    }


@click.command()
@click.option("--rows", default=20_000, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--workers", default=2, show_default=True)
def main(rows: int, batch_size: int, workers: int) -> None:
    """Print a table of rows per second."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    facts: dict[str, Any] = {"fingerprint": "none", "tokenizer": "random", "source": "random"}
    for name, spec in SPECS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "store"
            shape = (rows, spec.num_tokens, spec.num_codebooks)
            tokens = Tokens(torch.randint(0, spec.codebook_sizes[0], shape), spec)
            writer = TokenStoreWriter(path, spec, resolution=256, rows_per_shard=2048, **facts)
            with writer:
                writer.add(tokens, [f"{i}.png" for i in range(rows)], torch.arange(rows) % 1000)
            found = measure(TokenStore(path), batch_size, workers)
        click.echo(f"{spec} ({name}), {rows:,} rows, batches of {batch_size}")
        for way, count in found.items():
            click.echo(f"  {way:<45} {count:>9,.0f} rows/s")


if __name__ == "__main__":
    main()
