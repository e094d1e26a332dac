"""Benchmark cases: low-bit and binarized attention against backends of torch and xformers."""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import tessella
from tessella.benchmarks.kernel_cases.case import Case
from tessella.generators.masked import MaskedGenerator
from tessella.kernels.binary_attention.op import Method, binary_attention
from tessella.kernels.low_bit_attention.op import LowBitPrecision, low_bit_attention

SHAPES = (
    (8, 257, 16, 64),
    (8, 576, 16, 64),
    (8, 1024, 16, 64),
    (8, 2304, 16, 64),
    (8, 4096, 16, 64),
    (8, 1024, 16, 128),
    (8, 4096, 16, 128),
    (16, 1024, 8, 32),
    (16, 4096, 8, 32),
)
"""(B, N, heads, dim) on CUDA."""

ONE_BACKEND = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def sdpa(given: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Attention of torch with its own choice of backend."""
    q, k, v = (x.transpose(1, 2) for x in given)
    return F.scaled_dot_product_attention(q, k, v)


def only(backend: SDPBackend) -> Callable[[Any], Tensor]:
    """Attention of torch restricted to one backend."""

    def run(given: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        with sdpa_kernel(backend):
            return sdpa(given)

    return run


def baselines(device: torch.device) -> dict[str, Callable[[Any], Any]]:
    """Softmax attention by all installed implementations, by name."""
    found: dict[str, Callable[[Any], Any]] = {"sdpa": sdpa}
    if device.type == "cuda":
        found |= {name: only(backend) for name, backend in ONE_BACKEND.items()}
        if importlib.util.find_spec("xformers"):
            from xformers.ops import memory_efficient_attention

            found["xformers"] = lambda given: memory_efficient_attention(*given)
    return found


def agreement(found: Tensor, given: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
    """Cosine similarity, relative L1 and RMS error of the first image against exact attention."""
    q, k, v = (x[:1].double().transpose(1, 2) for x in given)
    exact = ((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2)
    ours = found[:1].double()
    error = ours - exact
    cosine = F.cosine_similarity(ours.flatten(), exact.flatten(), 0)
    return {
        "cosine": float(cosine),
        "relative L1": float(error.abs().sum() / exact.abs().sum()),
        "RMSE": float(error.square().mean().sqrt()),
    }


def trained_inputs(device: torch.device) -> list[tuple[Tensor, Tensor, Tensor]]:
    """q, k and v of every block and step while the shipped generator draws four images."""
    generator = tessella.load_generator("bundled:maskbit-emoji-64", device=device)
    assert isinstance(generator, MaskedGenerator)
    num_heads = generator.config.transformer.num_heads
    found: list[tuple[Tensor, Tensor, Tensor]] = []

    def keep(module: nn.Module, inputs: Any, qkv: Tensor) -> None:
        q, k, v = qkv.reshape(*qkv.shape[:-1], 3, num_heads, -1).unbind(2)
        found.append((q, k, v))

    for block in generator.trunk.blocks:
        block.get_submodule("qkv").register_forward_hook(keep)
    tessella.generate(generator, [0, 1, 2, 3], num_steps=16, guidance=2.0)
    return found


def trained_cases(device: torch.device) -> Iterator[Case]:
    """Low-bit attention on tensors of a trained model; `check` gives the worst block and step."""
    found = trained_inputs(device)
    q = found[0][0]
    shape = "B{} N{} H{} d{}".format(*q.shape)
    for precision in get_args(LowBitPrecision):

        def run(given: tuple[Tensor, ...], precision: LowBitPrecision = precision) -> Tensor:
            with torch.no_grad():
                return low_bit_attention(*given, precision=precision)

        def check(_: Any, run: Callable[[Any], Tensor] = run) -> dict[str, float]:
            all_near = [agreement(run(given), given) for given in found]
            return {
                "worst cosine": min(near["cosine"] for near in all_near),
                "worst relative L1": max(near["relative L1"] for near in all_near),
            }

        def make(seed: int) -> Any:
            return found[seed]

        functions = {"kernel": run, **baselines(device)}
        op = f"trained attention {precision}"
        yield Case(op, shape, q.dtype, 0, functions, make, check=check)


def attention_cases(device: torch.device) -> Iterator[Case]:
    """Low-bit attention in every precision, with quantization; q, k, v from one projection."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for batch, tokens, heads, dim in SHAPES if device.type == "cuda" else ((2, 257, 4, 32),):

        def make(
            seed: int,
            batch: int = batch,
            tokens: int = tokens,
            heads: int = heads,
            dim: int = dim,
        ) -> tuple[Tensor, ...]:
            rng = torch.Generator(device).manual_seed(seed)
            shape = (batch, tokens, 3, heads, dim)
            return torch.randn(shape, generator=rng, device=device).to(dtype).unbind(2)

        shape = f"B{batch} N{tokens} H{heads} d{dim}"
        num_bytes = 4 * batch * tokens * heads * dim * dtype.itemsize
        num_flops = 4 * batch * heads * tokens**2 * dim
        for precision in get_args(LowBitPrecision):

            def run(given: tuple[Tensor, ...], precision: LowBitPrecision = precision) -> Tensor:
                return low_bit_attention(*given, precision=precision)

            def check(given: Any, run: Callable[[Any], Tensor] = run) -> dict[str, float]:
                return agreement(run(given), given)

            functions = {"kernel": run, **baselines(device)}
            yield Case(
                f"low_bit_attention {precision}",
                shape,
                dtype,
                num_bytes,
                functions,
                make,
                num_flops=num_flops,
                check=check,
            )
        for method in get_args(Method):

            def binary(given: tuple[Tensor, ...], method: Method = method) -> Tensor:
                return binary_attention(*given, method=method)

            functions = {"kernel": binary, **baselines(device)}
            op = f"binary_attention {method}"
            yield Case(op, shape, dtype, num_bytes, functions, make, num_flops=num_flops)
