"""Time to load model folders, and what it is spent on.

    python benchmarks/loading.py [--rounds 5] [--threads 1]

Two models of published sizes with random weights are written to a temporary folder: MaskBit's
generator of 305M parameters and its 14-bit tokenizer. `load` is the whole, from a file in the page
cache; `hash` is the fingerprint of config and weights, which is checked before anything is built;
`build` is the network on the meta device; `fill` copies the weights. The last column is the initial
weights that loading does without. Medians in seconds, and the largest memory of the process.
"""

import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import load_file
from torch import nn

from tessella.building import build_on_meta, fill
from tessella.checkpoints import load_generator, load_tokenizer, save_generator, save_tokenizer
from tessella.config import read_yaml
from tessella.generators.build import build_generator
from tessella.generators.masked import MaskBitConfig
from tessella.model_folders import fingerprint
from tessella.tokenizers.build import build_tokenizer, tokenizer_config

RECIPE = Path(__file__).parents[1] / "configs" / "tokenizer" / "maskbit_14bit_256.yaml"


def median(work: Callable[[], Any], rounds: int) -> float:
    """Median seconds of some runs of `work`."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def parts(folder: Path, build: Callable[[], nn.Module], rounds: int) -> dict[str, float]:
    """Seconds of the parts of loading a folder."""
    config, weights = read_yaml(folder / "config.yaml"), folder / "model.safetensors"
    state = load_file(weights)
    return {
        "hash": median(lambda: fingerprint(config, load_file(weights)), rounds),
        "build": median(lambda: build_on_meta(build), rounds),
        "fill": median(lambda: fill(build_on_meta(build), state), rounds),
        "initial weights": median(build, 1),
    }


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
def main(rounds: int, threads: int) -> None:
    """Print a line for each model."""
    torch.set_num_threads(threads)
    config = tokenizer_config(read_yaml(RECIPE)["tokenizer"], name=str(RECIPE))
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        tokenizer = build_tokenizer(config)
        save_tokenizer(tokenizer, root / "tokenizer")
        make = partial(build_generator, MaskBitConfig(num_classes=1000), tokenizer.spec)
        save_generator(make(), root / "generator", tokenizer_path=root / "tokenizer")
        found, rebuild = load_tokenizer(root / "tokenizer"), partial(build_tokenizer, config)
        for name, load, build in (
            ("tokenizer", partial(load_tokenizer, root / "tokenizer"), rebuild),
            ("generator", partial(load_generator, root / "generator", tokenizer=found), make),
        ):
            size = (root / name / "model.safetensors").stat().st_size / 1e6
            seconds = {"load": median(load, rounds)} | parts(root / name, build, rounds)
            words = ", ".join(f"{part} {value:.2f} s" for part, value in seconds.items())
            click.echo(f"{name} of {size:,.0f} MB: {words}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    click.echo(f"largest memory of the process: {peak:.1f} GB")


if __name__ == "__main__":
    main()
