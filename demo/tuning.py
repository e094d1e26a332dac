"""Fine-tuning of the shipped models on other pictures, in a given time, with before and after.

The tokenizer is tuned first, on the pictures. Its codes mean something else afterwards, so the
pictures are encoded with the tuned one, and the generator, which starts from the shipped weights as
well, is tuned on these tokens. How long everything takes is measured on the way, and the generator
gets what is left.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import tessella as package

from ..checkpoints import load_generator, load_tokenizer
from ..codec.encode import encode_source
from ..config import apply_overrides, build_config, read_yaml, to_dict, to_yaml
from ..data.image_source import ImageSource
from ..data.images import to_pil, to_tensor
from ..data.sources import open_source
from ..data.transforms import AugmentConfig
from ..generators.base import Generator
from ..metrics.image import psnr
from ..sample.pictures import generate_images
from ..sample.samplers import choose_sampling
from ..tokenizers.base import Tokenizer
from ..train.generator_recipe import TrainGeneratorConfig
from ..train.tokenizer_recipe import TrainTokenizerConfig
from .commands import tell, tessella
from .own_pictures import LEAST_PICTURES, OwnPictures, Written, write_pictures

TOKENIZER_SHARE = 0.35
"""Share of the time for the training of the tokenizer."""
READING_SHARE, ENCODING_SHARE = 0.05, 0.1
"""Shares of the time in which pictures are read, and encoded; where it is short, fewer are used."""
GENERATOR_LEAST = 0.2
"""Share of the time that the generator gets in any case."""
MOST_PICTURES, MOST_VIEWS = 4000, 6
_RECIPES = Path(package.__file__).parent / "configs"
_TOKENIZER_RATE, _GENERATOR_RATE = 8e-4, 4e-4
_AVERAGE = 0.98  # of the weights: few steps fit into the time of a slow machine
_AUGMENT = AugmentConfig(random_crop=0.85, aspect=1.1, flip=True)
_SHOWN = 8
_SPEED_BATCH = 16


@dataclass(frozen=True)
class State:
    """What models make of pictures that they never saw, and what they draw.

    Args:
        reconstructions: The first held-out pictures as they come back.
        decibels: Mean PSNR of all held-out pictures in dB.
        samples: New pictures, one for each name.
    """

    reconstructions: list[Image.Image]
    decibels: float
    samples: list[Image.Image]


@dataclass(frozen=True)
class Tuned:
    """A fine-tuning.

    Args:
        name: What the pictures are called.
        written: Pictures that were used.
        originals: The first held-out pictures.
        names: Text or class of each sample; "" for none.
        before: What the shipped models do.
        after: What the tuned ones do.
        stages: Names and seconds of all that was done, in order.
        seen: Number of pictures that the tokenizer and the generator have seen, repetitions and
            views included.
    """

    name: str
    written: Written
    originals: list[Image.Image]
    names: list[str]
    before: State
    after: State
    stages: list[tuple[str, float]]
    seen: tuple[int, int]


class Timetable:
    """Seconds of the parts of a work that is to end in time.

    Args:
        seconds: Seconds of all of it.
        clock: Function that returns a time in seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds, self._clock = seconds, clock
        self._started = self._last = clock()
        self.stages: list[tuple[str, float]] = []

    @property
    def left(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self.seconds - (self._clock() - self._started))

    def done(self, name: str) -> float:
        """Note that a part is done, and return its seconds."""
        now = self._clock()
        self.stages.append((name, now - self._last))
        self._last = now
        return self.stages[-1][1]

    def generator_minutes(self, around: float) -> float:
        """Minutes of the generator's training, of which `around` seconds are no training."""
        return _rounded(max(self.left - around, GENERATOR_LEAST * self.seconds) / 60)


def tune(
    pictures: OwnPictures,
    generator: Generator,
    out: Path,
    minutes: float,
    threads: int | None = None,
) -> Tuned:
    """Fine-tune a generator and its tokenizer, and compare.

    Args:
        pictures: Pictures to train on and to measure with.
        generator: Trained generator with its tokenizer, both loaded from a folder.
        out: Folder for pictures, configs and runs.
        minutes: Length of all of it.
        threads: Threads of the trainings on a CPU; None: all cores.

    Raises:
        CommandStopped: If Ctrl-C ended a training, which has been saved then.
        CommandFailed: If a training ended with an error.
        DataError: If the pictures cannot be read after all.
    """
    times, tokenizer = Timetable(60 * minutes), generator.tokenizer
    assert tokenizer.origin is not None and generator.origin is not None
    capacity = encoding_speed(tokenizer) * ENCODING_SHARE * times.seconds
    written = write_pictures(
        pictures,
        out / "pictures",
        side=tokenizer.resolution,
        classes=generator.classes,
        most=int(min(MOST_PICTURES, max(capacity, LEAST_PICTURES))),
        seconds=READING_SHARE * times.seconds,
    )
    train, val = (open_source(out / "pictures", split) for split in ("train", "val"))
    times.done("reading pictures")
    names, condition = choose_names(generator, val)
    originals = torch.stack([to_tensor(val.read(i).image) for i in range(len(val))])
    before = State(*reconstruct(tokenizer, originals), draw(generator, names, condition))
    measuring = times.done("measuring and drawing before")

    asked = TOKENIZER_SHARE * times.seconds
    tell(f"fine-tuning {tokenizer.origin} on {written.train} pictures of {pictures.name}")
    settings = tokenizer_settings(tokenizer, out, _rounded(asked / 60), threads)
    _train("tokenizer", settings, out)
    around = max(0.0, times.done("fine-tuning the tokenizer") - asked)
    tuned = load_tokenizer(out / "tokenizer" / "tokenizer", device=tokenizer.device)
    views = int(min(MOST_VIEWS, max(1, capacity // written.train)))
    name = str(out / "tokenizer" / "tokenizer")
    encode_source(tuned, train, out / "store", views=views, name=name,
                  augment=_AUGMENT if views > 1 else None)  # fmt: skip
    times.done("encoding the pictures")

    left = times.generator_minutes(around + measuring)
    tell(f"fine-tuning {generator.origin}; {times.left / 60:.1f} of {minutes:g} minutes are left")
    _train("generator", generator_settings(generator, out, left, threads), out)
    times.done("fine-tuning the generator")
    new = load_generator(out / "generator" / "generator", tokenizer=tuned, device=tokenizer.device)
    after = State(*reconstruct(tuned, originals), draw(new, names, condition))
    times.done("measuring and drawing after")
    return Tuned(
        pictures.name,
        written,
        [to_pil(image) for image in originals[:_SHOWN]],
        names,
        before,
        after,
        times.stages,
        (_seen(tuned.card), _seen(new.card)),
    )


@torch.no_grad()
def encoding_speed(tokenizer: Tokenizer) -> float:
    """Images that are encoded per second; the first batch, which takes longer, is left out."""
    side = tokenizer.resolution
    images = torch.zeros(_SPEED_BATCH, 3, side, side, device=tokenizer.device)
    tokenizer.encode(images[:1])
    started = time.perf_counter()
    tokenizer.encode(images).indices.cpu()  # waits for the device
    return _SPEED_BATCH / max(1e-6, time.perf_counter() - started)


def choose_names(generator: Generator, val: ImageSource) -> tuple[list[str], str]:
    """What to draw: captions of held-out pictures, else classes, else nothing.

    Args:
        generator: Generator that draws.
        val: Held-out pictures.

    Returns:
        Name of each picture, and the argument of `generate_images` that takes them: `prompts`,
        `classes` or "".
    """
    samples = [val.read(index) for index in range(len(val))]
    captions = list(dict.fromkeys(sample.caption or "" for sample in samples))
    labels = sorted({sample.label for sample in samples if sample.label is not None})
    if generator.text is not None and (texts := generator.text.readable(captions)):
        return [texts[i % len(texts)] for i in range(_SHOWN)], "prompts"
    if generator.num_classes and labels:
        known = [generator.classes[label] for label in labels]
        return [known[i % len(known)] for i in range(_SHOWN)], "classes"
    return [""] * _SHOWN, ""


def draw(generator: Generator, names: list[str], condition: str) -> list[Image.Image]:
    """A picture for each name; the seeds are always the same."""
    chosen: dict[str, Any] = {condition: names} if condition else {"guidance": 1.0}
    images = generate_images(generator, seeds=range(len(names)), **chosen)
    return [to_pil(image) for image in images]


@torch.no_grad()
def reconstruct(tokenizer: Tokenizer, originals: Tensor) -> tuple[list[Image.Image], float]:
    """The first pictures as they come back, and the mean PSNR of all in dB."""
    parts = torch.split(originals.to(tokenizer.device), _SPEED_BATCH)
    found = torch.cat([tokenizer.decode(tokenizer.encode(part)).cpu() for part in parts])
    found = found.clamp(-1, 1)
    return [to_pil(image) for image in found[:_SHOWN]], float(psnr(originals, found).mean())


def tokenizer_settings(
    tokenizer: Tokenizer, out: Path, minutes: float, threads: int | None
) -> TrainTokenizerConfig:
    """Config of the tokenizer's fine-tuning: the shipped recipe without a discriminator.

    Args:
        tokenizer: Shipped tokenizer.
        out: Folder of the demo, in which the pictures are.
        minutes: Length of the training.
        threads: Threads on a CPU; None: all cores.
    """
    recipe = read_yaml(_RECIPES / "tokenizer" / "bits_emoji_64.yaml")
    recipe |= {"tokenizer": to_dict(tokenizer.config), "adversarial": None}
    # Codes are in use from the start, and a discriminator would have to learn first.
    unused = ["losses.entropy_boost", "loss_weights.adversarial", "loss_weights.lecam"]
    recipe = apply_overrides(recipe, [f"{name}=null" for name in unused])
    settings = _tuned(recipe, str(tokenizer.origin), out, _TOKENIZER_RATE, minutes, threads)
    settings["data"]["augment"] = to_dict(_AUGMENT)
    return build_config(TrainTokenizerConfig, settings, name="tokenizer of the demo")


def generator_settings(
    generator: Generator, out: Path, minutes: float, threads: int | None
) -> TrainGeneratorConfig:
    """Config of the generator's fine-tuning on the tokens of the tuned tokenizer.

    Args:
        generator: Shipped generator.
        out: Folder of the demo, in which tokens and tokenizer are.
        minutes: Length of the training.
        threads: Threads on a CPU; None: all cores.
    """
    recipe = read_yaml(_RECIPES / "generator" / "maskbit_emoji_64.yaml")
    recipe |= {
        "generator": to_dict(generator.config),
        "tokenizer": str(out / "tokenizer" / "tokenizer"),
        "init_ignore": ["tokenizer"],  # it is another one, which started from the same weights
        "samples": asdict(choose_sampling(generator, None, {})),
        "samples_per_class": 1,
    }
    settings = _tuned(recipe, str(generator.origin), out, _GENERATOR_RATE, minutes, threads)
    settings["data"]["store"] = str(out / "store")
    return build_config(TrainGeneratorConfig, settings, name="generator of the demo")


def _tuned(
    recipe: dict[str, Any], init: str, out: Path, rate: float, minutes: float, threads: int | None
) -> dict[str, Any]:
    """A recipe that starts from a model, for a time; it is measured at its end alone."""
    steps = recipe["run"]["steps"]
    reports = {f"{what}_every": steps for what in ("preview", "evaluate", "checkpoint")}
    recipe["data"] = {"source": str(out / "pictures")}
    recipe["run"] = recipe["run"] | reports | {"minutes": minutes, "cpu_threads": threads}
    rates = [f"optimizer.lr.peak={rate}", f"ema_decay={_AVERAGE}"]
    return apply_overrides(recipe | {"init": init}, rates)


def _train(what: str, settings: TrainTokenizerConfig | TrainGeneratorConfig, out: Path) -> None:
    """Run a training of `tessella` with a config that is written beside it."""
    config = out / f"{what}.yaml"
    config.write_text(to_yaml(settings), encoding="utf-8")
    tessella("train", what, "--config", str(config), "--out", str(out / what))


def _rounded(minutes: float) -> float:
    """Minutes in three digits, as people read them."""
    return float(f"{minutes:.3g}")


def _seen(card: dict[str, Any] | None) -> int:
    return int((card or {}).get("images_seen", 0))
