"""Checks that the kernels' public functions share; each raises one ValueError."""

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types that weights may have; float64 only in the references."""

HEAD_DIMS = range(32, 129, 8)
"""Channels of a head that the attention kernels take, in tiles of 32, 64 or 128."""


def check_float(name: str, tensor: Tensor | None, shape: tuple[int, ...], like: Tensor) -> None:
    """Refuse a term that has not this shape and the weight's type and device.

    Raises:
        ValueError: With both shapes and types.
    """
    if tensor is None:
        return
    if tensor.shape != shape or tensor.dtype != like.dtype or tensor.device != like.device:
        raise ValueError(
            f"{name}: expected {tuple(shape)} {like.dtype} on {like.device}, "
            f"found {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
        )


def check_label_tensor(labels: Tensor, batch: int) -> None:
    """Refuse labels that are not (B,) integers.

    Raises:
        ValueError: With the shape and type found.
    """
    if labels.shape != (batch,) or labels.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"labels: expected ({batch},) int32 or int64, "
            f"found {tuple(labels.shape)} {labels.dtype}"
        )


def check_range(name: str, found: Tensor, wrong: Tensor, expected: str) -> None:
    """Refuse values marked as wrong, by the first of them (waits for the device).

    Raises:
        ValueError: With the value and what was expected.
    """
    if wrong.any():
        raise ValueError(f"{name}: expected {expected}, found {found[wrong][0].item()}")


def check_devices(codes: Tensor, **others: Tensor | None) -> None:
    """Refuse tensors that are not where the codes are.

    Raises:
        ValueError: With both devices.
    """
    for name, tensor in others.items():
        if tensor is not None and tensor.device != codes.device:
            raise ValueError(f"{name}: expected on {codes.device}, found on {tensor.device}")


def check_valid(valid: Tensor | None, shape: tuple[int, int], device: torch.device) -> None:
    """Refuse a mask of keys that is not (B, Nk) bool beside the others.

    Raises:
        ValueError: With the shape, type and device found.
    """
    if valid is None:
        return
    if valid.shape != shape or valid.dtype != torch.bool or valid.device != device:
        raise ValueError(
            f"valid: expected {tuple(shape)} torch.bool on {device}, "
            f"found {tuple(valid.shape)} {valid.dtype} on {valid.device}"
        )
