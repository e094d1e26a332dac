"""Cost of tokenizer training on this machine: step, convolutions, and data loader.

    python benchmarks/training.py [--config FILE] [--out FILE.json] [key.sub=value ...]

The step is that of `train/tokenizer.py` (forward, losses, backward, clipping, optimizer, average),
after the start of the adversarial loss where the config has one. Its variants, fp32 and bf16,
channels-last and contiguous, alternate in every round, so that other load of the machine affects
all of them equally; medians over rounds are reported. The share of the convolutions is relative to
the own time of all operators, and includes their backward passes and layout reorders.
"""

import dataclasses
import json
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import click
import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from tessella.config import ConfigError, load_config
from tessella.data.image_source import DataError
from tessella.data.loader import ImageDataset, make_loader
from tessella.data.sources import open_source
from tessella.files import atomic_file, check_file
from tessella.train.engine import build_accelerator, seed_step
from tessella.train.layout import Layout
from tessella.train.tokenizer import DEFAULT_CONFIG
from tessella.train.tokenizer_recipe import TrainTokenizerConfig, resolve
from tessella.train.tokenizer_run import TokenizerRun

Precision = Literal["no", "bf16"]
VARIANTS: tuple[tuple[Precision, Layout], ...] = (
    ("no", "channels_last"),
    ("no", "contiguous"),
    ("bf16", "channels_last"),
    ("bf16", "contiguous"),
)
NAMES = {"no": "fp32", "bf16": "bf16"}


class Step:
    """One training step of a config, in one precision and one memory layout."""

    def __init__(self, config: TrainTokenizerConfig, precision: Precision, layout: Layout) -> None:
        run = dataclasses.replace(config.run, mixed_precision=precision, memory_format=layout)
        config = dataclasses.replace(config, run=run)
        AcceleratorState._reset_state(True)  # accelerate allows one precision per process
        self.name = f"{NAMES[precision]} {layout.replace('_', '-')}"
        self.seed, self.run = run.seed, TokenizerRun(config, build_accelerator(run, Path()))
        self._accelerate = dict(AcceleratorState._shared_state)
        adversarial = config.adversarial
        if adversarial is not None:
            self.run.step = adversarial.start_step + adversarial.ramp_steps

    def __call__(self, images: Tensor) -> None:
        """Train on one batch; always the same step number, so that rates and weights stay."""
        AcceleratorState._shared_state.update(self._accelerate)
        seed_step(self.seed, self.run.step, 0)
        self.run.train_batch(images)
        self.run.ema.update(self.run.tokenizer)
        self.run.codes.reset()


def batches(config: TrainTokenizerConfig, resolution: int, count: int) -> Iterator[dict[str, Any]]:
    """Yield the first batches of a run, augmented as the config says."""
    source = open_source(config.data.source, "train")
    dataset = ImageDataset(source, resolution, config.data.augment, seed=config.run.seed)
    dataset.preload()
    size, workers = config.run.batch_size_per_device, config.data.num_workers
    return iter(make_loader(dataset, size, num_steps=count, num_workers=workers))


def time_loader(config: TrainTokenizerConfig, resolution: int, count: int) -> float:
    """Images per second of the loader alone, with every image decoded beforehand."""
    loader = batches(config, resolution, count + 1)
    next(loader)
    started = time.perf_counter()
    images = sum(len(batch["images"]) for batch in loader)
    return images / (time.perf_counter() - started)


def time_steps(steps: list[Step], images: list[Tensor], rounds: int) -> dict[str, list[float]]:
    """Seconds of one step by variant, one value a round; the variants take turns."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for step in steps:  # the first step allocates and picks algorithms
        step(images[0])
    for number in range(rounds):
        batch = images[number % len(images)]
        for step in steps if number % 2 == 0 else reversed(steps):
            started = time.perf_counter()
            step(batch)
            _synchronize(batch)
            seconds[step.name].append(time.perf_counter() - started)
    return seconds


def operator_shares(step: Step, images: list[Tensor]) -> dict[str, float]:
    """Share of each operator's own CPU time in that of all, largest first."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for batch in images:
            step(batch)
    own = {event.key: float(event.self_cpu_time_total) for event in recorded.key_averages()}
    total = sum(own.values())
    return {name: own[name] / total for name in sorted(own, key=lambda n: -own[n])}


def convolution_share(shares: dict[str, float]) -> float:
    """Sum over the convolution operators, forward and backward, layout reorders inside them."""
    return sum(share for name, share in shares.items() if "conv" in name.lower())


def _synchronize(images: Tensor) -> None:
    """Wait for CUDA if the images are on it."""
    if images.is_cuda:
        torch.cuda.synchronize()


def cpu_model() -> str:
    """The processor as the system names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure(config: TrainTokenizerConfig, rounds: int, profiled: int) -> dict[str, Any]:
    """Measure everything in the report.

    Args:
        config: Training config to measure.
        rounds: Number of timed steps of each variant, at least 1.
        profiled: Number of steps under the profiler, at least 1.
    """
    steps = [Step(config, precision, layout) for precision, layout in VARIANTS]
    device = steps[0].run.accelerator.device
    resolution, size = steps[0].run.tokenizer.resolution, config.run.batch_size_per_device
    images = [batch["images"].to(device) for batch in batches(config, resolution, min(rounds, 8))]
    seconds = time_steps(steps, images, rounds)
    speeds = {name: size / statistics.median(values) for name, values in seconds.items()}
    shares = {step.name: operator_shares(step, (images * profiled)[:profiled]) for step in steps}
    loader = time_loader(config, resolution, max(4, rounds))
    return {
        "machine": {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "cpu": cpu_model(),
            "device": str(device),
            "python": platform.python_version(),
        },
        "tokenizer": config.tokenizer.type,
        "parameters": steps[0].run.tokenizer.num_parameters()["total"],
        "resolution": resolution,
        "batch_size": size,
        "rounds": rounds,
        "images_per_second": speeds,
        "seconds_per_step": {
            name: {"median": statistics.median(v), "min": min(v), "max": max(v)}
            for name, v in seconds.items()
        },
        "convolution_share": {name: convolution_share(s) for name, s in shares.items()},
        "top_operators": {name: dict(list(s.items())[:12]) for name, s in shares.items()},
        "loader_images_per_second": loader,
        "loader_workers": config.data.num_workers,
        "loader_over_training": {name: loader / speed for name, speed in speeds.items()},
    }


def report(result: dict[str, Any], name: str) -> str:
    """Format the result as text."""
    machine = result["machine"]
    lines = [
        f"{name}: {result['parameters']:,} parameters, {result['resolution']} pixels, "
        f"batches of {result['batch_size']}",
        f"torch {machine['torch']}, {machine['threads']} threads, {machine['cpu']}, "
        f"{machine['device']}",
        "",
        f"{'training step':<22}{'images/s':>10}{'s/step':>9}{'min':>8}{'max':>8}"
        f"{'loader/step':>13}",
    ]
    for variant, speed in result["images_per_second"].items():
        seconds = result["seconds_per_step"][variant]
        lines.append(
            f"{variant:<22}{speed:>10.1f}{seconds['median']:>9.3f}{seconds['min']:>8.3f}"
            f"{seconds['max']:>8.3f}{result['loader_over_training'][variant]:>12.1f}x"
        )
    lines.append(
        f"{'loader alone':<22}{result['loader_images_per_second']:>10.1f}"
        f"   ({result['loader_workers']} workers)"
    )
    for variant, share in result["convolution_share"].items():
        lines += ["", f"{variant}: {share:.1%} of operator time in convolutions; by operator:"]
        lines += [f"  {s:>6.1%}  {op}" for op, s in result["top_operators"][variant].items()]
    return "\n".join(lines)


@click.command()
@click.option("--config", type=click.Path(path_type=Path), default=DEFAULT_CONFIG)
@click.option("--out", type=click.Path(path_type=Path), help="Write the result as JSON.")
@click.option("--rounds", type=click.IntRange(min=1), default=15, help="Timed steps per variant.")
@click.option("--profiled", type=click.IntRange(min=1), default=4, help="Steps under the profiler.")
@click.argument("overrides", nargs=-1)
def main(
    config: Path,
    out: Path | None,
    rounds: int,
    profiled: int,
    overrides: tuple[str, ...],
) -> None:
    """Measure the training of a config; OVERRIDES are key.sub=value."""
    if out is not None:
        check_file(out, "measurement", overwrite=False, ours=lambda _: False)
    try:
        loaded = resolve(load_config(TrainTokenizerConfig, config, overrides))
        result = measure(loaded, rounds, profiled)
    except (ConfigError, DataError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(report(result, config.stem))
    if out is not None:
        with atomic_file(out) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
