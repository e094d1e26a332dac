"""Drawing: pictures by class or prompt that appear while they are drawn, by one model or by all."""

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ..config import STRICT
from ..data.images import to_pil
from ..generators.base import Generator
from ..sample.pictures import generate_images
from ..sample.steps import viewed
from .job import Job
from .limits import LIMITS, Limits
from .models import Models, class_names, title_of

MOST_SEED = 2**53 - 1
"""Largest seed; a browser has no larger whole numbers."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is to be drawn, in settings that every model has.

    Args:
        prompt: Words that the pictures should show; empty: none.
        class_name: Class of the pictures; empty: none.
        num: Number of pictures.
        seed: Seed of the first picture; the next pictures have the next seeds.
        steps: Number of steps; None: the model's own.
        guidance: Scale of guidance; None: the model's own.
    """

    __pydantic_config__ = STRICT
    prompt: str = ""
    class_name: str = ""
    num: int = 4
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None

    def check(self, limits: Limits = LIMITS) -> None:
        """Refuse what is out of range.

        Raises:
            ValueError: With the field, what was found and what is taken.
        """
        if len(self.prompt) > limits.prompt:
            raise ValueError(
                f"prompt: {len(self.prompt):,} characters, expected at most {limits.prompt:,}"
            )
        for name, value, least, most in (
            ("number of pictures", self.num, 1, limits.pictures),
            ("seed", self.seed, 0, MOST_SEED - limits.pictures),
            ("steps", self.steps, 1, limits.steps),
            ("guidance", self.guidance, 0, 100),
        ):
            if value is not None and not least <= value <= most:
                raise ValueError(f"{name}: expected {least} to {most:,}, found {value}")

    def knobs(self) -> dict[str, Any]:
        """Settings of a sampler that the wish names."""
        settings = {"num_steps": self.steps, "guidance": self.guidance}
        return {name: value for name, value in settings.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class DrawWish(Wish):
    """What one model is to draw.

    Args:
        model: Name of the generator.
    """

    __pydantic_config__ = STRICT
    model: str


@dataclass(frozen=True, kw_only=True)
class CompareWish(Wish):
    """What every model is to draw; steps are each model's own.

    Args:
        num: Number of pictures of each model.
    """

    __pydantic_config__ = STRICT
    num: int = 2


def label_of(generator: Generator, class_name: str) -> int | None:
    """Label of a class by name, or by number as `class 3` where there are no names; "": None.

    Raises:
        ValueError: If the generator has no such class.
    """
    if not class_name:
        return None
    names = class_names(generator)
    if class_name not in names:
        raise ValueError(f"class {class_name!r}: this model has {', '.join(names) or 'none'}")
    return names.index(class_name)


def conditions(generator: Generator, wish: Wish) -> dict[str, Any]:
    """What a generator is to draw by, checked.

    Returns:
        `label` and `prompt`, as far as the wish has them: the arguments of `draw_edit`.

    Raises:
        ValueError: If the generator has no such class, or cannot read the prompt.
    """
    prompt, label = wish.prompt.strip(), label_of(generator, wish.class_name)
    if prompt and not generator.reads_text:
        raise ValueError("prompt: this model reads no text; leave it empty")
    return ({} if label is None else {"label": label}) | ({"prompt": prompt} if prompt else {})


def draw(models: Models, wish: DrawWish, job: Job, limits: Limits = LIMITS) -> dict[str, Any]:
    """Draw pictures, and tell the job of every step.

    Args:
        models: Models of the page.
        wish: What to draw.
        job: Job that is told of steps with unfinished pictures.
        limits: Limits of the page.

    Returns:
        The last event: `pictures`, their `seeds`, and the `seconds` that drawing took.

    Raises:
        ValueError: If the wish is out of range, or not for this model.
    """
    wish.check(limits)
    return {"event": "done", **_drawn(models.generator(wish.model), wish, job, {})}


def _drawn(generator: Generator, wish: Wish, job: Job, about: dict[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {
        f"{name}s": [one] * wish.num for name, one in conditions(generator, wish).items()
    }
    seeds = list(range(wish.seed, wish.seed + wish.num))
    started = time.perf_counter()
    with viewed(job.viewer(generator.tokenizer, about)):
        images = generate_images(
            generator, seeds=seeds, batch_size=wish.num, **given, **wish.knobs()
        )
    return {
        "pictures": pictures_of(images),
        "seeds": seeds,
        "seconds": time.perf_counter() - started,
    }


def compare(models: Models, wish: CompareWish, job: Job, limits: Limits = LIMITS) -> dict[str, Any]:
    """Draw the same by every model, one after the other.

    Where a prompt and a class are given, a model that cannot follow one of them draws by the other.
    The job is told of every step, and of the pictures of each model: `model` is its name, `place`
    its number in the order, and `without` what it did not follow. A model that can follow nothing
    of the wish is told as left out, with the reason.

    Args:
        models: Models of the page.
        wish: What to draw.
        job: Job that is told of all pictures.
        limits: Limits of the page.

    Returns:
        The last event, with the number of models that drew.

    Raises:
        ValueError: If the wish is out of range.
    """
    wish.check(limits)
    if wish.steps is not None:
        raise ValueError("steps: each model has its own when models are compared; leave them out")
    drew = 0
    for place, (name, generator) in enumerate(models.generators.items()):
        about = {"model": name, "place": place, "title": title_of(name)}
        try:
            own, without = suited(generator, wish)
        except ValueError as error:
            job.tell({"event": "left out", **about, "reason": str(error)})
            continue
        drawn = _drawn(generator, own, job, about)
        job.tell({"event": "drawn", **about, **drawn, "without": without})
        drew += 1
    return {"event": "done", "models": drew}


def suited(generator: Generator, wish: CompareWish) -> tuple[CompareWish, str]:
    """As much of a wish as a generator can follow, and the name of what it cannot, if anything.

    Raises:
        ValueError: If it can follow nothing of it.
    """
    without = ""
    if wish.prompt.strip() and wish.class_name:
        if not generator.reads_text:
            wish, without = dataclasses.replace(wish, prompt=""), "prompt"
        elif wish.class_name not in class_names(generator):
            wish, without = dataclasses.replace(wish, class_name=""), "class"
    conditions(generator, wish)
    return wish if generator.conditional else dataclasses.replace(wish, guidance=None), without


def pictures_of(images: torch.Tensor) -> list[Image.Image]:
    """Images (B, 3, H, W) in [-1, 1] as PIL images."""
    return [to_pil(image) for image in images]
