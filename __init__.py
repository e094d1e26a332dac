"""Tessella: discrete-token image generation in PyTorch.

Images become `Tokens`, generators learn and emit `Tokens`, tokenizers turn them back into images.
Public names are imported lazily, so `import tessella` costs nothing until one is used.

Example:
    >>> import tessella
    >>> tokenizer = tessella.load_tokenizer("bundled:bits-emoji-64")
    >>> images = tessella.read_images("bundled:emoji", resolution=tokenizer.resolution, limit=2)
    >>> tokens = tokenizer.encode(images)
    >>> tokens.bits_per_image
    1536.0
    >>> tokenizer.decode(tokens).shape
    torch.Size([2, 3, 64, 64])
"""

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

_PUBLIC = {
    ".tokens.tokens": ("TokenSpec", "Tokens"),
    ".tokens.sequences": ("SequenceFormat",),
    ".tokens.store": ("TokenStore", "load_tokens"),
    ".data.image_batches": ("read_images", "save_images"),
    ".tokenizers.base": ("Quantizer", "Tokenizer"),
    ".tokenizers.quantizers.bernoulli": ("Bernoulli",),
    ".tokenizers.quantizers.bsq": ("BSQ",),
    ".tokenizers.quantizers.ema_vq": ("EMAVQ",),
    ".tokenizers.quantizers.fsq": ("FSQ",),
    ".tokenizers.quantizers.lfq": ("LFQ",),
    ".tokenizers.quantizers.vq": ("VQ",),
    ".generators.base": ("Generator",),
    ".checkpoints": ("load_generator", "load_tokenizer", "save_generator", "save_tokenizer"),
    ".sample.generate": ("generate",),
    ".sample.pictures": ("edit", "generate_images"),
    ".evaluation.evaluate": ("evaluate",),
}
_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [
    "BSQ",
    "EMAVQ",
    "FSQ",
    "LFQ",
    "VQ",
    "Bernoulli",
    "Generator",
    "Quantizer",
    "SequenceFormat",
    "TokenSpec",
    "TokenStore",
    "Tokenizer",
    "Tokens",
    "__version__",
    "edit",
    "evaluate",
    "generate",
    "generate_images",
    "load_generator",
    "load_tokenizer",
    "load_tokens",
    "read_images",
    "save_generator",
    "save_images",
    "save_tokenizer",
]

if TYPE_CHECKING:
    from .checkpoints import load_generator, load_tokenizer, save_generator, save_tokenizer
    from .data.image_batches import read_images, save_images
    from .evaluation.evaluate import evaluate
    from .generators.base import Generator
    from .sample.generate import generate
    from .sample.pictures import edit, generate_images
    from .tokenizers.base import Quantizer, Tokenizer
    from .tokenizers.quantizers.bernoulli import Bernoulli
    from .tokenizers.quantizers.bsq import BSQ
    from .tokenizers.quantizers.ema_vq import EMAVQ
    from .tokenizers.quantizers.fsq import FSQ
    from .tokenizers.quantizers.lfq import LFQ
    from .tokenizers.quantizers.vq import VQ
    from .tokens.sequences import SequenceFormat
    from .tokens.store import TokenStore, load_tokens
    from .tokens.tokens import Tokens, TokenSpec


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
