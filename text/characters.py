"""What text encoders agree on about characters: blanks, and symbols spelled as words.

Control characters count as white space. An emoji is read as the words of its Unicode name, so that
an encoder of words reads it without a table of its own.
"""

import re
import unicodedata
from collections.abc import Sequence

_BLANK = {"Cc", "Cs", "Zs", "Zl", "Zp"}
_SYMBOLS = {"So", "Sm"}
"""Categories of pictographs and arrows; those of ASCII are punctuation."""
_SKIN_TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}
_ZERO_WIDTH = ("\u200b", "\ufeff")
"""The space of no width, and the byte order mark."""
_FIRST_REGIONAL = 0x1F1E6
_FLAG = re.compile("([\U0001f1e6-\U0001f1ff])([\U0001f1e6-\U0001f1ff])")


def plain(text: str) -> str:
    """Text with single spaces between its words and none around it.

    Control characters, line ends, halves of characters (lone surrogates), spaces of no width and
    byte order marks are white space.
    """
    if not (text.isascii() and text.isprintable()):
        text = "".join(" " if _is_blank(c) else c for c in text)
    return " ".join(text.split())


def has_text(texts: Sequence[str] | None) -> bool:
    """Whether one of the texts is more than white space; None is no texts."""
    return texts is not None and any(map(plain, texts))


def _is_blank(character: str) -> bool:
    return unicodedata.category(character) in _BLANK or character in _ZERO_WIDTH


def spell_symbols(text: str) -> str:
    """Text with the Unicode names of emoji and other symbols in their place, between spaces.

    Variation selectors, joiners and skin tones are left out. A flag is the word `flag` and the two
    letters of its region, since Unicode has no names for regions.
    """
    if text.isascii():
        return text
    return "".join(map(_spelled, _FLAG.sub(_spelled_flag, text)))


def _spelled_flag(pair: re.Match[str]) -> str:
    letters = [chr(ord(half) - _FIRST_REGIONAL + ord("a")) for half in pair.groups()]
    return f" flag {''.join(letters)} "


def _spelled(character: str) -> str:
    if character.isascii():
        return character
    category = unicodedata.category(character)
    if category in _SYMBOLS:
        return f" {unicodedata.name(character).lower()} "
    if character == _ZERO_WIDTH[0]:
        return " "
    return "" if category == "Cf" or character in _SKIN_TONES else character
