"""Memory and time of the LFQ entropy loss against the number of bits, and of its full table.

    OMP_NUM_THREADS=1 python benchmarks/entropy_memory.py --out entropy_memory.json

Up to 18 bits the loss has the joint entropy of all bits, beyond that of groups. One forward and
backward pass over N tokens. Every storage that an operation creates is counted from its creation
until Python and autograd release it, so the peak is exact and does not depend on an allocator; the
latents themselves and their gradient are part of it. The full table, softmax over all codes, is
the form of the reference code of arXiv:2409.16211; it is measured where it fits. The time is the
least of five passes, on as many threads as torch takes. Up to 10 bits both forms are also compared
with a float64 table.
"""

import argparse
import json
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tessella.files import atomic_file, check_file
from tessella.tokenizers.quantizers.entropy import batch_entropy, sample_entropy
from tessella.tokenizers.quantizers.lfq import MAX_JOINT_BITS

TEMPERATURE = 0.01
"""Temperature of the soft assignments, as in every published LFQ."""
GROUP_BITS = 10
"""Bits of a group where the joint entropy is not computed."""
MAX_TABLE_BITS = 14
"""Largest full table: 4096 x 2**14 floats are 268 MB each, and several are alive at once."""
MAX_CHECKED_BITS = 10
"""Largest float64 table that values are compared with."""
BITS = (6, 8, 10, 12, 14, 16, 18, 20, 24, 30, 36, 40, 48, 50, 60, 62)


class StorageMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no type for it
    """Bytes of live storages created while it is active; `peak` is their highest sum."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no type for it
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        """Add a new storage, and subtract it when it is released."""
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def our_loss(latents: Tensor) -> Tensor:
    """The entropy loss of `LFQ`: sample entropy less batch entropy, of all bits or of groups."""
    logits, bits = latents * (4 / TEMPERATURE), latents.shape[-1]
    group = bits if bits <= MAX_JOINT_BITS else GROUP_BITS
    return sample_entropy(logits) - batch_entropy(logits, max_group_bits=group)


def table_loss(latents: Tensor) -> Tensor:
    """The same loss by a softmax over all 2**n codes, exact but for rounding."""
    num_bits = latents.shape[-1]
    codes = torch.arange(2**num_bits)[:, None] >> torch.arange(num_bits) & 1
    signs = (codes * 2 - 1).to(latents.dtype)
    log_p = torch.log_softmax(latents @ signs.T * (2 / TEMPERATURE), dim=-1)
    p = log_p.exp()
    mean = p.mean(0)
    sample, batch = -(p * log_p).sum(1).mean(), -torch.special.xlogy(mean, mean).sum()
    loss: Tensor = sample - batch
    return loss


def peak_bytes(loss: Callable[[Tensor], Tensor], latents: Tensor) -> int:
    """Peak of live storage over one forward and backward pass, in bytes."""
    meter = StorageMeter()
    with meter:
        copy = latents.clone().requires_grad_()
        torch.autograd.backward(loss(copy))
    return meter.peak


def seconds(loss: Callable[[Tensor], Tensor], latents: Tensor) -> float:
    """Least time of one forward and backward pass, of five."""
    times = []
    for _ in range(5):
        copy = latents.clone().requires_grad_()
        start = time.perf_counter()
        torch.autograd.backward(loss(copy))
        times.append(time.perf_counter() - start)
    return min(times)


def measure(num_bits: int, num_tokens: int, seed: int) -> dict[str, float | int | None]:
    """One row: peaks in bytes, and errors against the float64 table where it is small."""
    rng = torch.Generator().manual_seed(seed)
    latents = 0.02 * torch.randn(num_tokens, num_bits, generator=rng)
    fits = num_bits <= MAX_TABLE_BITS
    row: dict[str, float | int | None] = {
        "bits": num_bits,
        "bytes": peak_bytes(our_loss, latents),
        "seconds": seconds(our_loss, latents),
        "table_bytes": peak_bytes(table_loss, latents) if fits else None,
        "value_error": None,
        "gradient_error": None,
    }
    if num_bits <= MAX_CHECKED_BITS:
        ours, exact = latents.clone().requires_grad_(), latents.double().requires_grad_()
        found, expected = our_loss(ours), table_loss(exact)
        (ours_grad,) = torch.autograd.grad(found, ours)
        (exact_grad,) = torch.autograd.grad(expected, exact)
        row["value_error"] = abs(found.item() - expected.item())
        difference = (ours_grad.double() - exact_grad).abs().max()
        row["gradient_error"] = (difference / exact_grad.abs().max()).item()
    return row


def main() -> None:
    """Print the table, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of the batch")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random latents")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.out is not None:
        check_file(arguments.out, "measurement", overwrite=False, ours=lambda _: False)

    def megabytes(value: float | int | None) -> str:
        return "-" if value is None else f"{value / 2**20:.2f}"

    print(
        f"{arguments.tokens} tokens, {torch.get_num_threads()} threads; all bits jointly up to "
        f"{MAX_JOINT_BITS}, then groups of at most {GROUP_BITS}; MiB"
    )
    print("bits | MiB | ms | MiB of the full table | value error | gradient error")
    rows = []
    for num_bits in BITS:
        row = measure(num_bits, arguments.tokens, arguments.seed)
        rows.append(row)
        errors = [
            "-" if row[k] is None else f"{row[k]:.1e}" for k in ("value_error", "gradient_error")
        ]
        milliseconds = f"{1000 * (row['seconds'] or 0):.1f}"
        columns = [megabytes(row["bytes"]), milliseconds, megabytes(row["table_bytes"])]
        print(" | ".join([f"{num_bits:4d}", *columns, *errors]), flush=True)
    if arguments.out is not None:
        result = {
            "tokens": arguments.tokens,
            "group_bits": GROUP_BITS,
            "temperature": TEMPERATURE,
            "torch": torch.__version__,
            "rows": rows,
        }
        with atomic_file(arguments.out) as path:
            path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
