"""Pictures' tokens from a generator: labels and seeds in, `Tokens` out, in batches."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from ..generators.base import Generator
from ..tokens.tokens import Tokens
from .request import broadcast, check_labels, check_lengths, rows_of, whole_numbers
from .samplers import Sampling, choose_sampling, sampler_of

Precision = Literal["auto", "fp32", "bf16"]


def generate(
    generator: Generator,
    labels: Sequence[int] | Tensor | None = None,
    *,
    seeds: Sequence[int] | Tensor | None = None,
    num: int | None = None,
    sampling: Sampling | None = None,
    known: Tokens | None = None,
    mask: Tensor | None = None,
    lengths: Sequence[int] | Tensor | None = None,
    batch_size: int = 16,
    precision: Precision = "auto",
    compile: bool = False,
    progress: bool = False,
    **knobs: Any,
) -> Tokens:
    """Draw the tokens of one image per label.

        generator = tessella.load_generator("bundled:maskbit-emoji-64")
        tokens = tessella.generate(generator, [3, 7], num_steps=16, guidance=3.0, seeds=[0, 1])
        images = generator.tokenizer.decode(tokens)

    Args:
        generator: As `load_generator` returns it.
        labels: Class of each image, 0 to num_classes - 1, or -1 for none; None: no labels.
        seeds: One per image; image i depends on seed i alone. None: 0, 1, 2, ...
        num: Number of images where neither labels nor seeds say it.
        sampling: Settings of the sampler; None: those in the generator's card, or the defaults.
        known: Tokens to keep where `mask` is False, one image for all or one each.
        mask: True at positions to draw anew, (N,), (1, N) or (B, N) bool; goes with `known`.
        lengths: Valid positions of each image, for ordered tokens; None: all.
        batch_size: Images at once.
        precision: Of the network; `auto` is bf16 on CUDA and fp32 on a CPU.
        compile: Run the network through torch.compile, on CUDA inside CUDA graphs; batches are then
            filled up to `batch_size` so that shapes never change.
        progress: Show a progress bar on stderr.
        knobs: Settings of the generator's sampler that replace those of `sampling`.

    Returns:
        Tokens of the generator's spec, on its device.

    Raises:
        ValueError: If an argument is out of range or does not fit the others, the generator is in
            training mode, or its predictions are not finite.
        TypeError: If a knob is unknown.
    """
    draw = sampler_of(generator).draw
    if generator.training:
        raise ValueError(
            "generate: the generator is in training mode, where dropout would disturb the seeds; "
            "call generator.eval() first"
        )
    sampling = choose_sampling(generator, sampling, knobs)
    labels = None if labels is None else whole_numbers(labels, "labels")
    seeds = None if seeds is None else whole_numbers(seeds, "seeds")
    counts = [len(given) for given in (labels, seeds) if given is not None]
    count = counts[0] if counts else num
    if count is None:
        count = 1 if known is None else len(known)
    if any(other != count for other in [*counts, count if num is None else num]):
        raise ValueError(f"labels, seeds and num must agree, found {[*counts, num]}")
    if count < 1 or batch_size < 1:
        raise ValueError(
            f"expected at least one image and batch_size 1, found {count=}, {batch_size=}"
        )
    if precision not in get_args(Precision):
        raise ValueError(f"precision: expected {', '.join(get_args(Precision))}, found {precision}")
    device = next(generator.parameters()).device
    all_labels = check_labels(generator, labels, count).to(device)
    all_seeds = torch.arange(count) if seeds is None else seeds
    known, mask = broadcast(known, count), None if mask is None else rows_of(mask, count)
    all_lengths = None if lengths is None else check_lengths(generator, lengths, count)
    predict = compiled_predict(generator) if compile else None
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    cast = torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()
    done: list[Tokens] = []
    with tqdm(total=count, unit="image", disable=not progress) as bar, cast:
        for start in range(0, count, batch_size):
            rows = torch.arange(start, min(start + batch_size, count))
            real = len(rows)
            if compile and real < batch_size:
                rows = torch.cat([rows, rows[-1:].expand(batch_size - real)])
            tokens = draw(
                generator,
                all_labels[rows.to(device)],
                all_seeds[rows].to(device),
                sampling,
                known=None if known is None else known[rows.to(known.device)],
                mask=None if mask is None else mask[rows.to(mask.device)],
                lengths=None if all_lengths is None else all_lengths[rows].to(device),
                predict=predict,
            )
            done.append(tokens[:real])
            bar.update(real)
    return Tokens.cat(done)


def compiled_predict(generator: Generator) -> Callable[..., Tensor]:
    """`predict` through torch.compile, for one shape; on CUDA its kernels run as one CUDA graph.

    The graph writes its result where the one before stood, so each is copied out.

    Raises:
        ValueError: If the generator's sampler runs more than one network.
    """
    network = getattr(generator, "predict", None)
    if network is None:
        raise ValueError(f"compile: not for generators of type {generator.config.type}")
    if next(generator.parameters()).device.type != "cuda":
        return torch.compile(network, fullgraph=True, dynamic=False)
    graphed = torch.compile(network, fullgraph=True, dynamic=False, mode="reduce-overhead")

    def predict(*arguments: Any) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return graphed(*arguments).clone()

    return predict
