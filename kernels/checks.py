"""Input checks that the public functions of the kernels share; each raises a ValueError."""

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Float types of weights and activations; float64 only in the references."""

HEAD_DIMS = range(32, 129, 8)
"""Numbers of channels of a head that the attention kernels take, in tiles of 32, 64 or 128."""


def check_float(name: str, tensor: Tensor | None, shape: tuple[int, ...], like: Tensor) -> None:
    """Check that an optional tensor has a shape and the type and device of another tensor.

    Args:
        name: Name of the argument, for the message.
        tensor: Tensor to check; None is accepted.
        shape: Expected shape.
        like: Tensor with the expected type and device.

    Raises:
        ValueError: If it does not; the message has both shapes, types and devices.
    """
    if tensor is None:
        return
    if tensor.shape != shape or tensor.dtype != like.dtype or tensor.device != like.device:
        raise ValueError(
            f"{name}: expected {tuple(shape)} {like.dtype} on {like.device}, "
            f"found {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
        )


def check_label_tensor(labels: Tensor, batch: int) -> None:
    """Check that class labels are int32 or int64 of shape (B,); their values are not read.

    Raises:
        ValueError: If they are not; the message has the shape and type found.
    """
    if labels.shape != (batch,) or labels.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"labels: expected ({batch},) int32 or int64, "
            f"found {tuple(labels.shape)} {labels.dtype}"
        )


def refuse_values(name: str, found: Tensor, wrong: Tensor, expected: str) -> None:
    """Check that no value is marked as wrong (waits for the device).

    Args:
        name: Name of the argument, for the message.
        found: Values to check, any shape.
        wrong: True at wrong values, bool in the shape of `found`.
        expected: Description of the right values, for the message.

    Raises:
        ValueError: If a value is wrong; the message has the first one.
    """
    if wrong.any():
        raise ValueError(f"{name}: expected {expected}, found {found[wrong][0].item()}")


def check_devices(codes: Tensor, **others: Tensor | None) -> None:
    """Check that tensors, passed by name, are on the device of the codes.

    Raises:
        ValueError: If one is not; the message has both devices.
    """
    for name, tensor in others.items():
        if tensor is not None and tensor.device != codes.device:
            raise ValueError(
                f"{name}: expected a tensor on {codes.device}, found one on {tensor.device}"
            )


def check_valid(valid: Tensor | None, shape: tuple[int, int], device: torch.device) -> None:
    """Check that an optional mask of valid keys is bool, of shape (B, Nk), on the right device.

    Raises:
        ValueError: If it is not; the message has the shape, type and device found.
    """
    if valid is None:
        return
    if valid.shape != shape or valid.dtype != torch.bool or valid.device != device:
        raise ValueError(
            f"valid: expected {tuple(shape)} torch.bool on {device}, "
            f"found {tuple(valid.shape)} {valid.dtype} on {valid.device}"
        )
