"""What processes exchange: the reductions of losses and quantizers, and shared work.

Reductions are the identity in a single process and are called unconditionally on every rank, so
that no rank waits for one that never comes. Gradients follow the convention of DDP, which averages
over ranks: after it, the gradient equals that of one process holding the whole batch.

Work that several processes share is done in parts, and the main process gets everything. A fault of
one process is raised by all of them, so that none waits for a dead one.
"""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import PartialState  # slow to import, and one process does without


class _Merges(Protocol):
    def merge(self, other: Any, /) -> None:
        """Add what another object saw."""


Mergeable = TypeVar("Mergeable", bound=_Merges)
Told = TypeVar("Told")


def num_processes() -> int:
    """Processes of the running job, 1 if there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean over ranks in the forward pass; the gradient goes to this rank's share.

    A function f of the mean thus gives rank r the gradient f'(mean) * d value_r; averaged over
    ranks by DDP that is the exact gradient of f(mean).
    """
    if num_processes() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return value + (total / num_processes() - value).detach()


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum over ranks, without gradient."""
    if num_processes() == 1:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def gather_rows(rows: Tensor) -> Tensor:
    """Rows (M, D) of every rank in rank order, (ranks * M, D), without gradient.

    Every rank must bring the same number of rows.
    """
    rows = rows.detach().contiguous()
    if num_processes() == 1:
        return rows
    gathered = [torch.empty_like(rows) for _ in range(num_processes())]
    dist.all_gather(gathered, rows)
    return torch.cat(gathered)


def join_processes() -> "PartialState | None":
    """The group of processes this one was launched with; None if it was started alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def own_share(count: int, processes: "PartialState | None") -> range:
    """This process's part of 0 .. count - 1."""
    if processes is None:
        return range(count)
    rank, world = processes.process_index, processes.num_processes
    return range(rank * count // world, (rank + 1) * count // world)


def gather_merged(
    work: Callable[[], Mergeable], processes: "PartialState | None"
) -> Mergeable | None:
    """What all processes found, merged in the order of ranks, on the main one; None on others.

    Args:
        work: This process's part.
        processes: Those that share the work.

    Raises:
        ValueError: If another process failed; a fault of this one's work passes as it is.
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


def broadcast_from_main(value: Told, processes: "PartialState | None") -> Told:
    """The main process's value, on every process."""
    if processes is None:
        return value
    from accelerate.utils import broadcast_object_list

    place = [value]
    broadcast_object_list(place)
    return place[0]


def leave_processes() -> None:
    """Dissolve the group, by all of its processes; the main one may then go on alone.

    A process that ends with the group still open may abort, after all its work is done.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
