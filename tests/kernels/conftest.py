"""Fixtures of the kernels' tests."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor


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
