"""One row of the table of `benchmarks/kernels.py`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Args:
        op: Name of the operation and direction.
        shape: Shape as text for the table.
        dtype: Float type of the inputs.
        num_bytes: Smallest possible memory traffic of one call, in bytes.
        functions: Functions of an input set by name; the first is the kernel.
        make: Function from a seed to an input set.
        overhead: Whether to measure the time until a call returns, on CUDA without waiting for the
            device.
        num_flops: Multiplications and additions of one call, whatever their precision.
        graph: Whether a call may be captured into a CUDA graph.
        check: Function from an input set to measures of the deviation of the results, by name.
    """

    op: str
    shape: str
    dtype: torch.dtype
    num_bytes: int
    functions: dict[str, Callable[[Any], Any]]
    make: Callable[[int], Any]
    overhead: bool = False
    num_flops: int = 0
    graph: bool = True
    check: Callable[[Any], dict[str, float]] | None = None


def both_ways(function: Callable[[Any], Tensor], leaves: tuple[str, ...]) -> Callable[[Any], Any]:
    """Function that runs forward and backward to the named leaves of an input set."""

    def run(given: dict[str, Any]) -> Any:
        given = given | {name: given[name].detach().requires_grad_() for name in leaves}
        return torch.autograd.grad(function(given), [given[name] for name in leaves], given["grad"])

    return run
