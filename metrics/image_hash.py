"""Identity of images and of sets of images, by their pixels alone."""

import hashlib

import torch
from torch import Tensor

_KEY_BITS, _NUMBER_BITS = 40, 22


class ImageHash:
    """Hash of a set of 8-bit images, whatever their order, names and files."""

    def __init__(self) -> None:
        self._digests: list[bytes] = []

    def update(self, pixels: Tensor) -> list[bytes]:
        """Add images, uint8 (B, 3, H, W); returns the SHA-256 of each."""
        found = []
        for image in pixels.cpu().contiguous():
            shape = str(tuple(image.shape)).encode()
            found.append(hashlib.sha256(shape + image.numpy().tobytes()).digest())
        self._digests += found
        return found

    def add(self, blob: bytes) -> None:
        """Add anything else that the set consists of."""
        self._digests.append(hashlib.sha256(blob).digest())

    def merge(self, other: "ImageHash") -> None:
        """Add what another object saw."""
        self._digests += other._digests

    @property
    def digests(self) -> Tensor:
        """SHA-256 of every image, uint8 (n, 32), for a file."""
        blob = bytearray(b"".join(self._digests))
        return torch.frombuffer(blob, dtype=torch.uint8).reshape(-1, 32) if blob else _NO_DIGESTS

    def load_digests(self, stored: Tensor) -> None:
        """Take over what `digests` gave.

        Raises:
            ValueError: If the shape is another.
        """
        if stored.dtype != torch.uint8 or stored.ndim != 2 or stored.shape[1] != 32:
            raise ValueError(f"digests: expected uint8 (n, 32), found {tuple(stored.shape)}")
        blob = stored.numpy().tobytes()
        self._digests = [blob[i : i + 32] for i in range(0, len(blob), 32)]

    def is_part_of(self, other: "ImageHash") -> bool:
        """Whether the other object has seen every image that this one has."""
        return set(self._digests) <= set(other._digests)

    def hexdigest(self) -> str:
        """SHA-256 over the sorted digests of the images, 64 hexadecimal digits."""
        return hashlib.sha256(b"".join(sorted(self._digests))).hexdigest()


_NO_DIGESTS = torch.empty((0, 32), dtype=torch.uint8)


def content_keys(digests: list[bytes], numbers: Tensor) -> Tensor:
    """Keys that sort images by content, int64 (B,) >= 0: 40 bits of the digest, then the number.

    An order that knows nothing of file names; equal pictures keep their order in the source.

    Args:
        digests: Of the images, as `ImageHash.update` returns them.
        numbers: Of the images in their source, int64 (B,); 22 bits of them count.
    """
    heads = [int.from_bytes(digest[:8], "big") >> (64 - _KEY_BITS) for digest in digests]
    return (torch.tensor(heads, dtype=torch.int64) << _NUMBER_BITS) | (
        numbers.cpu() & (2**_NUMBER_BITS - 1)
    )
