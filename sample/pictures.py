"""Pictures in one call, drawn or edited: `generate` and the tokenizer's decoder together.

Everything random depends on the seeds alone.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..data.images import to_tensor
from ..data.transforms import resize_center_crop
from ..generators.base import Generator
from ..model_folders import trained_on
from ..tokens.tokens import Tokens
from .edit import between, read_masked_image, variation_mask
from .edit import enrich as enrich_tokens
from .generate import Precision, generate, generate_batches
from .masks import box_mask, token_mask
from .request import Request, class_labels, whole_numbers
from .sampler import Sampling
from .samplers import choose_sampling
from .window import blend, choose_window, encode_known, resize_mask


@torch.no_grad()
def generate_images(
    generator: Generator,
    labels: Sequence[int] | Tensor | None = None,
    *,
    prompts: Sequence[str] | str | None = None,
    negative_prompts: Sequence[str] | str | None = None,
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
        labels: Class of each picture by number, or -1 for none; None: those of `classes`, or none.
        prompts: Text of each picture, "" for none; a single string is the text of all pictures.
            The generator must read text. Classes and prompts can be given together.
        negative_prompts: Texts that guidance leads away from, in the same form.
        classes: Class of each picture by name; a single string is the class of all pictures.
        seeds: Seed of each picture; picture i depends on seed i alone. None: 0, 1, 2, ...
        num: Number of pictures if no labels, seeds, or list of classes or prompts are given.
        sampling: Settings of the sampler; None: the generator's own.
        lengths: Number of real positions of each picture, for ordered tokens; None: all.
        batch_size: Number of pictures drawn and decoded at once.
        precision: Precision of the network; `auto` is bf16 on CUDA and fp32 on a CPU.
        compile: Whether to run the network through torch.compile, as in `generate`.
        knobs: Settings of the generator's sampler by name, such as `num_steps` and `guidance`.

    Returns:
        Images (B, 3, R, R) in [-1, 1], on the CPU.

    Raises:
        ValueError: If an argument is out of range or contradicts another.
        TypeError: If the generator's sampler has no setting of a name in `knobs`.
    """
    if labels is not None and classes is not None:
        raise ValueError("labels and classes are both given; give labels or classes, not both")
    seeds = None if seeds is None else whole_numbers(seeds, "seeds")
    if isinstance(classes, str):
        counts = [len(g) for g in (seeds, prompts) if g is not None and not isinstance(g, str)]
        classes = [classes] * (counts[0] if counts else num or 1)
    if classes is not None:
        labels = class_labels(generator, classes)
    sampling = choose_sampling(generator, sampling, knobs)
    request = Request.make(
        generator,
        labels,
        seeds=seeds,
        num=num,
        lengths=lengths,
        prompts=prompts,
        negative_prompts=negative_prompts,
    )
    batches = generate_batches(
        generator, request, sampling, batch_size=batch_size, precision=precision, compile=compile
    )
    return torch.cat([generator.tokenizer.decode(tokens).cpu() for tokens in batches])


@dataclass(frozen=True, eq=False)
class Edited:
    """Result of an edit.

    Args:
        images: Images (B, 3, H, W) in [-1, 1], on the CPU: of the picture's size where a mask or
            a box was drawn anew and pasted, else of the tokenizer's.
        tokens: Tokens that were drawn.
        facts: Facts about the edit: `size` of the images; `drawn_anew`, the mean number of
            positions that were drawn; `known_unchanged`, whether all others have the same tokens
            as before; `label`, or `labels` and `shares` of an interpolation. With a picture
            `trained_on`, the training data of the generator; with a mask or a box `window`, the
            left, top and side of the square that was worked on, and `undecided`, the number of
            positions outside the region that were drawn as well, because the known pixels do not
            decide them.
    """

    images: Tensor
    tokens: Tokens
    facts: dict[str, Any] = field(default_factory=dict)


def edit(generator: Generator, image: Path | str | Image.Image | None = None, **how: Any) -> Tensor:
    """Draw parts of a picture anew; the arguments are those of `draw_edit`.

    Example:
        >>> import tessella
        >>> from PIL import Image
        >>> generator = tessella.load_generator("bundled:maskbit-emoji-64")
        >>> picture = Image.new("RGB", (90, 80), "red")
        >>> tessella.edit(generator, picture, box=(0, 0, 32, 16), num_steps=2).shape
        torch.Size([1, 3, 80, 90])

    Returns:
        Images (num, 3, H, W) in [-1, 1], on the CPU.
    """
    return draw_edit(generator, image, **how).images


@torch.no_grad()
def draw_edit(
    generator: Generator,
    image: Path | str | Image.Image | None = None,
    *,
    mask: Path | str | Image.Image | Tensor | None = None,
    box: tuple[int, int, int, int] | None = None,
    outside: bool = False,
    variation: float | None = None,
    enrich: int | None = None,
    label: int | str | None = None,
    prompt: str | None = None,
    negative_prompt: str | None = None,
    to: int | str | None = None,
    num: int = 1,
    seed: int = 0,
    paste: bool | None = None,
    sampling: Sampling | None = None,
    batch_size: int = 16,
    precision: Precision = "auto",
    **knobs: Any,
) -> Edited:
    """Draw parts of a picture anew, or interpolate between two classes.

    Exactly one of `mask`, `box`, `variation` and `enrich` is given with a picture. With `mask` and
    `box` the result is the picture with the region drawn anew in its place and all other pixels
    bit for bit as they were; what is drawn does not depend on the pixels that it replaces.

    Args:
        generator: Generator in eval mode with its tokenizer.
        image: Picture of any size. With `mask` or `box`, a square around the region is resized to
            the tokenizer's resolution (`window.choose_window`); with `variation` or `enrich`, its
            centre crop. None: whole pictures are drawn, only with `to`.
        mask: Region to draw anew: a picture of the same size as `image`, light in the region, or
            (H, W) bool of that size, True in the region.
        box: Region to draw anew as (left, top, right, bottom), in pixels of the picture.
        outside: Whether to draw anew what lies outside the box, not what it covers.
        variation: Share of randomly chosen positions to draw anew, in (0, 1].
        enrich: Number of times that everything is drawn anew, a quarter at a time.
        label: Class of the result, by number or name; None: no label.
        prompt: Text of the result; None: no text. The generator must read text.
        negative_prompt: Text that guidance leads away from; None: away from no condition.
        to: Class, by number or name, to which `num` mixtures lead from `label`, all with one seed.
        num: Number of pictures.
        seed: Seed of the first picture; the next pictures have the next seeds.
        paste: Whether the region is put into the picture; False: the whole square is returned as
            the tokenizer decodes it. None: True with a mask or a box.
        sampling: Settings of the sampler; None: the generator's own.
        batch_size: Number of pictures drawn at once.
        precision: Precision of the network, as in `generate`.
        knobs: Settings of the sampler by name.

    Raises:
        ValueError: If an argument contradicts another, the picture or the generator.
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
    texts = {"prompt": prompt, "negative_prompt": negative_prompt}
    facts |= {name: text for name, text in texts.items() if text is not None}
    if image is not None:
        facts["trained_on"] = trained_on(generator.card)
    if first is not None and last is not None:
        del facts["label"]
        generator, labels = between(generator, first, last, num), list(range(num))
        facts |= {"labels": [first, last], "shares": [i / (num - 1) for i in range(num)]}
    seeds = seed + (torch.zeros(num, dtype=torch.int64) if to is not None else torch.arange(num))
    drawing: dict[str, Any] = {"seeds": seeds, "sampling": sampling}
    drawing |= {"batch_size": batch_size, "precision": precision}
    drawing |= {"prompts": prompt, "negative_prompts": negative_prompt}
    facts["drawn_anew"] = spec.num_tokens

    def decoded(tokens: Tokens) -> Tensor:
        parts = [tokens[i : i + batch_size] for i in range(0, num, batch_size)]
        return torch.cat([tokenizer.decode(part).cpu() for part in parts])

    def drawn_around(known: Tokens, hidden: Tensor) -> Tokens:
        tokens = generate(generator, labels, known=known, mask=hidden, **drawing)
        same = (tokens.indices == known.indices).all(-1)
        facts["drawn_anew"] = int(hidden.sum(1).float().mean().round())
        facts["known_unchanged"] = bool(same[~hidden.to(tokens.device)].all())
        return tokens

    def result(images: Tensor, tokens: Tokens) -> Edited:
        return Edited(images, tokens, facts | {"size": f"{images.shape[3]}x{images.shape[2]}"})

    if image is None:
        tokens = generate(generator, labels, **drawing)
        return result(decoded(tokens), tokens)
    picture, region = read_masked_image(image, mask)
    if box is not None:
        region = box_mask(box, picture.height, picture.width, outside=outside)
    if region is None:
        crop = to_tensor(resize_center_crop(picture, tokenizer.resolution))
        known = tokenizer.encode(crop[None].to(tokenizer.device))
        if enrich is not None:
            tokens = enrich_tokens(generator, known, labels, repeats=enrich, **drawing)
        else:
            assert variation is not None
            tokens = drawn_around(known, variation_mask(seeds, spec, variation))
        return result(decoded(tokens), tokens)
    window, pixels = choose_window(region, tokenizer.resolution), to_tensor(picture)
    hidden = window.cut(region, True)  # nothing is known beyond the picture
    known, undecided = encode_known(tokenizer, window.cut(pixels, 0.0), hidden)
    marked = token_mask(resize_mask(hidden, tokenizer.resolution), spec)
    facts["undecided"] = int((undecided & ~marked).sum())
    facts["window"] = [window.left, window.top, window.side]
    tokens = drawn_around(known, (marked | undecided)[None].expand(num, -1))
    images = decoded(tokens)
    if paste is not False:
        cell = window.side / max(spec.shape)
        images = blend(pixels, images, region, window, radius=max(1, round(cell / 2)))
    return result(images, tokens)


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
    paste: bool | None = None,
    names: Mapping[str, str] = _NAMES,
) -> None:
    """Refuse arguments of `draw_edit` that contradict each other, before a model is loaded.

    Args:
        image: Picture, or None; this and the others as in `draw_edit`.
        mask: Mask of the region to draw anew, or None.
        box: Box of the region to draw anew, or None.
        outside: Whether what lies outside the box is drawn anew.
        variation: Share of positions to draw anew, or None.
        enrich: Number of times that everything is drawn anew, or None.
        label: Class of the result, or None.
        to: Class to which an interpolation leads, or None.
        num: Number of pictures.
        paste: Whether the region is put into the picture, or None.
        names: Names of the arguments in messages, e.g. the options of a command line.

    Raises:
        ValueError: If two arguments contradict each other, or one is missing.
    """
    if not isinstance(num, int) or num < 1:
        raise ValueError(f"{names['num']}: expected a whole number of at least 1, found {num!r}")
    if box is not None and (len(box) != 4 or not all(isinstance(side, int) for side in box)):
        raise ValueError(f"{names['box']}: expected four whole numbers of pixels, found {box!r}")
    for name, picture, kinds in (
        ("image", image, str | os.PathLike | Image.Image),
        ("mask", mask, str | os.PathLike | Image.Image | Tensor),
    ):
        if picture is not None and not isinstance(picture, kinds):
            raise TypeError(
                f"{names[name]}: expected a path or a PIL image, found {type(picture).__name__}"
            )
    ways = sum(given is not None for given in (mask, box, variation, enrich))
    if ways > 1 or (image is not None and not ways):
        four = f"{names['mask']}, {names['box']}, {names['variation']} and {names['enrich']}"
        raise ValueError(f"give one of {four}: the part of the picture to draw anew")
    if image is None and (ways or to is None):
        raise ValueError(
            f"{names['image']}: no picture given; it can be left out only with {names['to']}"
        )
    if to is not None and label is None:
        raise ValueError(f"{names['to']} needs {names['label']}: the class to start from")
    if to is not None and num < 2:
        raise ValueError(
            f"{names['num']} {num}: from one class to another it takes at least 2 pictures, one "
            "for each class"
        )
    if outside and box is None:
        raise ValueError(f"{names['outside']} goes with {names['box']}; no box given")
    if paste is not None and mask is None and box is None:
        raise ValueError(
            f"{names['paste']} goes with {names['mask']} or {names['box']}, outside which the "
            "picture's own pixels are kept; neither is given"
        )


def _label(generator: Generator, label: int | str | None) -> int | None:
    """Number of a class given by number or by name; None means no label."""
    return class_labels(generator, [label])[0] if isinstance(label, str) else label
