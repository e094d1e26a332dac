"""Speed of the kernels compared with the operations that they replace.

    python benchmarks/kernels.py [--only bit_embedding] [--rounds 20] --out runs/kernels

On CUDA the shapes are those of the published models, the times medians of CUDA events around CUDA
graphs over several sets of random inputs that together exceed the L2 cache, and the ceilings are
the bandwidth of a copy and the rate of a bf16 matrix product on the device, measured in the same
run; a row shows the nearer of the two. Without CUDA the shapes are small and the references run,
which shows that the command works and what the reference costs. Data are random, never zeros.
A baseline that refuses a case is left out, and the row says why.

    kernels.json   every row with device, versions and shapes
    kernels.png    time relative to the kernel, where matplotlib is installed

A row is a `Case`: its functions do the same work, the first of them is the kernel. To add an
operation write a function that yields its cases into `kernel_cases/` and add it to `FAMILIES`.

On CUDA this was not run. With `--rounds 60 --threads 1` on a shared 2-core machine, torch 2.13 CPU,
references only (copy 32.5 GB/s):

    op                     shape                      ours   time of others / ours
    bit_embedding          B8 N64 K14 D256        0.342 ms   unpack + linear 0.54x, 2^K rows 0.33x
    bit_embedding fwd+bwd  B8 N64 K14 D256        0.709 ms   unpack + linear 0.53x
    bit_embedding          B4 N256 K10 D512       0.490 ms   unpack + linear 0.66x, 2^K rows 0.50x
    bit_embedding fwd+bwd  B4 N256 K10 D512       1.688 ms   unpack + linear 0.65x
    codebook_sum           B8 N64 G8 V256 D256    0.582 ms   sum of gathers 0.64x
    codebook_sum fwd+bwd   B8 N64 G8 V256 D256    1.956 ms   sum of gathers 1.05x
    maskbit forward        B4 N64 D128 L2         4.126 ms   plain 0.94x
    bit_embedding overhead B1 N1 K3 D16           0.047 ms   one addition 0.03x
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from tessella.benchmarks.kernel_cases.attention import attention_cases, trained_cases
from tessella.benchmarks.kernel_cases.bit_packing import bit_packing_cases
from tessella.benchmarks.kernel_cases.case import Case
from tessella.benchmarks.kernel_cases.embeddings import (
    bit_embedding_cases,
    codebook_sum_cases,
    overhead_cases,
)
from tessella.benchmarks.kernel_cases.generators import forward_cases, sampling_cases
from tessella.benchmarks.kernel_cases.packed_linear import packed_linear_cases
from tessella.files import atomic_folder, check_replaceable

L2_BYTES = 60 * 2**20
"""L2 cache of an H200; input sets are rotated until they exceed it."""
KIND = "timings of kernels"
"""Kind of the folder, in its marker."""
MAX_SETS = 64


class Ceilings(NamedTuple):
    """Measured peak rates of the device in this run.

    Args:
        copy: Bytes per second of a copy, read and write counted.
        product: Operations per second of a matrix product.
    """

    copy: float
    product: float


FAMILIES: dict[str, Callable[[torch.device], Iterator[Case]]] = {
    "bit_embedding": bit_embedding_cases,
    "codebook_sum": codebook_sum_cases,
    "bit_packing": bit_packing_cases,
    "attention": attention_cases,
    "trained attention": trained_cases,
    "packed_linear": packed_linear_cases,
    "forward": forward_cases,
    "sampling": sampling_cases,
    "overhead": overhead_cases,
}


def timed(function: Callable[[Any], Any], given: Any, device: torch.device) -> float:
    """Seconds of one call, on CUDA of device time."""
    if device.type != "cuda":
        return wall_clock(function, given)
    start, end = (
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch: no types
        for _ in range(2)
    )
    start.record()
    function(given)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def wall_clock(function: Callable[[Any], Any], given: Any) -> float:
    """Seconds until one call returns."""
    started = time.perf_counter()
    function(given)
    return time.perf_counter() - started


def captured(function: Callable[[Any], Any], sets: list[Any]) -> Callable[[Any], Any]:
    """Capture one call per input set in a CUDA graph, so that launches do not hide short kernels.

    Raises:
        RuntimeError: If a call cannot be captured.
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no type for it
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for given in sets * 2:
            function(given)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [function(given) for given in sets]

    def replay(_: Any, outputs: list[Any] = outputs) -> None:
        graph.replay()

    return replay


def bandwidth(device: torch.device, rounds: int) -> float:
    """Bytes per second of a copy, read and write counted: the ceiling of this run."""
    count = 2**28 if device.type == "cuda" else 2**24
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    times = [timed(target.copy_, source, device) for _ in range(rounds + 1)]
    return 2 * source.numel() * source.element_size() / statistics.median(times[1:])


def product_rate(device: torch.device, rounds: int) -> float:
    """Operations per second of a matrix product, bf16 on CUDA: the other ceiling of this run."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (768, torch.float32)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = [timed(a.matmul, b, device) for _ in range(rounds + 1)]
    return 2 * size**3 / statistics.median(times[1:])


def working(case: Case, given: Any) -> tuple[dict[str, Callable[[Any], Any]], dict[str, str]]:
    """Functions that accept an input set, and errors of the others; the kernel must accept it."""
    functions, refused = {}, {}
    for name, function in case.functions.items():
        try:
            function(given)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            if name == "kernel":
                raise
            refused[name] = str(error).strip().splitlines()[0]
        else:
            functions[name] = function
    return functions, refused


def measure(case: Case, device: torch.device, rounds: int, ceilings: Ceilings) -> dict[str, Any]:
    """Median times of a case; rounds alternate between functions and rotate input sets."""
    num_sets = 2
    if device.type == "cuda" and case.num_bytes:
        num_sets = min(MAX_SETS, max(2, 2 * L2_BYTES // case.num_bytes + 1))
    sets = [case.make(seed) for seed in range(num_sets)]
    functions, refused = working(case, sets[0])
    calls, graphs = 1, False
    if device.type == "cuda" and case.graph and not case.overhead:
        try:
            functions = {name: captured(function, sets) for name, function in functions.items()}
            calls, graphs = num_sets, True
        except RuntimeError as error:
            click.echo(f"{case.op}: no CUDA graph, so launches count too: {error}", err=True)
    times: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for turn in range(rounds + 2):
        first = turn % len(names)
        for name in names[first:] + names[:first]:  # none is always the first after a pause
            given = sets[turn % num_sets]
            if case.overhead:
                seconds = wall_clock(functions[name], given)
            else:
                seconds = timed(functions[name], given, device) / calls
            if turn > 1:
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ours = medians.pop("kernel")
    row: dict[str, Any] = {
        "op": case.op,
        "shape": case.shape,
        "dtype": str(case.dtype).removeprefix("torch."),
        "ms": 1000 * ours,
        "cuda_graph": graphs,
        "baselines_ms": {name: 1000 * seconds for name, seconds in medians.items()},
        "ratios": {name: seconds / ours for name, seconds in medians.items()},
        "refused": refused,
        "check": {} if case.check is None else case.check(sets[0]),
    }
    shares = {}
    if case.num_bytes:
        row |= {"gb_per_s": case.num_bytes / ours / 1e9, "bytes": case.num_bytes}
        shares["memory"] = case.num_bytes / ours / ceilings.copy
    if case.num_flops:
        row |= {"tflop_per_s": case.num_flops / ours / 1e12, "flops": case.num_flops}
        shares["product"] = case.num_flops / ours / ceilings.product
    if shares:
        row["ceiling"], row["of_ceiling"] = max(shares.items(), key=lambda share: share[1])
    return row


def line(row: dict[str, Any]) -> str:
    """Format a row of the table as text."""
    rate = " " * 21
    if row.get("ceiling") == "memory":
        rate = f"{row['gb_per_s']:9.2f} GB/s {row['of_ceiling']:6.1%}"
    elif row.get("ceiling") == "product":
        rate = f"{row['tflop_per_s']:9.3f} TF/s {row['of_ceiling']:6.1%}"
    ratios = "  ".join(f"{name} {ratio:.2f}x" for name, ratio in row["ratios"].items())
    checks = "".join(f"  {name} {value:.6g}" for name, value in row["check"].items())
    return (
        f"{row['op']:28}{row['shape']:28}{row['dtype']:10}{row['ms']:9.3f}{rate}  {ratios}{checks}"
    )


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the time of every baseline relative to the kernel as PNG."""
    from matplotlib.figure import Figure

    bars = [
        (f"{row['op']} {row['shape']} {row['dtype']}: {name}", ratio)
        for row in rows
        for name, ratio in row["ratios"].items()
    ]
    figure = Figure(figsize=(9, 1 + 0.3 * len(bars)), layout="constrained")
    axes = figure.subplots()
    axes.barh([name for name, _ in bars], [ratio for _, ratio in bars])
    axes.axvline(1, color="black")
    axes.invert_yaxis()
    axes.set_xlabel("time relative to the kernel; above 1 the kernel is faster")
    figure.savefig(path, dpi=100)


@click.command()
@click.option(
    "--only", type=click.Choice(list(FAMILIES)), multiple=True, help="Operations to measure."
)
@click.option("--rounds", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for kernels.json and .png.")
def main(only: tuple[str, ...], rounds: int, threads: int, out: Path | None) -> None:
    """Measure and print the table."""
    if out is not None:
        check_replaceable(out, KIND, overwrite=False)
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, references only"
    ceilings = Ceilings(bandwidth(device, rounds), product_rate(device, rounds))
    about = (
        f"torch {torch.__version__}, {name}, {threads} threads, "
        f"copy {ceilings.copy / 1e9:.1f} GB/s, "
        f"matrix product {ceilings.product / 1e12:.3f} TFLOP/s"
    )
    click.echo(about)
    heads = f"{'op':28}{'shape':28}{'dtype':10}{'ms':>9}{'rate':>13}{'ceiling':>8}"
    click.echo(f"{heads}  time of others / ours")
    rows = []
    for family, cases in FAMILIES.items():
        if only and family not in only:
            continue
        for case in cases(device):
            rows.append(measure(case, device, rounds, ceilings))
            click.echo(line(rows[-1]))
    if out is None:
        return
    record = {
        "about": about,
        "product_tflop_per_s": ceilings.product / 1e12,
        "copy_gb_per_s": ceilings.copy / 1e9,
        "rounds": rounds,
        "rows": rows,
    }
    with atomic_folder(out, kind=KIND) as folder:
        text = json.dumps(record, indent=1) + "\n"
        (folder / "kernels.json").write_text(text, encoding="utf-8")
        try:
            draw(rows, folder / "kernels.png")
        except ImportError:
            click.echo("matplotlib is not installed: no kernels.png")


if __name__ == "__main__":
    main()
