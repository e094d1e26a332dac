"""Steps of a sampler, told to whoever watches a batch being drawn.

A sampler goes through its steps by `for row in counted(rows)`; `watched` listens. Nobody listens
unless asked, and the device is never waited for: on CUDA the steps are told when they are queued.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
_LISTENER: ContextVar[Callable[[float], None] | None] = ContextVar("listener", default=None)


def counted(rows: Sequence[T]) -> Iterator[T]:
    """Yield each of the steps, and tell after each of them the share of all that it was."""
    listener = _LISTENER.get()
    for row in rows:
        yield row
        if listener is not None:
            listener(1 / len(rows))


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
