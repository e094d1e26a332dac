"""Dispatch modes that watch the operations of a test: memory, and waiting for a device."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """Size of the largest tensor that any operation returns, backward included.

    Attributes:
        numel: Largest number of elements.
        num_bytes: Largest number of bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.numel = self.num_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.numel = max(self.numel, leaf.numel())
                self.num_bytes = max(self.num_bytes, leaf.numel() * leaf.element_size())
        return result


class NoWaiting(TorchDispatchMode):
    """Fails, between the first call of a network and the last, on what makes host and device wait.

    Args:
        num_calls: Number of calls of the network that are expected.

    Attributes:
        calls: Number of calls so far of the functions that `counting` returned.
        operations: Number of operations that were watched.
    """

    forbidden = (
        "local_scalar_dense",
        "item",
        "nonzero",
        "is_nonzero",
        "masked_select",
        "equal",
        "unique",
        "lift_fresh",
        "repeat_interleave",
    )

    def __init__(self, num_calls: int) -> None:
        super().__init__()
        self.num_calls, self.calls, self.operations = num_calls, 0, 0

    def counting(self, network: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The network, each call of which is counted."""

        def counted(*given: Any) -> Tensor:
            self.calls += 1
            return network(*given)

        return counted

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if 0 < self.calls < self.num_calls:
            self.operations += 1
            name = func._schema.name.split("::")[1].strip("_")
            assert name not in self.forbidden, f"{func} waits"
            if name in ("index", "index_put"):
                picked = [i for i in args[1] if i is not None]
                assert all(i.dtype != torch.bool for i in picked), f"{func} with a mask waits"
            assert "device" not in (kwargs or {}) or name != "to_copy", f"{func} copies"
        return func(*args, **(kwargs or {}))
