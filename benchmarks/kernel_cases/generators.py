"""Whole generators with and without the kernels."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tessella.benchmarks.kernel_cases.case import Case
from tessella.generators.masked import MaskBitConfig, MaskedGenerator
from tessella.generators.transformer import TransformerConfig
from tessella.tokenizers.tokens import TokenSpec


def generator_cases(device: torch.device) -> Iterator[Case]:
    """A MaskBit forward with `embedding: fused` beside `plain`."""
    cuda = device.type == "cuda"
    trunk = TransformerConfig(dropout=0.0)
    batch, spec = 64, TokenSpec((16, 16), (2,) * 14)
    if not cuda:
        trunk = TransformerConfig(width=128, num_layers=2, num_heads=4, dropout=0.0)
        batch, spec = 4, TokenSpec((8, 8), (2,) * 14)
    dtype = torch.bfloat16 if cuda else torch.float32
    generators = {}
    for embedding in ("fused", "plain"):
        torch.manual_seed(0)
        config = MaskBitConfig(transformer=trunk, num_classes=1000, embedding=embedding)  # type: ignore[arg-type]
        generators[embedding] = MaskedGenerator(config, spec).to(device, dtype).eval()
    num_bytes = sum(p.numel() * p.element_size() for p in generators["plain"].parameters())
    groups = generators["plain"].num_groups

    def make(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = torch.Generator(device).manual_seed(seed)
        shape = (batch, spec.num_tokens, groups)
        indices = torch.randint(128, shape, generator=rng, device=device)
        mask = torch.rand(shape, generator=rng, device=device) < 0.5
        return indices, mask, torch.randint(1000, (batch,), generator=rng, device=device)

    def run(embedding: str) -> Callable[[Any], Any]:
        def forward(given: Any) -> Any:
            with torch.inference_mode():
                return generators[embedding].predict(*given)

        return forward

    functions = {"kernel": run("fused"), "plain": run("plain")}
    shape = f"B{batch} N{spec.num_tokens} D{trunk.width} L{trunk.num_layers}"
    yield Case("maskbit forward", shape, dtype, num_bytes, functions, make)
