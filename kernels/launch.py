"""Kernel launches as data, so that a machine without a GPU can compile what a GPU would run."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NUM_PROGRAMS = 2 * 132
"""Programs that a launch should have where there is work for them: two per SM of an H200."""


@dataclass(frozen=True)
class Launch:
    """One kernel with its grid, arguments and compile options.

    Args:
        kernel: A `triton.jit` function.
        grid: Number of programs along each axis.
        arguments: Arguments by name, all of them: tensors, numbers, tuples, constants.
        options: Compile options, `num_warps` and `num_stages`.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]

    def run(self, device: torch.device) -> None:
        """Run the kernel on the current stream of a device."""
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            self.kernel[self.grid](**self.arguments, **self.options, enable_fp_fusion=True)

    def compile(self) -> Any:
        """Compile the kernel for the target of the active driver; tensors may be on `meta`."""
        return self.kernel.warmup(
            **self.arguments, **self.options, enable_fp_fusion=True, grid=self.grid
        )

    def output(self, name: str = "out") -> Tensor:
        """Tensor among the arguments that the kernel writes, by its name."""
        tensor = self.arguments[name]
        assert isinstance(tensor, Tensor)
        return tensor


def ceil_div(a: int, b: int) -> int:
    """Quotient a / b rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """Smallest power of two that is at least n, for n >= 1."""
    return 1 << (n - 1).bit_length()


def num_rows_per_block(num_rows: int, num_column_blocks: int, choices: tuple[int, ...]) -> int:
    """Largest of `choices` (ascending) that still gives two programs per SM, or the first."""
    for rows in reversed(choices):
        if ceil_div(num_rows, rows) * num_column_blocks >= NUM_PROGRAMS:
            return rows
    return choices[0]


CLASS_ROW = {"none": 0, "first": 1, "last": 2}
"""Numbers by which the kernels receive the position of the class row."""


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """Contiguous form of a tensor, as kernels without strides read it; None of None."""
    return None if tensor is None else tensor.contiguous()


def strides(name: str, axes: str, tensor: Tensor) -> dict[str, int]:
    """Strides of a tensor as kernel arguments, `NAME_stride_AXIS` for every axis."""
    return {f"{name}_stride_{a}": s for a, s in zip(axes, tensor.stride(), strict=True)}


def mask_arguments(mask: Tensor | None) -> dict[str, Any]:
    """Kernel arguments of a mask: bytes and strides; a (B, N, 1) mask has a group stride of 0."""
    if mask is None:
        return {"mask": None} | {f"mask_stride_{axis}": 0 for axis in "bng"}
    arguments = {"mask": mask.view(torch.uint8), **strides("mask", "bng", mask)}
    if mask.shape[2] == 1:
        arguments["mask_stride_g"] = 0
    return arguments


def valid_arguments(valid: Tensor | None) -> dict[str, Tensor | int | None]:
    """Kernel arguments of the flags of valid tokens, (B, N): bytes and strides."""
    if valid is None:
        return {"valid": None, "valid_stride_b": 0, "valid_stride_n": 0}
    return {"valid": valid.view(torch.uint8), **strides("valid", "bn", valid)}


@dataclass(frozen=True)
class BatchBlocks:
    """Division of (B, rows, D) among the programs of a backward kernel that loops over images.

    Args:
        grid: Number of blocks of positions, of blocks of channels, and of splits of the batch.
        block_d: Number of channels of a block.
        images_per_split: Number of images that one program adds up.
    """

    grid: tuple[int, int, int]
    block_d: int
    images_per_split: int


BLOCK_N = 16
"""Number of positions of a block: the least depth of a 16-bit tensor-core product."""


def batch_blocks(batch: int, rows: int, width: int) -> BatchBlocks:
    """Divide (B, rows, D), splitting the batch only where blocks alone make too few programs.

    The number of splits, and with it the order of the sums, depends on shapes only.
    """
    block_d = min(128, max(16, power_of_two(width)))
    blocks, column_blocks = ceil_div(rows, BLOCK_N), ceil_div(width, block_d)
    splits = min(batch, max(1, NUM_PROGRAMS // (blocks * column_blocks)))
    per_split = ceil_div(batch, splits)
    return BatchBlocks((blocks, column_blocks, ceil_div(batch, per_split)), block_d, per_split)
