"""Bits per dimension: how few bits a generator would need for images that it never saw.

A generator with a likelihood, or a bound on it, says how many bits the tokens of an image need when
its predictions are the code. One bit per bit of the tokens is what knowing nothing needs, so the
figure compares generators of the same tokens, whatever their kind: exact for autoregressive ones, a
variational bound for Bernoulli diffusion and Bayesian flows. Fewer bits are no promise of better
pictures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.image_source import DataError, ImageSource
from ..data.loader import eval_batches, evenly_spaced
from ..generators.autoregressive import AutoregressiveGenerator
from ..generators.base import Generator
from ..generators.bayesian_flow_network import BayesianFlowNetwork
from ..generators.binary_latent_diffusion import BinaryLatentDiffusion
from ..generators.noise import derive_seeds

DEFAULT_DRAWS = 2


@dataclass(frozen=True)
class Figure:
    """What bits per dimension are for one generator.

    Args:
        value: In words: exact, or which bound.
        exact: Whether nothing is drawn.
        measure: (tokens, labels, *, seeds) to the bits per dimension of each image, (B,) float64.
    """

    value: str
    exact: bool
    measure: Callable[..., Tensor]


def figure_of(generator: Generator, num_steps: int | None = None) -> Figure:
    """What `measure_bits` measures of a generator; arguments as there.

    Raises:
        ValueError: If it has no likelihood and no bound on one, or not in so many steps.
    """
    kind = generator.config.type
    match generator:
        case AutoregressiveGenerator():
            if num_steps is not None:
                raise ValueError(
                    f"num_steps: the bits of generators of type {kind} are exact, of no steps"
                )
            return Figure("exact", True, partial(_exact, generator))
        case BinaryLatentDiffusion():
            steps = len(generator.diffusion.steps(num_steps))
            measure = partial(generator.bits_per_dim, num_steps=num_steps)
            return Figure(f"bound, chain of {steps} steps", False, measure)
        case BayesianFlowNetwork():
            if num_steps is not None:
                generator.flow.alphas(num_steps)
            time = "continuous time" if num_steps is None else f"chain of {num_steps} steps"
            measure = partial(generator.bits_per_dim, num_steps=num_steps)
            return Figure(f"bound, {time}", False, measure)
        case _:
            raise ValueError(
                f"bits: generators of type {kind} have no likelihood, nor a bound on it: they "
                "learn to fill in hidden tokens in any order; expected one of type ar, bld or bfn"
            )


def measure_bits(
    generator: Generator,
    source: ImageSource,
    *,
    draws: int | None = None,
    num_steps: int | None = None,
    unconditional: bool = False,
    seed: int = 0,
    limit: int | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> dict[str, Any]:
    """Bits that the tokens of a source need; in float32, images not augmented.

    Every draw of an image has a seed of its own, from `seed`, its number and that of the image.
    It visits each step of a chain once, or each 64th part of continuous time, so none of the error
    comes from which times were drawn.

    Args:
        generator: In eval mode, with its tokenizer.
        source: The images.
        draws: Independent estimates of the bound of each image; None: 2, or 1 of what is exact.
        num_steps: Of the chain whose bound is measured; None: that of the training, or continuous
            time for Bayesian flows.
        unconditional: Tell the generator no labels.
        seed: Of the draws, at least 0.
        limit: Images at most, evenly spaced; None: all.
        batch_size: Images at once; it has no influence beyond rounding.
        progress: Show a progress bar on stderr.

    Returns:
        What `summarise` says; `value`, as of `Figure`; `images`, `labels` (how many of them had one
        to tell) and `draws`; `seed`, `data`, `generator` and `tokenizer` (fingerprints); `broken`,
        reason by id of the images that could not be read.

    Raises:
        DataError: If no image can be read.
        ValueError: If the generator has no bound or is in training mode, the settings do not fit
            it, or the labels of the source are not its own.
    """
    figure = figure_of(generator, num_steps)
    draws = (1 if figure.exact else DEFAULT_DRAWS) if draws is None else draws
    if draws < 1 or (figure.exact and draws > 1):
        expected = "1, for nothing is drawn" if figure.exact else "at least 1"
        raise ValueError(f"draws: expected {expected}; found {draws}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected at least 1 image, found {limit}")
    if generator.training:
        raise ValueError("bits: the generator is in training mode; call generator.eval() first")
    labelled = generator.num_classes > 0 and not unconditional
    if labelled:
        _check_classes(generator, source)
    tokenizer, device = generator.tokenizer, next(generator.parameters()).device
    chosen = evenly_spaced(len(source), len(source) if limit is None else limit)
    broken: dict[str, str] = {}
    bits, capacity, told = [], [], 0
    batches = eval_batches(source, tokenizer.resolution, batch_size, broken=broken, indices=chosen)
    with torch.no_grad(), tqdm(total=len(chosen) * draws, unit="draw", disable=not progress) as bar:
        for batch in batches:
            labels = batch["labels"].to(device) if labelled else None
            told += 0 if labels is None else int((labels >= 0).sum())
            tokens = tokenizer.encode(batch["images"].to(device))
            room = tokens.valid.sum(1).double() * generator.spec.bits_per_token
            estimates = []
            for draw in range(draws):
                seeds = derive_seeds(seed, draw * len(source) + batch["numbers"]).to(device)
                estimates.append(figure.measure(tokens, labels, seeds=seeds) * room)
                if not estimates[-1].isfinite().all():
                    raise ValueError("bits: the predicted logits are not finite")
                bar.update(len(tokens))
            bits.append(torch.stack(estimates).cpu())
            capacity.append(room.cpu())
    if not bits:
        raise DataError(f"{source.name}: none of {len(chosen)} images can be read")
    return {
        **summarise(torch.cat(bits, 1), torch.cat(capacity), exact=figure.exact),
        "value": figure.value,
        "images": sum(map(len, capacity)),
        "labels": told,
        "draws": draws,
        "seed": seed,
        "data": f"{source.name} {source.split}",
        "generator": generator.fingerprint,
        "tokenizer": tokenizer.fingerprint,
        "broken": broken,
    }


def summarise(bits: Tensor, capacity: Tensor, *, exact: bool = False) -> dict[str, float | None]:
    """Means and standard errors of what images need.

    Args:
        bits: Draws of the bits of each image, (R, M) float64.
        capacity: Bits of each image if nothing is known, (M,) float64.
        exact: Whether the draws have no error.

    Returns:
        `bits_per_dim`: all bits over all capacity. Its standard errors: `error_over_images`, if the
        images are a sample of many, that of the draws included; `error_over_draws`, for these very
        images. None: one image, or one draw, does not tell. `bits_per_image`, and its
        `capacity_per_image`.
    """
    draws, images = bits.shape
    means, total = bits.mean(0), capacity.sum()
    per_dim = means.sum() / total
    over_images = over_draws = None
    if images > 1:  # of a ratio of means, where images differ in length
        spread = (means - per_dim * capacity).square().sum() / (images - 1)
        over_images = ((spread * images).sqrt() / total).item()
    if exact:
        over_draws = 0.0
    elif draws > 1:
        over_draws = ((bits.var(0).sum() / draws).sqrt() / total).item()
    return {
        "bits_per_dim": per_dim.item(),
        "error_over_images": over_images,
        "error_over_draws": over_draws,
        "bits_per_image": means.mean().item(),
        "capacity_per_image": capacity.mean().item(),
    }


def _exact(
    generator: AutoregressiveGenerator, tokens: Any, labels: Tensor | None, *, seeds: Tensor
) -> Tensor:
    """`AutoregressiveGenerator.bits_per_dim`, which needs no seeds."""
    return generator.bits_per_dim(tokens, labels)


def _check_classes(generator: Generator, source: ImageSource) -> None:
    """Refuse labels that mean something else to the generator, or nothing.

    Raises:
        ValueError: With the way out.
    """
    theirs, own = source.classes, generator.classes
    if theirs and (theirs != own if own else len(theirs) != generator.num_classes):
        found, expected = (
            f"{len(names)} classes ({', '.join([*names[:3], '...'][: len(names)])})"
            for names in (theirs, own)
        )
        raise ValueError(
            f"{source.name}: its labels are not those of the generator, {found} and "
            f"{expected if own else generator.num_classes}; --unconditional tells none"
        )
