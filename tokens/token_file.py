"""Files of tensors that carry a digest of their content; recognition of token files.

A safetensors file has no checksum, so a changed bit is another number. The digest, one more tensor,
covers names, types, shapes and bytes of all others, and the metadata.
"""

import hashlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

TOKENS_KEY = "tessella.tokens"
"""Key of the spec in the metadata of a token file."""
DIGEST = "sha256"
"""Tensor with the digest of a file, (32,) uint8; metadata would come in another order each time."""


def tensor_digest(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> Tensor:
    """SHA-256 of the metadata and of every tensor's name, type, shape and bytes, (32,) uint8."""
    digest = hashlib.sha256(repr(sorted(about.items())).encode("utf-8", "surrogatepass"))
    for name in sorted(tensors.keys() - {DIGEST}):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name!r} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def save_tensors(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], about: Mapping[str, str]
) -> None:
    """Write tensors and metadata to a safetensors file, with their digest."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole | {DIGEST: tensor_digest(whole, about)}, path, dict(about))


def load_tensors(
    path: str | os.PathLike[str], *, error: type[ValueError], digest: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file whole, and check its digest, which files before 0.6 do not have.

    Args:
        path: The file.
        error: Type of the error that is raised.
        digest: Whether the file must have one.

    Returns:
        Tensors by name, and the metadata.

    Raises:
        ValueError: Of the type `error`, if the file is truncated, damaged or was changed.
        OSError: If it cannot be opened.
    """
    try:
        with safe_open(os.fspath(path), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about: dict[str, str] = file.metadata() or {}
    except SafetensorError as fault:
        raise error(f"{path}: truncated or damaged ({fault})") from None
    stored = tensors.pop(DIGEST, None)
    if stored is None and digest:
        raise error(f"{path}: has no digest, so damage is not detectable")
    if stored is not None and not torch.equal(stored, tensor_digest(tensors, about)):
        raise error(f"{path}: changed or damaged since it was written; its digest is another one")
    return tensors, about


def check_names(
    tensors: Collection[str],
    known: Collection[str],
    *,
    path: str | os.PathLike[str],
    error: type[ValueError],
) -> None:
    """Refuse other tensors than those known: one may be the digest, with a changed letter.

    Raises:
        ValueError: Of the type `error`.
    """
    if strange := sorted(set(tensors) - set(known)):
        raise error(f"{path}: changed or damaged, it has a tensor {strange[0]!r}")


def has_digest(path: Path) -> bool:
    """Whether a file of tensors carries a digest."""
    with safe_open(os.fspath(path), "pt") as file:
        return DIGEST in file.keys()  # noqa: SIM118


def is_token_file(path: Path) -> bool:
    """Whether `Tokens.save` wrote a file."""
    try:
        with safe_open(path, "pt") as file:
            return TOKENS_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False
