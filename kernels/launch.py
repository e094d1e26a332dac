"""A kernel launch as data: what runs it on a GPU also compiles it on a machine without one."""

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
        grid: Programs along each axis.
        arguments: Every argument by name: tensors, numbers, tuples, constants.
        options: Compile options, `num_warps` and `num_stages`.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]

    def run(self, device: torch.device) -> None:
        """Run it on the current stream of `device`."""
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            self.kernel[self.grid](**self.arguments, **self.options, enable_fp_fusion=True)

    def compile(self) -> Any:
        """The compiled kernel for the active driver's target; tensors may be on `meta`."""
        return self.kernel.warmup(
            **self.arguments, **self.options, enable_fp_fusion=True, grid=self.grid
        )


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two not below n >= 1."""
    return 1 << (n - 1).bit_length()


def num_rows_per_block(num_rows: int, num_column_blocks: int, choices: tuple[int, ...]) -> int:
    """The largest of `choices` (ascending) that still gives two programs per SM, or the first."""
    for rows in reversed(choices):
        if ceil_div(num_rows, rows) * num_column_blocks >= NUM_PROGRAMS:
            return rows
    return choices[0]


CLASS_ROW = {"none": 0, "first": 1, "last": 2}
"""How the kernels are told where the class row stands."""


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """The tensor as the kernels read most of theirs, or None."""
    return None if tensor is None else tensor.contiguous()


def strides(name: str, axes: str, tensor: Tensor) -> dict[str, int]:
    """`NAME_stride_AXIS` of every axis."""
    return {f"{name}_stride_{a}": s for a, s in zip(axes, tensor.stride(), strict=True)}


def mask_arguments(mask: Tensor | None) -> dict[str, Any]:
    """The mask as bytes; a (B, N, 1) mask stands for every group by a stride of 0."""
    if mask is None:
        return {"mask": None} | {f"mask_stride_{axis}": 0 for axis in "bng"}
    arguments = {"mask": mask.view(torch.uint8), **strides("mask", "bng", mask)}
    if mask.shape[2] == 1:
        arguments["mask_stride_g"] = 0
    return arguments


def valid_arguments(valid: Tensor | None) -> dict[str, Tensor | int | None]:
    """The real tokens (B, N) as bytes, with strides."""
    if valid is None:
        return {"valid": None, "valid_stride_b": 0, "valid_stride_n": 0}
    return {"valid": valid.view(torch.uint8), **strides("valid", "bn", valid)}


@dataclass(frozen=True)
class BatchBlocks:
    """How a backward kernel that walks over the images divides (B, rows, D).

    Args:
        grid: Blocks of positions, blocks of channels, splits of the batch.
        block_d: Channels of a block.
        images_per_split: Images that one program adds up.
    """

    grid: tuple[int, int, int]
    block_d: int
    images_per_split: int


BLOCK_N = 16
"""Positions of a block: the least depth of a 16-bit tensor-core product."""


def batch_blocks(batch: int, rows: int, width: int) -> BatchBlocks:
    """Splits of the batch only where positions and channels alone make too few programs.

    Their number depends on shapes only, and with it the order of the sums.
    """
    block_d = min(128, max(16, power_of_two(width)))
    blocks, column_blocks = ceil_div(rows, BLOCK_N), ceil_div(width, block_d)
    splits = min(batch, max(1, NUM_PROGRAMS // (blocks * column_blocks)))
    per_split = ceil_div(batch, splits)
    return BatchBlocks((blocks, column_blocks, ceil_div(batch, per_split)), block_d, per_split)
