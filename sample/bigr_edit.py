"""Mixtures of two classes, and pictures enriched by BiGR without training for it.

Both are the loop of `bigr.py`. Source: arXiv:2410.14672 section 3.4.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..generators.bigr import BiGR
from ..generators.noise import uniform
from ..tokenizers.tokens import Tokens
from .bigr import BigrSampler, BigrSampling

_CELL = 2  # side of the cells of `enrich`, in tokens
_SETUP = 2**31 + 16  # draws of the orders of `enrich`, apart from those of the steps


@torch.no_grad()
def sample_between(
    generator: BiGR,
    labels: Tensor,
    shares: Tensor,
    seeds: Tensor,
    config: BigrSampling,
    *,
    predict: Callable[..., Tensor] | None = None,
    predict_flips: Callable[..., Tensor] | None = None,
) -> Tokens:
    """Draw tokens of mixtures of two classes: a e_1 + (1 - a) e_2 of their embeddings e.

    Args:
        generator: In eval mode.
        labels: Two of each image, (B, 2) int64 in [0, num_classes].
        shares: Of the first class, a in [0, 1], (B,) float.
        seeds: One per image, (B,) int64.
        config: Settings.
        predict: As of `sample_bigr`.
        predict_flips: As of `sample_bigr`.

    Raises:
        ValueError: If a share is outside [0, 1], and as of `sample_bigr`.

    Source: arXiv:2410.14672 section 3.4 and its code.
    """
    if shares.shape != seeds.shape or labels.shape != (len(seeds), 2):
        raise ValueError(
            f"expected labels ({len(seeds)}, 2) and shares ({len(seeds)},), found "
            f"{tuple(labels.shape)} and {tuple(shares.shape)}"
        )
    if not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError(f"shares: expected 0 to 1, found {shares.tolist()}")
    sampler = BigrSampler(generator, seeds, config, predict, predict_flips)
    one, other = generator.embed_classes(labels).unbind(1)
    share = shares[:, None].to(one.dtype)
    return sampler.run(
        sampler.start(), share * one + (1 - share) * other, guided=config.guidance != 1
    )


@torch.no_grad()
def enrich(
    generator: BiGR,
    tokens: Tokens,
    labels: Tensor,
    seeds: Tensor,
    config: BigrSampling,
    *,
    repeats: int = 4,
    predict: Callable[..., Tensor] | None = None,
    predict_flips: Callable[..., Tensor] | None = None,
) -> Tokens:
    """Draw all tokens of a picture anew, a quarter at a time, for detail that it lacks.

    The quarters are the four places in cells of 2x2 tokens; each image takes them in a random order
    of its own, another in every repeat.

    Args:
        generator: In eval mode.
        tokens: Of a picture that was enlarged, for example.
        labels: (B,) int64 in [0, num_classes]; published: no label.
        seeds: One per image, (B,) int64.
        config: Settings of each of the `4 * repeats` runs; published: the linear schedule.
        repeats: How often every token is drawn anew.
        predict: As of `sample_bigr`.
        predict_flips: As of `sample_bigr`.

    Raises:
        ValueError: If the tokens are no grid of even sides, and as of `sample_bigr`.

    Source: arXiv:2410.14672 section 3.4 and its code.
    """
    spec = generator.spec
    if len(spec.shape) != 2 or any(side % _CELL for side in spec.shape):
        raise ValueError(f"enrich: expected a grid of even sides, found {spec}")
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, found {repeats}")
    sampler = BigrSampler(generator, seeds, config, predict, predict_flips)
    classes, guided = sampler.classes_of(labels)
    rows, columns = (torch.arange(side, device=seeds.device) % _CELL for side in spec.shape)
    places = (_CELL * rows[:, None] + columns).flatten()
    for repeat in range(repeats):
        order = uniform(seeds, _SETUP + repeat, (_CELL**2,)).argsort(1)
        for turn in range(_CELL**2):
            mask = places == order[:, turn : turn + 1]
            tokens = sampler.run(
                sampler.start(tokens, mask), classes, guided, number=_CELL**2 * repeat + turn
            )
    return tokens
