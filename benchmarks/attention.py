"""Which attention is fastest here: the figures behind `attention: auto`.

    python benchmarks/attention.py [--threads 2] [--rounds 7]

Forward, and forward with backward, of every installed backend on the same random tensors; rounds
alternate, medians in milliseconds.
"""

import importlib.util
import statistics
import time

import click
import torch

from tessella.generators.attention import AttentionBackend, attention

SHAPES = ((64, 65, 6, 32), (16, 257, 16, 64), (2, 1025, 16, 64))
"""(B, N, heads, dim): the emoji generator in training, MaskBit at 256 pixels, a 32x32 grid."""


@click.command()
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True)
def main(threads: int, rounds: int) -> None:
    """Print the table."""
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backends: list[AttentionBackend] = ["sdpa", "plain"]
    if importlib.util.find_spec("xformers") and device == "cuda":
        backends.append("xformers")
    click.echo(f"torch {torch.__version__}, {device}, {threads} threads; ms")
    click.echo(f"{'dtype':10}{'B,N,H,d':18}{'pass':10}" + "".join(f"{b:>10}" for b in backends))
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            inputs = [torch.randn(shape, dtype=dtype, device=device) for _ in range(3)]
            for backward in (False, True):
                times: dict[str, list[float]] = {backend: [] for backend in backends}
                for turn in range(rounds + 1):
                    for backend in backends:
                        qkv = [x.detach().requires_grad_(backward) for x in inputs]
                        started = time.perf_counter()
                        out = attention(*qkv, backend=backend)  # type: ignore[misc]
                        if backward:
                            out.sum().backward()
                        if device == "cuda":
                            torch.cuda.synchronize()
                        if turn:
                            times[backend].append(time.perf_counter() - started)
                medians = [1000 * statistics.median(times[backend]) for backend in backends]
                name, sizes = str(dtype).removeprefix("torch."), ",".join(map(str, shape))
                both = "both" if backward else "forward"
                click.echo(f"{name:10}{sizes:18}{both:10}" + "".join(f"{m:10.2f}" for m in medians))


if __name__ == "__main__":
    main()
