"""Work that several processes share: each does its part, the main one gets everything.

A fault of one process is raised by all of them, so that none waits for a dead one.
"""

import os
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list


class _Merges(Protocol):
    def merge(self, other: Any, /) -> None:
        """Add what another object saw."""


Mergeable = TypeVar("Mergeable", bound=_Merges)
Told = TypeVar("Told")


def join_processes() -> PartialState | None:
    """The group of processes this one was launched with; None if it was started alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    return PartialState(cpu=not torch.cuda.is_available())


def own_share(count: int, processes: PartialState | None) -> range:
    """This process's part of 0 .. count - 1."""
    if processes is None:
        return range(count)
    rank, world = processes.process_index, processes.num_processes
    return range(rank * count // world, (rank + 1) * count // world)


def collected(work: Callable[[], Mergeable], processes: PartialState | None) -> Mergeable | None:
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


def told(value: Told, processes: PartialState | None) -> Told:
    """The main process's value, on every process."""
    if processes is None:
        return value
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
