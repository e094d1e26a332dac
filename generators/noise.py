"""Random numbers that belong to an image: uniform(seed, draw, slot) on any device, no state.

Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) in integer
tensor arithmetic. The seed of an image is the key, the number of the draw and the slot are the
counter. So image i depends on seed i alone, whatever the batch, the process or the device; nothing
is kept between draws, which suits exact resume and captured graphs.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Philox-4x32-10.

    Args:
        counter: Four int64 tensors of one shape, values in [0, 2**32).
        key: Two int64 tensors that broadcast to that shape, values in [0, 2**32).

    Returns:
        Four int64 tensors of that shape, values in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The 64-bit products wrap in int64; their two halves are right all the same.
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((second >> 32) & _MASK) ^ c1 ^ k0,
            second & _MASK,
            ((first >> 32) & _MASK) ^ c3 ^ k1,
            first & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def uniform(seeds: Tensor, draw: int | Tensor, shape: Sequence[int]) -> Tensor:
    """Uniform numbers in (0, 1), the same for a seed in whatever batch it stands.

    Args:
        seeds: One seed per image, (B,) int64, any values.
        draw: Number of the draw of the image, in [0, 2**32); other draws are independent.
        shape: Shape of one image's numbers.

    Returns:
        (B, *shape) float32 on the device of the seeds, multiples of 2**-23 plus 2**-24:
        0 and 1 do not occur.
    """
    count = math.prod(shape)
    place = torch.arange((count + 3) // 4, device=seeds.device)
    zero = torch.zeros_like(place)
    counter = [c[None].expand(len(seeds), -1) for c in (place, zero + draw, zero, zero)]
    words = philox(counter, (seeds[:, None] & _MASK, (seeds[:, None] >> 32) & _MASK))
    flat = torch.stack(words, dim=-1).flatten(1)[:, :count]
    return ((flat >> 9).float() + 0.5).mul(2.0**-23).view(len(seeds), *shape)


def gumbel(seeds: Tensor, draw: int | Tensor, shape: Sequence[int]) -> Tensor:
    """Standard Gumbel numbers, (B, *shape) float32; arguments as of `uniform`."""
    return -torch.log(-torch.log(uniform(seeds, draw, shape)))


def normal(seeds: Tensor, draw: int | Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers that belong to an image, (B, *shape) float64, within +-5.3.

    The inverse distribution function of `uniform`, whose arguments these are.
    """
    numbers: Tensor = torch.special.ndtri(uniform(seeds, draw, shape).double())
    return numbers


def derive_seeds(seed: int, numbers: Tensor) -> Tensor:
    """One seed per number, (B,) int64 in [0, 2**63): those of another `seed` are unrelated.

    Args:
        seed: Seed of the run, at least 0.
        numbers: Numbers of the samples, (B,) int64, at least 0.
    """
    key = torch.tensor([seed & _MASK, (seed >> 32) & _MASK], device=numbers.device)
    zero = torch.zeros_like(numbers)
    counter = (numbers & _MASK, (numbers >> 32) & _MASK, zero, zero)
    low, high, _, _ = philox(counter, (key[0], key[1]))
    return (high >> 1 << 32) | low
