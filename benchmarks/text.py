"""Time of the text encoders, for captions of the bundled emoji.

    python benchmarks/text.py [--rounds 300] [--threads 1]

`new` is a text that was not read before, `again` one that was; both are medians of single texts in
milliseconds, in eval mode without gradients. `batch` is a batch of 64 texts that were read before.
`load` is the first text of all, in seconds. `minilm` has a line where its packages are installed.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import click
import torch

from tessella.data.sources import open_source
from tessella.text.build import TextEncoderConfig, build_text_encoder
from tessella.text.byte_text import BytesConfig
from tessella.text.minilm import MiniLMConfig, installed
from tessella.text.words import WordsConfig

BATCH = 64


def seconds(work: Callable[[], Any]) -> float:
    """Seconds of one run of `work`."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median(encoder: torch.nn.Module, batches: Sequence[list[str]]) -> float:
    """Median milliseconds of a batch."""
    times = [seconds(lambda batch=batch: encoder(batch)) for batch in batches]  # type: ignore[misc]
    return statistics.median(times) * 1e3


@click.command()
@click.option("--rounds", type=click.IntRange(min=1, max=1300), default=300, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@torch.no_grad()
def main(rounds: int, threads: int) -> None:
    """Print a line for each encoder."""
    torch.set_num_threads(threads)
    source = open_source("bundled:emoji")
    texts = list(dict.fromkeys(source.read(i).caption or "" for i in range(len(source))))
    singles = [[text] for text in texts[:rounds]]
    batches = [texts[i : i + BATCH] for i in range(0, len(texts) - BATCH, BATCH)]
    configs: list[TextEncoderConfig] = [WordsConfig(), BytesConfig()]
    for config in [*configs, MiniLMConfig()] if installed() else configs:
        encoder = build_text_encoder(config).eval()
        load = seconds(lambda: encoder(["a text"]))  # noqa: B023  # called before the next encoder
        new, again = median(encoder, singles), median(encoder, singles)
        median(encoder, batches)
        batch = median(encoder, batches)
        line = f"new {new:.2f} ms, again {again:.2f} ms, batch {batch:.1f} ms, load {load:.1f} s"
        click.echo(f"{config.type}: {line}")


if __name__ == "__main__":
    main()
