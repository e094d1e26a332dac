"""`make demo`: from pictures to tokens to new pictures in some ten minutes on two CPU cores.

Trains the default bit tokenizer for a short while on the bundled emoji, writes a token store of
them, trains a small MaskBit on the store, draws a grid of every class, and measures it. Each step
is the command that a long run uses, and is printed.
"""

import itertools
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import click

from tessella.checkpoints import load_generator, load_tokenizer
from tessella.data.sources import open_source
from tessella.evaluation.reconstruction_pictures import reconstruct_source
from tessella.files import some_of
from tessella.metrics.networks.build import available_features
from tessella.progress import allows_color

FOLDER = Path(__file__).parents[1] / "train"
SMALL = "{width: 128, num_layers: 6, num_heads: 4, dropout: 0.0}"


def launch(script: str, *words: str) -> None:
    """Run a training script as a user does; leave with its status if it fails."""
    accelerate = ["-m", "accelerate.commands.launch", "--num_processes=1", "--num_machines=1"]
    accelerate += ["--mixed_precision=no", "--dynamo_backend=no"]
    run(f"accelerate launch train/{script}", [*accelerate, str(FOLDER / script)], words)


def tessella(*words: str) -> None:
    """Run a command of `tessella`; leave with its status if it fails."""
    run("tessella", ["-m", "tessella.cli.main"], words)


def run(shown: str, command: list[str], words: tuple[str, ...]) -> None:
    """Run a command of this Python, shown first as it would be typed."""
    line = f"\n$ {shown} {shlex.join(words)}"
    click.secho(line, bold=True, err=True, color=allows_color())
    code = subprocess.run([sys.executable, *command, *words]).returncode
    if code:
        sys.exit(code)


def choose_folder(out: Path | None) -> Path:
    """A folder that is free: the one asked for, or the first of runs/demo, runs/demo-2 and so on.

    Raises:
        ClickException: If the one asked for holds something.
    """
    if out is None:
        names = itertools.chain(["demo"], (f"demo-{number}" for number in itertools.count(2)))
        return next(path for path in map(Path("runs").joinpath, names) if is_free(path))
    if not is_free(out):
        found = some_of(sorted(path.name for path in out.iterdir())) if out.is_dir() else "a file"
        raise click.ClickException(f"--out {out}: is not empty, there is {found}; choose another")
    return out


def is_free(path: Path) -> bool:
    """Whether nothing is there but an empty folder."""
    return not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir()))


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="[runs/demo, runs/demo-2 ...]")
@click.option("--steps", type=click.IntRange(min=1), default=600, help="Of the tokenizer.")
@click.option("--generator-steps", type=click.IntRange(min=1), default=700)
@click.option("--views", type=click.IntRange(min=1), default=4, help="Views in the token store.")
@click.argument("overrides", nargs=-1)
def main(
    out: Path | None, steps: int, generator_steps: int, views: int, overrides: tuple[str, ...]
) -> None:
    """Train both, encode, sample; OVERRIDES go to the tokenizer's training as key.sub=value."""
    started, out = time.perf_counter(), choose_folder(out)
    click.echo(f"writing to {out}", err=True)

    def every(count: int) -> list[str]:
        settings = [f"run.steps={count}", f"run.preview_every={max(1, count // 4)}"]
        return [*settings, f"run.evaluate_every={count}", f"run.checkpoint_every={count}"]

    tokenizer, store = str(out / "tokenizer" / "tokenizer"), str(out / "store")
    generator = str(out / "generator" / "generator")
    launch("tokenizer.py", "--out", str(out / "tokenizer"), *every(steps), *overrides)
    tessella(
        "encode", "--tokenizer", tokenizer, "bundled:emoji", "--out", store,
        "--views", str(views), "--random-crop", "0.8", "--flip",
    )  # fmt: skip
    launch(
        "generator.py", "--out", str(out / "generator"), f"tokenizer={tokenizer}",
        f"data.store={store}", f"generator.transformer={SMALL}", "optimizer.lr.warmup_steps=50",
        "ema_decay=0.99", *every(generator_steps),
    )  # fmt: skip
    tessella(
        "sample", "--generator", generator, "--num", "52", "--guidance", "2",
        "--out", str(out / "samples"),
    )  # fmt: skip
    network = "efflite0" if available_features()["efflite0"] else "random"
    tessella(
        "evaluate", "--generator", generator, "--num", "104", "--repeats", "1", "--guidance", "2",
        "--features", network, "--nearest", "52", "--out", str(out / "report"),
    )  # fmt: skip
    decoder = load_tokenizer(tokenizer)
    measured = reconstruct_source(
        decoder,
        open_source("bundled:emoji", "val"),
        out=out / "reconstructions",
        perceptual="random",
        features="none",
        progress=False,
    )
    model = load_generator(generator)
    seconds = time.perf_counter() - started
    click.echo(
        f"""
All of it took {seconds / 60:.1f} minutes:
  {tokenizer}: {decoder.num_parameters()["total"]:,} parameters, {decoder.spec}
  {out / "reconstructions" / "grid.png"}: pictures it never saw, above what
      {decoder.spec.bits_per_image:g} bits bring back; PSNR {measured["psnr"]:.2f} dB
  {store}: the training set as tokens
  {generator}: {model.num_parameters()["total"]:,} parameters, {generator_steps} steps
  {out / "samples" / "grid.png"}: new pictures, by class
  {out / "report" / "report.html"}: how good they are, by a quick protocol
  {out / "tokenizer" / "curves.png"}, {out / "generator" / "curves.png"}: how it went
Models trained longer come with the package: tessella sample --generator bundled:maskbit-emoji-64"""
    )


if __name__ == "__main__":
    main()
