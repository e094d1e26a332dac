"""`tessella store`: joining of token stores, and exchange with other programs."""

from pathlib import Path

import click

from .options import json_option, one_clear_error, show

out_option = click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder to create."
)
stored = click.Path(path_type=Path)


@click.group()
def store() -> None:
    """Join token stores, and exchange them with other programs."""


@store.command()
@click.argument("stores", nargs=-1, required=True, type=stored)
@out_option
@click.option("--overwrite", is_flag=True, help="Replace a token store of tessella's at --out.")
@json_option
@one_clear_error
def merge(stores: tuple[Path, ...], out: Path, overwrite: bool, as_json: bool) -> None:
    """Join STORES of one tokenizer: the parts of `encode --shard`, in any order, or others."""
    from ..tokens.store import TokenStore
    from ..tokens.store_merge import merge_stores

    opened = [TokenStore(path) for path in stores]
    show(merge_stores(opened, out, overwrite=overwrite), as_json=as_json)
