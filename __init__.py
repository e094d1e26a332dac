"""Tessella: discrete-token image generation in PyTorch.

Images become `Tokens`, generators learn and emit `Tokens`, tokenizers turn them back into images.
Public names are imported lazily, so `import tessella` costs nothing until one is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

_PUBLIC = {
    "TokenSpec": ".tokens.tokens",
    "Tokens": ".tokens.tokens",
    "load_tokens": ".tokens.store",
    "TokenStore": ".tokens.store",
    "Tokenizer": ".tokenizers.base",
    "Generator": ".generators.base",
    "load_generator": ".checkpoints",
    "load_tokenizer": ".checkpoints",
    "save_generator": ".checkpoints",
    "save_tokenizer": ".checkpoints",
    "generate": ".sample.generate",
}

__all__ = [
    "Generator",
    "TokenSpec",
    "TokenStore",
    "Tokenizer",
    "Tokens",
    "__version__",
    "generate",
    "load_generator",
    "load_tokenizer",
    "load_tokens",
    "save_generator",
    "save_tokenizer",
]

if TYPE_CHECKING:
    from .checkpoints import load_generator, load_tokenizer, save_generator, save_tokenizer
    from .generators.base import Generator
    from .sample.generate import generate
    from .tokenizers.base import Tokenizer
    from .tokens.store import TokenStore, load_tokens
    from .tokens.tokens import Tokens, TokenSpec


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
