"""What a compiled kernel must look like, and tensors without memory to compile it for."""

from typing import NamedTuple

import torch


class Figure(NamedTuple):
    """Resources of a kernel compiled by Triton 3.9 for sm_90.

    Args:
        registers: Per thread.
        shared: Bytes of shared memory.
        products: Classes of tensor-core instruction, separated by spaces; empty: none.
        narrow_stores: Some stores are of less than 16 bytes, as they must be.
    """

    registers: int
    shared: int
    products: str
    narrow_stores: bool = False


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor without memory, aligned as torch's own are."""
    return torch.empty(shape, dtype=dtype, device="meta")
