"""`tessella probe`: how well classes can be told from the features of a generator."""

import click

from .options import NumberList, chosen_device, one_clear_error, show


@click.command()
@click.option(
    "--generator",
    "generator_path",
    required=True,
    help="Model folder, bundled:NAME or hub:owner/name, of a BiGR.",
)
@click.option("--tokenizer", "tokenizer_path", help="[the one that the generator names]")
@click.option("--data", "source", default="bundled:emoji", show_default=True)
@click.option("--layers", type=NumberList(int, 0), help="Blocks from 0, like 3,5. [all]")
@click.option("--label", type=click.IntRange(min=0), help="Class to tell the generator. [none]")
@click.option("--limit", type=click.IntRange(min=2), help="Images of each split at most. [all]")
@click.option("--epochs", type=click.IntRange(min=1), default=90, show_default=True)
@click.option("--lr", type=float, default=0.1, show_default=True, help="Learning rate.")
@click.option("--seed", type=click.IntRange(0, 2**62), default=0, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--device", help="Torch device [cuda if there is one, else cpu].")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable result on stdout.")
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
    """Train a linear classifier on the features after each block, and measure it on validation."""
    from ..checkpoints import load_generator
    from ..data.sources import open_source
    from ..evaluation.linear_probe import ProbeConfig, probe_layers
    from ..generators.bigr import BiGR

    config = ProbeConfig(epochs=epochs, lr=lr, seed=seed)
    generator = load_generator(
        generator_path, tokenizer=tokenizer_path, device=chosen_device(device)
    )
    if not isinstance(generator, BiGR):
        raise ValueError(f"probe: expected a bigr generator, found {generator.config.type}")
    result = probe_layers(
        generator,
        open_source(source, "train"),
        open_source(source, "val"),
        config,
        layers=layers,
        label=label,
        limit=limit,
        batch_size=batch_size,
        progress=not as_json,
    )
    show(result, as_json=as_json)
