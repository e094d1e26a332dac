"""Benchmark cases: a generator of MaskBit's size with and without kernels, forward and sampling."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tessella.benchmarks.kernel_cases.case import Case
from tessella.generators.masked import MaskBitConfig, MaskedGenerator
from tessella.generators.networks.bert import TransformerConfig
from tessella.sample.generate import generate
from tessella.tokens.tokens import Tokens, TokenSpec

NUM_STEPS = 16

WAYS: dict[str, dict[str, Any]] = {
    "plain, sdpa": {"embedding": "plain", "attention": "sdpa"},
    "plain": {"embedding": "plain", "attention": "auto"},
    "fused": {"embedding": "fused", "attention": "auto"},
    "fused, low_bit": {"embedding": "fused", "attention": "low_bit"},
}
"""Settings of the generator by name: without kernels, and with each kernel added."""


def generators_of(device: torch.device, dtype: torch.dtype) -> dict[str, MaskedGenerator]:
    """Generators with the same weights under all settings, by name."""
    trunk = TransformerConfig(dropout=0.0)
    spec = TokenSpec((16, 16), (2,) * 14)
    if device.type != "cuda":
        trunk = TransformerConfig(width=128, num_layers=2, num_heads=4, dropout=0.0)
        spec = TokenSpec((8, 8), (2,) * 14)
    found = {}
    for name, way in WAYS.items():
        torch.manual_seed(0)
        config = MaskBitConfig(
            transformer=dataclasses.replace(trunk, attention=way["attention"]),
            num_classes=1000,
            embedding=way["embedding"],
        )
        found[name] = MaskedGenerator(config, spec).to(device, dtype).eval()
    return found


def forward_cases(device: torch.device) -> Iterator[Case]:
    """One prediction: `kernel` is the fused embedding with the attention of the rules."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generators = generators_of(device, dtype)
    plain = generators["plain"]
    batch, spec = (64 if device.type == "cuda" else 4), plain.spec
    num_parameters = plain.num_parameters()["total"]

    def make(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = torch.Generator(device).manual_seed(seed)
        shape = (batch, spec.num_tokens, plain.num_groups)
        indices = torch.randint(128, shape, generator=rng, device=device)
        mask = torch.rand(shape, generator=rng, device=device) < 0.5
        return indices, mask, torch.randint(1000, (batch,), generator=rng, device=device)

    def run(name: str) -> Callable[[Any], Any]:
        def forward(given: Any) -> Any:
            with torch.inference_mode():
                return generators[name].predict(*given)

        return forward

    functions = {"kernel": run("fused")} | {name: run(name) for name in WAYS if name != "fused"}
    config = plain.config.transformer
    shape = f"B{batch} N{spec.num_tokens} D{config.width} L{config.num_layers}"
    num_bytes = num_parameters * dtype.itemsize
    num_flops = 2 * num_parameters * batch * spec.num_tokens
    yield Case("maskbit forward", shape, dtype, num_bytes, functions, make, num_flops=num_flops)


def sampling_cases(device: torch.device) -> Iterator[Case]:
    """Guided sampling with all steps: eager against compiled, on CUDA in CUDA graphs.

    Two settings compute the same scores up to rounding. Where a drawn entry or the order of two
    slots depends on a smaller difference, their tokens differ from that step on; `equal tokens` is
    the share of equal codes.
    """
    cuda = device.type == "cuda"
    generators = generators_of(device, torch.float32)
    batch = 16 if cuda else 2

    def make(seed: int) -> list[int]:
        return [seed * batch + i for i in range(batch)]

    def run(name: str, compiled: bool) -> Callable[[Any], Tokens]:
        def sample(seeds: list[int]) -> Tokens:
            return generate(
                generators[name],
                [seed % 1000 for seed in seeds],
                seeds=seeds,
                num_steps=NUM_STEPS,
                guidance=3.0,
                batch_size=batch,
                compile=compiled,
            )

        return sample

    best = run("fused", cuda)

    def check(seeds: list[int]) -> dict[str, float]:
        others = run("plain, sdpa", False)(seeds)
        return {"equal tokens": float((best(seeds).indices == others.indices).float().mean())}

    functions: dict[str, Callable[[Any], Any]] = {"kernel": best}
    functions |= {f"eager {name}": run(name, False) for name in WAYS}
    if cuda:
        functions |= {"compiled, plain, sdpa": run("plain, sdpa", True)}
        functions |= {"compiled, fused, low_bit": run("fused, low_bit", True)}
    plain = generators["plain"]
    config = plain.config.transformer
    shape = f"B{batch} N{plain.spec.num_tokens} D{config.width} L{config.num_layers}"
    dtype = torch.bfloat16 if cuda else torch.float32
    op = f"maskbit {NUM_STEPS} steps"
    yield Case(op, shape, dtype, 0, functions, make, graph=False, check=check)
