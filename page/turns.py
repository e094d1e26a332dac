"""One job at a time, and a few that wait in a line."""

import contextlib
import threading
from collections.abc import Iterator

from ..errors import UserError


class Busy(UserError):
    """As many jobs wait as may."""


class Turns:
    """Places in a line, of which the first one works.

    Args:
        waiting: Most places behind the first one.
    """

    def __init__(self, waiting: int) -> None:
        self._waiting = waiting
        self._line: list[object] = []
        self._moved = threading.Condition()

    @contextlib.contextmanager
    def place(self) -> Iterator["Place"]:
        """A place at the end of the line, which is left at the end of the block.

        Raises:
            Busy: If the line is full.
        """
        own = Place(self)
        with self._moved:
            if len(self._line) > self._waiting:
                raise Busy(
                    f"busy: one job runs and {self._waiting} wait; try again in a few seconds"
                )
            self._line.append(own)
        try:
            yield own
        finally:
            with self._moved:
                self._line.remove(own)
                self._moved.notify_all()

    def before(self, place: "Place", seconds: float) -> int:
        """Number of places before this one, once it is 0 or after some seconds."""
        with self._moved:
            self._moved.wait_for(lambda: self._line[0] is place, seconds)
            return self._line.index(place)


class Place:
    """A place in a line; see `Turns.place`."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def wait(self, seconds: float) -> int:
        """Wait for the turn, at most some seconds.

        Returns:
            Number of jobs that come before; 0: it is the turn of this one.
        """
        return self._turns.before(self, seconds)
