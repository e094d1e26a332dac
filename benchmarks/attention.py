"""Benchmark of the attention implementations, from which rules for `attention: auto` are made.

    python benchmarks/attention.py [--threads 2] [--rounds 7] [--out rules.yaml]

Times forward, and forward with backward, of every kernel that runs on this machine on the same
random tensors; rounds alternate, and medians are printed in milliseconds. `--out` writes the
fastest kernel of each kind of call as rules, which TESSELLA_ATTENTION_RULES=rules.yaml puts before
the built-in ones. `low_bit` quantizes: its times are forward only, and its rules hold for
`attention: fastest` alone.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click
import torch
from torch import Tensor

from tessella.config import to_yaml
from tessella.files import atomic_file, check_file
from tessella.generators.networks.attention import compute_attention
from tessella.generators.networks.attention_rules import (
    HEADS,
    LENGTHS,
    AttentionKernel,
    AttentionRule,
    RuleFile,
    class_of,
)

SHAPES = {
    "cpu": ((64, 65, 6, 32), (16, 257, 16, 64), (2, 1025, 16, 64)),
    "cuda": tuple(
        (max(1, 65536 // (n * heads)), n, heads, dim)
        for heads, dim in ((16, 32), (16, 64), (16, 128))
        for n in (65, 257, 577, 1024, 2304, 4096)
    ),
}
"""(B, N, heads, dim): on a CPU the emoji generator in training, MaskBit at 256 pixels, a 32 x 32
grid; on CUDA one length of every class for every usual head."""


def seconds_of(kernel: AttentionKernel, inputs: list[Tensor], *, backward: bool) -> float:
    """Wall-clock time of one call in seconds; on CUDA including all kernels that it starts."""
    q, k, v = (x.detach().requires_grad_(backward) for x in inputs)
    wait: Callable[[], Any] = torch.cuda.synchronize if q.is_cuda else lambda: None
    wait()
    started = time.perf_counter()
    out = compute_attention(kernel, q, k, v)
    if backward:
        torch.autograd.backward(out.sum())
    wait()
    return time.perf_counter() - started


def medians(inputs: list[Tensor], *, backward: bool, rounds: int) -> dict[AttentionKernel, float]:
    """Median milliseconds of every kernel that accepts these inputs."""
    times: dict[AttentionKernel, list[float]] = {}
    for kernel in get_args(AttentionKernel):
        if kernel == "low_bit" and (backward or not inputs[0].is_cuda):
            continue
        if kernel in ("cudnn", "flash", "efficient") and not inputs[0].is_cuda:
            continue
        try:
            seconds_of(kernel, inputs, backward=backward)
        except (RuntimeError, ValueError, NotImplementedError):
            continue
        times[kernel] = []
    for _ in range(rounds):
        for kernel, values in times.items():
            values.append(seconds_of(kernel, inputs, backward=backward))
    return {kernel: 1000 * statistics.median(values) for kernel, values in times.items()}


def rules_of(row: dict[str, Any], about: str) -> list[AttentionRule]:
    """Rules from a row: `low_bit` first if it is the fastest, then the fastest exact one."""
    found = []
    exact = {kernel: ms for kernel, ms in row["ms"].items() if kernel != "low_bit"}
    best = min(exact, key=lambda kernel: exact[kernel])
    kernels: list[AttentionKernel] = [best]
    if row["ms"].get("low_bit", exact[best]) < exact[best]:
        kernels.insert(0, "low_bit")
    _, tokens, _, dim = row["shape"]
    length, head = class_of(tokens, LENGTHS), class_of(dim, HEADS)
    for kernel in kernels:
        found.append(
            AttentionRule(
                way=kernel,
                source=f"{about}: {row['ms'][kernel]:.3f} ms",
                device=row["device"],
                tokens=(length, length),
                head_dims=(head, head),
                half=row["half"],
                training=row["training"],
            )
        )
    return found


@click.command()
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="YAML of rules to write.")
def main(threads: int, rounds: int, out: Path | None) -> None:
    """Print the table and write the rules."""
    if out is not None:
        check_file(out, "file of rules", overwrite=False, ours=lambda _: False)
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    about = f"benchmarks/attention.py, torch {torch.__version__}, {name}, {threads} threads"
    click.echo(f"{about}; ms")
    rules: list[AttentionRule] = []
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES[device.type]:
            inputs = [torch.randn(shape, device=device).to(dtype) for _ in range(3)]
            for backward in (False, True):
                ms = medians(inputs, backward=backward, rounds=rounds)
                row = {
                    "shape": shape,
                    "device": name,
                    "half": dtype.itemsize == 2,
                    "training": backward,
                    "ms": ms,
                }
                rules += rules_of(row, about)
                sizes = ",".join(map(str, shape))
                kind = str(dtype).removeprefix("torch.")
                both = "both" if backward else "forward"
                found = "  ".join(f"{kernel} {value:.2f}" for kernel, value in ms.items())
                click.echo(f"{kind:10}{sizes:18}{both:10}{found}")
    if out is not None:
        with atomic_file(out) as path:
            path.write_text(to_yaml(RuleFile(about=about, rules=tuple(rules))), encoding="utf-8")
        click.echo(f"{len(rules)} rules in {out}; classes of lengths {LENGTHS}")


if __name__ == "__main__":
    main()
