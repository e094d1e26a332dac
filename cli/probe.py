"""`tessella probe`: accuracy of linear classifiers on the features of a generator."""

import click

from ..progress import quiet_option
from .options import (
    NumberList,
    chosen_device,
    device_option,
    inform,
    json_option,
    one_clear_error,
    show,
)


@click.command()
@click.option(
    "--generator",
    "generator_path",
    required=True,
    help="Generator of type bigr: a model folder, bundled:NAME or hub:owner/name.",
)
@click.option(
    "--tokenizer", "tokenizer_path", help="Its tokenizer [the one that the generator names]."
)
@click.option(
    "--data", "source", default="bundled:emoji", show_default=True, help="Data source with labels."
)
@click.option("--layers", type=NumberList(int, 0), help="Blocks, numbered from 0, e.g. 3,5 [all].")
@click.option(
    "--label", type=click.IntRange(min=0), help="Class that the generator is given [none]."
)
@click.option(
    "--limit", type=click.IntRange(min=2), help="Largest number of images of each split [all]."
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    default=90,
    show_default=True,
    help="Number of epochs that the classifiers are trained.",
)
@click.option("--lr", type=float, default=0.1, show_default=True, help="Learning rate.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**62),
    default=0,
    show_default=True,
    help="Seed of the first weights and of the order of the images.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Number of images whose features are computed at once.",
)
@device_option
@quiet_option
@json_option
@one_clear_error
def probe(
    generator_path: str,
    tokenizer_path: str | None,
    source: str,
    layers: list[int] | None,
    label: int | None,
    limit: int | None,
    epochs: int,
    lr: float,
    seed: int,
    batch_size: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Train a linear classifier on the features after each block of a BiGR generator.

    The classifiers learn from the split train of --data and are measured on the split val.
    """
    from ..checkpoints import load_generator
    from ..data.image_source import SourceSettings
    from ..data.splits import VAL_SHARE
    from ..data.train_val import held_out, open_train_and_val
    from ..evaluation.linear_probe import ProbeConfig, probe_layers
    from ..generators.bigr import BiGR

    config = ProbeConfig(epochs=epochs, lr=lr, seed=seed)
    generator = load_generator(
        generator_path, tokenizer=tokenizer_path, device=chosen_device(device)
    )
    if not isinstance(generator, BiGR):
        raise ValueError(f"--generator: expected a bigr generator, found {generator.config.type}")
    settings = SourceSettings(val_share=VAL_SHARE)
    train, val = open_train_and_val(source, None, settings, same_classes=True)
    if line := held_out(val):
        inform(line)
    result = probe_layers(
        generator,
        train,
        val,
        config,
        layers=layers,
        label=label,
        limit=limit,
        batch_size=batch_size,
        progress=not as_json,
    )
    show(result, as_json=as_json)
