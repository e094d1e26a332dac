"""What the tests of every Triton kernel share: random inputs, fences, where they run.

On a GPU the `test_triton_*.py` run as they are. Without one `test_interpreter.py` runs each of
them in a process with TRITON_INTERPRET=1, where a float32 is truncated to bf16, not rounded.
"""

import pytest
import torch
from torch import Tensor

from tessella.kernels.backends import INTERPRETED

CONTRACT = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.skipif(
        not (INTERPRETED or torch.cuda.is_available()),
        reason="no CUDA device; test_interpreter.py runs these in the interpreter",
    ),
]
"""The `pytestmark` of such a file."""

DEVICE = "cpu" if INTERPRETED else "cuda"

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Relative L2 error: float32 sums in another order; else one unit in the last place everywhere."""
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))


def fenced(tensor: Tensor) -> Tensor:
    """The same values between NaN or absurd numbers: what reads past an end meets them."""
    fence = float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max // 2
    room = torch.full((tensor.numel() + 256,), fence).to(tensor.dtype)
    room[128:-128] = tensor.flatten()
    return room.to(DEVICE)[128:-128].view(tensor.shape)


def relative_l2(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected| in float64, of equal shapes; 0 where both are 0."""
    assert found.shape == expected.shape, f"{found.shape}, expected {expected.shape}"
    error, size = (found.double() - expected.double()).norm(), expected.double().norm()
    return float(error) if size == 0 else float(error / size)


class Source:
    """Random tensors on the device, one seed each."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.rng = dtype, torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, of the source's type, fenced."""
        return fenced(torch.randn(shape, generator=self.rng).to(self.dtype))

    def integers(self, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Uniform in [0, high), fenced."""
        return fenced(torch.randint(high, shape, generator=self.rng, dtype=dtype))

    def flags(self, *shape: int) -> Tensor:
        """True with probability .4."""
        return (torch.rand(shape, generator=self.rng) < 0.4).to(DEVICE)
