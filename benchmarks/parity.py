"""Our modules against checkouts of the public code, at the same random weights.

    git clone https://github.com/markweberdev/maskbit ../maskbit
    python benchmarks/parity.py maskbit=../maskbit --out parity.json

Each argument is NAME=FOLDER: a reference and a checkout of it, whose code is imported from there
and is no part of this repository. `--list` shows the names. The reference is built at its published
size and filled with random weights; its state dict goes through our importer, as a published file
would, and both get the same input, in float32 on a CPU. A row tells how many values were compared,
the largest difference, the largest magnitude beside it and, for codes, how many differ and how near
a tie those were: each side quantizes its own latents, so that rounding decides where a latent is
half-way between two codes, and the margin of such a code is of the size of the difference of the
latents. Packages that a reference imports but the compared parts do not use are replaced by empty
stand-ins if they are not installed. To add a reference, write a function that yields its rows into
`parity_cases/` and add it to `REFERENCES`.
"""

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from tessella.benchmarks.parity_cases.bits import bigr, binary_latent_diffusion
from tessella.benchmarks.parity_cases.comparison import Row, importing_from
from tessella.benchmarks.parity_cases.maskbit import maskbit
from tessella.benchmarks.parity_cases.vqgan import llamagen, open_magvit2, taming

REFERENCES: dict[str, Callable[[str], Iterator[Row]]] = {
    "maskbit": maskbit,
    "taming": taming,
    "llamagen": llamagen,
    "open_magvit2": open_magvit2,
    "bld": binary_latent_diffusion,
    "bigr": bigr,
}
"""References by name: markweberdev/maskbit, CompVis/taming-transformers, FoundationVision/LlamaGen,
TencentARC/SEED-Voken, ZeWang95/BinaryLatentDiffusion, haoosz/BiGR."""


def main() -> None:
    """Print a row for every comparison, and write them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("references", nargs="*", metavar="NAME=FOLDER", help="checkouts")
    parser.add_argument("--list", action="store_true", help="print the names of references")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(f"{name:12} {rows.__doc__}" for name, rows in REFERENCES.items()))
    rows = []
    for word in arguments.references:
        name, _, folder = word.partition("=")
        if name not in REFERENCES or not Path(folder).is_dir():
            parser.error(f"{word}: expected NAME=FOLDER, NAME of {', '.join(REFERENCES)}")
        with importing_from(Path(folder).resolve()):
            for row in REFERENCES[name](name):
                near = "" if row.margin is None else f" (margin at most {row.margin:.1e})"
                print(
                    f"{row.reference:12} | {row.what:36} | {row.values:9,} | "
                    f"{row.difference:8.2g}{near} | {row.magnitude:8.3g}",
                    flush=True,
                )
                rows.append(row)
    if arguments.out is not None:
        machine = {"torch": torch.__version__, "python": platform.python_version()}
        result = {**machine, "processor": platform.machine(), "rows": [asdict(row) for row in rows]}
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
