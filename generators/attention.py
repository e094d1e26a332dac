"""The one attention function of the generators: SDPA, or xformers where it is asked for.

Queries, keys and values are (B, N, heads, dim), which both backends take without a copy.
"""

import importlib.util
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

AttentionBackend = Literal["auto", "sdpa", "xformers"]


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
        backend: `sdpa` is torch's scaled_dot_product_attention, `xformers` its memory-efficient
            attention; `auto` is `sdpa`.

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
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, dropout).transpose(1, 2)


def check_backend(backend: AttentionBackend) -> str:
    """The backend that will run, by name.

    Raises:
        RuntimeError: If it is not installed; nothing falls back silently.
    """
    if backend == "xformers" and importlib.util.find_spec("xformers") is None:
        raise RuntimeError("attention: xformers is not installed; pip install 'tessella[xformers]'")
    return "sdpa" if backend == "auto" else backend
