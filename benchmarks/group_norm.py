"""How exact torch's GroupNorm is on a CPU, and what its error does to a tokenizer.

    python benchmarks/group_norm.py [--tokenizer FOLDER] [--images N]

First the largest error of a layer against float64, forward and backward, in both memory layouts and
for activations of several means. Then a tokenizer in both layouts against itself in float64: errors
of latents and pixels, and the share of codes that differ.
"""

import copy
import platform

import click
import torch
from torch import Tensor, nn

from tessella.checkpoints import load_tokenizer
from tessella.data.loader import eval_batches
from tessella.data.sources import open_source
from tessella.tokenizers.base import Tokenizer

LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


def errors_of_layer(mean: float, side: int, layout: torch.memory_format) -> tuple[float, float]:
    """Largest error of outputs and of input gradients against float64; outputs are about 1."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 64, side, side, generator=rng) + mean
    weight = torch.randn(x.shape, generator=rng)
    results: list[tuple[Tensor, Tensor]] = []
    for dtype in (torch.float64, torch.float32):
        norm = nn.GroupNorm(32, 64).to(dtype)
        given = x.to(dtype)
        if dtype == torch.float32:
            given = given.contiguous(memory_format=layout)
        given.requires_grad_()
        output = norm(given)
        (output * weight.to(dtype)).sum().backward()
        assert given.grad is not None
        results.append((output.detach().double(), given.grad.double()))
    (exact, exact_grad), (found, grad) = results
    return float((found - exact).abs().max()), float((grad - exact_grad).abs().max())


@torch.no_grad()
def errors_of_tokenizer(
    tokenizer: Tokenizer, images: Tensor, layout: torch.memory_format
) -> tuple[float, float, float]:
    """Mean and largest error of pixels in 1/255, and the share of codes that differ."""
    exact = copy.deepcopy(tokenizer).double()
    codes = exact.encode(images.double())
    pixels = exact.decode(codes)
    plain = copy.deepcopy(tokenizer)
    plain.to(memory_format=layout)  # type: ignore[call-overload]
    found = plain.encode(images.contiguous(memory_format=layout))
    difference = (plain.decode(codes).double() - pixels).abs() * 127.5
    changed = (found.indices != codes.indices).double().mean()
    return float(difference.mean()), float(difference.max()), float(changed)


@click.command()
@click.option("--tokenizer", default="bundled:bits-emoji-64", show_default=True)
@click.option("--images", default=16, show_default=True)
def main(tokenizer: str, images: int) -> None:
    """Print both tables."""
    click.echo(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}"
    )
    click.echo(f"CPU capability {torch.backends.cpu.get_cpu_capability()}")
    for side in (32, 128):
        for mean in (0.0, 3.0, 30.0):
            for name, layout in LAYOUTS.items():
                out, grad = errors_of_layer(mean, side, layout)
                click.echo(
                    f"GroupNorm {side} px, mean {mean:g}, {name}: "
                    f"output {out:.1e}, gradient {grad:.1e}"
                )
    model = load_tokenizer(tokenizer)
    source = open_source("bundled:emoji", "val")
    batch = next(eval_batches(source, model.resolution, images, images))["images"]
    for name, layout in LAYOUTS.items():
        average, most, changed = errors_of_tokenizer(model, batch, layout)
        click.echo(
            f"{tokenizer}, {name}: pixels {average:.1e} (largest {most:.1e}) of 255, "
            f"codes that differ {changed:.2%}"
        )


if __name__ == "__main__":
    main()
