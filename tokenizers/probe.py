"""Probe images in a tokenizer's folder: originals with the PSNR of their reconstructions.

Weights that load without an error can still compute something else than what was measured, in
another version, precision or on another device. `verify_probe` reconstructs the images of
`probe.safetensors` again and compares the PSNR; training on a tokenizer begins with it.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..data.image_source import ImageSource
from ..data.images import to_uint8
from ..data.loader import eval_batches, evenly_spaced
from ..files import add_to_marker, atomic_file
from ..tokens.store import TokenStore
from ..tokens.store_format import StoreError
from ..tokens.token_file import check_names, load_tensors, save_tensors
from .base import Tokenizer

PROBE = "probe.safetensors"
"""Name of the file of probe images in a tokenizer's folder."""
NUM_PROBES = 8
"""Number of images that `choose_probe` takes."""
SYNTHETIC = "synthetic"
"""Source of images that show nothing."""
TOLERANCE_DB = 0.1
"""Largest accepted difference in PSNR of an image, in dB."""


class ProbeError(ValueError):
    """A tokenizer whose reconstructions differ from those measured, or cannot be checked."""


class NoProbe(ProbeError):
    """A folder without probe images."""


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """PSNR of the probe images, as stored and as measured again.

    Attributes:
        source: Description of the source of the images.
        stored: PSNR of each image when it was stored, in dB.
        found: PSNR of each image now, in dB.
    """

    source: str
    stored: list[float]
    found: list[float]

    @property
    def largest_difference(self) -> float:
        """Largest absolute difference of an image, in dB."""
        pairs = zip(self.stored, self.found, strict=True)
        return max(abs(stored - found) for stored, found in pairs)


def psnr_of_pixels(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """PSNR of 8-bit images (B, 3, H, W) in dB, float64 (B,), at most 100."""
    mse = (originals.double() - reconstructions.double()).square().mean((1, 2, 3))
    return (10 * torch.log10(255**2 / mse)).clamp_max(100)


@torch.no_grad()
def measure_probe(tokenizer: Tokenizer, images: Tensor) -> Tensor:
    """PSNR of each 8-bit image (B, 3, R, R) after encoding and decoding, float64 (B,), in dB."""
    rng = torch.Generator().manual_seed(0)
    inputs = images.to(tokenizer.device).float() / 127.5 - 1
    decoded = tokenizer.decode(tokenizer.encode(inputs, rng=rng), rng=rng)
    return psnr_of_pixels(images.cpu(), to_uint8(decoded).cpu())


def store_probe(
    tokenizer: Tokenizer, folder: str | os.PathLike[str], images: Tensor, *, source: str
) -> None:
    """Store images with their PSNR in a tokenizer's folder, replacing an older probe.

    Args:
        tokenizer: Tokenizer as loaded from `folder`.
        folder: Folder of the tokenizer.
        images: Images (B, 3, R, R) uint8, R being the tokenizer's resolution.
        source: Description of the source of the images.

    Raises:
        ValueError: If the images have another shape or type, or there are none.
        SaveError: If writing fails.
    """
    side = tokenizer.resolution
    if images.dtype != torch.uint8 or images.shape[1:] != (3, side, side) or not len(images):
        found = f"{tuple(images.shape)} {images.dtype}"
        raise ValueError(f"probe images: expected (B, 3, {side}, {side}) uint8, found {found}")
    tensors = {"images": images.cpu().contiguous(), "psnr": measure_probe(tokenizer, images)}
    about = {"source": source, "fingerprint": tokenizer.fingerprint or ""}
    with atomic_file(Path(folder) / PROBE) as temporary:
        save_tensors(tensors, temporary, about)
    add_to_marker(folder, PROBE)


def is_probe_file(path: Path) -> bool:
    """Whether a file is one of `store_probe`."""
    try:
        with safe_open(path, "pt") as file:
            return {"images", "psnr"} <= set(file.keys()) and "fingerprint" in (
                file.metadata() or {}
            )
    except (SafetensorError, OSError):
        return False


def read_probe(folder: str | os.PathLike[str], resolution: int) -> tuple[Tensor, str]:
    """Probe images of a folder, (B, 3, R, R) uint8, and the description of their source.

    Args:
        folder: Folder of a tokenizer.
        resolution: Resolution R of the tokenizer, in pixels.

    Raises:
        NoProbe: If the folder has no probe images.
        ProbeError: If they are damaged or of another size.
    """
    images, _, about = _read(Path(folder) / PROBE, resolution)
    return images, about.get("source", "unknown")


def _read(path: Path, side: int) -> tuple[Tensor, Tensor, dict[str, str]]:
    """Images and PSNR of a file of probe images, and its other facts."""
    if not path.is_file():
        raise NoProbe(
            f"{path.parent}: no probe images are stored, so there is nothing to verify with; "
            f"store some: tessella verify {path.parent} --store"
        )
    tensors, about = load_tensors(path, error=ProbeError)
    if not {"images", "psnr"} <= tensors.keys():
        raise ProbeError(f"{path}: expected images and psnr, found {', '.join(tensors) or 'none'}")
    check_names(tensors, ("images", "psnr"), path=path, error=ProbeError)
    images, psnr = tensors["images"], tensors["psnr"]
    if images.dtype != torch.uint8 or images.shape[1:] != (3, side, side) or not len(images):
        raise ProbeError(
            f"{path}: expected uint8 images of {side} pixels, "
            f"found {tuple(images.shape)} {images.dtype}"
        )
    return images, psnr, about


def verify_probe(
    tokenizer: Tokenizer, folder: str | os.PathLike[str], *, tolerance_db: float = TOLERANCE_DB
) -> ProbeResult:
    """Reconstruct the probe images of a folder and compare the PSNR with the stored values.

    Example:
        >>> import tessella
        >>> from tessella.checkpoints import find_folder
        >>> from tessella.tokenizers.probe import verify_probe
        >>> tokenizer = tessella.load_tokenizer("bundled:bits-emoji-64")
        >>> result = verify_probe(tokenizer, find_folder("bundled:bits-emoji-64"))
        >>> len(result.stored), result.largest_difference < 0.1
        (8, True)

    Args:
        tokenizer: Tokenizer as loaded from `folder`, on any device.
        folder: Folder of the tokenizer.
        tolerance_db: Largest accepted difference in PSNR of an image, in dB.

    Raises:
        NoProbe: If the folder has no probe images.
        ProbeError: If they are damaged or belong to another tokenizer, or if a PSNR differs by
            more than the tolerance.
    """
    path = Path(folder) / PROBE
    images, psnr, about = _read(path, tokenizer.resolution)
    if psnr.shape != images.shape[:1]:
        raise ProbeError(
            f"{path}: expected one value of PSNR per image, "
            f"found {len(images)} images, {tuple(psnr.shape)} values"
        )
    if not bool(psnr.isfinite().all()):
        raise ProbeError(f"{path}: the stored values of PSNR are not finite: {psnr.tolist()}")
    if about.get("fingerprint") != tokenizer.fingerprint:
        raise ProbeError(
            f"{path}: measured with the tokenizer {about.get('fingerprint') or 'of no folder'}, "
            f"but this tokenizer is {tokenizer.fingerprint or 'of no folder'}"
        )
    result = ProbeResult(
        about.get("source", "unknown"),
        stored=psnr.double().tolist(),
        found=measure_probe(tokenizer, images).tolist(),
    )
    for number, (stored, found) in enumerate(zip(result.stored, result.found, strict=True)):
        if not abs(stored - found) <= tolerance_db:
            raise ProbeError(
                f"{folder}: probe image {number} comes back at {found:.2f} dB, it was "
                f"{stored:.2f} dB (tolerance {tolerance_db} dB); do not train on this tokenizer: "
                "with these weights, precision and device it does not compute what was measured"
            )
    return result


DEFAULT_DATA = "bundled:emoji"
"""Data source of probe images where none is given."""


def choose_probe(source: ImageSource, resolution: int) -> tuple[Tensor, str]:
    """Evenly spaced images of a source, (B, 3, R, R) uint8, and a description of the source.

    Raises:
        DataError: If no image can be read.
    """
    indices = evenly_spaced(len(source), NUM_PROBES)
    batches = eval_batches(source, resolution, NUM_PROBES, indices=indices)
    return to_uint8(next(batches)["images"]), f"{source.name} ({source.split})"


def synthetic_probe(resolution: int) -> tuple[Tensor, str]:
    """Images that show nothing, for a folder that is to hold no photographs.

    Smooth colours, each with a pattern of another fineness: a check that a tokenizer computes what
    it did, at any resolution, but no measure of its quality.

    Args:
        resolution: Height and width R of the images, in pixels.

    Returns:
        Images (8, 3, R, R) uint8, which are always the same, and a description of them.
    """
    steps = torch.arange(resolution, dtype=torch.float64) / max(resolution - 1, 1)
    x, y = steps[None, :].expand(resolution, -1), steps[:, None].expand(-1, resolution)
    images = []
    for number in range(NUM_PROBES):
        waves = torch.sin(2 * math.pi * (number + 1) * (x + y * (number % 3)))
        channels = [0.5 + 0.3 * torch.cos(3 * x + channel + number) * y for channel in range(3)]
        images.append(torch.stack(channels) + 0.15 * waves)
    pixels = torch.stack(images).clamp(0, 1) * 255
    return pixels.round().to(torch.uint8), SYNTHETIC


def describe_probe(probe: tuple[Tensor, str], otherwise: str) -> str:
    """What to say when probe images are stored: others may see them.

    Args:
        probe: Images and the description of their source.
        otherwise: Setting that stores synthetic images instead.
    """
    images, source = probe
    if source == SYNTHETIC:
        return (
            f"the folder holds {len(images)} synthetic images, by which tessella verify checks it"
        )
    return (
        f"the folder holds {len(images)} images of {source}, by which tessella verify checks it: "
        f"whoever gets the folder sees them; {otherwise} stores synthetic ones"
    )


def check_store(store: TokenStore, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer that did not make the tokens of a store.

    Args:
        store: Token store.
        tokenizer: Tokenizer that is going to read it.

    Raises:
        SpecMismatch: If the tokenizer's spec is not that of the store.
        StoreError: If the tokenizer has another fingerprint, or none.
    """
    store[:0].require(tokenizer.spec, reader="the tokenizer")
    if tokenizer.fingerprint != store.fingerprint:
        found = tokenizer.fingerprint or "no fingerprint (load it from its folder)"
        raise StoreError(
            f"{store.path}: made by the tokenizer {store.header.tokenizer} with fingerprint "
            f"{store.fingerprint}; this tokenizer has {found}"
        )


@torch.no_grad()
def verify_store_probe(
    store: TokenStore, tokenizer: Tokenizer, *, tolerance_db: float = TOLERANCE_DB
) -> list[tuple[float, float]]:
    """Decode the probe rows of a token store and compare the PSNR with the stored values.

    Args:
        store: Token store with probe images.
        tokenizer: Tokenizer that is going to read it.
        tolerance_db: Largest accepted difference in PSNR of an image, in dB.

    Returns:
        Pairs of the stored PSNR and the PSNR now, one per probe image, in dB on 8-bit pixels.

    Raises:
        SpecMismatch: If the tokenizer's spec is not that of the store.
        StoreError: If there is no probe, or a PSNR differs by more than the tolerance.
    """
    if store.header.probe is None:
        raise StoreError(
            f"{store.path}: no probe images are stored, so there is nothing to verify with"
        )
    probe = load_file(store.path / store.header.probe.file)
    images = tokenizer.decode(store.rows(probe["rows"]).to(tokenizer.device))
    now = psnr_of_pixels(probe["images"], to_uint8(images).cpu()).tolist()
    pairs = list(zip(probe["psnr"].clamp(max=100).tolist(), now, strict=True))
    for row, (stored, found) in zip(probe["rows"].tolist(), pairs, strict=True):
        if stored != found and not abs(stored - found) <= tolerance_db:
            raise StoreError(
                f"{store.path}: row {row} decodes at {found:.2f} dB, {stored:.2f} dB when it was "
                f"written (tolerance {tolerance_db} dB); the tokenizer is another one or changed"
            )
    return pairs
