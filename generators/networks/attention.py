"""The one attention function of the generators.

Queries, keys and values are (B, N, heads, dim), which every backend takes without a copy.
"""

import importlib.util
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...kernels.backends import BackendUnavailable
from ...kernels.low_bit_attention.op import LowBitPrecision, low_bit_attention
from .attention_rules import (
    HEADS,
    LENGTHS,
    AttentionKernel,
    choose_kernel,
    class_of,
    measured_rules,
)

AttentionBackend = Literal["auto", "fastest", "sdpa", "plain", "xformers", "low_bit"]
"""`auto` is the fastest exact kernel by the rules of `attention_rules.py`; `fastest` may also be
`low_bit` where a measured rule says so and no gradient is wanted. The others are taken as named."""

_SDPA_ORDER = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    valid: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    backend: AttentionBackend = "auto",
    low_bit_precision: LowBitPrecision = "int8",
) -> Tensor:
    """Softmax attention over all positions, or those up to a query's own, scaled by 1 / sqrt(dim).

    Args:
        q: Queries, (B, N, heads, dim); with `causal` there may be one, (B, 1, heads, dim).
        k: Keys, (B, N, heads, dim).
        v: Values, of the shape of `k`.
        valid: True at positions that may be attended to, (B, N) bool; None: all. With `causal` a
            query sees itself in any case: no kernel then has a row without a key.
        causal: Whether a query sees only the keys up to its own position; a single query stands at
            the last one.
        dropout: Probability of dropping an attention weight; `low_bit` has none.
        backend: Backend; see `AttentionBackend`.
        low_bit_precision: Precision of `low_bit`, which in training is differentiated straight
            through.

    Returns:
        Mixed values, of the shape of `q`.

    Raises:
        RuntimeError: If xformers is asked for and not installed.
        ValueError: If `low_bit` is asked for with dropout or `causal`.
    """
    if backend == "auto" or backend == "fastest":
        training = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
        lossy = backend == "fastest" and not (dropout or causal) and takes_low_bit(q.shape[3])
        length, dim = class_of(q.shape[1], LENGTHS), class_of(q.shape[3], HEADS)
        kernel: AttentionKernel = _chosen(q.device, q.dtype, length, dim, training, lossy)
    else:
        kernel = backend
    return compute_attention(kernel, q, k, v, valid, dropout, low_bit_precision, causal=causal)


def compute_attention(
    kernel: AttentionKernel,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor | None = None,
    dropout: float = 0.0,
    low_bit_precision: LowBitPrecision = "int8",
    *,
    causal: bool = False,
) -> Tensor:
    """`attention` by the named kernel, whatever the rules say."""
    if causal and q.shape[1] not in (1, k.shape[1]):
        raise ValueError(
            f"causal: expected {k.shape[1]} queries, as there are keys, or 1, found {q.shape[1]}"
        )
    if kernel == "low_bit":
        if causal:
            check_causal(kernel)
        if dropout:
            raise ValueError(
                f"attention: low_bit has no dropout of attention weights, found {dropout}; set "
                "attention_dropout: 0"
            )
        return low_bit_attention(
            q, k, v, valid=valid, precision=low_bit_precision, straight_through=True
        )
    causal = causal and q.shape[1] > 1
    if kernel == "xformers":
        return _xformers(q, k, v, valid, dropout, causal)
    mask = None if valid is None else valid[:, None, None, :]
    if causal and mask is not None:
        mask, causal = _causal_mask(mask, q.shape[1]), False
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    if kernel == "plain":
        return _plain(q, k, v, mask, dropout, causal).transpose(1, 2)
    if kernel == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal).transpose(1, 2)
    order = [_SDPA_ORDER[kernel], *(kind for name, kind in _SDPA_ORDER.items() if name != kernel)]
    with sdpa_kernel(order, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal).transpose(1, 2)


def check_backend(backend: AttentionBackend) -> None:
    """Refuse a backend that does not exist or is not installed; nothing falls back silently.

    Raises:
        ValueError: If there is no such backend.
        BackendUnavailable: If it is not installed; the message has the command to install it.
        ConfigError: If TESSELLA_ATTENTION_RULES names a file that holds no rules.
    """
    if backend not in get_args(AttentionBackend):
        raise ValueError(
            f"attention: expected one of {get_args(AttentionBackend)}, found {backend!r}"
        )
    if backend in ("auto", "fastest"):
        measured_rules()
    if backend == "xformers" and importlib.util.find_spec("xformers") is None:
        raise BackendUnavailable(
            "attention: xformers is not installed; pip install 'tessella[xformers]'"
        )


def takes_low_bit(head_dim: int) -> bool:
    """Whether `low_bit` has heads of these dimensions."""
    return 32 <= head_dim <= 128 and head_dim % 8 == 0


def check_heads(backend: AttentionBackend, head_dim: int) -> None:
    """Refuse heads that a backend does not take.

    Raises:
        ValueError: If the head dimension is not one that the backend takes.
    """
    if backend == "low_bit" and not takes_low_bit(head_dim):
        raise ValueError(
            f"attention: low_bit takes heads of 32, 40, ... or 128; this model's are {head_dim}"
        )


def check_causal(backend: AttentionBackend) -> None:
    """Refuse a backend without causal attention.

    Raises:
        ValueError: If the backend is not causal; the message lists the others.
    """
    if backend == "low_bit":
        others = ", ".join(name for name in get_args(AttentionBackend) if name != "low_bit")
        raise ValueError(f"attention: low_bit is not causal; expected one of {others}")


def _chosen(
    device: torch.device, dtype: torch.dtype, length: int, dim: int, training: bool, lossy: bool
) -> AttentionKernel:
    """`choose_kernel`, which torch.compile runs once instead of tracing files and logs."""
    return choose_kernel(device, dtype, length, dim, training=training, lossy=lossy)


# What `torch.compiler.assume_constant_result` does, which would load the compiler on import.
_chosen._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _triangle(size: int, device: torch.device) -> Tensor:
    """Which keys a query sees that sees those up to its own, (size, size) bool."""
    return torch.ones(size, size, dtype=torch.bool, device=device).tril()


def _causal_mask(valid: Tensor, size: int) -> Tensor:
    """Which keys a query sees: valid ones up to its own, and its own; (..., size, size) bool."""
    itself = torch.eye(size, dtype=torch.bool, device=valid.device)
    return valid & _triangle(size, valid.device) | itself


def _plain(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, causal: bool
) -> Tensor:
    """Two matrix products around a softmax, scores in float32; (B, heads, N, dim)."""
    precise = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(precise) * q.shape[-1] ** -0.5) @ k.to(precise).transpose(2, 3)
    if causal:
        mask = _triangle(q.shape[2], q.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(-1)
    if mask is not None:  # a row without a valid key is 0, as in torch's own attention
        weights = weights.masked_fill(~mask.any(-1, keepdim=True), 0)
    return F.dropout(weights.to(v.dtype), dropout) @ v


def _xformers(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, dropout: float, causal: bool
) -> Tensor:
    """Memory-efficient attention of xformers; (B, N, heads, dim)."""
    check_backend("xformers")
    from xformers import ops

    bias = ops.LowerTriangularMask() if causal else None
    if valid is not None:
        seen = valid[:, None, :].expand(-1, q.shape[1], -1)
        seen = _causal_mask(seen, q.shape[1]) if causal else seen
        bias = torch.zeros_like(seen, dtype=q.dtype).masked_fill(~seen, -torch.inf)
        bias = F.pad(bias, (0, -valid.shape[1] % 8))[..., : valid.shape[1]]  # rows of 16 bytes
        bias = bias[:, None].expand(-1, q.shape[2], -1, -1)
    out: Tensor = ops.memory_efficient_attention(q, k, v, attn_bias=bias, p=dropout)
    return out
