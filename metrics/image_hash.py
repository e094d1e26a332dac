"""Hashes that identify images and sets of images by their pixels alone."""

import hashlib

import torch
from torch import Tensor

_KEY_BITS, _NUMBER_BITS = 40, 22


class ImageHash:
    """Hash of a set of 8-bit images that does not depend on their order, names or files."""

    def __init__(self) -> None:
        self._digests: list[bytes] = []

    def update(self, pixels: Tensor) -> list[bytes]:
        """Add images.

        Args:
            pixels: uint8, shape (B, 3, H, W).

        Returns:
            SHA-256 digest of each image.

        Raises:
            ValueError: If the shape or the dtype is another one.
        """
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
            kind = f"{pixels.dtype} {tuple(pixels.shape)}"
            raise ValueError(f"pixels: expected uint8 (B, 3, H, W), found {kind}")
        found = []
        for image in pixels.cpu().contiguous():
            shape = str(tuple(image.shape)).encode()
            found.append(hashlib.sha256(shape + image.numpy().tobytes()).digest())
        self._digests += found
        return found

    def add(self, blob: bytes) -> None:
        """Add other data that belong to the set."""
        self._digests.append(hashlib.sha256(blob).digest())

    def merge(self, other: "ImageHash") -> None:
        """Add the images of another object."""
        self._digests += other._digests

    @property
    def digests(self) -> Tensor:
        """SHA-256 of every image, uint8 (n, 32), for storage in a file."""
        blob = bytearray(b"".join(self._digests))
        return torch.frombuffer(blob, dtype=torch.uint8).reshape(-1, 32) if blob else _NO_DIGESTS

    def load_digests(self, stored: Tensor) -> None:
        """Replace the digests by stored ones.

        Args:
            stored: Digests as from `digests`, uint8 (n, 32).

        Raises:
            ValueError: If shape or dtype are others.
        """
        if stored.dtype != torch.uint8 or stored.ndim != 2 or stored.shape[1] != 32:
            raise ValueError(f"digests: expected uint8 (n, 32), found {tuple(stored.shape)}")
        blob = stored.numpy().tobytes()
        self._digests = [blob[i : i + 32] for i in range(0, len(blob), 32)]

    def is_part_of(self, other: "ImageHash") -> bool:
        """Whether the other object contains every image of this one."""
        return set(self._digests) <= set(other._digests)

    def hexdigest(self) -> str:
        """SHA-256 over the sorted digests of the images, 64 hexadecimal digits."""
        return hashlib.sha256(b"".join(sorted(self._digests))).hexdigest()


_NO_DIGESTS = torch.empty((0, 32), dtype=torch.uint8)


def content_keys(digests: list[bytes], numbers: Tensor) -> Tensor:
    """Keys that sort images by content, int64 (B,) >= 0: 40 bits of the digest, then the number.

    The order does not depend on file names; equal images keep their order in the source.

    Args:
        digests: Digests of the images, as `ImageHash.update` returns them.
        numbers: Numbers of the images in their source, int64 (B,); only 22 bits are used.
    """
    heads = [int.from_bytes(digest[:8], "big") >> (64 - _KEY_BITS) for digest in digests]
    keys: Tensor = torch.tensor(heads, dtype=torch.int64) << _NUMBER_BITS
    keys |= numbers.cpu() & (2**_NUMBER_BITS - 1)
    return keys
