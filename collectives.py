"""Communication between processes: reductions in losses and quantizers, and shared work.

Reductions are the identity in a single process and are called unconditionally on every rank, so
that no rank waits for a call that another rank never makes. Gradients follow the convention of DDP,
which averages over ranks: the average equals the gradient of one process holding the whole batch.

Shared work is split into one part per process, and the results are merged on the main process. An
error in one process is raised by all of them, so that none waits for a process that has ended.
"""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import PartialState  # slow to import, and not needed by a single process


class _Merges(Protocol):
    """An object that can take in the results of another one."""

    def merge(self, other: Any, /) -> None:
        """Add the results of another object."""


Mergeable = TypeVar("Mergeable", bound=_Merges)
Value = TypeVar("Value")


def num_processes() -> int:
    """Number of processes of the running job; 1 if there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_processes(value: Tensor) -> Tensor:
    """Mean of a tensor over ranks, with the gradient of this rank's own value.

    A function f of the mean gives rank r the gradient f'(mean) * d value_r; averaged over ranks by
    DDP, that is the exact gradient of f(mean).
    """
    if num_processes() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return value + (total / num_processes() - value).detach()


def sum_over_processes(value: Tensor) -> Tensor:
    """Sum of a tensor over ranks, without gradient."""
    if num_processes() == 1:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows of all ranks in rank order, without gradient.

    Args:
        rows: Rows of this rank, shape (M, D); M must be the same on every rank.

    Returns:
        Shape (ranks * M, D).
    """
    rows = rows.detach().contiguous()
    if num_processes() == 1:
        return rows
    gathered = [torch.empty_like(rows) for _ in range(num_processes())]
    dist.all_gather(gathered, rows)
    return torch.cat(gathered)


def join_processes() -> "PartialState | None":
    """Join the processes that this one was launched with; None if it was started alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def own_share(count: int, processes: "PartialState | None") -> range:
    """Part of the numbers 0 .. count - 1 that this process works on.

    Args:
        count: Number of items of all processes together.
        processes: Processes that share the work; None = this one alone.
    """
    if processes is None:
        return range(count)
    rank, world = processes.process_index, processes.num_processes
    return range(rank * count // world, (rank + 1) * count // world)


def gather_merged(
    work: Callable[[], Mergeable], processes: "PartialState | None"
) -> Mergeable | None:
    """Run this process's part of the work and merge all results in rank order on the main process.

    Args:
        work: Function that does the part of this process and returns a mergeable result.
        processes: Processes that share the work; None = this one alone.

    Returns:
        The merged result on the main process, None on the others.

    Raises:
        ValueError: If another process failed. An error in this process's work is raised unchanged.
    """
    if processes is None:
        return work()
    found, fault = None, None
    try:
        found = work()
    except Exception as error:
        fault = error
    faults: list[Any] = [None] * processes.num_processes
    torch.distributed.all_gather_object(faults, None if fault is None else str(fault))
    if any(text is not None for text in faults):
        leave_processes()
    if fault is not None:
        raise fault
    if first := next((text for text in faults if text is not None), None):
        raise ValueError(f"another process failed: {first}")
    main = processes.is_main_process
    parts: list[Any] | None = [None] * processes.num_processes if main else None
    torch.distributed.gather_object(found, parts, dst=0)
    if parts is None:
        return None
    whole: Mergeable = parts[0]
    for part in parts[1:]:
        whole.merge(part)
    return whole


def broadcast_from_main(value: Value, processes: "PartialState | None") -> Value:
    """Value of the main process, on every process.

    Args:
        value: Object that can be pickled; only that of the main process counts.
        processes: Processes that share the work; None = this one alone.
    """
    if processes is None:
        return value
    from accelerate.utils import broadcast_object_list

    place = [value]
    broadcast_object_list(place)
    return place[0]


def leave_processes() -> None:
    """Close the process group; every process must call this, and the main one may then continue.

    A process that ends while the group is open may abort even though all its work is done.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
