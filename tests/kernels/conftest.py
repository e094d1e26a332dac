"""Fixtures of the kernels' tests, and a faster interpreter for them."""

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.kernels.backends import INTERPRETED


def _look_up_builtins_once() -> None:
    """Let the interpreter list the built-in functions of each module once, not in every call.

    It replaces those of `triton.language` around each call of a kernel or of a function in it, and
    a third of its time went into finding them. Their names never change.
    """
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

    @functools.cache
    def names(package: Any) -> list[str]:
        return [name for name in dir(package) if is_builtin(getattr(package, name))]

    def patch(package: Any, builder: Any, scope: Any) -> None:
        for name in names(package):
            member = getattr(package, name)
            if is_builtin(member):
                interpreter._patch_attr(package, name, member, builder, scope)

    if hasattr(interpreter, "_patch_builtin") and hasattr(interpreter, "_patch_attr"):
        interpreter._patch_builtin = patch


if INTERPRETED:
    _look_up_builtins_once()


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory that a kernel leaves unwritten holds NaN, or 77 where its type has none."""
    original = torch.Tensor.new_empty

    def filled(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        empty = original(self, *args, **kwargs)
        if empty.device.type == "meta":
            return empty
        if empty.dtype == torch.float8_e4m3fn:
            empty.view(torch.uint8).fill_(0x7F)  # its NaN
            return empty
        return empty.fill_(float("nan") if empty.is_floating_point() else 77)

    monkeypatch.setattr(torch.Tensor, "new_empty", filled)
    yield
