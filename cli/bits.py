"""`tessella bits`: bits per dimension of a generator on unseen images."""

import click

from ..progress import quiet_option
from .options import chosen_device, device_option, inform, json_option, one_clear_error, show


@click.command()
@click.option(
    "--generator",
    "generator_path",
    required=True,
    help="Generator with a likelihood or a bound: model folder, bundled:NAME or hub:owner/name.",
)
@click.option(
    "--tokenizer", "tokenizer_path", help="Its tokenizer [the one that the generator names]."
)
@click.option(
    "--data",
    "source",
    default="bundled:emoji",
    show_default=True,
    help="Data source of the images.",
)
@click.option("--split", default="val", show_default=True, help="Split of --data.")
@click.option(
    "--limit", type=click.IntRange(min=1), help="Largest number of images, evenly spaced [all]."
)
@click.option(
    "--num-steps",
    type=click.IntRange(min=1),
    help="Steps of the chain that is bounded [those of training; continuous time for bfn].",
)
@click.option(
    "--draws", type=click.IntRange(min=1), help="Random estimates of the bound per image [2]."
)
@click.option("--unconditional", is_flag=True, help="Give it neither labels nor captions.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**62),
    default=0,
    show_default=True,
    help="Seed of the random estimates.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Number of images measured at once.",
)
@device_option
@quiet_option
@json_option
@one_clear_error
def bits(
    generator_path: str,
    tokenizer_path: str | None,
    source: str,
    split: str,
    limit: int | None,
    num_steps: int | None,
    draws: int | None,
    unconditional: bool,
    seed: int,
    batch_size: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Measure the code length of images' tokens under a generator, in bits per bit.

    A uniform model has the value 1. The value is exact for ar, and an upper bound for bld and bfn.
    """
    from ..checkpoints import load_generator
    from ..data.train_val import held_out, open_to_measure
    from ..evaluation.bits_per_dim import measure_bits

    images = open_to_measure(source, split)
    if line := held_out(images):
        inform(line)
    generator = load_generator(
        generator_path, tokenizer=tokenizer_path, device=chosen_device(device)
    )
    result = measure_bits(
        generator,
        images,
        draws=draws,
        num_steps=num_steps,
        unconditional=unconditional,
        seed=seed,
        limit=limit,
        batch_size=batch_size,
        progress=True,
    )
    show(result, as_json=as_json)
