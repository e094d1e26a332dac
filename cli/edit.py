"""`tessella edit`: editing of pictures by a generator, and interpolation between classes."""

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
from .prompts import check_prompts

_OPTIONS = {
    name: f"--{name}"
    for name in ("image", "mask", "box", "outside", "variation", "enrich", "num", "paste")
} | {"label": "--class or --label", "to": "--to-class or --to-label"}


@click.command(cls=DrawingCommand)
@generator_options
@click.option("--image", type=click.Path(path_type=Path), help="Picture to edit.")
@click.option(
    "--mask",
    "mask_path",
    type=click.Path(path_type=Path),
    help="Picture of the same size, light or transparent where to draw anew.",
)
@click.option(
    "--box",
    help="Box to draw anew: LEFT,TOP,RIGHT,BOTTOM in pixels of --image.",
)
@click.option(
    "--outside", is_flag=True, help="Draw anew what lies outside --box instead (outpainting)."
)
@click.option("--variation", type=float, help="Share of positions, chosen at random, to draw anew.")
@click.option(
    "--enrich",
    "repeats",
    type=click.IntRange(min=1),
    help="Times to draw everything anew, a quarter at a time; adds detail to small images.",
)
@click.option("--label", type=int, help="Class of the result, by number [none].")
@click.option("--class", "class_", help="Class of the result, by name [none].")
@click.option("--prompt", help="Text of the result [none]; for generators that read text.")
@click.option("--negative-prompt", help="Text that guidance leads away from [none].")
@click.option(
    "--to-label", type=int, help="Class, by number, to which --num mixtures lead from the first."
)
@click.option("--to-class", help="Class, by name, to which --num mixtures lead from the first.")
@click.option(
    "--num",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of pictures; each has the next seed, except on the way between two classes.",
)
@click.option(
    "--paste/--no-paste",
    default=None,
    help="Put what is drawn into --image, or write the square that the model drew "
    "[--paste with --mask or --box].",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="PNG file to write.")
@click.option("--overwrite", is_flag=True, help="Replace existing pictures that tessella wrote.")
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
    prompt: str | None,
    negative_prompt: str | None,
    to_label: int | None,
    to_class: str | None,
    num: int,
    paste: bool | None,
    out: Path,
    overwrite: bool,
    **options: Any,
) -> None:
    """Draw parts of --image anew, or interpolate between two classes.

    One of --mask, --box, --variation and --enrich says which parts. With --mask and --box the
    result is --image in its size, unchanged outside the region, and what is drawn does not depend
    on the pixels that it replaces; the others give the centre crop in the size of the model.
    With --to-class or --to-label the pictures lead from one class to another, all with the same
    seed, with --image or without. If --num is above 1, the files are NAME-0.png, NAME-1.png and
    so on. Settings of the generator's
    sampler are given as KEY=VALUE; they are listed below.
    """
    if label is not None and class_ is not None:
        raise ValueError("--label and --class are both given; give --label or --class, not both")
    if to_label is not None and to_class is not None:
        raise ValueError(
            "--to-label and --to-class are both given; give --to-label or --to-class, not both"
        )
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
    check_prompts(generator, [prompt or ""], negative_prompt, sampling.guidance)
    edited = draw_edit(
        generator,
        image,
        **how,
        prompt=prompt,
        negative_prompt=negative_prompt,
        seed=options["seed"],
        sampling=sampling,
        batch_size=options["batch_size"],
        precision=options["precision"],
    )
    _files_to_write(out, num, overwrite, inputs)  # again: one may have appeared meanwhile
    for file, picture in zip(files, edited.images, strict=True):
        save_png(picture, file)
    result = {"files": [str(file) for file in files], "positions": edited.tokens.spec.num_tokens}
    show(result | edited.facts, as_json=options["as_json"])


def _files_to_write(out: Path, num: int, overwrite: bool, inputs: list[Path]) -> list[Path]:
    """Files of the pictures: NAME.png, or NAME-0.png, NAME-1.png and so on.

    Raises:
        ValueError: If the name is not that of a PNG file.
        FileExistsError: If one of them exists and must stay.
        NotADirectoryError: If a parent of the files is not a folder.
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
            raise NotADirectoryError(f"--out {out}: expected a folder at {parent}, found a file")
    return files


def _box(text: str) -> tuple[int, int, int, int]:
    """Parse --box as left, top, right and bottom."""
    corners = parse_numbers("--box", text, "0,0,32,16")
    if len(corners) != 4:
        raise ValueError(
            f"--box {text!r}: expected LEFT,TOP,RIGHT,BOTTOM, found {len(corners)} numbers"
        )
    left, top, right, bottom = corners
    return left, top, right, bottom
