"""One piece of work for one browser: how it tells what it does, and what ends it early."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.images import to_uint8
from ..errors import UserError
from ..sample.steps import Present, Unfinished
from ..tokenizers.base import Tokenizer
from ..tokens.tokens import TokenSpec

FRAME_SECONDS = 0.1
"""Least time between two looks at unfinished pictures."""
FRAME_SHARE = 1
"""A look is followed by at least this many times as much drawing: looking costs at most half."""
GUESS_OPACITY = 90
"""Opacity of what is guessed, but not drawn yet, 0 to 255."""


class JobTooLong(UserError):
    """A job that took longer than a job may."""


@dataclass
class Job:
    """A job that tells events to whoever asked for it.

    Args:
        tell: Function that takes an event, a dict of plain values and PIL images; it raises an
            error if nobody listens any more, and the job ends with it.
        seconds: Longest time that the job may take, counted from now.
        frame_seconds: Least time between two looks at unfinished pictures; 0: every step is shown.
    """

    tell: Callable[[dict[str, Any]], None]
    seconds: float = 120.0
    frame_seconds: float = FRAME_SECONDS
    _started: float = field(default_factory=time.monotonic)
    _next: float = 0.0

    def check(self) -> None:
        """Whether the job may go on.

        Raises:
            JobTooLong: If its time is over.
        """
        if time.monotonic() - self._started > self.seconds:
            raise JobTooLong(
                f"stopped after {self.seconds:g} seconds, the most that one job may take; draw "
                "fewer pictures or steps, or start tessella demo with a larger --time-limit"
            )

    def viewer(
        self, tokenizer: Tokenizer | None, about: dict[str, Any]
    ) -> Callable[[int, int, Present], None]:
        """A viewer of steps that tells each, now and then with the unfinished pictures.

        Args:
            tokenizer: Tokenizer that decodes the tokens; None: no pictures are shown.
            about: What is said in every event beside the step.
        """

        def look(step: int, steps: int, present: Present) -> None:
            self.check()
            event = {"event": "step", "step": step, "steps": steps, **about}
            if tokenizer is not None and step < steps and time.monotonic() >= self._next:
                before = time.monotonic()
                event["pictures"] = unfinished_pictures(tokenizer, present())
                now = time.monotonic()
                rest = FRAME_SHARE * (now - before) if self.frame_seconds else 0
                self._next = now + max(self.frame_seconds, rest)
            self.tell(event)

        return look


@torch.no_grad()
def unfinished_pictures(tokenizer: Tokenizer, batch: Unfinished) -> list[Image.Image]:
    """Pictures of which a part is not drawn yet: there they are faint guesses, or transparent.

    Args:
        tokenizer: Tokenizer that decodes the tokens.
        batch: Tokens of B pictures.

    Returns:
        One picture each, mode RGBA.
    """
    pixels = to_uint8(tokenizer.decode(batch.tokens)).permute(0, 2, 3, 1).cpu().numpy()
    height, width = pixels.shape[1:3]
    pictures = []
    for picture, hidden in zip(pixels, batch.hidden.cpu(), strict=True):
        levels = torch.where(hidden, GUESS_OPACITY if batch.guessed else 0, 255)
        alpha = cell_image(levels, batch.tokens.spec)
        alpha = alpha.resize((width, height), Image.Resampling.NEAREST)
        shown = Image.fromarray(picture).convert("RGBA")
        shown.putalpha(alpha)
        pictures.append(shown)
    return pictures


def cell_image(levels: Tensor, spec: TokenSpec) -> Image.Image:
    """Grey picture of values 0 to 255, (N,), with a pixel for each position of a grid.

    Where positions are no grid, their tokens belong to no place of the picture: everything is 255.
    """
    if len(spec.shape) != 2:
        return Image.new("L", (1, 1), 255)
    return Image.fromarray(levels.view(spec.shape).numpy().astype(np.uint8))
