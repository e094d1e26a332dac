"""`tessella verify`: check that a tokenizer folder still gives the reconstructions measured."""

import click

from .options import chosen_device, device_option, json_option, one_clear_error, show

TOLERANCE_DB, DEFAULT_DATA = 0.1, "bundled:emoji"


@click.command()
@click.argument("path")
@device_option
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=TOLERANCE_DB,
    show_default=True,
    help="Largest accepted difference in PSNR of an image, in dB.",
)
@click.option("--store", is_flag=True, help="First store probe images with their PSNR now.")
@click.option("--overwrite", is_flag=True, help="Let --store replace probe images in the folder.")
@click.option("--data", default=DEFAULT_DATA, show_default=True, help="Data source for --store.")
@click.option("--split", default="val", show_default=True, help="Split of --data.")
@json_option
@one_clear_error
def verify(
    path: str,
    device: str | None,
    tolerance: float,
    store: bool,
    overwrite: bool,
    data: str,
    split: str,
    as_json: bool,
) -> None:
    """Reconstruct the probe images in the tokenizer folder PATH and compare their PSNR."""
    from ..evaluation.probe_check import store_images, verify_folder

    chosen = chosen_device(device)
    if store:
        store_images(path, data=data, split=split, device=chosen, overwrite=overwrite)
    show(verify_folder(path, device=chosen, tolerance_db=tolerance), as_json=as_json)
