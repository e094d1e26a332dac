"""Tokens of integer arrays that other programs computed, and of files of them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import DAMAGED_ARRAY
from .packing import MAX_JOINT, split_joint
from .tokens import Tokens, TokenSpec


def tokens_of_codes(codes: Tensor | np.ndarray, spec: TokenSpec) -> Tokens:
    """Tokens of B images from an array of codes.

    Args:
        codes: Integers: entries (B, N, G) or, of a grid, (B, H, W, G); or one joint index for each
            position, (B, N) or (B, H, W). The joint index is the sum of each entry times the
            product of the sizes before it.
        spec: Description of the tokens.

    Raises:
        ValueError: If the shape or type is another one, or a code is out of range.

    Example:
        >>> spec = TokenSpec((1, 2), (4, 2))
        >>> tokens_of_codes(np.array([[7, 1]]), spec).indices.tolist()
        [[[3, 1], [1, 0]]]
        >>> tokens_of_codes(torch.tensor([[[[3, 1], [1, 0]]]]), spec).indices.tolist()
        [[[3, 1], [1, 0]]]
    """
    array = codes.numpy(force=True) if isinstance(codes, Tensor) else codes
    if array.dtype.kind not in "iu":
        raise ValueError(f"codes: expected integers, found {array.dtype}")
    shapes = dict.fromkeys(((spec.num_tokens,), spec.shape))
    entries = [(*shape, spec.num_codebooks) for shape in shapes]
    inner = array.shape[1:]
    if inner not in (*entries, *shapes):
        expected = [f"({', '.join(map(str, ('B', *shape)))})" for shape in (*entries, *shapes)]
        raise ValueError(
            f"codes: expected {', '.join(expected[:-1])} or {expected[-1]} for {spec}, "
            f"found {tuple(array.shape)}"
        )
    if array.size and array.max() >= MAX_JOINT:
        raise ValueError(f"codes: found {array.max()}, expected less than 2**62")
    indices = torch.from_numpy(array.astype(np.int64))
    if inner in entries:
        return Tokens(indices.reshape(len(array), *entries[0]), spec).validate()
    joint = indices.reshape(len(array), spec.num_tokens)
    wrong = (joint < 0) | (joint >= spec.vocab_size)
    if wrong.any():
        raise ValueError(
            f"codes: found {joint[wrong][0].item()}, expected 0 to {spec.vocab_size - 1}, the "
            f"joint indices of {spec}"
        )
    return Tokens(split_joint(joint, spec.codebook_sizes), spec)


def read_code_file(path: Path, spec: TokenSpec) -> Tokens:
    """Tokens of an `.npy` file of codes; see `tokens_of_codes`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no `.npy` file of integers of a shape that fits.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except DAMAGED_ARRAY as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a whole .npy file of integers ({reason})") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: an archive of arrays, expected one array (.npy)")
    try:
        return tokens_of_codes(array, spec)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
