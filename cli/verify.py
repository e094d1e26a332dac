"""`tessella verify`: check that a model is intact and still reconstructs as it was measured."""

import click

from ..progress import quiet_option
from .options import chosen_device, device_option, inform, json_option, one_clear_error, show

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
@click.option(
    "--no-probe-images",
    is_flag=True,
    help="Let --store store synthetic images, not photographs that others could see.",
)
@quiet_option
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
    no_probe_images: bool,
    as_json: bool,
) -> None:
    """Check the model folder PATH: fingerprint, and PSNR of the tokenizer's probe images."""
    from ..evaluation.probe_check import store_images, verify_folder

    chosen = chosen_device(device)
    if store:
        stored = store_images(
            path,
            data=data,
            split=split,
            device=chosen,
            overwrite=overwrite,
            photographs=not no_probe_images,
        )
        inform(stored)
    elif no_probe_images:
        raise ValueError("--no-probe-images: says what --store stores; give --store with it")
    show(verify_folder(path, device=chosen, tolerance_db=tolerance), as_json=as_json)
