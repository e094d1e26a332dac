"""Time and memory of Frechet statistics, compared with the eigenvalues of the product.

    OMP_NUM_THREADS=1 nice -n 10 python benchmarks/frechet.py --out frechet.json

Every row runs in its own process. Features are correlated, rectified like those of a network,
generated batch by batch and not kept; `update` counts the time of `FrechetStatistics.update` alone.
Memory is the highest resident size (ru_maxrss) above that before the step, so it holds the
statistics themselves and the temporary memory of a step. `product` is the formula of
torchmetrics: the roots of the eigenvalues of the plain product.

Measured by that command on 2 shared cores of a cloud machine, one thread, torch 2.13 CPU, D = 2048:

    step            n  seconds  peak MiB         value
    update     50,000    10.07      46.5                  batches of 64
    distance   50,000     3.69     195.6   9.415152191
    product    50,000     4.14      96.0   9.415152191
    update      1,000     0.19      45.1
    distance    1,000     0.64      96.1  431.391016203
    product     1,000     3.68      96.0  431.386993034

For 1,000 samples of 2,048 dimensions the product is 9e-6 off; `tests/metrics/test_frechet.py` shows
against the vectors themselves which of the two is right.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tessella.files import atomic_file, check_file
from tessella.metrics.frechet import FrechetStatistics, frechet_distance

STEPS = ("update", "distance", "product")
_MEBIBYTE = 2**20


def feature_batches(count: int, size: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Float32 vectors of falling variances, at least 0, (batch_size, size) at a time."""
    mixing = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    mixing *= torch.arange(1, size + 1)[:, None] ** -0.7
    rng = torch.Generator().manual_seed(seed)
    for start in range(0, count, batch_size):
        draw = torch.randn(min(batch_size, count - start), size, generator=rng)
        yield (draw @ mixing + 0.4).clamp_min(0)


def by_product(a: FrechetStatistics, b: FrechetStatistics) -> float:
    """Distance by the eigenvalues of the product of covariances, which is not symmetric."""
    product = a.covariance @ b.covariance
    cross = torch.linalg.eigvals(product).sqrt().real.sum()
    shift = (a.mean - b.mean).square().sum()
    return float(shift + a.covariance.trace() + b.covariance.trace() - 2 * cross)


def measure(step: str, count: int, size: int, batch_size: int) -> dict[str, Any]:
    """Seconds, MiB and result of one step, in this process."""

    def collect(seed: int) -> tuple[FrechetStatistics, float]:
        statistics, seconds = FrechetStatistics(size), 0.0
        for batch in feature_batches(count, size, batch_size, seed):
            start = time.perf_counter()
            statistics.update(batch)
            seconds += time.perf_counter() - start
        return statistics, seconds

    if step == "update":
        next(feature_batches(batch_size, size, batch_size, 0))  # its memory does not count
        torch.linalg.svdvals(torch.eye(4, dtype=torch.float64))  # nor does that of a library
        before = peak()
        _, seconds = collect(1)
        value = None
    else:
        sides = [collect(seed)[0] for seed in (1, 2)]
        before, start = peak(), time.perf_counter()
        value = (frechet_distance if step == "distance" else by_product)(*sides)
        seconds = time.perf_counter() - start
    memory = (peak() - before) / _MEBIBYTE
    row = {"step": step, "n": count, "d": size, "batch_size": batch_size}
    return row | {"seconds": seconds, "peak_mib": memory, "value": value}


def peak() -> int:
    """Highest resident size of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Measure every step in a fresh process; print a table and write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, nargs="+", default=[50_000, 1000], help="vectors a side")
    parser.add_argument("--d", type=int, default=2048, help="features")
    parser.add_argument("--batch-size", type=int, default=64, help="vectors in an update")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)  # of a fresh process
    options = parser.parse_args()
    if options.out is not None:
        check_file(options.out, "measurement", overwrite=False, ours=lambda _: False)
    torch.set_num_threads(options.threads)
    if options.step:
        row = measure(options.step, options.n[0], options.d, options.batch_size)
        sys.stdout.write(json.dumps(row))
        return
    rows = []
    sys.stdout.write(
        f"{'step':>9} {'n':>7} {'d':>5} {'seconds':>8} {'peak MiB':>9} {'value':>16}\n"
    )
    for count in options.n:
        for step in STEPS:
            command = [sys.executable, __file__, "--step", step, "--n", str(count)]
            command += ["--d", str(options.d), "--batch-size", str(options.batch_size)]
            command += ["--threads", str(options.threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row = json.loads(done.stdout)
            rows.append(row)
            value = "" if row["value"] is None else f"{row['value']:.9f}"
            sys.stdout.write(
                f"{step:>9} {count:>7} {row['d']:>5} {row['seconds']:>8.2f} "
                f"{row['peak_mib']:>9.1f} {value:>16}\n"
            )
            sys.stdout.flush()
    if options.out:
        result = {"torch": torch.__version__, "threads": options.threads, "rows": rows}
        with atomic_file(options.out) as path:
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
