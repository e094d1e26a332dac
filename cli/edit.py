"""`tessella edit`: pictures edited by a generator, and the way from one class to another."""

from pathlib import Path
from typing import Any

import click

from .options import (
    DrawingCommand,
    generator_options,
    one_clear_error,
    open_generator,
    parse_numbers,
    show,
)

_OPTIONS = {
    name: f"--{name}"
    for name in ("image", "mask", "box", "outside", "variation", "enrich", "num", "paste")
} | {"label": "--class or --label", "to": "--to-class and --to-label"}


@click.command(cls=DrawingCommand)
@generator_options
@click.option("--image", type=click.Path(path_type=Path), help="Picture to edit.")
@click.option(
    "--mask", "mask_path", type=click.Path(path_type=Path), help="Light or transparent = draw anew."
)
@click.option("--box", help="LEFT,TOP,RIGHT,BOTTOM in pixels of the tokenizer's resolution.")
@click.option("--outside", is_flag=True, help="Draw anew what --box leaves out: outpainting.")
@click.option("--variation", type=float, help="Share of random positions to draw anew.")
@click.option(
    "--enrich",
    "repeats",
    type=click.IntRange(min=1),
    help="Draw everything anew, a quarter at a time, so many times over: detail for small images.",
)
@click.option("--label", type=int, help="Class of the result [none].")
@click.option("--class", "class_", help="The same by name.")
@click.option("--to-label", type=int, help="Draw --num mixtures, from the class to this one.")
@click.option("--to-class", help="The same by name.")
@click.option("--num", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--paste", is_flag=True, help="Keep the picture's own pixels outside the mask.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="PNG to write.")
@click.option("--overwrite", is_flag=True, help="Replace pictures that tessella wrote.")
@one_clear_error
def edit(
    image: Path | None,
    mask_path: Path | None,
    box: str | None,
    outside: bool,
    variation: float | None,
    repeats: int | None,
    label: int | None,
    class_: str | None,
    to_label: int | None,
    to_class: str | None,
    num: int,
    paste: bool,
    out: Path,
    overwrite: bool,
    **options: Any,
) -> None:
    """Draw parts of --image anew; with --num, NAME-0.png, NAME-1.png and so on.

    One of --mask, --box, --variation and --enrich says which parts. With --to-class or --to-label
    the pictures lead from one class to another, all with the same seed, with --image or without.
    Settings of the generator's sampler are given as KEY=VALUE; they are listed below.
    """
    if label is not None and class_ is not None:
        raise ValueError("give --label or --class, not both")
    if to_label is not None and to_class is not None:
        raise ValueError("give --to-label or --to-class, not both")
    from ..data.images import save_png
    from ..sample.pictures import check_edit, draw_edit

    how: dict[str, Any] = {
        "mask": mask_path,
        "box": None if box is None else _box(box),
        "outside": outside,
        "variation": variation,
        "enrich": repeats,
        "label": class_ if label is None else label,
        "to": to_class if to_label is None else to_label,
        "num": num,
        "paste": paste,
    }
    check_edit(image=image, **how, names=_OPTIONS)
    inputs = [path for path in (image, mask_path) if path is not None]
    files = _files_to_write(out, num, overwrite, inputs)
    generator, sampling = open_generator(options)
    edited = draw_edit(
        generator,
        image,
        **how,
        seed=options["seed"],
        sampling=sampling,
        batch_size=options["batch_size"],
        precision=options["precision"],
    )
    _files_to_write(out, num, overwrite, inputs)  # somebody may have put one there meanwhile
    for file, picture in zip(files, edited.images, strict=True):
        save_png(picture, file)
    result = {"files": [str(file) for file in files], "positions": edited.tokens.spec.num_tokens}
    show(result | edited.facts, as_json=options["as_json"])


def _files_to_write(out: Path, num: int, overwrite: bool, inputs: list[Path]) -> list[Path]:
    """The pictures' files: NAME.png, or NAME-0.png, NAME-1.png and so on.

    Raises:
        ValueError: If the name is not that of a PNG.
        FileExistsError: If one is there and must stay.
        NotADirectoryError: If there can be no folder for them.
    """
    from ..data.images import is_own_png
    from ..files import check_file

    files = [out] if num == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(num)]
    for file in files:
        check_file(file, "picture", overwrite=overwrite, ours=is_own_png, inputs=inputs)
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out {out}: expected the name of a .png file")
    for parent in out.parents:
        if parent.exists() and not parent.is_dir():
            raise NotADirectoryError(f"--out {out}: {parent} is no folder")
    return files


def _box(text: str) -> tuple[int, int, int, int]:
    """Corners of --box."""
    corners = parse_numbers("--box", text, "0,0,32,16")
    if len(corners) != 4:
        raise ValueError(f"--box {text!r}: expected LEFT,TOP,RIGHT,BOTTOM")
    left, top, right, bottom = corners
    return left, top, right, bottom
