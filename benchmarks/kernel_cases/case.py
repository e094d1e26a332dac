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
        op: Operation and direction.
        shape: For people.
        dtype: Float type.
        num_bytes: Least traffic to and from memory of one call.
        functions: Name to a function of an input set; the first is ours.
        make: An input set of seed i.
        overhead: The time until a call returns is measured, on CUDA without waiting for it.
        num_flops: Multiplications and additions of one call, whatever their precision.
        graph: On CUDA a call may be captured into a CUDA graph.
        check: Figures of an input set that say how near the results are.
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
    """Forward and backward to the leaves."""

    def run(given: dict[str, Any]) -> Any:
        given = given | {name: given[name].detach().requires_grad_() for name in leaves}
        return torch.autograd.grad(function(given), [given[name] for name in leaves], given["grad"])

    return run
