"""`tessella store`: joining of token stores, and exchange with other programs."""

from pathlib import Path
from typing import Any

import click

from ..progress import quiet_option
from .options import json_option, one_clear_error, show

out_option = click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder to create."
)
stored = click.Path(path_type=Path)


@click.group()
def store() -> None:
    """Join token stores, and exchange them with other programs."""


FORMATS = ("npy", "jsonl", "webdataset", "parquet")
"""Choices of --to; a test compares them with those of the library, which imports torch."""


@store.command()
@click.argument("stores", nargs=-1, required=True, type=stored)
@out_option
@click.option("--overwrite", is_flag=True, help="Replace a token store of tessella's at --out.")
@quiet_option
@json_option
@one_clear_error
def merge(stores: tuple[Path, ...], out: Path, overwrite: bool, as_json: bool) -> None:
    """Join STORES of one tokenizer: the parts of `encode --shard`, in any order, or others."""
    from ..tokens.store import TokenStore
    from ..tokens.store_merge import merge_stores

    opened = [TokenStore(path) for path in stores]
    show(merge_stores(opened, out, overwrite=overwrite), as_json=as_json)


@store.command()
@click.argument("path", metavar="STORE", type=stored)
@out_option
@click.option("--to", required=True, type=click.Choice(FORMATS), help="Format of the rows.")
@click.option(
    "--ids",
    type=click.Choice(("joint", "groups")),
    default="joint",
    show_default=True,
    help="One id for a position, or one for each of its entries.",
)
@click.option(
    "--order",
    type=click.Choice(("rows", "hilbert")),
    default="rows",
    show_default=True,
    help="Order of the positions of a grid.",
)
@click.option(
    "--offset",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="First id of the tokens, e.g. the size of a vocabulary of text.",
)
@click.option("--bos", type=click.IntRange(min=0), help="Id before every image [none].")
@click.option("--eos", type=click.IntRange(min=0), help="Id after every image [none].")
@click.option("--overwrite", is_flag=True, help="Replace an export of tessella's at --out.")
@quiet_option
@json_option
@one_clear_error
def export(path: Path, out: Path, to: str, overwrite: bool, as_json: bool, **sequence: Any) -> None:
    """Write a token STORE as sequences of ids for language models."""
    from ..tokens.sequences import SequenceFormat
    from ..tokens.store import TokenStore
    from ..tokens.store_export import export_store

    opened = TokenStore(path)
    form = SequenceFormat(spec=opened.spec, **sequence)
    show(export_store(opened, out, to=to, sequence=form, overwrite=overwrite), as_json=as_json)


@store.command("import")
@click.argument("folder", type=stored)
@out_option
@click.option(
    "--changed",
    is_flag=True,
    help="Take rows that are not those exported, e.g. of a language model.",
)
@click.option("--overwrite", is_flag=True, help="Replace a token store of tessella's at --out.")
@quiet_option
@json_option
@one_clear_error
def import_rows(folder: Path, out: Path, changed: bool, overwrite: bool, as_json: bool) -> None:
    """Write a token store of FOLDER, an export: the store that was exported, byte for byte."""
    from ..tokens.store_export import import_store

    result = import_store(folder, out, verify=not changed, overwrite=overwrite)
    show(result, as_json=as_json)
