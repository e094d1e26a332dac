"""`tessella models`: the models that ship with the package."""

from typing import Any

import click

from .options import json_option, one_clear_error, show


@click.command()
@json_option
@one_clear_error
def models(as_json: bool) -> None:
    """List the bundled models: what they are, how large, trained on what, under which licence.

    A command takes such a model by its name: tessella sample --generator maskbit-emoji-64.
    """
    from ..model_folders import bundled_models

    show({name: describe(name) for name in bundled_models()}, as_json=as_json)


def describe(name: str) -> dict[str, Any]:
    """Facts about a bundled model from its card, and the size of its files in megabytes."""
    from ..model_folders import NOT_STATED, find_folder, read_card, trained_on

    folder = find_folder(f"bundled:{name}")
    card = read_card(folder)
    facts = {
        "kind": card.get("kind", "tokenizer"),
        "system": card.get("system"),
        "parameters": card["parameters"]["total"],
        "tokens": card["tokens"],
        "bits_per_image": card["bits_per_image"],
        "megabytes": round(sum(p.stat().st_size for p in folder.rglob("*")) / 1e6, 1),
        "trained_on": trained_on(card),
        "licence": card.get("licence", NOT_STATED),
    }
    tokenizer = (card.get("tokenizer") or {}).get("path")
    return facts | ({"tokenizer": tokenizer.removeprefix("bundled:")} if tokenizer else {})
