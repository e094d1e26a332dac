"""`tessella bits`: bits per dimension of a generator on images that it never saw."""

import click

from .options import chosen_device, one_clear_error, show


@click.command()
@click.option(
    "--generator",
    "generator_path",
    required=True,
    help="Model folder, bundled:NAME or hub:owner/name, of type ar, bld or bfn.",
)
@click.option("--tokenizer", "tokenizer_path", help="[the one that the generator names]")
@click.option("--data", "source", default="bundled:emoji", show_default=True)
@click.option("--split", default="val", show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="Images at most, evenly spaced. [all]")
@click.option(
    "--num-steps",
    type=click.IntRange(min=1),
    help="Of the chain whose bound it is. [those of training; for bfn continuous time]",
)
@click.option("--draws", type=click.IntRange(min=1), help="Estimates of each image's bound. [2]")
@click.option("--unconditional", is_flag=True, help="Tell the generator no labels.")
@click.option("--seed", type=click.IntRange(0, 2**62), default=0, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--device", help="Torch device [cuda if there is one, else cpu].")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable result on stdout.")
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
    """Measure how many bits the tokens of images need under a generator.

    1 per bit of the tokens means that nothing is known of them. The figure is exact for ar, a bound
    for bld and bfn.
    """
    from ..checkpoints import load_generator
    from ..data.sources import open_source
    from ..evaluation.bits_per_dim import measure_bits

    images = open_source(source, split)
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
