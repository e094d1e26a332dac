"""`tessella info`: facts about a model folder, a token store, a token file or a run."""

from pathlib import Path
from typing import Any

import click

from .options import json_option, one_clear_error, show


@click.command()
@click.argument("path")
@json_option
@one_clear_error
def info(path: str, as_json: bool) -> None:
    """Describe PATH: a model folder, a token store, a token file or a run."""
    show(describe(path), as_json=as_json)


def describe(path: str) -> dict[str, Any]:
    """Facts about the folder or file at `path`, which is read whole to check that it is intact.

    Args:
        path: Folder or file, `bundled:NAME` or `hub:owner/name`.

    Returns:
        Facts by name; `kind` is `tokenizer`, `generator`, `token store`, `unfinished token store`,
        `tokens` or `run`, and the other names depend on it.

    Raises:
        ValueError: If it is none of these, or damaged.
    """
    from ..checkpoints import (
        CARD,
        CONFIG,
        WEIGHTS,
        CheckpointError,
        describe_model,
        find_folder,
        read_card,
    )
    from ..manifest import check_files, told
    from ..tokens.store import StoreError, TokenStore, load_tokens
    from ..tokens.store_format import HEADER
    from ..tokens.store_work import read_state
    from ..tokens.token_file import has_digest
    from ..tokens.tokens import TokenSpec

    place = Path(path or "no path given")
    if (place / "store.json").is_file():
        store = TokenStore(place)
        part = store.header.part
        return {
            "kind": "token store",
            "images": len(store),
            "tokens": str(store.spec),
            "bits_per_image": store.bits_per_image,
            "bytes_per_image": store.spec.packed_bytes,
            "classes": list(store.classes),
            "data": store.header.source,
            "tokenizer": store.header.tokenizer,
            "fingerprint": store.fingerprint,
            "shards": len(store.header.shards),
            **({"part": f"{part.index} of 0 to {part.count - 1}"} if part else {}),
            "checksums": told(check_files(place, [HEADER], error=StoreError)),
        }
    if state := read_state(place):
        spec = TokenSpec(**state.settings["tokens"])
        return {"kind": "unfinished token store", "images": state.rows, "tokens": str(spec)}
    if place.is_file():
        tokens = load_tokens(place)
        return {
            "kind": "tokens",
            "images": len(tokens),
            "tokens": str(tokens.spec),
            "bits_per_image": tokens.bits_per_image,
            "checksums": told(has_digest(place)),
        }
    if (place / "checkpoints").is_dir():
        steps = sorted(p.name for p in (place / "checkpoints").glob("step_*"))
        models = {p.parent.name: read_card(p.parent) for p in place.glob(f"*/{WEIGHTS}")}
        return {"kind": "run", "checkpoints": steps, "models": models}
    folder = find_folder(path)
    if not (folder / CONFIG).is_file():
        found = sorted(p.name for p in folder.iterdir())[:8]
        raise CheckpointError(
            f"{folder}: neither a model, a token store nor a run; it holds {found or 'nothing'}"
        )
    card = describe_model(folder)
    return card | {"checksums": told(check_files(folder, [CARD], error=CheckpointError))}
