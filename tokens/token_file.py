"""Recognition of token files, so that `Tokens.save` never replaces any other file."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

TOKENS_KEY = "tessella.tokens"
"""Key of the spec in the metadata of a token file."""


def is_token_file(path: Path) -> bool:
    """Whether `Tokens.save` wrote a file."""
    try:
        with safe_open(path, "pt") as file:
            return TOKENS_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False
