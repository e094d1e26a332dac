"""Choice of the implementation of a kernel: the plain reference, or Triton where it can run.

An explicit `backend` argument wins, then the environment variable TESSELLA_KERNELS, then `auto`:
Triton where it can run on CUDA tensors, the reference everywhere else. A backend requested by name,
in either way, is never replaced by another one. With TRITON_INTERPRET=1 set before the process
starts, `triton` runs on CPU tensors, slowly, in Triton's interpreter.
"""

import importlib.util
import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Literal, get_args

import torch

from ..errors import UserError

Backend = Literal["auto", "reference", "triton"]
"""Backends that a caller can request."""

VARIABLE = "TESSELLA_KERNELS"
"""Environment variable that decides when the `backend` argument is `auto`."""

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""True if Triton kernels of this process run in the interpreter; fixed when it starts."""

TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Float types that the Triton kernels compute in."""

_MIN_CAPABILITY = (8, 0)
_warned: set[tuple[str, str]] = set()


class BackendUnavailable(UserError, RuntimeError):
    """A backend was requested by name and cannot run here; there is no silent fallback."""


def triton_refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """Reason why Triton kernels cannot run on a device with a float type; None if they can."""
    if not _triton_installed():
        return "triton is not installed; pip install 'tessella[triton]'"
    if dtype not in TRITON_DTYPES:
        return f"no kernel computes in {_name(dtype)}, only in float32, bfloat16 and float16"
    if INTERPRETED:
        if device.type == "cpu":
            return None
        return f"TRITON_INTERPRET=1 runs on CPU tensors, but the tensors are on {device}"
    if device.type != "cuda" or torch.version.cuda is None:
        return (
            f"the tensors are on {device}, not on an NVIDIA GPU (TRITON_INTERPRET=1, set before "
            "the process starts, runs CPU tensors in the interpreter)"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < _MIN_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]} is below 8.0"
    return None


def resolve_backend(
    backend: str,
    op: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    refusal: str | None = None,
) -> Literal["reference", "triton"]:
    """Choose the implementation that a call runs.

    Args:
        backend: Requested backend, one of `Backend`.
        op: Name of the kernel, for messages.
        device: Device of the tensors.
        dtype: Float type that the kernel computes in.
        refusal: Reason why the Triton code of this operation cannot take these inputs; None if it
            can.

    Returns:
        `reference` or `triton`. `auto` warns once per reason if it takes the reference on CUDA.

    Raises:
        ValueError: If the argument or TESSELLA_KERNELS is not the name of a backend.
        BackendUnavailable: If Triton was requested by name and cannot run, with the reason.
    """
    source, wanted = "backend", backend
    if backend == "auto" and VARIABLE in os.environ:
        source, wanted = VARIABLE, os.environ[VARIABLE]
    if wanted not in get_args(Backend):
        raise ValueError(f"{source}: expected one of {get_args(Backend)}, found {wanted!r}")
    if wanted == "reference" or (wanted == "auto" and device.type != "cuda"):
        return "reference"
    reason = triton_refusal(device, dtype) or refusal
    if reason is None:
        return "triton"
    if wanted == "triton":
        raise BackendUnavailable(f"{op}: {source} 'triton' cannot run here: {reason}")
    if (op, reason) not in _warned:
        _warned.add((op, reason))
        warnings.warn(f"{op}: the slower reference runs on CUDA: {reason}", stacklevel=2)
    return "reference"


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Float type of autocast on a device; None where autocast is off or does not exist.

    `torch.is_autocast_enabled` raises for device types without autocast, such as `meta`.
    """
    if not torch.amp.is_autocast_available(device.type):
        return None
    if not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Turn autocast off, where it exists: the operations choose their types themselves."""
    if autocast_dtype(device) is None:
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


@cache
def _triton_installed() -> bool:
    """Whether `import triton` would find a package; it is not imported here."""
    try:
        return importlib.util.find_spec("triton") is not None
    except (ImportError, ValueError):
        return False


def _name(dtype: torch.dtype) -> str:
    """Name of a type without its module, such as `float32`."""
    return str(dtype).removeprefix("torch.")
