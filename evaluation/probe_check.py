"""Proof that a tokenizer folder still computes what was measured, and the images for it."""

import os
from typing import Any

import torch

from ..checkpoints import find_folder, load_generator, load_tokenizer, read_card
from ..data.sources import open_source
from ..files import check_file
from ..model_folders import is_local
from ..tokenizers.probe import (
    DEFAULT_DATA,
    PROBE,
    TOLERANCE_DB,
    ProbeError,
    choose_probe,
    describe_probe,
    is_probe_file,
    store_probe,
    synthetic_probe,
    verify_probe,
)


def verify_folder(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    tolerance_db: float = TOLERANCE_DB,
) -> dict[str, Any]:
    """Check a model folder: its fingerprint, and what it or its tokenizer reconstructs.

    The fingerprint of config and weights is computed anew and compared with the card. The probe
    images of a tokenizer, or of a generator's tokenizer, are reconstructed and compared with the
    stored PSNR.

    Args:
        path: Model folder, bundled model or `hub:owner/name`.
        device: Device to load the tokenizer on.
        tolerance_db: Largest accepted difference of an image, in dB.

    Returns:
        What was compared: source of the images, PSNR stored and found, the largest difference.

    Raises:
        ProbeError: If a difference is larger, or there is nothing to compare with.
        CheckpointError: If the folder is damaged or no model.
    """
    folder = find_folder(path)
    facts: dict[str, Any] = {}
    if read_card(folder).get("kind") == "generator":
        generator = load_generator(folder, device=device)
        tokenizer = generator.tokenizer
        facts = {"generator": os.fspath(path), "generator_fingerprint": generator.fingerprint}
        folder, path = find_folder(tokenizer.origin or path), tokenizer.origin or path
    else:
        tokenizer = load_tokenizer(folder, device=device)
    result = verify_probe(tokenizer, folder, tolerance_db=tolerance_db)
    return {
        **facts,
        "tokenizer": os.fspath(path),
        "fingerprint": tokenizer.fingerprint,
        "images": len(result.stored),
        "source": result.source,
        "psnr_stored": [round(value, 4) for value in result.stored],
        "psnr_now": [round(value, 4) for value in result.found],
        "largest_difference_db": result.largest_difference,
        "tolerance_db": tolerance_db,
        "verified": True,
    }


def store_images(
    path: str | os.PathLike[str],
    *,
    data: str = DEFAULT_DATA,
    split: str = "val",
    device: str | torch.device = "cpu",
    overwrite: bool = False,
    photographs: bool = True,
) -> str:
    """Measure a few images now and put them into a tokenizer folder.

    Args:
        path: Tokenizer folder on this machine.
        data: Data source of the images.
        split: Split of the data source.
        device: Device to load the tokenizer on.
        overwrite: Replace images that are stored already.
        photographs: Whether to take images of the source; False: synthetic ones, which show
            nothing to those who get the folder.

    Returns:
        What is stored, in words.

    Raises:
        ProbeError: If the path is no local folder, or there are images already.
        CheckpointError: If the folder is damaged or no tokenizer.
        DataError: If the source cannot be read.
    """
    if not is_local(path):
        raise ProbeError(f"{path}: images are stored in folders of your own only")
    folder = find_folder(path)
    try:
        kind = "file of probe images"
        check_file(folder / PROBE, kind, overwrite=overwrite, ours=is_probe_file)
    except FileExistsError as error:
        raise ProbeError(str(error)) from None
    tokenizer = load_tokenizer(folder, device=device)
    side = tokenizer.resolution
    probe = choose_probe(open_source(data, split), side) if photographs else synthetic_probe(side)
    store_probe(tokenizer, folder, probe[0], source=probe[1])
    return describe_probe(probe, "--no-probe-images")
