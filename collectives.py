"""The few collectives that losses and quantizers need; each is the identity in a single process.

They are called unconditionally on every rank, so that no rank waits for one that never comes.
Gradients follow the convention of DDP, which averages over ranks: after it, the gradient equals
that of one process holding the whole batch.
"""

import torch
import torch.distributed as dist
from torch import Tensor


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
