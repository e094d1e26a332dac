"""Speed of the masked sampler compared with a plain form of the published algorithm.

    python benchmarks/sampling.py [--generator bundled:maskbit-emoji-64] [--num 16] [--num-steps 16]

The plain form follows arXiv:2409.16211's description step by step: both guided passes in every
step, `torch.multinomial` over the flattened slots, a threshold by `kthvalue`, counts read back to
the host. Both use the same weights, precision, labels, steps and guidance; rounds alternate, the
medians are compared. The last column is the share of the time spent in the network.
"""

import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

import tessella
from tessella.files import atomic_file, check_file
from tessella.generators.masked import MaskBitConfig, MaskedGenerator
from tessella.generators.networks.bert import TransformerConfig
from tessella.sample.generate import Precision, generate
from tessella.tokens.tokens import TokenSpec


@torch.no_grad()
def plain_form(
    generator: MaskedGenerator, labels: Tensor, num_steps: int, guidance: float, randomness: float
) -> Tensor:
    """Published sampler without optimizations: arccos schedule, cosine guidance.

    Returns:
        Indices, shape (B, N, G).
    """
    batch, shape = len(labels), (generator.spec.num_tokens, generator.num_groups)
    size, slots = generator.codebook_sizes[0], math.prod(shape)
    indices = torch.zeros(batch, *shape, dtype=torch.int64)
    hidden = torch.ones(batch, *shape, dtype=torch.bool)
    nothing = torch.full_like(labels, generator.num_classes)
    drawn = indices
    for step in range(num_steps):
        t = (step + 1) / num_steps
        cond = generator.predict(indices, hidden, labels)
        uncond = generator.predict(indices, hidden, nothing)
        scale = (guidance - 1) * (1 - math.cos(math.pi * step / num_steps)) / 2
        logits = cond + scale * (cond - uncond)
        p = logits.softmax(-1)
        drawn = torch.multinomial(p.view(-1, size), 1).view(batch, *shape)
        drawn = torch.where(hidden, drawn, indices)
        log_p = p.gather(-1, drawn[..., None])[..., 0].log()
        noise = -torch.log(-torch.log(torch.rand_like(log_p).clamp(1e-20, 1 - 1e-7)))
        confidence = (log_p + randomness * (1 - t) * noise).masked_fill(~hidden, math.inf)
        left = int(hidden[0].sum())
        keep = min(max(math.floor(math.acos(t) / (math.pi / 2) * slots), 1), max(left - 1, 1))
        threshold = confidence.view(batch, -1).kthvalue(keep, 1).values[:, None, None]
        hidden = confidence <= threshold
        indices = drawn
    return drawn


def open_generator(name: str) -> MaskedGenerator:
    """Load a model folder; `maskbit-305m` is the published size with random weights."""
    if name == "maskbit-305m":
        config = MaskBitConfig(num_classes=1000, transformer=TransformerConfig())
        return MaskedGenerator(config, TokenSpec((16, 16), (2,) * 14)).eval()
    generator = tessella.load_generator(name)
    assert isinstance(generator, MaskedGenerator)
    return generator


@click.command()
@click.option("--generator", "name", default="bundled:maskbit-emoji-64", show_default=True)
@click.option("--num", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--num-steps", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--guidance", type=float, default=3.0, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="JSON to write.")
def main(
    name: str,
    num: int,
    num_steps: int,
    guidance: float,
    rounds: int,
    threads: int,
    out: Path | None,
) -> None:
    """Print the table."""
    if out is not None:
        check_file(out, "measurement", overwrite=False, ours=lambda _: False)
    torch.set_num_threads(threads)
    generator = open_generator(name)
    labels = torch.arange(num) % max(1, generator.num_classes)
    inside = 0.0
    predict = generator.predict

    def timed(*arguments: Any) -> Tensor:
        nonlocal inside
        started = time.perf_counter()
        logits = predict(*arguments)
        inside += time.perf_counter() - started
        return logits

    def ours(sampler: str = "confidence", precision: Precision = "fp32") -> None:
        generate(
            generator,
            labels,
            num_steps=num_steps,
            sampler=sampler,
            guidance=guidance,
            schedule="arccos",
            guidance_schedule="cosine",
            guidance_power=1.0,
            randomness=4.0,
            batch_size=num,
            precision=precision,
        )

    ways: dict[str, Callable[[], object]] = {
        "plain form, fp32": lambda: plain_form(generator, labels, num_steps, guidance, 4.0),
        "confidence, fp32": ours,
        "halton, fp32": lambda: ours("halton"),
        "entropy, fp32": lambda: ours("entropy"),
        "confidence, bf16": lambda: ours(precision="bf16"),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    shares: dict[str, list[float]] = {way: [] for way in ways}
    generator.predict = timed  # type: ignore[method-assign, assignment]
    for turn in range(rounds + 1):  # the first one warms up
        for way, run in ways.items():
            inside, started = 0.0, time.perf_counter()
            run()
            total = time.perf_counter() - started
            if turn:
                seconds[way].append(total)
                shares[way].append(inside / total)
    base = statistics.median(seconds["plain form, fp32"])
    click.echo(
        f"{name}: {generator.num_parameters()['total']:,} parameters, {generator.masked_spec}, "
        f"{num} images, {num_steps} steps, guidance {guidance:g}; torch {torch.__version__}, "
        f"{threads} threads"
    )
    click.echo(f"{'':20}{'s':>8}{'images/s':>10}{'speed-up':>10}{'network':>10}")
    rows = {}
    for way in ways:
        median, share = statistics.median(seconds[way]), statistics.median(shares[way])
        rows[way] = {"seconds": median, "speed_up": base / median, "network_share": share}
        click.echo(
            f"{way:20}{median:8.2f}{num / median:10.2f}{base / median:9.2f}x{100 * share:9.1f}%"
        )
    if out is not None:
        record = {"generator": name, "num_steps": num_steps, "rows": rows}
        with atomic_file(out) as path:
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
