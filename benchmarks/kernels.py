"""Speed of the kernels beside what they replace: one table, JSON and a picture.

    python benchmarks/kernels.py [--only bit_embedding] [--rounds 20] --out runs/kernels

On CUDA the shapes are those of the published models, the times medians of CUDA events around CUDA
graphs over several sets of random inputs that together exceed the L2 cache, and the ceiling is the
bandwidth of a copy on the device, measured in the same run. Elsewhere the shapes are small and the
references run: that shows that the command works, and what the reference costs. Data are random,
never zeros.

    kernels.json   every row with device, versions and shapes
    kernels.png    time relative to the kernel, where matplotlib is installed

A row is a `Case`: its functions do the same work, the first of them is the kernel. To add an
operation write a function that yields its cases and add it to `FAMILIES`.

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

import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from torch.nn import functional as F

from tessella.generators.masked import MaskBitConfig, MaskedGenerator
from tessella.generators.transformer import TransformerConfig
from tessella.kernels.bit_embedding.op import bit_embedding
from tessella.kernels.codebook_sum.op import codebook_embedding_sum
from tessella.tokenizers.tokens import TokenSpec

L2_BYTES = 60 * 2**20
"""L2 cache of an H200; input sets are rotated until they exceed it."""
MAX_SETS = 8
MAX_TABLE_BYTES = 8 * 2**30
"""Largest `nn.Embedding` of 2^K rows that is compared."""


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
    """

    op: str
    shape: str
    dtype: torch.dtype
    num_bytes: int
    functions: dict[str, Callable[[Any], Any]]
    make: Callable[[int], Any]
    overhead: bool = False


def unpack_and_linear(given: dict[str, Any]) -> Tensor:
    """Bits by shifts, signs, mask, linear layer, class row, positions: torch operations."""
    codes, weight = given["codes"], given["weight"]
    shifts = torch.arange(given["bits_per_group"], device=codes.device)
    signs = ((codes[..., None] >> shifts) & 1).to(weight.dtype) * 2 - 1
    signs = signs.masked_fill(given["mask"][..., None], 0).flatten(2)
    x = F.linear(signs, weight.t(), given["bias"])
    row = F.embedding(given["labels"], given["class_table"])[:, None]
    return torch.cat([x, row], 1) + given["position"]


def index_table(given: dict[str, Any], table: Tensor) -> Tensor:
    """One table of 2^K rows in place of the bits; the mask is left out."""
    m = given["bits_per_group"]
    joint = sum(given["codes"][..., g] << g * m for g in range(given["codes"].shape[-1]))
    x = F.embedding(joint, table)
    row = F.embedding(given["labels"], given["class_table"])[:, None]
    return torch.cat([x, row], 1) + given["position"]


def summed_embeddings(given: dict[str, Any]) -> Tensor:
    """One gather per codebook, their sum, class row, positions: torch operations."""
    codes, tables = given["codes"], given["tables"]
    x = F.embedding(codes[..., 0], tables[0])
    for g in range(1, codes.shape[-1]):
        x = x + F.embedding(codes[..., g], tables[g])
    row = F.embedding(given["labels"], given["class_table"])[:, None]
    return torch.cat([x, row], 1) + given["position"]


def both_ways(function: Callable[[Any], Tensor], leaves: tuple[str, ...]) -> Callable[[Any], Any]:
    """Forward and backward to the leaves."""

    def run(given: dict[str, Any]) -> Any:
        given = given | {name: given[name].detach().requires_grad_() for name in leaves}
        return torch.autograd.grad(function(given), [given[name] for name in leaves], given["grad"])

    return run


def without(given: dict[str, Any], *names: str) -> dict[str, Any]:
    """An input set without some entries."""
    return {name: value for name, value in given.items() if name not in names}


def common_inputs(
    rng: torch.Generator, batch: int, tokens: int, groups: int, width: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Terms that every embedding adds, a mask, and dL/dy."""
    device = rng.device

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, device=device).to(dtype)

    return {
        "position": normal(tokens + 1, width),
        "class_table": normal(1001, width),
        "labels": torch.randint(1001, (batch,), generator=rng, device=device),
        "mask": torch.rand(batch, tokens, groups, generator=rng, device=device) < 0.5,
        "grad": normal(batch, tokens + 1, width),
    }


def bit_embedding_cases(device: torch.device) -> Iterator[Case]:
    """K1 beside unpack + `F.linear` and, where it fits, beside a table of 2^K rows."""
    shapes = [(64, 256, 14, 1024), (256, 256, 18, 1024)]
    types = [torch.bfloat16, torch.float32]
    if device.type != "cuda":
        shapes, types = [(8, 64, 14, 256), (4, 256, 10, 512)], [torch.float32]
    for (batch, tokens, bits, width), dtype in itertools.product(shapes, types):

        def make(
            seed: int,
            batch: int = batch,
            tokens: int = tokens,
            bits: int = bits,
            width: int = width,
            dtype: torch.dtype = dtype,
        ) -> dict[str, Any]:
            rng = torch.Generator(device).manual_seed(seed)
            given = common_inputs(rng, batch, tokens, 2, width, dtype)
            codes = (batch, tokens, 2)
            given["codes"] = torch.randint(2 ** (bits // 2), codes, generator=rng, device=device)
            given["weight"] = torch.randn(bits, width, generator=rng, device=device).to(dtype)
            given["bias"] = torch.randn(width, generator=rng, device=device).to(dtype)
            given["bits_per_group"] = bits // 2
            return given

        size = torch.finfo(dtype).bits // 8
        rows = batch * (tokens + 1)
        codes_bytes = batch * tokens * 2 * (8 + 1)
        num_bytes = codes_bytes + rows * width * size + (bits + tokens + 2) * width * size
        shape = f"B{batch} N{tokens} K{bits} D{width}"
        fused = {"kernel": lambda given: bit_embedding(**without(given, "grad"))}
        plain = {"unpack + linear": unpack_and_linear}
        tables: dict[str, Callable[[Any], Any]] = {}
        if 2**bits * width * size * (2 if device.type == "cuda" else 64) <= MAX_TABLE_BYTES:
            table = torch.randn(2**bits, width, device=device, dtype=dtype)
            tables["2^K rows"] = partial(index_table, table=table)
        yield Case("bit_embedding", shape, dtype, num_bytes, fused | plain | tables, make)
        leaves = ("weight", "bias", "position", "class_table")
        functions = {
            name: both_ways(function, leaves) for name, function in (fused | plain).items()
        }
        num_bytes += codes_bytes + rows * width * size + 2 * (bits + tokens + 2) * width * 4
        yield Case("bit_embedding fwd+bwd", shape, dtype, num_bytes, functions, make)


def codebook_sum_cases(device: torch.device) -> Iterator[Case]:
    """K2 beside one gather per codebook."""
    shapes = [(64, 256, 8, 4096, 1024), (64, 256, 2, 512, 1024)]
    types = [torch.bfloat16, torch.float32]
    if device.type != "cuda":
        shapes, types = [(8, 64, 8, 256, 256)], [torch.float32]
    for (batch, tokens, groups, rows, width), dtype in itertools.product(shapes, types):

        def make(
            seed: int,
            batch: int = batch,
            tokens: int = tokens,
            groups: int = groups,
            rows: int = rows,
            width: int = width,
            dtype: torch.dtype = dtype,
        ) -> dict[str, Any]:
            rng = torch.Generator(device).manual_seed(seed)
            given = common_inputs(rng, batch, tokens, groups, width, dtype)
            shape = (batch, tokens, groups)
            given["codes"] = torch.randint(rows, shape, generator=rng, device=device)
            tables = torch.randn(groups, rows, width, generator=rng, device=device)
            return without(given, "mask") | {"tables": tables.to(dtype)}

        size = torch.finfo(dtype).bits // 8
        places = batch * tokens
        # A row that many tokens read comes out of the cache: at most every row once.
        gathered = min(places, rows) * groups * width * size
        written = batch * (tokens + 1) * width * size
        num_bytes = places * groups * 8 + gathered + written
        shape = f"B{batch} N{tokens} G{groups} V{rows} D{width}"
        functions: dict[str, Callable[[Any], Any]] = {
            "kernel": lambda given: codebook_embedding_sum(**without(given, "grad")),
            "sum of gathers": summed_embeddings,
        }
        yield Case("codebook_sum", shape, dtype, num_bytes, functions, make)
        leaves = ("tables", "position", "class_table")
        trained = {name: both_ways(function, leaves) for name, function in functions.items()}
        num_bytes += places * groups * 8 + written + groups * rows * width * 4
        yield Case("codebook_sum fwd+bwd", shape, dtype, num_bytes, trained, make)


def generator_cases(device: torch.device) -> Iterator[Case]:
    """A MaskBit forward with `embedding: fused` beside `plain`."""
    cuda = device.type == "cuda"
    trunk = TransformerConfig(dropout=0.0)
    batch, spec = 64, TokenSpec((16, 16), (2,) * 14)
    if not cuda:
        trunk = TransformerConfig(width=128, num_layers=2, num_heads=4, dropout=0.0)
        batch, spec = 4, TokenSpec((8, 8), (2,) * 14)
    dtype = torch.bfloat16 if cuda else torch.float32
    generators = {}
    for embedding in ("fused", "plain"):
        torch.manual_seed(0)
        config = MaskBitConfig(transformer=trunk, num_classes=1000, embedding=embedding)  # type: ignore[arg-type]
        generators[embedding] = MaskedGenerator(config, spec).to(device, dtype).eval()
    num_bytes = sum(p.numel() * p.element_size() for p in generators["plain"].parameters())
    groups = generators["plain"].num_groups

    def make(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = torch.Generator(device).manual_seed(seed)
        shape = (batch, spec.num_tokens, groups)
        indices = torch.randint(128, shape, generator=rng, device=device)
        mask = torch.rand(shape, generator=rng, device=device) < 0.5
        return indices, mask, torch.randint(1000, (batch,), generator=rng, device=device)

    def run(embedding: str) -> Callable[[Any], Any]:
        def forward(given: Any) -> Any:
            with torch.inference_mode():
                return generators[embedding].predict(*given)

        return forward

    functions = {"kernel": run("fused"), "plain": run("plain")}
    shape = f"B{batch} N{spec.num_tokens} D{trunk.width} L{trunk.num_layers}"
    yield Case("maskbit forward", shape, dtype, num_bytes, functions, make)


def overhead_cases(device: torch.device) -> Iterator[Case]:
    """What a call costs when there is nothing to do: checks, dispatch and one launch."""

    def make(seed: int) -> tuple[Tensor, Tensor]:
        rng = torch.Generator(device).manual_seed(seed)
        codes = torch.randint(8, (1, 1, 1), generator=rng, device=device)
        return codes, torch.randn(3, 16, generator=rng, device=device)

    functions = {
        "kernel": lambda given: bit_embedding(*given, bits_per_group=3, validate=False),
        "one addition": lambda given: given[1] + given[1],
    }
    yield Case(
        "bit_embedding overhead", "B1 N1 K3 D16", torch.float32, 0, functions, make, overhead=True
    )


FAMILIES: dict[str, Callable[[torch.device], Iterator[Case]]] = {
    "bit_embedding": bit_embedding_cases,
    "codebook_sum": codebook_sum_cases,
    "generator": generator_cases,
    "overhead": overhead_cases,
}


def timed(function: Callable[[Any], Any], given: Any, device: torch.device) -> float:
    """Seconds of one call, on CUDA those of the device."""
    if device.type != "cuda":
        return wall_clock(function, given)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function(given)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def wall_clock(function: Callable[[Any], Any], given: Any) -> float:
    """Seconds until one call returns."""
    started = time.perf_counter()
    function(given)
    return time.perf_counter() - started


def captured(function: Callable[[Any], Any], sets: list[Any]) -> Callable[[Any], Any]:
    """A CUDA graph of one call per input set: a kernel of microseconds is not hidden by launches.

    Raises:
        RuntimeError: If a call cannot be captured.
    """
    side = torch.cuda.Stream()
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


def measure(case: Case, device: torch.device, rounds: int, ceiling: float) -> dict[str, Any]:
    """Median times of a case; rounds alternate between functions and rotate input sets."""
    num_sets = 2
    if device.type == "cuda" and case.num_bytes:
        num_sets = min(MAX_SETS, max(2, 2 * L2_BYTES // case.num_bytes + 1))
    sets = [case.make(seed) for seed in range(num_sets)]
    functions, calls, graphs = dict(case.functions), 1, False
    if device.type == "cuda" and not case.overhead:
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
    }
    if case.num_bytes:
        row |= {"gb_per_s": case.num_bytes / ours / 1e9, "bytes": case.num_bytes}
        row["of_ceiling"] = case.num_bytes / ours / ceiling
    return row


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    speed = f"{row['gb_per_s']:9.2f}{row['of_ceiling']:9.1%}" if "bytes" in row else " " * 18
    ratios = "  ".join(f"{name} {ratio:.2f}x" for name, ratio in row["ratios"].items())
    return f"{row['op']:24}{row['shape']:28}{row['dtype']:10}{row['ms']:9.3f}{speed}  {ratios}"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Time of every baseline relative to the kernel, as PNG."""
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
@click.option("--only", type=click.Choice(list(FAMILIES)), multiple=True, help="Operations.")
@click.option("--rounds", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for kernels.json and .png.")
def main(only: tuple[str, ...], rounds: int, threads: int, out: Path | None) -> None:
    """Measure and print the table."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, references only"
    ceiling = bandwidth(device, rounds)
    about = f"torch {torch.__version__}, {name}, {threads} threads, copy {ceiling / 1e9:.1f} GB/s"
    click.echo(about)
    heads = f"{'op':24}{'shape':28}{'dtype':10}{'ms':>9}{'GB/s':>9}{'ceiling':>9}"
    click.echo(f"{heads}  time of others / ours")
    rows = []
    for family, cases in FAMILIES.items():
        if only and family not in only:
            continue
        for case in cases(device):
            rows.append(measure(case, device, rounds, ceiling))
            click.echo(line(rows[-1]))
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    record = {"about": about, "copy_gb_per_s": ceiling / 1e9, "rounds": rounds, "rows": rows}
    (out / "kernels.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    try:
        draw(rows, out / "kernels.png")
    except ImportError:
        click.echo("matplotlib is not installed: no kernels.png")


if __name__ == "__main__":
    main()
