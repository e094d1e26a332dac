"""Bit-token embedding in plain torch: the specification of `bit_embedding`, forward and backward.

With the sign (or bit) s[b, n, k] of channel k = g * m + i, bit i of group g, 0 where it is hidden:

    y[b, n] = sum_k s[b, n, k] W[k] + bias + position[n]      for the N tokens
    y[b, c] = class_table[labels[b]] + position[c]            for the class row, if there is one

where `mask_token`, if given, replaces the sum and the bias at hidden positions. Everything is added
up in float32 (float64 for float64 weights) and rounded once. The forms with values {0, 1} and
{-1, 1} are equivalent: sum_k b_k W_k = sum_k s_k W_k / 2 + sum_k W_k / 2.

Source: LFQBert of arXiv:2409.16211 (groups, in-band masks, class row last), arXiv:2410.14672 (mask
token, condition first), arXiv:2304.04820 (weights as a table, no bias). docs/kernels.md, "The
embeddings", has the arguments of each.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..rows import add_rows, split_class_row


class BitEmbeddingGradients(NamedTuple):
    """Gradients in float32 or float64; those that are not needed have no rows."""

    weight: Tensor  # (K, D)
    bias: Tensor  # (D,)
    position: Tensor  # (N, D), (N + 1, D) with a class row, or (0, D)
    class_table: Tensor  # (C, D) or (0, D)
    mask_token: Tensor  # (D,)


def hidden_groups(codes: Tensor, mask: Tensor | None, bits_per_group: int) -> Tensor:
    """Flags of the groups hidden by the in-band code 2**m or by the mask, (B, N, G) bool."""
    hidden = codes == 1 << bits_per_group
    if mask is None:
        return hidden
    return hidden | (mask if mask.ndim == 3 else mask[..., None])


def bit_signs(
    codes: Tensor,
    mask: Tensor | None,
    bits_per_group: int,
    values: str,
    *,
    whole_positions: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Left factor s of the product, (B, N, K) in {-1, 0, 1} (`pm1`) or {0, 1} (`01`).

    Args:
        codes: Codes in [0, 2**m], (B, N, G) integers; 2**m is hidden.
        mask: True at hidden groups, (B, N) or (B, N, G) bool, or None.
        bits_per_group: Number of bits m of a group.
        values: Numbers that bits stand for, `pm1` or `01`.
        whole_positions: Hide all groups of a position that has a hidden one.
        dtype: Type of the result.
    """
    shifts = torch.arange(bits_per_group, device=codes.device)
    bits = ((codes[..., None] >> shifts) & 1).to(dtype)  # (B, N, G, m)
    signs = bits * 2 - 1 if values == "pm1" else bits
    hidden = hidden_groups(codes, mask, bits_per_group)
    if whole_positions:
        hidden = hidden.any(-1, keepdim=True)
    return signs.masked_fill(hidden[..., None], 0).flatten(2)


def bit_embedding_reference(
    codes: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    position: Tensor | None = None,
    class_table: Tensor | None = None,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    mask_token: Tensor | None = None,
    *,
    bits_per_group: int,
    values: str = "pm1",
    class_position: str = "last",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Compute the formula above; see `op.bit_embedding` for the arguments.

    `dtype` is the type of the result, to which the weight is rounded first; None is the type of the
    weight. The other terms are added unrounded.

    Returns:
        Hidden states, (B, N, D), or (B, N + 1, D) with a class row.
    """
    dtype = dtype or weight.dtype
    wide = torch.promote_types(weight.dtype, torch.float32)
    replace = mask_token is not None
    signs = bit_signs(
        codes, mask, bits_per_group, values, whole_positions=replace, dtype=wide
    )  # (B, N, K)
    hidden_bias = None if bias is None else bias.to(wide)
    x = F.linear(signs, weight.to(dtype).to(wide).t(), hidden_bias)
    if mask_token is not None:
        hidden = hidden_groups(codes, mask, bits_per_group).any(-1, keepdim=True)
        x = torch.where(hidden, mask_token.to(wide), x)
    if class_table is not None:
        assert labels is not None
        row = F.embedding(labels, class_table).to(wide)[:, None]
        x = torch.cat([row, x] if class_position == "first" else [x, row], 1)
    if position is not None:
        x = x + position.to(wide)
    return x.to(dtype)


def bit_embedding_backward_reference(
    grad: Tensor,
    codes: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    *,
    bits_per_group: int,
    values: str,
    class_position: str,
    num_classes: int,
    replace: bool,
    need_position: bool,
) -> BitEmbeddingGradients:
    """Compute every gradient by explicit formulas.

    Args:
        grad: Gradient dL/dy of the result, (B, N, D) or (B, N + 1, D).
        codes: Codes of the forward, (B, N, G).
        labels: Class labels, (B,), or None.
        mask: True at hidden groups, (B, N) or (B, N, G) bool, or None.
        bits_per_group: Number of bits m of a group.
        values: Numbers that bits stand for, `pm1` or `01`.
        class_position: Position of the class row, `last` or `first`.
        num_classes: Number of rows of the class table; 0: no class row.
        replace: True if a mask token replaced the hidden positions.
        need_position: Compute the gradient of the positions.
    """
    grad = grad.to(torch.promote_types(grad.dtype, torch.float32))
    rows, tokens = split_class_row(grad, class_position, num_classes)
    signs = bit_signs(
        codes, mask, bits_per_group, values, whole_positions=replace, dtype=grad.dtype
    )
    hidden = torch.zeros_like(signs[..., :1])
    if replace:
        hidden = hidden_groups(codes, mask, bits_per_group).any(-1, keepdim=True).to(grad.dtype)
    left = torch.cat([signs, 1 - hidden, hidden], -1).flatten(0, 1)  # (B * N, K + 2)
    sums = left.t() @ tokens.flatten(0, 1)
    return BitEmbeddingGradients(
        weight=sums[:-2].clone(),
        bias=sums[-2].clone(),
        position=grad.sum(0) if need_position else grad.new_empty(0, grad.shape[-1]),
        class_table=add_rows(rows, labels, num_classes),
        mask_token=sums[-1].clone(),
    )
