"""`tessella encode`, `decode` and `reconstruct`: images to tokens, tokens to images, or both."""

import re
from pathlib import Path
from typing import Any

import click

from .options import chosen_device, inform, one_clear_error, show, tokenizer_option


class Shard(click.ParamType[tuple[int, int]]):
    """Option type of one part of several, like 0/4."""

    name = "i/n"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        """Parse the numbers, or fail with a usage error."""
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", value)
        index, count = map(int, found.groups()) if found else (0, 0)
        if not index < count:
            self.fail(f"found {value!r}, expected 0/n to n-1/n, e.g. 0/4", param, ctx)
        return index, count


limit_option = click.option(
    "--limit", type=click.IntRange(min=1), help="Number of images, from the first [all]."
)


@click.command()
@tokenizer_option
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Token store to create."
)
@click.option("--split", default="train", show_default=True, help="Split of a data source.")
@click.option(
    "--flip", is_flag=True, help="Add the mirror image of each; with --views, flip at random."
)
@click.option(
    "--views",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of views of every image; those after the first are augmented.",
)
@click.option(
    "--random-crop", type=float, help="Smallest area of random crops, as a share [1: no crops]."
)
@click.option(
    "--val-share",
    type=click.FloatRange(0, 0.5),
    default=0.0,
    help="Share of images without a split val that --split train leaves out and --split val takes, "
    "0.05 as a training does [0: all images are train].",
)
@click.option(
    "--image-member",
    help="Which member of a sample in a tar is the image, e.g. left.png; *: each [the only one, or "
    "the one without a second dot in its name].",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    help="Largest number of pixels of an image; larger ones are skipped [100,000,000].",
)
@limit_option
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Number of processes that read images; 0: the command itself reads.",
)
@click.option(
    "--shard", type=Shard(), help="Encode part i of n only, 0 <= i < n; see `tessella store merge`."
)
@click.option(
    "--resume", is_flag=True, help="Continue what an interrupted command left in OUT.unfinished."
)
@click.option("--overwrite", is_flag=True, help="Replace a token store of tessella's at --out.")
@one_clear_error
def encode(
    tokenizer_path: str,
    device: str | None,
    batch_size: int,
    as_json: bool,
    images: tuple[str, ...],
    out: Path,
    split: str,
    flip: bool,
    views: int,
    random_crop: float | None,
    val_share: float,
    image_member: str | None,
    max_pixels: int | None,
    limit: int | None,
    workers: int,
    shard: tuple[int, int] | None,
    resume: bool,
    overwrite: bool,
) -> None:
    """Encode IMAGES (files, a folder, tars, or a data source) to a token store.

    With --views N every image is stored once as it is and N - 1 times with the random augmentation
    of --random-crop and --flip. An interrupted command keeps its finished work and goes on from
    there with --resume.
    """
    from ..checkpoints import load_tokenizer
    from ..codec.encode import encode_source
    from ..data.image_source import SourceSettings
    from ..data.images import MAX_PIXELS
    from ..data.path_source import local_places, open_paths
    from ..data.transforms import AugmentConfig

    settings = SourceSettings(
        val_share=val_share,
        image_member=image_member,
        max_pixels=MAX_PIXELS if max_pixels is None else max_pixels,
    )
    random = flip and views > 1
    augment = AugmentConfig(random_crop=1.0 if random_crop is None else random_crop, flip=random)
    tokenizer = load_tokenizer(tokenizer_path, device=chosen_device(device))
    source = open_paths(images, split, settings)
    result = encode_source(
        tokenizer,
        source,
        out,
        batch_size=batch_size,
        limit=limit,
        flip=flip and not random,
        augment=augment,
        views=views,
        shard=shard,
        workers=workers,
        resume=resume,
        overwrite=overwrite,
        inputs=local_places(tokenizer_path, *images),
        name=tokenizer_path,
    )
    if not as_json:
        side, sizes = tokenizer.resolution, result["sizes"]
        told = ", ".join(f"{count:,} {what}" for what, count in sizes.items())
        result["sizes"] = f"{told} (to {side} x {side} pixels)"
    show(result, as_json=as_json)


@click.command()
@tokenizer_option
@click.argument("tokens", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to create.")
@limit_option
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Number of threads that write PNG files; 0: none besides the command itself.",
)
@click.option("--overwrite", is_flag=True, help="Replace decoded images of tessella's at --out.")
@one_clear_error
def decode(
    tokenizer_path: str,
    device: str | None,
    batch_size: int,
    as_json: bool,
    tokens: Path,
    out: Path,
    limit: int | None,
    workers: int,
    overwrite: bool,
) -> None:
    """Decode TOKENS to PNG files, a grid and images.jsonl.

    TOKENS is a token store, a file of `Tokens.save`, or an .npy file of codes: (B, N, G) or
    (B, H, W, G) entries, or (B, N) or (B, H, W) joint indices.
    """
    from ..checkpoints import load_tokenizer
    from ..codec.decode import decode_store, open_tokens
    from ..data.path_source import local_places

    tokenizer = load_tokenizer(tokenizer_path, device=chosen_device(device))
    result = decode_store(
        tokenizer,
        open_tokens(tokens, tokenizer),
        out,
        batch_size=batch_size,
        limit=limit,
        workers=workers,
        overwrite=overwrite,
        inputs=[*local_places(tokenizer_path), tokens],
    )
    show(result, as_json=as_json)


@click.command()
@tokenizer_option
@click.option("--data", required=True, help="Data source, e.g. bundled:emoji or a folder.")
@click.option("--split", default="val", show_default=True, help="Split of --data.")
@click.option("--limit", type=click.IntRange(min=1), help="Largest number of images [all].")
@click.option(
    "--perceptual", default="auto", show_default=True, help="Network of the perceptual distance."
)
@click.option(
    "--features",
    default="auto",
    show_default=True,
    help="Network of the distances between sets of images, or none.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for pictures [none].")
@click.option("--overwrite", is_flag=True, help="Replace reconstructions of tessella's at --out.")
@one_clear_error
def reconstruct(
    tokenizer_path: str,
    device: str | None,
    batch_size: int,
    as_json: bool,
    data: str,
    split: str,
    limit: int | None,
    perceptual: str,
    features: str,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Measure the reconstructions of a data source, and write them if --out is given."""
    from ..checkpoints import load_tokenizer
    from ..data.path_source import local_places
    from ..data.train_val import held_out, open_to_measure
    from ..evaluation.reconstruction_pictures import reconstruct_source

    tokenizer = load_tokenizer(tokenizer_path, device=chosen_device(device))
    source = open_to_measure(data, split)
    if line := held_out(source):
        inform(line)
    result = reconstruct_source(
        tokenizer,
        source,
        out=out,
        batch_size=batch_size,
        limit=limit,
        perceptual=perceptual,
        features=features,
        overwrite=overwrite,
        inputs=local_places(tokenizer_path, data),
    )
    show(result, as_json=as_json)
