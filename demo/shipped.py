"""What the shipped models do in the first minute: pictures by words and classes, bits, an edit."""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..data.images import to_pil, to_tensor
from ..data.sources import open_source
from ..data.transforms import resize_center_crop
from ..generators.base import Generator
from ..metrics.image import psnr
from ..page.file_sizes import files_of
from ..sample.pictures import draw_edit, generate_images
from ..tokenizers.base import Tokenizer
from ..tokens.tokens import Tokens

PROMPTS = (
    "red apple",
    "sad cat",
    "sun behind clouds",
    "blue fish",
    "birthday cake",
    "smiling face with sunglasses",
    "green tree",
    "sailing boat",
)
"""What is drawn by words; captions of the training are much like these."""
_SECONDS, _ROUNDS = 25.0, 2
"""Pictures are drawn again with other seeds while this time, for all that is drawn, is not over."""
_BATCH, _TRIALS = 8, 3  # images that are encoded, and how often, to time a number of threads
_LONGEST = 256  # longer side in pixels at which a picture is encoded
_COLLAGE = (4, 2)  # columns and rows of the picture that is encoded where none is given
_EDITED = "smirking face"  # caption of the held-out emoji that is edited, if it is there


@dataclass(frozen=True)
class Drawn:
    """Pictures with a name each.

    Args:
        name: Text or class.
        pictures: Pictures by that name.
    """

    name: str
    pictures: list[Image.Image]


@dataclass(frozen=True)
class Weight:
    """How a picture can be kept.

    Args:
        name: Name of the format.
        num_bytes: Bytes.
        decibels: PSNR of what comes back, in dB.
        picture: What comes back.
    """

    name: str
    num_bytes: int
    decibels: float
    picture: Image.Image


@dataclass(frozen=True)
class Encoded:
    """A picture as tokens.

    Args:
        original: Picture as it was encoded.
        tokens: Tokens as a picture: a square for each, in a colour of its bits.
        bits: Bits of the tokens.
        shape: Rows and columns of the tokens.
        weights: The tokens, and the files that they are compared with.
    """

    original: Image.Image
    tokens: Image.Image
    bits: int
    shape: tuple[int, int]
    weights: list[Weight]


@dataclass(frozen=True)
class Inpainted:
    """A picture of which a part was drawn anew.

    Args:
        original: Picture.
        hidden: Picture with the part that is drawn anew painted over.
        pictures: Results, everything outside of that part unchanged.
        name: Class or caption that was asked for.
    """

    original: Image.Image
    hidden: Image.Image
    pictures: list[Image.Image]
    name: str


@torch.no_grad()
def fastest_threads(tokenizer: Tokenizer, most: int) -> int:
    """Number of threads with which a batch is encoded fastest on this machine, as it is now.

    Small models are not faster on all of many cores, and on cores that other programs use, threads
    that wait for each other take several times as long as one.

    Args:
        tokenizer: Tokenizer on the CPU.
        most: Most threads; 1, 2, 4 and so on, and this number, are tried.

    Returns:
        The number, which torch uses from now on.
    """
    images = torch.zeros(_BATCH, 3, tokenizer.resolution, tokenizer.resolution)
    counts = sorted({*(1 << k for k in range(most.bit_length())), most})
    seconds = dict.fromkeys(counts, math.inf)
    for _ in range(_TRIALS):
        for count in counts:
            torch.set_num_threads(count)
            started = time.perf_counter()
            tokenizer.encode(images)
            seconds[count] = min(seconds[count], time.perf_counter() - started)
    fastest = min(counts, key=lambda count: seconds[count])
    torch.set_num_threads(fastest)
    return fastest


def draw_rounds(generator: Generator) -> tuple[list[Drawn], list[Drawn]]:
    """Pictures by words, if the generator reads any, and by classes.

    Every word and class has one picture; a second round with other seeds follows if the first was
    fast enough.

    Args:
        generator: Generator with its tokenizer.

    Returns:
        Pictures by words and by classes; empty where the model has none of these.
    """
    started = time.perf_counter()
    texts = generator.text.readable(PROMPTS) if generator.text is not None else []
    words: list[Drawn] = [Drawn(text, []) for text in texts]
    classes = [Drawn(name, []) for name in generator.classes]
    if not words and not classes:
        classes = [Drawn("no condition", []) for _ in range(8)]
    for number in range(_ROUNDS):
        begun = time.perf_counter()
        for drawn, key in ((words, "prompts"), (classes, "classes")):
            names = [one.name for one in drawn]
            condition: dict[str, Any] = {key: names} if generator.conditional else {}
            seeds = [number * len(names) + place for place in range(len(names))]
            if not drawn:
                continue
            for one, image in zip(
                drawn, generate_images(generator, seeds=seeds, **condition), strict=True
            ):
                one.pictures.append(to_pil(image))
        now = time.perf_counter()
        if now - started + (now - begun) > _SECONDS:
            break
    return words, classes


def default_picture() -> Image.Image:
    """A sheet of held-out emoji, in place of a picture of one's own."""
    source, (columns, rows) = open_source("bundled:emoji", "val"), _COLLAGE
    step = len(source) // (columns * rows)
    images = [source.read(step * number).image for number in range(columns * rows)]
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * width, rows * height))
    for number, image in enumerate(images):
        sheet.paste(image, (number % columns * width, number // columns * height))
    return sheet


@torch.no_grad()
def encode_picture(tokenizer: Tokenizer, picture: Image.Image) -> Encoded:
    """A picture through the tokenizer, and its bytes beside those of other formats.

    A tokenizer that reads any size gets the whole picture, at most 256 pixels long and cut to
    whole tokens. Otherwise, and of a picture that is then less than half as high or
    wide as those of the training, it gets the square in the middle.

    Args:
        tokenizer: Tokenizer in eval mode.
        picture: Picture, mode RGB.
    """
    fitted = _fitted(picture, tokenizer)
    original = to_tensor(fitted)[None]
    any_size = tokenizer.stride is not None
    tokens = tokenizer.encode(original.to(tokenizer.device), any_size=any_size)
    decoded = tokenizer.decode(tokens, any_size=any_size)
    weights = [_weight("tokens", math.ceil(tokens.bits_per_image / 8), original, decoded)]
    for name, num_bytes, read in files_of(fitted):
        weights.append(_weight(name, num_bytes, original, read))
    shape = tokens.spec.shape if len(tokens.spec.shape) == 2 else (1, tokens.spec.num_tokens)
    return Encoded(
        fitted,
        colours_of(tokens, shape),
        int(tokens.bits_per_image),
        (shape[0], shape[1]),
        weights,
    )


def colours_of(tokens: Tokens, shape: tuple[int, ...]) -> Image.Image:
    """Tokens of one image as a picture with one pixel for each.

    The colour is made of the codes alone, so that equal tokens look alike; of 24 bits it is the
    bits themselves.

    Args:
        tokens: Tokens of one image.
        shape: Rows and columns, whose product is their number.
    """
    codes, sizes = tokens.indices[0].tolist(), tokens.spec.codebook_sizes
    pixels = []
    for row in codes:
        number, count = 0, 1
        for code, size in zip(row, sizes, strict=True):
            number, count = number * size + code, count * size
        shade = number * (2**24 - 1) // (count - 1)
        pixels.append((shade >> 16, shade >> 8 & 255, shade & 255))
    image = Image.new("RGB", (shape[1], shape[0]))
    image.putdata(pixels)
    return image


def inpaint(generator: Generator, num: int = 4) -> Inpainted:
    """A held-out emoji whose lower half is drawn anew, several times.

    Args:
        generator: Generator with its tokenizer.
        num: Number of results.
    """
    source = open_source("bundled:emoji", "val")
    samples = (source.read(index) for index in range(len(source)))
    sample = next((s for s in samples if s.caption == _EDITED), None) or source.read(0)
    picture, name = sample.image, None
    if sample.label is not None and source.classes[sample.label] in generator.classes:
        name = source.classes[sample.label]
    width, height = picture.size
    box = (0, height // 2, width, height)
    hidden = picture.copy()
    hidden.paste((150, 150, 150), box)
    text = sample.caption if generator.reads_text else None
    images = draw_edit(generator, picture, box=box, label=name, prompt=text, num=num).images
    return Inpainted(picture, hidden, [to_pil(one) for one in images], text or name or "nothing")


def _fitted(picture: Image.Image, tokenizer: Tokenizer) -> Image.Image:
    """A picture in a size that the tokenizer reads."""
    stride, scale = tokenizer.stride, min(1.0, _LONGEST / max(picture.size))
    width, height = (round(side * scale) for side in picture.size)
    if stride is None or 2 * min(width, height) < tokenizer.resolution:
        return resize_center_crop(picture, tokenizer.resolution)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    across, down = width // stride * stride, height // stride * stride
    left, top = (width - across) // 2, (height - down) // 2
    return resized.crop((left, top, left + across, top + down))


def _weight(name: str, num_bytes: int, original: Tensor, decoded: Tensor) -> Weight:
    decibels = float(psnr(original, decoded.cpu().clamp(-1, 1)))
    return Weight(name, num_bytes, decibels, to_pil(decoded[0]))
