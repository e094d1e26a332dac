"""Drawing of tokens from a generator: labels and seeds in, `Tokens` out, in batches."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..generators.base import Generator
from ..progress import progress_bar
from ..tokens.tokens import Tokens
from .request import Request
from .sampler import Sampling
from .samplers import choose_sampling, sampler_of
from .steps import watched

Precision = Literal["auto", "fp32", "bf16"]


def generate(
    generator: Generator,
    labels: Sequence[int] | Tensor | None = None,
    *,
    prompts: Sequence[str] | str | None = None,
    negative_prompts: Sequence[str] | str | None = None,
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

    Example:
        >>> import tessella
        >>> generator = tessella.load_generator("bundled:maskbit-emoji-64")
        >>> tokens = tessella.generate(generator, [3, 7], num_steps=2, guidance=3.0, seeds=[0, 1])
        >>> tokens.indices.shape
        torch.Size([2, 64, 24])
        >>> generator.tokenizer.decode(tokens).shape
        torch.Size([2, 3, 64, 64])

    Args:
        generator: Generator in eval mode, as `load_generator` returns it.
        labels: Class of each image, 0 to num_classes - 1, or -1 for none; None: no labels.
        prompts: Text of each image, "" for none, or one text for all; None: no texts. Labels and
            prompts can be given together.
        negative_prompts: Texts that guidance leads away from, in the same form; None: away from
            no condition. Guidance must not be 1.
        seeds: Seed of each image; image i depends on seed i alone. None: 0, 1, 2, ...
        num: Number of images if neither labels nor seeds nor a list of prompts are given; None: 1,
            or that of `known`.
        sampling: Settings of the sampler; None: those in the generator's card, or the defaults.
        known: Tokens to keep where `mask` is False, one image for all or one each.
        mask: True where to draw anew, bool; goes with `known`. Positions (N,), (1, N) or (B, N), or
            pixels (H, W), (1, H, W) or (B, H, W), of which one hides the whole token of its cell.
        lengths: Number of real positions of each image, for ordered tokens; None: all.
        batch_size: Number of images drawn at once.
        precision: Precision of the network; `auto` is bf16 on CUDA and fp32 on a CPU.
        compile: Whether to run the network through torch.compile, on CUDA inside CUDA graphs;
            batches are then padded to `batch_size` so that shapes never change.
        progress: Whether to show a progress bar on stderr.
        knobs: Settings of the generator's sampler by name that replace those of `sampling`.

    Returns:
        Tokens of the generator's spec, on its device.

    Raises:
        ValueError: If an argument is out of range or contradicts another, the generator is in
            training mode, or its predictions are not finite.
        TypeError: If the generator's sampler has no setting of a name in `knobs`.
    """
    sampling = choose_sampling(generator, sampling, knobs)
    request = Request.make(
        generator,
        labels,
        seeds=seeds,
        num=num,
        known=known,
        mask=mask,
        lengths=lengths,
        prompts=prompts,
        negative_prompts=negative_prompts,
    )
    with progress_bar(len(request), "image", silent=not progress) as bar:
        batches = generate_batches(
            generator,
            request,
            sampling,
            batch_size=batch_size,
            precision=precision,
            compile=compile,
            advance=bar.update,
        )
        return Tokens.cat(list(batches))


def generate_batches(
    generator: Generator,
    request: Request,
    sampling: Sampling,
    *,
    batch_size: int = 16,
    precision: Precision = "auto",
    compile: bool = False,
    advance: Callable[[float], None] | None = None,
) -> Iterator[Tokens]:
    """Draw the images of a request, batch by batch.

    Args:
        generator: Generator in eval mode.
        request: Images to draw, from `Request.make`.
        sampling: Settings of the generator's sampler.
        batch_size: Number of images drawn at once.
        precision: Precision of the network; `auto` is bf16 on CUDA and fp32 on a CPU.
        compile: Whether to run the network through torch.compile, as in `generate`.
        advance: Function that takes the number of images that a step of the sampler is worth, such
            as `update` of a progress bar; None: nobody watches.

    Returns:
        Iterator over the tokens of `batch_size` images each; the last batch may have fewer.

    Raises:
        ValueError: If the generator is in training mode, or an option is out of range; and, while
            drawing, if predictions are not finite.
    """
    if generator.training:
        raise ValueError(
            "generate: the generator is in training mode, where dropout makes images differ from "
            "those of their seeds; call generator.eval() first"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
    if request.negative_prompts is not None and sampling.guidance == 1:
        raise ValueError(
            "negative_prompts: guidance leads away from them, and it is 1 (off); expected another "
            "guidance, or no negative prompts"
        )
    if precision not in get_args(Precision):
        choices = ", ".join(get_args(Precision))
        raise ValueError(f"precision: expected {choices}, found {precision}")
    draw = sampler_of(generator).draw
    predict = compiled_predict(generator) if compile else None
    kind = request.seeds.device.type
    bf16 = precision == "bf16" or (precision == "auto" and kind == "cuda")

    def batches() -> Iterator[Tokens]:
        for start in range(0, len(request), batch_size):
            part = request[start : start + batch_size]
            images = len(part)
            if compile:
                part = part.padded(batch_size)
            watching = contextlib.nullcontext() if advance is None else watched(images, advance)
            rounding = torch.autocast(kind, torch.bfloat16) if bf16 else contextlib.nullcontext()
            with rounding, watching:
                tokens = draw(generator, part, sampling, predict=predict)
            yield tokens[:images]

    return batches()


def compiled_predict(generator: Generator) -> Callable[..., Tensor]:
    """`generator.predict` through torch.compile, for one shape; on CUDA inside a CUDA graph.

    A CUDA graph overwrites its previous result, so every result is copied.

    Raises:
        ValueError: If the generator has no single network that could be compiled.
    """
    network = getattr(generator, "predict", None)
    if network is None:
        raise ValueError(
            f"compile: not for generators of type {generator.config.type}, which have no single "
            "network to compile; expected False"
        )
    if next(generator.parameters()).device.type != "cuda":
        return torch.compile(network, fullgraph=True, dynamic=False)
    graphed: Callable[..., Tensor] = torch.compile(
        network, fullgraph=True, dynamic=False, mode="reduce-overhead"
    )

    def predict(*arguments: Any) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call] # torch's
        logits: Tensor = graphed(*arguments)
        return logits.clone()

    return predict
