"""Time to draw by words, beside labels alone: the same network with and without text.

    python benchmarks/prompts.py [--generator bundled:maskbit-emoji-64] [--num 16] [--num-steps 16]
                                 [--guidance 3] [--rounds 10] [--threads 2]

Two generators of the config of `--generator` are built with random weights, one with the text
encoder `words` and one without. Rounds alternate; the prompts are captions of the bundled emoji,
other ones in every round. Medians in seconds for drawing and decoding `--num` pictures, and the
median of the ratios within a round.
"""

import dataclasses
import statistics
import time
from typing import Any

import click
import torch

from tessella.checkpoints import load_generator
from tessella.data.sources import open_source
from tessella.generators.base import Generator
from tessella.generators.build import build_generator
from tessella.generators.conditions import TextConfig
from tessella.sample.pictures import generate_images


def seconds(generator: Generator, **how: Any) -> float:
    """Seconds to draw pictures."""
    start = time.perf_counter()
    generate_images(generator, **how)
    return time.perf_counter() - start


@click.command()
@click.option("--generator", "path", default="bundled:maskbit-emoji-64", show_default=True)
@click.option("--num", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--num-steps", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--guidance", type=float, default=3.0, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
def main(path: str, num: int, num_steps: int, guidance: float, rounds: int, threads: int) -> None:
    """Print the times of both, and their ratio."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    loaded = load_generator(path)
    pair = []
    for text in (None, TextConfig()):
        generator = build_generator(dataclasses.replace(loaded.config, text=text), loaded.spec)
        generator.tokenizer = loaded.tokenizer
        pair.append(generator.eval())
    labels_only, words = pair
    source = open_source("bundled:emoji")
    captions = [source.read(i).caption or "" for i in range(len(source))]
    settings: dict[str, Any] = {"guidance": guidance, "seeds": range(num), "batch_size": num}
    if loaded.config.type != "ar":  # which draws as many steps as there are positions
        settings["num_steps"] = num_steps
    labels = [i % max(1, loaded.num_classes) for i in range(num)] if loaded.num_classes else None
    plain, asked = [], []
    for number in range(rounds + 1):
        first = number * num % (len(captions) - num)
        prompts = captions[first : first + num]
        times = (
            seconds(labels_only, labels=labels, **settings),
            seconds(words, prompts=prompts, **settings),
        )
        if number:  # the first round warms up
            plain.append(times[0])
            asked.append(times[1])
    ratios = [b / a for a, b in zip(plain, asked, strict=True)]
    click.echo(
        f"{loaded.config.type}, {num} pictures: labels {statistics.median(plain):.3f} s, words "
        f"{statistics.median(asked):.3f} s, ratio {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
