"""Pictures in one call: drawn by classes, or edited.

`generate` gives tokens; here they are decoded as well. Everything random depends on the seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..generators.base import Generator
from ..tokens.tokens import Tokens
from .edit import between, box_mask, read_masked_image, token_mask, variation_mask
from .edit import enrich as enrich_tokens
from .generate import Precision, generate, generate_batches
from .request import Request, class_labels
from .sampler import Sampling
from .samplers import choose_sampling


@torch.no_grad()
def generate_images(
    generator: Generator,
    labels: Sequence[int] | Tensor | None = None,
    *,
    classes: Sequence[str] | str | None = None,
    seeds: Sequence[int] | Tensor | None = None,
    num: int | None = None,
    sampling: Sampling | None = None,
    lengths: Sequence[int] | Tensor | None = None,
    batch_size: int = 16,
    precision: Precision = "auto",
    compile: bool = False,
    **knobs: Any,
) -> Tensor:
    """Draw pictures.

    Example:
        >>> import tessella
        >>> generator = tessella.load_generator("bundled:maskbit-emoji-64")
        >>> images = tessella.generate_images(generator, classes=["face", "animal"], num_steps=2)
        >>> images.shape
        torch.Size([2, 3, 64, 64])

    Args:
        generator: Generator in eval mode with its tokenizer, as `load_generator` returns it.
        labels: Class of each picture by number, or -1 for none; None: by `classes`, or none.
        classes: Class of each picture by name; one name counts for all `seeds`, or for `num`.
        seeds: One seed per picture; picture i depends on seed i alone. None: 0, 1, 2, ...
        num: Number of pictures where labels, classes and seeds do not say it.
        sampling: Settings of the sampler; None: the generator's own.
        lengths: Real positions of each picture, for ordered tokens; None: all.
        batch_size: Pictures drawn and decoded at once.
        precision: Precision of the network; `auto` is bf16 on CUDA and fp32 on a CPU.
        compile: Run the network through torch.compile, as in `generate`.
        knobs: Settings of the generator's sampler by name, such as `num_steps` and `guidance`.

    Returns:
        Images (B, 3, R, R) in [-1, 1], on the CPU.

    Raises:
        ValueError: If an argument is out of range or does not fit the others.
        TypeError: If a knob is unknown.
    """
    if labels is not None and classes is not None:
        raise ValueError("give labels or classes, not both")
    if isinstance(classes, str):
        count = num if seeds is None else len(seeds)
        classes = [classes] * (1 if count is None else count)
    if classes is not None:
        labels = class_labels(generator, classes)
    sampling = choose_sampling(generator, sampling, knobs)
    request = Request.make(generator, labels, seeds=seeds, num=num, lengths=lengths)
    batches = generate_batches(
        generator, request, sampling, batch_size=batch_size, precision=precision, compile=compile
    )
    return torch.cat([generator.tokenizer.decode(tokens).cpu() for tokens in batches])


@dataclass(frozen=True, eq=False)
class Edited:
    """Pictures that were edited.

    Args:
        images: Images (B, 3, R, R) in [-1, 1], on the CPU.
        tokens: Tokens that they were decoded from.
        facts: For records: `drawn_anew`, the mean number of positions; `known_unchanged`, whether
            all others are as before; the label, or both and the shares of the way between them.
    """

    images: Tensor
    tokens: Tokens
    facts: dict[str, Any] = field(default_factory=dict)


def edit(generator: Generator, image: Path | str | Image.Image | None = None, **how: Any) -> Tensor:
    """Draw parts of a picture anew; `draw_edit` documents the arguments.

    Example:
        >>> import tessella
        >>> from PIL import Image
        >>> generator = tessella.load_generator("bundled:maskbit-emoji-64")
        >>> picture = Image.new("RGB", (90, 90), "red")
        >>> tessella.edit(generator, picture, box=(0, 0, 32, 16), num_steps=2).shape
        torch.Size([1, 3, 64, 64])

    Returns:
        Images (num, 3, R, R) in [-1, 1], on the CPU.
    """
    return draw_edit(generator, image, **how).images


@torch.no_grad()
def draw_edit(
    generator: Generator,
    image: Path | str | Image.Image | None = None,
    *,
    mask: Path | str | Tensor | None = None,
    box: tuple[int, int, int, int] | None = None,
    outside: bool = False,
    variation: float | None = None,
    enrich: int | None = None,
    label: int | str | None = None,
    to: int | str | None = None,
    num: int = 1,
    seed: int = 0,
    paste: bool = False,
    sampling: Sampling | None = None,
    batch_size: int = 16,
    precision: Precision = "auto",
    **knobs: Any,
) -> Edited:
    """Draw parts of a picture anew, or the way from one class to another.

    Args:
        generator: Generator in eval mode with its tokenizer.
        image: Picture of any size; its centre is cropped to the tokenizer's resolution. None: only
            with `to`, where whole pictures are drawn.
        mask: What to draw anew: a picture of the same size, light where new, or (R, R) bool, True
            where new.
        box: The same as left, top, right, bottom in pixels of the tokenizer's resolution.
        outside: Draw anew what the box leaves out, instead of what it covers.
        variation: Draw this share of the positions anew, chosen at random.
        enrich: Draw everything anew, a quarter at a time, so many times over.
        label: Class of the result, by number or name; None: no label.
        to: Draw `num` mixtures that lead from the class `label` to this class, all with one seed.
        num: Number of pictures.
        seed: Seed of the first picture; the others have the next ones.
        paste: Put the picture's own pixels back outside the mask or box.
        sampling: Settings of the sampler; None: the generator's own.
        batch_size: Pictures drawn at once.
        precision: Precision of the network, as in `generate`.
        knobs: Settings of the sampler by name.

    Raises:
        ValueError: If the arguments do not fit each other, the picture or the generator.
    """
    check_edit(
        image=image,
        mask=mask,
        box=box,
        outside=outside,
        variation=variation,
        enrich=enrich,
        label=label,
        to=to,
        num=num,
        paste=paste,
    )
    sampling = choose_sampling(generator, sampling, knobs)
    tokenizer, spec = generator.tokenizer, generator.spec
    first, last = (_label(generator, chosen) for chosen in (label, to))
    labels = None if first is None else [first] * num
    facts: dict[str, Any] = {"label": first}
    if first is not None and last is not None:
        generator, labels = between(generator, first, last, num), list(range(num))
        facts = {"labels": [first, last], "shares": [i / (num - 1) for i in range(num)]}
    seeds = seed + (torch.zeros(num, dtype=torch.int64) if to is not None else torch.arange(num))
    drawing: dict[str, Any] = {"seeds": seeds, "sampling": sampling}
    drawing |= {"batch_size": batch_size, "precision": precision}
    facts["drawn_anew"] = spec.num_tokens
    pixels = hidden_pixels = None
    if image is None:
        tokens = generate(generator, labels, **drawing)
    else:
        mask_file = None if isinstance(mask, Tensor) else mask
        pixels, hidden_pixels = read_masked_image(image, mask_file, tokenizer.resolution)
        if isinstance(mask, Tensor):
            hidden_pixels = mask
        if box is not None:
            hidden_pixels = box_mask(box, tokenizer.resolution, outside=outside)
        known = tokenizer.encode(pixels[None].to(tokenizer.device))
        if enrich is not None:
            tokens = enrich_tokens(generator, known, labels, repeats=enrich, **drawing)
        else:
            if hidden_pixels is not None:
                hidden = token_mask(hidden_pixels, spec)[None].expand(num, -1)
            else:
                assert variation is not None
                hidden = variation_mask(seeds, spec, variation)
            tokens = generate(generator, labels, known=known, mask=hidden, **drawing)
            same = (tokens.indices == known.indices).all(-1)
            facts["drawn_anew"] = int(hidden.sum(1).float().mean().round())
            facts["known_unchanged"] = bool(same[~hidden.to(tokens.device)].all())
    parts = [tokenizer.decode(tokens[i : i + batch_size]).cpu() for i in range(0, num, batch_size)]
    images = torch.cat(parts)
    if paste and pixels is not None and hidden_pixels is not None:
        images = torch.where(hidden_pixels, images, pixels)
    return Edited(images, tokens, facts)


_NAMES = {name: name for name in ("image", "mask", "box", "outside", "variation", "enrich")}
_NAMES |= {name: name for name in ("label", "to", "num", "paste")}


def check_edit(
    *,
    image: Any = None,
    mask: Any = None,
    box: Any = None,
    outside: bool = False,
    variation: float | None = None,
    enrich: int | None = None,
    label: int | str | None = None,
    to: int | str | None = None,
    num: int = 1,
    paste: bool = False,
    names: Mapping[str, str] = _NAMES,
) -> None:
    """Refuse arguments of `draw_edit` that do not fit each other, before a model is loaded.

    Args:
        image: Picture, or None; this and the others as in `draw_edit`.
        mask: Picture or tensor of what to draw anew, or None.
        box: Box of what to draw anew, or None.
        outside: Whether what the box leaves out is drawn anew.
        variation: Share of positions to draw anew, or None.
        enrich: How often everything is drawn anew, or None.
        label: Class of the result, or None.
        to: Class at the end of a way between classes, or None.
        num: Number of pictures.
        paste: Whether the picture's own pixels are put back.
        names: What the arguments are called in messages, e.g. options of a command line.

    Raises:
        ValueError: If they do not fit.
    """
    ways = sum(given is not None for given in (mask, box, variation, enrich))
    if ways > 1 or (image is not None and not ways):
        four = f"{names['mask']}, {names['box']}, {names['variation']} and {names['enrich']}"
        raise ValueError(f"give one of {four}: the part of the picture to draw anew")
    if image is None and (ways or to is None):
        raise ValueError(f"{names['image']}: no picture given; only {names['to']} do without")
    if to is not None and label is None:
        raise ValueError(f"{names['to']} go with {names['label']}: the class to start from")
    if to is not None and num < 2:
        raise ValueError(
            f"{names['num']} {num}: from one class to another it takes at least 2 pictures"
        )
    if outside and box is None:
        raise ValueError(f"{names['outside']} goes with {names['box']}")
    if paste and mask is None and box is None:
        raise ValueError(
            f"{names['paste']} goes with {names['mask']} or {names['box']}: they say where the "
            "outside is"
        )


def _label(generator: Generator, label: int | str | None) -> int | None:
    """A class given by number or by name; None: none."""
    return class_labels(generator, [label])[0] if isinstance(label, str) else label
