"""Hashed attention (EcoFormer, arXiv:2209.09004): linear attention over binary codes.

Queries and keys become codes h of b bits, -1 or +1 each (`KernelHash`), and attention weighs values
by h_i . h_j + b + 1, which is between 1 and 2 b + 1 and needs no softmax. The sums over keys do not
depend on the query, so the cost is O(N b d) and plain torch is enough: there is no kernel here.

Differences from the published code:

- It adds (b + 1) times the query token's own value to the numerator, while its denominator holds
  b + 1 for every key. Expanding the weights gives (b + 1) times the sum of all values: that is
  `value_sum="all"`. `"own"` is the published one, for its checkpoints.
- sign(0) is +1, not 0, in the codes as in the fitting.
- A zero vector stays zero where it is normalized, instead of NaN.
- Fitting happens in `fit`, on tokens that the caller passes, not in the first forward pass; weights
  are drawn there, from the caller's generator.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backends import no_autocast
from ..checks import FLOATS, check_float, check_valid
from .reference import binary_sign, signs

ValueSum = Literal["all", "own"]

NUM_ANCHORS = 25
"""Number of anchors of a published hash, which are tokens that it compares with, per head."""


class HashFit(NamedTuple):
    """Loss of each bit on the tokens that a hash was fitted to, float32 or float64."""

    before: Tensor  # (b,) with the weights drawn
    after: Tensor  # (b,) with the weights kept


def hashed_attention(
    q_hash: Tensor,
    k_hash: Tensor,
    v: Tensor,
    *,
    valid: Tensor | None = None,
    value_sum: ValueSum = "all",
) -> Tensor:
    """Linear attention that weighs value j for query i by h_i . h_j + b + 1.

    Args:
        q_hash: Codes of the queries, (B, Nq, H, b) float in {-1, +1}; see `KernelHash`.
        k_hash: Codes of the keys, (B, Nk, H, b), of the same type.
        v: Values, (B, Nk, H, d), of the same type.
        valid: True at valid keys, (B, Nk) bool; None: all keys. Other values have no effect.
        value_sum: Term that b + 1 multiplies in the numerator: `all`, the sum of all valid values,
            or `own`, the value at the position of the query, as in the published code; `own` is for
            Nq = Nk only.

    Returns:
        Attended values, (B, Nq, H, d), of the type of v; 0 for queries without valid keys. Added up
        in float32, or float64 for float64 inputs. Gradients are those of the formula.

    Raises:
        ValueError: If a type, shape or setting is wrong.

    Source: arXiv:2209.09004, Section 4.1.
    """
    _check_attention(q_hash, k_hash, v, valid, value_sum)
    wide = torch.promote_types(v.dtype, torch.float32)
    with no_autocast(v.device):
        queries, keys, values = (x.transpose(1, 2).to(wide) for x in (q_hash, k_hash, v))
        count = torch.full((), keys.shape[2], device=v.device)
        if valid is not None:
            hidden = ~valid[:, None, :, None]
            keys, values = keys.masked_fill(hidden, 0), values.masked_fill(hidden, 0)
            count = valid.sum(1)[:, None, None, None]
        offset = q_hash.shape[-1] + 1
        added = values if value_sum == "own" else values.sum(2, keepdim=True)
        numerator = queries @ (keys.mT @ values) + offset * added  # (B, H, Nq, d)
        denominator = queries @ keys.sum(2)[..., None] + offset * count  # (B, H, Nq, 1)
        denominator = denominator.masked_fill(count == 0, 1)
        return (numerator / denominator).transpose(1, 2).to(v.dtype)


class KernelHash(nn.Module):
    """Binary codes of vectors by kernels to anchors: sign(A (kappa(x) - mean)), per head.

    kappa(x) holds exp(-|x - anchor|^2 / (2 sigma)) for every anchor, where x has unit length and
    sigma is the mean squared distance between the tokens and the anchors of a (batch, head).
    The gradient passes the sign where its input is in [-1, 1]. All learned values are buffers, made
    by `fit`; the optimizer does not train them. They stay float32 under `.to(torch.bfloat16)`.

    Args:
        num_heads: Number of heads H.
        head_dim: Width d of the vectors.
        num_bits: Number of bits b of the codes.
        num_anchors: Number of anchors, tokens that the kernel compares with, per head.

    Published names and shapes of the buffers: `anchor` (1, H, m, d) is `anchors`, `A` (H, b, m) is
    `weight`, `mvec` (1, H, 1, m) is `kernel_mean`.
    """

    anchors: Tensor  # (H, m, d)
    weight: Tensor  # (H, b, m)
    kernel_mean: Tensor  # (H, m)
    fitted: Tensor  # () bool

    def __init__(
        self, num_heads: int, head_dim: int, *, num_bits: int = 16, num_anchors: int = NUM_ANCHORS
    ) -> None:
        super().__init__()
        sizes = {"num_heads": num_heads, "head_dim": head_dim}
        for name, size in (sizes | {"num_bits": num_bits, "num_anchors": num_anchors}).items():
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, found {size}")
        self.register_buffer("anchors", torch.zeros(num_heads, num_anchors, head_dim))
        self.register_buffer("weight", torch.zeros(num_heads, num_bits, num_anchors))
        self.register_buffer("kernel_mean", torch.zeros(num_heads, num_anchors))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Compute codes in {-1, +1}.

        Args:
            x: Queries or keys, (B, N, H, d) float; scaled to unit length here.
            valid: True at valid tokens, which sigma includes, (B, N) bool; None: all tokens. The
                codes of other tokens are meaningless.

        Returns:
            Codes, (B, N, H, b), of the type of x.

        Raises:
            RuntimeError: If `fit` was not called and no fitted state was loaded. Reading the flag
                waits for the device. Inside torch.compile, in the capture of a CUDA graph and on
                `meta` it is not read; there the caller is responsible.
            ValueError: If a type or shape is wrong.
        """
        self._check(x)
        check_valid(valid, (x.shape[0], x.shape[1]), x.device)
        if self._fitted_can_be_read() and not self.fitted:
            raise RuntimeError(
                "KernelHash: expected a fitted hash; call fit() or load a fitted one"
            )
        with no_autocast(x.device):
            kernel = self._kernel(_unit(x), valid) - self._wide(self.kernel_mean, x)[:, None]
            projected = kernel @ self._wide(self.weight, x).mT  # (B, H, N, b)
            return binary_sign(projected).transpose(1, 2).to(x.dtype)

    @torch.no_grad()
    def fit(
        self,
        x: Tensor,
        *,
        rng: torch.Generator,
        num_steps: int = 100,
        lr: float = 5e-4,
        momentum: float = 0.9,
        num_neighbors: int = 10,
    ) -> HashFit:
        """Fit the hash by supervised hashing: codes of tokens that attend to each other agree.

        The target is +1 for the `num_neighbors` keys with the largest inner product with each
        query, -1 for as many with the smallest, and 0 for all others. Bit by bit, in a fixed order,
        gradient descent improves drawn weights on the residual of b times the target after the
        previous bits; a bit keeps its drawn weights unless the loss of its signs fell.

        Args:
            x: Queries that are also the keys, (B, N, H, d) float, all tokens valid. The anchors are
                tokens of the first sample.
            rng: Generator of anchors and weights; the same state gives the same hash.
            num_steps: Number of steps of stochastic gradient descent per bit.
            lr: Learning rate of the steps.
            momentum: Nesterov momentum of the steps.
            num_neighbors: Number of keys of either sign per query.

        Returns:
            Loss of every bit, the mean over samples and heads of -h^T S h / (N b), with the drawn
            and with the kept weights.

        Raises:
            ValueError: If a type, shape or number is wrong, or there are too few tokens.

        Source: arXiv:2209.09004, Section 4.2; kernel-based supervised hashing.
        """
        self._check(x)
        (heads, num_bits, num_anchors), tokens = self.weight.shape, x.shape[1]
        needed = max(num_anchors, num_neighbors)
        if tokens < needed:
            raise ValueError(f"x: expected at least {needed} tokens to fit, found {tokens}")
        if num_steps < 0 or num_neighbors < 1:
            raise ValueError(
                "num_steps, num_neighbors: expected at least 0 and 1, "
                f"found {num_steps} and {num_neighbors}"
            )
        with no_autocast(x.device):
            units = _unit(x)
            chosen = torch.randperm(tokens, generator=rng, device=rng.device)[:num_anchors]
            drawn = torch.randn(heads, num_bits, num_anchors, generator=rng, device=rng.device)
            self.anchors.copy_(units[0, :, chosen.to(x.device)])
            kernel = self._kernel(units, None)  # (B, H, N, m)
            self.kernel_mean.copy_(kernel.mean((0, 2)))
            kernel = kernel - self._wide(self.kernel_mean, x)[:, None]
            left = _neighbors(units, num_neighbors) * num_bits  # (B, H, N, N)
            losses = []
            for bit in range(num_bits):
                first = drawn[:, bit].to(kernel)
                last = _descend(kernel, left, first, num_bits, num_steps, lr, momentum)
                candidates = [(weight, _codes(kernel, weight)) for weight in (first, last)]
                before, after = (_loss(codes, left, num_bits) for _, codes in candidates)
                weight, codes = candidates[bool(after < before)]
                self.weight[:, bit] = weight
                left = left - codes[..., :, None] * codes[..., None, :]
                losses.append((before, torch.minimum(before, after)))
        self.fitted.fill_(True)
        return HashFit(*(torch.stack(column) for column in zip(*losses, strict=True)))

    def _fitted_can_be_read(self) -> bool:
        """Whether Python may read the flag `fitted` here."""
        if torch.compiler.is_compiling() or self.fitted.is_meta:
            return False
        return not (self.fitted.is_cuda and torch.cuda.is_current_stream_capturing())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the buffers but keep their float type: rounded anchors would change codes."""
        kept = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch has no types for it
        for name, before in kept.items():
            now = self._buffers[name]
            if before is not None and now is not None and now.dtype != before.dtype:
                self._buffers[name] = before.to(now.device)
        return self

    def _kernel(self, units: Tensor, valid: Tensor | None) -> Tensor:
        """Kernel values kappa, (B, H, N, m), of unit vectors (B, H, N, d)."""
        anchors = self._wide(self.anchors, units)
        lengths = units.square().sum(-1, keepdim=True) + anchors.square().sum(-1)[:, None]
        distance = (lengths - 2 * units @ anchors.mT).clamp(min=0)  # squared; (B, H, N, m)
        if valid is None:
            sigma = distance.mean((-2, -1), keepdim=True)
        else:
            keep = valid[:, None, :, None]
            total = distance.masked_fill(~keep, 0).sum((-2, -1), keepdim=True)
            sigma = total / (keep.sum(2, keepdim=True).clamp(min=1) * distance.shape[-1])
        return torch.exp(-distance / (2 * sigma.clamp(min=torch.finfo(sigma.dtype).tiny)))

    def _check(self, x: Tensor) -> None:
        """Check that vectors are (B, N, H, d) with the heads and the width of the hash."""
        heads, _, width = self.anchors.shape
        if x.ndim != 4 or x.dtype not in FLOATS or 0 in x.shape or x.shape[2:] != (heads, width):
            raise ValueError(
                f"x: expected (B, N, {heads}, {width}) float without empty axes, "
                f"found {tuple(x.shape)} {x.dtype}"
            )
        if x.device != self.anchors.device:
            raise ValueError(
                f"x: expected a tensor on {self.anchors.device}, found one on {x.device}"
            )

    @staticmethod
    def _wide(buffer: Tensor, like: Tensor) -> Tensor:
        """Cast a buffer to the type of the computation: that of `like`, at least float32."""
        return buffer.to(torch.promote_types(like.dtype, torch.float32))


def _check_attention(
    q_hash: Tensor, k_hash: Tensor, v: Tensor, valid: Tensor | None, value_sum: str
) -> None:
    """Check that settings, types and shapes fit each other."""
    if value_sum not in get_args(ValueSum):
        raise ValueError(f"value_sum: expected one of {get_args(ValueSum)}, found {value_sum!r}")
    if q_hash.dtype not in FLOATS or q_hash.ndim != 4 or 0 in q_hash.shape:
        raise ValueError(
            "q_hash: expected (B, Nq, H, b) float without empty axes, "
            f"found {tuple(q_hash.shape)} {q_hash.dtype}"
        )
    if v.ndim != 4 or 0 in v.shape:
        raise ValueError(f"v: expected (B, Nk, H, d) without empty axes, found {tuple(v.shape)}")
    (batch, num_queries, heads, num_bits), (num_keys, width) = q_hash.shape, v.shape[1::2]
    check_float("k_hash", k_hash, (batch, num_keys, heads, num_bits), q_hash)
    check_float("v", v, (batch, num_keys, heads, width), q_hash)
    check_valid(valid, (batch, num_keys), q_hash.device)
    if value_sum == "own" and num_queries != num_keys:
        raise ValueError(
            f"value_sum: 'own' expects as many queries as keys, found {num_queries} and {num_keys}"
        )


def _unit(x: Tensor) -> Tensor:
    """Normalize vectors (B, N, H, d) to (B, H, N, d) of length 1, or 0, in float32 or float64."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.normalize(x.transpose(1, 2).to(wide), dim=-1)


def _neighbors(units: Tensor, count: int) -> Tensor:
    """Targets: +1 at keys of largest, -1 at keys of smallest inner product, (B, H, N, N)."""
    scores = units @ units.mT
    target = torch.zeros_like(scores)
    target.scatter_(-1, scores.topk(count, -1).indices, 1)
    return target.scatter_(-1, scores.topk(count, -1, largest=False).indices, -1)


def _codes(kernel: Tensor, weight: Tensor) -> Tensor:
    """Values of one bit of every token, (B, H, N), by the weights (H, m) of the bit."""
    return signs((kernel @ weight[..., None])[..., 0])


def _loss(codes: Tensor, target: Tensor, num_bits: int) -> Tensor:
    """Loss -h^T S h / (N b), mean over samples and heads, of codes or smooth codes (B, H, N)."""
    agreement = ((codes[..., None, :] @ target)[..., 0, :] * codes).sum(-1)
    return -agreement.mean() / (codes.shape[-1] * num_bits)


def _descend(
    kernel: Tensor,
    target: Tensor,
    weight: Tensor,
    num_bits: int,
    num_steps: int,
    lr: float,
    momentum: float,
) -> Tensor:
    """Weights (H, m) after gradient descent on the loss with tanh(x / 2) in place of the sign."""
    weight = weight.clone().requires_grad_()
    optimizer = torch.optim.SGD([weight], lr=lr, momentum=momentum, nesterov=momentum > 0)
    for _ in range(num_steps):
        with torch.enable_grad():
            smooth = torch.tanh((kernel @ weight[..., None])[..., 0] / 2)
            loss = _loss(smooth, target, num_bits)
        (weight.grad,) = torch.autograd.grad(loss, weight)
        optimizer.step()
    return weight.detach()
