"""The one attention function of the generators: SDPA, plain matrix products, or xformers.

Queries, keys and values are (B, N, heads, dim), which every backend takes without a copy.
"""

import importlib.util
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

AttentionBackend = Literal["auto", "sdpa", "plain", "xformers"]

_SHORT = 128
"""Longest sequence for which `auto` takes `plain` on a CPU: torch's fused attention is slow on
short ones, backward and in bf16 above all: `benchmarks/attention.py`."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    valid: Tensor | None = None,
    dropout: float = 0.0,
    backend: AttentionBackend = "auto",
) -> Tensor:
    """Softmax attention over all positions, scaled by 1 / sqrt(dim).

    Args:
        q: Queries, (B, N, heads, dim).
        k: Keys, the same shape.
        v: Values, the same shape.
        valid: True at positions that may be attended to, (B, N) bool; None: all.
        dropout: Probability of dropping an attention weight.
        backend: `sdpa` is torch's scaled_dot_product_attention, `plain` two matrix products around
            a softmax, `xformers` its memory-efficient attention; `auto` is `plain` for short
            sequences on a CPU and `sdpa` otherwise.

    Returns:
        (B, N, heads, dim).

    Raises:
        RuntimeError: If xformers is asked for and not installed.
    """
    if backend == "xformers":
        check_backend(backend)
        from xformers.ops import memory_efficient_attention

        bias = None
        if valid is not None:
            bias = torch.zeros_like(valid, dtype=q.dtype).masked_fill(~valid, -torch.inf)
            bias = bias[:, None, None, :].expand(-1, q.shape[2], q.shape[1], -1)
        return memory_efficient_attention(q, k, v, attn_bias=bias, p=dropout)
    mask = None if valid is None else valid[:, None, None, :]
    plain = backend == "plain" or (
        backend == "auto" and q.device.type == "cpu" and q.shape[1] <= _SHORT
    )
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    if not plain:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout).transpose(1, 2)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    precise = torch.promote_types(scores.dtype, torch.float32)
    weights = F.dropout(scores.softmax(-1, precise).to(v.dtype), dropout)
    return (weights @ v).transpose(1, 2)


def check_backend(backend: AttentionBackend) -> None:
    """Refuse a backend that is not installed; nothing falls back silently.

    Raises:
        RuntimeError: With the command that installs it.
    """
    if backend == "xformers" and importlib.util.find_spec("xformers") is None:
        raise RuntimeError("attention: xformers is not installed; pip install 'tessella[xformers]'")
