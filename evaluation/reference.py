"""Statistics of reference images: computed once, by all processes together, and cached.

A reference is cached under `$TESSELLA_CACHE/references` (by default below `~/.cache/tessella`),
named by a hash of the data's fingerprint, the rule of resizing and the networks; deleting the
folder is always safe.
"""

import contextlib
import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .._version import __version__
from ..collectives import broadcast_from_main, gather_merged, own_share
from ..data.image_source import DataError, ImageSource
from ..data.images import to_uint8
from ..data.loader import eval_batches, evenly_spaced
from ..data.npz_source import NpzSource
from ..files import atomic_file
from ..metrics.image_hash import ImageHash, content_keys
from ..metrics.networks.inception_fid import NUM_SPATIAL
from ..metrics.networks.weights import cache_root
from ..metrics.presets import Preset
from ..metrics.protocol import ProtocolError
from ..progress import progress_bar
from .image_set import ImageSet, Networks, read_images

MOST_VERIFIED = 100_000
"""Images of a cached reference that are decoded and compared with it, evenly spaced."""


def read_reference(
    source: ImageSource,
    networks: Networks,
    preset: Preset,
    resolution: int,
    *,
    batch_size: int = 32,
    processes: PartialState | None = None,
    progress: bool = True,
    cache: bool = True,
) -> ImageSet:
    """The set of all images of a source, from the cache or from the images.

    Args:
        source: Source of the images.
        networks: Networks that look at the images.
        preset: Rules of the protocol, with the rule of resizing.
        resolution: Side of the images in pixels.
        batch_size: Number of images at once.
        processes: Processes that share the work; None: this one alone. The main one gets the whole
            set, the others the number of images of each class.
        progress: Show a progress bar on stderr.
        cache: Read the set from the cache if it is there, and write it to the cache if not.

    Raises:
        DataError: If no image can be read, or one has a size that the preset refuses.
        ProtocolError: If the source is empty, or brings statistics that do not fit.
        ValueError: If a feature is not finite.
    """
    if not len(source):
        raise ProtocolError(f"{source.name} ({source.split}): the reference is empty")
    moments = _moments_of(source, networks)
    file = cache_file(source, networks, preset, resolution)
    main = processes is None or processes.is_main_process
    found = _cached(file, source, networks, preset, resolution) if cache and main else None
    known = broadcast_from_main(found is not None, processes)
    if not known:
        own = own_share(len(source), processes)
        silent = not progress or not main
        title = f"{source.split} images"
        with progress_bar(len(own), "image", title=title, silent=silent) as bar:
            found = gather_merged(
                lambda: read_images(
                    source,
                    networks,
                    preset,
                    resolution,
                    indices=own,
                    batch_size=batch_size,
                    bar=bar,
                ),
                processes,
            )
    counts, broken = broadcast_from_main(
        (found.label_counts, found.broken) if found is not None else ({}, {}), processes
    )
    if found is None:
        found = ImageSet(networks, most=preset.reference_bank)
        found.label_counts, found.broken = counts, broken
    if not len(found):
        name, reason = next(iter(found.broken.items()))
        raise DataError(f"{source.name} ({source.split}): no image can be read; {name}: {reason}")
    if not main:
        return found
    if cache and not known and not found.broken:
        with contextlib.suppress(OSError), atomic_file(file) as temporary:
            save_file(found.tensors(), temporary)
    if moments:
        _use_moments(found, moments)
    return found


def _moments_of(source: ImageSource, networks: Networks) -> dict[str, np.ndarray]:
    """Checked statistics that the file of a source contains; empty without usable ones."""
    if not isinstance(source, NpzSource) or not networks.has_spatial:
        return {}
    moments = source.moments()
    for name, size in (("mu", networks.extractor.num_features), ("mu_s", NUM_SPATIAL)):
        if name in moments and len(moments[name]) != size:
            raise ProtocolError(
                f"{source.path}: {name} has {len(moments[name])} values, expected {size}"
            )
    return moments if "mu" in moments else {}


def _use_moments(found: ImageSet, moments: dict[str, np.ndarray]) -> None:
    """Replace the statistics of the images by those that the file contains.

    The images of ADM's reference batches are a sample; the statistics in the file are those of the
    whole set.
    """
    sides = ((found.pooled, "mu", "sigma"), (found.spatial, "mu_s", "sigma_s"))
    for side, mean_name, covariance_name in sides:
        if side is None or mean_name not in moments:
            continue
        mean, covariance = (torch.from_numpy(moments[n]) for n in (mean_name, covariance_name))
        # The file does not say how many images there were; this is enough for any rank.
        side.count = max(side.count, side.num_features + 1)
        side.mean, side.scatter = mean, covariance * (side.count - 1)
        found.hash.add(mean.numpy().tobytes() + covariance.numpy().tobytes())
    if "mu_s" not in moments:
        found.spatial = None  # never statistics of the sample beside those of the whole set


def cache_file(source: ImageSource, networks: Networks, preset: Preset, resolution: int) -> Path:
    """File of the cache for the statistics of a source's images."""
    about = [
        source.name,
        source.split,
        source.fingerprint(),
        resolution,
        preset.resize,
        preset.reference_bank,
        networks.extractor.id,
        networks.classifier_id,
        __version__,
    ]
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    return cache_root() / "references" / f"{digest[:32]}.safetensors"


def _cached(
    file: Path, source: ImageSource, networks: Networks, preset: Preset, resolution: int
) -> ImageSet | None:
    """Statistics in a file of the cache; None if it cannot be read or the images have changed."""
    found = ImageSet(networks, most=preset.reference_bank)
    try:
        with safe_open(os.fspath(file), "pt") as stored:
            found.load_tensors({name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None
    # Names and sizes agree: now pixels are compared, and labels are read again.
    chosen = evenly_spaced(len(source), MOST_VERIFIED)
    now, counts = ImageHash(), Counter[int]()
    labels: dict[int, int] = {}
    with contextlib.suppress(DataError):  # the error is raised when all images are read
        for batch in eval_batches(source, resolution, 256, resize=preset.resize, indices=chosen):
            digests = now.update(to_uint8(batch["images"]))
            keys = content_keys(digests, batch["numbers"])
            labels |= dict(zip(keys.tolist(), batch["labels"].tolist(), strict=True))
            counts.update(batch["labels"].tolist())
    if len(chosen) < len(source):
        return found if now.is_part_of(found.hash) else None
    if now.hexdigest() != found.hash.hexdigest() or not found.relabel(labels, counts):
        return None
    return found
