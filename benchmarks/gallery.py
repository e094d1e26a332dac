r"""Comparison of generators on the same labels: pictures, size, steps, seconds and FID.

    python benchmarks/gallery.py --row "MaskBit=bundled:maskbit-emoji-64" \
        --row "BLD=runs/bld" --report "BLD=runs/eval/bld" --out gallery

Each generator samples with the settings of its card. All sample the same classes with the same
seeds. Times include network and decoder for one batch per generator and round, after one round that
is not counted. The generators alternate in one process, so that other load of the machine affects
all of them equally; medians are compared. FIDs are not measured here: they are read from folders
that `tessella evaluate --out` wrote, and are refused if they belong to other weights or settings or
differ in protocol.
"""

import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import click
import torch

import tessella
from tessella.cli.options import one_clear_error
from tessella.data.images import image_grid, save_png
from tessella.files import atomic_folder, check_replaceable
from tessella.generators.base import Generator
from tessella.sample.generate import generate
from tessella.sample.samplers import choose_sampling, with_steps

KIND = "gallery"
"""Kind of the folder, in its marker."""
COLUMNS = ("", "parameters", "trained", "bits", "steps", "guidance", "ms/image", "ratio", "gFID")


def pairs(words: tuple[str, ...], option: str) -> dict[str, str]:
    """Parse NAME=VALUE words to a dict.

    Raises:
        ValueError: If a word is not of that form, or a name occurs twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value) or name in found:
            raise ValueError(f"{option} {word!r}: expected NAME=FOLDER, each name once")
        found[name] = value
    return found


def read_fid(folder: str, generator: Generator, settings: dict[str, Any]) -> tuple[str, str]:
    """Read the gFID of an evaluation as text, and the id of its protocol.

    Raises:
        ValueError: If the evaluation is of other weights or settings.
    """
    report = json.loads((Path(folder) / "report.json").read_text())
    subject = report["subject"]
    if subject["fingerprint"] != generator.fingerprint:
        raise ValueError(f"{folder}: evaluation of {subject['name']}, which has other weights")
    if subject["sampling"] != settings:
        raise ValueError(f"{folder}: drawn with {subject['sampling']}, here with {settings}")
    fid = report["metrics"]["gFID"]
    spread = f" ± {fid['spread']:.1f}" if fid["spread"] is not None else ""
    return f"{fid['mean']:.1f}{spread} ({len(fid['values'])})", fid["protocol"]


@click.command()
@click.option("--row", "rows", multiple=True, required=True, help="NAME=GENERATOR, in order.")
@click.option("--report", "reports", multiple=True, help="NAME=FOLDER of `tessella evaluate`.")
@click.option("--per-class", type=click.IntRange(min=1), default=2, show_default=True)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of row 0."
)
@click.option(
    "--num", type=click.IntRange(min=1), default=16, show_default=True, help="Images timed."
)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the PNGs.")
@one_clear_error
def main(
    rows: tuple[str, ...],
    reports: tuple[str, ...],
    per_class: int,
    seed: int,
    num: int,
    rounds: int,
    threads: int,
    out: Path,
) -> None:
    """Write OUT/NAME.png of every generator and OUT/gallery.json; print a table in Markdown."""
    check_replaceable(out, KIND, overwrite=False)
    torch.set_num_threads(threads)
    named, evaluated = pairs(rows, "--row"), pairs(reports, "--report")
    if unknown := evaluated.keys() - named.keys():
        raise ValueError(f"--report: no --row is called {', '.join(sorted(unknown))}")
    generators = {name: tessella.load_generator(path) for name, path in named.items()}
    table: dict[str, dict[str, Any]] = {}
    protocols = set()
    for name, generator in generators.items():
        sampling = with_steps(generator, choose_sampling(generator, None, {}))
        card = generator.card or {}
        table[name] = {
            "parameters": f"{generator.num_parameters()['total']:,}",
            "trained": f"{card.get('steps', 0):,}",
            "bits": f"{generator.spec.bits_per_image:,.0f}",
            "steps": str(sampling.num_steps),
            "guidance": f"{sampling.guidance:g}",
            "gFID": "not run",
        }
        if name in evaluated:
            settings = dataclasses.asdict(sampling)
            table[name]["gFID"], protocol = read_fid(evaluated[name], generator, settings)
            protocols.add(protocol)
    if len(protocols) > 1:
        raise ValueError(f"--report: FIDs of several protocols do not compare: {sorted(protocols)}")
    first = next(iter(generators.values()))
    labels = list(range(max(1, first.num_classes))) * per_class
    seeds = [seed + row for row in range(per_class) for _ in range(max(1, first.num_classes))]
    names = [first.classes[label] if first.classes else str(label) for label in labels]
    sheets = {}
    for name, generator in generators.items():
        tokens = generate(generator, labels if generator.num_classes else None, seeds=seeds)
        images = generator.tokenizer.decode(tokens)
        last = len(labels) - len(labels) // per_class
        texts = [""] * last + names[last:]
        sheets[name] = image_grid(images, len(labels) // per_class, texts)
    seconds: dict[str, list[float]] = {name: [] for name in generators}
    for turn in range(rounds + 1):  # the first one warms up
        for name, generator in generators.items():
            wanted = [i % generator.num_classes for i in range(num)] if labels else None
            started = time.perf_counter()
            generator.tokenizer.decode(
                generate(generator, wanted, seeds=list(range(num)), batch_size=num)
            )
            if turn:
                seconds[name].append(time.perf_counter() - started)
    base = statistics.median(next(iter(seconds.values())))
    for name, row in table.items():
        median = statistics.median(seconds[name])
        row |= {"ms/image": f"{1000 * median / num:.0f}", "ratio": f"{median / base:.2f}"}
    protocol = f"protocol {protocols.pop()}" if protocols else "no FID"
    rounds_of = f"{threads} threads, {rounds} rounds of {num}"
    click.echo(f"torch {torch.__version__}, {rounds_of}; {protocol}")
    click.echo("| " + " | ".join(COLUMNS) + " |")
    click.echo("| " + " | ".join(["---"] * len(COLUMNS)) + " |")
    for name, row in table.items():
        click.echo(f"| {name} | " + " | ".join(row[column] for column in COLUMNS[1:]) + " |")
    with atomic_folder(out, kind=KIND) as folder:
        for name, sheet in sheets.items():
            save_png(sheet, folder / f"{name.lower()}.png")
        record = {"table": table, "seconds": seconds}
        text = json.dumps(record, indent=1) + "\n"
        (folder / "gallery.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
