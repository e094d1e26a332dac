"""`tessella import`: conversion of public checkpoints to model folders."""

from pathlib import Path

import click

from ..progress import quiet_option
from .options import json_option, one_clear_error, show


class Format(click.ParamType[str]):
    """Argument type of a format's name; the list of formats is imported when a name is given."""

    name = "format"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name, or fail with a usage error that lists the formats."""
        from ..importers.import_checkpoint import FORMATS

        if value not in FORMATS:
            self.fail(f"{value!r} is not one of {', '.join(FORMATS)}", param, ctx)
        return value


@click.command("import")
@click.argument("format_name", metavar="FORMAT", type=Format())
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to create.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="YAML file of the model to build [sizes are inferred from the shapes].",
)
@click.option(
    "--resolution",
    type=click.IntRange(min=1),
    help="Resolution of a tokenizer's images [the config's, else 256].",
)
@click.option("--tokenizer", help="Tokenizer of a generator: folder, bundled:NAME, hub:owner/name.")
@click.option("--no-average", is_flag=True, help="Take the weights of the last step, not the EMA.")
@click.option("--section", help="Section of FILE with the weights [told by its name].")
@click.option("--overwrite", is_flag=True, help="Replace a model folder of tessella's at --out.")
@quiet_option
@json_option
@one_clear_error
def import_command(
    format_name: str,
    file: Path,
    out: Path,
    config: Path | None,
    resolution: int | None,
    tokenizer: str | None,
    no_average: bool,
    section: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Convert the public checkpoint FILE to a model folder.

    FILE is safetensors or from torch.save, the index of several, or a folder with one of these.
    docs/importing.md lists every FORMAT and the checkpoints that it reads.
    """
    from ..importers.import_checkpoint import import_checkpoint
    from ..importers.tensors import listed

    result = import_checkpoint(
        format_name,
        file,
        out,
        config=config,
        resolution=resolution,
        tokenizer=tokenizer,
        average=not no_average,
        section=section,
        overwrite=overwrite,
    )
    if not as_json:  # summarize hundreds of keys by their few reasons
        reasons = dict.fromkeys(result["dropped"].values())
        for reason in reasons:
            keys = [key for key, why in result["dropped"].items() if why == reason]
            reasons[reason] = f"{len(keys)}: {listed(keys)}"
        result["dropped"] = reasons
    show(result, as_json=as_json)
