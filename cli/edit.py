"""`tessella edit`: pictures edited by a generator, and the way from one class to another."""

from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from ..data.images import is_own_png, save_png
from ..files import check_file
from ..generators.base import Generator
from ..sample.edit import (
    between,
    box_mask,
    enrich,
    read_masked_image,
    token_mask,
    variation_mask,
)
from ..sample.generate import generate
from ..sample.request import class_labels
from .options import generator_options, one_clear_error, open_generator, parse_numbers, show


@click.command()
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

    One of --mask, --box, --variation and --enrich says which. With --to-class or --to-label the
    pictures lead from one class to another, all with the same seed, with --image or without.
    """
    ways = sum(given is not None for given in (mask_path, box, variation, repeats))
    mixing = to_label is not None or to_class is not None
    if ways > 1 or (image is not None and not ways):
        raise ValueError(
            "give one of --mask, --box, --variation and --enrich: what to draw anew of the picture"
        )
    if image is None and (ways or not mixing):
        raise ValueError("--image: no picture given; only --to-class and --to-label do without")
    if label is not None and class_ is not None:
        raise ValueError("give --label or --class, not both")
    if to_label is not None and to_class is not None:
        raise ValueError("give --to-label or --to-class, not both")
    if mixing and label is None and class_ is None:
        raise ValueError("--to-class and --to-label go with --class or --label: where to start")
    if mixing and num < 2:
        raise ValueError(f"--num {num}: from one class to another it takes at least 2 pictures")
    if outside and box is None:
        raise ValueError("--outside goes with --box")
    if paste and mask_path is None and box is None:
        raise ValueError("--paste goes with --mask or --box, which say where the outside is")
    inputs = [path for path in (image, mask_path) if path is not None]
    files = _files_to_write(out, num, overwrite, inputs)
    generator, sampling = open_generator(options)
    tokenizer, spec, size = generator.tokenizer, generator.spec, options["batch_size"]
    first, last = _label(generator, label, class_), _label(generator, to_label, to_class)
    labels = None if first is None else [first] * num
    told: dict[str, Any] = {"label": first}
    if first is not None and last is not None:
        generator, labels = between(generator, first, last, num), list(range(num))
        told = {"labels": [first, last], "shares": [i / (num - 1) for i in range(num)]}
    number = torch.zeros(num, dtype=torch.int64) if mixing else torch.arange(num)
    seeds = options["seed"] + number
    drawing = {"seeds": seeds, "sampling": sampling, "batch_size": size}
    drawing["precision"] = options["precision"]
    told["drawn_anew"] = spec.num_tokens
    if image is None:
        tokens = generate(generator, labels, **drawing)
    else:
        pixels, mask = read_masked_image(image, mask_path, tokenizer.resolution)
        mask = mask if box is None else _box(box, tokenizer.resolution, outside)
        known = tokenizer.encode(pixels[None].to(tokenizer.device))
        if repeats is not None:
            tokens = enrich(generator, known, labels, repeats=repeats, **drawing)
        else:
            if mask is not None:
                hidden = token_mask(mask, spec)[None].expand(num, -1)
            else:
                assert variation is not None
                hidden = variation_mask(seeds, spec, variation)
            tokens = generate(generator, labels, known=known, mask=hidden, **drawing)
            same = (tokens.indices == known.indices).all(-1)
            told["drawn_anew"] = int(hidden.sum(1).float().mean().round())
            told["known_unchanged"] = bool(same[~hidden.to(tokens.device)].all())
    parts = [tokenizer.decode(tokens[i : i + size]).cpu() for i in range(0, num, size)]
    pictures = torch.cat(parts)
    if paste and mask is not None:
        pictures = torch.where(mask, pictures, pixels)
    _files_to_write(out, num, overwrite, inputs)  # somebody may have put one there meanwhile
    for file, picture in zip(files, pictures, strict=True):
        save_png(picture, file)
    result = {"files": [str(file) for file in files], "positions": spec.num_tokens}
    show(result | told, as_json=options["as_json"])


def _files_to_write(out: Path, num: int, overwrite: bool, inputs: list[Path]) -> list[Path]:
    """The pictures' files: NAME.png, or NAME-0.png, NAME-1.png and so on.

    Raises:
        ValueError: If the name is not that of a PNG.
        FileExistsError: If one is there and must stay.
        NotADirectoryError: If there can be no folder for them.
    """
    files = [out] if num == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(num)]
    for file in files:
        check_file(file, "picture", overwrite=overwrite, ours=is_own_png, inputs=inputs)
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out {out}: expected the name of a .png file")
    for parent in out.parents:
        if parent.exists() and not parent.is_dir():
            raise NotADirectoryError(f"--out {out}: {parent} is no folder")
    return files


def _label(generator: Generator, label: int | None, name: str | None) -> int | None:
    """A class given by number or by name; None: neither."""
    return label if name is None else class_labels(generator, [name])[0]


def _box(text: str, resolution: int, outside: bool) -> Tensor:
    """The mask of --box, (R, R) bool."""
    corners = parse_numbers("--box", text, "0,0,32,16")
    if len(corners) != 4:
        raise ValueError(f"--box {text!r}: expected LEFT,TOP,RIGHT,BOTTOM")
    left, top, right, bottom = corners
    return box_mask((left, top, right, bottom), resolution, outside=outside)
