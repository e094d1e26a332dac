"""The programs of docs/token_stores.md and docs/language_models.md run."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tessella
from tessella.tokens.store import TokenStoreWriter
from tessella.tokens.tokens import Tokens, TokenSpec

DOCS = Path(tessella.__file__).parent / "docs"


def programs(name: str) -> list[str]:
    text = (DOCS / name).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize(
    "spec",
    [
        TokenSpec((2, 3), (2,) * 5),
        TokenSpec((5,), (1000,)),
        TokenSpec((2, 2), (8, 5, 5, 5)),
        TokenSpec((3,), (2**14, 2)),
        TokenSpec((2, 2), (3,) * 50),
        TokenSpec((3,), (2,) * 70),
    ],
    ids=str,
)
def test_a_store_is_read_with_numpy_alone(tmp_path: Path, spec: TokenSpec) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, spec.codebook_sizes, (9, spec.num_tokens, spec.num_codebooks))
    labels = torch.arange(9) - 1
    facts: dict[str, Any] = {"fingerprint": "f", "tokenizer": "t", "source": "s"}
    with TokenStoreWriter(tmp_path / "s", spec, resolution=4, rows_per_shard=4, **facts) as out:
        out.add(Tokens(torch.from_numpy(codes), spec), ["x"] * 9, labels)
    names: dict[str, Any] = {}
    (reader,) = (p for p in programs("token_stores.md") if "def read_store" in p)
    assert "tessella" not in reader and "torch" not in reader
    exec(compile(reader, "token_stores.md", "exec"), names)
    found, found_labels = names["read_store"](tmp_path / "s")
    assert np.array_equal(found, codes) and np.array_equal(found_labels, labels)
    blob = bytearray((tmp_path / "s" / "shard-00001.safetensors").read_bytes())
    blob[-1] ^= 1
    (tmp_path / "s" / "shard-00001.safetensors").write_bytes(blob)
    with pytest.raises(AssertionError, match="damaged"):
        names["read_store"](tmp_path / "s")


def test_the_program_of_a_language_model_runs() -> None:
    """Its second half only where transformers is installed."""
    first, second = programs("language_models.md")
    names: dict[str, Any] = {}
    exec(compile(first, "language_models.md", "exec"), names)
    form, tokens = names["format"], names["tokens"]
    assert form.decode(names["rows"][:, 5:]).equal(tokens)
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed; the first half has run")
    exec(compile(second, "language_models.md", "exec"), names)
    assert names["pictures"].shape == (1, 3, 64, 64)
