"""Texts as static vectors of their words, which ship with the package.

A word has the same vector wherever it stands. `bundled/words/README.md` says how the vectors were
made, and from what; `bundled/words/make_words.py` makes the same bytes again.
"""

import functools
import hashlib
import itertools
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from ..building import derive
from ..config import STRICT
from .characters import plain, spell_symbols
from .encoder import TextEncoder, TextStates, check_max_length, strings, valid_of

FOLDER = Path(__file__).parent / "bundled" / "words"
WORDS_FILE, VECTORS_FILE, WORDS_KEY = "words.txt", "words.safetensors", "words_sha256"
CONTINUED = "##"
"""What the name of a piece starts with that continues a word."""
KNOWN = "abcdefghijklmnopqrstuvwxyz0123456789"
"""Characters that words are made of."""
_PLACES = str.maketrans(
    dict.fromkeys("'\u2018\u2019\u02bc`\u00b4\u2032\uff07", "") | {"&": " and ", "\uff06": " and "}
)
_LETTERS = str.maketrans(
    {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "\u0131": "i"}
)
"""Latin letters that are no letter with an accent to Unicode."""
_OTHERS = {"Mn", "Mc", "Me", "Cn", "Co"}
"""Marks, and characters that Python does not know: they are parts of unknown words."""


@dataclass(frozen=True, kw_only=True)
class WordsConfig:
    """Settings of `WordsEncoder`.

    Args:
        max_length: Most words and pieces of a text, 1 to 4,096.
    """

    __pydantic_config__ = STRICT
    type: Literal["words"] = "words"
    max_length: int = 32

    def __post_init__(self) -> None:
        check_max_length(self.max_length)


def split_words(text: str) -> list[str]:
    """Words of a text: runs of the letters a to z and digits, and runs of other letters.

    Case and accents are dropped, apostrophes join ("don't" is dont), `&` is and, symbols such as
    emoji are the words of their Unicode names, and everything else separates words.
    """
    text = spell_symbols(plain(text).translate(_PLACES))
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text)
    text = text.lower().translate(_LETTERS)
    if not text.isascii():
        text = _without_accents(text)
    return ["".join(run) for kind, run in itertools.groupby(text, _kind) if kind]


def _without_accents(text: str) -> str:
    """Decomposed text without marks, but for those that belong to letters of other scripts."""
    kept: list[str] = []
    for character in text:
        is_mark = unicodedata.category(character).startswith("M")
        if not is_mark or (kept and _kind(kept[-1]) == "other"):
            kept.append(character)
    return "".join(kept)


def _kind(character: str) -> str:
    """Kind of a character inside words; empty: it separates them."""
    if character in KNOWN:
        return "known"
    other = character.isalnum() or unicodedata.category(character) in _OTHERS
    return "other" if other else ""


@dataclass(frozen=True, kw_only=True, eq=False)
class WordVectors:
    """Vectors of words and of pieces of words.

    Attributes:
        rows: Row of each word, and of each piece that continues a word, which starts with `##`.
        vectors: Vectors, (rows, D) float32 on the CPU; their mean square over all entries is 1.
        fingerprint: SHA-256 of the file of vectors, which contains that of the list of words.
    """

    rows: Mapping[str, int]
    vectors: Tensor
    fingerprint: str

    @functools.cached_property
    def _longest(self) -> int:
        return max(map(len, self.rows))

    def pieces(self, word: str) -> list[str]:
        """Names of the rows of a word of `split_words`: itself, or the longest pieces, greedily.

        Empty if the word is of other letters than a to z.
        """
        found: list[str] = []
        start = 0
        while start < len(word):
            mark = CONTINUED if start else ""
            for stop in range(min(len(word), start + self._longest), start, -1):
                if (name := mark + word[start:stop]) in self.rows:
                    found.append(name)
                    start = stop
                    break
            else:
                return []
        return found

    def look_up(self, text: str) -> list[int]:
        """Rows of the words and pieces of a text."""
        return [self.rows[name] for word in split_words(text) for name in self.pieces(word)]


@functools.cache
def load_words() -> WordVectors:
    """The vectors that ship with the package; read once.

    Raises:
        ValueError: If the list of words is not that of the vectors.
    """
    path = FOLDER / VECTORS_FILE
    fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()
    with safe_open(path, "pt") as file:
        expected = (file.metadata() or {}).get(WORDS_KEY, "")
        codes, scales = file.get_tensor("codes"), file.get_tensor("scales")
    blob = (FOLDER / WORDS_FILE).read_bytes()
    found = hashlib.sha256(blob).hexdigest()
    words = blob.decode("utf-8", "replace").split()
    if found != expected or len(words) != len(codes):
        raise ValueError(
            f"{FOLDER / WORDS_FILE}: sha256 {found[:16]}... is not that of the words of "
            f"{VECTORS_FILE} ({expected[:16]}...); install tessella again"
        )
    rows = {word: row for row, word in enumerate(words)}
    return WordVectors(rows=rows, vectors=_dequantized(codes, scales), fingerprint=fingerprint)


def _dequantized(codes: Tensor, scales: Tensor) -> Tensor:
    """Vectors of int8 codes (rows, D) and scales (rows,), with mean square 1."""
    vectors = codes.double() * scales.double()[:, None]
    return (vectors / vectors.square().mean().sqrt()).float()


class WordsEncoder(TextEncoder):
    """Vectors of the words of a text, in their order.

    The vectors are a buffer outside of the state dict. Nothing is trained.

    Args:
        config: Settings.
    """

    name, unit = "words", "words and pieces"
    vectors: Tensor

    def __init__(self, config: WordsConfig) -> None:
        super().__init__()
        self.config = config
        self.max_length = config.max_length
        table = load_words()
        self.dim, self.fingerprint = table.vectors.shape[1], table.fingerprint
        derive(self, "vectors", _copied_vectors, table.vectors.shape)

    def forward(self, texts: Sequence[str]) -> TextStates:
        """Vectors of words; see `TextEncoder.forward`."""
        rows = [list(rows_of(text)[: self.max_length]) for text in strings(texts)]
        longest = max(map(len, rows), default=0)
        flat = [row + [0] * (longest - len(row)) for row in rows]
        device = self.vectors.device
        indices = torch.tensor(flat, dtype=torch.int64, device=device).view(len(rows), longest)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64, device=device)
        valid = valid_of(lengths, longest)
        return TextStates(F.embedding(indices, self.vectors) * valid[..., None], valid)

    def count(self, text: str) -> int:
        """Words and pieces of a text."""
        return len(load_words().look_up(text))

    def unknown(self, text: str) -> list[str]:
        """Words of other letters than a to z."""
        table = load_words()
        return _once(word for word in split_words(text) if not table.pieces(word))


def _once(words: Iterable[str]) -> list[str]:
    """Words without repetition, their letters and accents joined again."""
    return list(dict.fromkeys(unicodedata.normalize("NFC", word) for word in words))


def _copied_vectors() -> Tensor:
    """Vectors that belong to one module, which may convert or move them."""
    return load_words().vectors.clone()


@functools.lru_cache(maxsize=2**16)
def rows_of(text: str) -> tuple[int, ...]:
    """Rows of the words and pieces of a text, remembered: captions come again and again."""
    return tuple(load_words().look_up(text))
