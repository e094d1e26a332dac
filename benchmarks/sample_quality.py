"""How good a generator's samples are, over sampling steps and guidance: distance and neighbours.

    python benchmarks/sample_quality.py --generator bundled:maskbit-emoji-64 --data bundled:emoji \
        --num 1381 --num-steps 4,8,16,32 --guidance 1,2,3 --features inception_fid --out FOLDER

Samples have the class histogram of the training split, in shuffled order; image i has seed
`--seed` + i. Each setting's samples are compared with every training image, on 8-bit pixels. The
floor is what the validation split gets, beside the first samples in equal number. FOLDER receives
`quality.json` (rewritten after every setting), `curve.png`, and of the setting with the smallest
distance (first network) `samples.png`, `nearest.png` and, in the JSON, its nearest neighbours.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

import tessella
from tessella.data.image_source import DataError, ImageSource
from tessella.data.images import image_grid, save_png, to_uint8
from tessella.data.loader import eval_batches
from tessella.data.sources import open_source
from tessella.files import atomic_file
from tessella.generators.base import Generator
from tessella.sample.generate import choose_sampling
from tessella.sample.metrics.features import WeightsError
from tessella.sample.nearest import nearest_training_images
from tessella.sample.quality import (
    Reference,
    build_reference,
    measure_samples,
)

NUM_SHOWN = 8
"""Samples in the picture of nearest neighbours."""
NUM_GRID = 64


@dataclass(frozen=True)
class Setting:
    """One point of the sweep."""

    num_steps: int
    guidance: float


Sampler = Callable[[Setting], Iterable[Tensor]]
"""All samples of a setting as batches (B, 3, H, W) in [-1, 1]."""


def labels_like(counts: Tensor, num: int, seed: int) -> list[int]:
    """Labels in the proportions of a histogram, largest remainders first, in shuffled order.

    Args:
        counts: Images of each class, int64, shape (num_classes,).
        num: Labels to make.
        seed: Of the order.
    """
    shares = counts * num
    whole = shares // counts.sum()
    remainders = shares - whole * counts.sum()
    missing = num - int(whole.sum())
    whole[remainders.argsort(descending=True, stable=True)[:missing]] += 1
    labels = torch.arange(len(counts)).repeat_interleave(whole)
    return labels[torch.randperm(num, generator=torch.Generator().manual_seed(seed))].tolist()


def choose_labels(
    generator: Generator, source: ImageSource, num: int, seed: int
) -> list[int] | None:
    """Labels in the proportions of the source; None for a generator without classes.

    Raises:
        ValueError: If the classes of the two differ, or the source has no labels.
    """
    if not generator.num_classes:
        return None
    if generator.classes and generator.classes != source.classes:
        raise ValueError(f"the generator's classes are not those of {source.name}")
    batches = eval_batches(source, 16, 256)
    labels = torch.cat([batch["labels"] for batch in batches])
    if bool(((labels < 0) | (labels >= generator.num_classes)).any()):
        raise ValueError(
            f"{source.name}: expected a label from 0 to {generator.num_classes - 1} on every image"
        )
    return labels_like(labels.bincount(minlength=generator.num_classes), num, seed)


@torch.no_grad()
def draw(
    generator: Generator,
    labels: list[int] | None,
    setting: Setting,
    *,
    num: int,
    seed: int,
    batch_size: int,
) -> Iterator[Tensor]:
    """Batches of decoded samples."""
    for start in range(0, num, batch_size):
        stop = min(start + batch_size, num)
        tokens = tessella.generate(
            generator,
            None if labels is None else labels[start:stop],
            num_steps=setting.num_steps,
            guidance=setting.guidance,
            seeds=range(seed + start, seed + stop),
            batch_size=batch_size,
        )
        yield generator.tokenizer.decode(tokens)


def sweep(
    sampler: Sampler,
    settings: Iterable[Setting],
    references: list[Reference],
    on_row: Callable[[list[dict[str, Any]]], None],
) -> Tensor:
    """Sample and measure every setting.

    Args:
        sampler: What is measured.
        settings: In this order.
        references: One per feature network; the first one decides which setting is best.
        on_row: Called with all rows so far after every setting.

    Returns:
        The samples of the best setting as 8-bit pixels, shape (B, 3, H, W).
    """
    rows: list[dict[str, Any]] = []
    best: tuple[float, Tensor] | None = None
    for setting in settings:
        started = time.perf_counter()
        pixels = torch.cat([to_uint8(batch).cpu() for batch in sampler(setting)])
        seconds = time.perf_counter() - started
        row = asdict(setting) | {"seconds": seconds, "images_per_second": len(pixels) / seconds}
        row["measures"] = [
            measure_samples(
                (as_floats(part) for part in pixels.split(256)),
                reference.source,
                resolution=reference.resolution,
                reference=reference,
            )
            for reference in references
        ]
        rows.append(row)
        distance = row["measures"][0][references[0].metric]
        if best is None or distance < best[0]:
            best = distance, pixels
        on_row(rows)
    if best is None:
        raise ValueError("expected at least one setting")
    return best[1]


def as_floats(pixels: Tensor) -> Tensor:
    """8-bit pixels to [-1, 1]; `to_uint8` gives them back."""
    return pixels.float() / 127.5 - 1


def draw_curve(rows: list[dict[str, Any]], metrics: list[str], path: Path) -> None:
    """Distance over guidance, one line per number of steps; over steps if guidance is one value."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    over, line = "guidance", "num_steps"
    if len({row["guidance"] for row in rows}) == 1:
        over, line = line, over
    figure = Figure(figsize=(5 * len(metrics), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for number, metric in enumerate(metrics):
        axes = figure.add_subplot(1, len(metrics), number + 1)
        for value in sorted({row[line] for row in rows}):
            chosen = sorted((r for r in rows if r[line] == value), key=lambda row: row[over])
            points = [row["measures"][number][metric] for row in chosen]
            name = f"{line.removeprefix('num_')} {value:g}"
            axes.plot([row[over] for row in chosen], points, marker="o", label=name)
        measured = rows[0]["measures"][number]
        axes.set_title(f"{metric}, {measured['num_samples']:,} samples", fontsize=10)
        axes.set_xlabel(over.removeprefix("num_"), fontsize=9)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


class Numbers(click.ParamType):
    """A list like 4,8,16."""

    name = "list"

    def __init__(self, kind: type[int] | type[float], least: float) -> None:
        self.kind, self.least = kind, least

    def convert(self, value: Any, param: Any, ctx: Any) -> list[Any]:
        if isinstance(value, list):
            return value
        try:
            numbers = [self.kind(word) for word in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r}: expected numbers like 1,2,3", param, ctx)
        if not all(number >= self.least for number in numbers):
            self.fail(f"{value!r}: expected numbers >= {self.least:g}", param, ctx)
        return numbers


@click.command()
@click.option("--generator", "name", default="bundled:maskbit-emoji-64", show_default=True)
@click.option("--data", default="bundled:emoji", show_default=True)
@click.option("--num", type=click.IntRange(min=2), default=1381, show_default=True)
@click.option("--num-steps", type=Numbers(int, 1), default="16", help="One or several: 4,8,16.")
@click.option("--guidance", type=Numbers(float, 0), default="2", help="One or several; 1 = off.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--features", default="auto", show_default=True, help="One or several networks.")
@click.option("--num-nearest", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True)
def main(
    name: str,
    data: str,
    num: int,
    num_steps: list[int],
    guidance: list[float],
    seed: int,
    features: str,
    num_nearest: int,
    batch_size: int,
    device: str,
    out: Path,
) -> None:
    """Measure, draw, write."""
    try:
        generator = tessella.load_generator(name, device=device)
        source = open_source(data, "train")
        labels = choose_labels(generator, source, num, seed)
        report: dict[str, Any] = {
            "generator": name,
            "fingerprint": generator.fingerprint,
            "tokenizer": generator.tokenizer.fingerprint,
            "data": data,
            "num": num,
            "seed": seed,
            "labels": "none" if labels is None else "histogram of the training split, shuffled",
            "sampling": asdict(choose_sampling(generator, None, {})),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": device,
        }

        def sampler(setting: Setting) -> Iterator[Tensor]:
            return draw(generator, labels, setting, num=num, seed=seed, batch_size=batch_size)

        run(
            sampler,
            source,
            validation_of(data),
            generator.tokenizer.resolution,
            [Setting(steps, scale) for steps in num_steps for scale in guidance],
            report,
            out,
            features=features.split(","),
            num_nearest=num_nearest,
            batch_size=batch_size,
            device=device,
        )
    except (ValueError, OSError, WeightsError) as error:
        raise click.ClickException(str(error)) from None


def validation_of(data: str) -> ImageSource | None:
    """The validation split, or None where there is none."""
    try:
        return open_source(data, "val")
    except DataError:
        return None


def run(
    sampler: Sampler,
    source: ImageSource,
    validation: ImageSource | None,
    resolution: int,
    settings: list[Setting],
    report: dict[str, Any],
    out: Path,
    *,
    features: list[str],
    num_nearest: int = 128,
    batch_size: int = 32,
    device: str = "cpu",
) -> None:
    """Everything after the generator is loaded; `report` is written with the rows added."""
    out.mkdir(parents=True, exist_ok=True)
    references = [
        build_reference(
            source,
            resolution=resolution,
            features=network,
            validation=validation,
            batch_size=batch_size,
            device=device,
            progress=True,
        )
        for network in features
    ]
    metrics = [reference.metric for reference in references]

    def keep(rows: list[dict[str, Any]]) -> None:
        row = rows[-1]
        values = [
            f"{metric} {measured[metric]:.2f}"
            for metric, measured in zip(metrics, row["measures"], strict=True)
        ]
        click.echo(
            f"{row['num_steps']} steps, guidance {row['guidance']:g}: {', '.join(values)}; "
            f"{row['images_per_second']:.1f} images/s"
        )
        report["rows"] = rows
        with atomic_file(out / "quality.json") as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        if len(rows) > 1:
            draw_curve(rows, metrics, out / "curve.png")

    best = sweep(sampler, settings, references, keep)
    save_png(image_grid(as_floats(best[:NUM_GRID]), 8), out / "samples.png")
    nearest = nearest_training_images(
        as_floats(best[:num_nearest]),
        source,
        resolution,
        features=references[0].extractor,
        validation=validation,
        num_shown=NUM_SHOWN,
        batch_size=batch_size,
        device=device,
        progress=True,
    )
    save_png(nearest.picture, out / "nearest.png")
    report["nearest"] = nearest.to_dict()
    with atomic_file(out / "quality.json") as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for who in ("samples", "validation"):
        if who in report["nearest"]:
            found = report["nearest"][who]
            click.echo(
                f"{who}: median distance to the nearest training image "
                f"{found['feature_distance']['median']:.3f} by features, "
                f"{found['pixel_distance']['median']:.1f} by pixels"
            )


if __name__ == "__main__":
    main()
