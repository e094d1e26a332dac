"""The images that others are compared with: seen once, shared by processes, kept for next time.

A reference is cached under `$TESSELLA_CACHE/references` (by default below `~/.cache/tessella`),
named by a hash of the data's fingerprint, the rule of resizing and the networks; deleting the
folder is always safe.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from ..data.image_source import ImageSource
from ..data.images import to_uint8
from ..data.loader import eval_batches
from ..data.npz_source import NpzSource
from ..files import atomic_file
from .image_set import ImageSet, Networks, read_images
from .metrics.protocol import ImageHash, Preset, ProtocolError
from .metrics.weights import cache_root

_CACHE_FORMAT = 1
_PROBED = 16


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
        source: Where they are.
        networks: What looks at them.
        preset: How they are resized.
        resolution: Side of the images in pixels.
        batch_size: Images at once.
        processes: Those that share the work; each gets the whole set.
        progress: Show a progress bar on stderr.
        cache: Look into the cache, and write to it.

    Raises:
        DataError: If no image can be read, or one has a size that the preset refuses.
        ProtocolError: If the source is empty.
        ValueError: If a feature is not finite.
    """
    if not len(source):
        raise ProtocolError(f"{source.name} ({source.split}): the reference is empty")
    rank, world = (processes.process_index, processes.num_processes) if processes else (0, 1)
    file = cache_file(source, networks, preset, resolution)
    found = _cached(file, source, networks, preset, resolution) if cache and rank == 0 else None
    known = [found is not None]
    if processes is not None:
        broadcast_object_list(known)
    if not known[0]:
        own = range(rank * len(source) // world, (rank + 1) * len(source) // world)
        with tqdm(
            total=len(own),
            desc=f"{source.split} images",
            unit="image",
            disable=not progress or rank,
        ) as bar:
            found = read_images(
                source,
                networks,
                preset,
                resolution,
                indices=own,
                batch_size=batch_size,
                bar=bar,
            )
    whole = share(found, processes)
    if cache and rank == 0 and not known[0] and not whole.broken:
        with contextlib.suppress(OSError), atomic_file(file) as temporary:
            save_file(whole.tensors(), temporary)
    if isinstance(source, NpzSource) and networks.has_spatial:
        _use_moments(whole, source)
    return whole


def _use_moments(found: ImageSet, source: NpzSource) -> None:
    """Put statistics that the file brings along in the place of those of its images.

    The images of ADM's reference batches are a sample; their statistics are of the whole set.
    """
    moments = source.moments()
    sides = ((found.pooled, "mu", "sigma"), (found.spatial, "mu_s", "sigma_s"))
    for side, mean_name, covariance_name in sides if moments else ():
        assert side is not None
        mean, covariance = (torch.from_numpy(moments[n]) for n in (mean_name, covariance_name))
        if mean.shape != side.mean.shape or covariance.shape != side.scatter.shape:
            raise ProtocolError(
                f"{source.path}: {mean_name} and {covariance_name} are {tuple(mean.shape)} and "
                f"{tuple(covariance.shape)}, expected {tuple(side.mean.shape)} and its square"
            )
        if not bool(mean.isfinite().all() & covariance.isfinite().all()):
            raise ProtocolError(f"{source.path}: {mean_name} or {covariance_name} is not finite")
        # Of how many images they are is not stored; enough for any rank.
        side.count = max(side.count, side.num_features + 1)
        side.mean, side.scatter = mean, covariance * (side.count - 1)
        found.hash.add(mean.numpy().tobytes() + covariance.numpy().tobytes())


Mergeable = TypeVar("Mergeable", bound="_Merges")


class _Merges(Protocol):
    def merge(self, other: Any, /) -> None:
        """Add what another object saw."""


def share(found: Mergeable | None, processes: PartialState | None) -> Mergeable:
    """One object of what all processes saw, on every process, merged in the order of ranks."""
    parts = [found] if processes is None else gather_object([found])
    seen = [part for part in parts if part is not None]
    whole = seen[0]
    for part in seen[1:]:
        whole.merge(part)
    return whole


def cache_file(source: ImageSource, networks: Networks, preset: Preset, resolution: int) -> Path:
    """Where the set of a source's images is kept between evaluations."""
    about = [
        source.name,
        source.split,
        source.fingerprint(),
        resolution,
        preset.resize,
        preset.bank_images,
        networks.extractor.id,
        networks.classifier_id,
        _CACHE_FORMAT,
    ]
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    return cache_root() / "references" / f"{digest[:32]}.safetensors"


def _cached(
    file: Path, source: ImageSource, networks: Networks, preset: Preset, resolution: int
) -> ImageSet | None:
    """The set in a file of the cache; None if there is none that can be read."""
    found = ImageSet(networks, expected=len(source), bank_images=preset.bank_images)
    try:
        with safe_open(os.fspath(file), "pt") as stored:
            found.load_tensors({name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    # Names and sizes agree; a few images say whether the pixels do.
    probed = sorted({i * len(source) // _PROBED for i in range(_PROBED)})
    now = ImageHash()
    for batch in eval_batches(source, resolution, _PROBED, resize=preset.resize, indices=probed):
        now.update(to_uint8(batch["images"]))
    return found if now.is_part_of(found.hash) else None
