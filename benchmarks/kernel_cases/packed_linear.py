"""Benchmark cases: packed linear layers against dense ones in bf16, INT8 and FP8."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tessella.benchmarks.kernel_cases.case import Case
from tessella.kernels.packed_linear.encode import from_float
from tessella.kernels.packed_linear.formats import Tag
from tessella.kernels.packed_linear.op import packed_linear
from tessella.kernels.packed_linear.prepack import PrepackedWeight, prepack

WEIGHTS: dict[str, tuple[Tag, int | None]] = {
    "bin1": ("bin1", None),
    "bin2": ("bin2", None),
    "tern2": ("tern2", None),
    "u4": ("u4", None),
    "u4 g64": ("u4", 64),
}
"""Format tag and group size by name."""


def dense(given: dict[str, Tensor]) -> Tensor:
    """Dense layer that the packed one replaces."""
    return F.linear(given["x"], given["weight"])


def dense_int8(given: dict[str, Tensor]) -> Tensor:
    """INT8 product of torch on quantized codes, then scales; for more than 16 rows only."""
    return torch._int_mm(given["x8"], given["weight8"].t()) * given["scale"]


def dense_fp8(given: dict[str, Tensor]) -> Tensor:
    """FP8 product of torch on quantized values."""
    return torch._scaled_mm(
        given["x_fp8"],
        given["weight_fp8"].t(),
        scale_a=given["one"],
        scale_b=given["one"],
        out_dtype=torch.bfloat16,
    )


def packed_linear_cases(device: torch.device) -> Iterator[Case]:
    """`packed_linear` with 16-bit activations by both routes, and with INT8 activations."""
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    size = 4096 if cuda else 512
    rows = (1, 16, 64, 256, 512, 4096, 16384) if cuda else (1, 64)
    for (name, (tag, group)), m in itertools.product(WEIGHTS.items(), rows):

        def make(
            seed: int, m: int = m, tag: Tag = tag, group: int | None = group
        ) -> dict[str, Any]:
            rng = torch.Generator(device).manual_seed(seed)
            full = torch.randn(size, size, generator=rng, device=device)
            x = torch.randn(m, size, generator=rng, device=device)
            given: dict[str, Any] = {"x": x.to(dtype), "weight": full.to(dtype)}
            stored = from_float(full, tag, group)
            given["packed"] = prepack(stored) if full.is_cuda else stored
            if full.is_cuda:
                codes = [(t * 32).clamp(-127, 127).to(torch.int8) for t in (x, full)]
                given |= {"x8": codes[0], "weight8": codes[1]}
                given |= {"scale": torch.full((1,), 1 / 1024, device=full.device, dtype=dtype)}
                fp8 = torch.float8_e4m3fn
                given |= {"x_fp8": x.to(fp8), "weight_fp8": full.to(fp8)}
                given |= {"one": torch.ones((), device=full.device)}
            return given

        def run(settings: dict[str, Any]) -> Callable[[Any], Tensor]:
            @torch.inference_mode()
            def call(given: dict[str, Any]) -> Tensor:
                return packed_linear(given["x"], given["packed"], **settings)

            return call

        baselines: dict[str, Callable[[Any], Any]] = {"F.linear": dense}
        if cuda:
            baselines |= {"_int_mm": dense_int8, "_scaled_mm fp8": dense_fp8}
        shape = f"M{m} N{size} K{size} {name}"
        num_flops = 2 * m * size * size
        packed = make(0)["packed"]
        stored = packed.stored if isinstance(packed, PrepackedWeight) else packed
        num_bytes = stored.num_bytes() + 2 * m * size * dtype.itemsize
        floats = {"kernel": run({"route": "fused"} if cuda else {})}
        if cuda:
            floats |= {"unpack + linear": run({"route": "unpack"})}
        ints = {"kernel": run({"activations": "int8"})}
        for op, functions in {"packed_linear": floats, "packed_linear int8": ints}.items():
            yield Case(
                op, shape, dtype, num_bytes, functions | baselines, make, num_flops=num_flops
            )
