"""Bits to bytes and back, least significant bit first: byte j holds bits 8j .. 8j + 7.

The one layout of the project, on disk and in kernels.
"""

import torch
from torch import Tensor


def pack_bits(bits: Tensor) -> Tensor:
    """Bits in {0, 1}, (..., n) of any integer or bool dtype, as (..., ceil(n / 8)) uint8.

    The unused high bits of the last byte are 0.
    """
    num_bits = bits.shape[-1]
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, -num_bits % 8))
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (padded.unflatten(-1, (-1, 8)) * weights).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, num_bits: int) -> Tensor:
    """Inverse of `pack_bits`: (..., ceil(n / 8)) uint8 as (..., n) uint8 in {0, 1}.

    Raises:
        ValueError: If the byte count does not fit `num_bits`.
    """
    if packed.dtype != torch.uint8 or packed.shape[-1] != (num_bits + 7) // 8:
        raise ValueError(
            f"packed: expected {(num_bits + 7) // 8} uint8 for {num_bits} bits, "
            f"found {packed.shape[-1]} {packed.dtype}"
        )
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> shifts) & 1).flatten(-2)[..., :num_bits]
