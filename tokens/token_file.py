"""What marks a safetensors file as one of tokens, so that no other file is replaced by one."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

TOKENS_KEY = "tessella.tokens"
"""Entry of the file's metadata that holds the spec."""


def is_token_file(path: Path) -> bool:
    """Whether a file is one of `Tokens.save`."""
    try:
        with safe_open(path, "pt") as file:
            return TOKENS_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False
