"""What the tests of the masked sampler share: a token spec, random tokens, a short call."""

from typing import Any

import torch
from torch import Tensor

from tessella.sample.masked import sample_masked
from tessella.sample.masked_steps import MaskedSampling
from tessella.sample.request import Request
from tessella.tokens.tokens import Tokens, TokenSpec

SAMPLERS = ("confidence", "entropy", "halton")
GRID = TokenSpec((4, 4), (2,) * 6)
PAIRED = (8, 8)
"""Groups in which the grid is read: 32 slots of 8 entries."""


def sample(generator: Any, batch: int, *, labels: Tensor | None = None, **fields: Any) -> Tokens:
    """`sample_masked` with seeds 0, 1, 2, ... and settings in place of a config."""
    state = {name: fields.pop(name) for name in ("known", "mask", "lengths") if name in fields}
    labels = torch.zeros(batch, dtype=torch.int64) if labels is None else labels
    request = Request(labels, torch.arange(batch), **state)
    return sample_masked(generator, request, MaskedSampling(**fields))


def constant(logits: Tensor) -> Any:
    """The same logits (N, G, K) for every image and state."""
    return lambda call: logits.expand(len(call.indices), *logits.shape).clone()


def random_tokens(spec: TokenSpec, batch: int, seed: int = 5) -> Tokens:
    rng = torch.Generator().manual_seed(seed)
    columns = [
        torch.randint(size, (batch, spec.num_tokens), generator=rng) for size in spec.codebook_sizes
    ]
    return Tokens(torch.stack(columns, -1), spec)
