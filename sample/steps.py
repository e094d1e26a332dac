"""Steps of a sampler, told to whoever watches a batch being drawn.

A sampler goes through its steps by `for row in counted(rows, present)`. `watched` listens to the
share of the work that is done, `viewed` sees the tokens after each step. Nobody does unless asked,
and the device is never waited for: on CUDA the steps are told when they are queued.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from ..tokens.tokens import Tokens

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Unfinished:
    """A batch in the middle of its drawing; to be read before the next step.

    Args:
        tokens: Tokens as they are now, of the generator's spec.
        hidden: True at positions of which something is not drawn yet, (B, N) bool.
        guessed: Whether tokens hold a guess where they are hidden; False: any value.
    """

    tokens: Tokens
    hidden: Tensor
    guessed: bool


Present = Callable[[], Unfinished]
"""Gives the batch as it is now."""
Viewer = Callable[[int, int, Present], None]
"""Takes the number of the step that was made, from 1, the number of steps, and the tokens."""
_LISTENER: ContextVar[Callable[[float], None] | None] = ContextVar("listener", default=None)
_VIEWER: ContextVar[Viewer | None] = ContextVar("viewer", default=None)


def counted(rows: Sequence[T], present: Present | None = None) -> Iterator[T]:
    """Yield each of the steps, and tell after each of them the share of all that it was.

    Args:
        rows: The steps.
        present: Gives the tokens after a step, called only if someone looks; None: they are not
            shown.
    """
    listener, viewer = _LISTENER.get(), _VIEWER.get()
    for number, row in enumerate(rows, 1):
        yield row
        if listener is not None:
            listener(1 / len(rows))
        if viewer is not None and present is not None:
            viewer(number, len(rows), present)


@contextlib.contextmanager
def viewed(viewer: Viewer) -> Iterator[None]:
    """Show the tokens after each step to a function, for all that this thread draws in the block.

    Args:
        viewer: Function that takes the steps of each batch; what it raises ends the drawing.
    """
    before = _VIEWER.set(viewer)
    try:
        yield
    finally:
        _VIEWER.reset(before)


@contextlib.contextmanager
def watched(images: int, advance: Callable[[float], None]) -> Iterator[None]:
    """Tell a progress bar how many images the steps of one batch are worth.

    Args:
        images: Number of images in the batch.
        advance: Function that adds a number of images to the bar; the calls inside the block add up
            to `images`, whatever the sampler told.
    """
    told = 0.0

    def listen(share: float) -> None:
        nonlocal told
        step = min(share * images, images - told)
        told += step
        advance(step)

    before = _LISTENER.set(listen)
    try:
        yield
    finally:
        _LISTENER.reset(before)
    advance(images - told)
