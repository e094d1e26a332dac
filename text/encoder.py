"""The interface of text encoders: texts to states, one for each token of a text.

An encoder says what it does not know: `check` refuses prompts that it would read only in part or
not at all, before anything is drawn by them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ..errors import one_line
from .characters import plain

MAX_LENGTH = 4096
"""Largest `max_length` of an encoder, in tokens."""
_SHOWN = 40
"""Characters of a text that a message shows."""


class TextStates(NamedTuple):
    """States of the tokens of B texts.

    Attributes:
        states: States, (B, L, D) float; 0 where not valid. L is the length of the longest text, and
            may be 0.
        valid: Which tokens are real, (B, L) bool; the real ones of a row come first.
    """

    states: Tensor
    valid: Tensor


class TextEncoder(nn.Module, ABC):
    """Base of text encoders.

    A text is encoded by itself: its states do not depend on the other texts of a batch. A text that
    is empty or white space has no token. Control characters are white space.

    Attributes:
        name: The `type` of its config.
        dim: Width D of a state.
        max_length: Most tokens of a text.
        unit: What its tokens are, in the plural.
        fingerprint: Hash of frozen vectors or weights that the state dict does not have; None if it
            has everything.
    """

    name: str
    unit: str
    dim: int
    max_length: int
    fingerprint: str | None

    @abstractmethod
    def forward(self, texts: Sequence[str]) -> TextStates:
        """States of texts, on the device of the module.

        Texts of more than `max_length` tokens are cut, and what is unknown is left out: captions in
        training are what they are. Prompts are checked by `check`.

        Args:
            texts: B texts.

        Raises:
            ValueError: If one is no string.
        """

    @abstractmethod
    def count(self, text: str) -> int:
        """Tokens of a text, before it is cut to `max_length`."""

    @abstractmethod
    def unknown(self, text: str) -> list[str]:
        """Words of a text that are ignored, each once, in their order."""

    def check(self, texts: Sequence[str]) -> None:
        """Refuse texts that cannot be followed.

        Raises:
            ValueError: If a text is no string, has more than `max_length` tokens, or is not empty
                and has no token.
        """
        for text in strings(texts):
            found = self.count(text)
            if found > self.max_length:
                raise ValueError(
                    f"text {shown(text)}: expected at most {self.max_length:,} {self.unit}, "
                    f"found {found:,}"
                )
            if not found and plain(text):
                raise ValueError(
                    f"text {shown(text)}: expected at least one word that the text encoder "
                    f"'{self.name}' knows, found none"
                )


def check_max_length(max_length: int, most: int = MAX_LENGTH) -> None:
    """Refuse a `max_length` outside [1, most].

    Raises:
        ValueError: If it is.
    """
    if not 1 <= max_length <= most:
        raise ValueError(f"max_length: expected 1 to {most:,} tokens, found {max_length:,}")


def strings(texts: Sequence[str]) -> Sequence[str]:
    """The texts, all of which are strings.

    Raises:
        ValueError: If one is not, or there is one string in place of a list.
    """
    if isinstance(texts, str):
        raise ValueError(f"expected a list of texts, found the text {shown(texts)}")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"text {number}: expected a string, found {type(text).__name__}")
    return texts


def shown(text: str) -> str:
    """A text in quotes, as an error message shows it: its start, in printable characters."""
    return f"'{one_line(text[:_SHOWN])}{'...' if len(text) > _SHOWN else ''}'"


def valid_of(lengths: Tensor, longest: int) -> Tensor:
    """Which tokens are real, (B, L) bool, of texts of (B,) lengths."""
    positions = lengths.new_ones(longest).cumsum(0) - 1
    return positions < lengths[:, None]
