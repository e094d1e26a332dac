"""`make demo`: pictures by the shipped models within a minute, then a fine-tuning in a given time.

The first minute ends with a page, OUT/index.html, of what the shipped models draw, encode and edit.
Then they are fine-tuned on other pictures for the minutes that were asked for, and the page gets
what they did before and after. Every training is a command of `tessella`, and is printed.
"""

import itertools
import os
import sys
import time
from pathlib import Path

import click

from tessella.cli.options import chosen_device, one_clear_error
from tessella.files import some_of
from tessella.progress import quiet_option

GENERATOR = "bundled:maskbit-emoji-64"
"""Model that draws, and is fine-tuned together with its tokenizer."""
_UNDER_WAY = (
    "A fine-tuning of {minutes:g} minutes was started at {time}; how far it is can be seen on the "
    "terminal. This page is written again when it ends: load it anew then."
)
_STOPPED = "The fine-tuning was stopped before it ended. What it had done is in the folder."


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


def check_minutes(context: click.Context, option: click.Parameter, minutes: float) -> float:
    """Refuse minutes in which nothing can be learned.

    Raises:
        BadParameter: If they are not above 0 and finite.
    """
    if not 0 < minutes < float("inf"):
        raise click.BadParameter(f"expected more than 0 minutes, found {minutes:g}")
    return minutes


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="[runs/demo, runs/demo-2 ...]")
@click.option(
    "--minutes",
    type=float,
    default=6.0,
    show_default=True,
    callback=check_minutes,
    help="Length of the fine-tuning, with all that belongs to it.",
)
@click.option(
    "--data", help="Folder of pictures to fine-tune on [the bundled emoji, drawn as blueprints]."
)
@click.option(
    "--picture", type=click.Path(path_type=Path), help="Picture to encode [a sheet of emoji]."
)
@quiet_option
@one_clear_error
def main(out: Path | None, minutes: float, data: str | None, picture: Path | None) -> None:
    """Show what the shipped models do, then fine-tune them on other pictures."""
    started, out = time.perf_counter(), choose_folder(out)
    from tessella.checkpoints import load_generator
    from tessella.data.images import read_image
    from tessella.demo.commands import CommandStopped, tell
    from tessella.demo.demo_page import Shown, cores, write_page
    from tessella.demo.own_pictures import open_pictures
    from tessella.demo.shipped import (
        default_picture,
        draw_rounds,
        encode_picture,
        fastest_threads,
        inpaint,
    )
    from tessella.demo.tuning import tune
    from tessella.train.command import INTERRUPTED

    shown_picture = default_picture() if picture is None else read_image(picture)
    generator = load_generator(GENERATOR, device=chosen_device(None))
    pictures = open_pictures(data, generator.tokenizer.resolution)
    threads = None
    if generator.tokenizer.device.type == "cpu":
        threads = fastest_threads(generator.tokenizer, cores())
    tell(f"writing to {out}; drawing, encoding and editing with {GENERATOR}")
    encoded, edited = encode_picture(generator.tokenizer, shown_picture), inpaint(generator)
    words, classes = draw_rounds(generator)
    about = "a sheet of emoji that were not trained on" if picture is None else picture.name
    seconds = time.perf_counter() - started
    shown = Shown(generator, words, classes, encoded, about, edited, seconds)
    page = out / "index.html"
    write_page(page, shown, status=_UNDER_WAY.format(minutes=minutes, time=time.strftime("%H:%M")))
    tell(f"{page} is there after {seconds:.0f} s: open it in a browser")
    try:
        tuned = tune(pictures, generator, out, minutes, threads)
    except (CommandStopped, KeyboardInterrupt):
        write_page(page, shown, status=_STOPPED)
        click.echo(f"stopped; {page} shows the shipped models", err=True)
        sys.exit(INTERRUPTED)
    write_page(page, shown, status="", tuned=tuned)
    click.echo(
        f"""All of it took {(time.perf_counter() - started) / 60:.1f} minutes:
  {page}: the pictures of both parts
  {out / "tokenizer" / "tokenizer"}, {out / "generator" / "generator"}: the tuned models; \
held-out pictures come back with {tuned.after.decibels:.2f} dB, before {tuned.before.decibels:.2f}
  {out / "tokenizer" / "curves.png"}, {out / "generator" / "curves.png"}: how it went"""
    )


if __name__ == "__main__":
    main()
